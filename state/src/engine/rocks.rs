//! RocksDB: the only file that names it.
//!
//! One database, one write-ahead log for all families, so that a crash leaves a prefix of what was written. A torn end
//! of that log was never acknowledged and is dropped; damage in the middle of it stops the start.

use super::{BatchOp, Cf, Cursor, Engine, EngineError, Reader, WriteBatch};
use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRawIteratorWithThreadMode, DBRecoveryMode, ErrorKind, LogLevel, Options, ReadOptions, SnapshotWithThreadMode,
    WriteOptions,
};
use std::path::Path;
use std::sync::Arc;

/// Sizes; the defaults suit a server of a few gigabytes.
#[derive(Clone, Copy, Debug)]
pub struct RocksOptions {
    /// Bytes of blocks kept in memory, shared by all families.
    pub block_cache: usize,
    /// Bytes of log files before cold families are flushed.
    pub max_wal: u64,
    /// Bytes of one memtable of the families that are written most.
    pub memtable: usize,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            block_cache: 256 << 20,
            max_wal: 128 << 20,
            memtable: 64 << 20,
        }
    }
}

/// Bytes that are read at once by who goes through much.
const READ_AHEAD: usize = 2 << 20;

/// The engine.
pub struct RocksEngine {
    db: DB,
    sync: WriteOptions,
    no_sync: WriteOptions,
}

impl std::fmt::Debug for RocksEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksEngine").field("path", &self.db.path()).finish()
    }
}

fn database_options(options: &RocksOptions) -> Options {
    let mut db = Options::default();
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    db.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    db.set_track_and_verify_wals_in_manifest(true);
    db.set_paranoid_checks(true);
    // Used log files are written anew in place: a sync then has no file size to update.
    db.set_recycle_log_file_num(4);
    db.set_max_total_wal_size(options.max_wal);
    db.set_max_background_jobs(2);
    db.set_max_open_files(512);
    db.set_keep_log_file_num(4);
    db.set_max_log_file_size(4 << 20);
    db.set_log_level(LogLevel::Warn);
    db.set_stats_dump_period_sec(0);
    db
}

fn family_options(cf: Cf, options: &RocksOptions, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_block_size(16 << 10);
    table.set_format_version(6);
    let mut family = Options::default();
    family.set_level_compaction_dynamic_level_bytes(true);
    let busy = matches!(cf, Cf::Log | Cf::Rev | Cf::Key);
    family.set_write_buffer_size(if busy { options.memtable } else { options.memtable / 8 });
    family.set_max_write_buffer_number(3);
    if cf == Cf::Key {
        // Point reads of one version are the store's most frequent read.
        table.set_bloom_filter(10.0, false);
    }
    // What is young is short-lived: log entries are purged, versions compacted away.
    let compression = [DBCompressionType::None, DBCompressionType::None, DBCompressionType::Lz4];
    family.set_compression_per_level(&compression);
    family.set_block_based_table_factory(&table);
    family
}

impl RocksEngine {
    /// Opens the store in a directory, making it if it is missing.
    pub fn open(path: &Path, options: &RocksOptions) -> Result<Self, EngineError> {
        let cache = Cache::new_lru_cache(options.block_cache);
        let families = Cf::ALL.map(|cf| ColumnFamilyDescriptor::new(cf.name(), family_options(cf, options, &cache)));
        let db = DB::open_cf_descriptors(&database_options(options), path, families);
        let db = db.map_err(|error| open_error(path, &error))?;
        let mut sync = WriteOptions::default();
        sync.set_sync(true);
        Ok(Self {
            db,
            sync,
            no_sync: WriteOptions::default(),
        })
    }

    fn family(&self, cf: Cf) -> Result<Arc<BoundColumnFamily<'_>>, EngineError> {
        let missing = || EngineError::Read {
            family: cf.name(),
            detail: "the family does not exist".to_owned(),
        };
        self.db.cf_handle(cf.name()).ok_or_else(missing)
    }

    fn cursor_with(
        &self,
        cf: Cf,
        from: &[u8],
        to: &[u8],
        snapshot: Option<&SnapshotWithThreadMode<'_, DB>>,
        mut read: ReadOptions,
    ) -> Result<RocksCursor<'_>, EngineError> {
        read.set_iterate_lower_bound(from);
        if !to.is_empty() {
            read.set_iterate_upper_bound(to);
        }
        if let Some(snapshot) = snapshot {
            read.set_snapshot(snapshot);
        }
        let raw = self.db.raw_iterator_cf_opt(&self.family(cf)?, read);
        Ok(RocksCursor {
            raw,
            cf,
            empty: !to.is_empty() && from >= to,
        })
    }

    fn get_with(&self, cf: Cf, key: &[u8], read: &ReadOptions) -> Result<Option<Bytes>, EngineError> {
        let found = self
            .db
            .get_pinned_cf_opt(&self.family(cf)?, key, read)
            .map_err(|error| read_error(cf, &error))?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }
}

fn open_error(path: &Path, error: &rocksdb::Error) -> EngineError {
    let (path, detail) = (path.display().to_string(), error.to_string());
    match error.kind() {
        ErrorKind::Corruption => EngineError::Damaged { path, detail },
        _ => EngineError::Open { path, detail },
    }
}

fn read_error(cf: Cf, error: &rocksdb::Error) -> EngineError {
    EngineError::Read {
        family: cf.name(),
        detail: error.to_string(),
    }
}

struct RocksCursor<'a> {
    raw: DBRawIteratorWithThreadMode<'a, DB>,
    cf: Cf,
    empty: bool,
}

impl RocksCursor<'_> {
    fn check(&self) -> Result<(), EngineError> {
        self.raw.status().map_err(|error| read_error(self.cf, &error))
    }
}

impl Cursor for RocksCursor<'_> {
    fn current(&self) -> Option<(&[u8], &[u8])> {
        if self.empty { None } else { self.raw.item() }
    }

    fn advance(&mut self) -> Result<(), EngineError> {
        if !self.empty && self.raw.valid() {
            self.raw.next();
        }
        self.check()
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), EngineError> {
        if !self.empty {
            self.raw.seek(key);
        }
        self.check()
    }
}

/// For a cursor that goes through much, once.
fn sweeping() -> ReadOptions {
    let mut read = ReadOptions::default();
    read.fill_cache(false);
    read.set_readahead_size(READ_AHEAD);
    read
}

fn start(mut cursor: RocksCursor<'_>) -> Result<Box<dyn Cursor + '_>, EngineError> {
    if !cursor.empty {
        cursor.raw.seek_to_first();
    }
    cursor.check()?;
    Ok(Box::new(cursor))
}

fn last(mut cursor: RocksCursor<'_>) -> Result<Option<(Bytes, Bytes)>, EngineError> {
    if cursor.empty {
        return Ok(None);
    }
    cursor.raw.seek_to_last();
    cursor.check()?;
    Ok(cursor
        .current()
        .map(|(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))))
}

impl Reader for RocksEngine {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.get_with(cf, key, &ReadOptions::default())
    }

    fn cursor<'a>(&'a self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Box<dyn Cursor + 'a>, EngineError> {
        start(self.cursor_with(cf, from, to, None, ReadOptions::default())?)
    }

    fn sweep<'a>(&'a self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Box<dyn Cursor + 'a>, EngineError> {
        start(self.cursor_with(cf, from, to, None, sweeping())?)
    }

    fn last(&self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        last(self.cursor_with(cf, from, to, None, ReadOptions::default())?)
    }
}

struct RocksSnapshot<'a> {
    engine: &'a RocksEngine,
    snapshot: SnapshotWithThreadMode<'a, DB>,
}

impl Reader for RocksSnapshot<'_> {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let mut read = ReadOptions::default();
        read.set_snapshot(&self.snapshot);
        self.engine.get_with(cf, key, &read)
    }

    fn cursor<'a>(&'a self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Box<dyn Cursor + 'a>, EngineError> {
        let read = ReadOptions::default();
        start(self.engine.cursor_with(cf, from, to, Some(&self.snapshot), read)?)
    }

    fn sweep<'a>(&'a self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Box<dyn Cursor + 'a>, EngineError> {
        let read = sweeping();
        start(self.engine.cursor_with(cf, from, to, Some(&self.snapshot), read)?)
    }

    fn last(&self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        let read = ReadOptions::default();
        last(self.engine.cursor_with(cf, from, to, Some(&self.snapshot), read)?)
    }
}

impl Engine for RocksEngine {
    fn write(&self, batch: WriteBatch, sync: bool) -> Result<(), EngineError> {
        let families = [
            self.family(Cf::Log)?,
            self.family(Cf::Rev)?,
            self.family(Cf::Key)?,
            self.family(Cf::Lease)?,
            self.family(Cf::Meta)?,
        ];
        let mut out = rocksdb::WriteBatch::default();
        for op in batch.ops() {
            match op {
                BatchOp::Put(cf, key, value) => out.put_cf(&families[cf.index()], key, value),
                BatchOp::Delete(cf, key) => out.delete_cf(&families[cf.index()], key),
                BatchOp::DeleteRange(cf, from, to) => {
                    if from < to {
                        out.delete_range_cf(&families[cf.index()], from, to);
                    }
                }
            }
        }
        let options = if sync { &self.sync } else { &self.no_sync };
        self.db
            .write_opt(out, options)
            .map_err(|error| EngineError::Write(error.to_string()))
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.db
            .flush_wal(true)
            .map_err(|error| EngineError::Write(error.to_string()))
    }

    fn snapshot<'a>(&'a self) -> Box<dyn Reader + 'a> {
        Box::new(RocksSnapshot {
            engine: self,
            snapshot: self.db.snapshot(),
        })
    }

    fn size(&self) -> u64 {
        let property = |name: &str| -> u64 {
            let of = |cf: Cf| -> Option<u64> {
                let family = self.family(cf).ok()?;
                self.db.property_int_value_cf(&family, name).ok().flatten()
            };
            Cf::ALL.into_iter().filter_map(of).sum()
        };
        property("rocksdb.total-sst-files-size") + property("rocksdb.size-all-mem-tables")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_store_whose_files_were_changed_is_damaged_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let open = || RocksEngine::open(dir.path(), &RocksOptions::default());
        let engine = open().unwrap();
        assert!(matches!(open(), Err(EngineError::Open { .. })), "another has it");
        let mut batch = WriteBatch::new();
        batch.put(Cf::Meta, "a", "1");
        engine.write(batch, true).unwrap();
        drop(engine);
        let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let is_manifest = |path: &std::path::PathBuf| path.to_string_lossy().contains("MANIFEST");
        let manifest = entries.into_iter().find(is_manifest).unwrap();
        let good = fs::read(&manifest).unwrap();
        let mut bytes = good.clone();
        bytes[20] ^= 1;
        fs::write(&manifest, bytes).unwrap();
        let error = open().err().unwrap();
        assert!(matches!(error, EngineError::Damaged { .. }), "{error}");
        assert!(!error.retryable());
        fs::write(&manifest, good).unwrap();
        let engine = open().unwrap();
        assert_eq!(engine.get(Cf::Meta, b"a").unwrap().unwrap(), "1");
    }
}
