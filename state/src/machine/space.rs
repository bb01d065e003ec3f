//! One key space: its index, leases, floor, fence and watches.

use crate::error::StoreError;
use crate::keys::{self, KeySpace};
use crate::machine::hub::Hub;
use crate::machine::index::{Index, Version};
use crate::machine::limits::Live;
use crate::machine::record::{Alarm, LeaseRecord, SpaceRecord};
use crate::machine::restore::Restore;
use crate::store::SpaceUsage;
use bytes::Bytes;
use hanse_api::resources::StoreLimits;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use tokio::sync::watch;

/// Floor of a space that was never compacted; etcd's.
pub(crate) const NO_FLOOR: i64 = -1;
/// Fence of a space that was dropped: no epoch reaches it.
pub(crate) const DROPPED: u64 = u64::MAX;

/// A lease and the keys attached to it.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) record: LeaseRecord,
    pub(crate) keys: BTreeSet<Bytes>,
}

/// How far the removal of compacted versions is.
#[derive(Debug)]
pub(crate) struct Pruning {
    /// Floor that the index was pruned to.
    pub(crate) done: i64,
    /// Floor that is being pruned to, and the next key.
    pub(crate) running: Option<(i64, Bytes)>,
}

/// A key space.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) name: KeySpace,
    /// What engine keys of the space start with.
    pub(crate) prefix: Vec<u8>,
    pub(crate) index: RwLock<Index>,
    pub(crate) leases: Mutex<BTreeMap<i64, Lease>>,
    pub(crate) hub: Hub,
    pub(crate) pruning: Mutex<Pruning>,
    /// Floor as readers see it.
    floor: AtomicI64,
    /// Floor after what is staged.
    staged_floor: AtomicI64,
    fence: AtomicU64,
    pub(crate) alarms: Mutex<BTreeSet<Alarm>>,
    pub(crate) limits: Mutex<StoreLimits>,
    /// The last restore, after what is staged.
    pub(crate) restore: Mutex<Option<Restore>>,
    /// Counts how often the space was closed and opened by restores: odd while it is closed to readers.
    pub(crate) doors: AtomicU64,
    /// Size of the index, so that who asks for it on every write does not wait for a long list to be read.
    bytes: AtomicU64,
    keys: AtomicUsize,
    live_bytes: AtomicU64,
    live_keys: AtomicU64,
    /// Floor that the engine was pruned to, for those who wait for it.
    pub(crate) pruned: watch::Sender<i64>,
}

impl Space {
    pub(crate) fn new(name: KeySpace, record: SpaceRecord) -> Self {
        Self {
            prefix: name.engine_prefix(),
            name,
            index: RwLock::default(),
            leases: Mutex::default(),
            hub: Hub::default(),
            pruning: Mutex::new(Pruning {
                done: NO_FLOOR,
                running: None,
            }),
            floor: AtomicI64::new(record.floor),
            staged_floor: AtomicI64::new(record.floor),
            fence: AtomicU64::new(record.fence),
            alarms: Mutex::new(record.alarms),
            limits: Mutex::new(record.limits),
            doors: AtomicU64::new(u64::from(record.restore.is_some_and(|restore| !restore.is_done()))),
            restore: Mutex::new(record.restore),
            bytes: AtomicU64::new(0),
            keys: AtomicUsize::new(0),
            live_bytes: AtomicU64::new(0),
            live_keys: AtomicU64::new(0),
            pruned: watch::Sender::new(NO_FLOOR),
        }
    }

    pub(crate) fn fresh_record() -> SpaceRecord {
        SpaceRecord {
            floor: NO_FLOOR,
            fence: 0,
            alarms: BTreeSet::new(),
            limits: StoreLimits::default(),
            restore: None,
        }
    }

    /// Changes the index, which only this does.
    pub(crate) fn change_index<T>(&self, change: impl FnOnce(&mut Index) -> T) -> T {
        let mut index = self.index.write();
        let out = change(&mut index);
        self.bytes.store(index.bytes(), Ordering::Relaxed);
        self.keys.store(index.len(), Ordering::Relaxed);
        let live = index.live();
        self.live_bytes.store(live.bytes, Ordering::Relaxed);
        self.live_keys.store(live.keys, Ordering::Relaxed);
        out
    }

    pub(crate) fn usage(&self) -> SpaceUsage {
        SpaceUsage {
            bytes: self.bytes.load(Ordering::Relaxed),
            keys: self.keys.load(Ordering::Relaxed),
            floor: self.floor(),
            live_bytes: self.live().bytes,
            live_keys: self.live().keys,
            limits: *self.limits.lock(),
        }
    }

    /// Keys that exist and their newest values, staged ones included.
    pub(crate) fn live(&self) -> Live {
        Live {
            bytes: self.live_bytes.load(Ordering::Relaxed),
            keys: self.live_keys.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn floor(&self) -> i64 {
        self.floor.load(Ordering::Acquire)
    }

    pub(crate) fn publish_floor(&self, floor: i64) {
        self.floor.store(floor, Ordering::Release);
    }

    pub(crate) fn staged_floor(&self) -> i64 {
        self.staged_floor.load(Ordering::Relaxed)
    }

    pub(crate) fn stage_floor(&self, floor: i64) {
        self.staged_floor.store(floor, Ordering::Relaxed);
    }

    pub(crate) fn fence(&self) -> u64 {
        self.fence.load(Ordering::Acquire)
    }

    pub(crate) fn raise_fence(&self, epoch: u64) {
        self.fence.fetch_max(epoch, Ordering::AcqRel);
    }

    pub(crate) fn record(&self) -> SpaceRecord {
        SpaceRecord {
            floor: self.staged_floor(),
            fence: self.fence(),
            alarms: self.alarms.lock().clone(),
            limits: *self.limits.lock(),
            restore: *self.restore.lock(),
        }
    }

    /// Whether a caller of this epoch is still allowed in.
    pub(crate) fn check_epoch(&self, epoch: Option<u64>) -> Result<(), StoreError> {
        let fence = self.fence();
        if fence == DROPPED || epoch.is_some_and(|epoch| epoch < fence) {
            let tenant = self.name.tenant().to_owned();
            return Err(StoreError::Fenced {
                tenant,
                epoch: epoch.unwrap_or_default(),
                fence,
            });
        }
        Ok(())
    }

    pub(crate) fn version_key(&self, key: &[u8], revision: i64) -> Vec<u8> {
        keys::version_key(&self.prefix, key, revision)
    }

    /// Moves a key from the lease of its version before to that of its version now.
    pub(crate) fn attach(&self, key: &[u8], before: Option<&Version>, now: &Version) {
        let before = before.map_or(0, |version| version.lease);
        if before == now.lease {
            return;
        }
        let mut leases = self.leases.lock();
        if let Some(lease) = leases.get_mut(&before) {
            lease.keys.remove(key);
        }
        if let Some(lease) = leases.get_mut(&now.lease) {
            // A copy, for the same reason as in the index.
            lease.keys.insert(Bytes::copy_from_slice(key));
        }
    }
}

impl Space {
    /// Takes over the content of a space that was loaded anew; watches stay.
    pub(crate) fn take_content(&self, fresh: &Self) {
        let content = fresh.change_index(std::mem::take);
        self.change_index(|index| *index = content);
        *self.leases.lock() = std::mem::take(&mut *fresh.leases.lock());
        *self.pruning.lock() = Pruning {
            done: NO_FLOOR,
            running: None,
        };
        self.stage_floor(fresh.staged_floor());
        self.publish_floor(fresh.floor());
        self.fence.store(fresh.fence(), Ordering::Release);
        *self.alarms.lock() = std::mem::take(&mut *fresh.alarms.lock());
        *self.limits.lock() = *fresh.limits.lock();
        self.take_restore(fresh);
        self.pruned.send_replace(NO_FLOOR);
    }
}
