//! What one key space may hold and how fast it may write: its own, so that a full or noisy tenant is alone with that.
//!
//! Limits are part of the replicated state, and what counts against them is what every member agrees on: keys that exist now and
//! their newest values. History does not count, because members remove what was compacted in their own time; whoever takes
//! requests in compacts it when there is too much, see [`HISTORY`].

use crate::error::StoreError;
use crate::machine::Machine;
use crate::machine::index::{Index, stored_bytes};
use crate::machine::space::Space;
use crate::pb::command::SetLimits;
use crate::store::Access;
use hanse_api::resources::StoreLimits;

/// A space's history may take so many times the bytes that its keys may; at half of that it is compacted.
pub(crate) const HISTORY: u64 = 3;

/// The command's form of limits.
pub const fn limits_command(limits: StoreLimits) -> SetLimits {
    SetLimits {
        bytes: limits.bytes,
        keys: limits.keys,
        writes_per_second: limits.writes_per_second,
    }
}

/// Keys that exist and their newest values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) bytes: u64,
    pub(crate) keys: u64,
}

/// How a transaction changes what a space holds: at most, deletions left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Growth {
    pub(crate) bytes: i64,
    pub(crate) keys: i64,
}

impl Growth {
    /// What one put adds to an index.
    pub(crate) fn of_put(index: &Index, key: &[u8], value: usize, keeps_value: bool) -> Self {
        let now = signed(stored_bytes(key.len(), value));
        match index.latest(key).filter(|version| !version.is_tombstone()) {
            Some(_) if keeps_value => Self::default(),
            Some(before) => Self {
                bytes: now - signed(before.stored_bytes(key)),
                keys: 0,
            },
            None => Self { bytes: now, keys: 1 },
        }
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            keys: self.keys.saturating_add(other.keys),
        }
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Whether so much fits below a limit; what does not grow always does, so that a full space can still be kept up.
fn fits(now: u64, more: i64, limit: u64) -> bool {
    limit == 0 || more <= 0 || now.saturating_add(more.unsigned_abs()) <= limit
}

impl Space {
    /// Refuses what would exceed the space's limits.
    pub(crate) fn check_limits(&self, growth: impl FnOnce() -> Growth) -> Result<(), StoreError> {
        let limits = *self.limits.lock();
        if limits.bytes == 0 && limits.keys == 0 {
            return Ok(());
        }
        let (live, growth) = (self.live(), growth());
        if fits(live.bytes, growth.bytes, limits.bytes) && fits(live.keys, growth.keys, limits.keys) {
            Ok(())
        } else {
            Err(StoreError::NoSpace)
        }
    }

    /// The same for one more lease: there are never more of them than keys.
    pub(crate) fn check_lease_limit(&self) -> Result<(), StoreError> {
        let limits = *self.limits.lock();
        let leases = self.leases.lock().len() as u64;
        if fits(leases, 1, limits.keys) {
            Ok(())
        } else {
            Err(StoreError::NoSpace)
        }
    }

    /// Sets the limits; false if they are so already.
    pub(crate) fn set_limits(&self, set: &SetLimits) -> bool {
        let SetLimits {
            bytes,
            keys,
            writes_per_second,
        } = *set;
        let limits = StoreLimits {
            bytes,
            keys,
            writes_per_second,
        };
        std::mem::replace(&mut *self.limits.lock(), limits) != limits
    }
}

impl Machine {
    /// The space's limits.
    pub fn limits(&self, access: &Access) -> Result<StoreLimits, StoreError> {
        Ok(*self.space_of(access)?.limits.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeySpace;

    fn limited(bytes: u64, keys: u64) -> Space {
        let space = Space::new(KeySpace::Tenant("t".into()), Space::fresh_record());
        let set = SetLimits {
            bytes,
            keys,
            writes_per_second: 0,
        };
        assert!(space.set_limits(&set));
        assert!(!space.set_limits(&set));
        space
    }

    #[test]
    fn each_limit_counts_by_itself_and_what_does_not_grow_is_let_in() {
        let grow = |bytes, keys| move || Growth { bytes, keys };
        let space = limited(100, 0);
        assert_eq!(space.check_limits(grow(100, 1_000_000)), Ok(()));
        assert_eq!(space.check_limits(grow(101, 0)), Err(StoreError::NoSpace));
        let space = limited(0, 2);
        assert_eq!(space.check_limits(grow(1 << 40, 2)), Ok(()));
        assert_eq!(space.check_limits(grow(1, 3)), Err(StoreError::NoSpace));
        assert_eq!(space.check_limits(grow(-5, 0)), Ok(()));
        assert_eq!(space.check_lease_limit(), Ok(()));
    }

    #[test]
    fn a_put_counts_by_what_it_replaces() {
        let mut index = Index::default();
        let version = crate::machine::index::Version {
            modified: 2,
            created: 2,
            version: 1,
            lease: 0,
            size: 10,
        };
        assert_eq!(
            Growth::of_put(&index, b"key", 10, false),
            Growth { bytes: 112, keys: 1 }
        );
        index.push(b"key", version);
        assert_eq!(Growth::of_put(&index, b"key", 4, false), Growth { bytes: -6, keys: 0 });
        assert_eq!(Growth::of_put(&index, b"key", 0, true), Growth::default());
        assert_eq!(index.live(), Live { bytes: 112, keys: 1 });
        index.push(b"key", crate::machine::index::Version::tombstone(3));
        assert_eq!(index.live(), Live::default());
        assert_eq!(Growth::of_put(&index, b"key", 4, false), Growth { bytes: 106, keys: 1 });
    }
}
