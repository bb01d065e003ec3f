//! Connections to the API server of one tenant.
//!
//! HTTP/1.1, one request at a time per connection, idle ones kept: a watch occupies a connection of its own, so that
//! any number of watches leaves short calls alone. (One HTTP/2 connection would carry 100 streams, and request 101 would
//! wait for a watch to end.) On loopback a further connection costs a TLS handshake of about a millisecond.

use crate::error::AgentError;
use hanse_api::intent::TenantPki;
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::pki::{load_certs, load_key};
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use hanse_tunnel::Body;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// How long connecting may take, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// Most connections to one API server: watches and calls together.
const CONNECTIONS_MAX: usize = 2000;
/// Idle connections that are kept.
const IDLE_MAX: usize = 8;
/// Most headers in an answer.
const HEADERS_MAX: usize = 1000;

/// Why a request to an API server got no answer.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It cannot be connected to.
    #[error("its API server at {address} does not accept connections")]
    Connect {
        /// Its address.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Too many connections.
    #[error("more than {CONNECTIONS_MAX} requests and watches at once; end some")]
    Busy,
    /// It is being stopped.
    #[error("it is being stopped")]
    Closed,
    /// The connection failed before anything was sent.
    #[error("the connection to its API server failed before the request was sent")]
    Unsent(#[source] hyper::Error),
    /// The connection failed in the middle.
    #[error("the connection to its API server failed in the middle of the request")]
    Lost(#[source] hyper::Error),
}

impl TargetError {
    /// Whether the same request may succeed later.
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Busy | Self::Closed | Self::Unsent(_) | Self::Lost(_) => true,
        }
    }

    /// Whether the API server has certainly not seen the request.
    pub const fn certainly_not_sent(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Busy | Self::Closed | Self::Unsent(_) => true,
            Self::Lost(_) => false,
        }
    }
}

/// The API server of one tenant.
pub struct ApiTarget {
    tenant: String,
    address: SocketAddr,
    host: HeaderValue,
    server_name: ServerName<'static>,
    tls: TlsConnector,
    clock: SharedClock,
    supervisor: Supervisor,
    kept: Mutex<Vec<SendRequest<Body>>>,
    open: Arc<AtomicUsize>,
    lets_in: AtomicBool,
    closed: CancellationToken,
}

impl fmt::Debug for ApiTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiTarget")
            .field("tenant", &self.tenant)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

fn tls_config(tenant: &str, pki: &TenantPki) -> Result<rustls::ClientConfig, AgentError> {
    let whose = format!("tenant {tenant}");
    let tls = |error: rustls::Error| AgentError::Tls {
        whose: whose.clone(),
        fault: error.to_string(),
    };
    let mut roots = rustls::RootCertStore::empty();
    for cert in load_certs(&pki.ca.cert).map_err(AgentError::keys(&whose))? {
        roots.add(cert).map_err(tls)?;
    }
    let chain = load_certs(&pki.admin.cert).map_err(AgentError::keys(&whose))?;
    let key = load_key(&pki.admin.key).map_err(AgentError::keys(&whose))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(tls)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

impl ApiTarget {
    /// The API server of `tenant` at `address`, with the keys of `pki`. Requests get there once it is [opened](Self::open).
    pub fn new(
        tenant: &str,
        address: SocketAddr,
        pki: &TenantPki,
        clock: SharedClock,
        supervisor: Supervisor,
    ) -> Result<Self, AgentError> {
        let host = HeaderValue::from_str(&address.to_string()).map_err(|error| AgentError::Malformed {
            what: "address",
            fault: error.to_string(),
        })?;
        Ok(Self {
            tenant: tenant.to_owned(),
            address,
            host,
            server_name: ServerName::from(address.ip()),
            tls: TlsConnector::from(Arc::new(tls_config(tenant, pki)?)),
            clock,
            supervisor,
            kept: Mutex::default(),
            open: Arc::default(),
            lets_in: AtomicBool::new(false),
            closed: CancellationToken::new(),
        })
    }

    /// Id of the tenant.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Address of the API server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// From now on requests get to it: it can judge them.
    pub fn open(&self) {
        self.lets_in.store(true, Ordering::Release);
    }

    /// Whether requests get to it.
    pub fn is_open(&self) -> bool {
        self.lets_in.load(Ordering::Acquire)
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Breaks off all connections, so that the API server can end.
    pub fn close(&self) {
        self.closed.cancel();
        self.kept().clear();
    }

    fn kept(&self) -> MutexGuard<'_, Vec<SendRequest<Body>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An idle connection. Connections that wait for the end of an answer stay; surplus idle ones are closed.
    fn take_idle(&self) -> Option<SendRequest<Body>> {
        let mut kept = self.kept();
        let mut idle = 0;
        kept.retain(|connection| {
            idle += usize::from(connection.is_ready());
            !connection.is_closed() && (!connection.is_ready() || idle <= IDLE_MAX)
        });
        // The one used last: the others get old and are closed by the API server.
        let at = kept.iter().rposition(SendRequest::is_ready)?;
        Some(kept.remove(at))
    }

    /// Sends a request over an idle or a new connection.
    pub(super) async fn send(&self, mut request: Request<Body>) -> Result<Response<Incoming>, TargetError> {
        while let Some(mut connection) = self.take_idle() {
            match connection.try_send_request(request).await {
                Ok(response) => {
                    self.kept().push(connection);
                    return Ok(response);
                }
                // The API server closed it meanwhile, and nothing was sent: the next.
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(TargetError::Lost(failed.into_error())),
                },
            }
        }
        let mut connection = self.connect().await?;
        match connection.try_send_request(request).await {
            Ok(response) => {
                self.kept().push(connection);
                Ok(response)
            }
            Err(mut failed) => Err(match failed.take_message() {
                Some(_unsent) => TargetError::Unsent(failed.into_error()),
                None => TargetError::Lost(failed.into_error()),
            }),
        }
    }

    /// Sends a request over a connection of its own, which is never used again.
    pub(super) async fn send_alone(&self, request: Request<Body>) -> Result<Response<Incoming>, TargetError> {
        let mut connection = self.connect().await?;
        connection.send_request(request).await.map_err(TargetError::Lost)
    }

    async fn connect(&self) -> Result<SendRequest<Body>, TargetError> {
        if self.closed.is_cancelled() {
            return Err(TargetError::Closed);
        }
        if self.connections() >= CONNECTIONS_MAX {
            return Err(TargetError::Busy);
        }
        let fault = |source| TargetError::Connect {
            address: self.address,
            source,
        };
        let stream = match timeout(&*self.clock, CONNECT, self.dial()).await {
            Ok(dialed) => dialed.map_err(fault)?,
            Err(elapsed) => return Err(fault(io::Error::new(io::ErrorKind::TimedOut, elapsed))),
        };
        let (sender, connection) = http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(TargetError::Unsent)?;
        let open = Open::new(self.open.clone());
        let closed = self.closed.clone();
        let shutdown = self.supervisor.shutdown_token().phase(TaskKind::Session.phase());
        let tenant = self.tenant.clone();
        self.supervisor.spawn(
            TaskKind::Session,
            format!("connection to the API server of {tenant}"),
            async move {
                let _open = open;
                tokio::select! {
                    () = closed.cancelled() => {}
                    () = shutdown.cancelled() => {}
                    ended = connection.with_upgrades() => if let Err(error) = ended {
                        tracing::debug!(tenant, error = %error, "a connection to an API server failed");
                    }
                }
                Ok(())
            },
        );
        Ok(sender)
    }

    async fn dial(&self) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        self.tls.connect(self.server_name.clone(), stream).await
    }
}

struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The API servers on this host, by tenant.
#[derive(Debug, Default)]
pub struct Targets {
    by_tenant: Mutex<BTreeMap<String, Arc<ApiTarget>>>,
}

impl Targets {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<ApiTarget>>> {
        self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The API server of `tenant`.
    pub fn get(&self, tenant: &str) -> Option<Arc<ApiTarget>> {
        self.lock().get(tenant).cloned()
    }

    /// Puts `target` in; connections of the one it replaces are broken off.
    pub fn set(&self, target: ApiTarget) -> Arc<ApiTarget> {
        let target = Arc::new(target);
        let replaced = self.lock().insert(target.tenant.clone(), target.clone());
        if let Some(replaced) = replaced {
            replaced.close();
        }
        target
    }

    /// Takes the API server of `tenant` out and breaks its connections off.
    pub fn remove(&self, tenant: &str) {
        let removed = self.lock().remove(tenant);
        if let Some(removed) = removed {
            removed.close();
        }
    }
}
