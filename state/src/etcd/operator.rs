//! What the calls of operators (members, leadership) need beyond a store. A tenant's connection has no operator: it sees one
//! member, the server that took its call in.

use crate::pb;
use async_trait::async_trait;
use std::fmt;
use tonic::Status;

/// Why leadership was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveRefused {
    /// Only the leader can. Ask it.
    #[error("this member does not lead; ask the leader")]
    NotLeader,
    /// Nobody of that id may lead.
    #[error("no voting member has that id")]
    BadTransferee,
    /// The other did not take over in time.
    #[error("the other member did not take over in time; look who leads and try again")]
    Timeout,
}

impl MoveRefused {
    /// Whether the same call may succeed later without a change.
    pub const fn retryable(self) -> bool {
        match self {
            Self::Timeout => true,
            Self::NotLeader | Self::BadTransferee => false,
        }
    }

    /// In etcd's words.
    pub(crate) fn status(self) -> Status {
        match self {
            Self::NotLeader => Status::failed_precondition("etcdserver: not leader"),
            Self::BadTransferee => Status::failed_precondition("etcdserver: bad leader transferee"),
            Self::Timeout => Status::unavailable("etcdserver: request timed out, leader transfer took too long"),
        }
    }
}

/// A cluster that its operators may see and change.
#[async_trait]
pub trait Operator: fmt::Debug + Send + Sync + 'static {
    /// All members with their URLs, in the order of their ids.
    async fn members(&self) -> Vec<pb::Member>;
    /// Hands leadership over from this member to another.
    async fn move_leader(&self, to: u64) -> Result<(), MoveRefused>;
}
