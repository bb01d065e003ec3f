//! Everything that a space holds, in the order of its revisions: for snapshots that leave this store.

use crate::engine::{Cf, Reader};
use crate::error::StoreError;
use crate::keys;
use crate::machine::Machine;
use crate::machine::record::{self, EventRecord, LeaseRecord};
use crate::machine::space::Space;
use crate::pb;
use crate::store::Access;
use bytes::Bytes;

/// One thing that a space holds.
#[derive(Debug)]
pub enum Item {
    /// How far the rest goes; comes first.
    Head {
        /// Revision that everything is of.
        revision: i64,
        /// Oldest readable revision; -1 before the first compaction.
        floor: i64,
    },
    /// A change that can still be read, in ascending order of revision and place.
    Change {
        /// Its place among the changes of its revision.
        sub: u32,
        /// The key as it became; without a value, of a deletion only key and `mod_revision`.
        kv: pb::KeyValue,
        /// Whether it was deleted.
        deleted: bool,
    },
    /// A lease; after the changes.
    Lease {
        /// Its id.
        id: i64,
        /// Its whole time to live in seconds.
        ttl: i64,
    },
}

/// Takes one item after the other.
pub type Emit<'a> = dyn FnMut(Item) -> Result<(), StoreError> + 'a;

impl Machine {
    /// Hands out all that the space holds now. Later writes and compactions change nothing of it. Reads everything, one value
    /// at a time; in memory are only the keys that were last changed before the floor.
    pub fn export(&self, access: &Access, emit: &mut Emit<'_>) -> Result<(), StoreError> {
        let space = self.space_of(access)?;
        let (revision, floor, view) = loop {
            let _gate = self.shared.gate.read();
            let mark = space.opened()?;
            // In this order: what is published is in the view, and what was pruned from the view is below the floor.
            let revision = self.shared.revision();
            let view = self.shared.engine.snapshot();
            let floor = space.floor();
            space.still_open(mark)?;
            if floor <= revision {
                break (revision, floor, view);
            }
        };
        let view = view.as_ref();
        emit(Item::Head { revision, floor })?;
        old_versions(view, &space, floor, emit)?;
        changes(view, &space, floor.max(0), revision, emit)?;
        leases(view, &space, emit)
    }
}

fn missing(revision: i64) -> StoreError {
    StoreError::Corrupt(format!("the value of a change at revision {revision} is missing"))
}

fn load(view: &dyn Reader, space: &Space, key: Bytes, revision: i64) -> Result<pb::KeyValue, StoreError> {
    let raw = view.get(Cf::Key, &space.version_key(&key, revision))?;
    let raw = raw.ok_or_else(|| missing(revision))?;
    let version = record::decode_version(&raw, revision)?;
    Ok(record::key_value(key, &version, record::version_value(&raw)?))
}

/// What was present just before the floor: its events are gone, so it is gathered by key and put in order.
fn old_versions(view: &dyn Reader, space: &Space, floor: i64, emit: &mut Emit<'_>) -> Result<(), StoreError> {
    let mut present: Vec<(i64, Bytes)> = Vec::new();
    let mut cursor = view.sweep(Cf::Key, &space.prefix, &keys::prefix_end(&space.prefix))?;
    let mut decided: Option<Bytes> = None;
    while let Some((raw_key, value)) = cursor.current() {
        let split = raw_key.get(space.prefix.len()..).and_then(keys::split_version_key);
        let (key, modified) = split.ok_or_else(|| StoreError::Corrupt("a version has a malformed key".to_owned()))?;
        // Newest first: the first below the floor is the one that counts.
        if modified < floor && decided.as_ref() != Some(&key) {
            if !record::decode_version(value, modified)?.is_tombstone() {
                present.push((modified, key.clone()));
            }
            decided = Some(key);
        }
        cursor.advance()?;
    }
    present.sort();
    let (mut last, mut sub) = (0, 0);
    for (revision, key) in present {
        sub = if revision == last { sub + 1 } else { 0 };
        last = revision;
        let kv = load(view, space, key, revision)?;
        emit(Item::Change {
            sub,
            kv,
            deleted: false,
        })?;
    }
    Ok(())
}

fn changes(view: &dyn Reader, space: &Space, from: i64, upto: i64, emit: &mut Emit<'_>) -> Result<(), StoreError> {
    let start = keys::event_key(&space.prefix, from, 0);
    let end = keys::event_key(&space.prefix, upto + 1, 0);
    let mut cursor = view.cursor(Cf::Rev, &start, &end)?;
    while let Some((key, value)) = cursor.current() {
        let split = key.get(space.prefix.len()..).and_then(keys::split_event_key);
        let (revision, sub) = split.ok_or_else(|| StoreError::Corrupt("an event has a malformed key".to_owned()))?;
        let EventRecord { version, key, .. } = EventRecord::decode(value, revision)?;
        let deleted = version.is_tombstone();
        let kv = if deleted {
            pb::KeyValue {
                key,
                mod_revision: revision,
                ..Default::default()
            }
        } else {
            load(view, space, key, revision)?
        };
        emit(Item::Change { sub, kv, deleted })?;
        cursor.advance()?;
    }
    Ok(())
}

fn leases(view: &dyn Reader, space: &Space, emit: &mut Emit<'_>) -> Result<(), StoreError> {
    let mut cursor = view.cursor(Cf::Lease, &space.prefix, &keys::prefix_end(&space.prefix))?;
    while let Some((key, value)) = cursor.current() {
        let id = key.get(space.prefix.len()..).and_then(keys::split_lease_key);
        let id = id.ok_or_else(|| StoreError::Corrupt("a lease has a malformed key".to_owned()))?;
        let LeaseRecord { ttl, .. } = LeaseRecord::decode(value)?;
        emit(Item::Lease { id, ttl })?;
        cursor.advance()?;
    }
    Ok(())
}
