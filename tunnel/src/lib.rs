//! The tunnel between servers and agents: HTTP exchanges over QUIC streams, both ways, with mutual TLS.
//!
//! Agents dial out. A server reaches an agent through [`AgentHub`] ([`hub::Hub`] implements it), an agent reaches any server
//! through [`Uplink`] ([`dialer::Dialer`] implements it). Only `quic.rs` names the QUIC library; everything else is
//! written against pairs of byte streams and tested without a network.

pub mod api;
pub mod assertion;
pub mod code;
pub mod dialer;
pub mod enrol;
pub mod error;
mod exchange;
pub mod frame;
pub mod hub;
pub mod identity;
#[cfg(test)]
mod memory;
mod quic;
pub mod settings;
pub mod stream;
pub mod testing;
pub mod wire;

pub use api::{
    Admitted, AgentEvents, AgentHub, Body, Enrolled, ServerEvents, SessionInfo, TunnelIo, Upgraded, Uplink, empty_body,
    full_body, refuse, take_refusal,
};
pub use dialer::{ConnectionInfo, Dialer, DialerConfig, ServerAddress};
pub use enrol::{EnrolmentToken, Newcomer, enrol, join};
pub use error::{Delivery, TunnelError};
pub use exchange::splice::{LINGER, splice};
pub use hub::{Hub, HubConfig, Parts};
pub use identity::{Credentials, Identity};
pub use settings::{Congestion, Settings};
pub use wire::{RequestHead, StoreHead, Target};

#[cfg(test)]
mod tests;
