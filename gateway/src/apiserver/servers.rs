//! How servers come and move: what administrators do below regions and servers. Deleting one is in its kind.

use super::backend::{Backend, failed};
use super::keys::{invalid, join_token};
use super::not_allowed;
use super::special::typed;
use crate::authz::Asker;
use crate::parts::ChangeFault;
use crate::proxy::path::RequestInfo;
use hanse_api::access::Principal;
use hanse_api::kinds::SERVERS;
use hanse_api::resources::Server;
use hanse_api::status::{Reason, Status};
use hanse_state::objects::ObjectError;
use serde_json::{Value, json};

/// Whether a request is answered here.
pub(super) fn is_here(info: &RequestInfo) -> bool {
    let what = (info.resource.as_str(), info.subresource.as_str());
    let known = matches!(what, ("regions", "jointoken") | ("servers", "move"));
    known && info.group == SERVERS.group && info.version == SERVERS.version && !info.name.is_empty()
}

/// Answers it. For administrators only: who says who the servers are has everything.
pub(super) async fn serve(
    backend: &Backend,
    principal: &Principal,
    info: &RequestInfo,
    wanted: &Value,
) -> Result<Value, Box<Status>> {
    if info.verb != "create" {
        return Err(not_allowed());
    }
    if !(Asker { backend, principal }).is_admin() {
        let message = format!(
            "only administrators change who the servers are, which user {:?} is not",
            principal.user
        );
        return Err(Box::new(Status::new(Reason::Forbidden, message)));
    }
    match info.resource.as_str() {
        "regions" => join_token(backend, principal, &info.name, wanted).await,
        _ => relocate(backend, principal, &info.name, wanted).await,
    }
}

async fn relocate(backend: &Backend, principal: &Principal, name: &str, wanted: &Value) -> Result<Value, Box<Status>> {
    let server: Server = typed(backend, &SERVERS, name).await?;
    let address = wanted["spec"]["raft"].as_str().unwrap_or_default();
    let is_address = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    if !is_address {
        let message = format!("Invalid value: {address:?}: must be of the form host:port");
        return Err(invalid("Server", name, "spec.raft", message));
    }
    backend.objects.begin().await.map_err(|error| failed(&error))?;
    let moved = backend.cluster_status.relocate(server.spec.id, address).await;
    moved.map_err(|error| fault(&format!("server {name:?} cannot be moved"), &error))?;
    tracing::info!(user = principal.user, name, address, "a server has another address");
    Ok(json!({
        "kind": "ServerMove",
        "apiVersion": SERVERS.api_version(),
        "metadata": { "name": name },
        "status": { "address": address },
    }))
}

/// What the caller is told.
pub(crate) fn fault(what: &str, error: &ChangeFault) -> Box<Status> {
    match error {
        ChangeFault::Refused(why) => Box::new(Status::new(Reason::Conflict, format!("{what}: {why}"))),
        ChangeFault::Store(error) => failed(&ObjectError::Store(error.clone())),
    }
}
