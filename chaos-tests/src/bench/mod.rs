//! What measurements of Hanse beside a peer have in common.
//!
//! - [`figures`]: what one run of a load gives, and all runs of it beside the peer's.
//! - [`closed_loop`]: clients of which each asks, waits for the answer and asks again.
//! - [`fan_out`]: many watchers of what is written at a steady rate.
//! - [`usage`]: processor time and memory of the servers meanwhile.
//! - [`table`]: the table, the plot, and what the machine is.

pub mod closed_loop;
pub mod fan_out;
pub mod figures;
pub mod table;
pub mod usage;

pub use closed_loop::{Ask, closed_loop};
pub use figures::{Aim, Figures, Line, Window};
