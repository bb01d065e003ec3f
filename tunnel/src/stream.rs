//! A pair of byte streams, one per direction, that can be broken off with a code. QUIC streams are such pairs; so are the
//! in-memory ones of the tests.

use crate::code::Code;
use crate::error::TunnelError;
use futures::future::BoxFuture;
use std::fmt;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// The direction that this end writes. `poll_shutdown` ends it cleanly; dropping it before that breaks it off with
/// [`Code::Cancelled`], so that a message which was cut short is never taken for a whole one.
pub trait SendHalf: AsyncWrite + Send + Unpin + 'static {
    /// Breaks the direction off.
    fn reset(&mut self, code: Code);
    /// Completes when the other end will not read any more: with its code, with an error when the connection is gone,
    /// or with `Code::None` when everything was received.
    fn stopped(&self) -> BoxFuture<'static, StreamFault>;
}

/// The direction that this end reads.
pub trait RecvHalf: AsyncRead + Send + Unpin + 'static {
    /// Tells the other end that nothing more will be read.
    fn stop(&mut self, code: Code);
}

/// Why a stream ended early. Travels inside an [`io::Error`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamFault {
    /// The other end broke off what it was sending.
    Reset(Code),
    /// The other end stopped reading.
    Stopped(Code),
    /// The connection is gone.
    Lost(String),
}

impl fmt::Display for StreamFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset(code) => write!(f, "stream reset by the other end: {code}"),
            Self::Stopped(code) => write!(f, "the other end stopped reading: {code}"),
            Self::Lost(fault) => write!(f, "connection lost: {fault}"),
        }
    }
}

impl std::error::Error for StreamFault {}

impl From<StreamFault> for io::Error {
    fn from(fault: StreamFault) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, fault)
    }
}

impl StreamFault {
    /// The fault as an error of an exchange with `peer`.
    pub(crate) fn into_error(self, peer: &str) -> TunnelError {
        match self {
            Self::Reset(code) | Self::Stopped(code) => code.stream_error(peer),
            Self::Lost(fault) => TunnelError::lost(peer, fault),
        }
    }
}

/// An IO error of a stream as an error of an exchange with `peer`.
pub(crate) fn classify(error: io::Error, peer: &str) -> TunnelError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<StreamFault>()) {
        Some(fault) => fault.clone().into_error(peer),
        None => TunnelError::lost(peer, error),
    }
}

/// Whether the other end merely does not need the rest of what is being sent.
pub(crate) fn is_not_needed(error: &io::Error) -> bool {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<StreamFault>())
        .is_some_and(|fault| *fault == StreamFault::Stopped(Code::None))
}
