//! What can go wrong here.

use crate::roster::Refusal;
use crate::types::{GroupId, NodeId};
use hanse_state::StoreError;

/// A record or message that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Not the protobuf message it should be.
    #[error("{what} is not readable: the record is damaged")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// The decoder's words.
        source: prost::DecodeError,
    },
    /// Written by a newer version.
    #[error(
        "{what} has format {format}, which this version does not know: run the version that wrote it, or a newer one"
    )]
    Format {
        /// What was read.
        what: &'static str,
        /// The format it claims.
        format: u32,
    },
    /// A part is missing.
    #[error("{what} is missing in a record")]
    Missing {
        /// What is missing.
        what: &'static str,
    },
    /// Readable, but makes no sense.
    #[error("{what} makes no sense: {fault}")]
    Invalid {
        /// What was read.
        what: &'static str,
        /// Why not.
        fault: String,
    },
}

/// Why a consensus node could not start, or could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// Configuration that cannot work.
    #[error("consensus configuration, field {field}: {fault}")]
    Config {
        /// The field.
        field: &'static str,
        /// What is wrong, and what to write instead.
        fault: String,
    },
    /// Certificates or keys that cannot be used.
    #[error("TLS of the Raft port: {what}")]
    Tls {
        /// What was being done.
        what: String,
        /// The library's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The Raft port cannot be opened.
    #[error(
        "cannot listen on {address} for other servers: is another process using it, or is the address not of this machine?"
    )]
    Listen {
        /// The address.
        address: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// Entries that were on disk are gone.
    #[error(
        "Raft group {group}: the log on disk ends at entry {found}, but this server had written entry {expected}: its data is damaged. \
         Do not start it on this data again: remove this server from the cluster, wipe its data directory, \
         and add it back under a new id"
    )]
    LogLost {
        /// The group.
        group: GroupId,
        /// What must be there.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// A file beside the engine.
    #[error("cannot {what} {path}")]
    File {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The state crate's error.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// A stored record.
    #[error("a stored record cannot be read")]
    Codec(#[from] CodecError),
    /// openraft refused or stopped.
    #[error("Raft group {group}: Raft refused to {what}: {fault}")]
    Raft {
        /// The group.
        group: GroupId,
        /// What was asked.
        what: &'static str,
        /// Its words.
        fault: String,
    },
    /// This server has no data, but the cluster remembers data of it.
    #[error(
        "Raft group {group}: this server (id {id}) has no data, but the running cluster has it as a member that already held data. A server that \
         lost its data must come back under a new id: remove id {id} from the cluster and give this server an id that was never used"
    )]
    DataGone {
        /// The group.
        group: GroupId,
        /// Its id.
        id: NodeId,
    },
    /// This server was removed from the cluster.
    #[error(
        "this server (id {id:x}) was removed from the cluster for good: wipe its data directory and, if it is to come back, add it under a new id"
    )]
    Removed {
        /// Its id.
        id: NodeId,
    },
    /// The data directory is another server's.
    #[error(
        "the data directory {path} belongs to the server with id {found:x}, and this one has id {id:x}: start it on its own data"
    )]
    ForeignData {
        /// The directory.
        path: String,
        /// Whose it is.
        found: NodeId,
        /// Who wants to use it.
        id: NodeId,
    },
    /// No running member knows a member with this server's address.
    #[error(
        "no member of the running cluster has the address {address}: add this server first (member add), with this address"
    )]
    NotAdded {
        /// Its address.
        address: String,
    },
    /// A change of the members that is not allowed.
    #[error("the members were not changed")]
    Refused(#[source] Refusal),
    /// A member that lost log entries got no new id.
    #[error("the others did not take this server (id {id:x}) in again under a new id: {why}")]
    NotReplaced {
        /// Its old id.
        id: NodeId,
        /// What they said, or that they did not.
        why: String,
    },
    /// It did not happen in time.
    #[error("Raft group {group}: {what} did not happen within {seconds} s")]
    Timeout {
        /// The group.
        group: GroupId,
        /// What was awaited.
        what: &'static str,
        /// How long.
        seconds: u64,
    },
}

impl ConsensusError {
    /// Whether a later try may succeed without anybody repairing anything.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Config { .. } | Self::Tls { .. } | Self::LogLost { .. } | Self::Codec(_) => false,
            Self::DataGone { .. } | Self::Removed { .. } | Self::ForeignData { .. } | Self::NotAdded { .. } => false,
            // A server that is down comes back, a learner catches up.
            Self::Refused(refusal) => match refusal {
                Refusal::Behind { .. } | Refusal::Unstarted { .. } | Refusal::Unreachable { .. } => true,
                Refusal::NoSuchMember { .. } | Refusal::IdUsed { .. } | Refusal::AddressTaken { .. } => false,
                Refusal::NotLearner { .. } | Refusal::TooManyLearners => false,
                Refusal::Gone { .. } | Refusal::Foreign { .. } => false,
                Refusal::Alive { .. } => true,
            },
            Self::Listen { .. } | Self::File { .. } | Self::Raft { .. } | Self::Timeout { .. } => true,
            Self::NotReplaced { .. } => true,
            Self::Store(error) => error.retryable(),
        }
    }
}
