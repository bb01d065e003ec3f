//! What can go wrong in an agent.

use crate::process::ProcessError;
use hanse_runtime::pki::PkiError;
use hanse_tunnel::TunnelError;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why an agent could not do something.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A file or directory cannot be used.
    #[error("cannot {what} {path}; check its owner, its mode and the free space")]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file of ours holds something else than it should.
    #[error("{path} is damaged ({fault}); restore it, or remove it to start over: {loss}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        fault: String,
        /// What is lost by removing it.
        loss: &'static str,
    },
    /// A program that tenants need is not there.
    #[error(
        "{missing} not found in {searched}; run `cargo xtask kube-tools`, or name a folder that holds it in kube_tools \
         or HANSE_KUBE_TOOLS"
    )]
    Tools {
        /// Names of what is missing.
        missing: String,
        /// Where it was looked for.
        searched: String,
    },
    /// There is neither a certificate nor a token.
    #[error("this agent has no certificate at {cert} and enrolment_token_file is not set; create a token and set it")]
    NotEnrolled {
        /// Where the certificate would be.
        cert: PathBuf,
    },
    /// The token was issued for another cluster.
    #[error(
        "the enrolment token is for cluster {theirs:?}, but agent.toml says {ours:?}; use the token of that cluster"
    )]
    OtherCluster {
        /// The token's cluster.
        theirs: String,
        /// The configured cluster.
        ours: String,
    },
    /// No server enrolled this agent.
    #[error("no server enrolled this agent")]
    Enrolment(#[source] TunnelError),
    /// The tunnel failed.
    #[error("the tunnel to the servers failed")]
    Tunnel(#[source] TunnelError),
    /// A key or certificate is unusable.
    #[error("cannot use keys of {whose}")]
    Keys {
        /// Whose.
        whose: String,
        /// Why.
        #[source]
        source: PkiError,
    },
    /// A TLS configuration cannot be made.
    #[error("cannot use TLS keys of {whose}: {fault}")]
    Tls {
        /// Whose.
        whose: String,
        /// Why.
        fault: String,
    },
    /// The intent lacks keys.
    #[error("the intent for tenant {tenant} carries no keys; the server that sent it could not unseal them")]
    NoKeys {
        /// Which tenant.
        tenant: String,
    },
    /// The id of a tenant cannot be the name of a directory.
    #[error("{tenant:?} is no valid id of a tenant: {fault}")]
    BadTenant {
        /// The id.
        tenant: String,
        /// What is wrong with it.
        fault: String,
    },
    /// All ports are given out.
    #[error("no free port between {first} and {last}; widen `ports` in agent.toml")]
    NoPort {
        /// First port of the range.
        first: u16,
        /// Last port of the range.
        last: u16,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}; free it or configure another")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A message cannot be read.
    #[error("malformed {what}: {fault}")]
    Malformed {
        /// What it should be.
        what: &'static str,
        /// What is wrong.
        fault: String,
    },
    /// A process cannot be managed.
    #[error("a process of tenant {tenant} failed")]
    Process {
        /// Whose process.
        tenant: String,
        /// Why.
        #[source]
        source: ProcessError,
    },
    /// The API server of a tenant refuses what the agent needs in it.
    #[error("the API server of tenant {tenant} did not {what}")]
    Kube {
        /// Which tenant.
        tenant: String,
        /// What was wanted.
        what: &'static str,
        /// Its answer.
        #[source]
        source: Box<kube::Error>,
    },
}

impl AgentError {
    /// Whether the same may succeed later without a change by a person.
    pub fn retryable(&self) -> bool {
        match self {
            Self::File { .. } | Self::Kube { .. } | Self::Bind { .. } | Self::NoPort { .. } => true,
            Self::Process { source, .. } => source.retryable(),
            Self::Enrolment(source) | Self::Tunnel(source) => source.retryable(),
            Self::Keys { source, .. } => source.retryable(),
            Self::Damaged { .. }
            | Self::Tools { .. }
            | Self::NotEnrolled { .. }
            | Self::OtherCluster { .. }
            | Self::Tls { .. }
            | Self::NoKeys { .. }
            | Self::BadTenant { .. }
            | Self::Malformed { .. } => false,
        }
    }

    pub(crate) fn keys(whose: &str) -> impl FnOnce(PkiError) -> Self {
        let whose = whose.to_owned();
        move |source| Self::Keys { whose, source }
    }
}
