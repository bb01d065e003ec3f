//! The replicated, versioned, watchable key-value store, without its replication.
//!
//! - [`store`]: the trait that everything above is written against, and [`objects`], the registry on top of it.
//! - [`machine`]: what a command does to the state; pure and deterministic.
//! - [`watch`]: changes in order, from any revision.
//! - [`engine`]: bytes on disk, and the one thread that makes them durable.
//! - [`local`]: the store in one process, without replication.
//! - [`etcd`]: the etcd v3 API on top of any store.
//! - [`backup`]: what a store holds, as a file of its own format, and back.
//! - [`bolt`]: files in the format of etcd's database, for snapshots that leave this store.
//! - [`meters`]: what a store counts of itself.
//! - [`keys`]: the only place that builds keys.

pub mod backup;
pub mod bolt;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod engine;
pub mod error;
pub mod etcd;
pub mod keys;
pub mod local;
pub mod machine;
pub mod meters;
pub mod objects;
pub mod pb;
pub mod store;
pub mod watch;

pub use error::StoreError;
pub use local::{LocalParts, LocalStore};
pub use store::{Access, GroupId, KeySpace, Role, Store, StoreStatus, WatchItem, WatchRequest};
