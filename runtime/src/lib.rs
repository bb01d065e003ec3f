//! What every process of Hanse needs: clock, tasks, work queues, shutdown, configuration, telemetry, certificates, sealing.
//!
//! This crate knows no noun of the product. It is the only one that reads a clock, draws random numbers or spawns
//! a task; everything above takes those as arguments, so that it can be tested with a made-up clock.

pub mod backoff;
pub mod clock;
pub mod config;
pub mod meter;
pub mod pki;
pub mod queue;
pub mod rng;
pub mod seal;
pub mod shutdown;
pub mod supervisor;
pub mod telemetry;

/// An error of any kind, at the border of a task.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;
