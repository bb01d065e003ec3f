//! The log writer: order, shared syncs, and what follows a failed write.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{Fixture, put, put_op, range};
use hanse_state::engine::{
    Cf, Cursor, Engine, EngineError, LogWriter, MemoryEngine, Reader, SharedEngine, WriteBatch, WriterOptions,
};
use hanse_state::{Access, Store, StoreError, pb};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// An engine whose disk can be broken and whose syncs can be held up.
#[derive(Default)]
struct Fragile {
    inner: MemoryEngine,
    broken: AtomicBool,
    held: Mutex<()>,
}

impl Reader for Fragile {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<bytes::Bytes>, EngineError> {
        self.inner.get(cf, key)
    }

    fn cursor<'a>(&'a self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Box<dyn Cursor + 'a>, EngineError> {
        self.inner.cursor(cf, from, to)
    }

    fn last(&self, cf: Cf, from: &[u8], to: &[u8]) -> Result<Option<(bytes::Bytes, bytes::Bytes)>, EngineError> {
        self.inner.last(cf, from, to)
    }
}

impl Engine for Fragile {
    fn write(&self, batch: WriteBatch, sync: bool) -> Result<(), EngineError> {
        let _held = self.held.lock().unwrap();
        if self.broken.load(Ordering::SeqCst) {
            return Err(EngineError::Write("the disk is gone".to_owned()));
        }
        self.inner.write(batch, sync)
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.write(WriteBatch::new(), true)
    }

    fn snapshot<'a>(&'a self) -> Box<dyn Reader + 'a> {
        self.inner.snapshot()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }
}

fn batch(key: usize) -> WriteBatch {
    let mut batch = WriteBatch::new();
    batch.put(Cf::Log, key.to_be_bytes().to_vec(), "entry");
    batch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_share_syncs_and_are_answered_in_order() {
    const REQUESTS: usize = 500;
    let engine = Arc::new(Fragile::default());
    let writer = LogWriter::start(engine.clone(), WriterOptions::default()).unwrap();
    let (answers, mut answered) = mpsc::channel(REQUESTS);
    // While the disk is busy with the first, the others queue up.
    let held = engine.held.lock().unwrap();
    let submit = async {
        for key in 0..REQUESTS {
            let answers = answers.clone();
            let done = Box::new(move |result: Result<(), EngineError>| answers.try_send((key, result)).unwrap());
            writer.submit(batch(key), done).await;
        }
    };
    futures::FutureExt::now_or_never(tokio::task::unconstrained(submit)).expect("the queue has room");
    drop(held);
    for key in 0..REQUESTS {
        assert_eq!(answered.recv().await, Some((key, Ok(()))));
    }
    let syncs = engine.inner.syncs();
    assert!(syncs <= 3, "{syncs} syncs for {REQUESTS} requests");
    assert_eq!(engine.scan(Cf::Log, b"", b"", usize::MAX).unwrap().len(), REQUESTS);

    // Appended entries can be read at once and are called durable later.
    let (done, durable) = tokio::sync::oneshot::channel();
    let append = writer.append(batch(REQUESTS), Box::new(move |result| done.send(result).unwrap()));
    append.await.unwrap();
    assert!(engine.get(Cf::Log, &REQUESTS.to_be_bytes()).unwrap().is_some());
    assert_eq!(durable.await.unwrap(), Ok(()));
    tokio::task::spawn_blocking(move || writer.close()).await.unwrap();
}

/// A process that exits while the thread still closes RocksDB aborts, and says it failed.
#[test]
fn the_last_handle_takes_the_thread_and_its_engine_along() {
    for round in 0..20_usize {
        let engine: SharedEngine = Arc::new(MemoryEngine::new());
        let writer = LogWriter::start(Arc::clone(&engine), WriterOptions::default()).unwrap();
        let (other, wrote) = (writer.clone(), Arc::<AtomicUsize>::default());
        let counted = Arc::clone(&wrote);
        writer.submit_blocking(
            batch(round),
            Box::new(move |result| {
                result.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
            }),
        );
        drop(other);
        drop(writer);
        assert_eq!(wrote.load(Ordering::SeqCst), 1, "what was queued is written first");
        assert_eq!(
            Arc::strong_count(&engine),
            1,
            "round {round}: the thread has the engine still"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_after_a_failed_write() {
    let engine = Arc::new(Fragile::default());
    let writer = LogWriter::start(engine.clone(), WriterOptions::default()).unwrap();
    writer.write(batch(1)).await.unwrap();
    engine.broken.store(true, Ordering::SeqCst);
    assert_eq!(
        writer.write(batch(2)).await,
        Err(EngineError::Write("the disk is gone".to_owned()))
    );
    // A disk that seems well again is not trusted.
    engine.broken.store(false, Ordering::SeqCst);
    assert!(matches!(writer.write(batch(3)).await, Err(EngineError::Stopped(_))));
    assert!(matches!(
        writer.append(batch(4), Box::new(|_| panic!("never"))).await,
        Err(EngineError::Stopped(_))
    ));
    assert_eq!(engine.scan(Cf::Log, b"", b"", usize::MAX).unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_disk_fails_acknowledges_nothing_more_and_stops_the_process() {
    let engine = Arc::new(Fragile::default());
    let shared: SharedEngine = engine.clone();
    let fixture = Fixture::on(shared);
    let access = Access::tenant("t");
    let revision = put(&fixture.store, &access, "a", "1").await;
    engine.broken.store(true, Ordering::SeqCst);
    let write = |value: &str| pb::TxnRequest {
        success: vec![put_op("a", value)],
        ..Default::default()
    };
    let failed = fixture.store.txn(&access, write("2")).await;
    assert!(matches!(failed, Err(StoreError::Storage(_))), "{failed:?}");
    assert!(failed.unwrap_err().outcome_unknown());
    fixture.supervisor.shutdown_token().cancelled().await;
    assert!(fixture.supervisor.failure().unwrap().contains("the disk is gone"));
    engine.broken.store(false, Ordering::SeqCst);
    assert!(fixture.store.txn(&access, write("3")).await.is_err());
    // What was decided but never became durable was never to be seen.
    assert_eq!(fixture.store.revision(), revision);
    let found = fixture.store.range(&access, range("a")).await.unwrap();
    assert_eq!(found.kvs[0].value, "1");
}
