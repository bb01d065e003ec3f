//! The etcd v3 API on top of any [`Store`]: what an unmodified kube-apiserver, etcdctl or client library speaks.
//!
//! Which key space a call means is not in the call: whoever takes it in (the tunnel, an operators' port) puts an
//! [`Access`] into the request's extensions. Without one every call is refused.

mod calls;
mod cluster;
mod door;
mod election;
mod health;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod metrics;
mod operator;
mod pages;
mod queue;
mod range_stream;
mod room;
mod snapshot;
mod watch;
mod watches;

pub use calls::CallMeters;
pub use door::{Door, DoorError, DoorSettings, DoorTls, serve_plain};
pub use operator::{MemberChange, MemberFault, MemberRefused, MoveRefused, Operator};

use self::calls::Counted;
use crate::pb;
use crate::pb::{
    cluster_server::ClusterServer, election::election_server::ElectionServer, health::health_server::HealthServer,
    kv_server::KvServer, lease_server::LeaseServer, lock::lock_server::LockServer,
    maintenance_server::MaintenanceServer, watch_server::WatchServer,
};
use crate::store::{Access, Store};
use bytes::Bytes;
use hanse_runtime::clock::{SharedClock, SystemClock};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tonic::service::Routes;
use tonic::{Request, Status};

/// Largest message that is taken in: etcd's largest request and its overhead of 512 KiB.
pub const MAX_MESSAGE_IN: usize = crate::machine::MAX_REQUEST_BYTES + 512 * 1024;
/// Largest message that is sent: lists are as long as they are; clients take up to 2 GiB.
pub const MAX_MESSAGE_OUT: usize = i32::MAX as usize;
/// Version that clients see. Neighbours of it lack features that kube-apiserver looks for, or have more than this
/// service has.
pub const VERSION: &str = "3.6.11";
/// Format of stored data that clients see; goes with [`VERSION`].
const STORAGE_VERSION: &str = "3.6.0";

/// The service; one value serves all calls.
#[derive(Clone)]
pub(crate) struct Service {
    store: Arc<dyn Store>,
    clock: SharedClock,
    operator: Option<Arc<dyn Operator>>,
    settings: Arc<DoorSettings>,
    calls: Arc<CallMeters>,
    /// Places for snapshots.
    snapshots: Arc<Semaphore>,
    /// Held by who compacts a space for the sake of its limits.
    compacting: Arc<tokio::sync::Mutex<()>>,
}

impl Service {
    fn new(
        store: Arc<dyn Store>,
        clock: SharedClock,
        operator: Option<Arc<dyn Operator>>,
        settings: DoorSettings,
    ) -> Self {
        Self {
            store,
            clock,
            operator,
            settings: Arc::new(settings),
            calls: Arc::default(),
            snapshots: Arc::new(Semaphore::new(snapshot::AT_A_TIME)),
            compacting: Arc::default(),
        }
    }

    /// Whose call it is.
    fn access<T>(&self, request: &Request<T>) -> Result<Access, Status> {
        let access = request.extensions().get::<Access>().cloned();
        let access = access.ok_or_else(|| Status::permission_denied("hanse: no key space is open to this caller"))?;
        let wants_leader = request.metadata().get("hasleader").is_some_and(|value| value == "true");
        if wants_leader && !self.store.has_leader() {
            return Err(crate::StoreError::NoLeader.status());
        }
        Ok(access)
    }

    /// Completes a header that has a revision only.
    fn complete(&self, header: &mut Option<pb::ResponseHeader>) {
        let mut full = self.store.header();
        if let Some(header) = header {
            full.revision = header.revision;
        }
        *header = Some(full);
    }

    /// Returns when this member has applied what was committed before.
    async fn catch_up(&self, access: &Access) -> Result<(), Status> {
        self.store.range(access, nothing()).await.map_err(refused)?;
        Ok(())
    }

    fn header_at(&self, revision: i64) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader {
            revision,
            ..self.store.header()
        })
    }
}

/// A read that finds next to nothing.
fn nothing() -> pb::RangeRequest {
    pb::RangeRequest {
        key: Bytes::from_static(&[0]),
        count_only: true,
        ..Default::default()
    }
}

fn refused(error: crate::StoreError) -> Status {
    error.status()
}

/// The services, to be called with HTTP requests that have an [`Access`] among their extensions.
pub fn routes(store: Arc<dyn Store>) -> Routes {
    routes_with(store, SystemClock::shared())
}

/// The same, and what counts its calls.
pub fn counted_routes(store: Arc<dyn Store>) -> (Routes, Arc<CallMeters>) {
    let service = Service::new(store, SystemClock::shared(), None, DoorSettings::default());
    let calls = Arc::clone(&service.calls);
    (services(service), calls)
}

/// The same by a clock of the caller's.
pub fn routes_with(store: Arc<dyn Store>, clock: SharedClock) -> Routes {
    services(Service::new(store, clock, None, DoorSettings::default()))
}

fn services(service: Service) -> Routes {
    macro_rules! server {
        ($server:ident) => {
            Counted::new(
                $server::new(service.clone())
                    .max_decoding_message_size(MAX_MESSAGE_IN)
                    .max_encoding_message_size(MAX_MESSAGE_OUT),
                &service.calls,
            )
        };
    }
    Routes::new(server!(KvServer))
        .add_service(server!(WatchServer))
        .add_service(server!(LeaseServer))
        .add_service(server!(MaintenanceServer))
        .add_service(server!(ClusterServer))
        .add_service(server!(LockServer))
        .add_service(server!(ElectionServer))
        .add_service(server!(HealthServer))
        .prepare()
}
