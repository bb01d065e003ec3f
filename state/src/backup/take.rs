//! From a consistent view of an engine to the bytes of a backup, a piece at a time.

use super::file::Framer;
use super::{BackupError, Count, Head};
use crate::engine::{Cf, Reader};
use crate::error::StoreError;
use crate::keys::{self, GroupId, KeySpace};
use crate::machine::level;
use crate::machine::record::{self, LeaseRecord, SpaceRecord, StateRecord};
use crate::machine::space::Space;
use crate::pb::backup::{Group, Lease, Rows, Space as SpaceHead, frame::Frame};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Bytes of rows in one frame; a larger row goes alone.
const PIECE: usize = 256 * 1024;

/// What to back up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All spaces of these groups.
    Groups(Vec<GroupId>),
    /// One space.
    Space(KeySpace),
}

/// Takes the next bytes of the file.
pub type Emit<'a> = dyn FnMut(Bytes) -> Result<(), BackupError> + 'a;

/// Hands out the bytes of a backup of what `view` shows, which must be a snapshot of the engine. In memory is one piece at a
/// time. `head` lacks only its format and tenant.
pub fn take(view: &dyn Reader, head: Head, scope: &Scope, emit: &mut Emit<'_>) -> Result<(), BackupError> {
    let mut out = Framer::new();
    let tenant = match scope {
        Scope::Groups(_) => String::new(),
        Scope::Space(space) => space.tenant().to_owned(),
    };
    let head = Head {
        format: super::FORMAT,
        tenant,
        ..head
    };
    emit(out.frame(Frame::Head(head)))?;
    match scope {
        Scope::Groups(groups) => {
            for group in groups {
                emit(out.frame(Frame::Group(group_head(view, *group)?)))?;
                for (name, record) in spaces(view, *group)? {
                    space(view, &name, &record, &mut out, emit)?;
                }
            }
        }
        Scope::Space(name) => {
            emit(out.frame(Frame::Group(group_head(view, name.group())?)))?;
            let raw = view.get(Cf::Meta, &keys::space_meta_key(name))?;
            let record = raw.map_or_else(|| Ok(Space::fresh_record()), |raw| SpaceRecord::decode(&raw))?;
            if record.restore.is_some_and(|restore| !restore.is_done()) {
                return Err(StoreError::Restoring(name.tenant().to_owned()).into());
            }
            space(view, name, &record, &mut out, emit)?;
        }
    }
    emit(out.tail())
}

fn group_head(view: &dyn Reader, group: GroupId) -> Result<Group, BackupError> {
    let state = match view.get(Cf::Meta, &keys::meta_key(group, keys::META_STATE))? {
        Some(raw) => StateRecord::decode(&raw)?,
        None => StateRecord {
            revision: crate::machine::load::FIRST_REVISION,
            last_at: 0,
        },
    };
    let marker = view.get(Cf::Meta, &keys::meta_key(group, keys::META_MARKER))?;
    Ok(Group {
        group: group.0,
        revision: state.revision,
        last_at_millis: state.last_at,
        level: level::load(group, view)?,
        marker: marker.unwrap_or_default(),
    })
}

/// All spaces of a group: those with a record, and those that only have keys or leases.
fn spaces(view: &dyn Reader, group: GroupId) -> Result<BTreeMap<KeySpace, SpaceRecord>, BackupError> {
    let mut found = BTreeMap::new();
    let from = keys::meta_key(group, keys::META_SPACE);
    let mut cursor = view.cursor(Cf::Meta, &from, &keys::prefix_end(&from))?;
    while let Some((key, value)) = cursor.current() {
        let tenant = key.get(from.len()..).and_then(|raw| std::str::from_utf8(raw).ok());
        let tenant = tenant.ok_or_else(|| malformed("a space's record"))?;
        found.insert(KeySpace::from_tenant(tenant)?, SpaceRecord::decode(value)?);
        cursor.advance()?;
    }
    for family in [Cf::Key, Cf::Lease] {
        let from = group.prefix();
        let mut cursor = view.sweep(family, &from, &keys::prefix_end(&from))?;
        while let Some((key, _)) = cursor.current() {
            let (name, _) = KeySpace::split(key).ok_or_else(|| malformed("a row"))?;
            let next = keys::prefix_end(&name.engine_prefix());
            found.entry(name).or_insert_with(Space::fresh_record);
            cursor.seek(&next)?;
        }
    }
    Ok(found)
}

fn malformed(what: &str) -> StoreError {
    StoreError::Corrupt(format!("{what} has a malformed key"))
}

/// Rows of a space on their way out.
struct Outgoing<'a, 'b> {
    rows: Rows,
    bytes: usize,
    count: Count,
    out: &'a mut Framer,
    emit: &'a mut Emit<'b>,
}

impl Outgoing<'_, '_> {
    fn added(&mut self, bytes: usize) -> Result<(), BackupError> {
        self.bytes += bytes;
        if self.bytes >= PIECE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), BackupError> {
        self.bytes = 0;
        let rows = std::mem::take(&mut self.rows);
        if rows == Rows::default() {
            return Ok(());
        }
        (self.emit)(self.out.frame(Frame::Rows(rows)))
    }
}

fn space(
    view: &dyn Reader,
    name: &KeySpace,
    record: &SpaceRecord,
    out: &mut Framer,
    emit: &mut Emit<'_>,
) -> Result<(), BackupError> {
    let under_way = record.restore.filter(|restore| !restore.is_done());
    let head = SpaceHead {
        tenant: name.tenant().to_owned(),
        fence: record.fence,
        limit_bytes: record.limits.bytes,
        limit_keys: record.limits.keys,
        limit_writes_per_second: record.limits.writes_per_second,
        restore_id: under_way.map_or(0, |restore| restore.id),
        restore_step: under_way.map_or(0, |restore| restore.step),
        restore_revision: under_way.map_or(0, |restore| restore.revision),
    };
    emit(out.frame(Frame::Space(head)))?;
    let mut outgoing = Outgoing {
        rows: Rows::default(),
        bytes: 0,
        count: Count::new(),
        out,
        emit,
    };
    let prefix = name.engine_prefix();
    newest_versions(view, &prefix, &mut outgoing)?;
    leases(view, &prefix, &mut outgoing)?;
    outgoing.flush()?;
    let end = outgoing.count.end();
    emit(out.frame(Frame::SpaceEnd(end)))
}

fn newest_versions(view: &dyn Reader, prefix: &[u8], to: &mut Outgoing<'_, '_>) -> Result<(), BackupError> {
    let mut cursor = view.sweep(Cf::Key, prefix, &keys::prefix_end(prefix))?;
    let mut seen: Option<Bytes> = None;
    while let Some((raw_key, raw)) = cursor.current() {
        let split = raw_key.get(prefix.len()..).and_then(keys::split_version_key);
        let (key, modified) = split.ok_or_else(|| malformed("a version"))?;
        // Newest first: what follows of the same key is history.
        if seen.as_ref() != Some(&key) {
            seen = Some(key.clone());
            let version = record::decode_version(raw, modified)?;
            if !version.is_tombstone() {
                let value = record::version_value(&Bytes::copy_from_slice(raw))?;
                let kv = record::key_value(key, &version, value);
                to.count.key(&kv);
                let bytes = kv.key.len() + kv.value.len();
                to.rows.keys.push(kv);
                to.added(bytes)?;
            }
        }
        cursor.advance()?;
    }
    Ok(())
}

fn leases(view: &dyn Reader, prefix: &[u8], to: &mut Outgoing<'_, '_>) -> Result<(), BackupError> {
    let mut cursor = view.cursor(Cf::Lease, prefix, &keys::prefix_end(prefix))?;
    while let Some((key, value)) = cursor.current() {
        let id = key.get(prefix.len()..).and_then(keys::split_lease_key);
        let LeaseRecord { ttl, deadline } = LeaseRecord::decode(value)?;
        to.rows.leases.push(Lease {
            id: id.ok_or_else(|| malformed("a lease"))?,
            ttl_seconds: ttl,
            deadline_millis: deadline,
        });
        to.count.leases += 1;
        to.added(std::mem::size_of::<Lease>())?;
        cursor.advance()?;
    }
    Ok(())
}
