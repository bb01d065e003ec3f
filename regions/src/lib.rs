//! Controllers of Hanse: which server coordinates which region, and what it makes of what is wanted.
//!
//! - [`view`], [`feed`]: what a server knows of the council, fed by watches.
//! - [`lease`], [`coordinator`]: one coordinator per region under a fenced lease.
//! - [`reconciler`], [`driver`]: what a controller is, and what runs it.
//! - [`controllers`]: the controllers, one file each.
//! - [`reports`], [`observation`]: what agents observe, stored when it changes.
//! - [`deliver`]: intents to agents. [`hosts`]: who may use which key space.
//! - [`enrolment`], [`joining`], [`bootstrap`]: certificates of agents, places of new servers, and the first objects.
//!   [`author`]: what a server does by itself, for the audit.
//! - [`service`]: all of it on one server.

pub mod address;
pub mod author;
pub mod bootstrap;
pub mod conditions;
pub mod controllers;
pub mod coordinator;
pub mod deliver;
pub mod driver;
pub mod enrolment;
pub mod error;
pub mod feed;
pub mod hosts;
pub mod joining;
pub mod lease;
pub mod observation;
pub mod reconciler;
pub mod reports;
pub mod scope;
pub mod service;
pub mod tenant_pki;
pub mod view;

#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod testing;

pub use coordinator::ControllerStatus;
pub use enrolment::enrol;
pub use hosts::{HostRefusal, Hosts};
pub use reports::Reports;
pub use service::{Regions, RegionsParts};
