//! `create` and `delete`.

use super::tenant;
use crate::app::App;
use crate::args::StoreArgs;
use crate::client::Management;
use crate::error::{Error, Kind, Result};
use crate::kubeconfig::entries;
use crate::kubeconfig::{Names, store::Store};
use crate::output::progress::Step;
use hanse_api::kinds::{
    ANNOTATION_SIMULATED_GPUS, ANNOTATION_SIMULATED_NODES, ANNOTATION_STORE_BYTES, ANNOTATION_STORE_KEYS,
    ANNOTATION_STORE_WRITES, ANNOTATION_WANTED_REGION, CLUSTERS, KindName, REGIONS, VIRTUAL_CLUSTER_INSTANCES,
};
use hanse_api::name::{check_label, project_namespace};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;

/// What is to be created.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) project: String,
    pub(crate) region: Option<String>,
    pub(crate) cluster: Option<String>,
    pub(crate) simulated_nodes: Option<u32>,
    pub(crate) gpus: Option<u32>,
    pub(crate) limits: StoreArgs,
}

/// `create`.
pub(crate) async fn create(app: &App, wanted: &Wanted, wait: bool, limit: Duration) -> Result<()> {
    check_name(&wanted.name)?;
    let management = app.management()?;
    let mut step = Step::start(app.output, &app.clock, &format!("tenant cluster {}", wanted.name));
    submit(&management, wanted).await?;
    if !wait {
        step.done("created; it becomes ready by itself");
        return app.output.line(&format!("{} created", wanted.name));
    }
    tenant::wait_ready(&management, &wanted.project, &wanted.name, &mut step, limit).await?;
    step.done("ready");
    let project = if wanted.project == "default" {
        String::new()
    } else {
        format!(" --project {}", wanted.project)
    };
    app.output.line(&format!(
        "{} is ready; use it with `hanse connect {}{project}`",
        wanted.name, wanted.name
    ))
}

/// Fails on a name that no server would take.
pub(crate) fn check_name(name: &str) -> Result<()> {
    check_label(name).map_err(|why| {
        Error::usage(format!("{name:?} is no name for a tenant cluster: {why}"))
            .hint("use lower-case letters, digits and -, such as team-a")
    })
}

/// Creates the object, after looking whether what it names is there.
pub(crate) async fn submit(management: &Management, wanted: &Wanted) -> Result<Value> {
    tenant::require_project(management, &wanted.project).await?;
    if let Some(region) = &wanted.region {
        require_named(management, &REGIONS, "region", region).await?;
    }
    if let Some(cluster) = &wanted.cluster {
        require_named(management, &CLUSTERS, "cluster", cluster).await?;
    }
    let namespace = project_namespace(&wanted.project);
    let body = body(wanted);
    let created = management
        .create(&VIRTUAL_CLUSTER_INSTANCES, Some(&namespace), &body)
        .await;
    created.map_err(|error| match error.kind() {
        Kind::Conflict if error.to_string().contains("already exists") => {
            let message = format!(
                "a tenant cluster {:?} exists already in project {:?}",
                wanted.name, wanted.project
            );
            let name = &wanted.name;
            Error::new(Kind::Conflict, message).hint(format!(
                "choose another name, use it with `hanse connect {name}`, or `hanse delete {name}` first"
            ))
        }
        _ => error,
    })
}

async fn require_named(management: &Management, kind: &KindName, what: &str, wanted: &str) -> Result<()> {
    let all: Vec<Value> = management.list(kind, None).await?;
    if all.iter().any(|o| tenant::name(o) == wanted) {
        return Ok(());
    }
    let names: Vec<&str> = all.iter().map(tenant::name).collect();
    Err(Error::not_found(format!("there is no {what} {wanted:?}"))
        .hint(format!("the {what}s are: {}", names.join(", "))))
}

fn body(wanted: &Wanted) -> Value {
    let mut annotations = Map::new();
    let mut annotate = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            annotations.insert(key.to_owned(), value.into());
        }
    };
    annotate(
        ANNOTATION_SIMULATED_NODES,
        wanted.simulated_nodes.map(|n| n.to_string()),
    );
    annotate(ANNOTATION_SIMULATED_GPUS, wanted.gpus.map(|n| n.to_string()));
    annotate(ANNOTATION_WANTED_REGION, wanted.region.clone());
    let StoreArgs {
        store_bytes,
        store_keys,
        store_writes_per_second,
    } = &wanted.limits;
    annotate(ANNOTATION_STORE_BYTES, store_bytes.map(|n| n.to_string()));
    annotate(ANNOTATION_STORE_KEYS, store_keys.map(|n| n.to_string()));
    annotate(ANNOTATION_STORE_WRITES, store_writes_per_second.map(|n| n.to_string()));
    let mut spec = Map::new();
    if let Some(cluster) = &wanted.cluster {
        spec.insert("clusterRef".to_owned(), json!({ "cluster": cluster }));
    }
    json!({
        "apiVersion": VIRTUAL_CLUSTER_INSTANCES.api_version(),
        "kind": VIRTUAL_CLUSTER_INSTANCES.kind,
        "metadata": {
            "name": wanted.name,
            "namespace": project_namespace(&wanted.project),
            "annotations": annotations,
        },
        "spec": spec,
    })
}

/// `delete`.
pub(crate) async fn delete(
    app: &App,
    name: &str,
    project: &str,
    wait: Option<Duration>,
    kubeconfig: Option<&Path>,
) -> Result<()> {
    let management = app.management()?;
    tenant::require(&management, project, name).await?;
    let mut step = Step::start(app.output, &app.clock, &format!("deleting {name}"));
    management
        .delete(&VIRTUAL_CLUSTER_INSTANCES, Some(&project_namespace(project)), name)
        .await?;
    if let Some(limit) = wait {
        tenant::wait_gone(&management, project, name, &mut step, limit).await?;
        step.done("gone");
    } else {
        step.done("asked for; it goes by itself");
    }
    let names = Names::Tenant {
        project: project.to_owned(),
        name: name.to_owned(),
    };
    let server = management.http().base().to_string();
    let changes = Store::find(kubeconfig, &app.clock)?
        .change(|config| {
            // A tenant of the same name may live in another installation: only this one's contexts go.
            let user = entries::user_name(&server);
            entries::forget(config, |context, _| {
                names.owns(context) && entries::uses(config, context, &user)
            })
        })
        .await?;
    if !changes.is_empty() {
        app.output.note("its contexts were taken out of the kubeconfig");
    }
    app.output.line(&format!(
        "{name} {}",
        if wait.is_some() { "deleted" } else { "is being deleted" }
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_api::resources::{StoreLimits, virtual_cluster_instance};

    #[test]
    fn the_object_says_what_was_asked_for_and_nothing_else() {
        let plain = Wanted {
            name: "a".into(),
            project: "default".into(),
            ..Wanted::default()
        };
        let made = body(&plain);
        assert_eq!(made["metadata"]["namespace"], "p-default");
        assert_eq!(made["metadata"]["annotations"], json!({}));
        assert_eq!(made["spec"], json!({}));
        let full = Wanted {
            region: Some("us".into()),
            cluster: Some("us".into()),
            simulated_nodes: Some(5),
            gpus: Some(8),
            limits: StoreArgs {
                store_bytes: Some(64 << 20),
                store_keys: Some(5000),
                store_writes_per_second: Some(100),
            },
            ..plain
        };
        let made = body(&full);
        assert_eq!(made["metadata"]["annotations"][ANNOTATION_SIMULATED_NODES], "5");
        assert_eq!(made["metadata"]["annotations"][ANNOTATION_SIMULATED_GPUS], "8");
        assert_eq!(made["metadata"]["annotations"][ANNOTATION_WANTED_REGION], "us");
        assert_eq!(made["spec"]["clusterRef"]["cluster"], "us");
        let typed: hanse_api::resources::VirtualClusterInstance = serde_json::from_value(made).unwrap();
        assert!(virtual_cluster_instance::validate(&typed).is_empty());
        let limits = StoreLimits {
            bytes: 64 << 20,
            keys: 5000,
            writes_per_second: 100,
        };
        assert_eq!(virtual_cluster_instance::store_limits(&typed.metadata), Ok(limits));
    }

    #[test]
    fn names_are_checked_before_anything_is_asked() {
        for bad in ["", "A", "a.b", "-a", "a/../b"] {
            assert_eq!(check_name(bad).unwrap_err().kind(), Kind::Usage, "{bad}");
        }
        assert!(check_name("team-a").is_ok());
    }
}
