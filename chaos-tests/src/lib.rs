//! The fault harness: whole installations of real processes, clients that keep a record of what was acknowledged, and
//! faults. The tests are in `tests/`, one installation each.
//!
//! - [`world`]: an installation with an address block and a home of its own.
//! - [`processes`]: its processes by role and region, and what is left of them.
//! - [`load`]: clients that write again and again and note each acknowledgement with its time.
//! - [`writers`]: what they write, and what is there of it.
//! - [`small_disk`]: a file system without room, for one command.
//! - [`programs`]: the program under test, and the pinned ones of others.
//! - [`standstill`]: times at which the machine did nothing at all.
//! - [`store_cluster`]: members of `hanse store` or etcd, with nothing around them.
//! - [`relay`]: makes the link between two of those long.
//! - [`slow_disk`]: makes the disk slow for one of them.
//! - [`soak`]: kube-apiserver on such members, under load, while they are killed.
//! - [`api_server`]: kube-apiserver on those.
//! - [`hanse_servers`]: `hanse server` processes that form one system, without agents.
//! - [`bench`]: what measurements beside a peer have in common.
//! - [`api_bench`]: the management API beside kube-apiserver.
//! - [`watcher`]: a client that follows a collection the way controllers do.

pub mod api_bench;
pub mod api_server;
pub mod bench;
pub mod hanse_servers;
pub mod load;
pub mod processes;
pub mod programs;
pub mod relay;
pub mod slow_disk;
pub mod small_disk;
pub mod soak;
pub mod standstill;
pub mod store_cluster;
pub mod watcher;
pub mod world;
pub mod writers;

pub use load::Load;
pub use processes::Process;
pub use watcher::Watcher;
pub use world::World;
