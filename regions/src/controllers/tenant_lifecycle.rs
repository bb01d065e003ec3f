//! `tenant_lifecycle`: says how far each tenant cluster is, and ends those that are being deleted.
//!
//! **Flow.** Status: conditions follow from the host's health, the compiled intent and what the agent observed; phase,
//! reason and message follow from the conditions. Deletion: the `intents` controller takes a tenant with a deletion
//! timestamp out of its host's intent; when the agent works by that intent and no longer names the tenant, its key
//! space is fenced and dropped; then TenantStore and finalizer go in one commit, and with the last finalizer the
//! object.
//!
//! **Guarantees.** No key of a tenant is dropped while its host may still run it, unless the host's Cluster object was
//! removed: then the fence keeps the host off. Both halves of the end may be repeated.
//!
//! **Assumptions.** An agent reports the revision of the intent that it has carried out or is carrying out, and every
//! tenant of which a process or a file is left.
//!
//! **Caveats.** A tenant on a host that never comes back is not deleted before the host's Cluster object is; its
//! condition says so.

use async_trait::async_trait;
use hanse_api::Timestamp;
use hanse_api::intent::{TenantReport, TenantState};
use hanse_api::kinds::{FINALIZER_TENANT, TENANT_STORES, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::meta::ObjectMeta;
use hanse_api::resources::virtual_cluster_instance::{simulated_gpus, simulated_nodes, store_limits};
use hanse_api::resources::{StoreLimits, TenantStore, VirtualClusterInstance};
use hanse_state::objects::Op;

use crate::address::Address;
use crate::conditions::{
    self, CLEANED_UP, DEPLOYED, ONLINE, Observed, READY, RECONCILED, SCHEDULED, STORE_LIMITED, SYNCED,
};
use crate::controllers::intents::tenant_intent;
use crate::error::StepError;
use crate::reconciler::{Plan, Progress, Reconciler, StepCtx, encode};
use crate::scope::Scope;
use crate::view::{Change, Item, View};

/// Life cycle of the tenants of one scope.
#[derive(Debug)]
pub struct TenantLifecycle {
    /// Whose tenants.
    pub scope: Scope,
}

/// One effect of the life cycle.
#[derive(Debug)]
pub enum Step {
    /// Store what is observed.
    Observe {
        /// Where the tenant cluster lives.
        address: Address,
        /// It, with its new status.
        tenant: Box<VirtualClusterInstance>,
        /// Its revision that the plan rests on.
        revision: i64,
    },
    /// Limit the key space.
    Limit {
        /// Where the tenant cluster lives.
        address: Address,
        /// Its host, with the new limits.
        store: Box<TenantStore>,
        /// The host's revision that the plan rests on.
        revision: i64,
    },
    /// Fence and drop the key space.
    DropSpace {
        /// Where the tenant cluster lives, or lived.
        address: Address,
        /// Id of the key space.
        tenant: String,
        /// Its last host epoch.
        epoch: u64,
    },
    /// Remove TenantStore and finalizer, and the object itself if no finalizer is left.
    Finish {
        /// Where the tenant cluster lives, or lived.
        address: Address,
        /// The tenant cluster and its revision, unless it is gone or another of the same name.
        tenant: Option<(Box<VirtualClusterInstance>, i64)>,
        /// Revision of the TenantStore, if there is one.
        store: Option<i64>,
    },
}

#[async_trait]
impl Reconciler for TenantLifecycle {
    type Key = Address;
    type Step = Step;

    const NAME: &'static str = "tenant_lifecycle";

    fn wakes_on(&self, view: &View, change: &Change) -> Vec<Address> {
        let mut addresses: Vec<Address> = match change {
            Change::Tenant(address) | Change::Store(address, _) => vec![address.clone()],
            Change::Cluster(cluster) | Change::Intent(cluster) | Change::Observation(cluster) => {
                view.hosted_by(cluster).map(|(address, _)| address.clone()).collect()
            }
            Change::Region(_) => return self.keys(view),
            Change::Project(_) | Change::Server(_) | Change::Lease(_) | Change::Presence(_) => Vec::new(),
        };
        addresses.retain(|address| view.scope_of_tenant(address) == self.scope);
        addresses
    }

    fn keys(&self, view: &View) -> Vec<Address> {
        let stores = view.stores.iter().map(|(a, _)| a);
        let mut keys: Vec<Address> = view.tenants.iter().map(|(a, _)| a).chain(stores).cloned().collect();
        keys.sort();
        keys.dedup();
        keys.retain(|address| view.scope_of_tenant(address) == self.scope);
        keys
    }

    fn plan(&self, view: &View, key: &Address, now: Timestamp) -> Plan<Step> {
        let unreadable = view.tenants.is_unreadable(key) || view.stores.is_unreadable(key);
        if unreadable || view.scope_of_tenant(key) != self.scope {
            return Plan::converged();
        }
        match (view.tenants.get(key), view.stores.get(key)) {
            (Some(tenant), Some(store)) if is_of(&tenant.object, &store.object) => {
                if tenant.object.metadata.deletion_timestamp.is_some() {
                    return end(view, key, Some(tenant), store, now);
                }
                let plan = write(key, tenant, "what is observed has changed", |status| {
                    observe(view, key, store, now, status)
                });
                // Last: while servers are replaced the store may not take limits for a while, and the rest goes on.
                match limit(key, &tenant.object, store) {
                    Some(step) => plan.then("its limits have changed", step),
                    None => plan,
                }
            }
            (_, Some(store)) => end(view, key, None, store, now),
            (Some(tenant), None) if tenant.object.metadata.deletion_timestamp.is_some() => release(key, tenant),
            (Some(_) | None, None) => Plan::converged(),
        }
    }

    async fn step(&self, ctx: &StepCtx, step: &Step) -> Result<Progress, StepError> {
        match step {
            Step::Observe {
                address,
                tenant,
                revision,
            } => {
                let key = address.key(VIRTUAL_CLUSTER_INSTANCES);
                ctx.update(key, tenant.as_ref(), *revision).await
            }
            Step::Limit {
                address,
                store,
                revision,
            } => {
                let told = ctx.tenants.set_limits(&store.spec.tenant, store.spec.limits).await;
                told.map_err(StepError::TenantStore)?;
                ctx.update(address.key(TENANT_STORES), store.as_ref(), *revision).await
            }
            Step::DropSpace { address, tenant, epoch } => drop_space(ctx, address, tenant, *epoch).await,
            Step::Finish { address, tenant, store } => finish(ctx, address, tenant.as_ref(), *store).await,
        }
    }

    fn gave_up(&self, view: &View, key: &Address, now: Timestamp, failure: &str) -> Plan<Step> {
        let Some(tenant) = view.tenants.get(key) else {
            return Plan::converged();
        };
        write(key, tenant, "a controller gave up", |tenant| {
            let fault = Observed::no(RECONCILED, "LifecycleFails", failure);
            conditions::conclude(&mut tenant.status, &tenant.metadata, now, vec![fault], false);
        })
    }
}

/// Whether `store` belongs to `tenant`, and not to an earlier one of the same name.
fn is_of(tenant: &VirtualClusterInstance, store: &TenantStore) -> bool {
    tenant.metadata.uid == store.spec.tenant
}

/// What tells the store of new limits, unless it knows them. An annotation that makes no sense, which the API refuses, leaves
/// them as they are.
fn limit(address: &Address, tenant: &VirtualClusterInstance, store: &Item<TenantStore>) -> Option<Step> {
    let limits = store_limits(&tenant.metadata).ok()?;
    if store.object.spec.limits == limits {
        return None;
    }
    let mut changed = store.object.as_ref().clone();
    changed.spec.limits = limits;
    Some(Step::Limit {
        address: address.clone(),
        store: Box::new(changed),
        revision: store.revision,
    })
}

fn in_words(limits: StoreLimits) -> String {
    let of = |limit: u64, unit: &str| (limit > 0).then(|| format!("{limit} {unit}"));
    let parts = [
        of(limits.bytes, "bytes"),
        of(limits.keys, "keys"),
        of(limits.writes_per_second.into(), "writes per second"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "its store is not limited".to_owned()
    } else {
        format!("its store takes at most {}", parts.join(", "))
    }
}

/// The condition that shows limits, if there are any or are to be.
fn limited(meta: &ObjectMeta, told: StoreLimits) -> Option<Observed> {
    let wanted = match store_limits(meta) {
        Ok(wanted) => wanted,
        Err(faults) => {
            let faults: Vec<&str> = faults.iter().map(|fault| fault.message.as_str()).collect();
            let message = format!(
                "{}; as annotated it makes no sense: {}",
                in_words(told),
                faults.join("; ")
            );
            return Some(Observed::no(STORE_LIMITED, "InvalidAnnotation", message));
        }
    };
    if wanted != told {
        let message = format!(
            "{}; the store has not taken the annotated limits yet, which it does once all servers run a version that knows limits",
            in_words(told)
        );
        return Some(Observed::no(STORE_LIMITED, "NotTakenYet", message));
    }
    (!told.is_none()).then(|| Observed::yes(STORE_LIMITED, "AsAnnotated", in_words(told)))
}

/// A plan that stores what `change` does to the tenant cluster, if it does anything.
fn write(
    address: &Address,
    tenant: &Item<VirtualClusterInstance>,
    reason: &str,
    change: impl FnOnce(&mut VirtualClusterInstance),
) -> Plan<Step> {
    let mut changed = tenant.object.as_ref().clone();
    change(&mut changed);
    if changed.status == tenant.object.status {
        return Plan::converged();
    }
    let reason = format!("{reason}: {:?} {}", changed.status.phase, changed.status.reason);
    let step = Step::Observe {
        address: address.clone(),
        tenant: Box::new(changed),
        revision: tenant.revision,
    };
    Plan::one(reason, step)
}

fn observe(
    view: &View,
    address: &Address,
    store: &Item<TenantStore>,
    now: Timestamp,
    tenant: &mut VirtualClusterInstance,
) {
    let spec = &store.object.spec;
    let host = Host::of(view, &spec.cluster);
    let report = view
        .observations
        .named(&spec.cluster)
        .and_then(|o| o.object.spec.tenant(&spec.tenant))
        .filter(|report| report.epoch == spec.epoch);
    let synced = synced(view, address, tenant, &store.object);
    if synced.holds() {
        tenant.status.observed_generation = tenant.metadata.generation;
    }
    let mut observed = vec![
        Observed::yes(
            SCHEDULED,
            "ClusterChosen",
            format!("placed on cluster {}", spec.cluster),
        ),
        synced,
        deployed(&host, report),
        ready(&host, report),
    ];
    match limited(&tenant.metadata, spec.limits) {
        Some(condition) => observed.push(condition),
        None => conditions::clear(&mut tenant.status.conditions, STORE_LIMITED),
    }
    observed.push(online(&host, observed.iter().any(|o| o.kind == READY && o.holds())));
    if let Some(version) = report.map(|r| &r.kubernetes_version).filter(|v| !v.is_empty()) {
        tenant.status.kubernetes_version.clone_from(version);
    }
    tenant.status.online = observed.iter().any(|o| o.kind == ONLINE && o.holds());
    let broken = !host.known || host.online && report.is_some_and(|r| r.state == TenantState::Failed);
    conditions::clear(&mut tenant.status.conditions, RECONCILED);
    conditions::conclude(&mut tenant.status, &tenant.metadata, now, observed, broken);
}

/// What counts of the cluster that hosts a tenant.
struct Host<'a> {
    cluster: &'a str,
    known: bool,
    online: bool,
}

impl<'a> Host<'a> {
    fn of(view: &View, cluster: &'a str) -> Self {
        let object = view.clusters.named(cluster);
        let known = object.is_some() || view.clusters.is_unreadable(&Address::global(cluster));
        Self {
            cluster,
            known,
            online: object.is_some_and(|c| c.object.status.online),
        }
    }

    /// Reason and message when nothing is heard of the host.
    fn silent(&self) -> Option<(&'static str, String)> {
        let cluster = self.cluster;
        if !self.known {
            let message = format!("cluster {cluster} was removed; connect it again, or delete this tenant cluster");
            return Some(("ClusterNotFound", message));
        }
        (!self.online).then(|| {
            let message = format!(
                "the agent of cluster {cluster} is not connected; what runs there runs on, but cannot be reached; \
                 start the agent or restore its network"
            );
            ("AgentOffline", message)
        })
    }
}

fn synced(view: &View, address: &Address, tenant: &VirtualClusterInstance, store: &TenantStore) -> Observed {
    let faults = [
        simulated_nodes(&tenant.metadata).err(),
        simulated_gpus(&tenant.metadata).err(),
    ];
    if let Some(fault) = faults.into_iter().flatten().next() {
        let message = format!("{}: {}; the default is used", fault.field, fault.message);
        return Observed::no(SYNCED, "InvalidAnnotation", message);
    }
    let wanted = tenant_intent(address, tenant, store);
    let written = view
        .intents
        .named(&store.spec.cluster)
        .is_some_and(|i| i.object.spec.tenants.contains(&wanted));
    if written {
        return Observed::yes(SYNCED, "IntentWritten", "its host's agent is told what to run");
    }
    Observed::no(SYNCED, "IntentPending", "the intent of its host is being compiled")
}

fn deployed(host: &Host<'_>, report: Option<&TenantReport>) -> Observed {
    let cluster = host.cluster;
    let Some(report) = report else {
        let (reason, message) = host.silent().unwrap_or_else(|| {
            (
                "WaitingForAgent",
                format!("the agent of cluster {cluster} has not taken the tenant up yet"),
            )
        });
        return Observed::no(DEPLOYED, reason, message);
    };
    match report.state {
        TenantState::Failed => Observed::no(DEPLOYED, "DeployFailed", words(report, "its agent cannot run it")),
        TenantState::Stopping => Observed::no(DEPLOYED, "Stopping", words(report, "its agent is stopping it")),
        TenantState::Starting | TenantState::Ready | TenantState::Unhealthy => Observed::yes(
            DEPLOYED,
            "ControlPlaneDeployed",
            format!("cluster {cluster} runs its control plane"),
        ),
    }
}

fn ready(host: &Host<'_>, report: Option<&TenantReport>) -> Observed {
    if let Some((reason, message)) = host.silent() {
        return Observed::unknown(READY, reason, message);
    }
    let Some(report) = report else {
        return Observed::no(READY, "NotDeployed", "its control plane does not run yet");
    };
    match report.state {
        TenantState::Ready => Observed::yes(READY, "ApiServerReady", "its API server answers"),
        TenantState::Starting => Observed::no(READY, "Starting", words(report, "its control plane is starting")),
        TenantState::Unhealthy => Observed::no(READY, "Unhealthy", words(report, "its API server does not answer")),
        TenantState::Stopping => Observed::no(READY, "Stopping", words(report, "its agent is stopping it")),
        TenantState::Failed => Observed::no(READY, "DeployFailed", words(report, "its agent cannot run it")),
    }
}

fn online(host: &Host<'_>, ready: bool) -> Observed {
    match (host.silent(), ready) {
        (Some((reason, message)), _) => Observed::no(ONLINE, reason, message),
        (None, true) => Observed::yes(ONLINE, "Reachable", "its API can be reached through its agent"),
        (None, false) => Observed::no(ONLINE, "NotReady", "its API server is not ready"),
    }
}

fn words(report: &TenantReport, otherwise: &str) -> String {
    if report.message.is_empty() {
        otherwise.to_owned()
    } else {
        report.message.clone()
    }
}

/// The way out of a tenant. `tenant` is absent when its object is gone or is another of the same name.
fn end(
    view: &View,
    address: &Address,
    tenant: Option<&Item<VirtualClusterInstance>>,
    store: &Item<TenantStore>,
    now: Timestamp,
) -> Plan<Step> {
    let spec = &store.object.spec;
    let Some(waiting) = still_there(view, store) else {
        let drop = Step::DropSpace {
            address: address.clone(),
            tenant: spec.tenant.clone(),
            epoch: spec.epoch,
        };
        let tenant = tenant.map(|t| (Box::new(t.object.as_ref().clone()), t.revision));
        let finish = Step::Finish {
            address: address.clone(),
            tenant,
            store: Some(store.revision),
        };
        return Plan::one("its host runs it no more: drop its keys", drop).then("remove its record", finish);
    };
    let Some(tenant) = tenant else { return Plan::converged() };
    write(address, tenant, "deletion waits", |tenant| {
        tenant.status.online = false;
        conditions::conclude(&mut tenant.status, &tenant.metadata, now, vec![waiting], false);
    })
}

/// Why a tenant that shall end may still run on its host; nothing when it certainly does not, or when the host was
/// given up.
fn still_there(view: &View, store: &Item<TenantStore>) -> Option<Observed> {
    let spec = &store.object.spec;
    let host = Host::of(view, &spec.cluster);
    if !host.known {
        return None;
    }
    let Some(intent) = view.intents.named(&spec.cluster) else {
        return Some(Observed::no(
            CLEANED_UP,
            "IntentPending",
            "the intent of its host is being compiled",
        ));
    };
    if intent.object.spec.tenants.iter().any(|t| t.tenant == spec.tenant) {
        return Some(Observed::no(
            CLEANED_UP,
            "IntentPending",
            "its host is about to be told to stop it",
        ));
    }
    let observation = view.observations.named(&spec.cluster);
    let heard = observation.is_some_and(|o| o.object.spec.intent_revision >= intent.revision);
    let report = observation.and_then(|o| o.object.spec.tenant(&spec.tenant));
    if heard && report.is_none() {
        return None;
    }
    if !host.online {
        let message = format!(
            "the agent of cluster {0} is not connected, so it cannot be stopped there; deletion goes on when it \
             is back; if it never will be, delete cluster {0}",
            spec.cluster
        );
        return Some(Observed::no(CLEANED_UP, "AgentOffline", message));
    }
    Some(Observed::no(
        CLEANED_UP,
        "Stopping",
        format!("the agent of cluster {} is stopping it", spec.cluster),
    ))
}

/// The end of a tenant cluster that was never placed.
fn release(address: &Address, tenant: &Item<VirtualClusterInstance>) -> Plan<Step> {
    if !tenant.object.metadata.finalizers.iter().any(|f| f == FINALIZER_TENANT) {
        return Plan::converged();
    }
    let tenant = Some((Box::new(tenant.object.as_ref().clone()), tenant.revision));
    Plan::one(
        "it was never placed: nothing to stop",
        Step::Finish {
            address: address.clone(),
            tenant,
            store: None,
        },
    )
}

async fn drop_space(ctx: &StepCtx, address: &Address, tenant: &str, epoch: u64) -> Result<Progress, StepError> {
    // The one step that cannot be undone: ask the council itself, not this server's view of it.
    let stored = ctx
        .objects
        .get(&address.key(VIRTUAL_CLUSTER_INSTANCES))
        .await
        .map_err(StepError::Council)?;
    if let Some(stored) = stored {
        let what = || format!("tenant cluster {address}");
        let object: VirtualClusterInstance =
            serde_json::from_slice(&stored.value).map_err(|source| StepError::Json { what: what(), source })?;
        if object.metadata.uid == tenant && object.metadata.deletion_timestamp.is_none() {
            return Err(StepError::Conflict(what()));
        }
    }
    // A host that was given up may still run: the fence keeps its late writes out of what is dropped.
    ctx.tenants
        .set_fence(tenant, epoch.saturating_add(1))
        .await
        .map_err(StepError::TenantStore)?;
    ctx.tenants.drop_space(tenant).await.map_err(StepError::TenantStore)?;
    Ok(Progress::Done)
}

async fn finish(
    ctx: &StepCtx,
    address: &Address,
    tenant: Option<&(Box<VirtualClusterInstance>, i64)>,
    store: Option<i64>,
) -> Result<Progress, StepError> {
    let mut ops = Vec::new();
    let key = address.key(VIRTUAL_CLUSTER_INSTANCES);
    if let Some((tenant, revision)) = tenant {
        let mut tenant = tenant.as_ref().clone();
        tenant.metadata.finalizers.retain(|f| f != FINALIZER_TENANT);
        ops.push(if tenant.metadata.finalizers.is_empty() {
            Op::Delete {
                key,
                expected: *revision,
            }
        } else {
            Op::Update {
                key,
                value: encode(&tenant)?,
                expected: *revision,
            }
        });
    }
    if let Some(revision) = store {
        ops.push(Op::Delete {
            key: address.key(TENANT_STORES),
            expected: revision,
        });
    }
    ctx.commit(ops).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, START, at, vci};
    use hanse_api::kinds::{ANNOTATION_SIMULATED_NODES, ANNOTATION_STORE_BYTES, CLUSTERS};
    use hanse_api::resources::Phase;

    const EU: &str = "eu";

    fn lifecycle() -> TenantLifecycle {
        TenantLifecycle {
            scope: Scope::Region(EU.into()),
        }
    }

    fn plan(fixture: &Fixture) -> Vec<Step> {
        lifecycle()
            .plan(&fixture.view, &at("demo"), START)
            .steps
            .into_iter()
            .map(|p| p.step)
            .collect()
    }

    /// A tenant on eu, told to its agent; the revision of that intent.
    fn hosted() -> (Fixture, i64) {
        let mut fixture = Fixture::new();
        let mut demo = vci("demo");
        demo.metadata.finalizers = vec![FINALIZER_TENANT.into()];
        fixture.tenant(&demo).store("demo", EU);
        let revision = fixture.intent(EU, &["demo"]);
        (fixture, revision)
    }

    fn observed(fixture: &Fixture) -> VirtualClusterInstance {
        match &plan(fixture)[..] {
            [Step::Observe { tenant, .. }] => tenant.as_ref().clone(),
            other => panic!("{other:?}"),
        }
    }

    fn delete(fixture: &mut Fixture) {
        let mut going = fixture.view.tenants.get(&at("demo")).unwrap().object.as_ref().clone();
        going.metadata.deletion_timestamp = Some(START);
        fixture.tenant(&going);
    }

    #[test]
    fn phase_reason_and_online_follow_the_agent() {
        use TenantState::{Failed, Ready, Starting, Stopping, Unhealthy};
        for (state, agent, phase, reason, online) in [
            (None, true, Phase::Pending, "WaitingForAgent", false),
            (None, false, Phase::Pending, "AgentOffline", false),
            (Some(Starting), true, Phase::Pending, "Starting", false),
            (Some(Ready), true, Phase::Ready, "", true),
            (Some(Ready), false, Phase::Pending, "AgentOffline", false),
            (Some(Unhealthy), true, Phase::Pending, "Unhealthy", false),
            (Some(Stopping), true, Phase::Pending, "Stopping", false),
            (Some(Failed), true, Phase::Failed, "DeployFailed", false),
            (Some(Failed), false, Phase::Pending, "DeployFailed", false),
        ] {
            let (mut fixture, revision) = hosted();
            fixture.cluster(EU, EU, agent);
            let reports: Vec<(&str, TenantState)> = state.map(|s| ("demo", s)).into_iter().collect();
            fixture.observed(EU, revision, &reports);
            let status = observed(&fixture).status;
            let case = format!("{state:?}, agent {agent}");
            assert_eq!(
                (status.phase, status.reason.as_str(), status.online),
                (phase, reason, online),
                "{case}"
            );
            assert_eq!(status.observed_generation, 1, "{case}");
            let mut again = vci("demo");
            again.status = status;
            fixture.tenant(&again);
            assert!(plan(&fixture).is_empty(), "{case}: said once");
        }
    }

    /// The condition that shows limits, if there is one.
    fn shown(tenant: &VirtualClusterInstance) -> Option<(bool, &str, &str)> {
        let shown = tenant.status.conditions.iter().find(|c| c.kind == STORE_LIMITED)?;
        Some((shown.is_true(), shown.reason.as_str(), shown.message.as_str()))
    }

    #[test]
    fn limits_reach_the_store_and_are_shown() {
        let (mut fixture, _) = hosted();
        let mut limited = vci("demo");
        let annotations = &mut limited.metadata.annotations;
        annotations.insert(ANNOTATION_STORE_BYTES.into(), "67108864".into());
        fixture.tenant(&limited);
        let steps = plan(&fixture);
        let [Step::Observe { tenant, .. }, Step::Limit { store, .. }] = &steps[..] else {
            panic!("{steps:?}")
        };
        let (holds, reason, message) = shown(tenant).unwrap();
        assert!(
            !holds && reason == "NotTakenYet" && message.starts_with("its store is not limited; "),
            "{message}"
        );
        assert_eq!(store.spec.limits.bytes, 64 << 20);
        // As long as the store does not take them, everything else goes on.
        fixture.tenant(tenant);
        let steps = plan(&fixture);
        assert!(matches!(&steps[..], [Step::Limit { .. }]), "{steps:?}");
        fixture.put(TENANT_STORES, &at("demo"), store.as_ref());
        let told = observed(&fixture);
        let wanted = (true, "AsAnnotated", "its store takes at most 67108864 bytes");
        assert_eq!(shown(&told), Some(wanted));
        // Without the annotation there is no limit again, and no condition.
        let mut free = told.clone();
        free.metadata.annotations.clear();
        fixture.tenant(&free);
        let steps = plan(&fixture);
        let [Step::Observe { tenant, .. }, Step::Limit { store, .. }] = &steps[..] else {
            panic!("{steps:?}")
        };
        assert!(store.spec.limits.is_none());
        fixture.tenant(tenant);
        fixture.put(TENANT_STORES, &at("demo"), store.as_ref());
        assert_eq!(shown(&observed(&fixture)), None);
    }

    #[test]
    fn an_older_epoch_is_not_this_tenant() {
        let (mut fixture, revision) = hosted();
        fixture.observed(EU, revision, &[("demo", TenantState::Ready)]);
        let mut moved = fixture.view.stores.get(&at("demo")).unwrap().object.as_ref().clone();
        moved.spec.epoch = 2;
        fixture.put(TENANT_STORES, &at("demo"), &moved);
        assert_eq!(observed(&fixture).status.reason, "IntentPending");
    }

    #[test]
    fn a_bad_annotation_is_named_and_the_generation_stays_behind() {
        let (mut fixture, _) = hosted();
        let mut odd = vci("demo");
        odd.metadata
            .annotations
            .insert(ANNOTATION_SIMULATED_NODES.into(), "many".into());
        fixture.tenant(&odd);
        let status = observed(&fixture).status;
        assert_eq!(
            (status.reason.as_str(), status.observed_generation),
            ("InvalidAnnotation", 0)
        );
        assert!(status.message.contains("simulated-nodes"), "{}", status.message);
    }

    #[test]
    fn deletion_waits_for_the_agent_and_then_drops_everything_once() {
        let (mut fixture, revision) = hosted();
        fixture.observed(EU, revision, &[("demo", TenantState::Ready)]);
        delete(&mut fixture);
        assert_eq!(
            observed(&fixture).status.reason,
            "IntentPending",
            "the intent still names it"
        );
        let without = fixture.intent(EU, &[]);
        assert_eq!(
            observed(&fixture).status.reason,
            "Stopping",
            "the agent works by the old intent"
        );
        fixture.observed(EU, without, &[("demo", TenantState::Stopping)]);
        assert_eq!(observed(&fixture).status.reason, "Stopping", "something is left");
        fixture.cluster(EU, EU, false);
        let status = observed(&fixture).status;
        assert_eq!(status.reason, "AgentOffline");
        assert!(status.message.contains("delete cluster eu"), "{}", status.message);
        fixture.cluster(EU, EU, true).observed(EU, without, &[]);
        let steps = plan(&fixture);
        let [
            Step::DropSpace { tenant, epoch: 1, .. },
            Step::Finish {
                tenant: Some(_),
                store: Some(_),
                ..
            },
        ] = &steps[..]
        else {
            panic!("{steps:?}")
        };
        assert_eq!(tenant, "uid-demo");
    }

    #[test]
    fn an_agent_that_never_heard_of_it_confirms_only_by_the_intents_revision() {
        let (mut fixture, revision) = hosted();
        fixture.observed(EU, revision, &[]);
        delete(&mut fixture);
        fixture.intent(EU, &[]);
        assert_eq!(observed(&fixture).status.reason, "Stopping");
    }

    #[test]
    fn a_removed_cluster_counts_as_gone_and_falls_to_the_fleet() {
        let (mut fixture, _) = hosted();
        fixture.view.delete(CLUSTERS, &Address::global(EU), 900);
        assert!(plan(&fixture).is_empty());
        let fleet = TenantLifecycle { scope: Scope::Fleet };
        let steps = fleet.plan(&fixture.view, &at("demo"), START).steps;
        let [planned] = &steps[..] else { panic!("{steps:?}") };
        let Step::Observe { tenant, .. } = &planned.step else {
            panic!("{planned:?}")
        };
        assert_eq!(
            (tenant.status.phase, tenant.status.reason.as_str()),
            (Phase::Failed, "ClusterNotFound")
        );
        delete(&mut fixture);
        assert_eq!(fleet.plan(&fixture.view, &at("demo"), START).steps.len(), 2);
    }

    #[test]
    fn one_that_was_never_placed_just_loses_its_finalizer() {
        let mut fixture = Fixture::new();
        let mut going = vci("demo");
        going.metadata.finalizers = vec![FINALIZER_TENANT.into()];
        going.metadata.deletion_timestamp = Some(START);
        fixture.tenant(&going);
        let fleet = TenantLifecycle { scope: Scope::Fleet };
        let steps = fleet.plan(&fixture.view, &at("demo"), START).steps;
        assert!(matches!(&steps[..], [p] if matches!(p.step, Step::Finish { store: None, tenant: Some(_), .. })));
    }

    #[test]
    fn the_record_of_an_earlier_object_of_the_same_name_is_ended() {
        let (mut fixture, _) = hosted();
        let mut other = vci("demo");
        other.metadata.uid = "uid-other".into();
        fixture.tenant(&other);
        let without = fixture.intent(EU, &[]);
        assert!(
            plan(&fixture).is_empty(),
            "waits for the agent, and says nothing on the new object"
        );
        fixture.observed(EU, without, &[]);
        let steps = plan(&fixture);
        assert!(
            matches!(&steps[..], [Step::DropSpace { .. }, Step::Finish { tenant: None, .. }]),
            "{steps:?}"
        );
    }
}
