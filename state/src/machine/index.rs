//! Which versions each key of a space has, in memory; values stay in the engine.
//!
//! The index may hold versions of revisions that are staged but not yet durable. Readers ask for the published revision
//! and so never see them.

use crate::machine::limits::Live;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

/// Everything about one version of a key but its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// Revision that made it.
    pub(crate) modified: i64,
    /// Revision that created the key; 0 for a tombstone.
    pub(crate) created: i64,
    /// Changes since creation; 0 for a tombstone.
    pub(crate) version: i64,
    /// Attached lease.
    pub(crate) lease: i64,
    /// Bytes of the value.
    pub(crate) size: u32,
}

/// Bytes of the fixed parts of a version's two records in the engine: the version itself and its event.
const RECORDS: u64 = 96;

impl Version {
    /// Bytes that a version of this key takes in the engine, before compression: both of its records have the key.
    pub(crate) fn stored_bytes(&self, key: &[u8]) -> u64 {
        stored_bytes(key.len(), self.size as usize)
    }

    pub(crate) fn tombstone(modified: i64) -> Self {
        Self {
            modified,
            created: 0,
            version: 0,
            lease: 0,
            size: 0,
        }
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.version == 0
    }
}

/// Bytes that a version takes in the engine.
pub(crate) fn stored_bytes(key: usize, value: usize) -> u64 {
    RECORDS + 2 * key as u64 + value as u64
}

/// A range of keys, by the rules of the API.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum KeyRange {
    /// One key.
    One(Bytes),
    /// From the first to before the second.
    Between(Bytes, Bytes),
    /// From the key on.
    From(Bytes),
}

impl KeyRange {
    pub(crate) fn new(key: &Bytes, end: &Bytes) -> Self {
        match end.as_ref() {
            [] => Self::One(key.clone()),
            [0] => Self::From(key.clone()),
            _ => Self::Between(key.clone(), end.clone()),
        }
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(one) => one == key,
            Self::Between(start, end) => start.as_ref() <= key && key < end.as_ref(),
            Self::From(start) => start.as_ref() <= key,
        }
    }

    /// Bounds for an ordered map; none if no key can match.
    fn bounds(&self) -> Option<Bounds<'_>> {
        match self {
            Self::One(key) => Some((Bound::Included(key), Bound::Included(key))),
            Self::Between(start, end) if start >= end => None,
            Self::Between(start, end) => Some((Bound::Included(start), Bound::Excluded(end))),
            Self::From(start) => Some((Bound::Included(start), Bound::Unbounded)),
        }
    }
}

/// Start and end of a range in an ordered map.
type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The versions of one key, oldest first. Most keys have one.
#[derive(Clone, Debug)]
enum History {
    One(Version),
    Many(Vec<Version>),
}

impl History {
    fn all(&self) -> &[Version] {
        match self {
            Self::One(version) => std::slice::from_ref(version),
            Self::Many(versions) => versions,
        }
    }

    fn at(&self, revision: i64) -> Option<&Version> {
        self.all().iter().rev().find(|version| version.modified <= revision)
    }

    fn push(&mut self, version: Version) {
        match self {
            Self::One(first) => *self = Self::Many(vec![*first, version]),
            Self::Many(versions) => versions.push(version),
        }
    }

    /// Removes what nobody who reads or watches from `floor` on needs, and answers it. The version that was present
    /// just before the floor stays: it is the previous value of a change at the floor itself.
    fn prune(&mut self, floor: i64) -> Vec<Version> {
        let versions = self.all();
        let Some(before) = versions.iter().rposition(|version| version.modified < floor) else {
            return Vec::new();
        };
        let cut = if versions[before].is_tombstone() {
            before + 1
        } else {
            before
        };
        if cut == 0 {
            return Vec::new();
        }
        let removed = versions[..cut].to_vec();
        let mut kept = versions[cut..].to_vec();
        kept.shrink_to_fit();
        *self = match kept.as_slice() {
            [one] => Self::One(*one),
            _ => Self::Many(kept),
        };
        removed
    }
}

/// The index of one space.
#[derive(Default)]
pub(crate) struct Index {
    keys: BTreeMap<Bytes, History>,
    /// Sum of the versions' [`Version::stored_bytes`].
    bytes: u64,
    live: Live,
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("keys", &self.len()).finish()
    }
}

impl Index {
    /// The newest version of a key, tombstone or not, staged ones included.
    pub(crate) fn latest(&self, key: &[u8]) -> Option<&Version> {
        self.keys.get(key)?.all().last()
    }

    /// The keys of a range that exist at a revision, ascending.
    pub(crate) fn range<'a>(
        &'a self,
        range: &'a KeyRange,
        revision: i64,
    ) -> impl Iterator<Item = (&'a Bytes, &'a Version)> + 'a {
        let found = range.bounds().map(|bounds| self.keys.range::<[u8], _>(bounds));
        found.into_iter().flatten().filter_map(move |(key, history)| {
            let version = history.at(revision).filter(|version| !version.is_tombstone())?;
            Some((key, version))
        })
    }

    /// Bytes in the engine of all versions, history included.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keys that exist and their newest values, staged ones included.
    pub(crate) fn live(&self) -> Live {
        self.live
    }

    fn count(&mut self, key: &[u8], before: Option<Version>, now: Option<Version>) {
        let size = |version: Option<Version>| {
            let version = version.filter(|version| !version.is_tombstone())?;
            Some(version.stored_bytes(key))
        };
        let (before, now) = (size(before), size(now));
        self.live.bytes = self.live.bytes.saturating_sub(before.unwrap_or(0)) + now.unwrap_or(0);
        self.live.keys = self.live.keys.saturating_sub(u64::from(before.is_some())) + u64::from(now.is_some());
    }

    /// Adds the newest version of a key.
    pub(crate) fn push(&mut self, key: &[u8], version: Version) {
        self.bytes += version.stored_bytes(key);
        let before = self.latest(key).copied();
        self.count(key, before, Some(version));
        match self.keys.get_mut(key) {
            Some(history) => history.push(version),
            None => {
                // A copy: the key of a request is part of the whole request, which must not stay in memory.
                self.keys.insert(Bytes::copy_from_slice(key), History::One(version));
            }
        }
    }

    /// Adds all versions of a key, while the index is built anew: the latest, and the others newest first.
    pub(crate) fn load(&mut self, key: Bytes, latest: Version, mut others: Vec<Version>) {
        let all = std::iter::once(&latest).chain(&others);
        self.bytes += all.map(|version| version.stored_bytes(&key)).sum::<u64>();
        self.count(&key, None, Some(latest));
        let history = if others.is_empty() {
            History::One(latest)
        } else {
            others.reverse();
            others.push(latest);
            History::Many(others)
        };
        self.keys.insert(key, history);
    }

    /// Every key with all its versions, oldest first.
    pub(crate) fn histories(&self) -> impl Iterator<Item = (&Bytes, &[Version])> {
        self.keys.iter().map(|(key, history)| (key, history.all()))
    }

    /// Prunes at most `budget` keys from `from` on. Answers what was removed and where to go on.
    pub(crate) fn prune(&mut self, from: &Bytes, floor: i64, budget: usize) -> (Vec<(Bytes, Version)>, Option<Bytes>) {
        let mut removed = Vec::new();
        let mut empty = Vec::new();
        let mut next = None;
        let range = (Bound::Included(from.clone()), Bound::Unbounded);
        for (seen, (key, history)) in self.keys.range_mut(range).enumerate() {
            if seen == budget {
                next = Some(key.clone());
                break;
            }
            removed.extend(history.prune(floor).into_iter().map(|version| (key.clone(), version)));
            if history.all().is_empty() {
                empty.push(key.clone());
            }
        }
        for key in empty {
            self.keys.remove(&key);
        }
        let freed: u64 = removed.iter().map(|(key, version)| version.stored_bytes(key)).sum();
        self.bytes = self.bytes.saturating_sub(freed);
        (removed, next)
    }

    /// Number of keys, deleted ones included that are not pruned yet.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }
}

/// The versions that a floor keeps, oldest first: what [`Index::prune`] would leave. Members agree on these whether
/// they have pruned yet or not.
pub(crate) fn kept(versions: &[Version], floor: i64) -> &[Version] {
    match versions.iter().rposition(|version| version.modified < floor) {
        Some(before) if versions[before].is_tombstone() => &versions[before + 1..],
        Some(before) => &versions[before..],
        None => versions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(modified: i64) -> Version {
        Version {
            modified,
            created: 1,
            version: 1,
            lease: 0,
            size: 0,
        }
    }

    fn index(versions: &[Version]) -> Index {
        let mut index = Index::default();
        for version in versions {
            index.push(b"k", *version);
        }
        index
    }

    #[test]
    fn ranges_follow_the_rules_of_the_api() {
        let b = |text: &'static str| Bytes::from_static(text.as_bytes());
        let mut index = Index::default();
        for key in ["a", "b", "c"] {
            index.push(&b(key), put(2));
        }
        let cases = [
            ("a", "", "a"),
            ("a", "c", "ab"),
            ("b", "\0", "bc"),
            ("c", "a", ""),
            ("b", "b", ""),
            ("x", "", ""),
        ];
        for (key, end, want) in cases {
            let range = KeyRange::new(&b(key), &b(end));
            let found: Vec<_> = index.range(&range, 2).map(|(key, _)| key.clone()).collect();
            assert_eq!(found.concat(), want.as_bytes(), "{key:?} {end:?}");
            for key in ["a", "b", "c"] {
                assert_eq!(range.contains(key.as_bytes()), want.contains(key));
            }
        }
    }

    #[test]
    fn pruning_keeps_what_a_reader_or_a_watcher_from_the_floor_needs() {
        let cases: [(&[Version], i64, &[i64]); 6] = [
            (&[put(2), put(4), put(6)], 5, &[4, 6]),
            // A change at the floor itself still has its previous value.
            (&[put(2), put(4), put(6)], 4, &[2, 4, 6]),
            (&[put(2), Version::tombstone(4)], 4, &[2, 4]),
            (&[put(2), Version::tombstone(4)], 5, &[]),
            (&[put(2), Version::tombstone(4), put(6)], 5, &[6]),
            (&[put(7)], 5, &[7]),
        ];
        for (versions, floor, want) in cases {
            let mut index = index(versions);
            let before: Vec<_> = kept(versions, floor).iter().map(|version| version.modified).collect();
            assert_eq!(before, want);
            index.prune(&Bytes::new(), floor, 10);
            let left: Vec<_> = index
                .histories()
                .flat_map(|(_, v)| v.iter().map(|v| v.modified))
                .collect();
            assert_eq!(left, want);
            assert_eq!(index.len(), usize::from(!want.is_empty()));
            assert_eq!(index.bytes(), stored_bytes(1, 0) * want.len() as u64);
        }
    }
}
