//! The one error of the store, its retry class, its form in the log and its form in the etcd v3 API.
//!
//! etcd's clients recognise errors by gRPC code and exact text, so the texts of [`StoreError::status`] are a wire
//! format and never change.

use crate::engine::EngineError;
use crate::keys::GroupId;
use crate::pb::command::Refusal;
use tonic::{Code, Status};

/// Why the store did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The revision asked for is below the floor of the key space.
    #[error("revision is compacted, the oldest readable one is {floor}; list anew")]
    Compacted {
        /// Oldest readable revision.
        floor: i64,
    },
    /// The revision asked for does not exist yet.
    #[error("revision does not exist yet, the present one is {current}")]
    FutureRevision {
        /// Present revision.
        current: i64,
    },
    /// The caller runs by an epoch that another host has replaced, or the key space was dropped.
    #[error("host epoch {epoch} of tenant store {tenant:?} is fenced off by {fence}; this host must stop the tenant")]
    Fenced {
        /// Tenant.
        tenant: String,
        /// Epoch of the caller.
        epoch: u64,
        /// Lowest epoch that is allowed; `u64::MAX`: the space was dropped.
        fence: u64,
    },
    /// The key space belongs to another group than the store that was asked.
    #[error("key space of group {asked} was asked of the store of group {here}; use that group's store")]
    WrongGroup {
        /// Group of the key space.
        asked: GroupId,
        /// Group of the store.
        here: GroupId,
    },
    /// The tenant id cannot name a key space.
    #[error("tenant id {0:?} cannot name a key space: it must have 1 to 253 bytes")]
    InvalidTenant(String),
    /// No key was given.
    #[error("key is not provided")]
    EmptyKey,
    /// Both `ignore_value` and a value were given.
    #[error("value is provided although ignore_value is set")]
    ValueProvided,
    /// Both `ignore_lease` and a lease were given.
    #[error("lease is provided although ignore_lease is set")]
    LeaseProvided,
    /// `ignore_value` or `ignore_lease` of a key that does not exist.
    #[error("key not found, so that its value or lease cannot be kept")]
    KeyNotFound,
    /// More operations than [`crate::machine::MAX_TXN_OPS`].
    #[error(
        "too many operations in one transaction, at most {} are allowed",
        crate::machine::MAX_TXN_OPS
    )]
    TooManyOps,
    /// One transaction changes a key twice.
    #[error("a transaction changes one key twice")]
    DuplicateKey,
    /// The request is larger than [`crate::machine::MAX_REQUEST_BYTES`].
    #[error("request is larger than {} bytes", crate::machine::MAX_REQUEST_BYTES)]
    TooLarge,
    /// Unknown sort order or target.
    #[error("sort order or target is unknown")]
    InvalidSort,
    /// There is no such lease.
    #[error("lease not found")]
    LeaseNotFound,
    /// A lease with this id exists.
    #[error("a lease with this id exists")]
    LeaseExists,
    /// The time to live is out of bounds.
    #[error("lease's time to live is larger than {} s", crate::machine::MAX_LEASE_TTL)]
    LeaseTtlTooLarge,
    /// The group has no leader now.
    #[error("the group has no leader now; try again")]
    NoLeader,
    /// The leader changed while the request was under way; whether it took effect is unknown.
    #[error("the leader changed while the request was under way; whether it took effect is unknown")]
    LeaderChanged,
    /// No answer in time; whether it took effect is unknown.
    #[error("no answer in time; whether the request took effect is unknown")]
    Timeout,
    /// Too much is under way; nothing was done.
    #[error("too many requests are under way; try again later")]
    Overloaded,
    /// The key space has used up its quota.
    #[error("the key space has used up its quota; delete or compact")]
    NoSpace,
    /// The store is stopping.
    #[error("the store is stopping; ask another server")]
    Stopped,
    /// Storage failed or does not hold what it must; this server takes no writes until it was restarted.
    #[error("storage of this server failed: {0}; it must be restarted or replaced")]
    Storage(String),
    /// Stored data contradicts itself.
    #[error("stored data is corrupt: {0}; this server must be replaced")]
    Corrupt(String),
    /// Somebody raised an alarm that a member's data is corrupt.
    #[error("an alarm says that a member is corrupt; changes are refused until it is disarmed")]
    CorruptAlarm,
    /// The group's members do not all know this feature yet.
    #[error(
        "this needs feature level {needed} and the store is at {present}: all servers must run a version that has it"
    )]
    LevelTooLow {
        /// Level that has the feature.
        needed: u32,
        /// Level of the group.
        present: u32,
    },
    /// The data was written by a newer version.
    #[error("the store's data has feature level {found} and this version knows up to {known}: run the newer version")]
    TooNew {
        /// Level of the data.
        found: u32,
        /// Newest level of this version.
        known: u32,
    },
    /// The key space is being put back from a backup.
    #[error(
        "the key space of tenant {0:?} is being restored and closed until that is done; if the restore was broken off, do it again"
    )]
    Restoring(String),
    /// A step of a restore was refused.
    #[error("the restore of a key space cannot go on: {0}; begin it anew")]
    RestoreRefused(String),
    /// A peer answered with an error that this version does not know.
    #[error("error {code} of a newer server: {text}")]
    Unknown {
        /// Its code.
        code: u32,
        /// Its text.
        text: String,
    },
}

impl StoreError {
    /// Whether the same request may succeed later without the caller doing anything else. It says nothing about
    /// whether a write took effect: see [`StoreError::outcome_unknown`].
    pub fn retryable(&self) -> bool {
        match self {
            Self::NoLeader | Self::LeaderChanged | Self::Timeout | Self::Overloaded | Self::Stopped => true,
            Self::FutureRevision { .. } | Self::LevelTooLow { .. } | Self::Restoring(_) => true,
            Self::Compacted { .. }
            | Self::Fenced { .. }
            | Self::WrongGroup { .. }
            | Self::InvalidTenant(_)
            | Self::EmptyKey
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::KeyNotFound
            | Self::TooManyOps
            | Self::DuplicateKey
            | Self::TooLarge
            | Self::InvalidSort
            | Self::LeaseNotFound
            | Self::LeaseExists
            | Self::LeaseTtlTooLarge
            | Self::NoSpace
            | Self::Storage(_)
            | Self::Corrupt(_)
            | Self::CorruptAlarm
            | Self::TooNew { .. }
            | Self::RestoreRefused(_)
            | Self::Unknown { .. } => false,
        }
    }

    /// Whether a write that ended with this error may have taken effect.
    pub fn outcome_unknown(&self) -> bool {
        matches!(
            self,
            Self::LeaderChanged | Self::Timeout | Self::Stopped | Self::Storage(_) | Self::Unknown { .. }
        )
    }

    /// gRPC code and etcd's text for it.
    pub fn status(&self) -> Status {
        let (code, text) = match self {
            Self::Compacted { .. } => (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            Self::FutureRevision { .. } => (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision",
            ),
            Self::EmptyKey => (Code::InvalidArgument, "etcdserver: key is not provided"),
            Self::ValueProvided => (Code::InvalidArgument, "etcdserver: value is provided"),
            Self::LeaseProvided => (Code::InvalidArgument, "etcdserver: lease is provided"),
            Self::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
            Self::TooManyOps => (Code::InvalidArgument, "etcdserver: too many operations in txn request"),
            Self::DuplicateKey => (Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
            Self::TooLarge => (Code::InvalidArgument, "etcdserver: request is too large"),
            Self::InvalidSort => (Code::InvalidArgument, "etcdserver: invalid sort option"),
            Self::LeaseNotFound => (Code::NotFound, "etcdserver: requested lease not found"),
            Self::LeaseExists => (Code::FailedPrecondition, "etcdserver: lease already exists"),
            Self::LeaseTtlTooLarge => (Code::OutOfRange, "etcdserver: too large lease TTL"),
            Self::NoLeader => (Code::Unavailable, "etcdserver: no leader"),
            Self::LeaderChanged => (Code::Unavailable, "etcdserver: leader changed"),
            Self::Timeout => (Code::Unavailable, "etcdserver: request timed out"),
            Self::Stopped => (Code::Unavailable, "etcdserver: server stopped"),
            Self::Overloaded => (Code::ResourceExhausted, "etcdserver: too many requests"),
            Self::NoSpace => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            Self::Corrupt(_) | Self::CorruptAlarm => (Code::DataLoss, "etcdserver: corrupt cluster"),
            Self::Restoring(_) => return Status::unavailable(format!("hanse: {self}")),
            Self::Fenced { .. } => return Status::permission_denied(format!("hanse: {self}")),
            Self::LevelTooLow { .. } | Self::TooNew { .. } | Self::RestoreRefused(_) => {
                return Status::failed_precondition(format!("hanse: {self}"));
            }
            Self::InvalidTenant(_) => return Status::invalid_argument(format!("hanse: {self}")),
            Self::WrongGroup { .. } | Self::Storage(_) | Self::Unknown { .. } => {
                return Status::internal(format!("hanse: {self}"));
            }
        };
        Status::new(code, text)
    }

    /// The form in which a leader hands the error to a follower.
    pub fn to_refusal(&self) -> Refusal {
        let plain = |code| Refusal {
            code,
            ..Refusal::default()
        };
        let pair = |code, first: u32, second: u32| Refusal {
            code,
            first: i64::from(first),
            second: i64::from(second),
            ..Refusal::default()
        };
        let text = |code, text: &str| Refusal {
            code,
            text: text.to_owned(),
            ..Refusal::default()
        };
        match self {
            Self::Compacted { floor } => Refusal {
                code: 1,
                first: *floor,
                ..Refusal::default()
            },
            Self::FutureRevision { current } => Refusal {
                code: 2,
                first: *current,
                ..Refusal::default()
            },
            Self::Fenced { tenant, epoch, fence } => Refusal {
                code: 3,
                first: epoch.cast_signed(),
                second: fence.cast_signed(),
                text: tenant.clone(),
            },
            Self::WrongGroup { asked, here } => Refusal {
                code: 4,
                first: i64::from(asked.0),
                second: i64::from(here.0),
                text: String::new(),
            },
            Self::InvalidTenant(tenant) => text(5, tenant),
            Self::EmptyKey => plain(6),
            Self::ValueProvided => plain(7),
            Self::LeaseProvided => plain(8),
            Self::KeyNotFound => plain(9),
            Self::TooManyOps => plain(10),
            Self::DuplicateKey => plain(11),
            Self::TooLarge => plain(12),
            Self::InvalidSort => plain(13),
            Self::LeaseNotFound => plain(14),
            Self::LeaseExists => plain(15),
            Self::LeaseTtlTooLarge => plain(16),
            Self::NoLeader => plain(17),
            Self::LeaderChanged => plain(18),
            Self::Timeout => plain(19),
            Self::Overloaded => plain(20),
            Self::NoSpace => plain(21),
            Self::Stopped => plain(22),
            Self::Storage(detail) => text(23, detail),
            Self::Corrupt(detail) => text(24, detail),
            Self::CorruptAlarm => plain(25),
            Self::LevelTooLow { needed, present } => pair(26, *needed, *present),
            Self::TooNew { found, known } => pair(27, *found, *known),
            Self::Restoring(tenant) => text(28, tenant),
            Self::RestoreRefused(why) => text(29, why),
            Self::Unknown { code, text: detail } => text(*code, detail),
        }
    }

    /// Reads what [`StoreError::to_refusal`] made, also of a newer version.
    pub fn from_refusal(refusal: Refusal) -> Self {
        let Refusal {
            code,
            first,
            second,
            text,
        } = refusal;
        let level = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
        let group = |n: i64| GroupId(u32::try_from(n).unwrap_or(u32::MAX));
        match code {
            1 => Self::Compacted { floor: first },
            2 => Self::FutureRevision { current: first },
            3 => Self::Fenced {
                tenant: text,
                epoch: first.cast_unsigned(),
                fence: second.cast_unsigned(),
            },
            4 => Self::WrongGroup {
                asked: group(first),
                here: group(second),
            },
            5 => Self::InvalidTenant(text),
            6 => Self::EmptyKey,
            7 => Self::ValueProvided,
            8 => Self::LeaseProvided,
            9 => Self::KeyNotFound,
            10 => Self::TooManyOps,
            11 => Self::DuplicateKey,
            12 => Self::TooLarge,
            13 => Self::InvalidSort,
            14 => Self::LeaseNotFound,
            15 => Self::LeaseExists,
            16 => Self::LeaseTtlTooLarge,
            17 => Self::NoLeader,
            18 => Self::LeaderChanged,
            19 => Self::Timeout,
            20 => Self::Overloaded,
            21 => Self::NoSpace,
            22 => Self::Stopped,
            23 => Self::Storage(text),
            24 => Self::Corrupt(text),
            25 => Self::CorruptAlarm,
            26 => Self::LevelTooLow {
                needed: level(first),
                present: level(second),
            },
            27 => Self::TooNew {
                found: level(first),
                known: level(second),
            },
            28 => Self::Restoring(text),
            29 => Self::RestoreRefused(text),
            _ => Self::Unknown { code, text },
        }
    }
}

impl From<EngineError> for StoreError {
    fn from(error: EngineError) -> Self {
        Self::Storage(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<StoreError> {
        use StoreError as E;
        vec![
            E::Compacted { floor: 7 },
            E::FutureRevision { current: 9 },
            E::Fenced {
                tenant: "t".into(),
                epoch: 3,
                fence: u64::MAX,
            },
            E::WrongGroup {
                asked: GroupId(1),
                here: GroupId(0),
            },
            E::InvalidTenant(String::new()),
            E::EmptyKey,
            E::ValueProvided,
            E::LeaseProvided,
            E::KeyNotFound,
            E::TooManyOps,
            E::DuplicateKey,
            E::TooLarge,
            E::InvalidSort,
            E::LeaseNotFound,
            E::LeaseExists,
            E::LeaseTtlTooLarge,
            E::NoLeader,
            E::LeaderChanged,
            E::Timeout,
            E::Overloaded,
            E::NoSpace,
            E::Stopped,
            E::Storage("disk".into()),
            E::Corrupt("index".into()),
            E::CorruptAlarm,
            E::LevelTooLow { needed: 3, present: 2 },
            E::TooNew { found: 9, known: 2 },
            E::Restoring("t".into()),
            E::RestoreRefused("step".into()),
            E::Unknown {
                code: 99,
                text: "new".into(),
            },
        ]
    }

    #[test]
    fn every_error_survives_the_way_to_a_follower() {
        let mut codes = std::collections::BTreeSet::new();
        for error in all() {
            let refusal = error.to_refusal();
            assert!(codes.insert(refusal.code), "code of {error:?} is taken");
            assert_eq!(StoreError::from_refusal(refusal), error);
        }
    }

    #[test]
    fn the_texts_that_clients_match_on() {
        let cases = [
            (
                StoreError::Compacted { floor: 1 },
                "etcdserver: mvcc: required revision has been compacted",
            ),
            (
                StoreError::FutureRevision { current: 1 },
                "etcdserver: mvcc: required revision is a future revision",
            ),
            (StoreError::NoLeader, "etcdserver: no leader"),
            (
                StoreError::DuplicateKey,
                "etcdserver: duplicate key given in txn request",
            ),
            (StoreError::LeaseNotFound, "etcdserver: requested lease not found"),
            (StoreError::NoSpace, "etcdserver: mvcc: database space exceeded"),
            (StoreError::CorruptAlarm, "etcdserver: corrupt cluster"),
        ];
        for (error, text) in cases {
            assert_eq!(error.status().message(), text);
        }
    }
}
