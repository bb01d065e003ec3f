//! The agent: dials out to the servers, runs what they want of this host, and is the end of the Kubernetes API proxy.
//!
//! - [`config`], [`identity`]: who it is and whom it talks to.
//! - [`journal`], [`plan`], [`tenant`]: from the last intent to running tenants. The plan is pure; tenants act.
//! - [`process`]: processes that outlive the agent.
//! - [`store_socket`]: where a tenant's kube-apiserver finds its store.
//! - [`api_proxy`]: requests of users to tenants' API servers.

mod agent;
pub mod api_proxy;
pub mod config;
pub mod error;
pub mod executor;
pub mod files;
pub mod identity;
pub mod journal;
pub mod paths;
pub mod plan;
pub mod ports;
pub mod process;
mod sim;
pub mod store_socket;
pub mod tenant;
pub mod tools;

pub use agent::{Agent, Deps, stop_all};
pub use config::{AgentConfig, PortRange, ServerEntry, SimulationConfig};
pub use error::AgentError;
