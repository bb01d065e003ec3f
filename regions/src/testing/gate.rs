//! A store as one server reaches it: through a gate that a test can close, to cut the server off or to pause it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream};
use hanse_api::resources::StoreLimits;
use hanse_runtime::meter::Family;
use hanse_state::machine::Machine;
use hanse_state::pb;
use hanse_state::store::{SpaceHash, Watch};
use hanse_state::watch::WatchSource;
use hanse_state::{Access, Store, StoreError, StoreStatus, WatchItem, WatchRequest};
use tokio::sync::watch;

/// How a server reaches the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// As it should.
    Open,
    /// Reads and writes fail, watches are silent: a server without a majority.
    Cut,
    /// Reads and writes hang and then go through, watches are silent: a server that was paused.
    Paused,
}

/// The gate.
pub(crate) struct Gate {
    inner: Arc<dyn Store>,
    way: watch::Sender<Way>,
    /// Calls that passed the gate and are not answered yet.
    in_flight: AtomicUsize,
    /// Transactions that changed anything but leases, over all gates.
    writes: Arc<AtomicU64>,
}

impl Gate {
    pub(crate) fn new(inner: Arc<dyn Store>, writes: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            way: watch::Sender::new(Way::Open),
            in_flight: AtomicUsize::new(0),
            writes,
        })
    }

    pub(crate) fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    pub(crate) fn is_open(&self) -> bool {
        *self.way.borrow() == Way::Open
    }

    /// Whether a call that passed the gate is not answered yet.
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0
    }

    /// Waits at the gate; the call counts as in flight as long as the answer lives.
    async fn pass(&self) -> Result<InFlight<'_>, StoreError> {
        let mut way = self.way.subscribe();
        // The sender is in `self`, so waiting ends only by a change.
        let way = *way.wait_for(|way| *way != Way::Paused).await.unwrap();
        if way == Way::Cut {
            return Err(StoreError::NoLeader);
        }
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(InFlight(&self.in_flight))
    }
}

struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn is_lease(key: &[u8]) -> bool {
    key.windows(12).any(|window| window == b"regionleases")
}

fn changes_more_than_leases(txn: &pb::TxnRequest) -> bool {
    txn.success.iter().any(|op| match &op.request {
        Some(pb::request_op::Request::RequestPut(put)) => !is_lease(&put.key),
        Some(pb::request_op::Request::RequestDeleteRange(delete)) => !is_lease(&delete.key),
        _ => false,
    })
}

#[async_trait]
impl Store for Gate {
    async fn range(&self, access: &Access, req: pb::RangeRequest) -> Result<pb::RangeResponse, StoreError> {
        let _in_flight = self.pass().await?;
        self.inner.range(access, req).await
    }

    async fn txn(&self, access: &Access, req: pb::TxnRequest) -> Result<pb::TxnResponse, StoreError> {
        let _in_flight = self.pass().await?;
        let counts = changes_more_than_leases(&req);
        let answer = self.inner.txn(access, req).await?;
        if counts && answer.succeeded {
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(answer)
    }

    async fn txn_audited(&self, req: pb::TxnRequest, events: Vec<String>) -> Result<pb::TxnResponse, StoreError> {
        let _in_flight = self.pass().await?;
        let counts = changes_more_than_leases(&req);
        let answer = self.inner.txn_audited(req, events).await?;
        if counts && answer.succeeded {
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(answer)
    }

    async fn compact(&self, access: &Access, revision: i64) -> Result<i64, StoreError> {
        self.inner.compact(access, revision).await
    }

    async fn lease_grant(&self, access: &Access, id: i64, ttl: i64) -> Result<pb::LeaseGrantResponse, StoreError> {
        self.inner.lease_grant(access, id, ttl).await
    }

    async fn lease_revoke(&self, access: &Access, id: i64) -> Result<i64, StoreError> {
        self.inner.lease_revoke(access, id).await
    }

    async fn lease_keep_alive(&self, access: &Access, id: i64) -> Result<pb::LeaseKeepAliveResponse, StoreError> {
        self.inner.lease_keep_alive(access, id).await
    }

    async fn lease_time_to_live(
        &self,
        access: &Access,
        id: i64,
        keys: bool,
    ) -> Result<pb::LeaseTimeToLiveResponse, StoreError> {
        self.inner.lease_time_to_live(access, id, keys).await
    }

    async fn leases(&self, access: &Access) -> Result<Vec<i64>, StoreError> {
        self.inner.leases(access).await
    }

    async fn watch(&self, access: &Access, req: WatchRequest) -> Result<Watch, StoreError> {
        let _in_flight = self.pass().await?;
        let inner = self.inner.watch(access, req).await?;
        let way = self.way.subscribe();
        Ok(Watch::new(
            inner.created(),
            Box::new(GatedWatch {
                inner,
                way,
                opened: None,
            }),
        ))
    }

    async fn set_limits(&self, tenant: &str, limits: StoreLimits) -> Result<(), StoreError> {
        let _in_flight = self.pass().await?;
        self.inner.set_limits(tenant, limits).await
    }

    async fn set_fence(&self, tenant: &str, epoch: u64) -> Result<(), StoreError> {
        let _in_flight = self.pass().await?;
        self.inner.set_fence(tenant, epoch).await
    }

    async fn restore(&self, tenant: &str, step: pb::command::RestoreSpace) -> Result<i64, StoreError> {
        let _in_flight = self.pass().await?;
        self.inner.restore(tenant, step).await
    }

    async fn drop_space(&self, tenant: &str) -> Result<(), StoreError> {
        let _in_flight = self.pass().await?;
        self.inner.drop_space(tenant).await
    }

    async fn set_alarm(&self, access: &Access, member: u64, kind: i32, raised: bool) -> Result<(), StoreError> {
        let _in_flight = self.pass().await?;
        self.inner.set_alarm(access, member, kind, raised).await
    }

    fn machine(&self) -> &Arc<Machine> {
        self.inner.machine()
    }

    async fn hash(&self, access: &Access) -> Result<SpaceHash, StoreError> {
        self.inner.hash(access).await
    }

    fn revision(&self) -> i64 {
        self.inner.revision()
    }

    fn has_leader(&self) -> bool {
        *self.way.borrow() != Way::Cut
    }

    fn families(&self) -> Vec<Family> {
        self.inner.families()
    }

    fn status(&self) -> StoreStatus {
        self.inner.status()
    }
}

/// A watch that is silent while the gate is not open.
struct GatedWatch {
    inner: Watch,
    way: watch::Receiver<Way>,
    opened: Option<BoxFuture<'static, ()>>,
}

impl Stream for GatedWatch {
    type Item = WatchItem;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WatchItem>> {
        loop {
            if *self.way.borrow() == Way::Open {
                self.opened = None;
                return Pin::new(&mut self.inner).poll_next(cx);
            }
            let mut way = self.way.clone();
            let opened = self
                .opened
                .get_or_insert_with(|| async move { drop(way.wait_for(|way| *way == Way::Open).await) }.boxed());
            if opened.poll_unpin(cx).is_pending() {
                return Poll::Pending;
            }
            self.opened = None;
        }
    }
}

impl WatchSource for GatedWatch {
    fn progress(&self) -> Option<i64> {
        self.inner.progress()
    }
}
