//! Live status of all servers: asked over the Raft port, joined with what the registry says of them.

use crate::membership;
use async_trait::async_trait;
use hanse_api::kinds::SERVERS;
use hanse_api::resources::{Server, ServerStatus};
use hanse_consensus::{MemberStatus, Node, Roster};
use hanse_gateway::{ChangeFault, ClusterStatus};
use hanse_state::objects::{Objects, Page};
use hanse_tunnel::AgentHub;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Agents that a server tells of, in an answer of bounded size.
const MAX_TOLD_AGENTS: usize = 10_000;

/// Answers the gateway's question how the servers are.
pub struct LiveStatus {
    /// This server's consensus.
    pub node: Node,
    /// The registry.
    pub objects: Objects,
    /// Cancelled once this server need not wait for agents, see [`crate::readiness`].
    pub agents_here: CancellationToken,
}

#[async_trait]
impl ClusterStatus for LiveStatus {
    async fn servers(&self) -> Vec<Server> {
        let page = Page {
            local: true,
            ..Page::default()
        };
        let known = match self.objects.list(&SERVERS, None, page).await {
            Ok(list) => list.items,
            Err(error) => {
                tracing::warn!(%error, "the servers cannot be listed");
                Vec::new()
            }
        };
        let live = self.node.cluster_status().await;
        let roster = self.node.roster();
        known
            .iter()
            .filter_map(|stored| match serde_json::from_slice::<Server>(&stored.value) {
                Ok(server) => Some(server),
                Err(error) => {
                    tracing::warn!(name = stored.name, %error, "a stored server cannot be read");
                    None
                }
            })
            .map(|server| join(server, &live, &roster))
            .collect()
    }

    fn awaits_agents(&self) -> bool {
        !self.agents_here.is_cancelled()
    }

    async fn remove(&self, objects: &Objects, name: &str, id: u64) -> Result<(), ChangeFault> {
        membership::remove(&self.node, objects, name, id).await
    }

    async fn relocate(&self, id: u64, address: &str) -> Result<(), ChangeFault> {
        membership::relocate(&self.node, id, address).await
    }
}

/// What a server tells of itself beside its part in consensus; a server that knows more fields may tell an older one.
#[derive(Default, Serialize, Deserialize)]
struct Told {
    #[serde(default)]
    agents: Vec<String>,
}

/// Lets this server tell the others which agents are connected here.
pub fn tell(node: &Node, hub: Arc<dyn AgentHub>) {
    node.tell(move || {
        let agents = connected(hub.as_ref()).into_iter().take(MAX_TOLD_AGENTS).collect();
        serde_json::to_vec(&Told { agents }).unwrap_or_default()
    });
}

/// Agents that are connected to this server.
pub(crate) fn connected(hub: &dyn AgentHub) -> BTreeSet<String> {
    hub.sessions().into_iter().map(|session| session.cluster).collect()
}

/// Agents that another server told of; none of one that runs another version or did not answer.
pub(crate) fn told_agents(member: &MemberStatus) -> Vec<String> {
    if member.extra.is_empty() {
        return Vec::new();
    }
    match serde_json::from_slice::<Told>(&member.extra) {
        Ok(told) => told.agents,
        Err(error) => {
            tracing::warn!(server = member.name, %error, "what a server tells of itself cannot be read");
            Vec::new()
        }
    }
}

/// The stored server with what was observed of it.
fn join(mut server: Server, live: &[MemberStatus], roster: &Roster) -> Server {
    let member = live.iter().find(|member| member.id == server.spec.id);
    server.status = member.map_or_else(ServerStatus::default, |member| ServerStatus {
        online: member.online,
        seat: membership::seat(roster, member.id),
        address: member.address.clone(),
        version: member.version.clone(),
        groups: member.groups.clone(),
        agents: told_agents(member),
    });
    server
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_did_not_answer_is_offline() {
        let mut server = Server::default();
        server.spec.id = 2;
        server.status.online = true;
        let live = [MemberStatus {
            id: 1,
            online: true,
            ..MemberStatus::default()
        }];
        assert!(!join(server.clone(), &live, &Roster::default()).status.online);
        let live = [MemberStatus {
            id: 2,
            online: true,
            version: "x".into(),
            extra: br#"{"agents": ["eu"], "newer": 1}"#.to_vec(),
            ..MemberStatus::default()
        }];
        let joined = join(server, &live, &Roster::default());
        assert!(joined.status.online && joined.status.version == "x" && joined.status.agents == ["eu"]);
    }
}
