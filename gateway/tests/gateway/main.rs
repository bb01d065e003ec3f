//! Tests that run a real gateway: TLS and sockets on loopback, the registry in memory, an agent in the same process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    missing_docs,
    reason = "these are tests"
)]

mod access;
mod attacks;
mod audit;
mod audit_policy;
mod audit_sinks;
mod backup;
mod credentials;
mod differences;
mod fields;
mod garbage;
mod kubectl;
mod objects;
mod oidc;
mod oidc_hostile;
mod oidc_issuer;
mod oidc_world;
mod oracle;
mod oracle_kinds;
mod reference;
mod restore;
mod roles;
mod secrets;
mod smuggling;
mod streams;
mod sweep;
mod throttle;
mod upgrades;
mod watches;
mod world;
