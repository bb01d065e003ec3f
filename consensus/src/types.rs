//! The types Raft runs on here: what an entry carries, who a member is, which groups there are.

use bytes::Bytes;
use hanse_state::pb::Outcome;
use std::fmt;

pub use hanse_state::keys::GroupId;

/// All groups of this version, every one on every server.
pub const GROUPS: [GroupId; 2] = [GroupId::COUNCIL, GroupId::TENANTS];

/// What a group is called in logs, thread names and files.
pub fn group_name(group: GroupId) -> String {
    match group {
        GroupId::COUNCIL => "council".to_owned(),
        GroupId::TENANTS => "tenants".to_owned(),
        GroupId(other) => format!("group-{other}"),
    }
}

/// Number of a server, unique for all time: a server that lost its data comes back under a new one.
pub type NodeId = u64;

/// How a server is called and reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its name; its certificate must say `hanse://server/<name>`.
    pub name: String,
    /// `host:port` of its Raft port.
    pub address: String,
}

/// A server's place in a membership, as the log has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seat {
    /// Name and address. The name is empty until a server that was added without one has been heard of.
    pub member: Member,
    /// It has acknowledged entries: without data it must not come back under this id.
    pub held: bool,
    /// Its address was changed through the log, which then goes before what servers' own configurations say.
    pub moved: bool,
    /// It gets a vote as soon as it has the data. Means nothing for a voter.
    pub awaits_vote: bool,
    /// The member that lost log entries and came back as this one; 0: none.
    pub replaces: NodeId,
}

impl Seat {
    /// The seat of a server that was just put in.
    pub fn of(member: Member) -> Self {
        Self {
            member,
            ..Self::default()
        }
    }
}

/// Tells one proposal from all others of a group, so that its proposer recognises it when it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProposalId {
    /// Random number of the proposing process.
    pub origin: u64,
    /// Counts the proposals of that process.
    pub sequence: u64,
}

/// A command on its way through the log. The command stays encoded: it is decoded once, where it is applied.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal {
    /// By which its proposer waits for it.
    pub id: ProposalId,
    /// An encoded `state::pb::Command`.
    pub command: Bytes,
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Commands hold values, and values hold secrets.
        write!(
            f,
            "Proposal({:x}/{}, {} bytes)",
            self.id.origin,
            self.id.sequence,
            self.command.len()
        )
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying an entry answered; nothing for entries that carry no command.
#[derive(Clone, Default)]
pub struct Answer(pub Option<Outcome>);

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Answer(..)" } else { "Answer(none)" })
    }
}

openraft::declare_raft_types!(
    /// Raft with one leader per term.
    pub TypeConfig:
        D = Proposal,
        R = Answer,
        NodeId = NodeId,
        Node = Seat,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

/// A Raft log id.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A Raft vote.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// A Raft log entry.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// A membership and the entry that set it.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// A membership.
pub type Membership = openraft::Membership<NodeId, Seat>;
/// What a snapshot is of.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
