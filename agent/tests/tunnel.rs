//! A whole agent against a server's end of the tunnel: enrolment, intents down, reports and store calls up.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use hanse_agent::{Agent, AgentConfig, AgentError, Deps};
use hanse_api::intent::{AgentReport, Intent};
use hanse_runtime::clock::{Clock, SystemClock};
use hanse_runtime::config::load;
use hanse_runtime::pki::{LeafSpec, sha256_hex};
use hanse_runtime::rng::SystemRng;
use hanse_runtime::supervisor::{Supervisor, chain};
use hanse_tunnel::hub::Parts;
use hanse_tunnel::testing::TestPki;
use hanse_tunnel::{
    AgentHub, Body, Enrolled, EnrolmentToken, Hub, HubConfig, Identity, ServerEvents, Settings, StoreHead, empty_body,
};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Seen {
    enrolments: Vec<String>,
    reports: Vec<AgentReport>,
}

struct Server {
    pki: TestPki,
    seen: Mutex<Seen>,
}

#[async_trait::async_trait]
impl ServerEvents for Server {
    async fn report(&self, cluster: &str, report: bytes::Bytes) {
        assert_eq!(cluster, "eu");
        self.seen
            .lock()
            .unwrap()
            .reports
            .push(serde_json::from_slice(&report).unwrap());
    }

    async fn store_call(&self, _cluster: &str, _head: StoreHead, _body: Body) -> http::Response<Body> {
        http::Response::new(empty_body())
    }

    async fn enrol(&self, token: &str, csr_pem: &str) -> Result<Enrolled, String> {
        self.seen.lock().unwrap().enrolments.push(token.to_owned());
        if token.contains("used") {
            return Err("the token was used before; create another".into());
        }
        let spec = LeafSpec {
            common_name: "eu".into(),
            uris: vec![Identity::Agent("eu".into()).uri()],
            client: true,
            days: 1,
            ..LeafSpec::default()
        };
        let ca = self.pki.authority();
        let cert_pem = ca.sign_csr(csr_pem, &spec, SystemClock::new().wall()).unwrap();
        Ok(Enrolled {
            cert_pem,
            ca_pem: ca.cert_pem().to_owned(),
            cluster: "eu".into(),
        })
    }
}

struct World {
    dir: tempfile::TempDir,
    server: Arc<Server>,
    hub: Hub,
    supervisor: Supervisor,
}

impl World {
    fn new() -> Self {
        let pki = TestPki::new(SystemClock::new().wall()).unwrap();
        let supervisor = Supervisor::default();
        let config = HubConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            credentials: pki.server("eu-1").unwrap(),
            version: "test".into(),
            settings: Settings::default(),
        };
        let parts = Parts {
            clock: SystemClock::shared(),
            rng: SystemRng::shared(),
            supervisor: supervisor.clone(),
        };
        let server = Arc::new(Server {
            pki,
            seen: Mutex::default(),
        });
        let hub = Hub::start(config, parts, server.clone()).unwrap();
        Self {
            dir: tempfile::tempdir().unwrap(),
            server,
            hub,
            supervisor,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self, cluster: &str) -> AgentConfig {
        let tools = self.path("tools");
        std::fs::create_dir_all(&tools).unwrap();
        for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
            std::fs::write(tools.join(name), "").unwrap();
        }
        std::fs::write(self.path("ca.crt"), self.server.pki.authority().cert_pem()).unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let dir = self.dir.path().display();
        let text = format!(
            "cluster = \"{cluster}\"\ndata_dir = \"{dir}/agent\"\nca_file = \"{dir}/ca.crt\"\n\
             enrolment_token_file = \"{dir}/token\"\nkube_tools = \"{dir}/tools\"\n\
             ports = {{ first = {free}, last = {} }}\n\n\
             [[server]]\nname = \"eu-1\"\nregion = \"eu\"\naddress = \"{}\"\n",
            free.saturating_add(300),
            self.hub.local_addr().unwrap(),
        );
        std::fs::write(self.path("agent.toml"), text).unwrap();
        load(&self.path("agent.toml")).unwrap()
    }

    fn write_token(&self, secret: &str) {
        let ca = self.server.pki.ca().unwrap();
        let token = EnrolmentToken::compose("id", secret, &sha256_hex(&ca)).unwrap();
        std::fs::write(self.path("token"), token.text()).unwrap();
    }

    fn start(&self, cluster: &str) -> (Supervisor, tokio::task::JoinHandle<Result<(), AgentError>>) {
        let supervisor = Supervisor::default();
        let deps = Deps {
            clock: SystemClock::shared(),
            rng: SystemRng::shared(),
            supervisor: supervisor.clone(),
            version: "v9".into(),
        };
        (supervisor, tokio::spawn(Agent::run(self.config(cluster), deps)))
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_enrols_once_takes_intents_and_reports() {
    let world = World::new();
    world.write_token("secret");
    let (supervisor, run) = world.start("eu");
    until("it connects", || world.hub.sessions().iter().any(|s| s.cluster == "eu")).await;
    for file in ["agent.crt", "agent.key"] {
        assert_eq!(mode(&world.path("agent").join(file)), 0o600);
    }
    let intent = Intent {
        cluster: "eu".into(),
        epoch: 2,
        revision: 7,
        ..Intent::default()
    };
    assert!(world.hub.send_intent("eu", serde_json::to_vec(&intent).unwrap().into()));
    let reported = |revision: i64| {
        let seen = world.server.seen.lock().unwrap();
        seen.reports
            .iter()
            .any(|report| report.intent_revision == revision && report.version == "v9")
    };
    until("the report names the intent", || reported(7)).await;
    supervisor.shut_down(Duration::from_secs(5)).await;
    run.await.unwrap().unwrap();

    // The token is not needed any more, and not shown again.
    std::fs::remove_file(world.path("token")).unwrap();
    let (supervisor, run) = world.start("eu");
    until("it connects again", || world.hub.sessions().len() == 1 && reported(7)).await;
    assert_eq!(world.server.seen.lock().unwrap().enrolments.len(), 1);
    supervisor.shut_down(Duration::from_secs(5)).await;
    run.await.unwrap().unwrap();
    world.supervisor.shut_down(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hinders_the_start_is_said() {
    let world = World::new();
    let fault = async |cluster: &str| {
        let (_supervisor, run) = world.start(cluster);
        chain(&run.await.unwrap().unwrap_err())
    };
    let text = fault("eu").await;
    assert!(text.contains("cannot read") && text.contains("token"), "{text}");
    std::fs::write(world.path("token"), "nonsense").unwrap();
    let text = fault("eu").await;
    assert!(text.contains("not an enrolment token"), "{text}");
    world.write_token("used");
    let text = fault("eu").await;
    assert!(text.contains("the token was used before"), "{text}");
    world.write_token("secret");
    let text = fault("us").await;
    assert!(
        text.contains("for cluster \"eu\", but agent.toml says \"us\""),
        "{text}"
    );
    assert!(
        !world.path("agent/agent.crt").exists(),
        "a certificate of another cluster is not kept"
    );
    std::fs::remove_file(world.path("tools/kube-scheduler")).unwrap();
    let mut config = world.config("eu");
    config.kube_tools = Some(world.path("nowhere"));
    let deps = Deps {
        clock: SystemClock::shared(),
        rng: SystemRng::shared(),
        supervisor: Supervisor::default(),
        version: "v9".into(),
    };
    let text = chain(&Agent::run(config, deps).await.unwrap_err());
    assert!(text.contains("kube-scheduler not found in"), "{text}");
    world.supervisor.shut_down(Duration::from_secs(5)).await;
}
