//! The vocabulary of Hanse and its pure rules.
//!
//! Everything here is a value or a function of values: no IO, no clock, no randomness, no async runtime.
//! The wire shapes follow Kubernetes (`metav1`) and vCluster Platform (`management.loft.sh/v1`); what only
//! Hanse has lives in `hanse.dev/v1`.

pub mod access;
pub mod audit;
pub mod intent;
pub mod kinds;
pub mod meta;
pub mod name;
pub mod ownership;
pub mod placement;
pub mod resources;
pub mod status;
pub mod time;

pub use meta::{Condition, ObjectMeta};
pub use status::{Cause, Reason, Status};
pub use time::Timestamp;
