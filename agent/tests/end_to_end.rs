//! A whole tenant on real parts: kube-apiserver over the store socket, simulated nodes, kubectl through the proxy; the
//! agent restarts, processes die, and in the end nothing is left.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use hanse_agent::tools::{KubeTools, Search};
use hanse_agent::{Agent, AgentConfig, Deps, PortRange, ServerEntry, SimulationConfig, process};
use hanse_api::access::{GROUP_AUTHENTICATED, GROUP_TENANT_ADMINS, Principal};
use hanse_api::intent::{Intent, TenantIntent, TenantPki, TenantReport, TenantState};
use hanse_runtime::clock::{Clock, SystemClock};
use hanse_runtime::rng::SystemRng;
use hanse_runtime::supervisor::Supervisor;
use hanse_runtime::telemetry::Format;
use hanse_tunnel::AgentEvents;
use hanse_tunnel::assertion::Signer;
use hanse_tunnel::testing::TestPki;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Etcd, EtcdUplink, front, tenant_pki};
use tokio::io::{AsyncBufReadExt, BufReader};

const TENANT: &str = "tenant-one";
/// For one step; all of them together take less.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    dir: tempfile::TempDir,
    system: TestPki,
    pki: TenantPki,
    tools: KubeTools,
    etcd: Etcd,
    started: Instant,
}

impl World {
    async fn new() -> Self {
        let mut dir = tempfile::tempdir().unwrap();
        // To look at logs afterwards.
        dir.disable_cleanup(std::env::var_os("HANSE_TEST_KEEP").is_some());
        let tools = Search::from_env(None).find().unwrap();
        let etcd = Etcd::start(&tools.apiserver.with_file_name("etcd"), dir.path()).await;
        let system = TestPki::new(SystemClock::new().wall()).unwrap();
        Self {
            dir,
            system,
            pki: tenant_pki(),
            tools,
            etcd,
            started: Instant::now(),
        }
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    fn run_dir(&self) -> PathBuf {
        self.data_dir().join("tenants").join(TENANT).join("run")
    }

    fn say(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.started.elapsed().as_secs_f64());
    }

    /// An agent as a process would have it, with tasks of its own.
    async fn agent(&self) -> (Arc<Agent>, Supervisor) {
        let first = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = AgentConfig {
            cluster: "eu".into(),
            data_dir: self.data_dir(),
            region: "eu".into(),
            ca_file: "unused".into(),
            enrolment_token_file: None,
            kube_tools: None,
            listen_address: "127.0.0.1".parse().unwrap(),
            ports: PortRange {
                first,
                last: first.saturating_add(500),
            },
            simulation: SimulationConfig { exec_on_host: true },
            log_format: Format::Text,
            servers: vec![ServerEntry {
                name: "eu-1".into(),
                region: "eu".into(),
                address: "127.0.0.1:1".parse().unwrap(),
            }],
        };
        let supervisor = Supervisor::default();
        let deps = Deps {
            clock: SystemClock::shared(),
            rng: SystemRng::shared(),
            supervisor: supervisor.clone(),
            version: "test".into(),
        };
        let ca = self.system.ca().unwrap();
        let agent = Agent::start_offline(&config, &deps, self.tools.clone(), &ca)
            .await
            .unwrap();
        agent.attach(Arc::new(EtcdUplink::new(&self.etcd).await));
        (agent, supervisor)
    }

    fn intent(&self, revision: i64, nodes: Option<u32>) -> bytes::Bytes {
        let tenants = nodes.map(|simulated_nodes| TenantIntent {
            tenant: TENANT.into(),
            project: "default".into(),
            name: "demo".into(),
            epoch: 1,
            simulated_nodes,
            simulated_gpus: 4,
            pki: Some(self.pki.clone()),
        });
        let intent = Intent {
            cluster: "eu".into(),
            epoch: 1,
            revision,
            tenants: tenants.into_iter().collect(),
        };
        serde_json::to_vec(&intent).unwrap().into()
    }

    /// Pids by name of process.
    fn pids(&self) -> BTreeMap<String, i32> {
        let records = process::load_all(&self.run_dir()).unwrap();
        records
            .into_iter()
            .filter_map(|record| Some((record.name, record.pid?)))
            .collect()
    }

    async fn kubectl(&self, agent: &Arc<Agent>) -> Kubectl {
        let signer = Signer::new(&self.system.server("eu-1").unwrap()).unwrap();
        let agent: Arc<dyn AgentEvents> = agent.clone();
        let front = front(Arc::downgrade(&agent), signer, TENANT, ann()).await;
        let cache = self.dir.path().join("kube-cache");
        Kubectl {
            program: self.tools.apiserver.with_file_name("kubectl"),
            server: format!("http://{front}"),
            cache,
        }
    }
}

struct Kubectl {
    program: PathBuf,
    server: String,
    cache: PathBuf,
}

impl Kubectl {
    fn command(&self, args: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        command
            .args(["--server", &self.server, "--kubeconfig", "/dev/null", "--cache-dir"])
            .arg(&self.cache);
        command.args(args.split(' ')).kill_on_drop(true);
        command
    }

    async fn run(&self, args: &str) -> Result<String, String> {
        let output = self.command(args).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }

    /// Statuses that requests for ConfigMaps get until one is answered well.
    async fn until_answered(&self) -> Vec<String> {
        let address = self.server.trim_start_matches("http://");
        let mut statuses = BTreeSet::new();
        until("an answer", async || {
            let path = "/api/v1/namespaces/default/configmaps";
            let answer = fetch(address, path, |text| text.contains("\r\n\r\n")).await;
            let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
            let well = status == "200";
            if !well {
                statuses.insert(status);
            }
            well
        })
        .await;
        statuses.into_iter().collect()
    }

    async fn ok(&self, args: &str) -> String {
        self.run(args)
            .await
            .unwrap_or_else(|error| panic!("kubectl {args}: {error}"))
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn report(agent: &Agent) -> TenantReport {
    agent
        .board()
        .all()
        .into_iter()
        .find(|report| report.tenant == TENANT)
        .unwrap_or_default()
}

async fn ready(agent: &Agent, world: &World) {
    let mut last = TenantReport::default();
    until("the tenant is ready", async || {
        let now = report(agent);
        if now != last {
            world.say(&format!("{:?} {} {}", now.state, now.kubernetes_version, now.message));
            last = now;
        }
        last.state == TenantState::Ready && last.message.is_empty()
    })
    .await;
}

fn ann() -> Principal {
    Principal {
        user: "ann".into(),
        groups: vec![GROUP_AUTHENTICATED.into(), GROUP_TENANT_ADMINS.into()],
        ..Principal::default()
    }
}

fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_from_first_intent_to_last() {
    let _second = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter("hanse_agent=info")
        .with_test_writer()
        .try_init()
        .is_ok();
    let world = World::new().await;
    let (agent, supervisor) = world.agent().await;
    let guard = Cleanup(world.data_dir());
    agent.intent("eu-1", world.intent(1, Some(2)));
    let kubectl = world.kubectl(&agent).await;
    assert_eq!(
        kubectl.until_answered().await,
        ["503"],
        "users wait, they are not refused"
    );
    world.say("requests are answered");
    ready(&agent, &world).await;

    memory(&world);
    use_it(&world, &kubectl).await;
    memory(&world);

    dies(&world, "kube-scheduler").await;
    until("its end is counted", async || report(&agent).restarts == 1).await;

    // The agent restarts: the API server and the others go on, and are adopted.
    let before = world.pids();
    supervisor.shut_down(Duration::from_secs(2)).await;
    drop((agent, kubectl));
    assert!(
        before.values().all(|pid| is_running(*pid)),
        "processes outlive the agent"
    );
    world.say("the agent restarts");
    let (agent, supervisor) = world.agent().await;
    ready(&agent, &world).await;
    assert_eq!(world.pids(), before, "adopted, not restarted");
    let kubectl = world.kubectl(&agent).await;
    until("writes go on", async || {
        kubectl.run("create configmap after-restart").await.is_ok()
    })
    .await;
    world.say("adopted by a new agent");

    // An adopted process dies.
    dies(&world, "kwok").await;

    // So does its API server: the next one lets users in when it can judge them.
    dies(&world, "kube-apiserver").await;
    let refused = kubectl.until_answered().await;
    assert!(refused.iter().all(|status| status == "503"), "{refused:?}");
    ready(&agent, &world).await;

    // Fewer nodes restart nothing.
    let before = world.pids();
    agent.intent("eu-1", world.intent(2, Some(1)));
    until("one node is left", async || {
        kubectl.ok("get nodes -o name").await == "node/sim-1\n"
    })
    .await;
    assert_eq!(world.pids(), before);

    // No tenant any more: nothing is left.
    agent.intent("eu-1", world.intent(3, None));
    until("the tenant is gone", async || agent.board().all().is_empty()).await;
    assert!(!world.run_dir().exists());
    assert!(before.values().all(|pid| !is_running(*pid)));
    world.say("stopped and removed");
    supervisor.shut_down(Duration::from_secs(2)).await;
    drop(guard);
}

/// A process is killed: it, and it alone, is started again.
async fn dies(world: &World, name: &str) {
    let before = world.pids();
    kill(before[name]);
    let back = async || world.pids().get(name).is_some_and(|pid| *pid != before[name]);
    until("a killed process is back", back).await;
    let others = |pids: BTreeMap<String, i32>| pids.into_iter().filter(|(n, _)| n != name).collect::<Vec<_>>();
    assert_eq!(others(world.pids()), others(before));
    world.say(&format!("{name} was killed and is back"));
}

async fn use_it(world: &World, kubectl: &Kubectl) {
    kubectl.ok("create deployment web --image=nginx --replicas=3").await;
    kubectl.ok("rollout status deployment/web --timeout=60s").await;
    world.say("3 pods run");
    let pods = kubectl.ok("get pods -o wide").await;
    assert_eq!(pods.matches("Running").count(), 3, "{pods}");
    let gpus = kubectl
        .ok("get node sim-1 -o jsonpath={.status.allocatable.nvidia\\.com/gpu}")
        .await;
    assert_eq!(gpus, "4");
    assert!(kubectl.ok("logs deploy/web").await.contains("simulated"));
    world.say("logs");
    assert_eq!(
        kubectl
            .ok("exec deploy/web -- echo hello from $HANSE_SIMULATED_POD")
            .await,
        "hello from $HANSE_SIMULATED_POD\n"
    );
    world.say("exec");
    let mut forward = kubectl
        .command("port-forward deploy/web :80")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Kept open: kubectl ends when it cannot write.
    let mut said = BufReader::new(forward.stdout.take().unwrap()).lines();
    let line = said.next_line().await.unwrap().unwrap();
    let address = line
        .split_whitespace()
        .find(|word| word.starts_with("127.0.0.1:"))
        .unwrap()
        .to_owned();
    // kwok does not pass the end of the stream on.
    let answer = fetch(&address, "/", |text| text.contains("simulated")).await;
    assert!(answer.contains("simulated"), "{answer}");
    forward.kill().await.unwrap();
    world.say("port-forward");
    let mut watch = kubectl
        .command("get configmaps --watch-only -o name")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    // The watch may begin after the first of them.
    let create = async {
        for n in 0.. {
            kubectl.ok(&format!("create configmap seen-{n}")).await;
        }
    };
    let seen = tokio::select! {
        () = create => None,
        seen = tokio::time::timeout(PATIENCE, lines.next_line()) => Some(seen),
    };
    assert!(seen.unwrap().unwrap().unwrap().unwrap().starts_with("configmap/"));
    watch.kill().await.unwrap();
    world.say("watch");
}

async fn fetch(address: &str, path: &str, enough: impl Fn(&str) -> bool) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    while !enough(&text) {
        let mut part = [0; 1024];
        let n = stream.read(&mut part).await.unwrap();
        assert!(n > 0, "ended after {text:?}");
        text.push_str(&String::from_utf8_lossy(&part[..n]));
    }
    text
}

fn memory(world: &World) {
    for (name, pid) in world.pids() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let rss = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap_or_default();
        world.say(&format!("{name}: {rss}"));
    }
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Leaves no process behind when the test fails.
struct Cleanup(PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let dir: &Path = &self.0;
        let clock = SystemClock::new();
        let stop = hanse_agent::stop_all(dir, Duration::ZERO, &clock as &dyn Clock);
        let stopped = futures::executor::block_on(stop);
        if !std::thread::panicking() {
            assert_eq!(stopped.unwrap_or(usize::MAX), 0, "processes were left behind");
        }
    }
}
