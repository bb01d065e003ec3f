//! Events that lie in the engine already: for watches that start in the past or fell behind.

use crate::engine::Cf;
use crate::error::StoreError;
use crate::keys;
use crate::machine::Shared;
use crate::machine::hub::{event, wanted};
use crate::machine::index::{KeyRange, Version};
use crate::machine::record::{self, EventRecord};
use crate::machine::space::Space;
use crate::pb;
use crate::store::{WatchItem, WatchRequest};
use bytes::Bytes;

/// Records looked at in one go; a revision is never split.
const CHUNK_RECORDS: usize = 4096;
/// Bytes of events gathered in one go; a revision is never split.
const CHUNK_BYTES: usize = 1 << 20;

/// What one go came to.
pub(crate) enum Chunk {
    /// Items, and the revision to go on from.
    Items { items: Vec<WatchItem>, next: i64 },
    /// What was to be read is compacted.
    Compacted { floor: i64 },
    /// Storage failed.
    Failed,
}

/// Reads events of `from..=upto` that a watch wants, as many as fit.
pub(crate) fn chunk(
    shared: &Shared,
    space: &Space,
    range: &KeyRange,
    request: &WatchRequest,
    from: i64,
    upto: i64,
) -> Chunk {
    let _gate = shared.gate.read();
    let read = read(shared, space, range, request, from, upto);
    // Only now: what was read before the floor moved is complete, what was read after it may not be.
    let floor = space.floor();
    match read {
        Ok(_) | Err(_) if from < floor => Chunk::Compacted { floor },
        Ok((items, next)) => Chunk::Items { items, next },
        Err(error) => {
            tracing::error!(%error, "a watch could not read past events");
            Chunk::Failed
        }
    }
}

fn read(
    shared: &Shared,
    space: &Space,
    range: &KeyRange,
    request: &WatchRequest,
    from: i64,
    upto: i64,
) -> Result<(Vec<WatchItem>, i64), StoreError> {
    let (start, end) = (
        keys::event_key(&space.prefix, from, 0),
        keys::event_key(&space.prefix, upto + 1, 0),
    );
    let mut cursor = shared.engine.cursor(Cf::Rev, &start, &end)?;
    let mut items = Vec::new();
    let mut events: (i64, Vec<pb::Event>) = (0, Vec::new());
    let (mut seen, mut bytes) = (0, 0);
    while let Some((key, value)) = cursor.current() {
        let split = key.get(space.prefix.len()..).and_then(keys::split_event_key);
        let (revision, _) = split.ok_or_else(|| StoreError::Corrupt("an event has a malformed key".to_owned()))?;
        if revision != events.0 {
            flush(&mut items, &mut events, revision);
            if seen >= CHUNK_RECORDS || bytes >= CHUNK_BYTES {
                return Ok((items, revision));
            }
        }
        seen += 1;
        let record = EventRecord::decode(value, revision)?;
        let deleted = record.version.is_tombstone();
        if wanted(request, range, &record.key, deleted) {
            let Some(event) = build(shared, space, record, request.prev_kv)? else {
                // The caller looks first whether the floor has moved past it.
                return Err(StoreError::Corrupt(format!(
                    "the value of an event at revision {revision} is missing"
                )));
            };
            bytes += event.kv.as_ref().map_or(0, |kv| kv.value.len() + kv.key.len());
            events.1.push(event);
        }
        cursor.advance()?;
    }
    flush(&mut items, &mut events, 0);
    Ok((items, upto + 1))
}

fn flush(items: &mut Vec<WatchItem>, events: &mut (i64, Vec<pb::Event>), next: i64) {
    let (revision, done) = std::mem::replace(events, (next, Vec::new()));
    if !done.is_empty() {
        items.push(WatchItem::Events { revision, events: done });
    }
}

/// None: a value that it needs is compacted.
fn build(
    shared: &Shared,
    space: &Space,
    record: EventRecord,
    with_previous: bool,
) -> Result<Option<pb::Event>, StoreError> {
    let EventRecord { version, previous, key } = record;
    let mut prev_kv = None;
    if with_previous && previous > 0 {
        prev_kv = load_at(shared, space, &key, previous)?;
        if prev_kv.is_none() {
            return Ok(None);
        }
    }
    if version.is_tombstone() {
        let kv = pb::KeyValue {
            key,
            mod_revision: version.modified,
            ..Default::default()
        };
        return Ok(Some(event(kv, true, prev_kv)));
    }
    let Some(kv) = load_at(shared, space, &key, version.modified)? else {
        return Ok(None);
    };
    Ok(Some(event(kv, false, prev_kv)))
}

fn load_at(shared: &Shared, space: &Space, key: &Bytes, revision: i64) -> Result<Option<pb::KeyValue>, StoreError> {
    let Some(raw) = shared.engine.get(Cf::Key, &space.version_key(key, revision))? else {
        return Ok(None);
    };
    let version = record::decode_version(&raw, revision)?;
    Ok(Some(record::key_value(
        key.clone(),
        &version,
        record::version_value(&raw)?,
    )))
}

/// Reads the value of a version; none if it was compacted away.
pub(crate) fn load(
    shared: &Shared,
    space: &Space,
    key: &Bytes,
    version: &Version,
) -> Result<Option<pb::KeyValue>, StoreError> {
    let _gate = shared.gate.read();
    load_at(shared, space, key, version.modified)
}
