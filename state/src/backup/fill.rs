//! From a backup into an empty engine.
//!
//! A restored store has no history, and its revision is raised by [`REVISION_GAP`]: clients of the lost store may have seen
//! revisions after the backup. They are told that theirs are compacted and list anew, instead of waiting for revisions that
//! would come again with other content (etcd's advice for restores under Kubernetes).

use super::file::{FileReader, Part};
use super::{BackupError, SpaceSummary, Summary};
use crate::engine::{Cf, SharedEngine, WriteBatch};
use crate::keys::{self, GroupId, KeySpace};
use crate::machine::Machine;
use crate::machine::level::FIRST_LEVEL;
use crate::machine::record::{self, LeaseRecord, LevelRecord, SpaceRecord, StateRecord};
use crate::machine::restore::Restore;
use crate::pb::backup::{Group, Rows, Space};
use crate::store::Access;
use bytes::Bytes;
use hanse_api::resources::StoreLimits;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

/// By how much a restored group's revision is raised: more than any store writes between two backups.
pub const REVISION_GAP: i64 = 1_000_000_000;

/// What was restored.
#[derive(Clone, Debug)]
pub struct Filled {
    /// What the backup holds, and the engine does now.
    pub summary: Summary,
    /// The opaque marker of each group at the time of the backup.
    pub markers: BTreeMap<GroupId, Bytes>,
}

/// Writes what a backup of everything holds into an engine without data, and compares the hash of every space with the
/// backup's. After an error the engine is of no use.
pub fn fill(engine: &SharedEngine, input: impl Read) -> Result<Filled, BackupError> {
    let mut reader = FileReader::new(input)?;
    let head = reader.head().clone();
    if !head.tenant.is_empty() {
        return Err(BackupError::Partial(head.tenant));
    }
    let mut filled = Filled {
        summary: Summary {
            head,
            ..Summary::default()
        },
        markers: BTreeMap::new(),
    };
    let mut floor = 0;
    let mut prefix = Vec::new();
    while let Some(part) = reader.part()? {
        let mut batch = WriteBatch::new();
        match part {
            Part::Group(group) => {
                floor = group.revision.saturating_add(REVISION_GAP);
                filled.summary.groups.push((GroupId(group.group), group.revision));
                state(&group, floor, &mut batch);
                filled.markers.insert(GroupId(group.group), group.marker);
            }
            Part::Space(name, head) => {
                prefix = name.engine_prefix();
                space(&name, &head, floor, &mut batch);
            }
            Part::Rows(rows) => put(&prefix, rows, &mut batch),
            Part::SpaceEnd(space) => filled.summary.spaces.push(space),
        }
        engine.write(batch, false)?;
    }
    engine.sync()?;
    compare(engine, &filled.summary)?;
    Ok(filled)
}

fn state(group: &Group, revision: i64, batch: &mut WriteBatch) {
    let record = StateRecord {
        revision,
        last_at: group.last_at_millis,
    };
    let id = GroupId(group.group);
    batch.put(Cf::Meta, keys::meta_key(id, keys::META_STATE), record.encode());
    if group.level > FIRST_LEVEL {
        let record = LevelRecord { level: group.level };
        batch.put(Cf::Meta, keys::meta_key(id, keys::META_LEVEL), record.encode());
    }
}

fn space(name: &KeySpace, head: &Space, floor: i64, batch: &mut WriteBatch) {
    let record = SpaceRecord {
        floor,
        fence: head.fence,
        // Alarms are those of members that are no more.
        alarms: BTreeSet::new(),
        limits: StoreLimits {
            bytes: head.limit_bytes,
            keys: head.limit_keys,
            writes_per_second: head.limit_writes_per_second,
        },
        // Half a space stays closed until it is restored.
        restore: (head.restore_id != 0)
            .then(|| Restore::under_way(head.restore_id, head.restore_step, head.restore_revision)),
    };
    batch.put(Cf::Meta, keys::space_meta_key(name), record.encode());
}

fn put(prefix: &[u8], rows: Rows, batch: &mut WriteBatch) {
    for kv in rows.keys {
        let key = keys::version_key(prefix, &kv.key, kv.mod_revision);
        batch.put(Cf::Key, key, record::encode_version(&super::version(&kv), &kv.value));
    }
    for lease in rows.leases {
        let record = LeaseRecord {
            ttl: lease.ttl_seconds,
            deadline: lease.deadline_millis,
        };
        batch.put(Cf::Lease, keys::lease_key(prefix, lease.id), record.encode());
    }
}

/// Whether a store over the engine would hold what the summary says.
fn compare(engine: &SharedEngine, summary: &Summary) -> Result<(), BackupError> {
    for (group, _) in &summary.groups {
        let machine = Machine::open(*group, Arc::clone(engine))?;
        let here = |space: &&SpaceSummary| space.space.group() == *group && !space.dropped;
        for space in summary.spaces.iter().filter(here) {
            let access = Access {
                space: space.space.clone(),
                epoch: None,
            };
            let found = machine.hash_while_closed(&access)?.hash;
            if found != space.hash {
                return Err(BackupError::Differs {
                    space: match &space.space {
                        KeySpace::Registry => "the registry".to_owned(),
                        KeySpace::Tenant(id) => format!("the key space of tenant {id}"),
                    },
                    found,
                    wanted: space.hash,
                });
            }
        }
    }
    Ok(())
}
