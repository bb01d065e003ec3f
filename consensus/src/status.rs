//! How the servers are doing: each answers for itself over the Raft port, and the answers are put side by side.

use crate::admission::Gate;
use crate::codec::pb;
use crate::config::NodeConfig;
use crate::disk::Disks;
use crate::group::Group;
use crate::network::{Lane, Peers};
use crate::types::{GroupId, Member, NodeId};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hanse_api::resources::GroupProgress;
use hanse_runtime::clock::timeout;
use hanse_state::machine::level::LEVEL;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, OnceLock};

type Extra = Box<dyn Fn() -> Vec<u8> + Send + Sync>;

/// What this server says of itself.
pub struct About {
    id: NodeId,
    name: String,
    version: String,
    pub(crate) groups: Arc<BTreeMap<GroupId, Arc<Group>>>,
    /// Whether this server takes part in Raft.
    pub(crate) gate: Gate,
    extra: OnceLock<Extra>,
    pub(crate) disks: Arc<Disks>,
}

impl fmt::Debug for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("About").field("id", &self.id).finish_non_exhaustive()
    }
}

impl About {
    pub(crate) fn new(
        config: &NodeConfig,
        groups: Arc<BTreeMap<GroupId, Arc<Group>>>,
        gate: Gate,
        disks: Arc<Disks>,
    ) -> Self {
        Self {
            id: config.id,
            name: config.name.clone(),
            version: config.version.clone(),
            groups,
            gate,
            extra: OnceLock::new(),
            disks,
        }
    }

    /// This server's id.
    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    pub(crate) fn tell(&self, extra: impl Fn() -> Vec<u8> + Send + Sync + 'static) {
        self.extra.get_or_init(|| Box::new(extra));
    }

    /// Servers that were members of the council once, by what is applied here.
    pub(crate) fn removed(&self) -> BTreeSet<NodeId> {
        let council = self.groups.get(&GroupId::COUNCIL);
        council
            .map(|group| group.roll.borrow().removed.clone())
            .unwrap_or_default()
    }

    /// The answer to the question how this server is.
    pub fn reply(&self) -> pb::StatusReply {
        pb::StatusReply {
            id: self.id,
            name: self.name.clone(),
            version: self.version.clone(),
            groups: self.groups.values().map(|group| group.status_message()).collect(),
            extra: self.extra.get().map(|extra| extra().into()).unwrap_or_default(),
            removed: self.removed().into_iter().collect(),
            level: LEVEL,
            free_bytes: self.disks.told(),
        }
    }
}

/// How a server is doing, asked over the Raft port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `host:port` of its Raft port.
    pub address: String,
    /// Whether it answered.
    pub online: bool,
    /// Version of its program.
    pub version: String,
    /// Its part in each group; empty when it did not answer.
    pub groups: Vec<GroupProgress>,
    /// What the server's other parts tell of it, see [`crate::Node::tell`].
    pub extra: Vec<u8>,
}

/// Why a server did not say how it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unasked {
    /// Its machine says that nobody listens at its address.
    Refused,
    /// No answer in time, or another server's.
    Silent,
}

/// Asks one server how it is.
pub(crate) async fn ask(peers: &Peers, id: NodeId, member: &Member) -> Result<pb::StatusReply, Unasked> {
    let mut client = peers.client(id, member, Lane::Control).map_err(|_| Unasked::Silent)?;
    let ask = client.status(pb::StatusRequest {});
    match timeout(peers.clock().as_ref(), peers.settings().status_timeout, ask).await {
        Ok(Ok(reply)) if reply.get_ref().id == id => Ok(reply.into_inner()),
        Ok(Err(status)) => {
            tracing::debug!(id, %status, "no status");
            Err(if refused(&status) {
                Unasked::Refused
            } else {
                Unasked::Silent
            })
        }
        Ok(Ok(_)) | Err(_) => Err(Unasked::Silent),
    }
}

fn refused(status: &tonic::Status) -> bool {
    let first = std::error::Error::source(status);
    std::iter::successors(first, |error| error.source()).any(|error| {
        let io = error.downcast_ref::<std::io::Error>();
        io.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    })
}

/// Asks all `members` but this server how they are, at once.
pub(crate) async fn ask_all(
    peers: &Peers,
    members: &BTreeMap<NodeId, Member>,
) -> Vec<(NodeId, Option<pb::StatusReply>)> {
    let asks: FuturesUnordered<_> = members
        .iter()
        .filter(|(id, _)| **id != peers.me())
        .map(|(id, member)| async move { (*id, ask(peers, *id, member).await.ok()) })
        .collect();
    asks.collect().await
}

/// Puts the answers side by side; lag is counted from the leader's last applied entry. Pure.
pub(crate) fn member_statuses(
    members: &BTreeMap<NodeId, Member>,
    answers: &BTreeMap<NodeId, Option<pb::StatusReply>>,
) -> Vec<MemberStatus> {
    let statuses = || answers.values().flatten().flat_map(|reply| &reply.groups);
    let leader_applied = |group: u32| {
        let leaders = statuses().filter(|status| status.group == group && status.role == "Leader");
        leaders
            .max_by_key(|status| status.term)
            .map(|status| status.applied_index)
    };
    let name = |id: u64| {
        members
            .get(&id)
            .map_or_else(|| id.to_string(), |member| member.name.clone())
    };
    let progress = |status: &pb::GroupStatus| GroupProgress {
        group: status.group,
        role: status.role.clone(),
        term: status.term,
        leader: if status.has_leader {
            name(status.leader)
        } else {
            String::new()
        },
        applied_index: status.applied_index,
        revision: status.revision,
        lag: leader_applied(status.group).map(|applied| applied.saturating_sub(status.applied_index)),
    };
    let status = |(id, member): (&NodeId, &Member)| {
        let answer = answers.get(id).and_then(Option::as_ref);
        MemberStatus {
            id: *id,
            name: member.name.clone(),
            address: member.address.clone(),
            online: answer.is_some(),
            version: answer.map(|reply| reply.version.clone()).unwrap_or_default(),
            groups: answer
                .map(|reply| reply.groups.iter().map(progress).collect())
                .unwrap_or_default(),
            extra: answer.map(|reply| reply.extra.to_vec()).unwrap_or_default(),
        }
    };
    members.iter().map(status).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_counted_from_the_newest_leader() {
        let member = |n: u64| {
            (
                n,
                Member {
                    name: format!("s{n}"),
                    address: format!("127.0.0.{n}:1"),
                },
            )
        };
        let members: BTreeMap<_, _> = (1..=3).map(member).collect();
        let reply = |id: u64, role: &str, term: u64, applied_index: u64| {
            let status = pb::GroupStatus {
                group: 0,
                role: role.to_owned(),
                term,
                leader: 2,
                has_leader: true,
                applied_index,
                ..pb::GroupStatus::default()
            };
            (
                id,
                Some(pb::StatusReply {
                    id,
                    groups: vec![status],
                    ..pb::StatusReply::default()
                }),
            )
        };
        // Server 1 was the leader of term 4 and does not know better yet.
        let answers = BTreeMap::from([reply(1, "Leader", 4, 90), reply(2, "Leader", 5, 100), (3, None)]);
        let statuses = member_statuses(&members, &answers);
        assert_eq!(statuses[0].groups[0].lag, Some(10));
        assert_eq!(statuses[1].groups[0].lag, Some(0));
        assert_eq!(statuses[1].groups[0].leader, "s2");
        assert!(!statuses[2].online && statuses[2].groups.is_empty());
        assert_eq!(statuses[2].name, "s3");
    }
}
