//! Changes of a group's members, at its leader.

use crate::error::ConsensusError;
use crate::group::Group;
use crate::types::{Member, NodeId, TypeConfig};
use openraft::ChangeMembers;
use openraft::errors::{ClientWriteError, RaftError};
use std::collections::BTreeSet;
use std::time::Duration;

/// Wait before a change is tried again.
const RETRY: Duration = Duration::from_millis(100);

type Refusal = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

/// Whether the leader may take the change in a moment: it is waiting for word of its followers, or a leader is being elected.
/// Changes say what the members shall be, so making one twice does no harm.
fn passing(refusal: &Refusal) -> bool {
    match refusal {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => forward.leader_id.is_none(),
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => true,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_))
        | RaftError::Fatal(_) => false,
    }
}

enum Change {
    Follow(NodeId, Member),
    Vote(NodeId),
    Leave(NodeId),
}

impl Change {
    fn what(&self) -> &'static str {
        match self {
            Self::Follow(..) => "add a server as a learner",
            Self::Vote(_) => "give a server a vote",
            Self::Leave(_) => "remove a server",
        }
    }
}

impl Group {
    /// Lets a server follow, waits until it has the data, then gives it a vote.
    pub(crate) async fn add_member(&self, id: NodeId, member: Member) -> Result<(), ConsensusError> {
        self.change(Change::Follow(id, member)).await?;
        self.change(Change::Vote(id)).await
    }

    /// Takes a server's vote and forgets it.
    pub(crate) async fn remove_member(&self, id: NodeId) -> Result<(), ConsensusError> {
        self.change(Change::Leave(id)).await
    }

    async fn change(&self, change: Change) -> Result<(), ConsensusError> {
        let deadline = self.clock().mono() + self.settings().request_timeout;
        loop {
            match self.try_change(&change).await {
                Ok(()) => return Ok(()),
                Err(refusal) if passing(&refusal) && self.clock().mono() < deadline => self.clock().sleep(RETRY).await,
                Err(refusal) => {
                    let (group, what) = (self.id, change.what());
                    return Err(ConsensusError::Raft {
                        group,
                        what,
                        fault: refusal.to_string(),
                    });
                }
            }
        }
    }

    async fn try_change(&self, change: &Change) -> Result<(), Refusal> {
        let voters = |id: &NodeId| BTreeSet::from([*id]);
        let done = match change {
            Change::Follow(id, member) => self.raft.add_learner(*id, member.clone(), true).await,
            Change::Vote(id) => {
                self.raft
                    .change_membership(ChangeMembers::AddVoterIds(voters(id)), false)
                    .await
            }
            Change::Leave(id) => {
                self.raft
                    .change_membership(ChangeMembers::RemoveVoters(voters(id)), false)
                    .await
            }
        };
        done.map(|_| ())
    }
}
