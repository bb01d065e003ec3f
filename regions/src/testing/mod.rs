//! Test helpers: views made of plain objects, and a [`world::World`] of servers and agents over one store.

pub(crate) mod gate;
pub(crate) mod world;

use hanse_api::Timestamp;
use hanse_api::intent::{TenantReport, TenantState};
use hanse_api::kinds::{
    ANNOTATION_REGION, CLUSTERS, INTENTS, KindName, PROJECTS, REGIONS, SERVERS, TENANT_STORES,
    VIRTUAL_CLUSTER_INSTANCES,
};
use hanse_api::meta::{Object, ObjectMeta};
use hanse_api::resources::internal::IntentSpec;
use hanse_api::resources::project::AllowedCluster;
use hanse_api::resources::{
    ClusterSpec, ClusterStatus, ProjectSpec, ProjectStatus, RegionSpec, RegionStatus, ServerSpec, ServerStatus,
    TenantStoreSpec, VirtualClusterInstance,
};
use hanse_runtime::clock::{SharedClock, SystemClock};
use hanse_runtime::rng::{SharedRng, SystemRng};
use hanse_runtime::supervisor::Supervisor;
use hanse_state::engine::memory::MemoryEngine;
use hanse_state::engine::{LogWriter, WriterOptions};
use hanse_state::objects::Objects;
use hanse_state::{GroupId, LocalParts, LocalStore, Store};
use serde::Serialize;
use std::sync::Arc;

use crate::address::Address;
use crate::observation::{OBSERVATIONS, ObservationSpec};
use crate::view::{Raw, View};

/// The wall clock of a new [`hanse_runtime::clock::testing::ManualClock`].
pub(crate) const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// A council and a store of tenants, in memory.
pub(crate) fn stores(clock: &SharedClock, rng: &SharedRng) -> (Arc<dyn Store>, Arc<dyn Store>) {
    let writer = LogWriter::start(Arc::new(MemoryEngine::new()), WriterOptions::default()).unwrap();
    let open = |group| {
        let parts = LocalParts {
            writer: writer.clone(),
            clock: Arc::clone(clock),
            rng: Arc::clone(rng),
            supervisor: Supervisor::default(),
        };
        LocalStore::open(group, parts).unwrap() as Arc<dyn Store>
    };
    (open(GroupId::COUNCIL), open(GroupId::TENANTS))
}

/// An empty council.
pub(crate) fn objects() -> Objects {
    Objects::new(stores(&SystemClock::shared(), &SystemRng::shared()).0)
}

/// A view under construction; each object gets the next revision.
pub(crate) struct Fixture {
    pub(crate) view: View,
    revision: i64,
}

pub(crate) fn meta(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        generation: 1,
        ..ObjectMeta::default()
    }
}

pub(crate) fn object<Spec, Stat: Default>(kind: KindName, metadata: ObjectMeta, spec: Spec) -> Object<Spec, Stat> {
    Object {
        api_version: kind.api_version(),
        kind: kind.kind.to_owned(),
        metadata,
        spec,
        status: Stat::default(),
    }
}

pub(crate) fn vci(name: &str) -> VirtualClusterInstance {
    let mut vci: VirtualClusterInstance = object(VIRTUAL_CLUSTER_INSTANCES, meta(name), Default::default());
    vci.metadata.namespace = Some("p-default".into());
    vci
}

pub(crate) fn at(name: &str) -> Address {
    Address::new("p-default", name)
}

impl Fixture {
    /// Regions eu and us with a server and an online cluster each, and the default project.
    pub(crate) fn new() -> Self {
        let mut fixture = Self {
            view: View::new(START),
            revision: 100,
        };
        for region in ["eu", "us"] {
            fixture
                .region(region)
                .server(&format!("{region}-1"), region)
                .cluster(region, region, true);
        }
        fixture.project("default", &["*"]);
        fixture
    }

    pub(crate) fn put<T: Serialize>(&mut self, kind: KindName, address: &Address, object: &T) -> i64 {
        self.revision += 1;
        let value = serde_json::to_vec(object).unwrap().into();
        self.view.put(
            kind,
            &Raw {
                address: address.clone(),
                value,
                revision: self.revision,
            },
        );
        self.revision
    }

    pub(crate) fn region(&mut self, name: &str) -> &mut Self {
        let region: Object<RegionSpec, RegionStatus> = object(REGIONS, meta(name), Default::default());
        self.put(REGIONS, &Address::global(name), &region);
        self
    }

    pub(crate) fn server(&mut self, name: &str, region: &str) -> &mut Self {
        let spec = ServerSpec {
            region: region.into(),
            ..Default::default()
        };
        let server: Object<ServerSpec, ServerStatus> = object(SERVERS, meta(name), spec);
        self.put(SERVERS, &Address::global(name), &server);
        self
    }

    pub(crate) fn cluster(&mut self, name: &str, region: &str, online: bool) -> &mut Self {
        self.cluster_with(name, region, |_, status| {
            status.online = online;
            status.phase = "Initialized".into();
        })
    }

    pub(crate) fn cluster_with(
        &mut self,
        name: &str,
        region: &str,
        shape: impl FnOnce(&mut ClusterSpec, &mut ClusterStatus),
    ) -> &mut Self {
        let mut cluster: Object<ClusterSpec, ClusterStatus> = object(CLUSTERS, meta(name), Default::default());
        cluster
            .metadata
            .annotations
            .insert(ANNOTATION_REGION.into(), region.into());
        shape(&mut cluster.spec, &mut cluster.status);
        self.put(CLUSTERS, &Address::global(name), &cluster);
        self
    }

    pub(crate) fn project(&mut self, name: &str, allowed: &[&str]) -> &mut Self {
        let allowed_clusters = allowed.iter().map(|c| AllowedCluster { name: (*c).into() }).collect();
        let spec = ProjectSpec {
            allowed_clusters,
            ..Default::default()
        };
        let project: Object<ProjectSpec, ProjectStatus> = object(PROJECTS, meta(name), spec);
        self.put(PROJECTS, &Address::global(name), &project);
        self
    }

    pub(crate) fn tenant(&mut self, vci: &VirtualClusterInstance) -> &mut Self {
        self.put(VIRTUAL_CLUSTER_INSTANCES, &at(&vci.metadata.name), vci);
        self
    }

    pub(crate) fn store(&mut self, name: &str, cluster: &str) -> &mut Self {
        let tenant = format!("uid-{name}");
        let spec = TenantStoreSpec {
            tenant,
            cluster: cluster.into(),
            epoch: 1,
            sealed_pki: "sealed".into(),
            ..TenantStoreSpec::default()
        };
        let store: Object<TenantStoreSpec, ()> = object(TENANT_STORES, meta(name), spec);
        self.put(TENANT_STORES, &at(name), &store);
        self
    }

    /// The intent of `cluster` that names `tenants`, as the `intents` controller would compile it.
    pub(crate) fn intent(&mut self, cluster: &str, tenants: &[&str]) -> i64 {
        let compiled = tenants.iter().map(|name| {
            let (vci, store) = (
                self.view.tenants.get(&at(name)).unwrap(),
                self.view.stores.get(&at(name)).unwrap(),
            );
            crate::controllers::intents::tenant_intent(&at(name), &vci.object, &store.object)
        });
        let spec = IntentSpec {
            epoch: 7,
            tenants: compiled.collect(),
        };
        let intent: Object<IntentSpec, ()> = object(INTENTS, meta(cluster), spec);
        self.put(INTENTS, &Address::global(cluster), &intent)
    }

    pub(crate) fn observed(&mut self, cluster: &str, revision: i64, tenants: &[(&str, TenantState)]) -> &mut Self {
        let tenants = tenants
            .iter()
            .map(|(name, state)| TenantReport {
                tenant: format!("uid-{name}"),
                epoch: 1,
                state: *state,
                kubernetes_version: "v1.36.3".into(),
                ..Default::default()
            })
            .collect();
        let spec = ObservationSpec {
            intent_epoch: 7,
            intent_revision: revision,
            tenants,
            ..Default::default()
        };
        let observation: Object<ObservationSpec, ()> = object(OBSERVATIONS, meta(cluster), spec);
        self.put(OBSERVATIONS, &Address::global(cluster), &observation);
        self
    }
}
