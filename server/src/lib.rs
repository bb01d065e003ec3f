//! Wires one server together: engine, consensus, tunnel, regions, gateway. No logic of its own.
//!
//! - [`config`] is `server.toml`.
//! - [`node`] builds the parts in order, runs them, ends them in order.
//! - [`events`] answers what the tunnel asks of the rest (reports, store calls, enrolment).
//! - [`readiness`] says when a server that was started may take users.
//! - [`backup`] takes backups while the server runs, [`restore`] makes a data directory of one, [`inbox`] receives what is
//!   put back into the running store.
//! - [`joining`] takes new servers in, and is what they ask; `membership` follows who the members are; `rejoin` lets a server
//!   that lost log entries come back as a new one.
//! - [`status`] is the live status of all servers for the gateway.
//! - [`store_role`] is the store alone, in the place of etcd; `store_members` sees to its members.

pub mod backup;
pub mod config;
pub mod error;
pub mod events;
pub mod files;
pub mod inbox;
pub mod joining;
mod membership;
pub mod node;
pub mod readiness;
mod rejoin;
pub mod restore;
mod signals;
pub mod status;
mod store_members;
pub mod store_role;

pub use config::ServerConfig;
pub use error::ServerError;
pub use hanse_state::backup as backup_file;
pub use node::run;
