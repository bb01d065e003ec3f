//! A TCP address at which one key space is served: gRPC and etcd's HTTP pages on one port, in the clear or by TLS.

use super::pages::Pages;
use super::{Operator, Service, services};
use crate::store::{Access, Store};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use hanse_runtime::clock::{SharedClock, SystemClock, timeout};
use hanse_runtime::pki::{PkiError, load_certs, load_key};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{RootCertStore, crypto::aws_lc_rs};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::Request;
use tonic::service::InterceptorLayer;

/// HTTP/2 streams that one connection may have open: each watch of a client may be one.
const MAX_STREAMS: u32 = 1 << 20;
/// Window of a connection and of a stream: a list answer must not wait for round trips.
const WINDOW: u32 = 4 << 20;
/// For the TLS handshake of a client.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// TLS handshakes at a time; further clients wait in the kernel.
const HANDSHAKES: usize = 256;
/// What a listener waits after a failure, such as too many open files, before it tries again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a door could not be opened, or closed by itself.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Certificate, key or authority cannot be used.
    #[error("the certificate for clients cannot be used")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Serving failed.
    #[error("serving clients failed")]
    Serve(#[from] tonic::transport::Error),
}

impl DoorError {
    /// Whether opening it again may succeed without a change.
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Tls(_) => false,
            Self::Serve(_) => true,
        }
    }
}

impl From<PkiError> for DoorError {
    fn from(error: PkiError) -> Self {
        Self::Tls(Box::new(error))
    }
}

impl From<rustls::Error> for DoorError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(Box::new(error))
    }
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

impl DoorTls {
    fn acceptor(&self) -> Result<TlsAcceptor, DoorError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let config = match &self.ca {
            None => config.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                for authority in load_certs(ca)? {
                    roots.add(authority)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                config.with_client_cert_verifier(verifier.map_err(|error| DoorError::Tls(Box::new(error)))?)
            }
        };
        let mut config = config.with_single_cert(load_certs(&self.cert)?, load_key(&self.key)?)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// What a door offers beyond the store itself.
#[derive(Clone, Debug, Default)]
pub struct DoorSettings {
    /// Bytes that the keys of the space and their history may take before this member raises the alarm; none: no limit.
    pub quota: Option<u64>,
    /// Where a snapshot is gathered before it is sent; none: there are no snapshots.
    pub spool: Option<PathBuf>,
}

/// An address at which one key space is served to whoever may connect.
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
    /// What else they find.
    pub settings: DoorSettings,
}

impl Door {
    /// Serves until `end` completes and the calls in flight, watches among them, have ended.
    pub async fn serve(self, store: Arc<dyn Store>, end: impl Future<Output = ()>) -> Result<(), DoorError> {
        let clock = SystemClock::shared();
        let service = Service::new(store, Arc::clone(&clock), self.operator, self.settings);
        let access = self.access.clone();
        let pages = Pages {
            service: service.clone(),
            access: self.access,
        };
        let open = move |mut request: Request<()>| {
            request.extensions_mut().insert(access.clone());
            Ok(request)
        };
        let router = tonic::transport::Server::builder()
            .accept_http1(true)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .layer(InterceptorLayer::new(open))
            .layer(pages)
            .add_routes(services(service));
        let plain = accepted(self.listener, Arc::clone(&clock));
        match self.tls {
            None => {
                let incoming = plain.map(Ok::<_, io::Error>);
                router.serve_with_incoming_shutdown(incoming, end).await?;
            }
            Some(tls) => {
                let incoming = protected(plain, tls.acceptor()?, clock).map(Ok::<_, io::Error>);
                router.serve_with_incoming_shutdown(incoming, end).await?;
            }
        }
        Ok(())
    }
}

/// Connections, for ever: a failure to accept one passes or is the operator's to see in the log.
fn accepted(listener: TcpListener, clock: SharedClock) -> BoxStream<'static, TcpStream> {
    futures::stream::unfold((listener, clock), |(listener, clock)| async move {
        loop {
            let accepted = listener.accept().await.and_then(|(stream, _)| {
                stream.set_nodelay(true)?;
                Ok(stream)
            });
            match accepted {
                Ok(stream) => return Some((stream, (listener, clock))),
                Err(error) => {
                    tracing::warn!(%error, "a client's connection could not be accepted");
                    clock.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
    .boxed()
}

/// The connections that finish their handshake; a slow one holds up no other.
fn protected(
    plain: BoxStream<'static, TcpStream>,
    acceptor: TlsAcceptor,
    clock: SharedClock,
) -> impl Stream<Item = TlsStream<TcpStream>> {
    let handshake = move |stream: TcpStream| {
        let (acceptor, clock) = (acceptor.clone(), Arc::clone(&clock));
        async move {
            let done = timeout(clock.as_ref(), HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
            match done {
                Ok(Ok(stream)) => Some(stream),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a client's TLS handshake failed");
                    None
                }
                Err(elapsed) => {
                    tracing::debug!(%elapsed, "a client's TLS handshake took too long");
                    None
                }
            }
        }
    };
    plain
        .map(handshake)
        .buffer_unordered(HANDSHAKES)
        .filter_map(std::future::ready)
}

/// Serves one key space in the clear on a listener, until `end` completes. For tests, measurements and a unix-like
/// trust in whoever can connect: there is no authentication.
pub async fn serve_plain(
    listener: TcpListener,
    store: Arc<dyn Store>,
    access: Access,
    end: impl Future<Output = ()>,
) -> Result<(), DoorError> {
    let door = Door {
        listener,
        tls: None,
        access,
        operator: None,
        settings: DoorSettings::default(),
    };
    door.serve(store, end).await
}
