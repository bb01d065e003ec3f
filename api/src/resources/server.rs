//! `hanse.dev/v1` Server: one `hanse server` process.

use crate::meta::Object;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A server.
pub type Server = Object<ServerSpec, ServerStatus>;

/// Where a server is and how it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerSpec {
    /// Raft node id, never reused.
    pub id: u64,
    /// Region.
    pub region: String,
    /// HTTPS base of its gateway.
    pub gateway: String,
    /// `host:port` of its Raft service.
    pub raft: String,
    /// `host:port` (UDP) of its tunnel endpoint.
    pub tunnel: String,
    /// SHA-256 of its public key, in lower-case hex: refused once it is removed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key_sha256: String,
}

/// State of one Raft group on one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupProgress {
    /// Group id: 0 council, 1 tenant store.
    pub group: u32,
    /// `Leader`, `Follower`, `Learner` or `Candidate`.
    pub role: String,
    /// Term.
    pub term: u64,
    /// Name of the leader as this server knows it; empty when it knows none.
    pub leader: String,
    /// Last applied log index.
    pub applied_index: u64,
    /// Store revision.
    pub revision: i64,
    /// Entries behind the leader's last applied index, when known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
}

/// A server's place among the members of the Raft groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Seat {
    /// It votes.
    Voter,
    /// It follows, and gets a vote as soon as it has the data.
    AwaitingVote,
    /// It follows only.
    Learner,
    /// It has no place: it was removed, or is about to come.
    #[default]
    None,
}

impl Seat {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Voter => "Voter",
            Self::AwaitingVote => "AwaitingVote",
            Self::Learner => "Learner",
            Self::None => "None",
        }
    }
}

/// What is observed of a server. Computed when asked for, never stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerStatus {
    /// Whether it answered.
    pub online: bool,
    /// Its place among the members.
    pub seat: Seat,
    /// `host:port` by which the members reach its Raft service; the log's word, which goes before `spec.raft`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Version of its program.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// One entry per Raft group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupProgress>,
    /// Connected clusters whose agents have a session with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<String>,
}
