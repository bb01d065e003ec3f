//! TLS front: HTTP/1.1 (with upgrades) and HTTP/2 on one port, chosen by ALPN; limits; an orderly end.

use crate::body::{Body, Response};
use crate::error::GatewayError;
use crate::meters::Counted;
use crate::{Inner, middleware};
use futures::FutureExt;
use futures::future::BoxFuture;
use hanse_runtime::BoxError;
use hanse_runtime::clock::timeout;
use hanse_runtime::shutdown::Phase;
use hanse_runtime::supervisor::TaskKind;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Most headers of an HTTP/1.1 request; a user of many groups sends more than a hundred.
const MAX_HEADERS: usize = 1000;
/// Largest head of an HTTP/1.1 request.
const MAX_HEAD: usize = 512 * 1024;
/// Largest header list of an HTTP/2 request.
const MAX_HEADER_LIST: u32 = 256 * 1024;
/// Streams of one HTTP/2 connection. Controllers put all their watches on one; Go clients open another when it is full.
const MAX_STREAMS: u32 = 250;
/// Flow control windows of HTTP/2: small enough that many slow readers cost little.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// After so much silence an HTTP/2 peer is asked whether it lives, and so long it may take to answer.
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_ANSWER: Duration = Duration::from_secs(20);
/// Pause after a failed accept, as when file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Failed accepts in a row that mean that the listener is broken.
const MAX_ACCEPT_FAILURES: u32 = 100;

/// The TLS configuration of a front door: server certificate, no client certificates, HTTP/2 and HTTP/1.1.
pub fn tls_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, GatewayError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(GatewayError::Certificate)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(GatewayError::Certificate)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Accepts connections until the shutdown begins. Connections end by themselves in the drain phase.
pub(crate) async fn serve(
    inner: Arc<Inner>,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
) -> Result<(), GatewayError> {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(inner.parts.limits.connections));
    let mut failures = 0;
    loop {
        // A connection is accepted only when there is a place for it; the others wait in the kernel.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        let accepted = tokio::select! {
            () = inner.shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if failures >= MAX_ACCEPT_FAILURES => return Err(GatewayError::Listener(error)),
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, "a connection could not be accepted");
                inner.parts.clock.sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        failures = 0;
        let (task_inner, acceptor) = (Arc::clone(&inner), acceptor.clone());
        inner
            .parts
            .supervisor
            .spawn(TaskKind::Request, "gateway connection", async move {
                let _place = place;
                let _counted = Counted::new(&task_inner.meters.connections);
                if let Err(error) = connection(&task_inner, &acceptor, stream, peer.ip()).await {
                    // Peers go away at any time; that is no fault of ours.
                    tracing::debug!(%peer, error, "a connection ended");
                }
                Ok(())
            });
    }
}

async fn connection(
    inner: &Arc<Inner>,
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    client: IpAddr,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let handshake = timeout(
        inner.parts.clock.as_ref(),
        inner.parts.limits.handshake,
        acceptor.accept(stream),
    );
    let stream = handshake.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    let service = {
        let inner = Arc::clone(inner);
        service_fn(move |request: http::Request<Incoming>| {
            let request = request.map(|body| -> Body { body.map_err(|e| -> BoxError { e.into() }).boxed_unsync() });
            answer(Arc::clone(&inner), request, client)
        })
    };
    let drain = inner.shutdown.phase(Phase::Drain);
    // Both ends of a drain: first no new requests, then, after the grace for streams and some more, no connection.
    let cut = async {
        drain.cancelled().await;
        inner.parts.clock.sleep(inner.parts.limits.drain * 2).await;
    };
    let mut cut = cut.boxed();
    let refuse = inner.shutdown.clone();
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let served = http2().serve_connection(TokioIo::new(stream), service);
        tokio::pin!(served);
        tokio::select! {
            done = served.as_mut() => return done.map_err(|e| e.to_string()),
            () = refuse.cancelled() => served.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            done = served => done.map_err(|e| e.to_string()),
            () = &mut cut => Ok(()),
        }
    } else {
        let served = http1(inner)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::pin!(served);
        tokio::select! {
            done = served.as_mut() => return done.map_err(|e| e.to_string()),
            () = refuse.cancelled() => served.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            done = served => done.map_err(|e| e.to_string()),
            () = &mut cut => Ok(()),
        }
    }
}

/// Boxed here, once per request, so that the connection's type stays small.
fn answer(
    inner: Arc<Inner>,
    request: http::Request<Body>,
    client: IpAddr,
) -> BoxFuture<'static, Result<Response, Infallible>> {
    async move { Ok(middleware::handle(inner, request, client).await) }.boxed()
}

fn http1(inner: &Inner) -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(inner.parts.limits.head)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .keep_alive(true);
    builder
}

fn http2() -> hyper::server::conn::http2::Builder<TokioExecutor> {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_ANSWER);
    builder
}
