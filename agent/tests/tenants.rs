//! Tenants whose programs are small scripts: what the agent does when processes and hosts misbehave.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use hanse_agent::tools::KubeTools;
use hanse_agent::{Agent, AgentConfig, AgentError, Deps, PortRange, SimulationConfig, process, stop_all};
use hanse_api::intent::{AgentReport, Intent, KeyPair, TenantIntent, TenantPki, TenantReport, TenantState};
use hanse_runtime::clock::{Clock, SystemClock};
use hanse_runtime::pki::{Ca, LeafSpec};
use hanse_runtime::rng::SystemRng;
use hanse_runtime::supervisor::Supervisor;
use hanse_runtime::telemetry::Format;
use hanse_tunnel::testing::TestPki;
use hanse_tunnel::{AgentEvents, Body, StoreHead, TunnelError, Uplink};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const RUNS: &str = "exec sleep 600";

#[derive(Default)]
struct Reports(Mutex<Vec<AgentReport>>);

#[async_trait::async_trait]
impl Uplink for Reports {
    async fn store_call(&self, _head: StoreHead, _body: Body) -> Result<http::Response<Body>, TunnelError> {
        Err(TunnelError::NotConnected {
            peer: "any server".into(),
        })
    }

    fn report(&self, report: bytes::Bytes) {
        self.0.lock().unwrap().push(serde_json::from_slice(&report).unwrap());
    }
}

struct World {
    dir: tempfile::TempDir,
    system: TestPki,
    pki: TenantPki,
    first_port: u16,
}

struct Running {
    agent: Arc<Agent>,
    supervisor: Supervisor,
    reports: Arc<Reports>,
}

impl World {
    fn new() -> Self {
        let now = SystemClock::new().wall();
        let ca = Ca::generate("tenant", 1, now).unwrap();
        let spec = LeafSpec {
            common_name: "admin".into(),
            client: true,
            days: 1,
            ..LeafSpec::default()
        };
        let any = KeyPair {
            cert: "cert".into(),
            key: "key".into(),
        };
        let pki = TenantPki {
            ca: ca.key_pair(),
            admin: ca.issue(&spec, now).unwrap(),
            controller_manager: any.clone(),
            scheduler: any.clone(),
            kubelet_client: any.clone(),
            service_account: any,
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let first_port = listener.local_addr().unwrap().port();
        Self {
            dir: tempfile::tempdir().unwrap(),
            system: TestPki::new(now).unwrap(),
            pki,
            first_port,
        }
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    fn config(&self) -> AgentConfig {
        AgentConfig {
            cluster: "eu".into(),
            data_dir: self.data_dir(),
            region: String::new(),
            ca_file: "unused".into(),
            enrolment_token_file: None,
            kube_tools: None,
            listen_address: "127.0.0.1".parse().unwrap(),
            ports: PortRange {
                first: self.first_port,
                last: self.first_port.saturating_add(300),
            },
            simulation: SimulationConfig::default(),
            log_format: Format::Text,
            servers: Vec::new(),
        }
    }

    /// `script` stands for kube-apiserver; the others never get to run, because it never serves.
    async fn try_agent(&self, script: &str) -> Result<Running, AgentError> {
        let program = self.dir.path().join("kube-apiserver");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let tools = KubeTools {
            apiserver: program.clone(),
            controller_manager: program.clone(),
            scheduler: program,
            kwok: None,
        };
        let supervisor = Supervisor::default();
        let deps = Deps {
            clock: SystemClock::shared(),
            rng: SystemRng::shared(),
            supervisor: supervisor.clone(),
            version: "v9".into(),
        };
        let ca = self.system.ca().unwrap();
        let agent = Agent::start_offline(&self.config(), &deps, tools, &ca).await?;
        let reports = Arc::new(Reports::default());
        agent.attach(reports.clone());
        Ok(Running {
            agent,
            supervisor,
            reports,
        })
    }

    async fn agent(&self, script: &str) -> Running {
        self.try_agent(script).await.unwrap()
    }

    fn intent(&self, revision: i64, tenants: &[&str]) -> bytes::Bytes {
        let tenant = |name: &&str| TenantIntent {
            tenant: (*name).into(),
            epoch: 1,
            pki: Some(self.pki.clone()),
            ..TenantIntent::default()
        };
        let tenants = tenants.iter().map(tenant).collect();
        let intent = Intent {
            cluster: "eu".into(),
            epoch: 1,
            revision,
            tenants,
        };
        serde_json::to_vec(&intent).unwrap().into()
    }

    fn records(&self, tenant: &str) -> Vec<process::Record> {
        process::load_all(&self.data_dir().join("tenants").join(tenant).join("run")).unwrap()
    }

    fn pid(&self, tenant: &str) -> Option<i32> {
        self.records(tenant)
            .into_iter()
            .find(|record| record.is_alive().unwrap())?
            .pid
    }

    /// Waits for a process that is not `before`. It is looked up once: a record changes while its process starts.
    async fn runs(&self, tenant: &str, before: Option<i32>) -> i32 {
        let mut found = None;
        until("it runs", || {
            found = self.pid(tenant).filter(|pid| Some(*pid) != before);
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    fn given_ports(&self) -> BTreeMap<String, u16> {
        serde_json::from_slice(&std::fs::read(self.data_dir().join("ports.json")).unwrap()).unwrap()
    }

    async fn end(self) {
        stop_all(&self.data_dir(), Duration::ZERO, &SystemClock::new())
            .await
            .unwrap();
    }
}

impl Running {
    fn of(&self, tenant: &str) -> TenantReport {
        self.agent
            .board()
            .all()
            .into_iter()
            .find(|report| report.tenant == tenant)
            .unwrap_or_default()
    }

    async fn end(self) {
        self.supervisor.shut_down(Duration::from_secs(2)).await;
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_killed_process_is_started_again_after_a_wait() {
    let world = World::new();
    let running = world.agent(RUNS).await;
    running.agent.intent("eu-1", world.intent(1, &["a"]));
    let mut last = world.runs("a", None).await;
    assert_eq!(running.of("a").state, TenantState::Starting);
    for n in 1..=3 {
        let pid = rustix::process::Pid::from_raw(last).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        until("it is counted", || running.of("a").restarts == n).await;
        last = world.runs("a", Some(last)).await;
    }
    assert!(
        running.of("a").message.contains("ended by signal 9"),
        "{:?}",
        running.of("a")
    );
    running.end().await;
    world.end().await;
}

#[tokio::test]
async fn one_that_ends_again_and_again_fails_with_its_last_words() {
    let world = World::new();
    let running = world.agent("echo 'Error: bad flag'; exit 3").await;
    running.agent.intent("eu-1", world.intent(1, &["a"]));
    until("it counts as failed", || running.of("a").state == TenantState::Failed).await;
    let message = running.of("a").message;
    assert!(
        message.contains("kube-apiserver exited with code 3") && message.contains("Error: bad flag"),
        "{message}"
    );
    // The same tenant can still be taken away.
    running.agent.intent("eu-1", world.intent(2, &[]));
    until("it is gone", || running.agent.board().all().is_empty()).await;
    assert!(!world.data_dir().join("tenants/a").exists());
    running.end().await;
}

#[tokio::test]
async fn a_port_that_something_else_took_is_replaced() {
    let world = World::new();
    let running = world.agent(RUNS).await;
    running.agent.intent("eu-1", world.intent(1, &["a"]));
    until("it runs", || world.pid("a").is_some()).await;
    running.end().await;
    stop_all(&world.data_dir(), Duration::ZERO, &SystemClock::new())
        .await
        .unwrap();
    let before = world.given_ports()["a/kube-apiserver"];
    let taken = std::net::TcpListener::bind(("127.0.0.1", before)).unwrap();
    let running = world.agent(RUNS).await;
    until("it runs", || world.pid("a").is_some()).await;
    let after = world.given_ports()["a/kube-apiserver"];
    assert_ne!(before, after);
    assert_eq!(world.records("a")[0].ports, [after]);
    drop(taken);
    running.end().await;
    world.end().await;
}

#[tokio::test]
async fn a_restarted_agent_adopts_and_goes_on_with_its_journal() {
    let world = World::new();
    let running = world.agent(RUNS).await;
    running.agent.intent("eu-1", world.intent(5, &["a", "b"]));
    until("both run", || world.pid("a").is_some() && world.pid("b").is_some()).await;
    // A second agent on the same directory would start everything twice.
    let second = world.try_agent(RUNS).await.err().unwrap();
    assert!(
        hanse_runtime::supervisor::chain(&second).contains("another agent runs"),
        "{second}"
    );
    let pids = (world.pid("a"), world.pid("b"));
    running.end().await;
    let running = world.agent(RUNS).await;
    until("both are reported", || running.agent.board().all().len() == 2).await;
    assert_eq!((world.pid("a"), world.pid("b")), pids);
    // Stale intents change nothing, whoever sends them; the newest does.
    running.agent.intent("eu-1", world.intent(4, &[]));
    running.agent.intent("us-1", world.intent(6, &["a"]));
    until("b is gone", || !world.data_dir().join("tenants/b").exists()).await;
    assert_eq!(world.pid("a"), pids.0);
    until("the report says which intent", || {
        let reports = running.reports.0.lock().unwrap();
        let last = reports.last();
        last.is_some_and(|report| report.intent_revision == 6 && report.tenants.len() == 1 && report.version == "v9")
    })
    .await;
    running.end().await;
    world.end().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_said_and_harms_no_other_tenant() {
    let world = World::new();
    let running = world.agent(RUNS).await;
    let mut intent: Intent = serde_json::from_slice(&world.intent(1, &["a", "../b", "nokeys", "sim"])).unwrap();
    intent.tenants[2].pki = None;
    intent.tenants[3].simulated_nodes = 1;
    running
        .agent
        .intent("eu-1", serde_json::to_vec(&intent).unwrap().into());
    until("a runs", || world.pid("a").is_some()).await;
    for (tenant, words) in [("../b", "no valid id"), ("nokeys", "carries no keys"), ("sim", "kwok")] {
        until(words, || running.of(tenant).state == TenantState::Failed).await;
        assert!(running.of(tenant).message.contains(words), "{:?}", running.of(tenant));
    }
    running.agent.intent("eu-1", world.intent(2, &["a"]));
    until("only a is reported", || running.agent.board().all().len() == 1).await;
    running.end().await;
    world.end().await;
}

#[tokio::test]
async fn keys_are_private_on_disk() {
    let world = World::new();
    let running = world.agent(RUNS).await;
    running.agent.intent("eu-1", world.intent(1, &["a"]));
    until("it runs", || world.pid("a").is_some()).await;
    let mut open = vec![world.data_dir()];
    let mut files = 0;
    while let Some(path) = open.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        if metadata.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.file_name().is_some_and(|name| name != "agent.lock") {
            assert_eq!(mode, 0o600, "{}", path.display());
            files += 1;
        }
    }
    assert!(files > 20);
    running.end().await;
    world.end().await;
}
