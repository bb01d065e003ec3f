//! `list` and `get`.

use super::{print_document, tenant};
use crate::app::App;
use crate::error::Result;
use crate::output::progress::age;
use crate::output::table::Table;
use crate::output::{Format, style::Paint};
use hanse_api::Timestamp;
use hanse_api::kinds::{ANNOTATION_REGION, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::name::{project_namespace, project_of_namespace};
use serde_json::Value;

/// `list`: tenant clusters of one project or of all.
pub(crate) async fn list(app: &App, project: Option<&str>, format: Format) -> Result<()> {
    let management = app.management()?;
    if let Some(project) = project {
        tenant::require_project(&management, project).await?;
    }
    let namespace = project.map(project_namespace);
    let tenants: Vec<Value> = management
        .list(&VIRTUAL_CLUSTER_INSTANCES, namespace.as_deref())
        .await?;
    if print_document(&app.output, format, &tenants)? {
        return Ok(());
    }
    if tenants.is_empty() {
        app.output
            .note("there are no tenant clusters; `hanse create NAME` makes one");
        return Ok(());
    }
    app.output
        .print(&table(&tenants, app.clock.wall(), format == Format::Wide).render(app.output.out))
}

/// Tenant clusters as a table.
pub(crate) fn table(tenants: &[Value], now: Timestamp, wide: bool) -> Table {
    let mut heads = vec!["NAME", "PROJECT", "CLUSTER", "PHASE", "VERSION", "AGE"];
    if wide {
        heads.push("MESSAGE");
    }
    let mut table = Table::new(&heads);
    for vci in tenants {
        let namespace = tenant::text(vci, "/metadata/namespace");
        let mut row = vec![
            tenant::name(vci).to_owned(),
            project_of_namespace(namespace).unwrap_or(namespace).to_owned(),
            tenant::text(vci, "/spec/clusterRef/cluster").to_owned(),
            tenant::phase(vci).to_owned(),
            tenant::text(vci, "/status/kubernetesVersion").to_owned(),
            object_age(vci, now),
        ];
        if wide {
            let message = if tenant::phase(vci) == "Ready" {
                String::new()
            } else {
                tenant::waiting_for(vci)
            };
            row.push(message);
        }
        table.row(row);
    }
    table
}

/// How old an object is.
pub(crate) fn object_age(object: &Value, now: Timestamp) -> String {
    let created = object
        .pointer("/metadata/creationTimestamp")
        .cloned()
        .unwrap_or_default();
    serde_json::from_value::<Timestamp>(created)
        .map(|then| age(now.since(then)))
        .unwrap_or_default()
}

/// `get NAME`.
pub(crate) async fn get(app: &App, name: &str, project: &str, format: Format) -> Result<()> {
    let management = app.management()?;
    let vci = tenant::require(&management, project, name).await?;
    if print_document(&app.output, format, &vci)? {
        return Ok(());
    }
    app.output.print(&describe(&vci, app.clock.wall(), app.output.out))
}

fn describe(vci: &Value, now: Timestamp, paint: Paint) -> String {
    let namespace = tenant::text(vci, "/metadata/namespace");
    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        if !value.is_empty() {
            out.push_str(&format!("{:<12} {}\n", format!("{key}:"), paint.state(value)));
        }
    };
    line("Name", tenant::name(vci));
    line("Project", project_of_namespace(namespace).unwrap_or(namespace));
    line("Cluster", tenant::text(vci, "/spec/clusterRef/cluster"));
    line(
        "Region",
        tenant::text(
            &vci["metadata"]["annotations"],
            &format!("/{}", ANNOTATION_REGION.replace('/', "~1")),
        ),
    );
    line("Phase", tenant::phase(vci));
    line("Version", tenant::text(vci, "/status/kubernetesVersion"));
    line("Age", &object_age(vci, now));
    if tenant::phase(vci) != "Ready" {
        line("Waits for", &tenant::waiting_for(vci));
    }
    let conditions = vci
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    if !conditions.is_empty() {
        let mut table = Table::new(&["CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE"]);
        for condition in &conditions {
            let since = condition.get("lastTransitionTime").cloned().unwrap_or_default();
            let since = serde_json::from_value::<Timestamp>(since)
                .map(|t| age(now.since(t)))
                .unwrap_or_default();
            table.row(vec![
                tenant::text(condition, "/type").to_owned(),
                tenant::text(condition, "/status").to_owned(),
                since,
                tenant::text(condition, "/reason").to_owned(),
                tenant::text(condition, "/message").to_owned(),
            ]);
        }
        out.push('\n');
        out.push_str(&table.render(paint));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn demo() -> Value {
        json!({
            "metadata": {"name": "demo", "namespace": "p-default", "creationTimestamp": "2023-11-14T22:13:20Z"},
            "spec": {"clusterRef": {"cluster": "us"}},
            "status": {"phase": "Pending", "conditions": [
                {"type": "Scheduled", "status": "True", "reason": "Placed", "lastTransitionTime": "2023-11-14T22:13:20Z"},
                {"type": "Online", "status": "False", "reason": "Starting", "message": "API server starts",
                 "lastTransitionTime": "2023-11-14T22:13:50Z"},
            ]},
        })
    }

    #[test]
    fn tables() {
        let now = Timestamp::from_millis(1_700_000_060_000);
        let text = table(&[demo()], now, true).render(Paint::new(false));
        let expected = "NAME   PROJECT   CLUSTER   PHASE     VERSION   AGE   MESSAGE\n\
                        demo   default   us        Pending   -         60s   API server starts\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn one_tenant_with_its_conditions() {
        let now = Timestamp::from_millis(1_700_000_060_000);
        let text = describe(&demo(), now, Paint::new(false));
        assert!(
            text.starts_with("Name:        demo\nProject:     default\nCluster:     us\nPhase:       Pending\n"),
            "{text}"
        );
        assert!(text.contains("Waits for:   API server starts\n"), "{text}");
        assert!(
            text.contains("Online      False    30s     Starting   API server starts\n"),
            "{text}"
        );
    }
}
