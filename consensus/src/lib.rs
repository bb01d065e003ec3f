//! Consensus between Hanse's servers: every group's log, its leader, its snapshots, and [`ReplicatedStore`] on top.
//!
//! This is the only crate that names openraft. Group 0 (council) and group 1 (tenants) run over the same servers, engine,
//! log writer, port and connections; nothing here assumes that there are two.
//!
//! - [`node`]: starts it all, forms the cluster; [`status`] says how it is.
//! - [`replicated_store`]: `state::Store` on any member; [`propose`] takes writes to the log, by way of [`forward`] when the leader
//!   is another; [`read_index`] makes reads linearizable.
//! - [`roster`]: which change of the members is allowed, and its steps; [`membership`] takes them, at the leaders;
//!   [`admission`]: whether a server without data may take part; [`identity`]: who a server is; [`replace`], [`rejoin`]: how one
//!   that lost log entries comes back as a new member.
//! - [`log_store`], [`state_machine`], [`snapshot`], [`arrival`]: what Raft keeps, on the server's one engine; [`restore`]: where it begins
//!   on content from a backup.
//! - `purge`: how much of the logs stays; [`disk`]: what is refused when a disk fills up.
//! - [`network`], [`service`], [`peer_stream`], [`tls`]: the two sides of the Raft port.
//! - `vacancy`: how a leader whose process is gone is followed by another at once.
//! - [`fair`]: whose writes go into the log next, when there are many, and `share`: how many of one space; [`level`]: which formats the members may use.
//! - [`meters`]: what is counted.
//! - [`codec`]: our own versioned records; openraft's serde forms are never stored or sent.

pub mod admission;
pub mod arrival;
pub mod codec;
pub mod config;
pub mod disk;
pub mod error;
mod exchange;
pub mod fair;
pub mod forward;
pub mod group;
pub mod high_water;
pub mod identity;
pub mod level;
mod log_size;
pub mod log_store;
mod log_tail;
pub mod membership;
pub mod meters;
pub mod network;
pub mod node;
pub mod peer_stream;
pub mod pending;
pub mod propose;
mod purge;
pub mod read_index;
pub mod rejoin;
pub mod replace;
pub mod replicated_store;
pub mod restore;
pub mod revoked;
pub mod roster;
mod rounds;
pub mod service;
mod share;
pub mod snapshot;
mod snapshot_form;
pub mod spool;
pub mod state_machine;
pub mod status;
pub mod timers;
pub mod tls;
pub mod types;
mod vacancy;

pub use config::{NodeConfig, Settings};
pub use disk::Disk;
pub use error::ConsensusError;
pub use group::Leadership;
pub use identity::{Discovery, Joined};
pub use node::{Node, NodeParts};
pub use rejoin::Rejoin;
pub use replicated_store::ReplicatedStore;
pub use roster::{Change, Refusal, Roster};
pub use status::MemberStatus;
pub use tls::{TlsPem, Trust};
pub use types::{GROUPS, GroupId, Member, NodeId, Seat};
