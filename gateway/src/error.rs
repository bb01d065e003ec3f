//! What stops the gateway as a whole. A failed request is a `Status`, not one of these.

use std::io;

/// Why the gateway cannot run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The certificate or key of the front door cannot be used.
    #[error("the gateway's certificate and key cannot be used; check that they belong together")]
    Certificate(#[source] rustls::Error),
    /// An identity provider cannot be used as it is described.
    #[error("the identity provider {id:?} (section [[oidc]]): {fault}")]
    IdentityProvider {
        /// Its id.
        id: String,
        /// What is wrong.
        fault: String,
    },
    /// A sink of the audit trail cannot be used as it is described.
    #[error("the audit sink {name:?} (section [[audit.sink]]): {fault}")]
    AuditSink {
        /// Its name.
        name: String,
        /// What is wrong.
        fault: String,
    },
    /// No more connections can be accepted.
    #[error("the gateway's listener failed")]
    Listener(#[source] io::Error),
}

impl GatewayError {
    /// Whether the same may succeed later without a change of configuration.
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Certificate(_) | Self::IdentityProvider { .. } | Self::AuditSink { .. } => false,
            Self::Listener(_) => true,
        }
    }
}
