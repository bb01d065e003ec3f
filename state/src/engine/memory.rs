//! An engine that forgets everything when it is dropped: for tests, simulation and measuring what is not storage.

use super::{BatchOp, Cf, Cursor, Engine, EngineError, Reader, WriteBatch};
use bytes::Bytes;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};

type Family = BTreeMap<Bytes, Bytes>;

/// The engine.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    families: [RwLock<Family>; 5],
    syncs: AtomicU64,
}

impl MemoryEngine {
    /// An empty engine.
    pub fn new() -> Self {
        Self::default()
    }

    /// How often it was asked to sync.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}

fn upper(to: &[u8]) -> Bound<&[u8]> {
    if to.is_empty() {
        Bound::Unbounded
    } else {
        Bound::Excluded(to)
    }
}

fn is_empty_range(from: &[u8], to: &[u8]) -> bool {
    !to.is_empty() && from >= to
}

struct MemoryCursor<'a> {
    family: &'a RwLock<Family>,
    from: Bytes,
    to: Bytes,
    current: Option<(Bytes, Bytes)>,
}

impl MemoryCursor<'_> {
    fn find(&mut self, from: Bound<&[u8]>) {
        let family = self.family.read();
        let from_key = match from {
            Bound::Included(key) | Bound::Excluded(key) => key,
            Bound::Unbounded => &[],
        };
        self.current = if is_empty_range(from_key, &self.to) {
            None
        } else {
            family
                .range::<[u8], _>((from, upper(&self.to)))
                .next()
                .map(|(k, v)| (k.clone(), v.clone()))
        };
    }
}

impl Cursor for MemoryCursor<'_> {
    fn current(&self) -> Option<(&[u8], &[u8])> {
        self.current.as_ref().map(|(k, v)| (k.as_ref(), v.as_ref()))
    }

    fn advance(&mut self) -> Result<(), EngineError> {
        if let Some((key, _)) = self.current.take() {
            self.find(Bound::Excluded(&key));
        }
        Ok(())
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), EngineError> {
        let from = self.from.clone();
        self.find(Bound::Included(key.max(&from)));
        Ok(())
    }
}

fn cursor<'a>(family: &'a RwLock<Family>, from: &[u8], to: &[u8]) -> Box<dyn Cursor + 'a> {
    let mut cursor = MemoryCursor {
        family,
        from: Bytes::copy_from_slice(from),
        to: Bytes::copy_from_slice(to),
        current: None,
    };
    cursor.find(Bound::Included(from));
    Box::new(cursor)
}

fn last(family: &Family, from: &[u8], to: &[u8]) -> Option<(Bytes, Bytes)> {
    if is_empty_range(from, to) {
        return None;
    }
    let found = family.range::<[u8], _>((Bound::Included(from), upper(to))).next_back();
    found.map(|(k, v)| (k.clone(), v.clone()))
}

impl Reader for MemoryEngine {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.families[cf.index()].read().get(key).cloned())
    }

    fn cursor<'a>(&'a self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Box<dyn Cursor + 'a>, EngineError> {
        Ok(cursor(&self.families[cf.index()], from, to))
    }

    fn last(&self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        Ok(last(&self.families[cf.index()].read(), from, to))
    }
}

struct MemorySnapshot {
    families: [RwLock<Family>; 5],
}

impl Reader for MemorySnapshot {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.families[cf.index()].read().get(key).cloned())
    }

    fn cursor<'a>(&'a self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Box<dyn Cursor + 'a>, EngineError> {
        Ok(cursor(&self.families[cf.index()], from, to))
    }

    fn last(&self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        Ok(last(&self.families[cf.index()].read(), from, to))
    }
}

impl Engine for MemoryEngine {
    fn write(&self, batch: WriteBatch, sync: bool) -> Result<(), EngineError> {
        // All families at once, in a fixed order, so that a batch is never seen in part.
        let mut families = self.families.each_ref().map(RwLock::write);
        for op in batch.ops {
            match op {
                BatchOp::Put(cf, key, value) => {
                    families[cf.index()].insert(key, value);
                }
                BatchOp::Delete(cf, key) => {
                    families[cf.index()].remove(&key);
                }
                BatchOp::DeleteRange(cf, from, to) => {
                    let family = &mut families[cf.index()];
                    if !is_empty_range(&from, &to) {
                        let range = (Bound::Included(from.as_ref()), upper(&to));
                        let keys: Vec<_> = family.range::<[u8], _>(range).map(|(key, _)| key.clone()).collect();
                        for key in keys {
                            family.remove(&key);
                        }
                    }
                }
            }
        }
        drop(families);
        if sync { self.sync() } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn snapshot<'a>(&'a self) -> Box<dyn Reader + 'a> {
        let locked = self.families.each_ref().map(RwLock::read);
        Box::new(MemorySnapshot {
            families: locked.map(|family| RwLock::new(family.clone())),
        })
    }

    fn size(&self) -> u64 {
        let bytes = |family: &RwLock<Family>| -> usize { family.read().iter().map(|(k, v)| k.len() + v.len()).sum() };
        self.families.iter().map(bytes).sum::<usize>() as u64
    }
}
