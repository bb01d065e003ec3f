//! Everything of this crate that one server runs, wired together.

use std::sync::Arc;

use hanse_runtime::clock::SharedClock;
use hanse_runtime::rng::SharedRng;
use hanse_runtime::seal::Sealer;
use hanse_runtime::shutdown::Phase;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use hanse_state::Store;
use hanse_state::objects::Objects;
use hanse_tunnel::AgentHub;

use crate::coordinator::{ControllerStatus, CoordinatorParts, Coordinators, SharedTenures};
use crate::deliver::Delivery;
use crate::feed::SharedView;
use crate::hosts::Hosts;
use crate::reports::Reports;
use crate::view::View;

/// What a server gives.
pub struct RegionsParts {
    /// Name of this server, as in its Server object.
    pub server: String,
    /// The council.
    pub objects: Objects,
    /// The store of the group that holds the tenants' key spaces.
    pub tenants: Arc<dyn Store>,
    /// Agents that are connected here.
    pub hub: Arc<dyn AgentHub>,
    /// Seals the tenants' keys; the same key on every server.
    pub sealer: Sealer,
    /// Time.
    pub clock: SharedClock,
    /// Randomness.
    pub rng: SharedRng,
    /// Runs the tasks.
    pub supervisor: Supervisor,
}

/// Coordination of regions on one server.
#[derive(Clone)]
pub struct Regions {
    view: Arc<SharedView>,
    reports: Arc<Reports>,
    hosts: Hosts,
    tenures: SharedTenures,
}

impl std::fmt::Debug for Regions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Regions")
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}

impl Regions {
    /// Starts the view, the coordinators and the delivery of intents. All end with the supervisor's shutdown.
    pub fn start(parts: RegionsParts) -> Self {
        let RegionsParts {
            server,
            objects,
            tenants,
            hub,
            sealer,
            clock,
            rng,
            supervisor,
        } = parts;
        let view = Arc::new(SharedView::new(View::new(clock.wall())));
        let reports = Arc::new(Reports::new(
            objects.clone(),
            Arc::clone(&view),
            Arc::clone(&clock),
            Arc::clone(&rng),
        ));
        let tenures = SharedTenures::default();
        let regions = Self {
            hosts: Hosts::new(Arc::clone(&view)),
            reports,
            tenures: Arc::clone(&tenures),
            view: Arc::clone(&view),
        };
        let delivery = Delivery {
            view: Arc::clone(&view),
            hub: Arc::clone(&hub),
            sealer: sealer.clone(),
            clock: Arc::clone(&clock),
        };
        let parts = CoordinatorParts {
            server,
            objects,
            tenants,
            view,
            sealer,
            clock,
            rng,
            supervisor,
        };
        feed(&parts, hub);
        let (supervisor, shutdown) = (parts.supervisor.clone(), parts.supervisor.shutdown_token());
        let token = shutdown.phase(Phase::Agents);
        supervisor.spawn(TaskKind::Session, "delivery of intents", async move {
            delivery.run(token).await;
            Ok(())
        });
        let token = shutdown.phase(Phase::Controllers);
        let coordinators = Coordinators::new(parts, tenures);
        supervisor.spawn(TaskKind::Controller, "coordinators", async move {
            coordinators.run(token).await;
            Ok(())
        });
        regions
    }

    /// What this server knows of the council.
    pub fn view(&self) -> &Arc<SharedView> {
        &self.view
    }

    /// Takes agents' reports in.
    pub fn reports(&self) -> &Arc<Reports> {
        &self.reports
    }

    /// Which cluster hosts which tenant.
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// The controllers that run here.
    pub fn status(&self) -> Vec<ControllerStatus> {
        let tenures = self.tenures.lock();
        tenures
            .iter()
            .flat_map(|(scope, drivers)| {
                drivers.iter().map(|(token, controller, status)| ControllerStatus {
                    scope: scope.clone(),
                    token: *token,
                    controller,
                    driver: status.lock().clone(),
                })
            })
            .collect()
    }
}

/// The view must outlive the controllers, whose last steps wait for it, so it ends one phase later.
fn feed(parts: &CoordinatorParts, hub: Arc<dyn AgentHub>) {
    let token = parts.supervisor.shutdown_token().phase(Phase::Agents);
    let (of_council, cancel) = (parts.clone(), token.clone());
    parts
        .supervisor
        .spawn(TaskKind::Apply, "view of the council", async move {
            of_council
                .view
                .follow(&of_council.objects, &of_council.clock, &of_council.rng, cancel)
                .await;
            Ok(())
        });
    let of_sessions = parts.clone();
    parts
        .supervisor
        .spawn(TaskKind::Apply, "view of agent sessions", async move {
            of_sessions
                .view
                .follow_sessions(hub.as_ref(), &of_sessions.clock, token)
                .await;
            Ok(())
        });
}
