//! What commands do to the state of a group. Pure: no clock, no randomness; the same commands give every member the
//! same content, however they are cut into batches.
//!
//! Applying has three steps. [`Machine::stage`] decides and gathers one batch; the host writes it (without a sync where
//! a log holds the commands already); [`Machine::publish`] makes it visible to readers and watches.
//! [`Machine::apply`] does all three.
//!
//! State in memory: per space an index of the versions of each key, without values, and the leases. Everything else is
//! read from the engine, and memory is rebuilt from it at the start.

mod alarm;
mod audit;
mod check;
pub mod export;
pub(crate) mod hash;
mod hub;
pub(crate) mod index;
pub mod level;
pub mod limits;
pub(crate) mod load;
mod prune;
mod read;
pub(crate) mod record;
mod replay;
pub(crate) mod restore;
pub(crate) mod space;
mod stage;
mod txn;
mod view;

pub use alarm::grows;
pub use audit::{MAX_EVENT_BYTES, MAX_EVENTS, check_audited};
pub use check::{check_delete, check_put, check_range, check_txn, growth, is_read_only};

use crate::engine::{Cf, EngineError, SharedEngine, WriteBatch};
use crate::error::StoreError;
use crate::keys::{self, GroupId, KeySpace};
use crate::machine::record::StateRecord;
use crate::machine::space::Space;
use crate::machine::stage::Stage;
use crate::meters::{self, MachineMeters, Sort};
use crate::pb::command::outcome::Answer;
use crate::pb::{Command, Outcome, command};
use crate::store::WatchItem;
use bytes::Bytes;
use hanse_runtime::meter::Family;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Most operations in one transaction, in any of its three lists; etcd's default.
pub const MAX_TXN_OPS: usize = 128;
/// Largest request in bytes; etcd's default.
pub const MAX_REQUEST_BYTES: usize = 1_572_864;
/// Longest time to live of a lease in seconds; etcd's.
pub const MAX_LEASE_TTL: i64 = 9_000_000_000;
/// Shortest time to live of a lease in seconds: what etcd's default timers give.
pub const MIN_LEASE_TTL: i64 = 2;

/// Why a command was not done.
#[derive(Debug)]
pub(crate) enum Fault {
    /// By its own fault: every member refuses it alike.
    Refused(StoreError),
    /// By the fault of this member, which must stop.
    Fatal(StoreError),
}

/// What readers and watches share with the machine.
pub(crate) struct Shared {
    pub(crate) group: GroupId,
    pub(crate) engine: SharedEngine,
    published: AtomicI64,
    spaces: RwLock<BTreeMap<KeySpace, Arc<Space>>>,
    /// Held by who reads the engine, and exclusively while a snapshot takes the content's place.
    pub(crate) gate: RwLock<()>,
    pub(crate) meters: MachineMeters,
}

impl Shared {
    /// Revision that readers see.
    pub(crate) fn revision(&self) -> i64 {
        self.published.load(Ordering::Acquire)
    }

    /// A space, which comes into being by being named.
    pub(crate) fn space(&self, name: &KeySpace) -> Arc<Space> {
        if let Some(space) = self.spaces.read().get(name) {
            return space.clone();
        }
        let mut spaces = self.spaces.write();
        let fresh = || Arc::new(Space::new(name.clone(), Space::fresh_record()));
        spaces.entry(name.clone()).or_insert_with(fresh).clone()
    }

    pub(crate) fn all_spaces(&self) -> Vec<Arc<Space>> {
        self.spaces.read().values().cloned().collect()
    }
}

/// The state machine of one group.
pub struct Machine {
    shared: Arc<Shared>,
    stage: Mutex<Stage>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("group", &self.shared.group)
            .field("revision", &self.revision())
            .finish()
    }
}

/// What was decided but is not visible yet.
#[must_use = "what is staged must be written and published, in order"]
#[derive(Debug)]
pub struct Staged {
    /// To be written to the machine's engine before it is published.
    pub batch: WriteBatch,
    outcomes: Vec<Outcome>,
    commits: Vec<(Arc<Space>, Arc<hub::Commit>)>,
    floors: Vec<(Arc<Space>, i64)>,
    dropped: Vec<Arc<Space>>,
    closed: Vec<Arc<Space>>,
    revision: i64,
}

impl Machine {
    /// Rebuilds the state of a group from an engine.
    pub fn open(group: GroupId, engine: SharedEngine) -> Result<Self, StoreError> {
        let (state, spaces) = load::load(group, engine.as_ref())?;
        let mut stage = Stage::new(engine.clone(), state, level::load(group, engine.as_ref())?);
        stage.load_deadlines(&spaces);
        let shared = Arc::new(Shared {
            group,
            engine,
            published: AtomicI64::new(state.revision),
            spaces: RwLock::new(spaces),
            gate: RwLock::default(),
            meters: MachineMeters::default(),
        });
        Ok(Self {
            shared,
            stage: Mutex::new(stage),
        })
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.shared.group
    }

    /// Revision that readers see.
    pub fn revision(&self) -> i64 {
        self.shared.revision()
    }

    /// The marker that the last applied batch was written with.
    pub fn marker(&self) -> Result<Option<Bytes>, StoreError> {
        Ok(self
            .shared
            .engine
            .get(Cf::Meta, &keys::meta_key(self.shared.group, keys::META_MARKER))?)
    }

    /// Stages commands, writes the batch without a sync, and publishes it. The marker is written in the same batch, so
    /// that it says exactly what is applied. An error means that this member must stop.
    pub fn apply(&self, commands: Vec<Command>, marker: Option<Bytes>) -> Result<Vec<Outcome>, StoreError> {
        let MachineMeters {
            stopwatch,
            commit,
            apply,
            ..
        } = &self.shared.meters;
        stopwatch.time(apply, || {
            let mut staged = self.stage(commands, marker)?;
            let batch = std::mem::take(&mut staged.batch);
            if let Err(error) = stopwatch.time(commit, || self.shared.engine.write(batch, false)) {
                self.fail(error.clone().into());
                return Err(error.into());
            }
            Ok(self.publish(staged))
        })
    }

    /// Decides what commands do. Staged batches must be written and published in the order in which they were staged.
    pub fn stage(&self, commands: Vec<Command>, marker: Option<Bytes>) -> Result<Staged, StoreError> {
        let mut stage = self.stage.lock();
        if let Some(error) = &stage.failed {
            return Err(error.clone());
        }
        let mut outcomes = Vec::with_capacity(commands.len());
        for command in commands {
            let sort = Sort::of(&command);
            let answer = match stage.run(&self.shared, command) {
                Ok(answer) => answer,
                Err(Fault::Refused(error)) => Answer::Refusal(error.to_refusal()),
                Err(Fault::Fatal(error)) => {
                    stage.failed = Some(error.clone());
                    return Err(error);
                }
            };
            let outcome = Outcome { answer: Some(answer) };
            self.shared.meters.applied(sort, &outcome);
            outcomes.push(outcome);
        }
        let state = StateRecord {
            revision: stage.revision,
            last_at: stage.last_at,
        };
        let group = self.shared.group;
        stage
            .batch
            .put(Cf::Meta, keys::meta_key(group, keys::META_STATE), state.encode());
        if let Some(marker) = marker {
            stage
                .batch
                .put(Cf::Meta, keys::meta_key(group, keys::META_MARKER), marker);
        }
        Ok(Staged {
            batch: std::mem::take(&mut stage.batch),
            outcomes,
            commits: std::mem::take(&mut stage.commits),
            floors: std::mem::take(&mut stage.floors),
            dropped: std::mem::take(&mut stage.dropped),
            closed: std::mem::take(&mut stage.closed),
            revision: stage.revision,
        })
    }

    /// Makes a written batch visible and hands its changes to the watches.
    pub fn publish(&self, staged: Staged) -> Vec<Outcome> {
        let published = &self.shared.published;
        for (space, commit) in &staged.commits {
            space
                .hub
                .dispatch(commit, || published.store(commit.revision, Ordering::Release));
        }
        for (space, floor) in staged.floors {
            space.publish_floor(floor);
        }
        for space in staged.dropped {
            space.change_index(|index| *index = index::Index::default());
            space.hub.close(&WatchItem::Compacted {
                revision: space.floor(),
            });
        }
        for space in staged.closed {
            space.hub.close(&WatchItem::Compacted {
                revision: space.floor(),
            });
            space.open_if_restored();
        }
        let mut stage = self.stage.lock();
        for (_, commit) in &staged.commits {
            stage.pending.forget(commit.revision);
        }
        published.fetch_max(staged.revision, Ordering::AcqRel);
        staged.outcomes
    }

    /// Takes no more commands: a batch could not be written, so memory and engine differ.
    pub fn fail(&self, error: StoreError) {
        self.stage.lock().failed.get_or_insert(error);
    }

    /// Puts other content in the place of this group's: `install` deletes and writes the engine's records of the group
    /// (see [`keys::META_MACHINE`] and the families `key`, `rev` and `lease`), then memory is rebuilt from them. Reads
    /// wait meanwhile, and watches go on from the new content.
    pub fn replace(&self, install: &mut dyn FnMut() -> Result<(), EngineError>) -> Result<(), StoreError> {
        let mut stage = self.stage.lock();
        let gate = self.shared.gate.write();
        let loaded = install().map_err(StoreError::from).and_then(|()| {
            let engine = self.shared.engine.as_ref();
            let level = level::load(self.shared.group, engine)?;
            Ok((load::load(self.shared.group, engine)?, level))
        });
        let ((state, loaded), level) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                stage.failed = Some(error.clone());
                return Err(error);
            }
        };
        *stage = Stage::new(self.shared.engine.clone(), state, level);
        stage.load_deadlines(&loaded);
        let mut loaded_names = loaded.keys().cloned().collect::<Vec<_>>();
        loaded_names.sort();
        for (name, fresh) in loaded {
            self.shared.space(&name).take_content(&fresh);
        }
        for space in self.shared.all_spaces() {
            if loaded_names.binary_search(&space.name).is_err() {
                space.take_content(&Space::new(space.name.clone(), Space::fresh_record()));
            }
        }
        self.shared.published.store(state.revision, Ordering::Release);
        for space in self.shared.all_spaces() {
            space.hub.replay_all();
        }
        drop(gate);
        Ok(())
    }

    /// When the next lease is due, in milliseconds of wall-clock time as commands have it; none without leases.
    pub fn next_deadline(&self) -> Option<i64> {
        self.stage.lock().deadlines.first().map(|(deadline, ..)| *deadline)
    }

    /// Tells idle watches that asked for it how far the store is. To be called every few seconds.
    pub fn tick(&self) {
        for space in self.shared.all_spaces() {
            space.hub.tick(&self.shared);
        }
    }

    /// Ends every watch, because this server stops: their readers go on elsewhere.
    pub fn close_watches(&self) {
        for space in self.shared.all_spaces() {
            space.hub.close(&WatchItem::Lagged);
        }
    }

    /// What it counts of itself, and how much its spaces hold.
    pub fn families(&self) -> Vec<Family> {
        let spaces = self.shared.all_spaces();
        let usages = spaces
            .iter()
            .map(|space| (space.name.tenant().to_owned(), space.usage()));
        let mut families = self.shared.meters.families();
        families.extend(meters::of_spaces(usages.collect()));
        families.extend(hub::families(spaces.iter().map(|space| space.hub.counts()).sum()));
        families
    }

    /// A command of the present format.
    pub fn command(at_millis: i64, space: &KeySpace, epoch: Option<u64>, op: command::command::Op) -> Command {
        let tenant = space.tenant().to_owned();
        Command {
            version: level::of(&op),
            at_millis,
            tenant,
            epoch,
            op: Some(op),
        }
    }
}
