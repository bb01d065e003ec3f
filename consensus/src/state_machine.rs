//! The store's machine as Raft's state machine: whole batches, applied without a sync, answered when readable.
//!
//! How far a batch brings the machine is written with the batch itself. A second sync per commit would buy nothing: the
//! entries are durable on a quorum, and the write-ahead log recovers a prefix, so the state is never ahead of the log.

use crate::codec::{Applied, decode};
use crate::error::ConsensusError;
use crate::meters::SnapshotMeters;
use crate::pending::Pending;
use crate::snapshot::{Live, SnapshotData};
use crate::spool::{Spool, Spooled};
use crate::types::{Answer, Entry, GroupId, LogId, NodeId, ProposalId, SnapshotMeta, StoredMembership, TypeConfig};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use hanse_state::StoreError;
use hanse_state::engine::{Cf, SharedEngine, WriteBatch};
use hanse_state::keys::meta_key;
use hanse_state::machine::Machine;
use hanse_state::pb::Command;
use openraft::EntryPayload;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use tokio::sync::watch;

/// Most entries in one batch.
const MAX_BATCH: usize = 1024;
/// Record that says: older log entries may be gone, a member without them needs a snapshot.
pub(crate) const SNAPSHOT: &[u8] = b"raft/snapshot";

type RaftSnapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotData>;

fn io_error<E: std::error::Error + Send + Sync + 'static>(error: E) -> io::Error {
    io::Error::other(error)
}

/// The state machine of one group.
pub struct StateMachine {
    group: GroupId,
    machine: Arc<Machine>,
    engine: SharedEngine,
    pending: Arc<Pending>,
    spool: Spool,
    applied: Applied,
    roll: watch::Sender<Arc<Roll>>,
}

/// Who the members are and who was one, by what is applied here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roll {
    /// The newest applied membership.
    pub membership: StoredMembership,
    /// Ids that are used up.
    pub removed: BTreeSet<NodeId>,
}

impl StateMachine {
    /// Takes over where the stored state is, after finishing a snapshot installation that was cut short.
    pub fn open(
        group: GroupId,
        machine: Arc<Machine>,
        engine: SharedEngine,
        pending: Arc<Pending>,
        spool: Spool,
    ) -> Result<Self, ConsensusError> {
        let mut this = Self {
            group,
            machine,
            engine,
            pending,
            spool,
            applied: Applied::default(),
            roll: watch::Sender::default(),
        };
        if let Some(spooled) = this.spool.unfinished()? {
            tracing::warn!(%group, "installing a snapshot again, because the last try was cut short");
            replace(&this.machine, &this.spool, spooled, &this.engine)?;
        }
        this.reload()?;
        Ok(this)
    }

    fn reload(&mut self) -> Result<(), ConsensusError> {
        self.applied = Applied::decode(self.machine.marker()?)?;
        self.call_roll();
        if let Some(last) = &self.applied.last {
            self.pending.applied(last.leader_id.term, last.index);
        }
        Ok(())
    }

    /// Follows who the members are.
    pub fn roll(&self) -> watch::Receiver<Arc<Roll>> {
        self.roll.subscribe()
    }

    fn call_roll(&self) {
        let Applied {
            membership, removed, ..
        } = self.applied.clone();
        self.roll.send_replace(Arc::new(Roll { membership, removed }));
    }

    /// Applies entries in one batch and answers them.
    fn apply_batch(&mut self, batch: Vec<(Entry, Option<ApplyResponder<TypeConfig>>)>) -> Result<(), ConsensusError> {
        let mut commands: Vec<Command> = Vec::with_capacity(batch.len());
        let mut answers: Vec<(Option<ProposalId>, Option<ApplyResponder<TypeConfig>>)> =
            Vec::with_capacity(batch.len());
        let (mut applied, mut changed) = (self.applied.clone(), false);
        for (entry, responder) in batch {
            applied.last = Some(entry.log_id);
            let id = match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(proposal) => {
                    commands.push(decode::<Command>("command", proposal.command)?);
                    Some(proposal.id)
                }
                EntryPayload::Membership(membership) => {
                    applied.change_membership(StoredMembership::new(Some(entry.log_id), membership));
                    changed = true;
                    None
                }
            };
            answers.push((id, responder));
        }
        let mut outcomes = self.machine.apply(commands, Some(applied.encode()))?.into_iter();
        self.applied = applied;
        if changed {
            self.call_roll();
        }
        for (id, responder) in answers {
            // Whoever waits on this member gets the outcome itself; a forwarded write's goes out through Raft.
            let outcome = match id {
                Some(id) => outcomes.next().and_then(|outcome| self.pending.resolve(id, outcome)),
                None => None,
            };
            if let Some(responder) = responder {
                responder.send(Answer(outcome));
            }
        }
        if let Some(LogId { leader_id, index }) = &self.applied.last {
            self.pending.applied(leader_id.term, *index);
        }
        Ok(())
    }

    fn may_need_snapshots(&self) -> Result<bool, ConsensusError> {
        let record = self
            .engine
            .get(Cf::Meta, &meta_key(self.group, SNAPSHOT))
            .map_err(StoreError::from)?;
        Ok(record.is_some())
    }

    fn note_snapshot(&self) -> Result<(), ConsensusError> {
        let mut batch = WriteBatch::new();
        batch.put(Cf::Meta, meta_key(self.group, SNAPSHOT), Bytes::from_static(b"1"));
        // Written before any purge that it allows; the order of writes is kept, so no sync is needed.
        Ok(self.engine.write(batch, false).map_err(StoreError::from)?)
    }
}

/// Puts the content of a snapshot in the machine's place.
fn replace(machine: &Machine, spool: &Spool, spooled: Spooled, engine: &SharedEngine) -> Result<(), ConsensusError> {
    let mut spooled = Some(spooled);
    let mut fault = None;
    let result = machine.replace(&mut || {
        let Some(spooled) = spooled.take() else { return Ok(()) };
        spool.install(spooled, engine).map_err(|error| {
            let text = hanse_runtime::supervisor::chain(&error);
            fault = Some(error);
            hanse_state::engine::EngineError::Write(text)
        })
    });
    match fault {
        Some(fault) => Err(fault),
        None => Ok(result?),
    }
}

async fn live_snapshot(
    engine: &SharedEngine,
    group: GroupId,
    meters: &Arc<SnapshotMeters>,
) -> Result<RaftSnapshot, io::Error> {
    let (applied, live) = Live::take(Arc::clone(engine), group, Arc::clone(meters))
        .await
        .map_err(io_error)?;
    let meta = SnapshotMeta {
        last_log_id: applied.last,
        last_membership: applied.membership,
    };
    Ok(Snapshot {
        meta,
        snapshot: SnapshotData::Live(live),
    })
}

/// Builds snapshots. The state on disk is its own snapshot, so there is nothing to write but that one may be asked for.
pub struct SnapshotBuilder {
    engine: SharedEngine,
    group: GroupId,
    meters: Arc<SnapshotMeters>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
        live_snapshot(&self.engine, self.group, &self.meters).await
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let mut batches = entries.ready_chunks(MAX_BATCH);
        while let Some(batch) = batches.next().await {
            let batch = batch.into_iter().collect::<Result<Vec<_>, _>>()?;
            self.apply_batch(batch).map_err(io_error)?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        if let Err(error) = self.note_snapshot() {
            // Without the record this member only offers no snapshot; the failed write stops it elsewhere.
            tracing::error!(group = %self.group, %error, "a snapshot could not be noted");
        }
        SnapshotBuilder {
            engine: Arc::clone(&self.engine),
            group: self.group,
            meters: Arc::clone(self.spool.meters()),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let spooled = match snapshot {
            SnapshotData::Spooled(spooled) => spooled,
            SnapshotData::Live(live) => live.collect(&self.spool).await.map_err(io_error)?,
        };
        let (machine, spool, engine) = (Arc::clone(&self.machine), self.spool.clone(), Arc::clone(&self.engine));
        let work = move || replace(&machine, &spool, spooled, &engine);
        tokio::task::spawn_blocking(work)
            .await
            .map_err(io_error)?
            .map_err(io_error)?;
        self.note_snapshot().map_err(io_error)?;
        self.reload().map_err(io_error)?;
        if self.applied.last != meta.last_log_id {
            let fault = format!("it says {:?}, its head said {:?}", self.applied.last, meta.last_log_id);
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a snapshot contradicts itself: {fault}"),
            ));
        }
        if let Some(last) = &self.applied.last {
            self.pending.installed(last.leader_id.term, last.index);
        }
        tracing::info!(group = %self.group, last = ?self.applied.last, "installed a snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        if !self.may_need_snapshots().map_err(io_error)? {
            return Ok(None);
        }
        live_snapshot(&self.engine, self.group, self.spool.meters())
            .await
            .map(Some)
    }
}
