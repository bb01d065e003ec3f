//! Reads of one space at one revision: by transactions while they are applied, and by readers beside them.

use crate::engine::{Cf, Engine};
use crate::error::StoreError;
use crate::machine::index::{Index, KeyRange, Version};
use crate::machine::record;
use crate::machine::space::Space;
use crate::pb::{self, compare, range_request};
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::HashMap;

/// From so many values on, one pass over the engine is cheaper than a read for each.
const PASS_FROM: usize = 12;
/// Versions that a pass steps over before it seeks.
const STEPS: usize = 6;

/// Values of revisions that are staged but not yet written.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    values: HashMap<i64, Vec<(Bytes, Bytes)>>,
}

impl Pending {
    pub(crate) fn insert(&mut self, revision: i64, key: Bytes, value: Bytes) {
        self.values.entry(revision).or_default().push((key, value));
    }

    pub(crate) fn forget(&mut self, revision: i64) {
        self.values.remove(&revision);
    }

    fn get(&self, revision: i64, key: &[u8]) -> Option<Bytes> {
        // At most as many as a transaction has operations.
        let values = self.values.get(&revision)?;
        values
            .iter()
            .find(|(known, _)| known == key)
            .map(|(_, value)| value.clone())
    }
}

/// A space as one reader sees it.
pub(crate) struct View<'a> {
    pub(crate) engine: &'a dyn Engine,
    pub(crate) space: &'a Space,
    pub(crate) pending: Option<&'a Pending>,
    /// Newest revision that is seen.
    pub(crate) at: i64,
    /// Revision of the group, as answers show it.
    pub(crate) revision: i64,
    pub(crate) floor: i64,
}

/// What a range request finds, before values are read.
pub(crate) struct Found {
    hits: Vec<(Bytes, Version)>,
    count: i64,
    more: bool,
    /// Whether `hits` ascend by key.
    ascending: bool,
}

impl Found {
    /// How many values are still to be read.
    pub(crate) fn values(&self, req: &pb::RangeRequest) -> usize {
        if req.keys_only { 0 } else { self.hits.len() }
    }
}

impl View<'_> {
    /// The revision that a range request reads at.
    pub(crate) fn revision_of(&self, req: &pb::RangeRequest) -> Result<i64, StoreError> {
        if req.revision > self.revision {
            return Err(StoreError::FutureRevision { current: self.revision });
        }
        let at = if req.revision <= 0 { self.at } else { req.revision };
        if at < self.floor {
            return Err(StoreError::Compacted { floor: self.floor });
        }
        Ok(at)
    }

    /// Finds keys in the index. A value's order needs the values, so that one is limited by [`View::answer`].
    pub(crate) fn find(&self, req: &pb::RangeRequest, at: i64) -> Found {
        let range = KeyRange::new(&req.key, &req.range_end);
        let index = self.space.index.read();
        if req.count_only {
            let count = count(index.range(&range, at).count());
            return Found {
                hits: Vec::new(),
                count,
                more: false,
                ascending: true,
            };
        }
        let limit = usize::try_from(req.limit)
            .ok()
            .filter(|limit| *limit > 0)
            .unwrap_or(usize::MAX);
        let (target, order) = sorting(req);
        if target == Target::Key && order == Order::Ascending && !filters(req) {
            return find_in_order(&index, &range, at, limit);
        }
        // Without an order etcd sorts what the limit has left, and one more. With one, it cuts what is sorted.
        let cut_first = req.sort_order == i32::from(range_request::SortOrder::None) && !filters(req);
        let mut total = 0;
        let mut hits = Vec::new();
        for (key, version) in index.range(&range, at) {
            total += 1;
            if passes(req, version) && (!cut_first || hits.len() <= limit) {
                hits.push((key.clone(), *version));
            }
        }
        drop(index);
        if target == Target::Value {
            return Found {
                hits,
                count: count(total),
                more: false,
                ascending: true,
            };
        }
        sort(&mut hits, order, |a, b| match target {
            Target::Version => a.1.version.cmp(&b.1.version),
            Target::Create => a.1.created.cmp(&b.1.created),
            Target::Mod => a.1.modified.cmp(&b.1.modified),
            Target::Key | Target::Value => a.0.cmp(&b.0),
        });
        let more = hits.len() > limit;
        hits.truncate(limit);
        let ascending = target == Target::Key && order == Order::Ascending;
        Found {
            hits,
            count: count(total),
            more,
            ascending,
        }
    }

    /// Reads the values of what was found. None: one was compacted away meanwhile.
    pub(crate) fn answer(&self, req: &pb::RangeRequest, found: Found) -> Result<Option<pb::RangeResponse>, StoreError> {
        let (target, order) = sorting(req);
        let mut more = found.more;
        let by_value = target == Target::Value;
        let kvs = if req.keys_only && !by_value {
            let bare = |(key, version): (Bytes, Version)| record::key_value(key, &version, Bytes::new());
            Some(found.hits.into_iter().map(bare).collect())
        } else if found.ascending && found.hits.len() >= PASS_FROM && self.pending.is_none() {
            self.pass(found.hits)?
        } else {
            self.points(found.hits)?
        };
        let Some(mut kvs) = kvs else {
            return Ok(None);
        };
        if by_value {
            sort(&mut kvs, order, |a: &pb::KeyValue, b| a.value.cmp(&b.value));
            if let Some(limit) = usize::try_from(req.limit).ok().filter(|limit| *limit > 0) {
                more = kvs.len() > limit;
                kvs.truncate(limit);
            }
            if req.keys_only {
                kvs.iter_mut().for_each(|kv| kv.value.clear());
            }
        }
        Ok(Some(pb::RangeResponse {
            header: header(self.revision),
            kvs,
            more,
            count: found.count,
        }))
    }

    fn points(&self, hits: Vec<(Bytes, Version)>) -> Result<Option<Vec<pb::KeyValue>>, StoreError> {
        let mut out = Vec::with_capacity(hits.len());
        for (key, version) in hits {
            let Some(value) = self.value(&key, &version)? else {
                return Ok(None);
            };
            out.push(record::key_value(key, &version, value));
        }
        Ok(Some(out))
    }

    /// One pass over the engine for hits in ascending order.
    fn pass(&self, hits: Vec<(Bytes, Version)>) -> Result<Option<Vec<pb::KeyValue>>, StoreError> {
        let (Some(first), Some(last)) = (hits.first(), hits.last()) else {
            return Ok(Some(Vec::new()));
        };
        let start = self.space.version_key(&first.0, first.1.modified);
        let mut end = self.space.version_key(&last.0, last.1.modified);
        end.push(0);
        let mut cursor = self.engine.cursor(Cf::Key, &start, &end)?;
        let mut out = Vec::with_capacity(hits.len());
        for (key, version) in hits {
            let wanted = self.space.version_key(&key, version.modified);
            let mut steps = 0;
            let value = loop {
                match cursor.current() {
                    Some((at, _)) if at < wanted.as_slice() && steps == STEPS => {
                        steps = 0;
                        cursor.seek(&wanted)?;
                    }
                    Some((at, _)) if at < wanted.as_slice() => {
                        steps += 1;
                        cursor.advance()?;
                    }
                    Some((at, raw)) if at == wanted.as_slice() => {
                        break record::version_value(&Bytes::copy_from_slice(raw))?;
                    }
                    Some(_) | None => return Ok(None),
                }
            };
            out.push(record::key_value(key, &version, value));
        }
        Ok(Some(out))
    }

    /// The value of a version; none if it was compacted away.
    pub(crate) fn value(&self, key: &Bytes, version: &Version) -> Result<Option<Bytes>, StoreError> {
        if let Some(value) = self.pending.and_then(|pending| pending.get(version.modified, key)) {
            return Ok(Some(value));
        }
        match self
            .engine
            .get(Cf::Key, &self.space.version_key(key, version.modified))?
        {
            Some(raw) => Ok(Some(record::version_value(&raw)?)),
            None => Ok(None),
        }
    }

    /// Whether a compare holds, of every key in its range.
    pub(crate) fn holds(&self, compare: &pb::Compare) -> Result<bool, StoreError> {
        let range = KeyRange::new(&compare.key, &compare.range_end);
        let target = compare::CompareTarget::try_from(compare.target).ok();
        let hits: Vec<(Bytes, Version)> = {
            let index = self.space.index.read();
            index
                .range(&range, self.at)
                .map(|(key, version)| (key.clone(), *version))
                .collect()
        };
        if hits.is_empty() {
            // A missing value equals nothing, not even the empty value.
            let absent = Version::tombstone(0);
            return Ok(target != Some(compare::CompareTarget::Value) && compare_version(compare, target, &absent));
        }
        for (key, version) in hits {
            let holds = if target == Some(compare::CompareTarget::Value) {
                let value = self.value(&key, &version)?;
                let value = value.ok_or_else(|| StoreError::Corrupt("a present value is missing".to_owned()))?;
                let want = match &compare.target_union {
                    Some(compare::TargetUnion::Value(want)) => want.clone(),
                    _ => Bytes::new(),
                };
                result_holds(compare.result, value.cmp(&want))
            } else {
                compare_version(compare, target, &version)
            };
            if !holds {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The fast path: counts everything but keeps only what fits.
fn find_in_order(index: &Index, range: &KeyRange, at: i64, limit: usize) -> Found {
    let mut hits = Vec::new();
    let mut total = 0;
    for (key, version) in index.range(range, at) {
        if total < limit {
            hits.push((key.clone(), *version));
        }
        total += 1;
    }
    Found {
        hits,
        count: count(total),
        more: total > limit,
        ascending: true,
    }
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// An answer's header; the service fills in the rest.
pub(crate) fn header(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader {
        revision,
        ..Default::default()
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Key,
    Version,
    Create,
    Mod,
    Value,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Ascending,
    Descending,
}

fn sorting(req: &pb::RangeRequest) -> (Target, Order) {
    use range_request::{SortOrder, SortTarget};
    let target = match SortTarget::try_from(req.sort_target) {
        Ok(SortTarget::Version) => Target::Version,
        Ok(SortTarget::Create) => Target::Create,
        Ok(SortTarget::Mod) => Target::Mod,
        Ok(SortTarget::Value) => Target::Value,
        Ok(SortTarget::Key) | Err(_) => Target::Key,
    };
    let descending = SortOrder::try_from(req.sort_order) == Ok(SortOrder::Descend);
    (
        target,
        if descending {
            Order::Descending
        } else {
            Order::Ascending
        },
    )
}

fn sort<T>(items: &mut [T], order: Order, compare: impl Fn(&T, &T) -> Ordering) {
    match order {
        Order::Ascending => items.sort_by(compare),
        Order::Descending => items.sort_by(|a, b| compare(b, a)),
    }
}

fn filters(req: &pb::RangeRequest) -> bool {
    req.min_mod_revision != 0
        || req.max_mod_revision != 0
        || req.min_create_revision != 0
        || req.max_create_revision != 0
}

fn passes(req: &pb::RangeRequest, version: &Version) -> bool {
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(version.modified, req.min_mod_revision, req.max_mod_revision)
        && within(version.created, req.min_create_revision, req.max_create_revision)
}

fn compare_version(compare: &pb::Compare, target: Option<compare::CompareTarget>, version: &Version) -> bool {
    use compare::{CompareTarget, TargetUnion};
    let union = compare.target_union.as_ref();
    let (is, want) = match target {
        Some(CompareTarget::Version) => (
            version.version,
            if let Some(TargetUnion::Version(want)) = union {
                *want
            } else {
                0
            },
        ),
        Some(CompareTarget::Create) => (
            version.created,
            if let Some(TargetUnion::CreateRevision(want)) = union {
                *want
            } else {
                0
            },
        ),
        Some(CompareTarget::Mod) => (
            version.modified,
            if let Some(TargetUnion::ModRevision(want)) = union {
                *want
            } else {
                0
            },
        ),
        Some(CompareTarget::Lease) => (
            version.lease,
            if let Some(TargetUnion::Lease(want)) = union {
                *want
            } else {
                0
            },
        ),
        Some(CompareTarget::Value) | None => (0, 0),
    };
    result_holds(compare.result, is.cmp(&want))
}

fn result_holds(result: i32, is: Ordering) -> bool {
    use compare::CompareResult;
    match CompareResult::try_from(result) {
        Ok(CompareResult::Equal) => is == Ordering::Equal,
        Ok(CompareResult::NotEqual) => is != Ordering::Equal,
        Ok(CompareResult::Greater) => is == Ordering::Greater,
        Ok(CompareResult::Less) => is == Ordering::Less,
        // etcd lets an unknown comparison hold.
        Err(_) => true,
    }
}
