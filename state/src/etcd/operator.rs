//! What the calls of operators (members, leadership) need beyond a store. A tenant's connection has no operator: it sees one
//! member, the server that took its call in.

use crate::StoreError;
use crate::pb;
use async_trait::async_trait;
use std::fmt;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataValue};

/// Key of the answer's metadata under which a refused change of the members says more than etcd's words do.
const REASON: &str = "hanse-reason";

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

/// Why the members were not changed, in the cases that etcd knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberFault {
    /// There is no such member.
    NotFound,
    /// The id is in use.
    IdExists,
    /// The URL is another member's.
    UrlExists,
    /// No URL that can be used.
    BadUrls,
    /// Only learners are promoted.
    NotLearner,
    /// The learner does not have the data yet.
    NotReady,
    /// There are as many learners as there may be.
    TooManyLearners,
    /// Too many of the voters that there would be were never started.
    NotEnoughStarted,
    /// Too many of the voters that there would be do not answer.
    Unhealthy,
}

/// A change of the members that was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MemberRefused {
    /// It is not allowed, now or ever.
    #[error("{reason}")]
    Fault {
        /// The case.
        fault: MemberFault,
        /// What exactly is wrong, and what to do.
        reason: String,
    },
    /// It could not be made.
    #[error("the members could not be changed")]
    Store(#[from] StoreError),
}

impl MemberRefused {
    /// A case with its reason.
    pub fn fault(fault: MemberFault, reason: impl fmt::Display) -> Self {
        let reason = reason.to_string();
        Self::Fault { fault, reason }
    }

    /// Whether the same call may succeed later without a change.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Fault { fault, .. } => match fault {
                MemberFault::NotReady | MemberFault::NotEnoughStarted | MemberFault::Unhealthy => true,
                MemberFault::NotFound | MemberFault::IdExists | MemberFault::UrlExists | MemberFault::BadUrls => false,
                MemberFault::NotLearner | MemberFault::TooManyLearners => false,
            },
            Self::Store(error) => error.retryable(),
        }
    }

    /// In etcd's words, which clients go by; the reason goes with them.
    pub(crate) fn status(self) -> Status {
        let (fault, reason) = match self {
            Self::Fault { fault, reason } => (fault, reason),
            Self::Store(error) => return error.status(),
        };
        let mut status = match fault {
            MemberFault::NotFound => Status::not_found("etcdserver: member not found"),
            MemberFault::IdExists => Status::failed_precondition("etcdserver: member ID already exist"),
            MemberFault::UrlExists => Status::failed_precondition("etcdserver: Peer URLs already exists"),
            MemberFault::BadUrls => Status::invalid_argument("etcdserver: given member URLs are invalid"),
            MemberFault::NotLearner => Status::failed_precondition("etcdserver: can only promote a learner member"),
            MemberFault::NotReady => Status::failed_precondition(
                "etcdserver: can only promote a learner member which is in sync with leader",
            ),
            MemberFault::TooManyLearners => {
                Status::failed_precondition("etcdserver: too many learner members in cluster")
            }
            MemberFault::NotEnoughStarted => {
                Status::failed_precondition("etcdserver: re-configuration failed due to not enough started members")
            }
            MemberFault::Unhealthy => Status::unavailable("etcdserver: unhealthy cluster"),
        };
        if let Ok(reason) = reason.parse::<MetadataValue<Ascii>>() {
            status.metadata_mut().insert(REASON, reason);
        }
        status
    }
}

/// A change of the members as etcd's API has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member.
    Add {
        /// Where the others are to reach it.
        peer_urls: Vec<String>,
        /// Whether it is to follow only.
        learner: bool,
    },
    /// A member leaves for good.
    Remove(u64),
    /// A member is reached elsewhere.
    Update {
        /// Its id.
        id: u64,
        /// Where.
        peer_urls: Vec<String>,
    },
    /// A learner gets a vote.
    Promote(u64),
}

/// A cluster that its operators may see and change.
#[async_trait]
pub trait Operator: fmt::Debug + Send + Sync + 'static {
    /// All members with their URLs, in the order of their ids; as the leader knows them if it is to be `linearizable`.
    async fn members(&self, linearizable: bool) -> Result<Vec<pb::Member>, StoreError>;
    /// Changes the members. Answers the member that it was about, if there is such a one afterwards, and all.
    async fn change_members(
        &self,
        change: MemberChange,
    ) -> Result<(Option<pb::Member>, Vec<pb::Member>), MemberRefused>;
    /// Hands leadership over from this member to another.
    async fn move_leader(&self, to: u64) -> Result<(), MoveRefused>;
}
