//! Which scopes this server coordinates: watches their leases, and runs the controllers of those that it holds.
//!
//! One server may hold several leases: its own region's, those of regions that are down, and the fleet's. Each tenure
//! has its own drivers and its own fencing token.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hanse_runtime::clock::timeout;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use hanse_state::Store;
use hanse_state::objects::Objects;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use hanse_runtime::clock::SharedClock;
use hanse_runtime::rng::SharedRng;
use hanse_runtime::seal::Sealer;

use crate::controllers::{AgentHealth, Intents, Placement, TenantLifecycle};
use crate::driver::{Driver, DriverStatus, Ended, SharedStatus};
use crate::error::StepError;
use crate::feed::SharedView;
use crate::lease::{Decision, Held, LeaseWriter, STEP_DOWN_AFTER, Watcher, decide, preference};
use crate::reconciler::{Fence, Reconciler, StepCtx};
use crate::scope::Scope;

/// Leases are looked at this often.
const TICK: Duration = Duration::from_millis(500);
/// Most scopes that one server coordinates; more regions than that at once are left to others.
const SCOPES_MAX: usize = 256;
/// How long drivers may take to end when the server stops, before leases are let go.
const END_LIMIT: Duration = Duration::from_secs(6);

/// What a coordinator works with.
#[derive(Clone)]
pub struct CoordinatorParts {
    /// Name of this server.
    pub server: String,
    /// The council.
    pub objects: Objects,
    /// The group that holds the tenants' key spaces.
    pub tenants: Arc<dyn Store>,
    /// What this server knows of the council.
    pub view: Arc<SharedView>,
    /// Seals the tenants' keys.
    pub sealer: Sealer,
    /// Time.
    pub clock: SharedClock,
    /// Randomness.
    pub rng: SharedRng,
    /// Runs the drivers.
    pub supervisor: Supervisor,
}

/// One controller under one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerStatus {
    /// What is coordinated.
    pub scope: Scope,
    /// By which fencing token.
    pub token: i64,
    /// Name of the controller.
    pub controller: &'static str,
    /// What it is doing.
    pub driver: DriverStatus,
}

/// What runs on this server, for others to read.
pub type SharedTenures = Arc<Mutex<BTreeMap<Scope, Vec<(i64, &'static str, SharedStatus)>>>>;

struct Tenure {
    held: Held,
    cancel: CancellationToken,
    /// Drivers of this tenure that still run.
    drivers: watch::Receiver<usize>,
    /// Cancelled by a driver that found the lease lost.
    lost: CancellationToken,
}

/// Holds leases and runs controllers.
pub struct Coordinators {
    parts: CoordinatorParts,
    writer: LeaseWriter,
    watchers: BTreeMap<Scope, Watcher>,
    tenures: BTreeMap<Scope, Tenure>,
    shared: SharedTenures,
}

impl Coordinators {
    /// Coordinators of the server in `parts`; what runs can be read from `shared`.
    pub fn new(parts: CoordinatorParts, shared: SharedTenures) -> Self {
        let writer = LeaseWriter {
            objects: parts.objects.clone(),
            clock: Arc::clone(&parts.clock),
            rng: Arc::clone(&parts.rng),
            server: parts.server.clone(),
        };
        Self {
            parts,
            writer,
            watchers: BTreeMap::new(),
            tenures: BTreeMap::new(),
            shared,
        }
    }

    /// Works until `cancel`; then ends the controllers and lets all leases go.
    pub async fn run(mut self, cancel: CancellationToken) {
        loop {
            self.tick(&cancel).await;
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                () = self.parts.clock.sleep(TICK) => {}
            }
        }
        let scopes: Vec<Scope> = self.tenures.keys().cloned().collect();
        let ended: Vec<(Scope, Tenure)> = scopes
            .into_iter()
            .filter_map(|s| self.end(&s).map(|t| (s, t)))
            .collect();
        let (writer, clock, objects) = (&self.writer, &self.parts.clock, &self.parts.objects);
        join_all(ended.into_iter().map(|(scope, mut tenure)| async move {
            let ended = async { tenure.drivers.wait_for(|running| *running == 0).await.is_ok() };
            if timeout(clock.as_ref(), END_LIMIT, ended).await.is_err() {
                tracing::warn!(%scope, "controllers did not end in time; the fence keeps them out");
            }
            let released = if objects.store().has_leader() {
                writer.release(&scope, tenure.held).await
            } else {
                Err(StepError::Timeout("a leader of the council"))
            };
            if let Err(error) = released {
                tracing::info!(%scope, %error, "the lease was not let go; another server waits for it to run out");
            }
        }))
        .await;
    }

    /// Looks at every lease once. Decides for all, writes for all at the same time, then starts and ends controllers.
    async fn tick(&mut self, cancel: &CancellationToken) {
        let now = self.parts.clock.mono();
        let lost: Vec<Scope> = self
            .tenures
            .iter()
            .filter(|(_, t)| t.lost.is_cancelled())
            .map(|(s, _)| s.clone())
            .collect();
        for scope in lost {
            tracing::warn!(%scope, "another server took the lease over");
            self.end(&scope);
        }
        let mut work = Vec::new();
        for scope in self.scopes() {
            let held = self.tenures.get(&scope).map(|t| t.held);
            let watcher = self.watchers.entry(scope.clone()).or_insert_with(|| Watcher::new(now));
            let (observed, prefers) = self.parts.view.read(|view| {
                (
                    watcher.observe(view, &scope, held, now),
                    preference(view, &scope, &self.parts.server),
                )
            });
            if held.is_none() && !self.parts.view.is_live() {
                continue;
            }
            match decide(&observed, now, &self.parts.server, prefers) {
                Decision::Wait => {}
                Decision::StepDown => {
                    tracing::warn!(%scope, "the lease is lost or could not be renewed; its controllers stop");
                    self.end(&scope);
                }
                Decision::Renew => work.push((scope, observed, held)),
                Decision::Acquire => work.push((scope, observed, None)),
            }
        }
        let writer = &self.writer;
        let written = join_all(work.into_iter().map(|(scope, observed, held)| async move {
            let written = match held {
                Some(held) => writer.renew(&scope, held).await,
                None => writer.acquire(&scope, &observed).await,
            };
            (scope, held, written)
        }))
        .await;
        for (scope, held, written) in written {
            self.wrote(scope, held, written, cancel);
        }
    }

    /// The fleet, every region, and what this server holds although its region is gone.
    fn scopes(&self) -> Vec<Scope> {
        let mut scopes: Vec<Scope> = self.tenures.keys().cloned().collect();
        let regions = self.parts.view.read(|view| {
            view.regions
                .iter()
                .map(|(a, _)| Scope::Region(a.name.clone()))
                .collect::<Vec<_>>()
        });
        scopes.push(Scope::Fleet);
        scopes.extend(regions);
        scopes.sort();
        scopes.dedup();
        scopes.truncate(SCOPES_MAX);
        scopes
    }

    fn wrote(
        &mut self,
        scope: Scope,
        before: Option<Held>,
        written: Result<Held, StepError>,
        cancel: &CancellationToken,
    ) {
        match (before, written) {
            (Some(_), Ok(held)) => {
                if let Some(tenure) = self.tenures.get_mut(&scope) {
                    tenure.held = held;
                }
            }
            (None, Ok(held)) => {
                tracing::info!(%scope, token = held.token, "this server coordinates it now");
                self.end(&scope);
                let tenure = self.start(&scope, held, cancel);
                self.tenures.insert(scope, tenure);
            }
            (Some(_), Err(StepError::Fenced(_))) => {
                tracing::warn!(%scope, "another server took the lease over");
                self.end(&scope);
            }
            (Some(held), Err(error)) => {
                let since = self.parts.clock.mono().saturating_sub(held.renewed_at);
                tracing::warn!(%scope, %error, ?since, "a lease was not renewed");
                if since >= STEP_DOWN_AFTER {
                    self.end(&scope);
                }
            }
            (None, Err(error)) => tracing::debug!(%scope, %error, "a lease was not taken"),
        }
    }

    fn end(&mut self, scope: &Scope) -> Option<Tenure> {
        let tenure = self.tenures.remove(scope)?;
        tenure.cancel.cancel();
        self.shared.lock().remove(scope);
        Some(tenure)
    }

    fn start(&self, scope: &Scope, held: Held, cancel: &CancellationToken) -> Tenure {
        let (running, drivers) = watch::channel(0);
        let tenure = Tenure {
            held,
            cancel: cancel.child_token(),
            drivers,
            lost: CancellationToken::new(),
        };
        let running = Arc::new(running);
        let start = Start {
            parts: &self.parts,
            scope,
            tenure: &tenure,
            running: &running,
        };
        let health = AgentHealth {
            scope: scope.clone(),
            server: self.parts.server.clone(),
            token: held.token,
        };
        let mut statuses = vec![
            start.driver(Intents { scope: scope.clone() }),
            start.driver(TenantLifecycle { scope: scope.clone() }),
            start.driver(health),
        ];
        if *scope == Scope::Fleet {
            statuses.push(start.driver(Placement));
        }
        self.shared.lock().insert(scope.clone(), statuses);
        tenure
    }
}

struct Start<'a> {
    parts: &'a CoordinatorParts,
    scope: &'a Scope,
    tenure: &'a Tenure,
    running: &'a Arc<watch::Sender<usize>>,
}

impl Start<'_> {
    fn driver<R: Reconciler>(&self, reconciler: R) -> (i64, &'static str, SharedStatus) {
        let parts = self.parts;
        let token = self.tenure.held.token;
        let ctx = StepCtx {
            objects: parts.objects.clone(),
            tenants: Arc::clone(&parts.tenants),
            sealer: parts.sealer.clone(),
            fence: Fence {
                scope: self.scope.clone(),
                token,
            },
            clock: Arc::clone(&parts.clock),
            rng: Arc::clone(&parts.rng),
        };
        let status = SharedStatus::default();
        let driver = Driver::new(reconciler, Arc::clone(&parts.view), ctx, Arc::clone(&status));
        let (cancel, lost, running) = (
            self.tenure.cancel.clone(),
            self.tenure.lost.clone(),
            Arc::clone(self.running),
        );
        running.send_modify(|n| *n += 1);
        parts.supervisor.spawn(
            TaskKind::Controller,
            format!("{} of {}", R::NAME, self.scope),
            async move {
                if driver.run(cancel).await == Ended::Fenced {
                    lost.cancel();
                }
                running.send_modify(|n| *n -= 1);
                Ok(())
            },
        );
        (token, R::NAME, status)
    }
}
