//! Answers for simulated pods: `kubectl port-forward` to any of them ends here.

use crate::error::AgentError;
use bytes::Bytes;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Most connections at once.
const CONNECTIONS_MAX: usize = 256;
/// What every pod answers.
const TEXT: &str = "This pod is simulated: no container runs.\n";

/// Listens at `address` until the agent ends.
pub(crate) async fn serve(address: SocketAddr, supervisor: &Supervisor) -> Result<(), AgentError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| AgentError::Bind { address, source })?;
    let tasks = supervisor.clone();
    supervisor.spawn(TaskKind::BestEffort, "answers for simulated pods", async move {
        let shutdown = tasks.shutdown_token();
        let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accept = async {
                let permit = free.clone().acquire_owned().await?;
                let (stream, _peer) = listener.accept().await?;
                Ok::<_, hanse_runtime::BoxError>((permit, stream))
            };
            let (permit, stream) = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                accepted = accept => accepted?,
            };
            let ending = shutdown.clone();
            tasks.spawn(TaskKind::BestEffort, "a simulated pod", async move {
                let _permit = permit;
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer));
                tokio::select! {
                    () = ending.cancelled() => Ok(()),
                    // How a forwarded connection ends is the client's business.
                    _ended = connection => Ok(()),
                }
            });
        }
    });
    Ok(())
}

async fn answer(_request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::new(Bytes::from_static(TEXT.as_bytes())));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}
