//! The etcd v3 API on top of any [`Store`]: what an unmodified kube-apiserver, etcdctl or client library speaks.
//!
//! Which key space a call means is not in the call: whoever takes it in (the tunnel, an operators' port) puts an
//! [`Access`] into the request's extensions. Without one every call is refused.

mod health;
mod kv;
mod lease;
mod maintenance;
mod operator;
mod watch;
mod watches;

pub use operator::{MoveRefused, Operator};

use crate::pb;
use crate::pb::{
    cluster_server::ClusterServer, health::health_server::HealthServer, kv_server::KvServer, lease_server::LeaseServer,
    maintenance_server::MaintenanceServer, watch_server::WatchServer,
};
use crate::store::{Access, Store};
use hanse_runtime::clock::{SharedClock, SystemClock};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::service::{InterceptorLayer, Routes};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};
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

/// For the TLS handshake of a client.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The service; one value serves all calls.
#[derive(Clone)]
pub(crate) struct Service {
    store: Arc<dyn Store>,
    clock: SharedClock,
    operator: Option<Arc<dyn Operator>>,
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
    all_routes(store, clock, None)
}

fn all_routes(store: Arc<dyn Store>, clock: SharedClock, operator: Option<Arc<dyn Operator>>) -> Routes {
    let service = Service { store, clock, operator };
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
        .add_service(server!(HealthServer))
        .prepare()
}

/// Certificates of a door, PEM.
#[derive(Clone)]
pub struct DoorTls {
    /// Certificate chain of this server.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// Authority of those who may call; none: callers need no certificate.
    pub ca: Option<String>,
}

impl fmt::Debug for DoorTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DoorTls(..)")
    }
}

/// A TCP address at which one key space is served to whoever may connect.
#[derive(Debug)]
pub struct Door {
    /// Takes connections.
    pub listener: TcpListener,
    /// How they are protected; none: in the clear.
    pub tls: Option<DoorTls>,
    /// What is open to those who come in.
    pub access: Access,
    /// The cluster behind it, if they may see and change that.
    pub operator: Option<Arc<dyn Operator>>,
}

impl Door {
    /// Serves until `end` completes and the calls in flight, watches among them, have ended.
    pub async fn serve(
        self,
        store: Arc<dyn Store>,
        end: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let access = self.access;
        let open = move |mut request: Request<()>| {
            request.extensions_mut().insert(access.clone());
            Ok(request)
        };
        let mut server = tonic::transport::Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        if let Some(tls) = self.tls {
            let mut config = ServerTlsConfig::new()
                .identity(Identity::from_pem(tls.cert, tls.key))
                .timeout(HANDSHAKE_TIMEOUT);
            if let Some(ca) = tls.ca {
                config = config.client_ca_root(Certificate::from_pem(ca));
            }
            server = server.tls_config(config)?;
        }
        server
            .layer(InterceptorLayer::new(open))
            .add_routes(all_routes(store, SystemClock::shared(), self.operator))
            .serve_with_incoming_shutdown(incoming, end)
            .await
    }
}

/// Serves one key space in the clear on a listener, until `end` completes. For tests, measurements and a unix-like
/// trust in whoever can connect: there is no authentication.
pub async fn serve_plain(
    listener: TcpListener,
    store: Arc<dyn Store>,
    access: Access,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let door = Door {
        listener,
        tls: None,
        access,
        operator: None,
    };
    door.serve(store, end).await
}
