//! Memory from the engine: at the start, and after a snapshot took the content's place.

use crate::engine::{Cf, Reader};
use crate::error::StoreError;
use crate::keys::{self, GroupId, KeySpace};
use crate::machine::index::Version;
use crate::machine::record::{self, LeaseRecord, SpaceRecord, StateRecord};
use crate::machine::space::{Lease, Space};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

type Spaces = BTreeMap<KeySpace, Arc<Space>>;

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

/// Versions of one key, gathered newest first as they lie in the engine.
struct Gathered {
    space: Arc<Space>,
    key: Bytes,
    versions: Vec<Version>,
}

impl Gathered {
    fn finish(mut self) {
        self.versions.reverse();
        if let Some(latest) = self.versions.last() {
            self.space.attach(&self.key, None, latest);
        }
        let (key, versions) = (self.key, self.versions);
        self.space.change_index(|index| index.load(key, versions));
    }
}

fn load_versions(group: GroupId, engine: &dyn Reader, spaces: &mut Spaces, revision: i64) -> Result<(), StoreError> {
    let from = group.prefix();
    let mut cursor = engine.cursor(Cf::Key, &from, &keys::prefix_end(&from))?;
    let mut gathered: Option<Gathered> = None;
    while let Some((raw_key, value)) = cursor.current() {
        let malformed = || StoreError::Corrupt("a version has a malformed key".to_owned());
        // Most versions are of the space before: its prefix is compared, not decoded.
        let same = gathered
            .as_ref()
            .filter(|before| raw_key.starts_with(&before.space.prefix));
        let (space, rest) = match same {
            Some(before) => (before.space.clone(), &raw_key[before.space.prefix.len()..]),
            None => {
                let (name, rest) = KeySpace::split(raw_key).ok_or_else(malformed)?;
                (space(spaces, &name).clone(), rest)
            }
        };
        let (key, modified) = keys::split_version_key(rest).ok_or_else(malformed)?;
        if modified > revision {
            let text = format!("a version at revision {modified} while the group is at {revision}");
            return Err(StoreError::Corrupt(text));
        }
        let version = record::decode_version(value, modified)?;
        match &mut gathered {
            Some(before) if Arc::ptr_eq(&before.space, &space) && before.key == key => before.versions.push(version),
            _ => {
                let next = Gathered {
                    space,
                    key,
                    versions: vec![version],
                };
                if let Some(before) = gathered.replace(next) {
                    before.finish();
                }
            }
        }
        cursor.advance()?;
    }
    if let Some(last) = gathered {
        last.finish();
    }
    Ok(())
}
