//! What a store holds, as one file that no engine is needed to read: for backups (docs/design/0011-backup.md).
//!
//! A backup is taken from one consistent view of the engine, while the store serves. It holds the newest version of every
//! key with its revisions, the leases, fences and positions; not the history, because whoever reads a restored store starts
//! from a list anyway.
//!
//! - [`take`]: from a view of an engine to frames, a piece at a time.
//! - [`file`]: the file's form, its checksums, and their check.
//! - [`seal`]: the same file under a passphrase.
//! - [`fill`]: from a file into an empty engine.
//! - [`extract`]: one space of a file, as a file of its own.
//! - [`replace`]: from such a file into a running store, in the place of what the space held.

pub mod extract;
pub mod file;
pub mod fill;
pub mod replace;
pub mod seal;
pub mod take;

#[cfg(test)]
mod tests;

use crate::error::StoreError;
use crate::keys::GroupId;
use crate::machine::hash::Fnv;
use crate::machine::index::Version;
use crate::pb::KeyValue;
use std::io;

pub use crate::keys::KeySpace;
pub use crate::pb::backup::Head;
pub use extract::extract;
pub use file::{FileReader, verify};
pub use fill::fill;
pub use replace::{Checked, Replaced};
pub use seal::{Passphrase, SealedWriter, is_sealed, open};
pub use take::{Scope, take};

/// Format of backup files that this version writes and reads.
pub const FORMAT: u32 = 1;

/// What a space in a backup amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceSummary {
    /// The space.
    pub space: KeySpace,
    /// Whether its tenant is gone for good; then it is empty.
    pub dropped: bool,
    /// Keys in it.
    pub keys: u64,
    /// Leases in it.
    pub leases: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// [`crate::machine::Machine::hash_at`] the revision of the backup.
    pub hash: u64,
}

/// What a backup amounts to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// How it introduces itself.
    pub head: Head,
    /// Groups and the revisions that they were at.
    pub groups: Vec<(GroupId, i64)>,
    /// Its spaces, the registry first.
    pub spaces: Vec<SpaceSummary>,
}

impl Summary {
    /// The checksum over all its spaces: equal for two systems that hold the same.
    pub fn hash(&self) -> u64 {
        let mut sum = Fnv::new();
        for space in &self.spaces {
            sum.add(space.space.tenant().as_bytes());
            sum.add(&[0]);
            sum.add(&space.hash.to_be_bytes());
        }
        sum.value()
    }

    /// Keys in all spaces.
    pub fn keys(&self) -> u64 {
        self.spaces.iter().map(|space| space.keys).sum()
    }

    /// Bytes of all keys and values.
    pub fn bytes(&self) -> u64 {
        self.spaces.iter().map(|space| space.bytes).sum()
    }
}

/// Why a backup could not be written, read or used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The disk or the connection failed.
    #[error("a backup cannot be read or written")]
    Io(#[source] io::Error),
    /// The file is something else.
    #[error("this is no backup of Hanse: it does not begin like one; give the file that `hanse backup` wrote")]
    NotABackup,
    /// A newer program wrote it.
    #[error("the backup has format {0}, this program knows up to {FORMAT}: use a newer one")]
    Newer(u32),
    /// It ends before its end.
    #[error("the backup is cut short: it ends before its last frame; copy it again or use another one")]
    CutShort,
    /// Its content does not match its checksums.
    #[error("the backup is damaged: {0}; copy it again or use another one")]
    Damaged(String),
    /// It is encrypted, and no passphrase was given.
    #[error("the backup is encrypted: give its passphrase")]
    NeedsPassphrase,
    /// Another passphrase was used when it was made.
    #[error("the passphrase is not the one that the backup was made with")]
    WrongPassphrase,
    /// The passphrase can be guessed.
    #[error("the passphrase is too short: it needs {} characters or more", seal::PASSPHRASE_MIN)]
    ShortPassphrase,
    /// It holds one key space, and everything is wanted.
    #[error(
        "the backup holds one key space alone, that of tenant {0}; a system is restored from a backup of everything"
    )]
    Partial(String),
    /// Another key space is wanted.
    #[error("the backup does not hold the key space of tenant {wanted}; it holds {}", listed(.holds))]
    NotThere {
        /// The tenant that is wanted.
        wanted: String,
        /// Tenants whose key spaces it holds.
        holds: Vec<String>,
    },
    /// The tenant was deleted for good before the backup was made.
    #[error("in the backup the key space of tenant {0} is deleted for good; use an older one")]
    Gone(String),
    /// The space was closed when the backup was made.
    #[error(
        "the backup was made while the key space of tenant {0} was being restored: it holds a part; use another one"
    )]
    Part(String),
    /// It was made by another system, or by this one before it was itself restored from an older backup.
    #[error("the backup is of revision {backup} and this system is at {store}: it is of another system")]
    Ahead {
        /// Revision of the backup.
        backup: i64,
        /// Revision of the store.
        store: i64,
    },
    /// The space may not hold so much.
    #[error("the backup has {keys} keys and {bytes} bytes, more than the tenant's limits allow; raise them first")]
    OverLimits {
        /// Keys in the backup.
        keys: u64,
        /// What they take.
        bytes: u64,
    },
    /// What was written is not what the backup holds.
    #[error(
        "what was restored differs from the backup in {space}: its hash is {found:016x} and should be {wanted:016x}"
    )]
    Differs {
        /// Space that differs.
        space: String,
        /// As restored.
        found: u64,
        /// As backed up.
        wanted: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BackupError {
    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.retryable(),
            Self::Io(_)
            | Self::NotABackup
            | Self::Newer(_)
            | Self::CutShort
            | Self::Damaged(_)
            | Self::NeedsPassphrase
            | Self::WrongPassphrase
            | Self::ShortPassphrase
            | Self::Partial(_)
            | Self::NotThere { .. }
            | Self::Gone(_)
            | Self::Part(_)
            | Self::Ahead { .. }
            | Self::OverLimits { .. }
            | Self::Differs { .. } => false,
        }
    }

    /// What a failed read of a file means: an end in the middle is a cut.
    fn reading(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::CutShort,
            io::ErrorKind::InvalidData => Self::Damaged(error.to_string()),
            _ => Self::Io(error),
        }
    }
}

impl From<crate::engine::EngineError> for BackupError {
    fn from(error: crate::engine::EngineError) -> Self {
        Self::Store(error.into())
    }
}

/// Names that an error shows.
const LISTED: usize = 8;

/// Some of the tenants whose key spaces a backup holds.
fn listed(tenants: &[String]) -> String {
    let shown: Vec<&str> = tenants.iter().take(LISTED).map(String::as_str).collect();
    match tenants.len() {
        0 => "none of a tenant".to_owned(),
        all if all > LISTED => format!("those of {} and {} more", shown.join(", "), all - LISTED),
        _ => format!("those of {}", shown.join(", ")),
    }
}

/// Counts a space while its rows go by.
struct Count {
    keys: u64,
    leases: u64,
    bytes: u64,
    sum: Fnv,
}

impl Count {
    const fn new() -> Self {
        Self {
            keys: 0,
            leases: 0,
            bytes: 0,
            sum: Fnv::new(),
        }
    }

    fn key(&mut self, kv: &KeyValue) {
        self.keys += 1;
        self.bytes += (kv.key.len() + kv.value.len()) as u64;
        self.sum.version(&kv.key, &version(kv), &kv.value);
    }

    fn end(&self) -> crate::pb::backup::SpaceEnd {
        crate::pb::backup::SpaceEnd {
            keys: self.keys,
            leases: self.leases,
            bytes: self.bytes,
            hash: self.sum.value(),
        }
    }
}

fn version(kv: &KeyValue) -> Version {
    Version {
        modified: kv.mod_revision,
        created: kv.create_revision,
        version: kv.version,
        lease: kv.lease,
        size: u32::try_from(kv.value.len()).unwrap_or(u32::MAX),
    }
}
