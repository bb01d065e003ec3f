//! One Raft group on this server: what its parts share, who leads it, and how far it is.

use crate::arrival::Arrivals;
use crate::codec::{self, pb};
use crate::config::Settings;
use crate::forward::Forwarder;
use crate::meters::ReadCounts;
use crate::network::Peers;
use crate::pending::Pending;
use crate::read_index::ReadWaiter;
use crate::rounds::Question;
use crate::state_machine::{Roll, StateMachine};
use crate::types::{GroupId, Member, NodeId, TypeConfig};
use hanse_runtime::clock::SharedClock;
use hanse_state::machine::Machine;
use hanse_state::{Role, StoreStatus};
use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, Raft, ServerState};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Raft of one group.
pub type GroupRaft = Raft<TypeConfig, StateMachine>;

/// Who leads a group, as this server knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// How to reach it.
    pub member: Option<Member>,
    /// The term it leads, or the newest term seen.
    pub term: u64,
    /// Whether it is this server.
    pub here: bool,
}

/// One group on this server.
pub struct Group {
    /// Which.
    pub id: GroupId,
    /// This server.
    pub me: NodeId,
    /// Its consensus.
    pub raft: GroupRaft,
    /// Its state.
    pub machine: Arc<Machine>,
    /// Writes of this server that wait.
    pub pending: Arc<Pending>,
    /// Where snapshots arrive.
    pub arrivals: Arrivals,
    /// Ways to the others.
    pub peers: Peers,
    /// The way of writes to the leader.
    pub(crate) forwarder: Forwarder,
    /// Who the members are, by what is applied here.
    pub roll: watch::Receiver<Arc<Roll>>,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) reads: mpsc::Sender<ReadWaiter>,
    pub(crate) rounds: mpsc::Sender<Question>,
    pub(crate) read_counts: ReadCounts,
    /// When the leader was last heard of, on the clock's `mono`, in milliseconds.
    pub(crate) contact: AtomicU64,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("id", &self.id).finish_non_exhaustive()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Group {
    /// What the etcd API calls the cluster's id: constant over members and time.
    pub fn cluster_id(&self) -> u64 {
        u64::from(self.id.0) + 1
    }

    /// The clock of this server.
    pub fn clock(&self) -> &SharedClock {
        self.peers.clock()
    }

    /// Its timing.
    pub fn settings(&self) -> &Settings {
        self.peers.settings()
    }

    /// The leader was heard of now.
    pub fn note_contact(&self) {
        self.contact.store(millis(self.clock().mono()), Ordering::Relaxed);
    }

    /// Whether there is a leader that this server hears of, or is.
    pub fn has_leader(&self) -> bool {
        let limit = self.settings().election_max * 2;
        if self.leadership.borrow().here {
            let metrics = self.raft.metrics();
            let seen = metrics.borrow_watched();
            // Raft notes a quorum of one only when it writes.
            let alone = seen.membership_config.voter_ids().all(|id| id == self.me);
            return alone || seen.last_quorum_acked.is_none_or(|at| at.elapsed() <= limit);
        }
        let since = millis(self.clock().mono()).saturating_sub(self.contact.load(Ordering::Relaxed));
        self.leadership.borrow().leader.is_some() && since <= millis(limit)
    }

    /// Follows who leads, until Raft stops. An error means that Raft failed and this server must stop.
    pub async fn follow_leadership(&self) -> Result<(), hanse_runtime::BoxError> {
        let mut metrics = self.raft.metrics();
        loop {
            let (now, running) = {
                let seen = metrics.borrow_and_update();
                let leader = seen.current_leader;
                let member = leader.and_then(|id| Some(seen.membership_config.get_node(&id)?.member.clone()));
                if self.id == GroupId::COUNCIL {
                    self.peers.learn(seen.membership_config.nodes());
                }
                let here = leader == Some(self.me) && seen.state == ServerState::Leader;
                // A vote that names this server is not yet leadership here.
                let leader = leader.filter(|id| *id != self.me || here);
                (
                    Leadership {
                        leader,
                        member,
                        term: seen.current_term,
                        here,
                    },
                    seen.running_state.clone(),
                )
            };
            match running {
                Ok(()) => {}
                Err(openraft::errors::Fatal::Stopped) => return Ok(()),
                Err(fatal) => return Err(format!("Raft group {} failed: {fatal}", self.id).into()),
            }
            self.leadership.send_if_modified(|known| {
                let changed = *known != now;
                if changed {
                    tracing::info!(group = %self.id, term = now.term, leader = ?now.leader, here = now.here, "leadership changed");
                    *known = now;
                }
                changed
            });
            if metrics.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    /// How this member is doing.
    pub fn status(&self, db_size: u64) -> StoreStatus {
        let metrics = self.raft.metrics();
        let seen = metrics.borrow_watched();
        StoreStatus {
            cluster_id: self.cluster_id(),
            member_id: self.me,
            role: role(seen.state),
            term: seen.current_term,
            leader: self.leadership.borrow().leader,
            last_index: seen.last_log_index.unwrap_or(0),
            applied_index: seen.last_applied.as_ref().map_or(0, |id| id.index),
            revision: self.machine.revision(),
            db_size,
        }
    }

    /// The same as a message, with what only a leader knows.
    pub fn status_message(&self) -> pb::GroupStatus {
        let metrics = self.raft.metrics();
        let seen = metrics.borrow_watched();
        let matched: BTreeMap<u64, u64> = seen
            .replication
            .iter()
            .flatten()
            .filter_map(|(id, matched)| matched.as_ref().map(|matched| (*id, matched.index)))
            .collect();
        let leader = self.leadership.borrow().leader;
        pb::GroupStatus {
            group: self.id.0,
            role: role_name(role(seen.state)).to_owned(),
            term: seen.current_term,
            leader: leader.unwrap_or(0),
            has_leader: leader.is_some(),
            applied_index: seen.last_applied.as_ref().map_or(0, |id| id.index),
            revision: self.machine.revision(),
            last_index: seen.last_log_index.unwrap_or(0),
            initialized: seen.last_log_index.is_some() || seen.last_applied.is_some(),
            matched: matched.into_iter().collect(),
            membership: Some(codec::membership_to_pb(seen.membership_config.membership())),
        }
    }
}

fn role(state: ServerState) -> Role {
    match state {
        ServerState::Leader => Role::Leader,
        ServerState::Candidate => Role::Candidate,
        ServerState::Learner => Role::Learner,
        ServerState::Follower | ServerState::Shutdown => Role::Follower,
    }
}

/// A role as people read it.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "Leader",
        Role::Follower => "Follower",
        Role::Learner => "Learner",
        Role::Candidate => "Candidate",
    }
}
