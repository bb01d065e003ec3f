//! Tenants on this host: what they need, and the workers that bring it about.

mod gate;
pub mod health;
mod issue;
pub mod nodes;
pub mod render;
mod worker;

pub use worker::Worker;

use crate::api_proxy::Targets;
use crate::ports::PortBook;
use hanse_api::intent::TenantReport;
use hanse_runtime::clock::SharedClock;
use hanse_runtime::rng::SharedRng;
use hanse_runtime::supervisor::Supervisor;
use hanse_tunnel::Uplink;
use render::HostFacts;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, watch};

/// What all tenants of a host share.
pub struct Host {
    /// Facts.
    pub facts: HostFacts,
    /// Ports.
    pub ports: PortBook,
    /// The way to the store.
    pub uplink: Arc<dyn Uplink>,
    /// API servers that requests may go to.
    pub targets: Arc<Targets>,
    /// What is reported.
    pub board: Board,
    /// Time.
    pub clock: SharedClock,
    /// Randomness.
    pub rng: SharedRng,
    /// Tasks.
    pub supervisor: Supervisor,
    /// How many tenants come up at once: a starting API server takes a core for seconds.
    pub bring_up: Arc<Semaphore>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

/// The latest report of each tenant.
#[derive(Debug)]
pub struct Board {
    reports: Mutex<BTreeMap<String, TenantReport>>,
    changed: watch::Sender<u64>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            reports: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, TenantReport>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes `report`.
    pub fn set(&self, report: TenantReport) {
        let mut reports = self.lock();
        if reports.get(&report.tenant) != Some(&report) {
            reports.insert(report.tenant.clone(), report);
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// `tenant` is no longer here.
    pub fn remove(&self, tenant: &str) {
        if self.lock().remove(tenant).is_some() {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// All reports.
    pub fn all(&self) -> Vec<TenantReport> {
        self.lock().values().cloned().collect()
    }

    /// Changes with every report that differs from the one before.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
