//! What the verbs know about tenant clusters: finding them, waiting for them, saying what they wait for.

use crate::client::http::Call;
use crate::client::{Management, Stage};
use crate::error::{Error, Kind, Result};
use crate::kubeconfig::Names;
use crate::output::progress::{Step, seconds};
use hanse_api::kinds::{PROJECTS, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::name::{check_label, project_namespace};
use serde_json::Value;
use std::time::Duration;

/// Between two looks at an object that is waited for.
const POLL: Duration = Duration::from_millis(250);
/// Names that a message lists.
const LISTED_MAX: usize = 20;

/// A text in an object, empty when it is not there.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The object's name.
pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// Life cycle as people see it.
pub(crate) fn phase(vci: &Value) -> &str {
    if vci.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null()) {
        return "Terminating";
    }
    match text(vci, "/status/phase") {
        "" => "Pending",
        phase => phase,
    }
}

/// What it waits for: the first condition that does not hold, else the summary.
pub(crate) fn waiting_for(vci: &Value) -> String {
    let conditions = vci.pointer("/status/conditions").and_then(Value::as_array);
    let open = conditions.into_iter().flatten().find(|c| text(c, "/status") != "True");
    let said = open.map(|c| match text(c, "/message") {
        "" => text(c, "/type"),
        message => message,
    });
    match said
        .filter(|s| !s.is_empty())
        .unwrap_or_else(|| text(vci, "/status/message"))
    {
        "" => phase(vci).to_owned(),
        said => said.to_owned(),
    }
}

/// Fails when the project does not exist, with those that do.
pub(crate) async fn require_project(management: &Management, project: &str) -> Result<()> {
    if check_label(project).is_ok() && management.get::<Value>(&PROJECTS, None, project).await?.is_some() {
        return Ok(());
    }
    let error = Error::not_found(format!("there is no project {project:?}"));
    let all: Vec<Value> = management.list(&PROJECTS, None).await?;
    Err(error.hint(match listed(&all) {
        known if known.is_empty() => "there are no projects that you may see".to_owned(),
        known => format!("the projects are: {known}"),
    }))
}

/// The tenant cluster, or an error with those that there are.
pub(crate) async fn require(management: &Management, project: &str, tenant: &str) -> Result<Value> {
    let namespace = project_namespace(project);
    if check_label(tenant).is_ok() && check_label(project).is_ok() {
        let found = management
            .get(&VIRTUAL_CLUSTER_INSTANCES, Some(&namespace), tenant)
            .await?;
        if let Some(found) = found {
            return Ok(found);
        }
    }
    require_project(management, project).await?;
    let all: Vec<Value> = management.list(&VIRTUAL_CLUSTER_INSTANCES, Some(&namespace)).await?;
    let error = Error::not_found(format!("there is no tenant cluster {tenant:?} in project {project:?}"));
    Err(error.hint(match listed(&all) {
        known if known.is_empty() => format!("there is none yet: `hanse create {tenant} --project {project}`"),
        known => format!("there are: {known}; --project NAME looks in another project"),
    }))
}

pub(crate) fn listed(objects: &[Value]) -> String {
    let names: Vec<&str> = objects.iter().take(LISTED_MAX).map(name).collect();
    let more = if objects.len() > LISTED_MAX { ", ..." } else { "" };
    format!("{}{more}", names.join(", "))
}

/// Waits until the tenant's API answers through the gateway, telling `step` what is waited for.
pub(crate) async fn wait_ready(
    management: &Management,
    project: &str,
    tenant: &str,
    step: &mut Step,
    limit: Duration,
) -> Result<()> {
    let clock = management.http().clock().clone();
    let end = clock.mono() + limit;
    loop {
        let vci = require(management, project, tenant).await?;
        match phase(&vci) {
            "Failed" => {
                let message = format!("tenant cluster {tenant} failed: {}", waiting_for(&vci));
                return Err(Error::failed(message).hint(format!("`hanse get {tenant} --project {project}` tells more")));
            }
            "Terminating" => {
                let message = format!("tenant cluster {tenant} is being deleted");
                return Err(Error::new(Kind::Conflict, message).hint("wait until it is gone, or choose another name"));
            }
            "Ready" => {
                let names = Names::Tenant {
                    project: project.to_owned(),
                    name: tenant.to_owned(),
                };
                if answers(management, &names).await? {
                    return Ok(());
                }
                step.say("waiting for its API to answer through the gateway");
            }
            _ => step.say(&waiting_for(&vci)),
        }
        if clock.mono() >= end {
            let message = format!(
                "tenant cluster {tenant} is not ready after {}: {}",
                seconds(limit),
                waiting_for(&vci)
            );
            return Err(Error::new(Kind::TimedOut, message).hint(format!(
                "it goes on without this command; `hanse get {tenant} --project {project}` shows how far it is"
            )));
        }
        clock.sleep(POLL).await;
    }
}

/// Whether `/readyz` of what `names` leads to answers well.
pub(crate) async fn answers(management: &Management, names: &Names) -> Result<bool> {
    let http = management.http();
    match http.once(&Call::get(format!("{}/readyz", names.path()))).await {
        Ok(reply) if reply.status.as_u16() == 401 => management.checked(reply).map(|_| true),
        Ok(reply) => Ok(reply.status.is_success()),
        Err(fault) if matches!(fault.stage, Stage::Untrusted | Stage::Resolve) => Err(http.explain(&fault)),
        Err(_) => Ok(false),
    }
}

/// Waits until the tenant cluster is gone.
pub(crate) async fn wait_gone(
    management: &Management,
    project: &str,
    tenant: &str,
    step: &mut Step,
    limit: Duration,
) -> Result<()> {
    let clock = management.http().clock().clone();
    let end = clock.mono() + limit;
    let namespace = project_namespace(project);
    loop {
        let found: Option<Value> = management
            .get(&VIRTUAL_CLUSTER_INSTANCES, Some(&namespace), tenant)
            .await?;
        let Some(vci) = found else { return Ok(()) };
        if phase(&vci) != "Terminating" {
            let message = format!("another tenant cluster {tenant} was created meanwhile");
            return Err(Error::new(Kind::Conflict, message));
        }
        step.say(&waiting_for(&vci));
        if clock.mono() >= end {
            let message = format!(
                "tenant cluster {tenant} is not gone after {}: {}",
                seconds(limit),
                waiting_for(&vci)
            );
            return Err(Error::new(Kind::TimedOut, message).hint("it goes on without this command"));
        }
        clock.sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn phases_and_what_is_waited_for() {
        for (vci, shown, waits) in [
            (json!({}), "Pending", "Pending"),
            (json!({"status": {"phase": "", "message": "m"}}), "Pending", "m"),
            (
                json!({"status": {"phase": "Pending", "conditions": [
                    {"type": "Scheduled", "status": "True", "message": "on eu"},
                    {"type": "Online", "status": "False", "message": "API server starts"},
                ]}}),
                "Pending",
                "API server starts",
            ),
            (
                json!({"status": {"phase": "Pending", "conditions": [{"type": "Synced", "status": "Unknown"}]}}),
                "Pending",
                "Synced",
            ),
            (
                json!({"metadata": {"deletionTimestamp": "t"}, "status": {"phase": "Ready"}}),
                "Terminating",
                "Terminating",
            ),
            (
                json!({"metadata": {"deletionTimestamp": null}, "status": {"phase": "Ready"}}),
                "Ready",
                "Ready",
            ),
        ] {
            assert_eq!((phase(&vci), waiting_for(&vci).as_str()), (shown, waits), "{vci}");
        }
    }

    #[test]
    fn long_lists_of_names_are_cut() {
        let many: Vec<Value> = (0..30)
            .map(|n| json!({"metadata": {"name": format!("n{n}")}}))
            .collect();
        assert!(listed(&many).ends_with("n19, ..."));
        assert_eq!(listed(&many[..2]), "n0, n1");
    }
}
