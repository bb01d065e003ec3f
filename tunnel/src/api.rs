//! The seams of the tunnel: what its users call and what they implement.

use crate::error::TunnelError;
use crate::wire::{RequestHead, StoreHead};
use async_trait::async_trait;
use bytes::Bytes;
use hanse_api::Timestamp;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use parking_lot::Mutex;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Body of a request or response: data frames, then perhaps trailers.
pub type Body = UnsyncBoxBody<Bytes, TunnelError>;

/// A body without bytes.
pub fn empty_body() -> Body {
    http_body_util::Empty::new()
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body of known bytes.
pub fn full_body(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The raw byte stream of a connection that was switched to another protocol. `shutdown` ends the written direction and
/// leaves the other open; dropping it breaks both off.
pub struct TunnelIo(Box<dyn Duplex>);

impl TunnelIo {
    /// Wraps a stream, such as an upgraded connection to an API server.
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Box::new(io))
    }
}

impl fmt::Debug for TunnelIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TunnelIo(..)")
    }
}

impl AsyncRead for TunnelIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}

/// Answer to a request to switch protocols.
#[derive(Debug)]
pub enum Upgraded {
    /// `101`: both directions are raw from here on.
    Switched {
        /// The head of the answer.
        response: http::Response<()>,
        /// The raw stream.
        io: TunnelIo,
    },
    /// Any other answer; nothing was switched.
    Answered(http::Response<Body>),
}

// Extensions of a response must be `Clone`; the error inside is only ever moved out.
#[derive(Clone)]
struct Refusal(Arc<Mutex<Option<TunnelError>>>);

/// An answer that stands for a failure: the tunnel breaks the stream off with the error's code instead of sending a
/// response, so that the other end gets a [`TunnelError`] of the same class (say `NotDialed`: safe to repeat).
pub fn refuse(error: TunnelError) -> http::Response<Body> {
    let mut response = http::Response::new(empty_body());
    *response.status_mut() = http::StatusCode::BAD_GATEWAY;
    response
        .extensions_mut()
        .insert(Refusal(Arc::new(Mutex::new(Some(error)))));
    response
}

/// The failure that `response` stands for, if it was made by [`refuse`].
pub fn take_refusal<B>(response: &mut http::Response<B>) -> Option<TunnelError> {
    response.extensions_mut().remove::<Refusal>()?.0.lock().take()
}

/// A connected agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its connected cluster, from its certificate.
    pub cluster: String,
    /// When it connected.
    pub since: Timestamp,
    /// Its address.
    pub remote: SocketAddr,
    /// Version of its program.
    pub version: String,
    /// Drawn once per start of the agent's process.
    pub boot_id: String,
}

/// The server's side of the tunnel, as the gateway and the coordinators see it.
#[async_trait]
pub trait AgentHub: Send + Sync {
    /// Passes a request to the agent of `cluster`. No time limit of its own: drop the future, or the response's body, to cancel.
    async fn request(&self, cluster: &str, head: RequestHead, body: Body) -> Result<http::Response<Body>, TunnelError>;
    /// Asks the agent of `cluster` to switch protocols; no body byte is sent before a `101`.
    async fn upgrade(&self, cluster: &str, head: RequestHead) -> Result<Upgraded, TunnelError>;
    /// Pushes the desired state; only the latest counts. False when the agent has no session here.
    fn send_intent(&self, cluster: &str, intent: Bytes) -> bool;
    /// The agents that are connected here.
    fn sessions(&self) -> Vec<SessionInfo>;
    /// Changes whenever an agent connects or disconnects.
    fn changes(&self) -> tokio::sync::watch::Receiver<u64>;
}

/// Certificate of a newly enrolled agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// Its certificate, PEM.
    pub cert_pem: String,
    /// The system's authority, PEM.
    pub ca_pem: String,
    /// The name of its cluster.
    pub cluster: String,
}

/// A server that was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Its certificate, PEM.
    pub cert_pem: String,
    /// The system's authority, PEM.
    pub ca_pem: String,
    /// Its name.
    pub name: String,
    /// Its place in the system, in a form that the tunnel does not know.
    pub place: Bytes,
}

/// What the server's side of the tunnel calls.
#[async_trait]
pub trait ServerEvents: Send + Sync + 'static {
    /// An agent reports what it observes.
    async fn report(&self, cluster: &str, report: Bytes);
    /// An agent calls a tenant's store. Dropping the future means that the caller gave up.
    async fn store_call(&self, cluster: &str, head: StoreHead, body: Body) -> http::Response<Body>;
    /// A new agent shows its token. The error is for its operator.
    async fn enrol(&self, token: &str, csr_pem: &str) -> Result<Enrolled, String>;
    /// A new server shows its token and says of itself what `newcomer` holds. The error is for its operator.
    async fn admit(&self, _token: &str, _csr_pem: &str, _newcomer: Bytes) -> Result<Admitted, String> {
        Err("no server can join here".to_owned())
    }
}

/// What the agent's side of the tunnel calls.
#[async_trait]
pub trait AgentEvents: Send + Sync + 'static {
    /// A server passes a request. Dropping the future means that the caller gave up.
    async fn request(&self, server: &str, head: RequestHead, body: Body) -> http::Response<Body>;
    /// A server asks to switch protocols. The tunnel copies between the returned stream and its own.
    async fn upgrade(&self, server: &str, head: RequestHead) -> Upgraded;
    /// A server pushes desired state.
    fn intent(&self, server: &str, intent: Bytes);
}

/// The agent's side of the tunnel, as the rest of the agent sees it.
#[async_trait]
pub trait Uplink: Send + Sync {
    /// Calls a tenant's store through any server.
    async fn store_call(&self, head: StoreHead, body: Body) -> Result<http::Response<Body>, TunnelError>;
    /// Hands over a report; only the latest counts, and it is kept until a server has taken it.
    fn report(&self, report: Bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_taken_once() {
        let mut response = refuse(TunnelError::Draining { peer: "eu".into() });
        assert!(matches!(
            take_refusal(&mut response),
            Some(TunnelError::Draining { .. })
        ));
        assert!(take_refusal(&mut response).is_none());
    }
}
