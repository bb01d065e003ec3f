//! One command after the other against the state: what each changes is gathered into one batch.

use crate::engine::{Cf, SharedEngine, WriteBatch};
use crate::error::StoreError;
use crate::keys::{self, KeySpace};
use crate::machine::hub::Commit;
use crate::machine::level::{self, FIRST_LEVEL, LEVEL};
use crate::machine::record::{LeaseRecord, LevelRecord, StateRecord};
use crate::machine::space::{DROPPED, Lease, Space};
use crate::machine::txn::Changes;
use crate::machine::view::{Pending, header};
use crate::machine::{Fault, MAX_LEASE_TTL, MIN_LEASE_TTL, Shared, alarm, audit, check, restore};
use crate::pb::command::{self, command::Op, outcome::Answer};
use crate::pb::{self, Command};
use hanse_api::audit::Head;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Leases that one command expires at most, whatever it says.
const MAX_EXPIRED: u32 = 1000;

/// The state after all that was staged, and what publishing it takes.
pub(crate) struct Stage {
    pub(crate) engine: SharedEngine,
    pub(crate) revision: i64,
    pub(crate) last_at: i64,
    pub(crate) level: u32,
    /// Where the audit's chain ends; none until it was read.
    pub(crate) chain: Option<Head>,
    pub(crate) pending: Pending,
    pub(crate) batch: WriteBatch,
    pub(crate) commits: Vec<(Arc<Space>, Arc<Commit>)>,
    /// Spaces whose floor or content is to be published.
    pub(crate) floors: Vec<(Arc<Space>, i64)>,
    pub(crate) dropped: Vec<Arc<Space>>,
    /// Spaces whose watches end: a restore of them began or ended.
    pub(crate) closed: Vec<Arc<Space>>,
    /// Leases by deadline.
    pub(crate) deadlines: BTreeSet<(i64, KeySpace, i64)>,
    /// Why no more commands are taken.
    pub(crate) failed: Option<StoreError>,
}

impl Stage {
    pub(crate) fn new(engine: SharedEngine, state: StateRecord, level: u32) -> Self {
        let StateRecord { revision, last_at } = state;
        Self {
            engine,
            revision,
            last_at,
            level,
            chain: None,
            pending: Pending::default(),
            batch: WriteBatch::new(),
            commits: Vec::new(),
            floors: Vec::new(),
            dropped: Vec::new(),
            closed: Vec::new(),
            deadlines: BTreeSet::new(),
            failed: None,
        }
    }

    /// Does one command.
    pub(crate) fn run(&mut self, shared: &Shared, command: Command) -> Result<Answer, Fault> {
        if !(FIRST_LEVEL..=LEVEL).contains(&command.version) {
            return Err(Fault::Fatal(StoreError::Corrupt(format!(
                "a command of format {} while this server knows {LEVEL}: it is older than its peers",
                command.version
            ))));
        }
        self.last_at = self.last_at.max(command.at_millis);
        let unknown = || {
            Fault::Fatal(StoreError::Corrupt(
                "a command that this server does not know".to_owned(),
            ))
        };
        let op = command.op.ok_or_else(unknown)?;
        match op {
            Op::ExpireLeases(expire) => return self.expire(shared, expire.limit),
            Op::ExtendLeases(_) => return Ok(self.extend(shared)),
            Op::SetLevel(set) => return self.raise_level(shared, set.level),
            _ => {}
        }
        level::check(self.level, &op).map_err(Fault::Refused)?;
        let name = KeySpace::from_tenant(&command.tenant).map_err(Fault::Refused)?;
        if name.group() != shared.group {
            return Err(Fault::Refused(StoreError::WrongGroup {
                asked: name.group(),
                here: shared.group,
            }));
        }
        let space = shared.space(&name);
        if let Op::DropSpace(_) = op {
            return self.drop_space(&space);
        }
        space.check_epoch(command.epoch).map_err(Fault::Refused)?;
        restore::check(&space, &op).map_err(Fault::Refused)?;
        alarm::check(&space, &op).map_err(Fault::Refused)?;
        match op {
            Op::Txn(txn) => {
                check::check_txn(&txn).map_err(Fault::Refused)?;
                Ok(Answer::Txn(Changes::new(self, space).run(txn, &[])?))
            }
            Op::AuditedTxn(audited) => {
                audit::check(&space.name, &audited).map_err(Fault::Refused)?;
                let txn = audited.txn.unwrap_or_default();
                Ok(Answer::Txn(Changes::new(self, space).run(txn, &audited.events)?))
            }
            Op::Compact(compact) => self.compact(&space, compact.revision),
            Op::LeaseGrant(grant) => self.grant(&space, &grant),
            Op::LeaseRevoke(revoke) => {
                self.revoke(&space, revoke.id)?;
                Ok(Answer::Revision(self.revision))
            }
            Op::LeaseKeepAlive(keep) => Ok(self.keep_alive(&space, keep.id)),
            Op::SetFence(fence) => self.set_fence(&space, fence.epoch),
            Op::SetAlarm(change) => {
                if alarm::set(&space, &change).map_err(Fault::Refused)? {
                    self.put_record(&space);
                }
                Ok(Answer::Revision(self.revision))
            }
            Op::RestoreSpace(command) => self.restore(&space, command),
            Op::SetLimits(set) => {
                if space.set_limits(&set) {
                    self.put_record(&space);
                }
                Ok(Answer::Revision(self.revision))
            }
            Op::DropSpace(_) | Op::ExpireLeases(_) | Op::ExtendLeases(_) | Op::SetLevel(_) => Err(unknown()),
        }
    }

    fn raise_level(&mut self, shared: &Shared, level: u32) -> Result<Answer, Fault> {
        if level > LEVEL {
            let (found, known) = (level, LEVEL);
            return Err(Fault::Fatal(StoreError::TooNew { found, known }));
        }
        if level > self.level {
            self.level = level;
            let key = keys::meta_key(shared.group, keys::META_LEVEL);
            self.batch.put(Cf::Meta, key, LevelRecord { level }.encode());
        }
        Ok(Answer::Revision(self.revision))
    }

    pub(crate) fn put_record(&mut self, space: &Space) {
        self.batch
            .put(Cf::Meta, keys::space_meta_key(&space.name), space.record().encode());
    }

    fn compact(&mut self, space: &Arc<Space>, revision: i64) -> Result<Answer, Fault> {
        let floor = space.staged_floor();
        if revision <= floor {
            return Err(Fault::Refused(StoreError::Compacted { floor }));
        }
        if revision > self.revision {
            return Err(Fault::Refused(StoreError::FutureRevision { current: self.revision }));
        }
        space.stage_floor(revision);
        self.put_record(space);
        self.floors.push((space.clone(), revision));
        Ok(Answer::Revision(self.revision))
    }

    fn set_fence(&mut self, space: &Space, epoch: u64) -> Result<Answer, Fault> {
        if epoch == DROPPED {
            let tenant = space.name.tenant().to_owned();
            return Err(Fault::Refused(StoreError::Fenced {
                tenant,
                epoch,
                fence: space.fence(),
            }));
        }
        space.raise_fence(epoch);
        self.put_record(space);
        Ok(Answer::Revision(self.revision))
    }

    fn drop_space(&mut self, space: &Arc<Space>) -> Result<Answer, Fault> {
        if space.name == KeySpace::Registry {
            return Err(Fault::Refused(StoreError::InvalidTenant(String::new())));
        }
        space.raise_fence(DROPPED);
        *space.restore.lock() = None;
        space.stage_floor(self.revision);
        self.put_record(space);
        let end = keys::prefix_end(&space.prefix);
        for cf in [Cf::Key, Cf::Rev, Cf::Lease] {
            self.batch.delete_range(cf, space.prefix.clone(), end.clone());
        }
        for (id, lease) in std::mem::take(&mut *space.leases.lock()) {
            self.deadlines.remove(&(lease.record.deadline, space.name.clone(), id));
        }
        self.floors.push((space.clone(), self.revision));
        self.dropped.push(space.clone());
        Ok(Answer::Revision(self.revision))
    }

    pub(crate) fn deadline(&self, ttl: i64) -> i64 {
        self.last_at.saturating_add(ttl.saturating_mul(1000))
    }

    pub(crate) fn put_lease(&mut self, space: &Space, id: i64, record: LeaseRecord) {
        self.deadlines.insert((record.deadline, space.name.clone(), id));
        self.batch
            .put(Cf::Lease, keys::lease_key(&space.prefix, id), record.encode());
    }

    fn grant(&mut self, space: &Space, grant: &command::LeaseGrant) -> Result<Answer, Fault> {
        if grant.ttl_seconds > MAX_LEASE_TTL {
            return Err(Fault::Refused(StoreError::LeaseTtlTooLarge));
        }
        space.check_lease_limit().map_err(Fault::Refused)?;
        if grant.id == 0 {
            return Err(Fault::Refused(StoreError::LeaseNotFound));
        }
        let ttl = grant.ttl_seconds.max(MIN_LEASE_TTL);
        let record = LeaseRecord {
            ttl,
            deadline: self.deadline(ttl),
        };
        {
            let mut leases = space.leases.lock();
            if leases.contains_key(&grant.id) {
                return Err(Fault::Refused(StoreError::LeaseExists));
            }
            leases.insert(
                grant.id,
                Lease {
                    record,
                    keys: BTreeSet::new(),
                },
            );
        }
        self.put_lease(space, grant.id, record);
        let header = header(self.revision);
        Ok(Answer::LeaseGrant(pb::LeaseGrantResponse {
            header,
            id: grant.id,
            ttl,
            error: String::new(),
        }))
    }

    fn revoke(&mut self, space: &Arc<Space>, id: i64) -> Result<(), Fault> {
        let lease = space.leases.lock().remove(&id);
        let lease = lease.ok_or(Fault::Refused(StoreError::LeaseNotFound))?;
        self.deadlines.remove(&(lease.record.deadline, space.name.clone(), id));
        self.batch.delete(Cf::Lease, keys::lease_key(&space.prefix, id));
        Changes::new(self, space.clone()).delete_keys(lease.keys)
    }

    fn keep_alive(&mut self, space: &Space, id: i64) -> Answer {
        let ttl = self.renew(space, id).unwrap_or(0);
        Answer::LeaseKeepAlive(pb::LeaseKeepAliveResponse {
            header: header(self.revision),
            id,
            ttl,
        })
    }

    /// Starts a lease's time anew; none if there is no such lease.
    fn renew(&mut self, space: &Space, id: i64) -> Option<i64> {
        let (old, record) = {
            let mut leases = space.leases.lock();
            let lease = leases.get_mut(&id)?;
            let old = lease.record.deadline;
            lease.record.deadline = old.max(self.deadline(lease.record.ttl));
            (old, lease.record)
        };
        self.deadlines.remove(&(old, space.name.clone(), id));
        self.put_lease(space, id, record);
        Some(record.ttl)
    }

    fn extend(&mut self, shared: &Shared) -> Answer {
        for (_, name, id) in self.deadlines.clone() {
            self.renew(&shared.space(&name), id);
        }
        Answer::Revision(self.revision)
    }

    fn expire(&mut self, shared: &Shared, limit: u32) -> Result<Answer, Fault> {
        let mut leases = 0;
        while leases < limit.min(MAX_EXPIRED) {
            let due = self
                .deadlines
                .first()
                .filter(|(deadline, ..)| *deadline <= self.last_at);
            let Some((_, name, id)) = due.cloned() else {
                break;
            };
            self.revoke(&shared.space(&name), id)?;
            leases += 1;
        }
        Ok(Answer::Expired(command::Expired {
            revision: self.revision,
            leases,
        }))
    }

    /// Rebuilds the order of deadlines.
    pub(crate) fn load_deadlines(&mut self, spaces: &BTreeMap<KeySpace, Arc<Space>>) {
        // Leases of a space that is being restored begin when it opens.
        for (name, space) in spaces.iter().filter(|(_, space)| !space.is_restored_now()) {
            for (id, lease) in &*space.leases.lock() {
                self.deadlines.insert((lease.record.deadline, name.clone(), *id));
            }
        }
    }
}
