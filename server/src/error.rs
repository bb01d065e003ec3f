//! Why a server does not start or stopped.

use std::path::PathBuf;

/// Everything that ends a server. The messages are for its operator.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The configuration has faults.
    #[error(transparent)]
    Config(#[from] hanse_runtime::config::ConfigErrors),
    /// A file of keys or certificates, or the data directory, cannot be used.
    #[error("{what} {}: {fault}", path.display())]
    File {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What is wrong and what to do.
        fault: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({what}): is another program using it? Change {key} or stop the other program")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// For what.
        what: &'static str,
        /// Key of the configuration.
        key: &'static str,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// Another part refused to start, or failed.
    #[error("{part} failed")]
    Part {
        /// Which.
        part: &'static str,
        /// Why.
        #[source]
        source: hanse_runtime::BoxError,
    },
    /// Log entries are missing, or the store is damaged, and the server did not come back as a new one.
    #[error("this server lost data, and does not come back under a new id: {why}")]
    Lost {
        /// Why not, and what to do.
        why: String,
        /// What is missing.
        #[source]
        source: Box<ServerError>,
    },
    /// A backup is unfit.
    #[error("{}", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: hanse_state::backup::BackupError,
    },
    /// A restore was refused.
    #[error("{0}")]
    Restore(String),
    /// A vital task failed while the server ran.
    #[error("the server stopped: {0}")]
    Task(String),
}

impl ServerError {
    /// Whether starting again without a change may help.
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Config(_) | Self::File { .. } | Self::Backup { .. } | Self::Restore(_) => false,
            Self::Listen { .. } | Self::Part { .. } | Self::Lost { .. } | Self::Task(_) => true,
        }
    }

    /// A failed part.
    pub fn part(part: &'static str, source: impl Into<hanse_runtime::BoxError>) -> Self {
        Self::Part {
            part,
            source: source.into(),
        }
    }
}
