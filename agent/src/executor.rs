//! Turns intents into workers: one per tenant, told what it should be.

use crate::error::AgentError;
use crate::files;
use crate::journal::{Accepted, Journal};
use crate::tenant::render::check_tenant;
use crate::tenant::{Host, Worker};
use bytes::Bytes;
use hanse_api::intent::{Intent, TenantIntent, TenantReport, TenantState};
use hanse_runtime::supervisor::{TaskKind, chain};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, mpsc, watch};

/// Tenants whose workers ended and were not looked after yet.
const ENDED: usize = 64;

/// Intents that came in: the latest of each server. A late intent of one server must not push out a newer one of
/// another before they were compared.
#[derive(Debug, Default)]
pub struct Inbox {
    by_server: Mutex<BTreeMap<String, Bytes>>,
    arrived: Notify,
}

impl Inbox {
    /// Takes the latest intent of `server` in.
    pub fn put(&self, server: &str, intent: Bytes) {
        self.by_server
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(server.to_owned(), intent);
        self.arrived.notify_one();
    }

    async fn take(&self) -> BTreeMap<String, Bytes> {
        loop {
            let taken = std::mem::take(&mut *self.by_server.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            self.arrived.notified().await;
        }
    }
}

/// Which intent the host works on: epoch and revision.
pub type Position = (i64, i64);

/// Tells workers what their tenants should be.
#[derive(Debug)]
pub struct Executor {
    host: Arc<Host>,
    journal: Journal,
    inbox: Arc<Inbox>,
    workers: BTreeMap<String, watch::Sender<Option<TenantIntent>>>,
    position: watch::Sender<Position>,
}

impl Executor {
    /// An executor that goes on with what `journal` holds.
    pub fn new(host: Arc<Host>, journal: Journal, inbox: Arc<Inbox>) -> Self {
        Self {
            host,
            journal,
            inbox,
            workers: BTreeMap::new(),
            position: watch::Sender::new((0, 0)),
        }
    }

    /// Which intent is worked on.
    pub fn position(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// Works until the agent ends.
    pub async fn run(mut self) -> Result<(), AgentError> {
        let shutdown = self.host.supervisor.shutdown_token();
        let (tell_ended, mut ended) = mpsc::channel::<String>(ENDED);
        if let Some(intent) = self.journal.last().cloned() {
            tracing::info!(
                epoch = intent.epoch,
                revision = intent.revision,
                "going on with the intent in the journal"
            );
            self.leave(&intent, &tell_ended)?;
            self.apply(&intent, &tell_ended);
        }
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                arrived = self.inbox.take() => {
                    for (server, bytes) in arrived {
                        self.accept(&server, &bytes, &tell_ended);
                    }
                }
                Some(tenant) = ended.recv() => {
                    self.workers.remove(&tenant);
                    // It may have been wanted again while its worker was ending.
                    if let Some(intent) = self.journal.last().cloned() {
                        self.apply(&intent, &tell_ended);
                    }
                }
            }
        }
    }

    fn accept(&mut self, server: &str, bytes: &[u8], tell_ended: &mpsc::Sender<String>) {
        match self.journal.accept(bytes) {
            Ok(Accepted::Stale) => tracing::debug!(server, "an intent that is not newer was ignored"),
            Ok(Accepted::Taken) => {
                if let Some(intent) = self.journal.last().cloned() {
                    tracing::info!(server, epoch = intent.epoch, revision = intent.revision, "a new intent");
                    self.apply(&intent, tell_ended);
                }
            }
            Err(error) => tracing::warn!(server, error = chain(&error), "an intent could not be taken in"),
        }
    }

    /// Tenants on disk that the intent does not name are to go.
    fn leave(&mut self, intent: &Intent, tell_ended: &mpsc::Sender<String>) -> Result<(), AgentError> {
        for tenant in files::names_in(&self.host.facts.layout.tenants())? {
            if !intent.tenants.iter().any(|wanted| wanted.tenant == tenant) && check_tenant(&tenant).is_ok() {
                self.tell(&tenant, None, tell_ended);
            }
        }
        Ok(())
    }

    fn apply(&mut self, intent: &Intent, tell_ended: &mpsc::Sender<String>) {
        for tenant in &intent.tenants {
            self.tell(&tenant.tenant, Some(tenant), tell_ended);
        }
        for (tenant, worker) in &self.workers {
            if !intent.tenants.iter().any(|wanted| wanted.tenant == *tenant) {
                worker.send_if_modified(|desired| desired.take().is_some());
            }
        }
        // Reports of tenants that never got a worker.
        for report in self.host.board.all() {
            let wanted = intent.tenants.iter().any(|wanted| wanted.tenant == report.tenant);
            if !wanted && !self.workers.contains_key(&report.tenant) {
                self.host.board.remove(&report.tenant);
            }
        }
        self.position.send_replace((intent.epoch, intent.revision));
    }

    fn tell(&mut self, tenant: &str, desired: Option<&TenantIntent>, tell_ended: &mpsc::Sender<String>) {
        if let Some(worker) = self.workers.get(tenant) {
            worker.send_if_modified(|known| {
                let differs = known.as_ref() != desired;
                if differs {
                    *known = desired.cloned();
                }
                differs
            });
            return;
        }
        let (sender, receiver) = watch::channel(desired.cloned());
        match Worker::new(self.host.clone(), tenant, receiver) {
            Ok(worker) => {
                self.workers.insert(tenant.to_owned(), sender);
                let (tell, tenant) = (tell_ended.clone(), tenant.to_owned());
                self.host
                    .supervisor
                    .spawn(TaskKind::Session, format!("tenant {tenant}"), async move {
                        worker.run().await;
                        // The executor ends before its workers only when the agent does.
                        let _ending = tell.send(tenant).await.is_err();
                        Ok(())
                    });
            }
            Err(error) => self.host.board.set(failed(tenant, &error)),
        }
    }
}

fn failed(tenant: &str, error: &AgentError) -> TenantReport {
    TenantReport {
        tenant: tenant.to_owned(),
        state: TenantState::Failed,
        message: chain(error),
        ..TenantReport::default()
    }
}
