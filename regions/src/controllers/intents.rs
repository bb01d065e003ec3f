//! `intents`: compiles what each connected cluster's agent shall run.
//!
//! **Flow.** The Intent of a cluster names every tenant whose TenantStore names that cluster and whose tenant cluster
//! is not being deleted. It holds no secret; [`crate::deliver`] adds keys when it is sent. A cluster without tenants
//! has an empty intent: an agent must be told that it shall run nothing.
//!
//! **Guarantees.** Written only when its content changes. The epoch is the highest fencing token that ever wrote it, so
//! it never falls, also when a cluster moves to a region whose lease is older.
//!
//! **Assumptions.** A TenantStore exists only for a tenant cluster that has the finalizer `hanse.dev/tenant`.
//!
//! **Caveats.** While any tenant cluster or TenantStore is stored in a form that this version cannot read, no tenant is
//! taken out of an intent: what cannot be read must not be stopped.

use async_trait::async_trait;
use hanse_api::Timestamp;
use hanse_api::intent::TenantIntent;
use hanse_api::kinds::INTENTS;
use hanse_api::meta::{Object, ObjectMeta};
use hanse_api::name::project_of_namespace;
use hanse_api::resources::internal::IntentSpec;
use hanse_api::resources::virtual_cluster_instance::{SIMULATED_NODES_DEFAULT, simulated_gpus, simulated_nodes};
use hanse_api::resources::{IntentObject, TenantStore, VirtualClusterInstance};
use hanse_state::objects::Op;

use crate::address::Address;
use crate::error::StepError;
use crate::reconciler::{Plan, Progress, Reconciler, StepCtx, encode};
use crate::scope::Scope;
use crate::view::{Change, View};

/// Compiles intents of the clusters of one scope.
#[derive(Debug)]
pub struct Intents {
    /// Whose clusters.
    pub scope: Scope,
}

/// One effect: the intent of a cluster.
#[derive(Debug)]
pub enum Step {
    /// Store it. The epoch in it is the lowest allowed; the step raises it to the token of its own lease.
    Write {
        /// The cluster.
        cluster: String,
        /// The intent.
        intent: Box<IntentObject>,
        /// Revision of the one that it replaces; 0 when there is none.
        revision: i64,
    },
    /// Remove that of a cluster that is gone.
    Remove {
        /// The cluster.
        cluster: String,
        /// Its revision.
        revision: i64,
    },
}

#[async_trait]
impl Reconciler for Intents {
    type Key = String;
    type Step = Step;

    const NAME: &'static str = "intents";

    fn wakes_on(&self, view: &View, change: &Change) -> Vec<String> {
        let clusters = match change {
            Change::Cluster(cluster) | Change::Intent(cluster) => vec![cluster.clone()],
            Change::Store(_, clusters) => clusters.clone(),
            Change::Tenant(address) => view
                .stores
                .get(address)
                .map(|store| store.object.spec.cluster.clone())
                .into_iter()
                .collect(),
            Change::Region(_) => return self.keys(view),
            Change::Project(_)
            | Change::Server(_)
            | Change::Lease(_)
            | Change::Observation(_)
            | Change::Presence(_) => Vec::new(),
        };
        clusters
            .into_iter()
            .filter(|cluster| view.scope_of_cluster(cluster) == self.scope)
            .collect()
    }

    fn keys(&self, view: &View) -> Vec<String> {
        let mut names: Vec<String> = view
            .clusters
            .iter()
            .map(|(a, _)| a)
            .chain(view.intents.iter().map(|(a, _)| a))
            .map(|a| a.name.clone())
            .collect();
        names.sort();
        names.dedup();
        names.retain(|cluster| view.scope_of_cluster(cluster) == self.scope);
        names
    }

    fn plan(&self, view: &View, key: &String, now: Timestamp) -> Plan<Step> {
        if view.scope_of_cluster(key) != self.scope || view.intents.is_unreadable(&Address::global(key)) {
            return Plan::converged();
        }
        let stored = view.intents.named(key);
        if view.clusters.named(key).is_none() {
            return match stored {
                Some(old) if view.tenants_on(key) == 0 && !view.clusters.is_unreadable(&Address::global(key)) => {
                    Plan::one(
                        "its cluster is gone",
                        Step::Remove {
                            cluster: key.clone(),
                            revision: old.revision,
                        },
                    )
                }
                Some(_) | None => Plan::converged(),
            };
        }
        let before = stored
            .map(|item| item.object.spec.tenants.as_slice())
            .unwrap_or_default();
        let tenants = desired(view, key, before);
        let Some(old) = stored else {
            let intent = Box::new(new_intent(key, tenants, now));
            return Plan::one(
                "its cluster has none yet",
                Step::Write {
                    cluster: key.clone(),
                    intent,
                    revision: 0,
                },
            );
        };
        if old.object.spec.tenants == tenants {
            return Plan::converged();
        }
        let mut intent = old.object.as_ref().clone();
        let reason = format!("{} tenants instead of {}", tenants.len(), intent.spec.tenants.len());
        intent.spec.tenants = tenants;
        intent.metadata.generation += 1;
        Plan::one(
            reason,
            Step::Write {
                cluster: key.clone(),
                intent: Box::new(intent),
                revision: old.revision,
            },
        )
    }

    async fn step(&self, ctx: &StepCtx, step: &Step) -> Result<Progress, StepError> {
        let key = |cluster: &str| Address::global(cluster).key(INTENTS);
        match step {
            Step::Write {
                cluster,
                intent,
                revision,
            } => {
                let mut intent = intent.as_ref().clone();
                intent.spec.epoch = intent.spec.epoch.max(ctx.fence.token);
                if *revision == 0 {
                    intent.metadata.uid = ctx.rng.uuid();
                    return ctx
                        .commit(vec![Op::Create {
                            key: key(cluster),
                            value: encode(&intent)?,
                        }])
                        .await;
                }
                ctx.update(key(cluster), &intent, *revision).await
            }
            Step::Remove { cluster, revision } => {
                ctx.commit(vec![Op::Delete {
                    key: key(cluster),
                    expected: *revision,
                }])
                .await
            }
        }
    }
}

/// What `cluster` shall run, by tenant id. `before` is what it was last told.
fn desired(view: &View, cluster: &str, before: &[TenantIntent]) -> Vec<TenantIntent> {
    let mut tenants: Vec<TenantIntent> = view
        .hosted_by(cluster)
        .filter_map(|(address, store)| {
            let tenant = view.tenants.get(address)?;
            wanted(&tenant.object, &store.object).then(|| tenant_intent(address, &tenant.object, &store.object))
        })
        .collect();
    if view.tenants.has_unreadable() || view.stores.has_unreadable() {
        let unread = before.iter().filter(|old| !knows(view, old)).cloned();
        let named: Vec<TenantIntent> = unread
            .filter(|old| !tenants.iter().any(|t| t.tenant == old.tenant))
            .collect();
        tenants.extend(named);
    }
    tenants.sort_by(|a, b| a.tenant.cmp(&b.tenant));
    tenants
}

/// Whether the view can say what became of the tenant in `old`.
fn knows(view: &View, old: &TenantIntent) -> bool {
    view.host_of(&old.tenant).is_some_and(|store| {
        let meta = &store.object.metadata;
        let address = Address::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone());
        !view.tenants.is_unreadable(&address)
    })
}

fn wanted(tenant: &VirtualClusterInstance, store: &TenantStore) -> bool {
    tenant.metadata.deletion_timestamp.is_none() && tenant.metadata.uid == store.spec.tenant
}

/// What an agent is told of one tenant. An annotation that makes no sense counts as absent; the tenant's condition
/// says so.
pub(crate) fn tenant_intent(address: &Address, tenant: &VirtualClusterInstance, store: &TenantStore) -> TenantIntent {
    TenantIntent {
        tenant: store.spec.tenant.clone(),
        project: project_of_namespace(&address.namespace).unwrap_or_default().to_owned(),
        name: address.name.clone(),
        epoch: store.spec.epoch,
        simulated_nodes: simulated_nodes(&tenant.metadata).unwrap_or(SIMULATED_NODES_DEFAULT),
        simulated_gpus: simulated_gpus(&tenant.metadata).unwrap_or(0),
        pki: None,
    }
}

fn new_intent(cluster: &str, tenants: Vec<TenantIntent>, now: Timestamp) -> IntentObject {
    Object {
        api_version: INTENTS.api_version(),
        kind: INTENTS.kind.to_owned(),
        metadata: ObjectMeta {
            name: cluster.to_owned(),
            generation: 1,
            creation_timestamp: Some(now),
            ..ObjectMeta::default()
        },
        spec: IntentSpec { epoch: 0, tenants },
        status: (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, START, at, vci};
    use crate::view::Raw;
    use hanse_api::kinds::{ANNOTATION_SIMULATED_NODES, VIRTUAL_CLUSTER_INSTANCES};

    fn intents(region: &str) -> Intents {
        Intents {
            scope: Scope::Region(region.into()),
        }
    }

    fn written(fixture: &Fixture, cluster: &str) -> Option<(Vec<String>, i64)> {
        match &intents("eu").plan(&fixture.view, &cluster.to_owned(), START).steps[..] {
            [] => None,
            [planned] => match &planned.step {
                Step::Write { intent, revision, .. } => {
                    Some((intent.spec.tenants.iter().map(|t| t.name.clone()).collect(), *revision))
                }
                other @ Step::Remove { .. } => panic!("{other:?}"),
            },
            more => panic!("{more:?}"),
        }
    }

    #[test]
    fn names_the_tenants_of_its_cluster_and_settles() {
        let mut fixture = Fixture::new();
        assert_eq!(
            written(&fixture, "eu"),
            Some((vec![], 0)),
            "an empty intent is an intent"
        );
        assert_eq!(written(&fixture, "us"), None, "another region's");
        fixture
            .tenant(&vci("b"))
            .store("b", "eu")
            .tenant(&vci("a"))
            .store("a", "eu")
            .tenant(&vci("c"))
            .store("c", "us");
        assert_eq!(written(&fixture, "eu"), Some((vec!["a".into(), "b".into()], 0)));
        let revision = fixture.intent("eu", &["a", "b"]);
        assert_eq!(written(&fixture, "eu"), None);
        let mut bigger = vci("a");
        bigger
            .metadata
            .annotations
            .insert(ANNOTATION_SIMULATED_NODES.into(), "9".into());
        fixture.tenant(&bigger);
        assert_eq!(written(&fixture, "eu"), Some((vec!["a".into(), "b".into()], revision)));
        let mut going = vci("b");
        going.metadata.deletion_timestamp = Some(START);
        fixture.tenant(&going);
        assert_eq!(written(&fixture, "eu"), Some((vec!["a".into()], revision)));
    }

    #[test]
    fn what_cannot_be_read_is_not_stopped() {
        let mut fixture = Fixture::new();
        fixture
            .tenant(&vci("a"))
            .store("a", "eu")
            .tenant(&vci("b"))
            .store("b", "eu");
        let revision = fixture.intent("eu", &["a", "b"]);
        let broken = Raw {
            address: at("b"),
            value: "{".into(),
            revision: revision + 1,
        };
        fixture.view.put(VIRTUAL_CLUSTER_INSTANCES, &broken);
        assert_eq!(written(&fixture, "eu"), None);
        fixture.tenant(&vci("b"));
        assert_eq!(written(&fixture, "eu"), None);
    }

    #[test]
    fn a_new_object_of_the_same_name_is_another_tenant() {
        let mut fixture = Fixture::new();
        let mut other = vci("a");
        other.metadata.uid = "uid-other".into();
        fixture.tenant(&other).store("a", "eu");
        assert_eq!(written(&fixture, "eu"), Some((vec![], 0)));
    }

    #[test]
    fn the_intent_of_a_cluster_that_is_gone_goes_after_its_tenants() {
        let mut fixture = Fixture::new();
        fixture.tenant(&vci("a")).store("a", "eu");
        fixture.intent("eu", &["a"]);
        fixture
            .view
            .delete(hanse_api::kinds::CLUSTERS, &Address::global("eu"), 900);
        let fleet = Intents { scope: Scope::Fleet };
        assert_eq!(fleet.keys(&fixture.view), ["eu"]);
        assert!(fleet.plan(&fixture.view, &"eu".into(), START).steps.is_empty());
        fixture.view.delete(hanse_api::kinds::TENANT_STORES, &at("a"), 901);
        let steps = fleet.plan(&fixture.view, &"eu".into(), START).steps;
        assert!(matches!(
            steps[..],
            [crate::reconciler::Planned {
                step: Step::Remove { .. },
                ..
            }]
        ));
    }
}
