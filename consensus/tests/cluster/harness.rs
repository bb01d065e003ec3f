//! Servers in one process, each on a runtime of its own, joined by real TLS over loopback. Killing one drops its runtime
//! and with it every task, timer and socket at once, as close to `kill -9` as one process gets.

use hanse_api::Timestamp;
use hanse_consensus::{
    GROUPS, GroupId, Member, Node, NodeConfig, NodeId, NodeParts, ReplicatedStore, Settings, TlsPem,
};
use hanse_runtime::clock::SystemClock;
use hanse_runtime::pki::{Ca, LeafSpec};
use hanse_runtime::rng::SystemRng;
use hanse_runtime::supervisor::Supervisor;
use hanse_state::engine::{LogWriter, MemoryEngine, RocksEngine, RocksOptions, SharedEngine, WriterOptions};
use hanse_state::pb::{self, compare, request_op::Request};
use hanse_state::{Access, Store, StoreError};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// For whatever should happen soon; generous, because test machines are slow and busy.
pub const SOON: Duration = Duration::from_secs(120);

pub fn now() -> Timestamp {
    use hanse_runtime::clock::Clock;
    SystemClock::new().wall()
}

pub fn leaf(ca: &Ca, uri: &str) -> TlsPem {
    leaf_at(ca, uri, Ipv4Addr::LOCALHOST.into())
}

/// For a server that listens at `ip`, and dials from 127.0.0.1.
fn leaf_at(ca: &Ca, uri: &str, ip: IpAddr) -> TlsPem {
    let spec = LeafSpec {
        common_name: "server".into(),
        uris: vec![uri.to_owned()],
        ips: vec![ip, Ipv4Addr::LOCALHOST.into()],
        client: true,
        server: true,
        days: 1,
        ..Default::default()
    };
    let pair = ca.issue(&spec, now()).unwrap();
    TlsPem {
        ca: ca.cert_pem().to_owned(),
        cert: pair.cert,
        key: pair.key,
    }
}

/// What of a server outlives its process.
pub struct Machine {
    pub member: Member,
    pub dir: TempDir,
    address: SocketAddr,
    memory: Option<SharedEngine>,
}

/// A running server.
pub struct Process {
    pub node: Node,
    /// What failed in it, if anything did.
    pub supervisor: Supervisor,
    runtime: Option<Runtime>,
}

impl Process {
    /// Runs `task` in the server's runtime; none if the server was killed meanwhile.
    pub async fn run<T, F>(&self, task: impl FnOnce(Node) -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let runtime = self.runtime.as_ref()?;
        runtime.spawn(task(self.node.clone())).await.ok()
    }

    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.runtime.as_ref().unwrap().spawn(task)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub struct Cluster {
    pub ca: Ca,
    pub machines: BTreeMap<NodeId, Machine>,
    pub processes: BTreeMap<NodeId, Process>,
    pub settings: Settings,
    pub rocks: bool,
    /// Members at the formation.
    pub founders: BTreeMap<NodeId, Member>,
    /// Ways from a server to another that tests can cut; empty: they go straight.
    pub links: BTreeMap<(NodeId, NodeId), Link>,
}

impl Cluster {
    /// Machines, none of which runs.
    pub fn prepare(servers: u64, rocks: bool, settings: Settings) -> Self {
        let mut cluster = Self {
            ca: Ca::generate("test", 10, now()).unwrap(),
            machines: BTreeMap::new(),
            processes: BTreeMap::new(),
            settings,
            rocks,
            founders: BTreeMap::new(),
            links: BTreeMap::new(),
        };
        for id in 1..=servers {
            cluster.add_machine(id);
        }
        cluster.founders = cluster
            .machines
            .iter()
            .map(|(id, machine)| (*id, machine.member.clone()))
            .collect();
        cluster
    }

    pub async fn start(servers: u64, rocks: bool, settings: Settings) -> Self {
        let mut cluster = Self::prepare(servers, rocks, settings);
        cluster.boot_all().await;
        cluster.ready().await;
        cluster
    }

    /// The same, with every way between two servers through a link.
    pub async fn start_linked(servers: u64, settings: Settings) -> Self {
        let mut cluster = Self::prepare(servers, false, settings);
        for from in 1..=servers {
            for to in (1..=servers).filter(|to| *to != from) {
                let link = Link::start(cluster.machines[&to].address).await;
                cluster.links.insert((from, to), link);
            }
        }
        cluster.boot_all().await;
        cluster.ready().await;
        cluster
    }

    /// Nothing goes through between `id` and the others any more, in both directions, or everything does again.
    pub fn isolate(&self, id: NodeId, cut: bool) {
        for ((from, to), link) in &self.links {
            if *from == id || *to == id {
                link.cut(cut);
            }
        }
    }

    pub fn add_machine(&mut self, id: NodeId) {
        // Bound once to learn a free port; the server binds it again.
        let listener = std::net::TcpListener::bind((own_address(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let member = Member {
            name: format!("s{id}"),
            address: address.to_string(),
        };
        let memory = (!self.rocks).then(|| Arc::new(MemoryEngine::new()) as SharedEngine);
        let dir = tempfile::tempdir().unwrap();
        self.machines.insert(
            id,
            Machine {
                member,
                dir,
                address,
                memory,
            },
        );
    }

    pub fn data_dir(&self, id: NodeId) -> PathBuf {
        self.machines[&id].dir.path().to_owned()
    }

    /// Everything that the server of this id had on disk is gone.
    pub fn wipe(&mut self, id: NodeId) {
        let machine = self.machines.get_mut(&id).unwrap();
        machine.dir = tempfile::tempdir().unwrap();
        machine.memory = machine
            .memory
            .as_ref()
            .map(|_| Arc::new(MemoryEngine::new()) as SharedEngine);
    }

    /// The machine of `old` is from now on that of `new`, without data.
    pub fn renumber(&mut self, old: NodeId, new: NodeId) {
        let machine = self.machines.remove(&old).unwrap();
        self.machines.insert(new, machine);
        self.founders.remove(&old);
        self.wipe(new);
    }

    /// Starts a server, as its process would: opens the engine, listens, joins.
    pub async fn try_boot(&mut self, id: NodeId) -> Result<(), hanse_consensus::ConsensusError> {
        let machine = &self.machines[&id];
        let mut members = self.founders.clone();
        members.insert(id, machine.member.clone());
        let config = NodeConfig {
            id,
            name: machine.member.name.clone(),
            listen: machine.address.to_string(),
            data_dir: machine.dir.path().to_owned(),
            tls: leaf_at(
                &self.ca,
                &format!("hanse://server/{}", machine.member.name),
                machine.address.ip(),
            ),
            members,
            addresses: self
                .links
                .iter()
                .filter(|((from, _), _)| *from == id)
                .map(|((_, to), link)| (*to, link.address.to_string()))
                .collect(),
            settings: self.settings.clone(),
            version: "test".into(),
        };
        let engine = match &machine.memory {
            Some(memory) => Arc::clone(memory),
            None => open_rocks(machine.dir.path().join("db")).await,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let supervisor = Supervisor::default();
        let parts_supervisor = supervisor.clone();
        let address = machine.address;
        let started = runtime.spawn(async move {
            let parts = NodeParts {
                writer: LogWriter::start(engine, WriterOptions::default()).unwrap(),
                supervisor: parts_supervisor,
                clock: SystemClock::shared(),
                rng: SystemRng::shared(),
                listener: Some(bind(address).await),
            };
            Node::start(config, parts).await
        });
        match started.await.unwrap() {
            Ok(node) => {
                self.processes.insert(
                    id,
                    Process {
                        node,
                        supervisor,
                        runtime: Some(runtime),
                    },
                );
                Ok(())
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    pub async fn boot(&mut self, id: NodeId) {
        self.try_boot(id).await.unwrap();
    }

    pub async fn boot_all(&mut self) {
        for id in self.machines.keys().copied().collect::<Vec<_>>() {
            self.boot(id).await;
        }
    }

    /// Forms or joins, on all servers at once, and waits for leaders.
    pub async fn ready(&self) {
        let joins = self.processes.values().map(|process| {
            process.run(|node| async move {
                node.initialize(SOON).await.unwrap();
                node.wait_for_leaders(SOON).await.unwrap();
            })
        });
        for joined in futures::future::join_all(joins).await {
            joined.unwrap();
        }
    }

    pub fn kill(&mut self, id: NodeId) {
        drop(self.processes.remove(&id).unwrap());
    }

    pub fn store(&self, id: NodeId, group: GroupId) -> Arc<ReplicatedStore> {
        self.processes[&id].node.store(group).unwrap()
    }

    /// Who leads a group, in the view of the servers that run.
    pub async fn leader(&self, group: GroupId) -> NodeId {
        wait_for("a leader", || {
            let views = self
                .processes
                .values()
                .map(|process| process.node.leadership(group).unwrap().borrow().clone());
            let mut leaders = views.filter(|view| view.here).map(|view| (view.term, view.leader));
            leaders.next().and_then(|(_, leader)| leader)
        })
        .await
    }

    /// A write on one server.
    pub async fn put(&self, id: NodeId, key: &str, value: &str) -> Result<i64, StoreError> {
        let process = self.processes.get(&id).ok_or(StoreError::Stopped)?;
        let (store, request) = (process.node.tenants(), put(key, value));
        let answer = process
            .run(|_| async move { store.txn(&access(), request).await })
            .await;
        answer
            .unwrap_or(Err(StoreError::Stopped))
            .map(|response| response.header.unwrap().revision)
    }

    /// A linearizable read on one server.
    pub async fn get(&self, id: NodeId, key: &str) -> Result<Option<String>, StoreError> {
        let (store, request) = (self.store(id, GroupId::TENANTS), get(key));
        let answer = self.processes[&id]
            .run(|_| async move { store.range(&access(), request).await })
            .await;
        let response = answer.unwrap_or(Err(StoreError::Stopped))?;
        Ok(response
            .kvs
            .first()
            .map(|kv| String::from_utf8(kv.value.to_vec()).unwrap()))
    }

    /// No vital task of any server has failed.
    pub fn healthy(&self) {
        for (id, process) in &self.processes {
            assert_eq!(process.supervisor.failure(), None, "server {id}");
        }
    }

    /// Waits until every running server has applied what the leader has, and compares their content.
    pub async fn agree(&self) {
        self.healthy();
        for group in GROUPS {
            let stores: Vec<_> = self.processes.keys().map(|id| self.store(*id, group)).collect();
            wait_for("equal revisions", || {
                let revisions: Vec<i64> = stores.iter().map(|store| store.revision()).collect();
                revisions.iter().all(|revision| *revision == revisions[0]).then_some(())
            })
            .await;
        }
        let mut hashes = Vec::new();
        for id in self.processes.keys() {
            let store = self.store(*id, GroupId::TENANTS);
            hashes.push(
                self.processes[id]
                    .run(|_| async move { store.hash(&access()).await.unwrap() })
                    .await
                    .unwrap(),
            );
        }
        assert!(
            hashes.iter().all(|hash| *hash == hashes[0]),
            "members disagree: {hashes:?}"
        );
    }
}

/// A way between two servers. While it is cut, bytes stay where they are and new connections get no answer.
pub struct Link {
    pub address: SocketAddr,
    /// Connections that were made through it.
    pub connections: Arc<AtomicUsize>,
    /// Bytes that went through it to its target.
    pub bytes: Arc<AtomicU64>,
    /// A connection breaks when so many have gone through since the last one broke.
    pub breaks_after: Arc<AtomicU64>,
    /// It is cut when so many have gone through.
    pub cuts_at: Arc<AtomicU64>,
    cut: watch::Sender<bool>,
    mute: watch::Sender<bool>,
    /// Counts up to end the connections that there are.
    broken: watch::Sender<u32>,
    listening: tokio::task::AbortHandle,
}

impl Link {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, cut) = (listener.local_addr().unwrap(), watch::Sender::new(false));
        let (state, connections) = (cut.subscribe(), Arc::<AtomicUsize>::default());
        let (count, broken) = (Arc::clone(&connections), watch::Sender::new(0));
        let breaks = broken.clone();
        let (bytes, breaks_after) = (Arc::<AtomicU64>::default(), Arc::new(AtomicU64::new(u64::MAX)));
        let (cuts_at, mute) = (Arc::new(AtomicU64::new(u64::MAX)), watch::Sender::new(false));
        let answers = mute.subscribe();
        let meter = Meter {
            bytes: Arc::clone(&bytes),
            breaks_after: Arc::clone(&breaks_after),
            broke_at: Arc::default(),
            cuts_at: Arc::clone(&cuts_at),
            cut: cut.clone(),
        };
        let listening = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (state, answers, mut broken) = (state.clone(), answers.clone(), breaks.subscribe());
                let meter = meter.clone();
                tokio::spawn(async move {
                    open(&state).await?;
                    let far = TcpStream::connect(target).await.ok()?;
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::select! {
                        _ = pump(near_in, far_out, vec![state.clone()], Some(meter)) => {}
                        _ = pump(far_in, near_out, vec![state, answers], None) => {}
                        _ = broken.changed() => {}
                    }
                    Some(())
                });
            }
        });
        Self {
            address,
            connections,
            bytes,
            breaks_after,
            cuts_at,
            cut,
            mute,
            broken,
            listening: listening.abort_handle(),
        }
    }

    /// Ends the connections that go through now. New ones can be made.
    pub fn break_off(&self) {
        self.broken.send_modify(|count| *count += 1);
    }

    /// From now on nobody listens: connections are refused. Those that are open stay.
    pub fn close(&self) {
        self.listening.abort();
    }

    pub fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// Holds back what the other side answers.
    pub fn mute(&self, mute: bool) {
        self.mute.send_replace(mute);
    }
}

async fn open(state: &watch::Receiver<bool>) -> Option<()> {
    state.clone().wait_for(|cut| !cut).await.ok().map(|_| ())
}

/// Counts what goes through a link, breaks a connection every so many bytes, and cuts the link after so many.
#[derive(Clone)]
struct Meter {
    bytes: Arc<AtomicU64>,
    breaks_after: Arc<AtomicU64>,
    broke_at: Arc<AtomicU64>,
    cuts_at: Arc<AtomicU64>,
    cut: watch::Sender<bool>,
}

impl Meter {
    /// None: the connection breaks.
    fn count(&self, more: usize) -> Option<()> {
        let bytes = self.bytes.fetch_add(more as u64, Ordering::SeqCst) + more as u64;
        if bytes >= self.cuts_at.load(Ordering::SeqCst) {
            self.cut.send_replace(true);
        }
        if bytes - self.broke_at.load(Ordering::SeqCst) < self.breaks_after.load(Ordering::SeqCst) {
            return Some(());
        }
        self.broke_at.store(bytes, Ordering::SeqCst);
        None
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    states: Vec<watch::Receiver<bool>>,
    meter: Option<Meter>,
) -> Option<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        for state in &states {
            open(state).await?;
        }
        to.write_all(&buffer[..read]).await.ok()?;
        if let Some(meter) = &meter {
            meter.count(read)?;
        }
    }
}

/// A loopback address that nobody else uses: on 127.0.0.1 the port of a server that is down may become that of some connection.
fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 128 | high, low, NEXT.fetch_add(1, Ordering::Relaxed))
}

async fn bind(address: SocketAddr) -> TcpListener {
    // The killed process's sockets are closed by its runtime's threads, a moment after.
    wait_for("the port", || {
        let listener = std::net::TcpListener::bind(address).ok()?;
        listener.set_nonblocking(true).ok()?;
        TcpListener::from_std(listener).ok()
    })
    .await
}

async fn open_rocks(path: PathBuf) -> SharedEngine {
    let options = RocksOptions {
        block_cache: 4 << 20,
        memtable: 1 << 20,
        ..RocksOptions::default()
    };
    wait_for("the database's lock", || {
        RocksEngine::open(&path, &options)
            .ok()
            .map(|e| Arc::new(e) as SharedEngine)
    })
    .await
}

pub async fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < SOON, "no {what} within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether it comes true within `limit`.
pub async fn wait_until(limit: Duration, mut look: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !look() {
        if start.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

pub fn access() -> Access {
    Access::tenant("t")
}

pub fn put(key: &str, value: &str) -> pb::TxnRequest {
    let put = pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    };
    pb::TxnRequest {
        success: vec![pb::RequestOp {
            request: Some(Request::RequestPut(put)),
        }],
        ..Default::default()
    }
}

/// A put that succeeds only if the key does not exist.
pub fn create(key: &str, value: &str) -> pb::TxnRequest {
    let absent = pb::Compare {
        result: compare::CompareResult::Equal as i32,
        target: compare::CompareTarget::Mod as i32,
        key: key.to_owned().into(),
        target_union: Some(compare::TargetUnion::ModRevision(0)),
        ..Default::default()
    };
    pb::TxnRequest {
        compare: vec![absent],
        ..put(key, value)
    }
}

pub fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.to_owned().into(),
        ..Default::default()
    }
}

/// A leader that the machine gives no time for a second or two keeps its office. For tests in which no write may fail although no leader
/// dies: with the usual times a busy machine changes leaders by itself.
pub fn patient(settings: Settings) -> Settings {
    Settings {
        election_min: Duration::from_secs(2),
        election_max: Duration::from_secs(4),
        ..settings
    }
}

/// Many entries, so that logs are purged early.
pub fn eager_snapshots() -> Settings {
    Settings {
        snapshot_every: 60,
        keep_entries: 10,
        purge_stride: 10,
        ..Settings::default()
    }
}
