//! Live status of all servers: asked over the Raft port, joined with what the registry says of them.

use async_trait::async_trait;
use hanse_api::kinds::SERVERS;
use hanse_api::resources::{Server, ServerStatus};
use hanse_consensus::{MemberStatus, Node};
use hanse_gateway::ClusterStatus;
use hanse_state::objects::{Objects, Page};
use hanse_tunnel::AgentHub;
use std::sync::Arc;

/// Answers the gateway's question how the servers are.
pub struct LiveStatus {
    /// This server's consensus.
    pub node: Node,
    /// The registry.
    pub objects: Objects,
    /// Agents that are connected here.
    pub hub: Arc<dyn AgentHub>,
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
        let here = self.node.id();
        let agents: Vec<String> = self.hub.sessions().into_iter().map(|session| session.cluster).collect();
        known
            .iter()
            .filter_map(|stored| match serde_json::from_slice::<Server>(&stored.value) {
                Ok(server) => Some(server),
                Err(error) => {
                    tracing::warn!(name = stored.name, %error, "a stored server cannot be read");
                    None
                }
            })
            .map(|server| {
                let own_agents = if server.spec.id == here {
                    agents.clone()
                } else {
                    Vec::new()
                };
                join(server, &live, own_agents)
            })
            .collect()
    }
}

/// The stored server with what was observed of it.
fn join(mut server: Server, live: &[MemberStatus], agents: Vec<String>) -> Server {
    let member = live.iter().find(|member| member.id == server.spec.id);
    server.status = member.map_or_else(ServerStatus::default, |member| ServerStatus {
        online: member.online,
        version: member.version.clone(),
        groups: member.groups.clone(),
        agents,
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
        assert!(!join(server.clone(), &live, Vec::new()).status.online);
        let live = [MemberStatus {
            id: 2,
            online: true,
            version: "x".into(),
            ..MemberStatus::default()
        }];
        let joined = join(server, &live, vec!["eu".into()]);
        assert!(joined.status.online && joined.status.version == "x" && joined.status.agents == ["eu"]);
    }
}
