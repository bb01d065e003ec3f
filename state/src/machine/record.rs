//! How the machine's records lie on disk: fixed fields in big endian behind a format number, then the variable part.
//!
//! Fixed fields rather than protobuf, because a list decodes one of these per key.

use crate::error::StoreError;
use crate::machine::index::Version;
use crate::machine::restore::Restore;
use crate::pb;
use bytes::Bytes;
use hanse_api::resources::StoreLimits;
use std::collections::BTreeSet;

/// Format of all records but those of spaces with limits or a restore; a newer one is refused.
const FORMAT: u8 = 1;
/// Format of space records with limits; feature level 2.
const WITH_LIMITS: u8 = 2;
/// Format of records of spaces that were restored; feature level 3.
const WITH_RESTORE: u8 = 3;
const VERSION_HEAD: usize = 26;
const EVENT_HEAD: usize = 34;
const PUT: u8 = 0;
const DELETE: u8 = 1;

struct Fields<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(what: &'static str, raw: &'a [u8]) -> Result<Self, StoreError> {
        match raw.split_first() {
            Some((&FORMAT, rest)) => Ok(Self { what, rest }),
            Some((format, _)) => Err(StoreError::Corrupt(format!("{what} record of unknown format {format}"))),
            None => Err(StoreError::Corrupt(format!("empty {what} record"))),
        }
    }

    fn byte(&mut self) -> Result<u8, StoreError> {
        let (byte, rest) = self.rest.split_first().ok_or_else(|| self.short())?;
        self.rest = rest;
        Ok(*byte)
    }

    fn number(&mut self) -> Result<i64, StoreError> {
        let (number, rest) = self.rest.split_first_chunk().ok_or_else(|| self.short())?;
        self.rest = rest;
        Ok(i64::from_be_bytes(*number))
    }

    fn short(&self) -> StoreError {
        StoreError::Corrupt(format!("{} record is cut short", self.what))
    }
}

fn head(kind: Option<u8>, numbers: &[i64], tail: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + numbers.len() * 8 + tail);
    out.push(FORMAT);
    out.extend(kind);
    for number in numbers {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out
}

/// One version of a key, in family `key`.
pub(crate) fn encode_version(version: &Version, value: &[u8]) -> Vec<u8> {
    let kind = if version.is_tombstone() { DELETE } else { PUT };
    let mut out = head(
        Some(kind),
        &[version.created, version.version, version.lease],
        value.len(),
    );
    out.extend_from_slice(value);
    out
}

/// Everything but the value.
pub(crate) fn decode_version(raw: &[u8], modified: i64) -> Result<Version, StoreError> {
    let mut fields = Fields::new("version", raw)?;
    let tombstone = fields.byte()? == DELETE;
    let (created, version, lease) = (fields.number()?, fields.number()?, fields.number()?);
    if tombstone != (version == 0) {
        return Err(StoreError::Corrupt(format!(
            "version record at revision {modified} contradicts itself"
        )));
    }
    let size = u32::try_from(fields.rest.len()).unwrap_or(u32::MAX);
    Ok(Version {
        modified,
        created,
        version,
        lease,
        size,
    })
}

/// The value of a version.
pub(crate) fn version_value(raw: &Bytes) -> Result<Bytes, StoreError> {
    if raw.len() < VERSION_HEAD {
        return Err(StoreError::Corrupt("version record is cut short".to_owned()));
    }
    Ok(raw.slice(VERSION_HEAD..))
}

/// A version and its value in the form of the API.
pub(crate) fn key_value(key: Bytes, version: &Version, value: Bytes) -> pb::KeyValue {
    pb::KeyValue {
        key,
        create_revision: version.created,
        mod_revision: version.modified,
        version: version.version,
        value,
        lease: version.lease,
    }
}

/// One change, in family `rev`. The values lie with the versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventRecord {
    pub(crate) version: Version,
    /// Revision of the version before, 0 for none.
    pub(crate) previous: i64,
    pub(crate) key: Bytes,
}

impl EventRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Version {
            created,
            version,
            lease,
            ..
        } = self.version;
        let kind = if self.version.is_tombstone() { DELETE } else { PUT };
        let mut out = head(Some(kind), &[created, version, lease, self.previous], self.key.len());
        out.extend_from_slice(&self.key);
        out
    }

    pub(crate) fn decode(raw: &[u8], modified: i64) -> Result<Self, StoreError> {
        let mut fields = Fields::new("event", raw)?;
        fields.byte()?;
        let (created, version, lease) = (fields.number()?, fields.number()?, fields.number()?);
        let previous = fields.number()?;
        let key = Bytes::copy_from_slice(&raw[EVENT_HEAD..]);
        Ok(Self {
            version: Version {
                modified,
                created,
                version,
                lease,
                size: 0,
            },
            previous,
            key,
        })
    }
}

/// A lease, in family `lease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseRecord {
    pub(crate) ttl: i64,
    pub(crate) deadline: i64,
}

impl LeaseRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        head(None, &[self.ttl, self.deadline], 0)
    }

    pub(crate) fn decode(raw: &[u8]) -> Result<Self, StoreError> {
        let mut fields = Fields::new("lease", raw)?;
        Ok(Self {
            ttl: fields.number()?,
            deadline: fields.number()?,
        })
    }
}

/// The group's numbers, in family `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateRecord {
    pub(crate) revision: i64,
    pub(crate) last_at: i64,
}

impl StateRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        head(None, &[self.revision, self.last_at], 0)
    }

    pub(crate) fn decode(raw: &[u8]) -> Result<Self, StoreError> {
        let mut fields = Fields::new("state", raw)?;
        Ok(Self {
            revision: fields.number()?,
            last_at: fields.number()?,
        })
    }
}

/// An alarm of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Alarm {
    pub(crate) member: u64,
    /// [`pb::AlarmType`], as a number: one of a newer version is kept and shown.
    pub(crate) kind: i32,
}

/// The group's feature level, in family `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LevelRecord {
    pub(crate) level: u32,
}

impl LevelRecord {
    pub(crate) fn encode(self) -> Vec<u8> {
        head(None, &[i64::from(self.level)], 0)
    }

    pub(crate) fn decode(raw: &[u8]) -> Result<Self, StoreError> {
        let mut fields = Fields::new("level", raw)?;
        let level = u32::try_from(fields.number()?).map_err(|_| fields.short())?;
        Ok(Self { level })
    }
}

/// A key space's numbers, in family `meta`. Alarms follow the fixed fields, so that a record without any is as before; a record
/// without limits is as it was before there were any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpaceRecord {
    pub(crate) floor: i64,
    pub(crate) fence: u64,
    pub(crate) alarms: BTreeSet<Alarm>,
    pub(crate) limits: StoreLimits,
    /// The last restore of the space; it may be under way.
    pub(crate) restore: Option<Restore>,
}

impl SpaceRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut numbers = vec![self.floor, self.fence.cast_signed()];
        let limited = self.limits != StoreLimits::default();
        if limited || self.restore.is_some() {
            let StoreLimits {
                bytes,
                keys,
                writes_per_second,
            } = self.limits;
            numbers.extend([bytes.cast_signed(), keys.cast_signed(), i64::from(writes_per_second)]);
        }
        if let Some(restore) = self.restore {
            numbers.extend(restore.numbers());
        }
        for alarm in &self.alarms {
            numbers.extend([alarm.member.cast_signed(), i64::from(alarm.kind)]);
        }
        let mut out = head(None, &numbers, 0);
        if self.restore.is_some() {
            out[0] = WITH_RESTORE;
        } else if limited {
            out[0] = WITH_LIMITS;
        }
        out
    }

    pub(crate) fn decode(raw: &[u8]) -> Result<Self, StoreError> {
        let (mut fields, format) = match raw.split_first() {
            Some((&format @ (WITH_LIMITS | WITH_RESTORE), rest)) => (Fields { what: "space", rest }, format),
            _ => (Fields::new("space", raw)?, FORMAT),
        };
        let (floor, fence) = (fields.number()?, fields.number()?.cast_unsigned());
        let mut limits = StoreLimits::default();
        if format >= WITH_LIMITS {
            limits.bytes = fields.number()?.cast_unsigned();
            limits.keys = fields.number()?.cast_unsigned();
            limits.writes_per_second = u32::try_from(fields.number()?).map_err(|_| fields.short())?;
        }
        let mut restore = None;
        if format == WITH_RESTORE {
            let numbers = [fields.number()?, fields.number()?, fields.number()?, fields.number()?];
            restore = Some(Restore::of(numbers));
        }
        let mut alarms = BTreeSet::new();
        while !fields.rest.is_empty() {
            let (member, kind) = (fields.number()?.cast_unsigned(), fields.number()?);
            let kind = i32::try_from(kind).map_err(|_| fields.short())?;
            alarms.insert(Alarm { member, kind });
        }
        Ok(Self {
            floor,
            fence,
            alarms,
            limits,
            restore,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_round_trip(
            modified in 1i64.., created in 1i64.., version in 1i64.., lease: i64, previous: i64,
            key: Vec<u8>, value: Vec<u8>,
        ) {
            let size = u32::try_from(value.len()).unwrap();
            let of = Version { modified, created, version, lease, size };
            let raw = Bytes::from(encode_version(&of, &value));
            prop_assert_eq!(decode_version(&raw, modified).unwrap(), of);
            prop_assert_eq!(version_value(&raw).unwrap(), value);
            let event = EventRecord { version: Version { size: 0, ..of }, previous, key: key.into() };
            prop_assert_eq!(EventRecord::decode(&event.encode(), modified).unwrap(), event);
        }

        #[test]
        fn a_space_keeps_its_alarms_limits_and_restore(
            floor: i64, fence: u64, alarms: BTreeSet<(u64, i32)>, limits: (u64, u64, u32),
            restore: Option<(i64, i64, i64, bool)>,
        ) {
            let restore = restore.map(|(id, step, revision, done)| Restore::of([id, step, revision, i64::from(done)]));
            let limits = StoreLimits { bytes: limits.0, keys: limits.1, writes_per_second: limits.2 };
            let alarms = alarms.into_iter().map(|(member, kind)| Alarm { member, kind }).collect();
            let of = SpaceRecord { floor, fence, alarms, limits, restore };
            let raw = of.encode();
            prop_assert_eq!(SpaceRecord::decode(&raw).unwrap(), of);
            prop_assert!(SpaceRecord::decode(&raw[..raw.len() - 1]).is_err());
        }

        #[test]
        fn damage_is_an_error_and_no_panic(raw: Vec<u8>) {
            let _errors = (
                decode_version(&raw, 1).is_err(),
                EventRecord::decode(&raw, 1).is_err(),
                LeaseRecord::decode(&raw).is_err(),
                StateRecord::decode(&raw).is_err(),
                SpaceRecord::decode(&raw).is_err(),
                LevelRecord::decode(&raw).is_err(),
            );
        }
    }
}
