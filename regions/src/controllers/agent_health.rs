//! `agent_health`: says which connected clusters can be reached, and who coordinates the region.
//!
//! **Flow.** Cluster status follows from whether the cluster's agent has a session with this server, with a period of
//! grace before it counts as lost. Region status names the coordinator and counts agents.
//!
//! **Guarantees.** A short break (restart of an agent, change of path) writes nothing. Steady state writes nothing.
//!
//! **Assumptions.** Each agent keeps a session with every region, so the coordinator of a region has one with each of
//! its agents, also after a take-over.
//!
//! **Caveats.** Grace is measured by this server's wall clock; a jump of it makes a break count early or late, once.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use hanse_api::Timestamp;
use hanse_api::kinds::{CLUSTERS, REGIONS};
use hanse_api::resources::{Cluster, ClusterStatus, Region};
use hanse_state::objects::Op;

use crate::address::Address;
use crate::conditions::{self, Observed};
use crate::error::StepError;
use crate::observation::OBSERVATIONS;
use crate::reconciler::{Plan, Progress, Reconciler, StepCtx};
use crate::scope::Scope;
use crate::view::{Change, Item, View};

/// How long an agent may be without a session before its cluster counts as offline.
pub const GRACE: Duration = Duration::from_secs(10);
/// Condition of a cluster: its agent is connected.
pub const AGENT_CONNECTED: &str = "AgentConnected";
/// Condition of a region: a server coordinates it.
pub const COORDINATED: &str = "Coordinated";
/// Condition of a region: its agents are connected.
pub const AGENTS_CONNECTED: &str = "AgentsConnected";

/// Health of the clusters of one scope, and its region's status.
#[derive(Debug)]
pub struct AgentHealth {
    /// Whose clusters.
    pub scope: Scope,
    /// This server.
    pub server: String,
    /// Fencing token of its lease.
    pub token: i64,
}

/// What health is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A connected cluster.
    Cluster(String),
    /// A region.
    Region(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(name) => write!(f, "cluster {name}"),
            Self::Region(name) => write!(f, "region {name}"),
        }
    }
}

/// One effect: a new status.
#[derive(Debug)]
pub enum Step {
    /// Of a cluster, with the revision that the plan rests on.
    Cluster(Box<Cluster>, i64),
    /// Of a region, with the revision that the plan rests on.
    Region(Box<Region>, i64),
    /// Remove what was observed of a cluster that is gone, at this revision.
    Forget(String, i64),
}

#[async_trait]
impl Reconciler for AgentHealth {
    type Key = Subject;
    type Step = Step;

    const NAME: &'static str = "agent_health";

    fn wakes_on(&self, view: &View, change: &Change) -> Vec<Subject> {
        let region = || self.scope.region().map(|r| Subject::Region(r.to_owned()));
        match change {
            Change::Cluster(cluster) | Change::Presence(cluster) => {
                let ours = view.scope_of_cluster(cluster) == self.scope;
                ours.then(|| Subject::Cluster(cluster.clone()))
                    .into_iter()
                    .chain(region())
                    .collect()
            }
            Change::Region(_) => self.keys(view),
            Change::Server(_) => region().into_iter().collect(),
            Change::Project(_)
            | Change::Tenant(_)
            | Change::Store(..)
            | Change::Intent(_)
            | Change::Lease(_)
            | Change::Observation(_) => Vec::new(),
        }
    }

    fn keys(&self, view: &View) -> Vec<Subject> {
        let clusters = self.clusters(view).map(|c| Subject::Cluster(c.to_owned()));
        let gone = view.observations.iter().map(|(a, _)| a.name.as_str());
        let gone = gone.filter(|c| view.clusters.named(c).is_none() && self.scope == Scope::Fleet);
        let clusters = clusters.chain(gone.map(|c| Subject::Cluster(c.to_owned())));
        clusters
            .chain(self.scope.region().map(|r| Subject::Region(r.to_owned())))
            .collect()
    }

    fn plan(&self, view: &View, key: &Subject, now: Timestamp) -> Plan<Step> {
        match key {
            Subject::Cluster(name) if view.scope_of_cluster(name) == self.scope => match view.clusters.named(name) {
                Some(cluster) => plan_cluster(view, cluster, now),
                None => forget(view, name),
            },
            Subject::Region(name) if self.scope.region() == Some(name) => view
                .regions
                .named(name)
                .map_or(Plan::converged(), |region| self.plan_region(view, region, now)),
            Subject::Cluster(_) | Subject::Region(_) => Plan::converged(),
        }
    }

    async fn step(&self, ctx: &StepCtx, step: &Step) -> Result<Progress, StepError> {
        match step {
            Step::Forget(cluster, revision) => {
                let key = Address::global(cluster).key(OBSERVATIONS);
                let expected = *revision;
                ctx.commit(vec![Op::Delete { key, expected }]).await
            }
            Step::Cluster(cluster, revision) => {
                let key = Address::global(&cluster.metadata.name).key(CLUSTERS);
                ctx.update(key, cluster.as_ref(), *revision).await
            }
            Step::Region(region, revision) => {
                let key = Address::global(&region.metadata.name).key(REGIONS);
                ctx.update(key, region.as_ref(), *revision).await
            }
        }
    }
}

impl AgentHealth {
    fn clusters<'a>(&'a self, view: &'a View) -> impl Iterator<Item = &'a str> {
        view.clusters
            .iter()
            .map(|(a, _)| a.name.as_str())
            .filter(|name| view.scope_of_cluster(name) == self.scope)
    }

    fn plan_region(&self, view: &View, region: &Item<Region>, now: Timestamp) -> Plan<Step> {
        let mut changed = region.object.as_ref().clone();
        let name = &region.object.metadata.name;
        changed.status.coordinator.clone_from(&self.server);
        changed.status.coordinator_epoch = self.token;
        let coordinated = match view.region_of_server(&self.server) {
            Some(home) if home != name => {
                let message = format!(
                    "server {} of region {home} took it over; no server of {name} renewed",
                    self.server
                );
                Observed::yes(COORDINATED, "TakenOver", message)
            }
            Some(_) | None => Observed::yes(
                COORDINATED,
                "OwnServer",
                format!("server {} coordinates it", self.server),
            ),
        };
        let total = self.clusters(view).count();
        let lost: Vec<&str> = self
            .clusters(view)
            .filter(|c| {
                view.clusters
                    .named(c)
                    .is_none_or(|cluster| !cluster.object.status.online)
            })
            .collect();
        let agents = match (total, lost.is_empty()) {
            (0, _) => Observed::unknown(AGENTS_CONNECTED, "NoClusters", "no cluster of this region is connected"),
            (_, true) => Observed::yes(
                AGENTS_CONNECTED,
                "AllConnected",
                "every agent of this region is connected",
            ),
            (_, false) => {
                let message = format!(
                    "not connected: {}; start them or restore their network",
                    lost.join(", ")
                );
                Observed::no(AGENTS_CONNECTED, "AgentsOffline", message)
            }
        };
        for observed in [coordinated, agents] {
            conditions::set(
                &mut changed.status.conditions,
                changed.metadata.generation,
                now,
                observed,
            );
        }
        if changed.status == region.object.status {
            return Plan::converged();
        }
        Plan::one(
            "the region's status has changed",
            Step::Region(Box::new(changed), region.revision),
        )
    }
}

fn plan_cluster(view: &View, cluster: &Item<Cluster>, now: Timestamp) -> Plan<Step> {
    let name = &cluster.object.metadata.name;
    let presence = view.presence(name);
    let lost_at = presence.since.plus(GRACE);
    if !presence.connected && now < lost_at {
        return Plan::look_again(lost_at);
    }
    let mut changed = cluster.object.as_ref().clone();
    let generation = changed.metadata.generation;
    let status = &mut changed.status;
    let observed = observe(name, presence.connected, status);
    status.online = presence.connected;
    if presence.connected {
        "Initialized".clone_into(&mut status.phase);
        status.reason.clear();
        status.message.clear();
    } else {
        if !status.phase.is_empty() {
            "Failed".clone_into(&mut status.phase);
        }
        observed.reason.clone_into(&mut status.reason);
        status.message.clone_from(&observed.message);
    }
    conditions::set(&mut status.conditions, generation, now, observed);
    if changed.status == cluster.object.status {
        return Plan::converged();
    }
    let reason = if presence.connected {
        "its agent is connected"
    } else {
        "its agent is gone"
    };
    Plan::one(reason, Step::Cluster(Box::new(changed), cluster.revision))
}

fn forget(view: &View, cluster: &str) -> Plan<Step> {
    let unreadable = view.clusters.is_unreadable(&Address::global(cluster));
    match view.observations.named(cluster).filter(|_| !unreadable) {
        Some(old) => Plan::one("its cluster is gone", Step::Forget(cluster.to_owned(), old.revision)),
        None => Plan::converged(),
    }
}

fn observe(name: &str, connected: bool, before: &ClusterStatus) -> Observed {
    if connected {
        return Observed::yes(AGENT_CONNECTED, "Connected", "its agent is connected");
    }
    if before.phase.is_empty() {
        let message = format!("no agent of cluster {name} has connected yet; enrol one and start it");
        return Observed::no(AGENT_CONNECTED, "NoAgentYet", message);
    }
    let message = format!("the agent of cluster {name} is not connected; start it or restore its network");
    Observed::no(AGENT_CONNECTED, "AgentOffline", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, START};
    use std::collections::BTreeSet;

    fn health(region: &str, server: &str) -> AgentHealth {
        AgentHealth {
            scope: Scope::Region(region.into()),
            server: server.into(),
            token: 42,
        }
    }

    fn cluster_status(fixture: &Fixture, now: Timestamp) -> Result<ClusterStatus, Option<Timestamp>> {
        let plan = health("eu", "eu-1").plan(&fixture.view, &Subject::Cluster("eu".into()), now);
        match plan.steps.into_iter().next().map(|p| p.step) {
            Some(Step::Cluster(cluster, _)) => Ok(cluster.status.clone()),
            Some(other) => panic!("{other:?}"),
            None => Err(plan.wake_at),
        }
    }

    #[test]
    fn a_lost_agent_counts_after_grace_and_is_back_at_once() {
        let mut fixture = Fixture::new();
        assert_eq!(
            cluster_status(&fixture, START),
            Err(Some(START.plus(GRACE))),
            "just started: wait and see"
        );
        let lost = cluster_status(&fixture, START.plus(GRACE)).unwrap();
        assert_eq!(
            (lost.online, lost.phase.as_str(), lost.reason.as_str()),
            (false, "Failed", "AgentOffline")
        );
        let later = START.plus(GRACE * 2);
        fixture.view.set_sessions(&BTreeSet::from(["eu".to_owned()]), later);
        let back = cluster_status(&fixture, later).unwrap();
        assert_eq!(
            (back.online, back.phase.as_str(), back.reason.as_str()),
            (true, "Initialized", "")
        );
        fixture.cluster_with("eu", "eu", |_, status| *status = back);
        assert_eq!(cluster_status(&fixture, later), Err(None), "said once");
        fixture.view.set_sessions(&BTreeSet::new(), later);
        assert_eq!(cluster_status(&fixture, later), Err(Some(later.plus(GRACE))));
    }

    #[test]
    fn a_cluster_without_any_agent_yet_says_what_to_do() {
        let mut fixture = Fixture::new();
        fixture.cluster_with("eu", "eu", |_, _| {});
        let status = cluster_status(&fixture, START.plus(GRACE)).unwrap();
        assert_eq!((status.phase.as_str(), status.reason.as_str()), ("", "NoAgentYet"));
        assert!(status.message.contains("enrol one"), "{}", status.message);
    }

    #[test]
    fn the_region_names_its_coordinator_and_says_when_it_is_a_stand_in() {
        let mut fixture = Fixture::new();
        for (server, reason) in [("eu-1", "OwnServer"), ("us-1", "TakenOver")] {
            let plan = health("eu", server).plan(&fixture.view, &Subject::Region("eu".into()), START);
            let Some(Step::Region(region, _)) = plan.steps.into_iter().next().map(|p| p.step) else {
                panic!()
            };
            assert_eq!(
                (region.status.coordinator.as_str(), region.status.coordinator_epoch),
                (server, 42)
            );
            assert_eq!(region.status.conditions[0].reason, reason);
            fixture.put(REGIONS, &Address::global("eu"), region.as_ref());
            assert!(
                health("eu", server)
                    .plan(&fixture.view, &Subject::Region("eu".into()), START)
                    .steps
                    .is_empty()
            );
        }
    }

    #[test]
    fn what_was_observed_of_a_removed_cluster_is_forgotten_by_the_fleet() {
        let mut fixture = Fixture::new();
        fixture.observed("eu", 1, &[]);
        let fleet = AgentHealth {
            scope: Scope::Fleet,
            server: "eu-1".into(),
            token: 1,
        };
        assert!(fleet.keys(&fixture.view).is_empty());
        fixture.view.delete(CLUSTERS, &Address::global("eu"), 900);
        let keys = fleet.keys(&fixture.view);
        assert_eq!(keys, [Subject::Cluster("eu".into())]);
        let plan = fleet.plan(&fixture.view, &keys[0], START);
        assert!(matches!(&plan.steps[..], [p] if matches!(p.step, Step::Forget(..))));
    }
}
