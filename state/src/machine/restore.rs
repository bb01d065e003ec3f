//! A tenant's key space is put back from a backup, step by step through the log, while the group serves everybody else.
//!
//! From the first step to the last the space is closed: nobody reads, writes or watches it, so nobody takes a part for the
//! whole. Its watches end, and every revision from before is gone when it opens, so whoever looked at it lists anew. Keys come
//! back with their values, versions and leases, but under new revisions: what a key has had before never comes again.

use crate::engine::Cf;
use crate::error::StoreError;
use crate::keys::{self, KeySpace};
use crate::machine::hub::Commit;
use crate::machine::index::{Index, Version};
use crate::machine::record::{self, LeaseRecord};
use crate::machine::space::{Lease, Pruning, Space};
use crate::machine::stage::Stage;
use crate::machine::{Fault, Machine};
use crate::pb::command::outcome::Answer;
use crate::pb::command::restore_space::Part;
use crate::pb::command::{RestoreEnd, RestoreRows, RestoreSpace, command::Op};
use crate::store::Access;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The last restore of a space, as its record has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Restore {
    pub(crate) id: u64,
    /// The last step that was done.
    pub(crate) step: u64,
    /// What it was answered.
    pub(crate) revision: i64,
    done: bool,
}

impl Restore {
    /// One that goes on with the step after `step`.
    pub(crate) const fn under_way(id: u64, step: u64, revision: i64) -> Self {
        let done = false;
        Self {
            id,
            step,
            revision,
            done,
        }
    }

    pub(crate) const fn is_done(&self) -> bool {
        self.done
    }

    pub(crate) fn numbers(self) -> [i64; 4] {
        let Self {
            id,
            step,
            revision,
            done,
        } = self;
        [id.cast_signed(), step.cast_signed(), revision, i64::from(done)]
    }

    pub(crate) const fn of([id, step, revision, done]: [i64; 4]) -> Self {
        Self {
            id: id.cast_unsigned(),
            step: step.cast_unsigned(),
            revision,
            done: done != 0,
        }
    }
}

/// Whether a step is the last of its restore.
pub(crate) fn ends(restore: &RestoreSpace) -> bool {
    matches!(restore.part, Some(Part::End(_)))
}

/// Refuses what a space that is being restored does not take.
pub(crate) fn check(space: &Space, op: &Op) -> Result<(), StoreError> {
    match op {
        Op::Txn(_)
        | Op::AuditedTxn(_)
        | Op::Compact(_)
        | Op::LeaseGrant(_)
        | Op::LeaseRevoke(_)
        | Op::LeaseKeepAlive(_) => match space.is_restored_now() {
            true => Err(space.closed()),
            false => Ok(()),
        },
        Op::ExpireLeases(_)
        | Op::ExtendLeases(_)
        | Op::SetFence(_)
        | Op::DropSpace(_)
        | Op::SetAlarm(_)
        | Op::SetLimits(_)
        | Op::SetLevel(_)
        | Op::RestoreSpace(_) => Ok(()),
    }
}

impl Space {
    /// Whether a restore is under way, after all that was staged.
    pub(crate) fn is_restored_now(&self) -> bool {
        self.restore.lock().is_some_and(|restore| !restore.done)
    }

    pub(crate) fn closed(&self) -> StoreError {
        StoreError::Restoring(self.name.tenant().to_owned())
    }

    /// Refuses readers while the space is closed. The number is for [`Space::still_open`].
    pub(crate) fn opened(&self) -> Result<u64, StoreError> {
        let mark = self.doors.load(Ordering::Acquire);
        if mark % 2 == 1 { Err(self.closed()) } else { Ok(mark) }
    }

    /// Refuses what was read while the space was closed, if only for a part of the time.
    pub(crate) fn still_open(&self, mark: u64) -> Result<(), StoreError> {
        match self.doors.load(Ordering::Acquire) == mark {
            true => Ok(()),
            false => Err(self.closed()),
        }
    }

    /// Lets readers in again, unless the next restore has begun already.
    pub(crate) fn open_if_restored(&self) {
        let restore = self.restore.lock();
        if restore.is_none_or(|restore| restore.done) && self.doors.load(Ordering::Acquire) % 2 == 1 {
            self.doors.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Takes over how far the restore of a space that was loaded anew is.
    pub(crate) fn take_restore(&self, fresh: &Self) {
        let mut restore = self.restore.lock();
        *restore = *fresh.restore.lock();
        let closed = self.doors.fetch_or(1, Ordering::AcqRel) | 1;
        if restore.is_none_or(|restore| restore.done) {
            self.doors.store(closed + 1, Ordering::Release);
        }
    }
}

fn refused(why: &str) -> Fault {
    Fault::Refused(StoreError::RestoreRefused(why.to_owned()))
}

impl Stage {
    /// Does a step. The answer is the revision that its keys have.
    pub(crate) fn restore(&mut self, space: &Arc<Space>, command: RestoreSpace) -> Result<Answer, Fault> {
        if space.name == KeySpace::Registry {
            return Err(refused("the registry is restored with its whole system"));
        }
        let RestoreSpace { id, step, part } = command;
        let before = *space.restore.lock();
        if let Some(known) = before.filter(|known| known.id == id && known.step == step) {
            // Its answer got lost on the way.
            return Ok(Answer::Revision(known.revision));
        }
        let follows =
            before.is_some_and(|known| known.id == id && !known.done && known.step.checked_add(1) == Some(step));
        let other = before.is_none_or(|known| known.id != id);
        let (revision, done) = match part {
            Some(Part::Begin(_)) if step == 0 && other => {
                *space.restore.lock() = Some(Restore::under_way(id, step, self.revision));
                self.close(space);
                (self.revision, false)
            }
            Some(Part::Rows(rows)) if follows => (self.add(space, rows)?, false),
            Some(Part::End(end)) if follows => (self.open(space, &end)?, true),
            Some(_) | None => return Err(refused("another one has begun, or a step is missing")),
        };
        *space.restore.lock() = Some(Restore {
            id,
            step,
            revision,
            done,
        });
        self.put_record(space);
        Ok(Answer::Revision(revision))
    }

    /// Begins: readers first, then what they read.
    fn close(&mut self, space: &Arc<Space>) {
        space.doors.fetch_or(1, Ordering::AcqRel);
        let floor = self.revision.max(space.staged_floor());
        space.stage_floor(floor);
        // At once, as nobody reads any more: a watch must not miss the events that are about to go.
        space.publish_floor(floor);
        // And again after what earlier commands of the same batch publish.
        self.floors.push((Arc::clone(space), floor));
        let end = keys::prefix_end(&space.prefix);
        for cf in [Cf::Key, Cf::Rev] {
            self.batch.delete_range(cf, space.prefix.clone(), end.clone());
        }
        space.change_index(|index| *index = Index::default());
        for (id, lease) in &mut *space.leases.lock() {
            self.deadlines.remove(&(lease.record.deadline, space.name.clone(), *id));
            lease.keys.clear();
        }
        *space.pruning.lock() = Pruning {
            done: floor,
            running: None,
        };
        self.closed.push(Arc::clone(space));
    }

    fn add(&mut self, space: &Arc<Space>, rows: RestoreRows) -> Result<i64, Fault> {
        let revision = self.revision + 1;
        check_rows(space, &rows, revision).map_err(refused)?;
        for lease in rows.leases {
            let record = LeaseRecord {
                ttl: lease.ttl_seconds,
                deadline: self.deadline(lease.ttl_seconds),
            };
            let keys = BTreeSet::new();
            space
                .leases
                .lock()
                .entry(lease.id)
                .or_insert(Lease { record, keys })
                .record = record;
            self.batch
                .put(Cf::Lease, keys::lease_key(&space.prefix, lease.id), record.encode());
        }
        let mut versions = Vec::with_capacity(rows.keys.len());
        for kv in rows.keys {
            let version = Version {
                modified: revision,
                created: kv.create_revision,
                version: kv.version,
                lease: kv.lease,
                size: u32::try_from(kv.value.len()).unwrap_or(u32::MAX),
            };
            let row = record::encode_version(&version, &kv.value);
            self.batch.put(Cf::Key, space.version_key(&kv.key, revision), row);
            self.pending.insert(revision, kv.key.clone(), kv.value);
            space.attach(&kv.key, None, &version);
            versions.push((kv.key, version));
        }
        space.change_index(|index| {
            for (key, version) in versions {
                index.push(&key, version);
            }
        });
        self.reach(space, revision);
        Ok(revision)
    }

    fn open(&mut self, space: &Arc<Space>, end: &RestoreEnd) -> Result<i64, Fault> {
        if space.live().keys != end.keys {
            return Err(refused("the space does not hold as many keys as it should"));
        }
        // Two more: whoever has seen the present revision watches from the next, which must be gone as well.
        let revision = self.revision + 2;
        space.stage_floor(revision);
        self.floors.push((Arc::clone(space), revision));
        let leases: Vec<_> = {
            let leases = space.leases.lock();
            leases.iter().map(|(id, lease)| (*id, lease.record.ttl)).collect()
        };
        for (id, ttl) in leases {
            let deadline = self.deadline(ttl);
            let record = LeaseRecord { ttl, deadline };
            if let Some(lease) = space.leases.lock().get_mut(&id) {
                lease.record = record;
            }
            self.put_lease(space, id, record);
        }
        self.closed.push(Arc::clone(space));
        self.reach(space, revision);
        Ok(revision)
    }

    /// The group's revision grows, without an event.
    fn reach(&mut self, space: &Arc<Space>, revision: i64) {
        self.revision = revision;
        let changes = Vec::new();
        self.commits
            .push((Arc::clone(space), Arc::new(Commit { revision, changes })));
    }
}

/// What is wrong with rows: they must be such as a space could have held.
fn check_rows(space: &Space, rows: &RestoreRows, revision: i64) -> Result<(), &'static str> {
    let index = space.index.read();
    let leases = space.leases.lock();
    if rows.leases.iter().any(|lease| lease.id == 0 || lease.ttl_seconds <= 0) {
        return Err("a lease has no id or no time to live");
    }
    let known = |id: i64| id == 0 || leases.contains_key(&id) || rows.leases.iter().any(|lease| lease.id == id);
    let mut last: &[u8] = &[];
    for kv in &rows.keys {
        if *kv.key <= *last || index.latest(&kv.key).is_some() {
            return Err("a key is empty, out of order, or there already");
        }
        if kv.version <= 0 || !(1..=revision).contains(&kv.create_revision) || !known(kv.lease) {
            return Err("a key was never written so, or its lease is missing");
        }
        last = &kv.key;
    }
    Ok(())
}

impl Machine {
    /// Refuses while a restore keeps the space closed.
    pub fn check_open(&self, access: &Access) -> Result<(), StoreError> {
        self.space_of(access)?.opened().map(|_| ())
    }
}
