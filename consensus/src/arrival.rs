//! A snapshot that arrives at a group's member: over as many connections as it takes, one at a time, and installed once.
//!
//! What came in stays when a connection breaks, and so does an installation: it goes on without the connection, and the sender,
//! whose answer was lost with it, learns what became of it when it asks how far the transfer is.

use crate::codec::{self, pb};
use crate::error::ConsensusError;
use crate::group::{Group, GroupRaft};
use crate::snapshot::{SnapshotData, read_head};
use crate::spool::{Half, Incoming, Spool};
use crate::types::{SnapshotMeta, Vote};
use futures::{Stream, TryStreamExt};
use hanse_runtime::supervisor::{Supervisor, TaskKind, chain};
use openraft::Snapshot;
use pb::snapshot_frame::Frame;
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};
use tonic::Status;

/// Where the snapshots of a group arrive.
pub struct Arrivals {
    spool: Spool,
    supervisor: Supervisor,
    place: Arc<Mutex<Place>>,
}

/// The transfer that is coming in or broke off, and the last one that was installed.
#[derive(Default)]
struct Place {
    half: Option<Half>,
    installed: Option<Installed>,
}

struct Installed {
    transfer: u64,
    reply: pb::SnapshotReply,
}

/// A snapshot that is here, and not yet checked as a whole.
struct Whole {
    transfer: u64,
    vote: Vote,
    meta: SnapshotMeta,
    incoming: Incoming,
    tail: pb::SnapshotTail,
}

/// Of what came in. If it is damaged the sender may go on with it, from the last chunk that was not; if it could not be kept it
/// may not.
fn unusable(error: ConsensusError) -> Status {
    let text = chain(&error);
    tracing::warn!(error = text, "a part of a snapshot cannot be used");
    match error {
        ConsensusError::Codec(_) => Status::data_loss(text),
        _ => Status::failed_precondition(text),
    }
}

fn stopped<E: std::fmt::Display>(error: E) -> Status {
    Status::unavailable(format!("Raft does not run here: {error}"))
}

fn gone() -> Status {
    Status::aborted("what came in before of this snapshot is gone; begin it anew")
}

impl Arrivals {
    /// Spooled there.
    pub fn new(spool: Spool, supervisor: Supervisor) -> Self {
        Self {
            spool,
            supervisor,
            place: Arc::default(),
        }
    }

    /// Where it is spooled.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Takes in what a connection brings of a snapshot after its head, and installs it when that was the last of it.
    pub async fn receive<S>(
        &self,
        group: &Group,
        head: pb::SnapshotHead,
        mut frames: S,
    ) -> Result<pb::SnapshotReply, Status>
    where
        S: Stream<Item = Result<pb::SnapshotFrame, Status>> + Unpin,
    {
        let (vote, meta) = read_head(head.clone())?;
        let mut place = Arc::clone(&self.place).lock_owned().await;
        let _under_way = self.spool.meters().receiving.begin();
        tracing::info!(group = %group.id, last = ?meta.last_log_id, from = head.from, "a snapshot arrives");
        // It stays in its place all the time: this call may end anywhere when the connection breaks.
        let incoming = Half::of(&self.spool, &head, &mut place.half).map_err(unusable)?;
        let incoming = incoming.ok_or_else(gone)?;
        let tail = loop {
            group.note_contact();
            let frame = frames.try_next().await?;
            let sum = frame.as_ref().map_or(0, |frame| frame.sum);
            match frame.and_then(|frame| frame.frame) {
                Some(Frame::Chunk(chunk)) => incoming.add(&chunk, sum).map_err(unusable)?,
                Some(Frame::Tail(tail)) => break tail,
                Some(Frame::Head(_)) | None => {
                    return Err(Status::data_loss("a snapshot ended before its tail; go on with it"));
                }
            }
        };
        let whole = Whole {
            transfer: head.transfer,
            vote,
            meta,
            incoming: place.half.take().ok_or_else(gone)?.into_incoming(),
            tail,
        };
        self.install_apart(group.raft.clone(), place, whole).await
    }

    /// Installs in a task of its own, which keeps the place: nobody learns how far the transfer is before it is over.
    async fn install_apart(
        &self,
        raft: GroupRaft,
        mut place: OwnedMutexGuard<Place>,
        whole: Whole,
    ) -> Result<pb::SnapshotReply, Status> {
        let (answer, wait) = oneshot::channel();
        let transfer = whole.transfer;
        let task = async move {
            let outcome = whole.install(&raft).await;
            if let Ok(reply) = &outcome {
                place.installed = Some(Installed {
                    transfer,
                    reply: *reply,
                });
            }
            drop(place);
            // A caller whose connection broke asks again.
            answer.send(outcome).ok();
            Ok(())
        };
        self.supervisor
            .spawn(TaskKind::Request, "installation of a snapshot", task);
        wait.await.map_err(stopped)?
    }

    /// How far a transfer is. Waits for an installation that is under way.
    pub async fn held(&self, transfer: u64) -> Result<pb::SnapshotHeldReply, Status> {
        // A call that still reads from a connection that is no more ends when that is noticed.
        let mut place = Arc::clone(&self.place).lock_owned().await;
        let installed = place.installed.as_ref().filter(|installed| installed.is(transfer));
        if let Some(Installed { reply, .. }) = installed {
            let installed = Some(*reply);
            return Ok(pb::SnapshotHeldReply { chunks: 0, installed });
        }
        let held = |chunks| pb::SnapshotHeldReply {
            chunks,
            installed: None,
        };
        if let Some(half) = place.half.as_ref() {
            return Ok(held(half.has(transfer)));
        }
        // This server may have been restarted. The file is read in any case: if the caller does not wait, for when it asks again.
        let spool = self.spool.clone();
        let search = move || {
            place.half = Half::found(&spool, transfer)?;
            Ok(place.half.as_ref().map_or(0, |half| half.has(transfer)))
        };
        let found = tokio::task::spawn_blocking(search).await.map_err(stopped)?;
        Ok(held(found.map_err(unusable)?))
    }
}

impl Installed {
    /// 0 is no transfer's number.
    fn is(&self, transfer: u64) -> bool {
        transfer != 0 && self.transfer == transfer
    }
}

impl Whole {
    async fn install(self, raft: &GroupRaft) -> Result<pb::SnapshotReply, Status> {
        let Self {
            vote,
            meta,
            incoming,
            tail,
            ..
        } = self;
        let finish = move || incoming.finish(&tail);
        let spooled = tokio::task::spawn_blocking(finish).await.map_err(stopped)?;
        let snapshot = Snapshot {
            meta,
            snapshot: SnapshotData::Spooled(spooled.map_err(unusable)?),
        };
        let reply = raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(pb::SnapshotReply {
            vote: Some(codec::vote_to_pb(&reply.vote)),
        })
    }
}
