//! The controllers, one file each. [`crate::coordinator`] is the single list of which run under which lease.

pub mod agent_health;
pub mod intents;
pub mod placement;
pub mod tenant_lifecycle;

pub use agent_health::AgentHealth;
pub use intents::Intents;
pub use placement::Placement;
pub use tenant_lifecycle::TenantLifecycle;
