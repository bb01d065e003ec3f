//! openraft's own store tests, on our log store and state machine, in memory and on RocksDB.
#![expect(clippy::unwrap_used, reason = "test code")]

use hanse_consensus::GroupId;
use hanse_consensus::log_store::LogStore;
use hanse_consensus::pending::Pending;
use hanse_consensus::spool::Spool;
use hanse_consensus::state_machine::StateMachine;
use hanse_consensus::types::TypeConfig;
use hanse_runtime::rng::SystemRng;
use hanse_state::engine::{LogWriter, MemoryEngine, RocksEngine, RocksOptions, SharedEngine, WriterOptions};
use hanse_state::machine::Machine;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use std::sync::Arc;
use tempfile::TempDir;

struct Builder {
    rocks: bool,
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let (group, dir) = (GroupId::TENANTS, tempfile::tempdir().unwrap());
        let small = RocksOptions {
            block_cache: 1 << 20,
            memtable: 1 << 20,
            ..RocksOptions::default()
        };
        let engine: SharedEngine = match self.rocks {
            true => Arc::new(RocksEngine::open(&dir.path().join("db"), &small).unwrap()),
            false => Arc::new(MemoryEngine::new()),
        };
        let writer = LogWriter::start(engine.clone(), WriterOptions::default()).unwrap();
        let log = LogStore::open(group, writer, Some(dir.path())).unwrap();
        let machine = Arc::new(Machine::open(group, engine.clone()).unwrap());
        let spool = Spool::new(dir.path(), group);
        let machine = StateMachine::open(group, machine, engine, Pending::new(&SystemRng), spool).unwrap();
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_suite_in_memory() {
    Suite::test_all(Builder { rocks: false }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_suite_on_rocksdb() {
    Suite::test_all(Builder { rocks: true }).await.unwrap();
}
