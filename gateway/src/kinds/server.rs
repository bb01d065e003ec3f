//! Servers. What is stored is where they are; how they are is asked when somebody looks. Deleting one removes it from the system.

use super::{Caller, Column, Kind, Subresource, cell, column, wide};
use crate::apiserver::backend::{Backend, failed};
use crate::apiserver::object;
use crate::apiserver::schema::Parts;
use crate::apiserver::servers;
use async_trait::async_trait;
use hanse_api::kinds::{KindName, SERVERS};
use hanse_api::status::{Cause, Status};
use serde_json::Value;

pub(super) struct Servers;

#[async_trait]
impl Kind for Servers {
    fn names(&self) -> &'static KindName {
        &SERVERS
    }

    fn singular(&self) -> &'static str {
        "server"
    }

    fn about(&self) -> &'static str {
        "A server of Hanse. Servers come by `hanse server join`; deleting one removes it for good. Its status is asked for when somebody looks."
    }

    fn verbs(&self) -> &'static [&'static str] {
        // Servers come by `hanse server join`, and go for good.
        &["delete", "get", "list", "watch"]
    }

    fn subresources(&self) -> &'static [Subresource] {
        &[Subresource {
            name: "move",
            kind: "ServerMove",
            verbs: &["create"],
            about: "Tells the members that it has another address (`spec.raft`). For administrators.",
        }]
    }

    fn has_status(&self) -> bool {
        false
    }

    fn schemas(&self) -> Parts {
        Parts::of::<hanse_api::resources::ServerSpec, hanse_api::resources::ServerStatus>()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            column("Region", "Region that it belongs to"),
            column("Online", "Whether it answers"),
            column("Seat", "Voter, AwaitingVote, Learner, or None if it is no member"),
            column("Role", "Role in the council"),
            column("Term", "Term of the council"),
            column("Applied", "Last log entry of the council that it applied"),
            wide("Version", "Version of its program"),
            wide("Gateway", "Base address of its gateway"),
        ];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![
            cell(object, "/spec/region"),
            cell(object, "/status/online"),
            cell(object, "/status/seat"),
            cell(object, "/status/groups/0/role"),
            cell(object, "/status/groups/0/term"),
            cell(object, "/status/groups/0/appliedIndex"),
            cell(object, "/status/version"),
            cell(object, "/spec/gateway"),
        ]
    }

    fn validate(&self, _object: &Value) -> Vec<Cause> {
        Vec::new()
    }

    async fn delete_whole(&self, backend: &Backend, object: &Value) -> Result<bool, Box<Status>> {
        let id = object.pointer("/spec/id").and_then(Value::as_u64).unwrap_or_default();
        let name = object::name(object);
        backend.objects.begin().await.map_err(|error| failed(&error))?;
        let removed = backend.cluster_status.remove(&backend.objects, name, id).await;
        removed.map_err(|error| servers::fault(&format!("server {name:?} cannot be removed"), &error))?;
        Ok(true)
    }

    async fn decorate(&self, backend: &Backend, _caller: Caller<'_>, objects: &mut [Value]) {
        if objects.is_empty() {
            return;
        }
        let live = backend.cluster_status.servers().await;
        for object in objects {
            let name = object::name(object);
            let status = live
                .iter()
                .find(|s| s.metadata.name == name)
                .map(|s| serde_json::to_value(&s.status));
            object["status"] = match status {
                Some(Ok(status)) => status,
                Some(Err(_)) | None => serde_json::json!({ "online": false }),
            };
        }
    }
}
