//! What can go wrong in a tunnel, sorted by the one question that callers have: did the other end get the request?

use crate::code::Code;
use hanse_runtime::BoxError;
use hanse_runtime::clock::Elapsed;
use std::io;

/// Why an exchange, a session or a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// No session of that agent, or no live connection to any server.
    #[error("{peer} is not connected; check that its process runs and reaches this network")]
    NotConnected {
        /// Who was wanted.
        peer: String,
    },
    /// The request was turned away before its body was read.
    #[error("{peer} did not take the request: {fault}; it is safe to send it again")]
    NotDialed {
        /// Who turned it away.
        peer: String,
        /// Its reason.
        fault: String,
    },
    /// All streams of the connection are in use.
    #[error("{peer} has no free stream; try again later")]
    Busy {
        /// Who is busy.
        peer: String,
    },
    /// The other end is shutting down and turned the request away unread.
    #[error("{peer} is shutting down; send the request to another server")]
    Draining {
        /// Who drains.
        peer: String,
    },
    /// A rule of the other end forbids it.
    #[error("{peer} refused the request by its policy: {fault}")]
    PolicyDenied {
        /// Who refused.
        peer: String,
        /// Its reason.
        fault: String,
    },
    /// The other end's own upstream broke the exchange off.
    #[error("{peer} lost its upstream in the middle of the exchange")]
    UpstreamReset {
        /// Who lost it.
        peer: String,
    },
    /// The other end no longer wants the exchange.
    #[error("{peer} cancelled the exchange")]
    Cancelled {
        /// Who cancelled.
        peer: String,
    },
    /// No answer in time.
    #[error("{what}: no answer in time")]
    Deadline {
        /// What was waited for.
        what: String,
    },
    /// The connection died in the middle.
    #[error("the connection to {peer} was lost: {fault}")]
    Lost {
        /// The other end.
        peer: String,
        /// What the transport says.
        fault: String,
    },
    /// A newer session of the same agent took over.
    #[error("{peer} has a newer session; only one agent may run with the same certificate")]
    Superseded {
        /// Whose session ended.
        peer: String,
    },
    /// A message body ended without its last frame.
    #[error("a message ended before its last frame")]
    Truncated,
    /// The other end broke the protocol.
    #[error("malformed {what}: {fault}")]
    Malformed {
        /// Which message.
        what: &'static str,
        /// What is wrong with it.
        fault: String,
    },
    /// A message is larger than allowed.
    #[error("{what} is larger than {limit} bytes; send less")]
    TooLarge {
        /// Which message.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// The local source of a body failed.
    #[error("the body's source failed")]
    Body(#[source] BoxError),
    /// A local stream failed.
    #[error("copying between a stream and its upstream failed")]
    Io(#[source] io::Error),
    /// The tunnel's UDP port cannot be used.
    #[error("cannot listen on {address} (udp); free the port or configure another")]
    Bind {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No connection to a server could be made.
    #[error("cannot connect to server {server} (udp): {fault}")]
    Connect {
        /// Name or address.
        server: String,
        /// Why.
        fault: String,
    },
    /// Keys or certificates are unusable.
    #[error("{what}: {fault}")]
    Credentials {
        /// What was being done.
        what: &'static str,
        /// What is wrong.
        fault: String,
    },
    /// The other end is not who it must be.
    #[error("the other end's certificate does not fit: {fault}")]
    Identity {
        /// What does not fit.
        fault: String,
    },
    /// An assertion does not hold.
    #[error("the identity assertion does not hold: {fault}")]
    Assertion {
        /// What does not hold.
        fault: String,
    },
    /// The text is no enrolment token.
    #[error("not an enrolment token: {fault}; copy the whole token, `het1.<id>.<secret>.<checksum>`")]
    Token {
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The server refused to enrol.
    #[error("the server refused the enrolment: {fault}")]
    EnrolmentRefused {
        /// The server's words.
        fault: String,
    },
}

/// What a caller may conclude about a failed exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The other end's upstream has certainly not seen the request.
    Not,
    /// It may or may not have been carried out.
    Unknown,
}

impl TunnelError {
    /// Whether the same request may succeed later. Says nothing of whether it is safe to repeat it:
    /// see [`TunnelError::certainly_not_delivered`].
    pub const fn retryable(&self) -> bool {
        match self {
            Self::NotConnected { .. }
            | Self::NotDialed { .. }
            | Self::Busy { .. }
            | Self::Draining { .. }
            | Self::UpstreamReset { .. }
            | Self::Cancelled { .. }
            | Self::Deadline { .. }
            | Self::Lost { .. }
            | Self::Superseded { .. }
            | Self::Truncated
            | Self::Io(_)
            | Self::Connect { .. } => true,
            Self::PolicyDenied { .. }
            | Self::Malformed { .. }
            | Self::TooLarge { .. }
            | Self::Body(_)
            | Self::Bind { .. }
            | Self::Credentials { .. }
            | Self::Identity { .. }
            | Self::Assertion { .. }
            | Self::Token { .. }
            | Self::EnrolmentRefused { .. } => false,
        }
    }

    /// What may be concluded about the request.
    pub const fn delivery(&self) -> Delivery {
        match self {
            Self::NotConnected { .. }
            | Self::NotDialed { .. }
            | Self::Busy { .. }
            | Self::Draining { .. }
            | Self::PolicyDenied { .. }
            | Self::Bind { .. }
            | Self::Connect { .. }
            | Self::Credentials { .. }
            | Self::Identity { .. }
            | Self::Assertion { .. }
            | Self::Token { .. } => Delivery::Not,
            Self::UpstreamReset { .. }
            | Self::Cancelled { .. }
            | Self::Deadline { .. }
            | Self::Lost { .. }
            | Self::Superseded { .. }
            | Self::Truncated
            | Self::Malformed { .. }
            | Self::TooLarge { .. }
            | Self::Body(_)
            | Self::Io(_)
            | Self::EnrolmentRefused { .. } => Delivery::Unknown,
        }
    }

    /// Whether any request, also one that changes something, may be sent again without doing it twice.
    pub const fn certainly_not_delivered(&self) -> bool {
        matches!(self.delivery(), Delivery::Not)
    }

    /// The gRPC status (code 14, UNAVAILABLE, or another) and message by which etcd's clients know what to do.
    ///
    /// etcd's client repeats a Txn by itself only on "there is no connection available", so that text is given only
    /// where the request was certainly not delivered.
    pub const fn grpc(&self) -> (u32, &'static str) {
        const UNAVAILABLE: u32 = 14;
        match self {
            Self::PolicyDenied { .. } => (7, "the store refused the call by its policy"),
            Self::TooLarge { .. } => (3, "etcdserver: request is too large"),
            Self::Malformed { .. } => (13, "the tunnel to the store broke its protocol"),
            Self::Cancelled { .. } | Self::Body(_) => (1, "the call was cancelled"),
            _ if self.certainly_not_delivered() => (UNAVAILABLE, "there is no connection available"),
            _ => (
                UNAVAILABLE,
                "etcdserver: request timed out, possibly due to connection lost",
            ),
        }
    }

    /// The code that tells the other end of this failure.
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::NotConnected { .. } | Self::NotDialed { .. } | Self::Connect { .. } => Code::NotDialed,
            Self::Busy { .. } => Code::Busy,
            Self::Draining { .. } => Code::Draining,
            Self::PolicyDenied { .. } | Self::Identity { .. } | Self::Assertion { .. } => Code::PolicyDenied,
            Self::Cancelled { .. } => Code::Cancelled,
            Self::Deadline { .. } => Code::Deadline,
            Self::Malformed { .. } => Code::Malformed,
            Self::TooLarge { .. } => Code::TooLarge,
            Self::Superseded { .. } => Code::Superseded,
            Self::UpstreamReset { .. }
            | Self::Lost { .. }
            | Self::Truncated
            | Self::Body(_)
            | Self::Io(_)
            | Self::Bind { .. }
            | Self::Credentials { .. }
            | Self::Token { .. }
            | Self::EnrolmentRefused { .. } => Code::UpstreamReset,
        }
    }

    pub(crate) fn deadline(what: &str) -> impl FnOnce(Elapsed) -> Self {
        let what = what.to_owned();
        move |_elapsed| Self::Deadline { what }
    }

    pub(crate) fn lost(peer: &str, fault: impl ToString) -> Self {
        Self::Lost {
            peer: peer.to_owned(),
            fault: fault.to_string(),
        }
    }

    pub(crate) fn malformed(what: &'static str, fault: impl ToString) -> Self {
        Self::Malformed {
            what,
            fault: fault.to_string(),
        }
    }

    pub(crate) fn credentials(what: &'static str) -> impl Fn(String) -> Self {
        move |fault| Self::Credentials { what, fault }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_undelivered_calls_invite_etcd_clients_to_repeat_a_txn() {
        let peer = || "eu".to_owned();
        let undelivered = [
            TunnelError::NotConnected { peer: peer() },
            TunnelError::Draining { peer: peer() },
            TunnelError::Busy { peer: peer() },
            TunnelError::NotDialed {
                peer: peer(),
                fault: String::new(),
            },
        ];
        for error in undelivered {
            assert!(error.certainly_not_delivered() && error.retryable(), "{error}");
            assert_eq!(error.grpc(), (14, "there is no connection available"));
        }
        let unknown = [
            TunnelError::lost("eu", "gone"),
            TunnelError::UpstreamReset { peer: peer() },
            TunnelError::Truncated,
            TunnelError::Deadline { what: "x".into() },
        ];
        for error in unknown {
            assert!(!error.certainly_not_delivered() && error.retryable(), "{error}");
            assert_eq!(error.grpc().0, 14);
            assert_ne!(error.grpc().1, "there is no connection available");
        }
    }
}
