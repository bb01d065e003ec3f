//! A checksum over all that can still be read or watched, on which members must agree.

use crate::error::StoreError;
use crate::machine::index::{KeyRange, Version, kept};
use crate::machine::view::View;
use crate::machine::{Machine, read, space::Space};
use crate::pb;
use crate::store::{Access, SpaceHash};
use bytes::Bytes;

/// FNV-1a: stable over versions and machines, and no secret depends on it.
pub(crate) struct Fnv(u64);

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

impl Fnv {
    pub(crate) const fn new() -> Self {
        Self(OFFSET)
    }

    pub(crate) const fn value(&self) -> u64 {
        self.0
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn number(&mut self, number: i64) {
        self.add(&number.to_be_bytes());
    }

    /// Adds one version of a key. The sum of a space takes its keys in ascending order.
    pub(crate) fn version(&mut self, key: &[u8], version: &Version, value: &[u8]) {
        self.number(i64::try_from(key.len()).unwrap_or(i64::MAX));
        self.add(key);
        for number in [version.modified, version.created, version.version, version.lease] {
            self.number(number);
        }
        self.add(value);
    }
}

/// How often a sum starts over because what it read was compacted meanwhile.
const TRIES: usize = 8;

impl Machine {
    /// The checksum of a space. Reads everything in it.
    pub fn hash(&self, access: &Access) -> Result<SpaceHash, StoreError> {
        let space = self.space_of(access)?;
        let _gate = self.shared.gate.read();
        let floor = space.floor();
        let revision = self.revision();
        let versions = collect(&space, floor, revision);
        let view = View {
            engine: self.shared.engine.as_ref(),
            space: &space,
            pending: None,
            at: revision,
            revision,
            floor,
        };
        let mut sum = Fnv::new();
        for (key, version) in versions {
            match view.value(&key, &version)? {
                Some(value) => sum.version(&key, &version, &value),
                // Pruned meanwhile: whoever compares sees another floor and asks again.
                None => return Err(StoreError::Compacted { floor: space.floor() }),
            }
        }
        Ok(SpaceHash {
            hash: sum.value(),
            revision,
            floor,
        })
    }
}

impl Machine {
    /// The checksum of what a read at `revision` (0: now) finds. Compactions up to that revision do not change it, so members
    /// agree whatever they have compacted and pruned.
    pub fn hash_at(&self, access: &Access, revision: i64) -> Result<SpaceHash, StoreError> {
        let space = self.space_of(access)?;
        let mark = space.opened()?;
        let sum = self.sum_at(&space, revision);
        space.still_open(mark)?;
        sum
    }

    /// The checksum of what a space holds now, also while a restore keeps it closed.
    pub fn hash_while_closed(&self, access: &Access) -> Result<SpaceHash, StoreError> {
        let space = self.space_of(access)?;
        self.sum_at(&space, 0)
    }

    fn sum_at(&self, space: &Space, revision: i64) -> Result<SpaceHash, StoreError> {
        let _gate = self.shared.gate.read();
        for _ in 0..TRIES {
            let view = read::view(&self.shared, space);
            let at = view.revision_of(&pb::RangeRequest {
                revision,
                ..Default::default()
            })?;
            let hits: Vec<(Bytes, Version)> = {
                let index = space.index.read();
                let all = KeyRange::From(Bytes::new());
                index
                    .range(&all, at)
                    .map(|(key, version)| (key.clone(), *version))
                    .collect()
            };
            if let Some(hash) = sum_of(&view, &hits)?
                && space.floor() <= at
            {
                return Ok(SpaceHash {
                    hash,
                    revision: at,
                    floor: view.floor,
                });
            }
        }
        Err(StoreError::Compacted { floor: space.floor() })
    }
}

/// None: a version was compacted away meanwhile.
fn sum_of(view: &View<'_>, hits: &[(Bytes, Version)]) -> Result<Option<u64>, StoreError> {
    let mut sum = Fnv::new();
    for (key, version) in hits {
        let Some(value) = view.value(key, version)? else {
            return Ok(None);
        };
        sum.version(key, version, &value);
    }
    Ok(Some(sum.value()))
}

fn collect(space: &Space, floor: i64, revision: i64) -> Vec<(Bytes, Version)> {
    let index = space.index.read();
    let published = |(key, versions): (&Bytes, &[Version])| {
        let seen = versions
            .iter()
            .position(|version| version.modified > revision)
            .unwrap_or(versions.len());
        kept(&versions[..seen], floor)
            .iter()
            .map(|version| (key.clone(), *version))
            .collect::<Vec<_>>()
    };
    index.histories().flat_map(published).collect()
}
