//! Raft's log and vote on the server's one engine, made durable by its one log writer.
//!
//! `append` is readable when it returns and answers its callback after the sync that covers it, so appends, replication and
//! apply overlap. Votes go through the same queue: an order of vote and entries other than Raft's could lose acknowledged
//! data. All groups share the engine; every key starts with the group.

use crate::codec;
use crate::error::{CodecError, ConsensusError};
use crate::high_water::HighWater;
use crate::log_size::LogSize;
use crate::log_tail::Tail;
use crate::types::{Entry, GroupId, LogId, TypeConfig, Vote, group_name};
use bytes::Bytes;
use futures::Stream;
use hanse_state::StoreError;
use hanse_state::engine::writer::Done;
use hanse_state::engine::{Cf, EngineError, LogWriter, SharedEngine, WriteBatch};
use hanse_state::keys::{meta_key, prefix_end};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use prost::Message;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes of entries read at once, for a follower or for apply; a single larger entry goes alone.
pub const MAX_READ_BYTES: usize = 4 * 1024 * 1024;
/// Most entries read at once for apply.
const MAX_READ_ENTRIES: u64 = 1024;
/// Bytes of the newest entries that each group keeps in memory: at full load, what a follower or the machine may lag.
const TAIL_BYTES: usize = 4 * 1024 * 1024;

pub(crate) const VOTE: &[u8] = b"raft/vote";
pub(crate) const PURGED: &[u8] = b"raft/purged";

/// The log of one group. Clones are its readers.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

struct Inner {
    group: GroupId,
    engine: SharedEngine,
    writer: LogWriter,
    mark: Arc<HighWater>,
    /// Taken for a moment, never across a wait.
    tail: Mutex<Tail>,
    /// Likewise.
    size: Mutex<LogSize>,
    /// Bytes of the log, for who wants to know.
    bytes: Arc<AtomicU64>,
}

impl Debug for LogStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogStore")
            .field("group", &self.inner.group)
            .finish_non_exhaustive()
    }
}

fn io_error<E: std::error::Error + Send + Sync + 'static>(error: E) -> io::Error {
    io::Error::other(error)
}

fn log_key(group: GroupId, index: u64) -> Bytes {
    [group.prefix().as_slice(), &index.to_be_bytes()].concat().into()
}

/// Bytes that an entry takes, its key included.
fn entry_bytes(value: usize) -> u64 {
    value as u64 + 12
}

impl LogStore {
    /// Opens the log of `group`. With a data directory, a mark in it tells whether entries were lost.
    pub fn open(group: GroupId, writer: LogWriter, data_dir: Option<&Path>) -> Result<Self, ConsensusError> {
        let path = data_dir.map(|dir| dir.join(format!("log-{}.mark", group_name(group))));
        let shown = path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let mark = HighWater::open(path).map_err(|source| ConsensusError::File {
            what: "read the log mark",
            path: shown,
            source,
        })?;
        let engine = Arc::clone(writer.engine());
        let store = Self {
            inner: Arc::new(Inner {
                group,
                engine,
                writer,
                mark: Arc::new(mark),
                tail: Mutex::new(Tail::new(TAIL_BYTES)),
                size: Mutex::default(),
                bytes: Arc::default(),
            }),
        };
        store.check_complete()?;
        store.measure()?;
        Ok(store)
    }

    /// Finds out how large the log is, which is bounded by what purges leave.
    fn measure(&self) -> Result<(), ConsensusError> {
        let Inner {
            group, engine, size, ..
        } = self.inner.as_ref();
        let prefix = group.prefix();
        let mut cursor = engine
            .cursor(Cf::Log, &prefix, &prefix_end(&prefix))
            .map_err(StoreError::from)?;
        while let Some((key, value)) = cursor.current() {
            if let Some((_, index)) = key.split_last_chunk() {
                size.lock().append(u64::from_be_bytes(*index), entry_bytes(value.len()));
            }
            cursor.advance().map_err(StoreError::from)?;
        }
        self.resize(|_| ());
        Ok(())
    }

    /// Bytes of the log, kept up to date.
    pub(crate) fn bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.inner.bytes)
    }

    fn resize(&self, change: impl FnOnce(&mut LogSize)) {
        let mut size = self.inner.size.lock();
        change(&mut size);
        self.inner.bytes.store(size.bytes(), Ordering::Relaxed);
    }

    /// Asks how large the log is.
    pub(crate) fn with_size<T>(&self, ask: impl FnOnce(&LogSize) -> T) -> T {
        ask(&self.inner.size.lock())
    }

    /// The log must reach at least to where it was once known to be durable.
    fn check_complete(&self) -> Result<(), ConsensusError> {
        let inner = &self.inner;
        let last = self.last_entry()?.max(self.purged()?);
        let next = last.map_or(0, |id| id.index + 1);
        let expected = inner.mark.next();
        if next >= expected {
            return Ok(());
        }
        Err(ConsensusError::LogLost {
            group: inner.group,
            expected: expected - 1,
            found: next.saturating_sub(1),
        })
    }

    fn meta(&self, name: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.inner.engine.get(Cf::Meta, &meta_key(self.inner.group, name))
    }

    fn purged(&self) -> Result<Option<LogId>, ConsensusError> {
        let bytes = self.meta(PURGED).map_err(StoreError::from)?;
        Ok(bytes.map(codec::purged_from_record).transpose()?)
    }

    fn vote(&self) -> Result<Option<Vote>, ConsensusError> {
        let bytes = self.meta(VOTE).map_err(StoreError::from)?;
        Ok(bytes.map(codec::vote_from_record).transpose()?)
    }

    fn last_entry(&self) -> Result<Option<LogId>, ConsensusError> {
        let prefix = self.inner.group.prefix();
        let last = self
            .inner
            .engine
            .last(Cf::Log, &prefix, &prefix_end(&prefix))
            .map_err(StoreError::from)?;
        Ok(last
            .map(|(_, value)| codec::entry_from_bytes(value))
            .transpose()?
            .map(|entry| entry.log_id))
    }

    /// Entries of `[start, end)`, up to [`MAX_READ_BYTES`] if `bounded`.
    fn read(&self, start: u64, end: u64, bounded: bool) -> Result<Vec<Entry>, ConsensusError> {
        let group = self.inner.group;
        if start >= end {
            return Ok(Vec::new());
        }
        let most = if bounded { MAX_READ_BYTES } else { usize::MAX };
        if let Some(entries) = self.inner.tail.lock().read(start, end, most) {
            return Ok(entries);
        }
        let (from, to) = (log_key(group, start), log_key(group, end));
        let mut cursor = self
            .inner
            .engine
            .cursor(Cf::Log, &from, &to)
            .map_err(StoreError::from)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while let Some((_, value)) = cursor.current() {
            bytes += value.len();
            if bytes > most && !entries.is_empty() {
                break;
            }
            entries.push(codec::entry_from_bytes(Bytes::copy_from_slice(value))?);
            cursor.advance().map_err(StoreError::from)?;
        }
        Ok(entries)
    }

    /// What to call once a batch that ends at `last` is durable.
    fn on_flushed(&self, last: u64, callback: IOFlushed<TypeConfig>) -> Done {
        let mark = Arc::clone(&self.inner.mark);
        Box::new(move |result| {
            let result = result.map_err(io_error).and_then(|()| mark.advance(last));
            callback.io_completed(result);
        })
    }
}

/// First and one past the last index of a range.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        self.read(start, end, false).map_err(io_error)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, true).map_err(io_error)
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (start, end) = bounds(&range);
        let store = self.clone();
        let chunks = futures::stream::unfold(Some(start), move |start| {
            let store = store.clone();
            async move {
                let start = start.filter(|start| *start < end)?;
                let chunk = store.read(start, end.min(start.saturating_add(MAX_READ_ENTRIES)), true);
                match chunk {
                    Ok(entries) => {
                        let next = entries.last()?.index() + 1;
                        Some((entries.into_iter().map(Ok).collect::<Vec<_>>(), Some(next)))
                    }
                    Err(error) => Some((vec![Err(io_error(error))], None)),
                }
            }
        });
        Box::pin(futures::StreamExt::flat_map(chunks, futures::stream::iter))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.vote().map_err(io_error)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let purged = self.purged().map_err(io_error)?;
        let last = self.last_entry().map_err(io_error)?;
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last.max(purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let mut batch = WriteBatch::new();
        batch.put(Cf::Meta, meta_key(self.inner.group, VOTE), codec::vote_record(vote));
        self.inner.writer.write(batch).await.map_err(io_error)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let (first, last) = (first.index(), last.index());
        let mut batch = WriteBatch::new();
        let mut sizes = Vec::with_capacity(entries.len());
        for entry in &entries {
            let value = codec::entry_to_pb(entry).encode_to_vec();
            sizes.push((entry.index(), entry_bytes(value.len())));
            batch.put(Cf::Log, log_key(self.inner.group, entry.index()), value);
        }
        let done = self.on_flushed(last, callback);
        // First, because whoever the callback wakes reads at once.
        self.inner.tail.lock().append(entries);
        self.resize(|size| sizes.into_iter().for_each(|(index, bytes)| size.append(index, bytes)));
        let appended = self.inner.writer.append(batch, done).await;
        if appended.is_err() {
            self.inner.tail.lock().cut(first);
            self.resize(|size| size.cut(first));
        }
        appended.map_err(io_error)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let Inner {
            group,
            engine,
            writer,
            mark,
            tail,
            ..
        } = self.inner.as_ref();
        let keep = last_log_id.map_or(0, |id| id.index + 1);
        // Callbacks of earlier appends raise the mark; they must be through before it goes down.
        writer.write(WriteBatch::new()).await.map_err(io_error)?;
        mark.lower(keep)?;
        tail.lock().cut(keep);
        self.resize(|size| size.cut(keep));
        let prefix = group.prefix();
        let last = engine.last(Cf::Log, &prefix, &prefix_end(&prefix)).map_err(io_error)?;
        let last = last
            .map(|(_, value)| codec::entry_from_bytes(value))
            .transpose()
            .map_err(io_error)?;
        // Few entries are ever cut, and single deletes leave no range tombstone near the end of the log.
        let mut batch = WriteBatch::new();
        for index in keep..last.map_or(keep, |entry| entry.index() + 1) {
            batch.delete(Cf::Log, log_key(*group, index));
        }
        writer.write(batch).await.map_err(io_error)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let group = self.inner.group;
        self.inner.tail.lock().purge(log_id.index + 1);
        self.resize(|size| size.purge(log_id.index + 1));
        let mut batch = WriteBatch::new();
        batch.put(Cf::Meta, meta_key(group, PURGED), codec::purged_record(&log_id));
        batch.delete_range(Cf::Log, log_key(group, 0), log_key(group, log_id.index + 1));
        // No sync: a purge that a crash undoes is done again. The order of writes keeps it behind what was applied.
        self.inner.engine.write(batch, false).map_err(io_error)
    }
}

impl From<CodecError> for io::Error {
    fn from(error: CodecError) -> Self {
        io_error(error)
    }
}
