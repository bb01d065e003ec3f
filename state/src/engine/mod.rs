//! What the store needs of a storage engine: ordered bytes in a few families, atomic batches, one durable order.
//!
//! One engine serves all groups of a server: their logs, votes and applied state. Writes are recovered after a crash
//! as a prefix of the order in which they were made, synced or not, so an applied state never runs ahead of the log
//! entries that it came from.

pub mod memory;
pub mod rocks;
#[cfg(any(test, feature = "testing"))]
pub mod suite;
pub mod writer;

use bytes::Bytes;
use std::sync::Arc;

pub use memory::MemoryEngine;
pub use rocks::{RocksEngine, RocksOptions};
pub use writer::{LogWriter, WriterOptions};

/// An engine that is handed around.
pub type SharedEngine = Arc<dyn Engine>;

/// A family of keys with its own order and tuning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cf {
    /// Raft log entries.
    Log,
    /// Events by revision.
    Rev,
    /// Versions by key.
    Key,
    /// Leases.
    Lease,
    /// Votes, applied indexes, floors and the like.
    Meta,
}

impl Cf {
    /// All families.
    pub const ALL: [Self; 5] = [Self::Log, Self::Rev, Self::Key, Self::Lease, Self::Meta];

    /// Name on disk.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Rev => "rev",
            Self::Key => "key",
            Self::Lease => "lease",
            Self::Meta => "meta",
        }
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Log => 0,
            Self::Rev => 1,
            Self::Key => 2,
            Self::Lease => 3,
            Self::Meta => 4,
        }
    }
}

/// Why storage did not do what was asked. None of these is ever retried: see the module `writer`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The engine could not be opened.
    #[error("cannot open the store at {path}: {detail}")]
    Open {
        /// Directory.
        path: String,
        /// The engine's own words.
        detail: String,
    },
    /// Its files are there, and are not what was written.
    #[error("the store at {path} is damaged: {detail}")]
    Damaged {
        /// Directory.
        path: String,
        /// The engine's own words.
        detail: String,
    },
    /// A read failed.
    #[error("cannot read from family {family}: {detail}")]
    Read {
        /// Family.
        family: &'static str,
        /// The engine's own words.
        detail: String,
    },
    /// A write or a sync failed.
    #[error("cannot write: {0}")]
    Write(String),
    /// An earlier write failed, or the writer was stopped.
    #[error("writes are stopped: {0}")]
    Stopped(String),
}

impl EngineError {
    /// Whether the same call may succeed later: never, because after a failed sync nobody knows what the disk holds.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Open { .. } | Self::Damaged { .. } => false,
            Self::Read { .. } | Self::Write(_) | Self::Stopped(_) => false,
        }
    }
}

/// One change in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchOp {
    /// Sets a key.
    Put(Cf, Bytes, Bytes),
    /// Deletes a key.
    Delete(Cf, Bytes),
    /// Deletes all keys from the first to before the second.
    DeleteRange(Cf, Bytes, Bytes),
}

/// Changes that take effect together, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    ops: Vec<BatchOp>,
    bytes: usize,
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key.
    pub fn put(&mut self, cf: Cf, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        self.bytes += key.len() + value.len();
        self.ops.push(BatchOp::Put(cf, key, value));
    }

    /// Deletes a key.
    pub fn delete(&mut self, cf: Cf, key: impl Into<Bytes>) {
        let key = key.into();
        self.bytes += key.len();
        self.ops.push(BatchOp::Delete(cf, key));
    }

    /// Deletes all keys from `from` to before `to`. Meant for few large ranges: each one slows reads near it.
    pub fn delete_range(&mut self, cf: Cf, from: impl Into<Bytes>, to: impl Into<Bytes>) {
        let (from, to) = (from.into(), to.into());
        self.bytes += from.len() + to.len();
        self.ops.push(BatchOp::DeleteRange(cf, from, to));
    }

    /// Appends another batch.
    pub fn append(&mut self, mut other: Self) {
        self.ops.append(&mut other.ops);
        self.bytes += other.bytes;
    }

    /// The changes in order.
    pub fn ops(&self) -> &[BatchOp] {
        &self.ops
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A place in a family, moving upwards. Sees writes made meanwhile or not, unless it came from a snapshot.
pub trait Cursor {
    /// Key and value here, none at the end.
    fn current(&self) -> Option<(&[u8], &[u8])>;
    /// Goes to the next key.
    fn advance(&mut self) -> Result<(), EngineError>;
    /// Goes to the first key that is not below `key`.
    fn seek(&mut self, key: &[u8]) -> Result<(), EngineError>;
}

/// Reads.
pub trait Reader: Send + Sync {
    /// The value of a key.
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    /// A cursor at the first key of `[from, to)`; an empty `to` has no end.
    fn cursor<'a>(&'a self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Box<dyn Cursor + 'a>, EngineError>;
    /// The same for who goes through much of it, once: it leaves what is cached alone, and reads ahead.
    fn sweep<'a>(&'a self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Box<dyn Cursor + 'a>, EngineError> {
        self.cursor(cf, from, to)
    }
    /// The last key of `[from, to)` and its value.
    fn last(&self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError>;

    /// The first `limit` keys of `[from, to)` and their values.
    fn scan(&self, cf: Cf, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let mut cursor = self.cursor(cf, from, to)?;
        let mut out = Vec::new();
        while let Some((key, value)) = cursor.current() {
            if out.len() == limit {
                break;
            }
            out.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            cursor.advance()?;
        }
        Ok(out)
    }
}

/// A storage engine.
pub trait Engine: Reader + 'static {
    /// Makes a batch take effect: readable on return; durable on return if `sync`, as is all that was written before.
    fn write(&self, batch: WriteBatch, sync: bool) -> Result<(), EngineError>;
    /// Makes all that was written before durable.
    fn sync(&self) -> Result<(), EngineError>;
    /// A view that later writes do not change. Keeps what it sees from being cleaned up: do not hold it long.
    fn snapshot<'a>(&'a self) -> Box<dyn Reader + 'a>;
    /// Bytes on disk.
    fn size(&self) -> u64;
}
