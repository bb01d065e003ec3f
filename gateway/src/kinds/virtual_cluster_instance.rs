//! Tenant clusters.

use super::project::inside_project;
use super::{
    Caller, Column, Kind, Subresource, admit_grants, cell, check, column, fill_owner, keep_owner, typed, wide,
};
use crate::apiserver::backend::Backend;
use crate::apiserver::object;
use crate::apiserver::schema::Parts;
use crate::authz::{Asker, RoleCache};
use async_trait::async_trait;
use hanse_api::access::{Action, Principal, Target, decide};
use hanse_api::kinds::{FINALIZER_TENANT, KindName, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::name::project_of_namespace;
use hanse_api::resources::virtual_cluster_instance as rules;
use hanse_api::status::{Cause, Status};
use hanse_state::objects::Op;
use serde_json::{Value, json};

pub(super) struct VirtualClusterInstances;

#[async_trait]
impl Kind for VirtualClusterInstances {
    fn names(&self) -> &'static KindName {
        &VIRTUAL_CLUSTER_INSTANCES
    }

    fn singular(&self) -> &'static str {
        "virtualclusterinstance"
    }

    fn about(&self) -> &'static str {
        "A tenant cluster of a project. Where it runs is decided once (`spec.clusterRef`) and stays. With `?extended=true` answers say what the caller may do with it."
    }

    fn example(&self) -> Value {
        json!({
            "metadata": { "name": "dev", "namespace": "p-default" },
            "spec": { "displayName": "Development", "clusterRef": { "cluster": "eu" } },
        })
    }

    fn short_names(&self) -> &'static [&'static str] {
        &["vci"]
    }

    fn subresources(&self) -> &'static [Subresource] {
        &[
            Subresource {
                name: "accesskey",
                kind: "VirtualClusterAccessKey",
                verbs: &["get"],
                about: "A key with which the tenant cluster itself is reached.",
            },
            Subresource {
                name: "kubeconfig",
                kind: "VirtualClusterInstanceKubeConfig",
                verbs: &["create"],
                about: "A kubeconfig for the caller, made for this request.",
            },
        ]
    }

    fn project<'a>(&self, namespace: &'a str, _name: &'a str) -> Option<&'a str> {
        project_of_namespace(namespace)
    }

    fn schemas(&self) -> Parts {
        Parts::of::<hanse_api::resources::VciSpec, hanse_api::resources::VciStatus>()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            column("Phase", "Life cycle"),
            column("Online", "Whether its API answers"),
            column("Cluster", "Connected cluster that hosts it"),
            column("Version", "Kubernetes version"),
            wide("Reason", "Why it is not ready"),
            wide("Message", "Why it is not ready, in a sentence"),
        ];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        let phase = match cell(object, "/status/phase") {
            _ if object::is_terminating(object) => "Terminating".into(),
            Value::String(phase) if phase.is_empty() => "Pending".into(),
            phase => phase,
        };
        vec![
            phase,
            cell(object, "/status/online"),
            cell(object, "/spec/clusterRef/cluster"),
            cell(object, "/status/kubernetesVersion"),
            cell(object, "/status/reason"),
            cell(object, "/status/message"),
        ]
    }

    fn prepare(&self, object: &mut Value, caller: &Principal) {
        object::add_finalizer(object, FINALIZER_TENANT);
        fill_owner(object, caller);
        let name = object::name(object).to_owned();
        // Clients of vCluster Platform show this as the name.
        let host = object::member_mut(&mut object["spec"], "clusterRef");
        if host.get("virtualCluster").is_none_or(|v| v == "") {
            host.insert("virtualCluster".into(), name.into());
        }
        object["status"] = json!({ "phase": "Pending" });
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        // A client that knows nothing of the placement does not undo it.
        let was = old["spec"]["clusterRef"].as_object().cloned().unwrap_or_default();
        let host = object::member_mut(as_spec(new), "clusterRef");
        for (key, value) in was {
            host.entry(key).or_insert(value);
        }
        keep_owner(old, new);
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        check(object, rules::validate)
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<Cause> {
        match (typed(old), typed(new)) {
            (Ok(old), Ok(new)) => rules::validate_update(&old, &new),
            // An old object that cannot be read must stay repairable.
            (Err(_), Ok(new)) => rules::validate(&new),
            (_, Err(fault)) => vec![fault],
        }
    }

    /// Owners and project administrators say who may use a tenant cluster. A member makes one for himself or his team, and
    /// from a template where the project asks for that.
    async fn admit_change(&self, asker: Asker<'_>, old: Option<&Value>, new: &Value) -> Result<(), Box<Status>> {
        let kind = &VIRTUAL_CLUSTER_INSTANCES;
        if old.is_none() {
            let namespace = object::meta_text(new, "namespace");
            asker
                .require("create", kind, Some("restricted"), (namespace, None))
                .await?;
        }
        admit_grants(asker, kind, old, new).await
    }

    async fn admit_create(&self, backend: &Backend, object: &Value) -> Result<Vec<Op>, Box<Status>> {
        inside_project(backend, object).await
    }

    async fn decorate(&self, backend: &Backend, caller: Caller<'_>, objects: &mut [Value]) {
        if !caller.extended {
            return;
        }
        let mut roles = RoleCache::new(backend, caller.principal);
        for object in objects {
            let (name, namespace) = (
                object::name(object).to_owned(),
                object::meta_text(object, "namespace").to_owned(),
            );
            let project = project_of_namespace(&namespace).unwrap_or_default();
            let roles = roles.of(Some(project), Some(&object["spec"])).await;
            let may = |verb, target: &Target<'_>| decide(caller.principal, &Action { verb }, target, &roles).allowed;
            let can_use = may("use", &Target::Tenant { project, name: &name });
            let can_update = may(
                "update",
                &Target::Resource {
                    group: VIRTUAL_CLUSTER_INSTANCES.group,
                    resource: VIRTUAL_CLUSTER_INSTANCES.plural,
                    subresource: None,
                    namespace: Some(&namespace),
                    name: Some(&name),
                },
            );
            // Without parameters the definition is the template itself; `vcluster describe` reads it here.
            let definition = object["spec"].get("template").cloned().unwrap_or_else(|| json!({}));
            let status = object::member_mut(object, "status");
            status.entry("virtualCluster").or_insert(definition);
            status.insert("canUse".into(), can_use.into());
            status.insert("canUpdate".into(), can_update.into());
            status.entry("online").or_insert(false.into());
        }
    }
}

fn as_spec(object: &mut Value) -> &mut Value {
    object::member_mut(object, "spec");
    &mut object["spec"]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(mut object: Value) -> Value {
        VirtualClusterInstances.prepare(
            &mut object,
            &Principal {
                user: "ann".into(),
                ..Default::default()
            },
        );
        object
    }

    #[test]
    fn defaults() {
        let got = prepared(json!({ "metadata": { "name": "demo" } }));
        assert_eq!(got["spec"]["owner"]["user"], "ann");
        assert_eq!(got["spec"]["clusterRef"]["virtualCluster"], "demo");
        assert_eq!(got["metadata"]["finalizers"][0], FINALIZER_TENANT);
        let kept = prepared(json!({ "metadata": { "name": "demo" }, "spec": { "owner": { "team": "t" } } }));
        assert_eq!(kept["spec"]["owner"], json!({ "team": "t" }));
    }

    #[test]
    fn an_update_without_placement_keeps_it() {
        let old = json!({ "spec": { "owner": { "user": "ann" }, "clusterRef": { "cluster": "eu", "virtualCluster": "demo" } } });
        let mut new = json!({ "spec": { "displayName": "x" } });
        VirtualClusterInstances.prepare_update(&old, &mut new);
        assert_eq!(new["spec"]["clusterRef"], old["spec"]["clusterRef"]);
        assert_eq!(new["spec"]["owner"]["user"], "ann");
        let mut moved = json!({ "spec": { "clusterRef": { "cluster": "us" } } });
        VirtualClusterInstances.prepare_update(&old, &mut moved);
        assert_eq!(
            VirtualClusterInstances.validate_update(&old, &moved).len(),
            2,
            "the name is missing in both, the host moved"
        );
    }

    #[test]
    fn phases_as_people_see_them() {
        let phase = |object: Value| VirtualClusterInstances.cells(&object)[0].clone();
        assert_eq!(phase(json!({})), "Pending");
        assert_eq!(phase(json!({ "status": { "phase": "Ready" } })), "Ready");
        assert_eq!(
            phase(json!({ "metadata": { "deletionTimestamp": "t" }, "status": { "phase": "Ready" } })),
            "Terminating"
        );
    }
}
