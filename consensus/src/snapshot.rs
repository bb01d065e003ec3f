//! A group's whole applied state on its way to a member whose log entries are gone everywhere else.
//!
//! It is never in memory at once. The sender reads a consistent view of the engine in its own thread and hands chunks out as
//! the connection takes them. The receiver spools them to a file, checks sum and end, syncs, and only then installs: the
//! complete file is the promise that an installation which a crash cut short is done again at the next start.

use crate::codec::{self, Applied, pb};
use crate::error::{CodecError, ConsensusError};
use crate::high_water::sync_dir;
use crate::meters::SnapshotMeters;
use crate::types::{GroupId, SnapshotMeta, Vote, group_name};
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures::Stream;
use hanse_state::StoreError;
use hanse_state::engine::{Cf, Reader, SharedEngine, WriteBatch};
use hanse_state::keys::{meta_key, prefix_end};
use hanse_state::meters::{Count, Under};
use prost::Message;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Bytes of rows in one chunk; a larger row goes alone.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks read ahead of the connection.
const CHUNKS_AHEAD: usize = 4;
/// Largest chunk that is accepted: a chunk and one row of the largest request.
const MAX_CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// What a snapshot of a group is made of, in this order: the machine's records come last, so that a state is never marked
/// complete before it is.
fn ranges(group: GroupId) -> [(Cf, Bytes, Bytes); 4] {
    let prefix = group.prefix();
    let all = |cf| (cf, Bytes::copy_from_slice(&prefix), Bytes::from(prefix_end(&prefix)));
    let machine = meta_key(group, hanse_state::keys::META_MACHINE);
    let end = prefix_end(&machine);
    [
        all(Cf::Rev),
        all(Cf::Key),
        all(Cf::Lease),
        (Cf::Meta, machine.into(), end.into()),
    ]
}

fn family_number(cf: Cf) -> u32 {
    match cf {
        Cf::Log => 0,
        Cf::Rev => 1,
        Cf::Key => 2,
        Cf::Lease => 3,
        Cf::Meta => 4,
    }
}

fn family(number: u32) -> Result<Cf, CodecError> {
    let found = [Cf::Rev, Cf::Key, Cf::Lease, Cf::Meta]
        .into_iter()
        .find(|cf| family_number(*cf) == number);
    found.ok_or_else(|| CodecError::Invalid {
        what: "family of a snapshot row",
        fault: format!("{number} is unknown"),
    })
}

/// The content of a snapshot: on its way out, or received.
#[derive(Debug)]
pub enum SnapshotData {
    /// A view of this member's state.
    Live(Live),
    /// A complete, checked file.
    Spooled(Spooled),
}

/// A consistent view of a group, read chunk by chunk.
#[derive(Debug)]
pub struct Live {
    chunks: mpsc::Receiver<Result<Bytes, StoreError>>,
}

impl Live {
    /// Takes a view now. Answers it and how far it had applied.
    pub async fn take(
        engine: SharedEngine,
        group: GroupId,
        meters: Arc<SnapshotMeters>,
    ) -> Result<(Applied, Self), ConsensusError> {
        let (applied, wait) = oneshot::channel();
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let name = format!("snapshot-{}", group_name(group));
        // A thread of its own: an engine's view borrows the engine, and a slow reader must not hold up the runtime.
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let _under_way = meters.sending.begin();
                read_view(&engine, group, applied, &sender, &meters.sent_bytes);
            })
            .map_err(|source| ConsensusError::File {
                what: "start the thread",
                path: name,
                source,
            })?;
        let applied = wait.await.map_err(|_| StoreError::Stopped)??;
        Ok((applied, Self { chunks }))
    }
}

type Chunks = mpsc::Sender<Result<Bytes, StoreError>>;

fn read_view(
    engine: &SharedEngine,
    group: GroupId,
    applied: oneshot::Sender<Result<Applied, ConsensusError>>,
    chunks: &Chunks,
    sent: &Count,
) {
    let view = engine.snapshot();
    let marker = view
        .get(Cf::Meta, &meta_key(group, hanse_state::keys::META_MARKER))
        .map_err(StoreError::from);
    let decoded = marker
        .map_err(ConsensusError::from)
        .and_then(|bytes| Ok(Applied::decode(bytes)?));
    let readable = decoded.is_ok();
    if applied.send(decoded).is_err() || !readable {
        return;
    }
    if let Err(error) = send_rows(view.as_ref(), group, chunks, sent) {
        // A receiver that is gone wants no error either.
        chunks.blocking_send(Err(error)).ok();
    }
}

fn send_rows(view: &dyn Reader, group: GroupId, chunks: &Chunks, sent: &Count) -> Result<(), StoreError> {
    let mut chunk = pb::SnapshotChunk::default();
    let mut bytes = 0;
    for (cf, from, to) in ranges(group) {
        let mut cursor = view.cursor(cf, &from, &to)?;
        while let Some((key, value)) = cursor.current() {
            bytes += key.len() + value.len();
            chunk.rows.push(pb::SnapshotRow {
                family: family_number(cf),
                key: Bytes::copy_from_slice(key),
                value: Bytes::copy_from_slice(value),
            });
            cursor.advance()?;
            if bytes >= CHUNK_BYTES {
                sent.add(bytes as u64);
                bytes = 0;
                if chunks
                    .blocking_send(Ok(std::mem::take(&mut chunk).encode_to_vec().into()))
                    .is_err()
                {
                    return Ok(());
                }
            }
        }
    }
    sent.add(bytes as u64);
    if !chunk.rows.is_empty() {
        // A receiver that is gone no longer wants it.
        chunks.blocking_send(Ok(chunk.encode_to_vec().into())).ok();
    }
    Ok(())
}

/// The sum over all chunks.
struct Sum {
    digest: Context,
    chunks: u64,
}

impl Sum {
    fn new() -> Self {
        Self {
            digest: Context::new(&SHA256),
            chunks: 0,
        }
    }

    fn add(&mut self, chunk: &[u8]) {
        self.digest.update(&(chunk.len() as u64).to_be_bytes());
        self.digest.update(chunk);
        self.chunks += 1;
    }

    fn tail(self) -> pb::SnapshotTail {
        let sha256 = Bytes::copy_from_slice(self.digest.finish().as_ref());
        pb::SnapshotTail {
            chunks: self.chunks,
            sha256,
        }
    }
}

fn head(group: GroupId, vote: &Vote, meta: &SnapshotMeta) -> pb::SnapshotHead {
    pb::SnapshotHead {
        format: codec::FORMAT,
        group: group.0,
        vote: Some(codec::vote_to_pb(vote)),
        last: meta.last_log_id.as_ref().map(codec::log_id_to_pb),
        membership: Some(codec::stored_membership_to_pb(&meta.last_membership)),
    }
}

/// Vote and meta in the head of a snapshot.
pub fn read_head(head: pb::SnapshotHead) -> Result<(Vote, SnapshotMeta), CodecError> {
    if head.format != codec::FORMAT {
        return Err(CodecError::Format {
            what: "snapshot",
            format: head.format,
        });
    }
    let meta = SnapshotMeta {
        last_log_id: head.last.map(codec::log_id_from_pb),
        last_membership: codec::stored_membership_from_pb(head.membership)?,
    };
    Ok((codec::required_vote(head.vote)?, meta))
}

enum Step {
    Head(pb::SnapshotHead),
    Chunks(Sum),
    End,
}

impl SnapshotData {
    /// The frames of a snapshot. If reading fails, they end without a tail, and the receiver refuses them.
    pub fn frames(
        self,
        group: GroupId,
        vote: &Vote,
        meta: &SnapshotMeta,
    ) -> impl Stream<Item = pb::SnapshotFrame> + Send + 'static {
        let head = head(group, vote, meta);
        let live = match self {
            Self::Live(live) => Some(live),
            Self::Spooled(_) => None,
        };
        let frame = |frame| pb::SnapshotFrame { frame: Some(frame) };
        futures::stream::unfold((Step::Head(head), live), move |(step, live)| async move {
            use pb::snapshot_frame::Frame;
            let mut live = live?;
            match step {
                Step::Head(head) => Some((frame(Frame::Head(head)), (Step::Chunks(Sum::new()), Some(live)))),
                Step::Chunks(mut sum) => match live.chunks.recv().await {
                    Some(Ok(chunk)) => {
                        sum.add(&chunk);
                        Some((frame(Frame::Chunk(chunk)), (Step::Chunks(sum), Some(live))))
                    }
                    Some(Err(error)) => {
                        tracing::error!(group = %group_name(group), %error, "a snapshot could not be read to its end");
                        None
                    }
                    None => Some((frame(Frame::Tail(sum.tail())), (Step::End, Some(live)))),
                },
                Step::End => None,
            }
        })
    }
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ConsensusError {
    let path = path.display().to_string();
    move |source| ConsensusError::File { what, path, source }
}

/// Where received snapshots of a group lie.
#[derive(Clone, Debug)]
pub struct Spool {
    group: GroupId,
    dir: PathBuf,
    meters: Arc<SnapshotMeters>,
}

impl Spool {
    /// In `dir`, which must exist.
    pub fn new(dir: &Path, group: GroupId) -> Self {
        Self {
            group,
            dir: dir.to_owned(),
            meters: Arc::default(),
        }
    }

    /// What is counted of the group's snapshots.
    pub fn meters(&self) -> &Arc<SnapshotMeters> {
        &self.meters
    }

    fn path(&self, ending: &str) -> PathBuf {
        self.dir.join(format!("snapshot-{}.{ending}", group_name(self.group)))
    }

    /// Begins to receive. An older unfinished one is dropped.
    pub fn receive(&self) -> Result<Incoming, ConsensusError> {
        let path = self.path("part");
        let file = File::create(&path).map_err(file_error("create", &path))?;
        Ok(Incoming {
            file: BufWriter::new(file),
            path,
            sum: Sum::new(),
            meters: Arc::clone(&self.meters),
            _under_way: self.meters.receiving.begin(),
        })
    }

    /// Receives from this process.
    pub async fn collect(&self, mut live: Live) -> Result<Spooled, ConsensusError> {
        let mut incoming = self.receive()?;
        while let Some(chunk) = live.chunks.recv().await {
            incoming.add(&chunk?)?;
        }
        incoming.close()
    }

    /// A complete snapshot whose installation was cut short.
    pub fn unfinished(&self) -> Option<Spooled> {
        let path = self.path("install");
        path.exists().then_some(Spooled { path })
    }

    /// Makes a received snapshot the one that is being installed.
    fn promote(&self, spooled: Spooled) -> Result<Spooled, ConsensusError> {
        let path = self.path("install");
        if spooled.path != path {
            fs::rename(&spooled.path, &path).map_err(file_error("rename", &spooled.path))?;
            sync_dir(&path).map_err(file_error("sync", &path))?;
        }
        Ok(Spooled { path })
    }

    /// Replaces the group's rows in the engine by those of `spooled`. Must run while nobody reads the state. May be repeated.
    pub fn install(&self, spooled: Spooled, engine: &SharedEngine) -> Result<(), ConsensusError> {
        let _under_way = self.meters.installing.begin();
        let spooled = self.promote(spooled)?;
        let mut batch = WriteBatch::new();
        for (cf, from, to) in ranges(self.group) {
            batch.delete_range(cf, from, to);
        }
        engine.write(batch, false).map_err(StoreError::from)?;
        spooled.for_each(|chunk| {
            self.meters.installed_bytes.add(chunk.len() as u64);
            let mut batch = WriteBatch::new();
            for row in codec::decode::<pb::SnapshotChunk>("snapshot chunk", chunk)?.rows {
                batch.put(family(row.family)?, row.key, row.value);
            }
            engine.write(batch, false).map_err(StoreError::from)?;
            Ok(())
        })?;
        engine.sync().map_err(StoreError::from)?;
        self.meters.installed.add(1);
        fs::remove_file(&spooled.path).map_err(file_error("remove", &spooled.path))?;
        sync_dir(&spooled.path).map_err(file_error("sync", &spooled.path))
    }
}

/// A snapshot that is being received.
pub struct Incoming {
    file: BufWriter<File>,
    path: PathBuf,
    sum: Sum,
    meters: Arc<SnapshotMeters>,
    _under_way: Under,
}

impl Incoming {
    /// The next chunk.
    pub fn add(&mut self, chunk: &[u8]) -> Result<(), ConsensusError> {
        if chunk.is_empty() || chunk.len() > MAX_CHUNK_BYTES {
            let fault = format!("a chunk of {} bytes", chunk.len());
            return Err(CodecError::Invalid {
                what: "snapshot",
                fault,
            }
            .into());
        }
        self.sum.add(chunk);
        self.meters.received_bytes.add(chunk.len() as u64);
        let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX).to_be_bytes();
        let written = self.file.write_all(&length).and_then(|()| self.file.write_all(chunk));
        written.map_err(file_error("write", &self.path))
    }

    /// Checks the sum and makes the file durable.
    pub fn finish(mut self, tail: &pb::SnapshotTail) -> Result<Spooled, ConsensusError> {
        let sum = std::mem::replace(&mut self.sum, Sum::new());
        if sum.tail() != *tail {
            return Err(CodecError::Invalid {
                what: "snapshot",
                fault: "its sum does not match its content".to_owned(),
            }
            .into());
        }
        self.close()
    }

    fn close(self) -> Result<Spooled, ConsensusError> {
        let Self {
            file, path, _under_way, ..
        } = self;
        let file = file
            .into_inner()
            .map_err(|error| file_error("write", &path)(error.into_error()))?;
        file.sync_all().map_err(file_error("sync", &path))?;
        Ok(Spooled { path })
    }
}

/// A complete snapshot in a file.
#[derive(Debug)]
pub struct Spooled {
    path: PathBuf,
}

impl Spooled {
    fn for_each(&self, mut each: impl FnMut(Bytes) -> Result<(), ConsensusError>) -> Result<(), ConsensusError> {
        let file = File::open(&self.path).map_err(file_error("open", &self.path))?;
        let mut file = BufReader::new(file);
        loop {
            let mut length = [0; 4];
            match file.read_exact(&mut length) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(file_error("read", &self.path)(error)),
            }
            let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            if length > MAX_CHUNK_BYTES {
                return Err(CodecError::Invalid {
                    what: "snapshot file",
                    fault: format!("a chunk of {length} bytes"),
                }
                .into());
            }
            let mut chunk = vec![0; length];
            file.read_exact(&mut chunk).map_err(file_error("read", &self.path))?;
            each(chunk.into())?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use hanse_state::engine::MemoryEngine;

    fn filled(group: GroupId) -> SharedEngine {
        let engine: SharedEngine = Arc::new(MemoryEngine::new());
        let mut batch = WriteBatch::new();
        for other in [group, GroupId(group.0 + 1)] {
            for n in 0..500u32 {
                let key = [other.prefix().as_slice(), &n.to_be_bytes()].concat();
                batch.put(Cf::Key, key.clone(), vec![7; 3000]);
                batch.put(Cf::Rev, key.clone(), vec![8; 10]);
                batch.put(Cf::Log, key, vec![9; 10]);
            }
            batch.put(Cf::Meta, meta_key(other, b"m/state"), "state");
            batch.put(Cf::Meta, meta_key(other, b"raft/vote"), "vote");
        }
        engine.write(batch, false).unwrap();
        engine
    }

    fn rows(engine: &SharedEngine, cf: Cf, group: GroupId) -> Vec<(Bytes, Bytes)> {
        let prefix = group.prefix();
        engine.scan(cf, &prefix, &prefix_end(&prefix), usize::MAX).unwrap()
    }

    async fn frames(engine: &SharedEngine, group: GroupId) -> Vec<pb::SnapshotFrame> {
        let (applied, live) = Live::take(Arc::clone(engine), group, Arc::default()).await.unwrap();
        let meta = SnapshotMeta {
            last_log_id: applied.last,
            last_membership: applied.membership,
        };
        SnapshotData::Live(live)
            .frames(group, &Vote::new_committed(1, 1), &meta)
            .collect()
            .await
    }

    #[tokio::test]
    async fn a_state_arrives_whole_and_replaces_only_its_group() {
        use pb::snapshot_frame::Frame;
        let (group, dir) = (GroupId(5), tempfile::tempdir().unwrap());
        let from = filled(group);
        let frames = frames(&from, group).await;
        assert!(frames.len() > 5, "several chunks");
        let spool = Spool::new(dir.path(), group);
        let mut incoming = spool.receive().unwrap();
        let mut done = None;
        for frame in frames {
            match frame.frame.unwrap() {
                Frame::Head(head) => assert!(read_head(head).is_ok()),
                Frame::Chunk(chunk) => incoming.add(&chunk).unwrap(),
                Frame::Tail(tail) => done = Some(tail),
            }
        }
        let spooled = incoming.finish(&done.unwrap()).unwrap();
        let received = spool.meters().received_bytes.get();
        assert!(
            received > 1_500_000 && spool.meters().receiving.get() == 0,
            "{received}"
        );
        let to = filled(group);
        let mut batch = WriteBatch::new();
        batch.put(Cf::Key, [group.prefix().as_slice(), b"stale"].concat(), "x");
        to.write(batch, false).unwrap();
        spool.install(spooled, &to).unwrap();
        assert_eq!(spool.meters().installed_bytes.get(), received);
        for cf in Cf::ALL {
            assert_eq!(rows(&to, cf, group), rows(&from, cf, group), "{cf:?}");
            assert_eq!(rows(&to, cf, GroupId(6)).len(), rows(&from, cf, GroupId(6)).len());
        }
        assert!(spool.unfinished().is_none());
    }

    #[tokio::test]
    async fn a_damaged_or_short_snapshot_is_refused() {
        use pb::snapshot_frame::Frame;
        let (group, dir) = (GroupId(5), tempfile::tempdir().unwrap());
        let all = frames(&filled(group), group).await;
        let spool = Spool::new(dir.path(), group);
        let mut incoming = spool.receive().unwrap();
        for frame in &all[..all.len() - 2] {
            if let Some(Frame::Chunk(chunk)) = &frame.frame {
                incoming.add(chunk).unwrap();
            }
        }
        let Some(Frame::Tail(tail)) = &all[all.len() - 1].frame else {
            panic!("no tail")
        };
        assert!(
            incoming
                .finish(tail)
                .unwrap_err()
                .to_string()
                .contains("cannot be read")
        );
        assert!(spool.receive().unwrap().add(&[]).is_err());
    }

    #[test]
    fn an_installation_that_was_cut_short_is_found_again() {
        let (group, dir) = (GroupId(5), tempfile::tempdir().unwrap());
        let spool = Spool::new(dir.path(), group);
        let incoming = spool.receive().unwrap();
        let spooled = incoming.finish(&Sum::new().tail()).unwrap();
        spool.promote(spooled).unwrap();
        let found = spool.unfinished().unwrap();
        let engine = filled(group);
        spool.install(found, &engine).unwrap();
        assert!(rows(&engine, Cf::Key, group).is_empty());
        assert!(spool.unfinished().is_none());
    }
}
