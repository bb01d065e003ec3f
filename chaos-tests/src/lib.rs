//! The fault harness: whole installations of real processes, clients that keep a record of what was acknowledged, and
//! faults. The tests are in `tests/`, one installation each.
//!
//! - [`world`]: an installation with an address block and a home of its own.
//! - [`processes`]: its processes by role and region, and what is left of them.
//! - [`load`]: clients that write again and again and note each acknowledgement with its time.
//! - [`writers`]: what they write, and what is there of it.
//! - [`small_disk`]: a file system without room, for one command.
//! - [`watcher`]: a client that follows a collection the way controllers do.

pub mod load;
pub mod processes;
pub mod small_disk;
pub mod watcher;
pub mod world;
pub mod writers;

pub use load::Load;
pub use processes::Process;
pub use watcher::Watcher;
pub use world::World;
