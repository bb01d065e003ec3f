//! Memory from the engine: at the start, and after a snapshot took the content's place.

use crate::engine::{Cf, Cursor, Reader};
use crate::error::StoreError;
use crate::keys::{self, GroupId, KeySpace};
use crate::machine::index::Version;
use crate::machine::record::{self, LeaseRecord, SpaceRecord, StateRecord};
use crate::machine::space::{Lease, Space};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

type Spaces = BTreeMap<KeySpace, Arc<Space>>;

/// Keys that go into memory at once.
const BATCH: usize = 4096;
/// Batches that wait for that.
const AHEAD: usize = 4;

/// Revision of a store in which nothing was ever written; etcd's.
pub(crate) const FIRST_REVISION: i64 = 1;

/// Reads the state of a group.
pub(crate) fn load(group: GroupId, engine: &dyn Reader) -> Result<(StateRecord, Spaces), StoreError> {
    let state = match engine.get(Cf::Meta, &keys::meta_key(group, keys::META_STATE))? {
        Some(raw) => StateRecord::decode(&raw)?,
        None => StateRecord {
            revision: FIRST_REVISION,
            last_at: 0,
        },
    };
    let mut spaces = Spaces::new();
    load_records(group, engine, &mut spaces)?;
    load_leases(group, engine, &mut spaces)?;
    load_versions(group, engine, &mut spaces, state.revision)?;
    Ok((state, spaces))
}

fn space<'a>(spaces: &'a mut Spaces, name: &KeySpace) -> &'a Arc<Space> {
    let fresh = || Arc::new(Space::new(name.clone(), Space::fresh_record()));
    spaces.entry(name.clone()).or_insert_with(fresh)
}

fn load_records(group: GroupId, engine: &dyn Reader, spaces: &mut Spaces) -> Result<(), StoreError> {
    let from = keys::meta_key(group, keys::META_SPACE);
    let mut cursor = engine.cursor(Cf::Meta, &from, &keys::prefix_end(&from))?;
    while let Some((key, value)) = cursor.current() {
        let tenant = key
            .get(from.len()..)
            .and_then(|tenant| std::str::from_utf8(tenant).ok());
        let tenant = tenant.ok_or_else(|| StoreError::Corrupt("a space's record has a malformed key".to_owned()))?;
        let name = KeySpace::from_tenant(tenant)?;
        spaces.insert(name.clone(), Arc::new(Space::new(name, SpaceRecord::decode(value)?)));
        cursor.advance()?;
    }
    Ok(())
}

fn load_leases(group: GroupId, engine: &dyn Reader, spaces: &mut Spaces) -> Result<(), StoreError> {
    let from = group.prefix();
    let mut cursor = engine.cursor(Cf::Lease, &from, &keys::prefix_end(&from))?;
    while let Some((key, value)) = cursor.current() {
        let split = KeySpace::split(key).and_then(|(name, rest)| Some((name, keys::split_lease_key(rest)?)));
        let (name, id) = split.ok_or_else(|| StoreError::Corrupt("a lease has a malformed key".to_owned()))?;
        let lease = Lease {
            record: LeaseRecord::decode(value)?,
            keys: BTreeSet::new(),
        };
        space(spaces, &name).leases.lock().insert(id, lease);
        cursor.advance()?;
    }
    Ok(())
}

/// A key with its versions, newest first, as they lie in the engine.
struct Gathered {
    key: Bytes,
    latest: Version,
    others: Vec<Version>,
}

/// Keys of one space, in order.
struct Batch {
    space: Arc<Space>,
    keys: Vec<Gathered>,
}

impl Batch {
    /// Puts them into memory.
    fn enter(self) {
        let Self { space, keys } = self;
        for Gathered { key, latest, .. } in &keys {
            space.attach(key, None, latest);
        }
        space.change_index(|index| {
            for Gathered { key, latest, others } in keys {
                index.load(key, latest, others);
            }
        });
    }
}

/// Where the versions of a group are being read.
struct Versions<'a> {
    cursor: Box<dyn Cursor + 'a>,
    spaces: &'a mut Spaces,
    /// Of the group: nothing is newer.
    revision: i64,
}

impl Versions<'_> {
    /// Some keys of one space. None: that was all.
    fn batch(&mut self) -> Result<Option<Batch>, StoreError> {
        let mut batch: Option<Batch> = None;
        while let Some((raw_key, value)) = self.cursor.current() {
            let malformed = || StoreError::Corrupt("a version has a malformed key".to_owned());
            // Most versions are of the space before: its prefix is compared, not decoded.
            let same = batch
                .as_ref()
                .and_then(|batch| raw_key.strip_prefix(batch.space.prefix.as_slice()));
            let rest = match (&batch, same) {
                (Some(_), Some(rest)) => rest,
                (Some(_), None) => return Ok(batch),
                (None, _) => {
                    let (name, rest) = KeySpace::split(raw_key).ok_or_else(malformed)?;
                    let space = space(self.spaces, &name).clone();
                    let keys = Vec::with_capacity(BATCH);
                    batch = Some(Batch { space, keys });
                    rest
                }
            };
            let keys = batch.as_mut().map(|batch| &mut batch.keys).ok_or_else(malformed)?;
            let (key, modified) = keys::split_version_key(rest).ok_or_else(malformed)?;
            let revision = self.revision;
            if modified > revision {
                let text = format!("a version at revision {modified} while the group is at {revision}");
                return Err(StoreError::Corrupt(text));
            }
            let version = record::decode_version(value, modified)?;
            let full = keys.len() >= BATCH;
            match keys.last_mut() {
                Some(before) if before.key == key => before.others.push(version),
                Some(_) if full => return Ok(batch),
                _ => keys.push(Gathered {
                    key,
                    latest: version,
                    others: Vec::new(),
                }),
            }
            self.cursor.advance()?;
        }
        Ok(batch)
    }
}

/// Reads in this thread and, if it is more than a batch, fills memory in another: each takes about half of the time.
fn load_versions(group: GroupId, engine: &dyn Reader, spaces: &mut Spaces, revision: i64) -> Result<(), StoreError> {
    let from = group.prefix();
    let mut versions = Versions {
        cursor: engine.sweep(Cf::Key, &from, &keys::prefix_end(&from))?,
        spaces,
        revision,
    };
    let Some(first) = versions.batch()? else {
        return Ok(());
    };
    first.enter();
    let Some(mut next) = versions.batch()? else {
        return Ok(());
    };
    std::thread::scope(|scope| {
        let (batches, queue) = std::sync::mpsc::sync_channel::<Batch>(AHEAD);
        let fill = std::thread::Builder::new().name(format!("load-{}", group.0));
        let fill = fill.spawn_scoped(scope, move || queue.into_iter().for_each(Batch::enter));
        fill.map_err(|error| StoreError::Storage(format!("start the thread that fills memory: {error}")))?;
        // It takes them until there are no more; if it panicked, so does the scope.
        while batches.send(next).is_ok() {
            match versions.batch()? {
                Some(batch) => next = batch,
                None => break,
            }
        }
        Ok(())
    })
}
