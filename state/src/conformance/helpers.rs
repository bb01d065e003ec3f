//! Short forms of what the cases say often.

use crate::error::StoreError;
use crate::pb::{self, compare, request_op::Request, response_op::Response};
use crate::store::{Access, Store, WatchItem, WatchRequest};
use crate::watch::Watch;
use bytes::Bytes;
use hanse_runtime::clock::{SystemClock, timeout};
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// One tenant of the store under test.
pub struct Tenant {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Access to the tenant's space.
    pub access: Access,
}

impl std::fmt::Debug for Tenant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tenant")
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

pub(super) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    let clock = SystemClock::new();
    let waited = timeout(&clock, PATIENCE, future).await;
    waited.unwrap_or_else(|elapsed| panic!("{what}: {elapsed}"))
}

pub(super) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(super) fn range(key: &str, end: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: bytes(key),
        range_end: bytes(end),
        ..Default::default()
    }
}

pub(super) fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: bytes(key),
        value: bytes(value),
        ..Default::default()
    }
}

pub(super) fn delete(key: &str, end: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest {
        key: bytes(key),
        range_end: bytes(end),
        prev_kv: true,
    }
}

pub(super) fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

pub(super) fn put_op(key: &str, value: &str) -> pb::RequestOp {
    op(Request::RequestPut(put(key, value)))
}

pub(super) fn range_op(key: &str, end: &str) -> pb::RequestOp {
    op(Request::RequestRange(range(key, end)))
}

pub(super) fn delete_op(key: &str, end: &str) -> pb::RequestOp {
    op(Request::RequestDeleteRange(delete(key, end)))
}

pub(super) fn mod_is(key: &str, revision: i64) -> pb::Compare {
    pb::Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Mod.into(),
        key: bytes(key),
        target_union: Some(compare::TargetUnion::ModRevision(revision)),
        range_end: Bytes::new(),
    }
}

pub(super) fn txn(
    compare: Vec<pb::Compare>,
    success: Vec<pb::RequestOp>,
    failure: Vec<pb::RequestOp>,
) -> pb::TxnRequest {
    pb::TxnRequest {
        compare,
        success,
        failure,
    }
}

pub(super) fn keys(kvs: &[pb::KeyValue]) -> Vec<String> {
    kvs.iter()
        .map(|kv| String::from_utf8_lossy(&kv.key).into_owned())
        .collect()
}

/// `key=value@revision` of a put, `-key@revision` of a deletion, with `<value` of the key before.
pub(super) fn show(event: &pb::Event) -> String {
    let kv = event.kv.as_ref().unwrap();
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let before = event
        .prev_kv
        .as_ref()
        .map_or(String::new(), |kv| format!("<{}", text(&kv.value)));
    match event.r#type() {
        pb::event::EventType::Put => format!("{}={}{before}", text(&kv.key), text(&kv.value)),
        pb::event::EventType::Delete => format!("-{}{before}", text(&kv.key)),
    }
}

pub(super) fn all_from(key: &str, start_revision: i64) -> WatchRequest {
    let (key, range_end) = (bytes(key), bytes("\0"));
    WatchRequest {
        key,
        range_end,
        start_revision,
        prev_kv: true,
        ..Default::default()
    }
}

impl Tenant {
    /// A tenant that nobody else uses.
    pub fn new(store: Arc<dyn Store>, id: String) -> Self {
        Self {
            store,
            access: Access::tenant(id),
        }
    }

    pub(super) async fn try_txn(&self, req: pb::TxnRequest) -> Result<pb::TxnResponse, StoreError> {
        soon("transaction", self.store.txn(&self.access, req)).await
    }

    pub(super) async fn txn(&self, req: pb::TxnRequest) -> pb::TxnResponse {
        self.try_txn(req).await.unwrap()
    }

    pub(super) async fn try_range(&self, req: pb::RangeRequest) -> Result<pb::RangeResponse, StoreError> {
        soon("range", self.store.range(&self.access, req)).await
    }

    pub(super) async fn range(&self, req: pb::RangeRequest) -> pb::RangeResponse {
        self.try_range(req).await.unwrap()
    }

    /// Does one operation; answers it and the revision after it.
    pub(super) async fn one(&self, request: pb::RequestOp) -> (Response, i64) {
        let answer = self.txn(txn(vec![], vec![request], vec![])).await;
        let revision = answer.header.unwrap().revision;
        (answer.responses.into_iter().next().unwrap().response.unwrap(), revision)
    }

    pub(super) async fn put(&self, key: &str, value: &str) -> i64 {
        self.one(put_op(key, value)).await.1
    }

    pub(super) async fn delete(&self, key: &str, end: &str) -> i64 {
        self.one(delete_op(key, end)).await.1
    }

    pub(super) async fn get(&self, key: &str) -> Option<pb::KeyValue> {
        self.range(range(key, "")).await.kvs.into_iter().next()
    }

    pub(super) async fn compact(&self, revision: i64) -> Result<i64, StoreError> {
        soon("compaction", self.store.compact(&self.access, revision)).await
    }

    pub(super) async fn watch(&self, req: WatchRequest) -> Events {
        let watch = soon("watch", self.store.watch(&self.access, req)).await.unwrap();
        Events { watch, last: 0 }
    }
}

/// A watch whose order is checked as it is read.
pub(super) struct Events {
    pub(super) watch: Watch,
    last: i64,
}

impl Events {
    pub(super) async fn item(&mut self) -> Option<WatchItem> {
        let item = soon("watch event", self.watch.next()).await;
        if let Some(WatchItem::Events { revision, events }) = &item {
            assert!(*revision > self.last, "revision {revision} after {}", self.last);
            assert!(!events.is_empty(), "an empty list of events at {revision}");
            for event in events {
                assert_eq!(event.kv.as_ref().unwrap().mod_revision, *revision);
            }
            self.last = *revision;
        }
        item
    }

    /// The events of the next revision.
    pub(super) async fn next(&mut self) -> (i64, Vec<String>) {
        loop {
            match self.item().await {
                Some(WatchItem::Events { revision, events }) => return (revision, events.iter().map(show).collect()),
                Some(WatchItem::Progress { revision }) => assert!(revision >= self.last),
                other => panic!("{other:?} instead of events"),
            }
        }
    }

    /// The next events one by one, however many revisions they are of.
    pub(super) async fn take(&mut self, count: usize) -> Vec<String> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.next().await.1);
        }
        assert_eq!(all.len(), count, "{all:?}");
        all
    }
}
