//! A store in this process, and short forms.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod peer;

use hanse_runtime::clock::SystemClock;
use hanse_runtime::rng::SystemRng;
use hanse_runtime::supervisor::Supervisor;
use hanse_state::engine::{LogWriter, MemoryEngine, RocksEngine, RocksOptions, SharedEngine, WriterOptions};
use hanse_state::pb::{self, request_op::Request};
use hanse_state::{Access, GroupId, LocalParts, LocalStore, Store};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct Fixture {
    pub(crate) store: Arc<LocalStore>,
    pub(crate) supervisor: Supervisor,
    pub(crate) writer: LogWriter,
}

impl Fixture {
    pub(crate) fn on(engine: SharedEngine) -> Self {
        Self::of(GroupId::TENANTS, engine)
    }

    pub(crate) fn of(group: GroupId, engine: SharedEngine) -> Self {
        let writer = LogWriter::start(engine, WriterOptions::default()).unwrap();
        let supervisor = Supervisor::default();
        let parts = LocalParts {
            writer: writer.clone(),
            clock: SystemClock::shared(),
            rng: SystemRng::shared(),
            supervisor: supervisor.clone(),
        };
        let store = LocalStore::open(group, parts).unwrap();
        Self {
            store,
            supervisor,
            writer,
        }
    }

    pub(crate) fn memory() -> Self {
        Self::on(Arc::new(MemoryEngine::new()))
    }

    pub(crate) fn rocks(dir: &Path) -> Self {
        Self::on(Arc::new(RocksEngine::open(dir, &RocksOptions::default()).unwrap()))
    }

    pub(crate) async fn stop(self) {
        let Self {
            store,
            supervisor,
            writer,
        } = self;
        supervisor.shut_down(Duration::from_secs(10)).await;
        assert_eq!(supervisor.failure(), None);
        assert_eq!(supervisor.running(), Vec::<String>::new());
        drop(store);
        tokio::task::spawn_blocking(move || writer.close()).await.unwrap();
    }
}

pub(crate) fn put_op(key: &str, value: &str) -> pb::RequestOp {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    pb::RequestOp {
        request: Some(Request::RequestPut(pb::PutRequest {
            key,
            value,
            ..Default::default()
        })),
    }
}

pub(crate) fn range(key: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.to_owned().into(),
        ..Default::default()
    }
}

pub(crate) async fn put(store: &Arc<impl Store + ?Sized>, access: &Access, key: &str, value: &str) -> i64 {
    let txn = pb::TxnRequest {
        success: vec![put_op(key, value)],
        ..Default::default()
    };
    store.txn(access, txn).await.unwrap().header.unwrap().revision
}
