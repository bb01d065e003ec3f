//! The store socket of a tenant: where its kube-apiserver believes etcd to be.
//!
//! kube-apiserver opens about 130 HTTP/2 connections to it (without TLS, by prior knowledge). HTTP/2 ends here: every
//! gRPC call goes on alone through the uplink, so that calls move to another server when one dies. What fails on the
//! way becomes the gRPC status by which etcd's clients know whether they may repeat the call.

use crate::error::AgentError;
use crate::files;
use crate::paths::SOCKET_PATH_MAX;
use bytes::Bytes;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use hanse_tunnel::{Body, StoreHead, TunnelError, Uplink, empty_body, take_refusal};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// Most connections of one tenant. kube-apiserver opens about 130, more with many kinds of custom resources.
const CONNECTIONS_MAX: usize = 4096;
/// Most calls at once on one connection. A watch is one; a shared connection may carry one per kind.
const STREAMS_MAX: u32 = 4096;
/// Flow control window of one call: a page of a large list in flight.
const STREAM_WINDOW: u32 = 1 << 20;
/// Flow control window of one connection.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Largest header list of one call.
const HEADERS_MAX: u32 = 64 << 10;
/// What may wait to be sent on one call before the store is asked for no more.
const SEND_BUFFER: usize = 256 << 10;

/// Metadata that is passed on. Everything else a client may add means nothing to the store.
const PASSED: [&str; 8] = [
    "content-type",
    "grpc-timeout",
    "grpc-encoding",
    "grpc-accept-encoding",
    "user-agent",
    "hasleader",
    "source",
    "te",
];

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// gRPC codes (grpc/statuscodes.md).
const OK: &[u8] = b"0";
const PERMISSION_DENIED: &[u8] = b"7";
const UNIMPLEMENTED: u32 = 12;
const UNAVAILABLE: u32 = 14;
/// How the store's refusal of a host whose epoch is no longer accepted reads.
const FENCED_WORD: &str = "fenced";

/// An open store socket. Dropping it closes it.
#[derive(Debug)]
pub struct StoreSocket {
    path: PathBuf,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

struct Shared {
    tenant: String,
    epoch: AtomicU64,
    fenced: AtomicBool,
    connections: AtomicUsize,
    uplink: Arc<dyn Uplink>,
    supervisor: Supervisor,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("tenant", &self.tenant)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl StoreSocket {
    /// Opens the socket of `tenant` at `path` (mode 0600, directory 0700) and serves it.
    pub fn open(
        path: PathBuf,
        tenant: &str,
        epoch: u64,
        uplink: Arc<dyn Uplink>,
        supervisor: &Supervisor,
    ) -> Result<Self, AgentError> {
        let listener = listen(&path)?;
        let shared = Arc::new(Shared {
            tenant: tenant.to_owned(),
            epoch: AtomicU64::new(epoch),
            fenced: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            uplink,
            supervisor: supervisor.clone(),
        });
        let stop = CancellationToken::new();
        // A session, not a vital task: without it one tenant lacks its store, and the others go on.
        supervisor.spawn(
            TaskKind::Session,
            format!("store socket of {tenant}"),
            accept(
                listener,
                shared.clone(),
                stop.clone(),
                supervisor.shutdown_token().phase(TaskKind::Session.phase()),
            ),
        );
        Ok(Self { path, shared, stop })
    }

    /// Host epoch that is passed on.
    pub fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::Acquire)
    }

    /// Passes on another host epoch from now on.
    pub fn set_epoch(&self, epoch: u64) {
        self.shared.epoch.store(epoch, Ordering::Release);
        self.shared.fenced.store(false, Ordering::Release);
    }

    /// Whether the store refused this host's epoch: another host has taken the tenant over.
    pub fn fenced(&self) -> bool {
        self.shared.fenced.load(Ordering::Acquire)
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Acquire)
    }
}

impl Drop for StoreSocket {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Err(error) = files::remove_file(&self.path) {
            tracing::warn!(error = %error, "a store socket was left behind");
        }
    }
}

fn listen(path: &Path) -> Result<UnixListener, AgentError> {
    let fault = |source| AgentError::File {
        what: "listen on",
        path: path.to_owned(),
        source,
    };
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(fault(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("its path has more than {SOCKET_PATH_MAX} bytes; choose a shorter data_dir"),
        )));
    }
    if let Some(dir) = path.parent() {
        // The directory's mode guards the moment between bind and chmod.
        files::private_dir(dir)?;
    }
    files::remove_file(path)?;
    let listener = UnixListener::bind(path).map_err(fault)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fault)?;
    Ok(listener)
}

async fn accept(
    listener: UnixListener,
    shared: Arc<Shared>,
    stop: CancellationToken,
    shutdown: CancellationToken,
) -> Result<(), hanse_runtime::BoxError> {
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted?.0,
        };
        if shared.connections.load(Ordering::Acquire) >= CONNECTIONS_MAX {
            tracing::warn!(
                tenant = shared.tenant,
                "more than {CONNECTIONS_MAX} store connections; one was refused"
            );
            continue;
        }
        let name = format!("store connection of {}", shared.tenant);
        let (shared, stop, shutdown) = (shared.clone(), stop.clone(), shutdown.clone());
        let supervisor = shared.supervisor.clone();
        supervisor.spawn(TaskKind::Session, name, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = shutdown.cancelled() => {}
                () = serve(stream, shared) => {}
            }
            Ok(())
        });
    }
}

struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: Arc<Shared>) -> Self {
        shared.connections.fetch_add(1, Ordering::AcqRel);
        Self(shared)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Lets hyper run its streams as supervised tasks.
#[derive(Clone)]
struct Tasks(Supervisor);

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(TaskKind::Request, "store call", async move {
            task.await;
            Ok(())
        });
    }
}

async fn serve(stream: UnixStream, shared: Arc<Shared>) {
    let counted = Counted::new(shared.clone());
    let tasks = Tasks(shared.supervisor.clone());
    let mut http = hyper::server::conn::http2::Builder::new(tasks);
    http.max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADERS_MAX)
        .max_send_buf_size(SEND_BUFFER)
        // An API server that ends, or whose clients do, gives up all its calls at once; that is no attack here.
        .max_pending_accept_reset_streams(STREAMS_MAX as usize)
        .auto_date_header(false);
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(call(&shared, request).await) }
    });
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        // Clients come and go; what matters shows in their own logs.
        tracing::debug!(tenant = counted.0.tenant, error = %error, "a store connection ended");
    }
}

async fn call(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<GrpcBody> {
    if request.method() != Method::POST {
        return status_only(UNIMPLEMENTED, "only gRPC calls are served here");
    }
    let (parts, body) = request.into_parts();
    let head = StoreHead {
        tenant: shared.tenant.clone(),
        epoch: shared.epoch.load(Ordering::Acquire),
        path: parts.uri.path().to_owned(),
        headers: passed(&parts.headers),
    };
    let body: Body = body.map_err(|error| TunnelError::Body(error.into())).boxed_unsync();
    match shared.uplink.store_call(head, body).await {
        Ok(mut response) => match take_refusal(&mut response) {
            None => answer(shared, response),
            Some(error) => refused(&error),
        },
        Err(error) => refused(&error),
    }
}

fn refused(error: &TunnelError) -> Response<GrpcBody> {
    tracing::debug!(error = %error, "a store call failed");
    let (code, message) = error.grpc();
    status_only(code, message)
}

fn answer(shared: &Arc<Shared>, response: Response<Body>) -> Response<GrpcBody> {
    let (mut parts, body) = response.into_parts();
    if parts.status != StatusCode::OK && !parts.headers.contains_key(GRPC_STATUS) {
        return status_only(UNAVAILABLE, "the store answered without a gRPC status");
    }
    parts.version = http::Version::HTTP_2;
    shared.note_fence(&parts.headers);
    // With the status in the head the body is empty, and nothing is owed at its end.
    let ended = parts.headers.contains_key(GRPC_STATUS);
    Response::from_parts(
        parts,
        GrpcBody {
            inner: Some(body),
            ended,
            shared: Some(shared.clone()),
        },
    )
}

impl Shared {
    fn note_fence(&self, headers: &HeaderMap) {
        let Some(code) = headers.get(GRPC_STATUS) else { return };
        if code.as_bytes() == OK {
            // A server that had not heard of this host yet may have refused it for a moment.
            self.fenced.store(false, Ordering::Release);
            return;
        }
        let says_so = |message: &HeaderValue| message.to_str().is_ok_and(|text| text.contains(FENCED_WORD));
        let stale = code.as_bytes() == PERMISSION_DENIED && headers.get(GRPC_MESSAGE).is_some_and(says_so);
        if stale && !self.fenced.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                tenant = self.tenant,
                "the store refuses this host's epoch: another host has the tenant now"
            );
        }
    }
}

fn passed(headers: &HeaderMap) -> HeaderMap {
    let mut passed = HeaderMap::new();
    for name in PASSED {
        for value in headers.get_all(name) {
            passed.append(HeaderName::from_static(name), value.clone());
        }
    }
    passed.entry(TE).or_insert(HeaderValue::from_static("trailers"));
    passed
}

fn status_headers(code: u32, message: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(GRPC_STATUS, HeaderValue::from(code));
    headers.insert(GRPC_MESSAGE, HeaderValue::from_static(message));
    headers
}

/// An answer that is a status and nothing else.
fn status_only(code: u32, message: &'static str) -> Response<GrpcBody> {
    let mut response = Response::new(GrpcBody {
        inner: Some(empty_body()),
        ended: true,
        shared: None,
    });
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response.headers_mut().extend(status_headers(code, message));
    response
}

/// A body that always ends with a gRPC status, also when the uplink breaks off.
struct GrpcBody {
    inner: Option<Body>,
    ended: bool,
    shared: Option<Arc<Shared>>,
}

impl http_body::Body for GrpcBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(inner) = self.inner.as_mut() else {
            return Poll::Ready(None);
        };
        let frame = std::task::ready!(Pin::new(inner).poll_frame(cx));
        let (code, message) = match frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    if let Some(shared) = &self.shared {
                        shared.note_fence(trailers);
                    }
                    self.ended = true;
                    self.inner = None;
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            Some(Err(error)) => error.grpc(),
            None if self.ended => (0, ""),
            None => (
                UNAVAILABLE,
                "etcdserver: request timed out, possibly due to connection lost",
            ),
        };
        self.inner = None;
        if self.ended {
            return Poll::Ready(None);
        }
        self.ended = true;
        Poll::Ready(Some(Ok(Frame::trailers(status_headers(code, message)))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner
            .as_ref()
            .is_none_or(|inner| self.ended && inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
