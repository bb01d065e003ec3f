//! A group's whole applied state on its way to a member whose log entries are gone everywhere else.
//!
//! It is never in memory at once. The sender reads a consistent view of the engine in its own thread and hands chunks out as the
//! connection takes them. The receiver spools them to a file ([`crate::spool`]). A transfer that breaks off goes on after the last
//! chunk that came in whole, as long as the sender's view lives; the receiver may even restart.

use crate::codec::{self, Applied, pb};
use crate::error::{CodecError, ConsensusError};
use crate::meters::SnapshotMeters;
use crate::snapshot_form::{Sum, chunk_sum, family_number, ranges};
use crate::spool::{Spool, Spooled};
use crate::types::{GroupId, SnapshotMeta, Vote, group_name};
use bytes::Bytes;
use futures::Stream;
use hanse_runtime::clock::SharedClock;
use hanse_state::StoreError;
use hanse_state::engine::{Cf, Reader, SharedEngine};
use hanse_state::keys::meta_key;
use hanse_state::meters::Count;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Bytes of rows in one chunk; a larger row goes alone.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks read ahead of the connection.
const CHUNKS_AHEAD: usize = 4;

/// The content of a snapshot: on its way out, or received.
#[derive(Debug)]
pub enum SnapshotData {
    /// A view of this member's state.
    Live(Live),
    /// A complete, checked file.
    Spooled(Spooled),
}

/// A consistent view of a group, read chunk by chunk, from any chunk on that was read before. The chunks of one view are always
/// the same.
#[derive(Debug)]
pub struct Live {
    requests: std::sync::mpsc::Sender<ReadRequest>,
}

/// A piece of a view on its way out.
#[derive(Debug)]
enum Piece {
    Chunk(Bytes),
    /// After the last chunk.
    Tail(pb::SnapshotTail),
}

type Pieces = mpsc::Sender<Result<Piece, StoreError>>;

#[derive(Debug)]
struct ReadRequest {
    from: u64,
    pieces: Pieces,
}

impl Live {
    /// Takes a view now. Answers it and how far it had applied.
    pub async fn take(
        engine: SharedEngine,
        group: GroupId,
        meters: Arc<SnapshotMeters>,
    ) -> Result<(Applied, Self), ConsensusError> {
        let (applied, wait) = oneshot::channel();
        let (requests, queue) = std::sync::mpsc::channel();
        let name = format!("snapshot-{}", group_name(group));
        // A thread of its own: an engine's view borrows the engine, and a slow reader must not hold up the runtime.
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let _under_way = meters.sending.begin();
                read_view(&engine, group, applied, &queue, &meters.sent_bytes);
            })
            .map_err(|source| ConsensusError::File {
                what: "start the thread",
                path: name,
                source,
            })?;
        let applied = wait.await.map_err(|_| StoreError::Stopped)??;
        Ok((applied, Self { requests }))
    }

    /// Spools all of it here.
    pub async fn collect(self, spool: &Spool) -> Result<Spooled, ConsensusError> {
        let mut incoming = spool.receive(0)?;
        let mut pieces = self.read(0);
        while let Some(piece) = pieces.recv().await {
            match piece? {
                Piece::Chunk(chunk) => incoming.add(&chunk, chunk_sum(&chunk))?,
                Piece::Tail(tail) => return incoming.finish(&tail),
            }
        }
        Err(StoreError::Stopped.into())
    }

    /// Reads from a chunk on. What was asked before ends when nobody takes it any more.
    fn read(&self, from: u64) -> mpsc::Receiver<Result<Piece, StoreError>> {
        let (pieces, receiver) = mpsc::channel(CHUNKS_AHEAD);
        // A thread that is gone has said why, and the pieces end without a tail.
        self.requests.send(ReadRequest { from, pieces }).ok();
        receiver
    }
}

fn read_view(
    engine: &SharedEngine,
    group: GroupId,
    applied: oneshot::Sender<Result<Applied, ConsensusError>>,
    requests: &std::sync::mpsc::Receiver<ReadRequest>,
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
    let mut reading = Reading {
        view: view.as_ref(),
        ranges: ranges(group),
        starts: vec![Start::default()],
        sum: Sum::new(),
    };
    while let Ok(ReadRequest { from, pieces }) = requests.recv() {
        if let Err(error) = reading.send(from, &pieces, sent) {
            // A receiver that is gone wants no error either.
            pieces.blocking_send(Err(error)).ok();
        }
    }
}

/// Where in a view a chunk begins.
#[derive(Clone, Debug, Default)]
struct Start {
    range: usize,
    /// Empty: at the range's first key.
    key: Bytes,
}

/// A view that is being read.
struct Reading<'a> {
    view: &'a dyn Reader,
    ranges: [(Cf, Bytes, Bytes); 4],
    /// Of each chunk that was read, and of the next.
    starts: Vec<Start>,
    /// Over every chunk that was read, once.
    sum: Sum,
}

impl Reading<'_> {
    fn send(&mut self, from: u64, pieces: &Pieces, sent: &Count) -> Result<(), StoreError> {
        let unknown = || StoreError::Corrupt(format!("chunk {from} of a snapshot was never read"));
        let mut number = usize::try_from(from).map_err(|_| unknown())?;
        let mut at = self.starts.get(number).cloned().ok_or_else(unknown)?;
        let (mut chunk, mut bytes) = (pb::SnapshotChunk::default(), 0);
        while let Some((cf, first, end)) = self.ranges.get(at.range).cloned() {
            let first = if at.key.is_empty() { first } else { at.key.clone() };
            let mut cursor = self.view.sweep(cf, &first, &end)?;
            while let Some((key, value)) = cursor.current() {
                if bytes >= CHUNK_BYTES {
                    at.key = Bytes::copy_from_slice(key);
                    let full = std::mem::take(&mut chunk);
                    sent.add(std::mem::take(&mut bytes) as u64);
                    if !hand_out(&mut self.sum, &mut self.starts, &full, &mut number, &at, pieces) {
                        return Ok(());
                    }
                }
                bytes += key.len() + value.len();
                chunk.rows.push(pb::SnapshotRow {
                    family: family_number(cf),
                    key: Bytes::copy_from_slice(key),
                    value: Bytes::copy_from_slice(value),
                });
                cursor.advance()?;
            }
            at = Start {
                range: at.range + 1,
                key: Bytes::new(),
            };
        }
        sent.add(bytes as u64);
        if chunk.rows.is_empty() || hand_out(&mut self.sum, &mut self.starts, &chunk, &mut number, &at, pieces) {
            // A receiver that is gone no longer wants it.
            pieces.blocking_send(Ok(Piece::Tail(self.sum.tail()))).ok();
        }
        Ok(())
    }
}

/// Sends a chunk, and notes where the next one begins when it is the first time. False: nobody takes it.
fn hand_out(
    sum: &mut Sum,
    starts: &mut Vec<Start>,
    chunk: &pb::SnapshotChunk,
    number: &mut usize,
    next: &Start,
    pieces: &Pieces,
) -> bool {
    let chunk = Bytes::from(chunk.encode_to_vec());
    *number += 1;
    if *number == starts.len() {
        sum.add(&chunk);
        starts.push(next.clone());
    }
    pieces.blocking_send(Ok(Piece::Chunk(chunk))).is_ok()
}

fn head(group: GroupId, vote: &Vote, meta: &SnapshotMeta) -> pb::SnapshotHead {
    pb::SnapshotHead {
        format: codec::FORMAT,
        group: group.0,
        vote: Some(codec::vote_to_pb(vote)),
        last: meta.last_log_id.as_ref().map(codec::log_id_to_pb),
        membership: Some(codec::stored_membership_to_pb(&meta.last_membership)),
        transfer: 0,
        from: 0,
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

/// A snapshot on its way to one member, over as many connections as it takes.
#[derive(Debug)]
pub struct Transfer {
    group: GroupId,
    live: Live,
    head: pb::SnapshotHead,
}

/// Where the frames of a snapshot are.
enum Step {
    Head(pb::SnapshotHead),
    Pieces,
    End,
}

/// What the frames come from.
struct Frames {
    pieces: mpsc::Receiver<Result<Piece, StoreError>>,
    pace: Pace,
    group: GroupId,
}

impl Transfer {
    /// Of a view of this member's state; none of a snapshot that was received and not installed. `number` is random.
    pub fn new(group: GroupId, number: u64, vote: &Vote, meta: &SnapshotMeta, data: SnapshotData) -> Option<Self> {
        let SnapshotData::Live(live) = data else { return None };
        let head = pb::SnapshotHead {
            transfer: number,
            ..head(group, vote, meta)
        };
        Some(Self { group, live, head })
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.head.transfer
    }

    /// The frames from a chunk on, no faster than `pace`. If reading fails, they end without a tail, and the receiver refuses
    /// them.
    pub fn frames(&self, from: u64, pace: Pace) -> impl Stream<Item = pb::SnapshotFrame> + Send + 'static + use<> {
        let head = pb::SnapshotHead {
            from,
            ..self.head.clone()
        };
        let frames = Frames {
            pieces: self.live.read(from),
            pace,
            group: self.group,
        };
        futures::stream::unfold((Step::Head(head), frames), |(step, frames)| frames.next(step))
    }
}

impl Frames {
    async fn next(mut self, step: Step) -> Option<(pb::SnapshotFrame, (Step, Self))> {
        use pb::snapshot_frame::Frame;
        let (frame, sum, step) = match step {
            Step::Head(head) => (Frame::Head(head), 0, Step::Pieces),
            Step::Pieces => match self.pieces.recv().await {
                Some(Ok(Piece::Chunk(chunk))) => {
                    self.pace.wait(chunk.len()).await;
                    let sum = chunk_sum(&chunk);
                    (Frame::Chunk(chunk), sum, Step::Pieces)
                }
                Some(Ok(Piece::Tail(tail))) => (Frame::Tail(tail), 0, Step::End),
                Some(Err(error)) => {
                    tracing::error!(group = %group_name(self.group), %error, "a snapshot could not be read to its end");
                    return None;
                }
                None => return None,
            },
            Step::End => return None,
        };
        let frame = Some(frame);
        Some((pb::SnapshotFrame { frame, sum }, (step, self)))
    }
}

/// Holds a transfer to so many bytes in a second. What a slow connection left unused is not made up for.
#[derive(Clone)]
pub struct Pace {
    clock: SharedClock,
    /// 0: as fast as it goes.
    per_second: u64,
    /// When what was sent so far has had its time.
    paid: Duration,
    /// Told of every chunk that goes out.
    moved: watch::Sender<()>,
}

impl Pace {
    /// From now on; `moved` is told of every chunk.
    pub fn new(clock: SharedClock, per_second: u64, moved: watch::Sender<()>) -> Self {
        let paid = clock.mono();
        Self {
            clock,
            per_second,
            paid,
            moved,
        }
    }

    async fn wait(&mut self, bytes: usize) {
        self.moved.send_replace(());
        if self.per_second == 0 {
            return;
        }
        let now = self.clock.mono();
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.per_second);
        self.paid = self.paid.max(now) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.clock.sleep(self.paid.saturating_sub(now)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{Half, Incoming, Spool};
    use futures::StreamExt;
    use hanse_runtime::clock::SystemClock;
    use hanse_state::engine::{MemoryEngine, WriteBatch};
    use hanse_state::keys::prefix_end;
    use pb::snapshot_frame::Frame;

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

    async fn transfer(engine: &SharedEngine, group: GroupId) -> Transfer {
        let (applied, live) = Live::take(Arc::clone(engine), group, Arc::default()).await.unwrap();
        let meta = SnapshotMeta {
            last_log_id: applied.last,
            last_membership: applied.membership,
        };
        let vote = Vote::new_committed(1, 1);
        Transfer::new(group, 77, &vote, &meta, SnapshotData::Live(live)).unwrap()
    }

    async fn frames(transfer: &Transfer, from: u64) -> Vec<pb::SnapshotFrame> {
        let pace = Pace::new(SystemClock::shared(), 0, watch::Sender::new(()));
        transfer.frames(from, pace).collect().await
    }

    fn head_of(frame: &pb::SnapshotFrame) -> pb::SnapshotHead {
        match &frame.frame {
            Some(Frame::Head(head)) => head.clone(),
            other => panic!("no head: {other:?}"),
        }
    }

    /// Adds what is in the frames; answers the tail, if they have one.
    fn take(incoming: &mut Incoming, frames: &[pb::SnapshotFrame]) -> Option<pb::SnapshotTail> {
        for frame in frames {
            match frame.frame.as_ref().unwrap() {
                Frame::Head(head) => assert!(read_head(head.clone()).is_ok()),
                Frame::Chunk(chunk) => incoming.add(chunk, frame.sum).unwrap(),
                Frame::Tail(tail) => return Some(tail.clone()),
            }
        }
        None
    }

    #[tokio::test]
    async fn a_state_arrives_whole_and_replaces_only_its_group() {
        let (group, dir) = (GroupId(5), tempfile::tempdir().unwrap());
        let from = filled(group);
        let frames = frames(&transfer(&from, group).await, 0).await;
        assert!(frames.len() > 5, "several chunks");
        let spool = Spool::new(dir.path(), group);
        let mut incoming = spool.receive(77).unwrap();
        let done = take(&mut incoming, &frames);
        let spooled = incoming.finish(&done.unwrap()).unwrap();
        let received = spool.meters().received_bytes.get();
        assert!(received > 1_500_000, "{received}");
        arrived(&spool, spooled, &from, group);
        assert_eq!(spool.meters().installed_bytes.get(), received);
        assert!(spool.unfinished().unwrap().is_none());
    }

    /// Installs over another state: everything of the group is that of `from`, and nothing of others has changed.
    fn arrived(spool: &Spool, spooled: Spooled, from: &SharedEngine, group: GroupId) {
        let to = filled(group);
        let mut batch = WriteBatch::new();
        batch.put(Cf::Key, [group.prefix().as_slice(), b"stale"].concat(), "x");
        to.write(batch, false).unwrap();
        spool.install(spooled, &to).unwrap();
        for cf in Cf::ALL {
            assert_eq!(rows(&to, cf, group), rows(from, cf, group), "{cf:?}");
            assert_eq!(rows(&to, cf, GroupId(6)).len(), rows(from, cf, GroupId(6)).len());
        }
    }

    #[tokio::test]
    async fn a_transfer_goes_on_after_the_last_whole_chunk_and_only_if_it_is_held() {
        let (group, dir) = (GroupId(5), tempfile::tempdir().unwrap());
        let from = filled(group);
        let transfer = transfer(&from, group).await;
        let spool = Spool::new(dir.path(), group);
        let first = frames(&transfer, 0).await;
        let mut place = None;
        let begun = Half::of(&spool, &head_of(&first[0]), &mut place).unwrap();
        let incoming = begun.unwrap();
        take(incoming, &first[..3]);
        // A byte that flips is found at once, and costs nothing of what came before.
        let Some(Frame::Chunk(chunk)) = &first[3].frame else {
            panic!("no chunk")
        };
        let mut flipped = chunk.to_vec();
        flipped[1000] ^= 1;
        let refused = incoming.add(&flipped, first[3].sum).unwrap_err();
        assert!(
            hanse_runtime::supervisor::chain(&refused).contains("chunk 2"),
            "{refused:?}"
        );
        let has = |place: &Option<Half>, number| place.as_ref().unwrap().has(number);
        assert_eq!((has(&place, 77), has(&place, 78), has(&place, 0)), (2, 0, 0));
        // The view does not change while the store goes on.
        let mut batch = WriteBatch::new();
        batch.put(Cf::Key, [group.prefix().as_slice(), b"later"].concat(), "x");
        let wanted = filled(group);
        from.write(batch, false).unwrap();
        let rest = frames(&transfer, 2).await;
        assert_eq!(rest[1..], first[3..], "the same chunks again, and the same tail");
        // Another's number, or another place in it: it cannot go on there, and stays.
        for (transfer, from) in [(78, 2), (77, 1), (77, 3)] {
            let other = pb::SnapshotHead {
                transfer,
                from,
                ..head_of(&rest[0])
            };
            assert!(Half::of(&spool, &other, &mut place).unwrap().is_none());
        }
        let incoming = Half::of(&spool, &head_of(&rest[0]), &mut place).unwrap().unwrap();
        let tail = take(incoming, &rest).unwrap();
        let spooled = place.take().unwrap().into_incoming().finish(&tail).unwrap();
        arrived(&spool, spooled, &wanted, group);
        let gone = Half::of(&spool, &head_of(&rest[0]), &mut place).unwrap();
        assert!(gone.is_none(), "what is not held cannot go on");
    }

    #[tokio::test]
    async fn a_damaged_or_short_snapshot_is_refused() {
        let (group, dir) = (GroupId(5), tempfile::tempdir().unwrap());
        let all = frames(&transfer(&filled(group), group).await, 0).await;
        let spool = Spool::new(dir.path(), group);
        let mut incoming = spool.receive(77).unwrap();
        take(&mut incoming, &all[..all.len() - 2]);
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
        assert!(spool.receive(77).unwrap().add(&[], 0).is_err());
    }

    #[tokio::test]
    async fn a_transfer_is_no_faster_than_it_may_be() {
        let group = GroupId(5);
        let transfer = transfer(&filled(group), group).await;
        let clock = SystemClock::shared();
        let begun = clock.mono();
        let sent: Vec<_> = transfer
            .frames(0, Pace::new(Arc::clone(&clock), 4 << 20, watch::Sender::new(())))
            .collect()
            .await;
        // 1.5 MB at 4 MiB in a second.
        let took = clock.mono() - begun;
        assert!(sent.len() > 5 && took >= Duration::from_millis(350), "{took:?}");
    }
}
