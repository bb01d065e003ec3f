//! A checksum over all that can still be read or watched, on which members must agree.

use crate::error::StoreError;
use crate::machine::index::{Version, kept};
use crate::machine::view::View;
use crate::machine::{Machine, space::Space};
use crate::store::{Access, SpaceHash};
use bytes::Bytes;

/// FNV-1a: stable over versions and machines, and no secret depends on it.
struct Fnv(u64);

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn number(&mut self, number: i64) {
        self.add(&number.to_be_bytes());
    }
}

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
        let mut sum = Fnv(0xcbf2_9ce4_8422_2325);
        for (key, version) in versions {
            sum.number(i64::try_from(key.len()).unwrap_or(i64::MAX));
            sum.add(&key);
            for number in [version.modified, version.created, version.version, version.lease] {
                sum.number(number);
            }
            match view.value(&key, &version)? {
                Some(value) => sum.add(&value),
                // Pruned meanwhile: whoever compares sees another floor and asks again.
                None => return Err(StoreError::Compacted { floor: space.floor() }),
            }
        }
        Ok(SpaceHash {
            hash: sum.0,
            revision,
            floor,
        })
    }
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
