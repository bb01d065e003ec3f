//! `placement`: gives each new tenant cluster a host.
//!
//! **Flow.** A tenant cluster without a TenantStore is matched with the connected clusters by
//! [`hanse_api::placement::choose`]: `spec.clusterRef.cluster` and the annotation `hanse.dev/wanted-region` narrow the
//! choice, the project's `allowedClusters` bounds it. Then, in one commit: host, finalizer and condition on the tenant
//! cluster, and its TenantStore with epoch 1 and sealed PKI. Before that, the fence of its key space is raised to 1.
//!
//! **Guarantees.** One place decides for the whole fleet: the holder of the fleet's lease, so that two regions never
//! choose for the same tenant and the count of tenants per cluster is right. A tenant has a host and keys, or neither.
//!
//! **Assumptions.** The uid of a tenant cluster is never reused; it names the key space.
//!
//! **Caveats.** Placement is done once. Moving a tenant to another host is another controller's work, by a higher
//! epoch. A tenant cluster that is deleted between the fence and the commit leaves the fence of an unused key space
//! behind.

use async_trait::async_trait;
use hanse_api::Timestamp;
use hanse_api::kinds::{
    ANNOTATION_REGION, ANNOTATION_WANTED_REGION, CLUSTERS, FINALIZER_TENANT, PROJECTS, TENANT_STORES,
    VIRTUAL_CLUSTER_INSTANCES,
};
use hanse_api::meta::{Object, ObjectMeta};
use hanse_api::name::project_of_namespace;
use hanse_api::placement::{Candidate, Wish, choose};
use hanse_api::resources::{Cluster, Project, StoreLimits, TenantStore, TenantStoreSpec, VirtualClusterInstance};
use hanse_state::objects::Op;

use crate::address::Address;
use crate::conditions::{self, Observed, RECONCILED, SCHEDULED};
use crate::error::StepError;
use crate::observation::TENANTS_MAX;
use crate::reconciler::{Plan, Progress, Reconciler, StepCtx, encode};
use crate::tenant_pki;
use crate::view::{Change, Item, View};

/// First epoch of a key space.
const FIRST_EPOCH: u64 = 1;

/// Chooses hosts.
#[derive(Debug, Default)]
pub struct Placement;

/// One effect of placement.
#[derive(Debug)]
pub enum Step {
    /// Give the tenant a host and keys.
    Host {
        /// Where the tenant cluster lives.
        address: Address,
        /// It, with its host filled in.
        tenant: Box<VirtualClusterInstance>,
        /// Its revision that the plan rests on.
        revision: i64,
        /// The chosen cluster and its revision.
        cluster: (String, i64),
        /// The project and its revision.
        project: (String, i64),
    },
    /// Say why it has none.
    Explain {
        /// Where the tenant cluster lives.
        address: Address,
        /// It, with the explanation.
        tenant: Box<VirtualClusterInstance>,
        /// Its revision that the plan rests on.
        revision: i64,
    },
}

#[async_trait]
impl Reconciler for Placement {
    type Key = Address;
    type Step = Step;

    const NAME: &'static str = "placement";
    // One at a time: each choice must see the tenants that the one before it placed.
    const CONCURRENCY: usize = 1;

    fn wakes_on(&self, view: &View, change: &Change) -> Vec<Address> {
        match change {
            Change::Tenant(address) if waits(view, address) => vec![address.clone()],
            Change::Project(_) | Change::Cluster(_) | Change::Region(_) => self.keys(view),
            Change::Tenant(_)
            | Change::Store(..)
            | Change::Server(_)
            | Change::Intent(_)
            | Change::Lease(_)
            | Change::Observation(_)
            | Change::Presence(_) => Vec::new(),
        }
    }

    fn keys(&self, view: &View) -> Vec<Address> {
        view.tenants
            .iter()
            .map(|(address, _)| address)
            .filter(|a| waits(view, a))
            .cloned()
            .collect()
    }

    fn plan(&self, view: &View, key: &Address, now: Timestamp) -> Plan<Step> {
        let Some(tenant) = view.tenants.get(key).filter(|_| waits(view, key)) else {
            return Plan::converged();
        };
        match find_host(view, key, &tenant.object) {
            Ok(found) => host(key, tenant, found, now),
            Err(why) => explain(key, tenant, now, Observed::no(SCHEDULED, why.reason, why.message)),
        }
    }

    async fn step(&self, ctx: &StepCtx, step: &Step) -> Result<Progress, StepError> {
        match step {
            Step::Explain {
                address,
                tenant,
                revision,
            } => {
                let key = address.key(VIRTUAL_CLUSTER_INSTANCES);
                ctx.update(key, tenant.as_ref(), *revision).await
            }
            Step::Host {
                address,
                tenant,
                revision,
                cluster,
                project,
            } => {
                let id = &tenant.metadata.uid;
                ctx.tenants
                    .set_fence(id, FIRST_EPOCH)
                    .await
                    .map_err(StepError::TenantStore)?;
                let store = tenant_store(ctx, address, id, &cluster.0)?;
                ctx.commit(vec![
                    Op::Update {
                        key: address.key(VIRTUAL_CLUSTER_INSTANCES),
                        value: encode(tenant.as_ref())?,
                        expected: *revision,
                    },
                    Op::Create {
                        key: address.key(TENANT_STORES),
                        value: encode(&store)?,
                    },
                    Op::Require {
                        key: Address::global(&cluster.0).key(CLUSTERS),
                        revision: cluster.1,
                    },
                    Op::Require {
                        key: Address::global(&project.0).key(PROJECTS),
                        revision: project.1,
                    },
                ])
                .await
            }
        }
    }

    fn gave_up(&self, view: &View, key: &Address, now: Timestamp, failure: &str) -> Plan<Step> {
        let Some(tenant) = view.tenants.get(key).filter(|_| waits(view, key)) else {
            return Plan::converged();
        };
        explain(key, tenant, now, Observed::no(RECONCILED, "PlacementFails", failure))
    }
}

/// Whether the tenant cluster at `address` is there, wanted and without a host.
fn waits(view: &View, address: &Address) -> bool {
    view.tenants
        .get(address)
        .is_some_and(|t| t.object.metadata.deletion_timestamp.is_none())
        && view.stores.get(address).is_none()
        && !view.stores.is_unreadable(address)
}

struct Refusal {
    reason: &'static str,
    message: String,
}

struct Found<'a> {
    project: &'a Item<Project>,
    cluster: &'a Item<Cluster>,
}

fn find_host<'a>(view: &'a View, address: &Address, tenant: &VirtualClusterInstance) -> Result<Found<'a>, Refusal> {
    let no_project = |message: String| Refusal {
        reason: "ProjectNotFound",
        message,
    };
    let name = project_of_namespace(&address.namespace).ok_or_else(|| {
        no_project(format!(
            "namespace {:?} is not a project's (p-<project>)",
            address.namespace
        ))
    })?;
    let project = view.projects.named(name).ok_or_else(|| {
        no_project(format!(
            "project {name:?} does not exist; create it, and placement goes on"
        ))
    })?;
    let wish = Wish {
        cluster: Some(tenant.spec.cluster_ref.cluster.clone()).filter(|c| !c.is_empty()),
        region: tenant
            .metadata
            .annotations
            .get(ANNOTATION_WANTED_REGION)
            .filter(|r| !r.is_empty())
            .cloned(),
    };
    let candidates: Vec<Candidate> = view
        .clusters
        .iter()
        .map(|(a, _)| candidate(view, a, &project.object))
        .collect();
    let chosen = choose(&wish, &candidates).map_err(|why| Refusal {
        reason: "NoClusterFits",
        message: format!("{why}. Start an agent or change what is asked for; placement goes on by itself then"),
    })?;
    if chosen.tenants >= TENANTS_MAX {
        // The one with the fewest tenants is full, so all are.
        let message =
            format!("every cluster that fits hosts {TENANTS_MAX} tenants, which is the most; connect another");
        return Err(Refusal {
            reason: "ClustersFull",
            message,
        });
    }
    let gone = || Refusal {
        reason: "NoClusterFits",
        message: format!("cluster {} is gone", chosen.cluster),
    };
    let cluster = view.clusters.named(&chosen.cluster).ok_or_else(gone)?;
    Ok(Found { project, cluster })
}

fn candidate(view: &View, address: &Address, project: &Project) -> Candidate {
    let name = &address.name;
    let cluster = view.clusters.get(address).map(|item| &item.object);
    Candidate {
        cluster: name.clone(),
        region: cluster
            .and_then(|c| c.metadata.annotations.get(ANNOTATION_REGION))
            .cloned()
            .unwrap_or_default(),
        online: cluster.is_some_and(|c| c.status.online),
        unusable: cluster.is_none_or(|c| c.spec.unusable || c.metadata.deletion_timestamp.is_some()),
        allowed: project.spec.allows_cluster(name),
        tenants: view.tenants_on(name),
    }
}

fn host(address: &Address, tenant: &Item<VirtualClusterInstance>, found: Found<'_>, now: Timestamp) -> Plan<Step> {
    let project_name = &found.project.object.metadata.name;
    let cluster = &found.cluster.object.metadata.name;
    let mut hosted = tenant.object.as_ref().clone();
    let before = hosted.spec.cluster_ref.clone();
    let host = &mut hosted.spec.cluster_ref;
    host.cluster.clone_from(cluster);
    if host.namespace.is_empty() {
        host.namespace = format!("loft-{project_name}-v-{}", address.name);
    }
    if host.virtual_cluster.is_empty() {
        host.virtual_cluster.clone_from(&address.name);
    }
    if hosted.spec.cluster_ref != before {
        hosted.metadata.generation += 1;
    }
    if !hosted.metadata.finalizers.iter().any(|f| f == FINALIZER_TENANT) {
        hosted.metadata.finalizers.push(FINALIZER_TENANT.to_owned());
    }
    conditions::clear(&mut hosted.status.conditions, RECONCILED);
    let placed = Observed::yes(SCHEDULED, "ClusterChosen", format!("placed on cluster {cluster}"));
    conditions::conclude(&mut hosted.status, &hosted.metadata, now, vec![placed], false);
    Plan::one(
        format!("place on cluster {cluster}"),
        Step::Host {
            address: address.clone(),
            tenant: Box::new(hosted),
            revision: tenant.revision,
            cluster: (cluster.clone(), found.cluster.revision),
            project: (project_name.clone(), found.project.revision),
        },
    )
}

fn explain(address: &Address, tenant: &Item<VirtualClusterInstance>, now: Timestamp, why: Observed) -> Plan<Step> {
    let mut explained = tenant.object.as_ref().clone();
    let reason = why.message.clone();
    explained.status.online = false;
    explained.status.observed_generation = explained.metadata.generation;
    if why.kind == SCHEDULED {
        conditions::clear(&mut explained.status.conditions, RECONCILED);
    }
    conditions::conclude(&mut explained.status, &explained.metadata, now, vec![why], false);
    if explained.status == tenant.object.status {
        return Plan::converged();
    }
    let step = Step::Explain {
        address: address.clone(),
        tenant: Box::new(explained),
        revision: tenant.revision,
    };
    Plan::one(reason, step)
}

fn tenant_store(ctx: &StepCtx, address: &Address, id: &str, cluster: &str) -> Result<TenantStore, StepError> {
    let now = ctx.clock.wall();
    let pki = tenant_pki::generate(id, now)?;
    Ok(Object {
        api_version: TENANT_STORES.api_version(),
        kind: TENANT_STORES.kind.to_owned(),
        metadata: ObjectMeta {
            name: address.name.clone(),
            namespace: Some(address.namespace.clone()),
            uid: ctx.rng.uuid(),
            generation: 1,
            creation_timestamp: Some(now),
            ..ObjectMeta::default()
        },
        spec: TenantStoreSpec {
            limits: StoreLimits::default(),
            tenant: id.to_owned(),
            cluster: cluster.to_owned(),
            epoch: FIRST_EPOCH,
            sealed_pki: tenant_pki::seal(&ctx.sealer, ctx.rng.as_ref(), id, &pki)?,
        },
        status: (),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, START, at, vci};
    use hanse_api::resources::Phase;

    fn plan(fixture: &Fixture, name: &str) -> Vec<Step> {
        Placement
            .plan(&fixture.view, &at(name), START)
            .steps
            .into_iter()
            .map(|p| p.step)
            .collect()
    }

    fn placed_on(steps: &[Step]) -> Option<&str> {
        match steps {
            [Step::Host { cluster, .. }] => Some(&cluster.0),
            _ => None,
        }
    }

    fn why(steps: &[Step]) -> (String, String) {
        match steps {
            [Step::Explain { tenant, .. }] => (tenant.status.reason.clone(), tenant.status.message.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn honours_wishes_and_policy_and_spreads() {
        let mut fixture = Fixture::new();
        let mut wants_us = vci("a");
        wants_us
            .metadata
            .annotations
            .insert(ANNOTATION_WANTED_REGION.into(), "us".into());
        let mut names_us = vci("b");
        names_us.spec.cluster_ref.cluster = "us".into();
        fixture.tenant(&vci("free")).tenant(&wants_us).tenant(&names_us);
        assert_eq!(
            placed_on(&plan(&fixture, "free")),
            Some("eu"),
            "fewest tenants, then by name"
        );
        assert_eq!(placed_on(&plan(&fixture, "a")), Some("us"));
        assert_eq!(placed_on(&plan(&fixture, "b")), Some("us"));
        fixture.tenant(&vci("old")).store("old", "eu");
        assert_eq!(
            placed_on(&plan(&fixture, "free")),
            Some("us"),
            "eu has one tenant already"
        );
        fixture.project("default", &["eu"]);
        assert_eq!(placed_on(&plan(&fixture, "free")), Some("eu"), "only eu is allowed");
        let (reason, message) = why(&plan(&fixture, "b"));
        assert_eq!(reason, "NoClusterFits");
        assert!(message.contains("us: not allowed by the project"), "{message}");
    }

    #[test]
    fn a_host_comes_with_namespace_finalizer_generation_and_condition() {
        let mut fixture = Fixture::new();
        fixture.tenant(&vci("demo"));
        let steps = plan(&fixture, "demo");
        let [Step::Host { tenant, project, .. }] = &steps[..] else {
            panic!("{steps:?}")
        };
        let host = &tenant.spec.cluster_ref;
        assert_eq!(
            (host.namespace.as_str(), host.virtual_cluster.as_str()),
            ("loft-default-v-demo", "demo")
        );
        assert_eq!(tenant.metadata.finalizers, [FINALIZER_TENANT]);
        assert_eq!((tenant.metadata.generation, project.0.as_str()), (2, "default"));
        assert_eq!(tenant.status.phase, Phase::Pending);
        assert!(
            tenant
                .status
                .conditions
                .iter()
                .any(|c| c.kind == SCHEDULED && c.is_true())
        );
    }

    #[test]
    fn explains_once_and_leaves_the_rest_alone() {
        let mut fixture = Fixture::new();
        fixture
            .cluster("eu", "eu", false)
            .cluster("us", "us", false)
            .tenant(&vci("demo"));
        let steps = plan(&fixture, "demo");
        let (reason, message) = why(&steps);
        assert_eq!(reason, "NoClusterFits");
        assert!(
            message.contains("eu: its agent is not connected") && message.contains("Start an agent"),
            "{message}"
        );
        let [Step::Explain { tenant, .. }] = &steps[..] else {
            panic!("{steps:?}")
        };
        fixture.tenant(tenant);
        assert!(plan(&fixture, "demo").is_empty(), "it is said already");
        let mut gone = vci("gone");
        gone.metadata.deletion_timestamp = Some(START);
        fixture.tenant(&gone).tenant(&vci("hosted")).store("hosted", "eu");
        for name in ["gone", "hosted", "absent"] {
            assert!(plan(&fixture, name).is_empty(), "{name}");
        }
    }

    #[test]
    fn a_missing_project_is_named() {
        let mut fixture = Fixture::new();
        let mut lost = vci("lost");
        lost.metadata.namespace = Some("p-nowhere".into());
        let address = Address::new("p-nowhere", "lost");
        fixture.put(VIRTUAL_CLUSTER_INSTANCES, &address, &lost);
        let steps: Vec<Step> = Placement
            .plan(&fixture.view, &address, START)
            .steps
            .into_iter()
            .map(|p| p.step)
            .collect();
        let (reason, message) = why(&steps);
        assert_eq!(reason, "ProjectNotFound");
        assert!(message.contains("\"nowhere\""), "{message}");
    }
}
