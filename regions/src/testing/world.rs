//! Servers of several regions over one store, and agents that do as they are told, under a clock that is moved by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hanse_api::intent::{AgentReport, Intent, TenantReport, TenantState};
use hanse_api::kinds::{CLUSTERS, KindName, REGION_LEASES, REGIONS, TENANT_STORES, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::meta::Object;
use hanse_api::resources::{Cluster, Region, RegionLease, ServerSpec, TenantStore, VirtualClusterInstance};
use hanse_runtime::clock::testing::ManualClock;
use hanse_runtime::clock::{Clock, SharedClock};
use hanse_runtime::rng::{SeededRng, SharedRng};
use hanse_runtime::seal::Sealer;
use hanse_runtime::shutdown::Phase;
use hanse_runtime::supervisor::Supervisor;
use hanse_state::Store;
use hanse_state::objects::{ObjectKey, Objects, Op};
use hanse_tunnel::testing::LoopbackHub;
use hanse_tunnel::{AgentEvents, Body, RequestHead, Upgraded, empty_body};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use super::gate::{Gate, Way};
use super::{START, at, vci};
use crate::address::Address;
use crate::bootstrap::{ClusterSeed, Seed, bootstrap};
use crate::reconciler::encode;
use crate::scope::Scope;
use crate::service::{Regions, RegionsParts};

/// Time per round of [`World::rounds`].
const ROUND: Duration = Duration::from_millis(250);
/// Rounds without any work after which the world is quiet.
const QUIET_ROUNDS: usize = 8;
/// Rounds after which a test has hung.
const ROUNDS_MAX: usize = 4000;

/// One server.
pub(crate) struct Node {
    pub(crate) regions: Regions,
    pub(crate) hub: Arc<LoopbackHub>,
    pub(crate) council: Arc<Gate>,
    pub(crate) tenants: Arc<Gate>,
    pub(crate) supervisor: Supervisor,
}

/// How an agent treats its tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Runs what it is told, and what it is no longer told is gone at once.
    Obedient,
    /// Is still starting everything.
    Slow,
    /// Never stops anything.
    Clinging,
}

/// An agent: keeps the newest intent, and reports by its manner.
pub(crate) struct Agent {
    cluster: String,
    intent: Mutex<Option<Intent>>,
    running: Mutex<BTreeMap<String, u64>>,
    pub(crate) manner: Mutex<Manner>,
}

impl Agent {
    pub(crate) fn new(cluster: &str) -> Arc<Self> {
        Arc::new(Self {
            cluster: cluster.to_owned(),
            intent: Mutex::default(),
            running: Mutex::default(),
            manner: Mutex::new(Manner::Obedient),
        })
    }

    pub(crate) fn last_intent(&self) -> Option<Intent> {
        self.intent.lock().clone()
    }

    pub(crate) fn take_intent(&self) -> Option<Intent> {
        self.intent.lock().take()
    }

    fn report(&self, clock: &dyn Clock) -> Bytes {
        let manner = *self.manner.lock();
        let intent = self.intent.lock().clone().unwrap_or_default();
        let mut running = self.running.lock();
        if manner != Manner::Clinging {
            running.retain(|tenant, _| intent.tenants.iter().any(|t| t.tenant == *tenant));
        }
        running.extend(intent.tenants.iter().map(|t| (t.tenant.clone(), t.epoch)));
        let state = if manner == Manner::Slow {
            TenantState::Starting
        } else {
            TenantState::Ready
        };
        let tenants = running.iter().map(|(tenant, epoch)| TenantReport {
            tenant: tenant.clone(),
            epoch: *epoch,
            state,
            kubernetes_version: "v1.36.3".into(),
            ..Default::default()
        });
        let report = AgentReport {
            cluster: self.cluster.clone(),
            version: "test".into(),
            intent_epoch: intent.epoch,
            intent_revision: intent.revision,
            observed_at: clock.wall(),
            tenants: tenants.collect(),
        };
        serde_json::to_vec(&report).unwrap().into()
    }
}

#[async_trait]
impl AgentEvents for Agent {
    async fn request(&self, _server: &str, _head: RequestHead, _body: Body) -> http::Response<Body> {
        http::Response::new(empty_body())
    }

    async fn upgrade(&self, _server: &str, _head: RequestHead) -> Upgraded {
        Upgraded::Answered(http::Response::new(empty_body()))
    }

    fn intent(&self, _server: &str, intent: Bytes) {
        let new: Intent = serde_json::from_slice(&intent).unwrap();
        let mut kept = self.intent.lock();
        if kept
            .as_ref()
            .is_none_or(|old| (old.epoch, old.revision) < (new.epoch, new.revision))
        {
            *kept = Some(new);
        }
    }
}

/// Everything.
pub(crate) struct World {
    pub(crate) clock: ManualClock,
    shared: SharedClock,
    rng: SharedRng,
    sealer: Sealer,
    council: Arc<dyn Store>,
    tenants: Arc<dyn Store>,
    pub(crate) objects: Objects,
    pub(crate) nodes: BTreeMap<String, Node>,
    pub(crate) agents: BTreeMap<String, Arc<Agent>>,
    writes: Arc<AtomicU64>,
    ids: u64,
}

impl World {
    pub(crate) async fn new() -> Self {
        let clock = ManualClock::new(START);
        let shared: SharedClock = Arc::new(clock.clone());
        let rng: SharedRng = Arc::new(SeededRng::new(11));
        let (council, tenants) = super::stores(&shared, &rng);
        Self {
            sealer: Sealer::from_key(&Sealer::generate(rng.as_ref())).unwrap(),
            objects: Objects::new(Arc::clone(&council)),
            clock,
            shared,
            rng,
            council,
            tenants,
            nodes: BTreeMap::new(),
            agents: BTreeMap::new(),
            writes: Arc::default(),
            ids: 0,
        }
    }

    /// Three regions with a server and a connected cluster each, quiet.
    pub(crate) async fn three_regions() -> Self {
        let mut world = Self::new().await;
        for region in ["ap", "eu", "us"] {
            world.start(region).await;
            world.cluster_online(region);
        }
        world.run_until_quiet().await;
        world
    }

    /// Starts the server `<region>-1`, as its process would.
    pub(crate) async fn start(&mut self, region: &str) {
        let server = format!("{region}-1");
        let council = Gate::new(Arc::clone(&self.council), Arc::clone(&self.writes));
        let tenants = Gate::new(Arc::clone(&self.tenants), Arc::default());
        let objects = Objects::new(Arc::clone(&council) as Arc<dyn Store>);
        self.ids += 1;
        let seed = Seed {
            server: server.clone(),
            server_spec: ServerSpec {
                id: self.nodes.len() as u64 + 1,
                region: region.into(),
                ..Default::default()
            },
            admin: None,
            clusters: vec![ClusterSeed {
                name: region.into(),
                region: region.into(),
                token: None,
            }],
        };
        bootstrap(&objects, &self.clock, self.rng.as_ref(), &seed)
            .await
            .unwrap();
        let (hub, supervisor) = (Arc::new(LoopbackHub::new()), Supervisor::default());
        let regions = Regions::start(RegionsParts {
            server: server.clone(),
            objects,
            tenants: Arc::clone(&tenants) as Arc<dyn Store>,
            hub: Arc::clone(&hub) as Arc<dyn hanse_tunnel::AgentHub>,
            sealer: self.sealer.clone(),
            clock: Arc::clone(&self.shared),
            rng: Arc::clone(&self.rng),
            supervisor: supervisor.clone(),
        });
        for (cluster, agent) in &self.agents {
            hub.connect(cluster, Arc::clone(agent) as Arc<dyn AgentEvents>);
        }
        self.nodes.insert(
            server,
            Node {
                regions,
                hub,
                council,
                tenants,
                supervisor,
            },
        );
    }

    /// Connects the agent of `cluster` to every server.
    pub(crate) fn cluster_online(&mut self, cluster: &str) -> Arc<Agent> {
        let agent = Arc::clone(
            self.agents
                .entry(cluster.to_owned())
                .or_insert_with(|| Agent::new(cluster)),
        );
        for node in self.nodes.values() {
            node.hub.connect(cluster, Arc::clone(&agent) as Arc<dyn AgentEvents>);
        }
        agent
    }

    /// Kills the agent of `cluster`.
    pub(crate) fn cluster_offline(&mut self, cluster: &str) {
        self.agents.remove(cluster);
        for node in self.nodes.values() {
            node.hub.disconnect(cluster);
        }
    }

    /// Kills the server of `region`: from one moment to the next it reaches nothing, not even to let its leases go.
    pub(crate) fn kill(&mut self, region: &str) {
        let node = self.nodes.remove(&format!("{region}-1")).unwrap();
        node.council.set(Way::Cut);
        node.tenants.set(Way::Cut);
        node.supervisor.shutdown_token().begin(Phase::Flush);
    }

    /// Stops the server of `region` in good order.
    pub(crate) async fn stop(&mut self, region: &str) {
        let node = self.nodes.remove(&format!("{region}-1")).unwrap();
        node.supervisor.shutdown_token().begin(Phase::Controllers);
        let supervisor = node.supervisor.clone();
        self.until("the coordinators of a stopping server end", move |_| {
            !supervisor.running().iter().any(|task| task == "coordinators")
        })
        .await;
        node.supervisor.shutdown_token().begin(Phase::Flush);
    }

    /// Cuts the server of `region` off, pauses it, or lets it through again.
    pub(crate) fn way(&self, region: &str, way: Way) {
        let node = &self.nodes[&format!("{region}-1")];
        node.council.set(way);
        node.tenants.set(way);
    }

    /// Every agent reports to the server of its own region, or to the first that lives.
    async fn report(&self) {
        for (cluster, agent) in &self.agents {
            let own = self.nodes.get(&format!("{cluster}-1"));
            let Some(node) = own.or_else(|| self.nodes.values().next()) else {
                continue;
            };
            if !node.council.is_open() {
                continue;
            }
            // A report that cannot be stored is stored with the next.
            node.regions
                .reports()
                .receive(cluster, &agent.report(&self.clock))
                .await
                .ok();
        }
    }

    /// One round: agents report, time goes on, tasks run.
    async fn round(&self) {
        self.report().await;
        self.clock.advance(ROUND);
        self.settle().await;
    }

    /// Lets every task run until all of them wait for time or for each other. Time must not move while a write is on
    /// its way, else a slow machine would let leases run out.
    async fn settle(&self) {
        let mut calm = 0;
        while calm < 2 {
            for _ in 0..40 {
                tokio::task::yield_now().await;
            }
            if self
                .nodes
                .values()
                .any(|node| node.council.is_busy() || node.tenants.is_busy())
            {
                // The store's log writer is a thread of its own.
                tokio::time::sleep(Duration::from_millis(1)).await;
                calm = 0;
            } else {
                calm += 1;
            }
        }
    }

    /// Goes on until `condition` holds.
    pub(crate) async fn until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        for _ in 0..ROUNDS_MAX {
            if condition(self) {
                return;
            }
            self.round().await;
        }
        panic!("never happened: {what}; controllers: {:#?}", self.status());
    }

    /// Goes on for `time`.
    pub(crate) async fn pass(&self, time: Duration) {
        let until = self.clock.mono() + time;
        while self.clock.mono() < until {
            self.round().await;
        }
    }

    /// Goes on until every region of a living server is coordinated and nobody has anything to do.
    pub(crate) async fn run_until_quiet(&self) {
        let mut quiet = 0;
        let mut before = 0;
        self.until("quiet", |world| {
            let writes = world.writes();
            let idle = writes == before && world.is_idle();
            before = writes;
            quiet = if idle { quiet + 1 } else { 0 };
            quiet >= QUIET_ROUNDS
        })
        .await;
    }

    fn is_idle(&self) -> bool {
        let status = self.status();
        let coordinated: BTreeSet<&Scope> = status.iter().map(|(_, s)| &s.scope).collect();
        let regions = self
            .nodes
            .keys()
            .map(|server| Scope::Region(server.trim_end_matches("-1").to_owned()));
        regions.chain([Scope::Fleet]).all(|scope| coordinated.contains(&scope))
            && status.iter().all(|(_, s)| s.driver.due == 0 && s.driver.running == 0)
    }

    /// Controllers that run, with the servers that run them.
    pub(crate) fn status(&self) -> Vec<(String, crate::ControllerStatus)> {
        let nodes = self.nodes.iter();
        nodes
            .flat_map(|(server, node)| node.regions.status().into_iter().map(|s| (server.clone(), s)))
            .collect()
    }

    /// Servers that think that they coordinate `scope`.
    pub(crate) fn coordinators(&self, scope: &Scope) -> BTreeSet<String> {
        self.status()
            .into_iter()
            .filter(|(_, s)| s.scope == *scope)
            .map(|(server, _)| server)
            .collect()
    }

    /// Commits so far that changed anything but leases.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    pub(crate) async fn get<Spec, Stat>(&self, kind: KindName, address: &Address) -> Option<(Object<Spec, Stat>, i64)>
    where
        Object<Spec, Stat>: DeserializeOwned,
    {
        let stored = self.objects.get(&address.key(kind)).await.unwrap()?;
        Some((serde_json::from_slice(&stored.value).unwrap(), stored.revision))
    }

    pub(crate) async fn vci(&self, name: &str) -> Option<VirtualClusterInstance> {
        self.get(VIRTUAL_CLUSTER_INSTANCES, &at(name)).await.map(|(vci, _)| vci)
    }

    pub(crate) async fn store(&self, name: &str) -> Option<TenantStore> {
        self.get(TENANT_STORES, &at(name)).await.map(|(store, _)| store)
    }

    pub(crate) async fn cluster(&self, name: &str) -> Cluster {
        self.get(CLUSTERS, &Address::global(name)).await.unwrap().0
    }

    pub(crate) async fn region(&self, name: &str) -> Region {
        self.get(REGIONS, &Address::global(name)).await.unwrap().0
    }

    pub(crate) async fn lease(&self, scope: &Scope) -> (String, i64) {
        let (lease, revision): (RegionLease, i64) = self
            .get(REGION_LEASES, &Address::global(scope.lease_name()))
            .await
            .unwrap();
        (lease.spec.holder, revision)
    }

    /// Creates a tenant cluster, as the gateway would.
    pub(crate) async fn create_vci(&self, name: &str, wanted_region: Option<&str>) {
        let mut vci = vci(name);
        vci.metadata.uid = self.rng.uuid();
        if let Some(region) = wanted_region {
            vci.metadata
                .annotations
                .insert(hanse_api::kinds::ANNOTATION_WANTED_REGION.into(), region.into());
        }
        let op = Op::Create {
            key: at(name).key(VIRTUAL_CLUSTER_INSTANCES),
            value: encode(&vci).unwrap(),
        };
        self.objects.commit(vec![op]).await.unwrap();
    }

    /// Asks for deletion, as the gateway would: a mark if there is a finalizer, else the end.
    pub(crate) async fn delete_vci(&self, name: &str) {
        let (mut vci, revision): (VirtualClusterInstance, i64) =
            self.get(VIRTUAL_CLUSTER_INSTANCES, &at(name)).await.unwrap();
        let key: ObjectKey = at(name).key(VIRTUAL_CLUSTER_INSTANCES);
        let op = if vci.metadata.finalizers.is_empty() {
            Op::Delete {
                key,
                expected: revision,
            }
        } else {
            vci.metadata.deletion_timestamp = Some(self.clock.wall());
            Op::Update {
                key,
                value: encode(&vci).unwrap(),
                expected: revision,
            }
        };
        self.objects.commit(vec![op]).await.unwrap();
    }

    pub(crate) fn clock_now(&self) -> Duration {
        self.clock.mono()
    }

    pub(crate) fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// The store of the tenants' key spaces.
    pub(crate) fn tenant_store(&self) -> &Arc<dyn Store> {
        &self.tenants
    }
}
