//! The etcd v3 API on top of any [`Store`]: what an unmodified kube-apiserver, etcdctl or client library speaks.
//!
//! Which key space a call means is not in the call: whoever takes it in (the tunnel, an operators' port) puts an
//! [`Access`] into the request's extensions. Without one every call is refused.

mod kv;
mod lease;
mod maintenance;
mod watch;
mod watches;

use crate::pb;
use crate::pb::{
    cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
    maintenance_server::MaintenanceServer, watch_server::WatchServer,
};
use crate::store::{Access, Store};
use hanse_runtime::clock::{SharedClock, SystemClock};
use std::sync::Arc;
use tokio::net::TcpListener;
use tonic::service::{InterceptorLayer, Routes};
use tonic::{Request, Status};

/// Largest message that is taken in: etcd's largest request and its overhead of 512 KiB.
pub const MAX_MESSAGE_IN: usize = crate::machine::MAX_REQUEST_BYTES + 512 * 1024;
/// Largest message that is sent: lists are as long as they are; clients take up to 2 GiB.
pub const MAX_MESSAGE_OUT: usize = i32::MAX as usize;
/// Version that clients see. Neighbours of it lack features that kube-apiserver looks for, or have more than this
/// service has.
pub const VERSION: &str = "3.6.11";
/// HTTP/2 streams that one connection may have open: each watch of a client may be one.
const MAX_STREAMS: u32 = 1 << 20;
/// Window of a connection and of a stream: a list answer must not wait for round trips.
const WINDOW: u32 = 4 << 20;

/// The service; one value serves all calls.
#[derive(Clone)]
pub(crate) struct Service {
    store: Arc<dyn Store>,
    clock: SharedClock,
}

impl Service {
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

    fn header_at(&self, revision: i64) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader {
            revision,
            ..self.store.header()
        })
    }
}

fn refused(error: crate::StoreError) -> Status {
    error.status()
}

/// The services, to be called with HTTP requests that have an [`Access`] among their extensions.
pub fn routes(store: Arc<dyn Store>) -> Routes {
    routes_with(store, SystemClock::shared())
}

/// The same by a clock of the caller's.
pub fn routes_with(store: Arc<dyn Store>, clock: SharedClock) -> Routes {
    let service = Service { store, clock };
    macro_rules! server {
        ($server:ident) => {
            $server::new(service.clone())
                .max_decoding_message_size(MAX_MESSAGE_IN)
                .max_encoding_message_size(MAX_MESSAGE_OUT)
        };
    }
    Routes::new(server!(KvServer))
        .add_service(server!(WatchServer))
        .add_service(server!(LeaseServer))
        .add_service(server!(MaintenanceServer))
        .add_service(server!(ClusterServer))
        .prepare()
}

/// Serves one key space in the clear on a listener, until `end` completes. For tests, measurements and a unix-like
/// trust in whoever can connect: there is no authentication.
pub async fn serve_plain(
    listener: TcpListener,
    store: Arc<dyn Store>,
    access: Access,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let open = move |mut request: Request<()>| {
        request.extensions_mut().insert(access.clone());
        Ok(request)
    };
    tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .layer(InterceptorLayer::new(open))
        .add_routes(routes(store))
        .serve_with_incoming_shutdown(incoming, end)
        .await
}
