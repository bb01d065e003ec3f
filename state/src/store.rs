//! The hinge of the control plane: what a replicated, versioned, watchable key-value store does.
//!
//! The vocabulary is etcd's ([`crate::pb`]). Keys in requests and answers are the space's own; the store adds and
//! strips what keeps spaces apart. `LocalStore` is one process, consensus' `ReplicatedStore` is Raft; both pass
//! [`crate::conformance`].

use crate::error::StoreError;
use crate::machine::Machine;
use crate::pb;
use async_trait::async_trait;
use bytes::Bytes;
use hanse_api::resources::StoreLimits;
use hanse_runtime::meter::Family;
use std::sync::Arc;

pub use crate::keys::{GroupId, KeySpace};
pub use crate::watch::Watch;

/// Whose keys a caller means, and by which right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Key space.
    pub space: KeySpace,
    /// Host epoch of a tenant's control plane; the store refuses an older one than the tenant's fence.
    pub epoch: Option<u64>,
}

impl Access {
    /// The control plane's own access to the registry.
    pub fn registry() -> Self {
        Self {
            space: KeySpace::Registry,
            epoch: None,
        }
    }

    /// Access to a tenant's space without a host epoch: the control plane's own, or an operator's.
    pub fn tenant(id: impl Into<String>) -> Self {
        Self {
            space: KeySpace::Tenant(id.into()),
            epoch: None,
        }
    }

    /// The same access by a host epoch.
    #[must_use]
    pub fn with_epoch(mut self, epoch: u64) -> Self {
        self.epoch = Some(epoch);
        self
    }
}

/// What to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchRequest {
    /// First key.
    pub key: Bytes,
    /// End of the range, as in [`pb::RangeRequest`].
    pub range_end: Bytes,
    /// First revision to report; 0: from now on. One that does not exist yet is waited for in silence.
    pub start_revision: i64,
    /// Whether events carry the key as it was before.
    pub prev_kv: bool,
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletions out.
    pub no_delete: bool,
    /// Whether the store sends [`WatchItem::Progress`] of its own accord when the watch was idle for some seconds.
    pub progress: bool,
}

/// What a watch yields, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchItem {
    /// All matching events of one revision, never split.
    Events {
        /// The revision.
        revision: i64,
        /// In the order in which the transaction made them.
        events: Vec<pb::Event>,
    },
    /// Everything up to the revision was yielded before.
    Progress {
        /// The revision.
        revision: i64,
    },
    /// The next revision to report was compacted; nothing follows. List anew.
    Compacted {
        /// Oldest revision that can be watched from.
        revision: i64,
    },
    /// The watch was cut, because it or this server fell behind (as when a snapshot replaced the state); nothing
    /// follows. Watch again from the revision after the last one seen, here or elsewhere.
    Lagged,
}

/// Part of a member in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Decides the order of writes.
    Leader,
    /// Votes and follows.
    #[default]
    Follower,
    /// Follows without a vote.
    Learner,
    /// Asks for votes.
    Candidate,
}

/// How a store's member is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStatus {
    /// Constant over the members of a group and its life.
    pub cluster_id: u64,
    /// This member.
    pub member_id: u64,
    /// Its part.
    pub role: Role,
    /// Raft term.
    pub term: u64,
    /// Leader, if there is one.
    pub leader: Option<u64>,
    /// Last index in this member's log.
    pub last_index: u64,
    /// Last index that is applied here.
    pub applied_index: u64,
    /// Revision that is applied here.
    pub revision: i64,
    /// Bytes on disk, of all groups of the server.
    pub db_size: u64,
}

/// A versioned key-value store of one group.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads keys: linearizable, or from this member's applied state if `serializable` is set.
    async fn range(&self, access: &Access, req: pb::RangeRequest) -> Result<pb::RangeResponse, StoreError>;
    /// Compares, then changes and reads, all or nothing.
    async fn txn(&self, access: &Access, req: pb::TxnRequest) -> Result<pb::TxnResponse, StoreError>;
    /// As [`Store::txn`] in the registry, and in the same revision writes audit events if the compares hold: either both or
    /// neither. The events are canonical JSON; the store chains them ([`hanse_api::audit`]).
    async fn txn_audited(&self, req: pb::TxnRequest, events: Vec<String>) -> Result<pb::TxnResponse, StoreError>;
    /// Makes revisions below `revision` of this space unreadable. Answers the present revision.
    async fn compact(&self, access: &Access, revision: i64) -> Result<i64, StoreError>;
    /// Creates a lease; id 0: the store chooses one.
    async fn lease_grant(
        &self,
        access: &Access,
        id: i64,
        ttl_seconds: i64,
    ) -> Result<pb::LeaseGrantResponse, StoreError>;
    /// Deletes a lease and its keys. Answers the present revision.
    async fn lease_revoke(&self, access: &Access, id: i64) -> Result<i64, StoreError>;
    /// Starts a lease's time to live anew; the answer's is 0 if there is no such lease.
    async fn lease_keep_alive(&self, access: &Access, id: i64) -> Result<pb::LeaseKeepAliveResponse, StoreError>;
    /// Time that a lease has left; -1 if there is no such lease.
    async fn lease_time_to_live(
        &self,
        access: &Access,
        id: i64,
        keys: bool,
    ) -> Result<pb::LeaseTimeToLiveResponse, StoreError>;
    /// Ids of the space's leases, ascending.
    async fn leases(&self, access: &Access) -> Result<Vec<i64>, StoreError>;
    /// Watches keys from this member's applied state.
    async fn watch(&self, access: &Access, req: WatchRequest) -> Result<Watch, StoreError>;
    /// Refuses hosts of an older epoch from now on. Only grows: a lower epoch than the present fence changes nothing.
    async fn set_fence(&self, tenant: &str, epoch: u64) -> Result<(), StoreError>;
    /// Says what a tenant's space may hold and how fast it may write.
    async fn set_limits(&self, tenant: &str, limits: StoreLimits) -> Result<(), StoreError>;
    /// Does one step of putting a tenant's space back from a backup ([`crate::backup::replace`]). Answers the revision that the
    /// step's keys have.
    async fn restore(&self, tenant: &str, step: pb::command::RestoreSpace) -> Result<i64, StoreError>;
    /// Deletes a tenant's space for good. Its id is never used again.
    async fn drop_space(&self, tenant: &str) -> Result<(), StoreError>;
    /// Raises or lowers an alarm of a member in the space. Lowering [`pb::AlarmType::None`] lowers all of that member's.
    async fn set_alarm(&self, access: &Access, member: u64, kind: i32, raised: bool) -> Result<(), StoreError>;
    /// The state that is applied here, for what only looks at it.
    fn machine(&self) -> &Arc<Machine>;
    /// Checksum over the content of the space that every member must agree on. Serves comparison of members.
    async fn hash(&self, access: &Access) -> Result<SpaceHash, StoreError>;
    /// Revision that is applied here.
    fn revision(&self) -> i64;
    /// Whether the group has a leader that this member hears of.
    fn has_leader(&self) -> bool;
    /// How this member is doing.
    fn status(&self) -> StoreStatus;
    /// What this member counts of itself.
    fn families(&self) -> Vec<Family>;

    /// What every answer of the etcd API starts with. Cheap, unlike [`Store::status`], which may ask the engine: a
    /// store under load answers this one itself.
    fn header(&self) -> pb::ResponseHeader {
        let StoreStatus {
            cluster_id,
            member_id,
            revision,
            term,
            ..
        } = self.status();
        pb::ResponseHeader {
            cluster_id,
            member_id,
            revision,
            raft_term: term,
        }
    }
}

/// Checksum over what a space holds at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceHash {
    /// The checksum, over every version that can still be read or watched.
    pub hash: u64,
    /// Revision that it was taken at.
    pub revision: i64,
    /// Oldest readable revision; -1 before the first compaction.
    pub floor: i64,
}

/// How much a space holds on one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceUsage {
    /// Bytes of keys that exist and of their newest values.
    pub live_bytes: u64,
    /// Keys that exist.
    pub live_keys: u64,
    /// What the space may hold.
    pub limits: StoreLimits,
    /// Bytes of all versions that are not removed yet, before compression.
    pub bytes: u64,
    /// Keys, deleted ones included until they are removed.
    pub keys: usize,
    /// Oldest readable revision; -1 before the first compaction.
    pub floor: i64,
}
