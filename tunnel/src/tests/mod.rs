//! Hub and dialer over real QUIC on the loopback interface.

mod bodies;
mod enrolment;
mod relay;
mod sessions;
mod store;

use crate::api::{
    Admitted, AgentEvents, AgentHub, Body, Enrolled, ServerEvents, TunnelIo, Upgraded, empty_body, full_body,
};
use crate::dialer::{Dialer, DialerConfig, ServerAddress};
use crate::error::TunnelError;
use crate::hub::{Hub, HubConfig, Parts};
use crate::identity::Credentials;
use crate::settings::Settings;
use crate::testing::TestPki;
use crate::wire::{RequestHead, StoreHead, Target};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use hanse_runtime::clock::{Clock, SystemClock};
use hanse_runtime::rng::SystemRng;
use hanse_runtime::supervisor::Supervisor;
use http::{HeaderMap, Method, Response};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

type Handler = Box<dyn Fn(RequestHead, Body) -> BoxFuture<'static, Response<Body>> + Send + Sync>;
type EnrolHandler = Box<dyn Fn(&str, &str) -> Result<Enrolled, String> + Send + Sync>;
type StoreHandler = Box<dyn Fn(StoreHead, Body) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// An agent that answers with what the test says, and tells the test of intents.
struct TestAgent {
    handler: Handler,
    intents: mpsc::Sender<(String, Bytes)>,
}

#[async_trait]
impl AgentEvents for TestAgent {
    async fn request(&self, _server: &str, head: RequestHead, body: Body) -> Response<Body> {
        (self.handler)(head, body).await
    }

    /// Switches `/switch` to an echo; refuses others.
    async fn upgrade(&self, _server: &str, head: RequestHead) -> Upgraded {
        if head.path_and_query.as_str() != "/switch" {
            return Upgraded::Answered(Response::builder().status(403).body(full_body("no")).unwrap());
        }
        let (near, far) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(far);
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            tokio::io::AsyncWriteExt::shutdown(&mut write).await.unwrap();
        });
        let response = Response::builder()
            .status(101)
            .header("upgrade", "echo")
            .body(())
            .unwrap();
        Upgraded::Switched {
            response,
            io: TunnelIo::new(near),
        }
    }

    fn intent(&self, server: &str, intent: Bytes) {
        self.intents.try_send((server.to_owned(), intent)).unwrap();
    }
}

/// A server that answers store calls with what the test says, and tells the test of reports.
struct TestServer {
    name: String,
    handler: StoreHandler,
    reports: mpsc::Sender<(String, String, Bytes)>,
    enrol: EnrolHandler,
}

#[async_trait]
impl ServerEvents for TestServer {
    async fn report(&self, cluster: &str, report: Bytes) {
        self.reports
            .try_send((self.name.clone(), cluster.to_owned(), report))
            .unwrap();
    }

    async fn store_call(&self, _cluster: &str, head: StoreHead, body: Body) -> Response<Body> {
        (self.handler)(head, body).await
    }

    async fn enrol(&self, token: &str, csr_pem: &str) -> Result<Enrolled, String> {
        (self.enrol)(token, csr_pem)
    }

    async fn admit(&self, token: &str, csr_pem: &str, newcomer: Bytes) -> Result<Admitted, String> {
        let Enrolled { cert_pem, ca_pem, .. } = (self.enrol)(token, csr_pem)?;
        Ok(Admitted {
            cert_pem,
            ca_pem,
            name: "us-1".to_owned(),
            place: [b"place of ", &newcomer[..]].concat().into(),
        })
    }
}

/// A whole system in one process.
struct World {
    pki: TestPki,
    settings: Settings,
    reports: mpsc::Receiver<(String, String, Bytes)>,
    reports_in: mpsc::Sender<(String, String, Bytes)>,
}

/// One server with its own supervisor, so that it can be shut down alone.
struct ServerHandle {
    hub: Hub,
    address: SocketAddr,
    supervisor: Supervisor,
}

/// One agent with its own supervisor.
struct AgentHandle {
    dialer: Dialer,
    supervisor: Supervisor,
    intents: mpsc::Receiver<(String, Bytes)>,
}

fn parts(supervisor: &Supervisor) -> Parts {
    Parts {
        clock: SystemClock::shared(),
        rng: SystemRng::shared(),
        supervisor: supervisor.clone(),
    }
}

fn echo_store(name: &str) -> StoreHandler {
    let name = name.to_owned();
    Box::new(move |head, body| {
        let name = name.clone();
        Box::pin(async move {
            let Ok(body) = http_body_util::BodyExt::collect(body).await else {
                return Response::new(empty_body());
            };
            Response::builder()
                .header("server", name)
                .header("tenant", head.tenant)
                .body(full_body(body.to_bytes()))
                .unwrap()
        })
    })
}

impl World {
    fn new() -> Self {
        let (reports_in, reports) = mpsc::channel(4096);
        let settings = Settings {
            backoff: (Duration::from_millis(20), Duration::from_millis(200)),
            drain_grace: Duration::from_millis(500),
            ..Settings::default()
        };
        Self {
            pki: TestPki::new(SystemClock::new().wall()).unwrap(),
            settings,
            reports,
            reports_in,
        }
    }

    fn server_at(&self, name: &str, listen: SocketAddr, handler: StoreHandler) -> ServerHandle {
        let events = TestServer {
            name: name.to_owned(),
            handler,
            reports: self.reports_in.clone(),
            enrol: Box::new(|_, _| Err("not here".into())),
        };
        let credentials = self.pki.server(name).unwrap();
        self.server_with(credentials, listen, Supervisor::default(), Arc::new(events))
            .unwrap()
    }

    fn server_with(
        &self,
        credentials: Credentials,
        listen: SocketAddr,
        supervisor: Supervisor,
        events: Arc<dyn ServerEvents>,
    ) -> Result<ServerHandle, TunnelError> {
        let settings = self.settings.clone();
        let config = HubConfig {
            listen,
            credentials,
            version: "v-test".into(),
            settings,
        };
        let hub = Hub::start(config, parts(&supervisor), events)?;
        let address = hub.local_addr()?;
        Ok(ServerHandle {
            hub,
            address,
            supervisor,
        })
    }

    fn events(&self, name: &str) -> Arc<TestServer> {
        Arc::new(TestServer {
            name: name.to_owned(),
            handler: echo_store(name),
            reports: self.reports_in.clone(),
            enrol: Box::new(|_, _| Err("not here".into())),
        })
    }

    /// A server with these credentials.
    fn server_of(&self, credentials: Credentials) -> ServerHandle {
        self.server_with(credentials, any_port(), Supervisor::default(), self.events("s1"))
            .unwrap()
    }

    /// A server on a port that another has just left; its last tasks may still hold it.
    async fn server_again(&self, name: &str, listen: SocketAddr) -> ServerHandle {
        soon("free port", async {
            loop {
                let credentials = self.pki.server(name).unwrap();
                match self.server_with(credentials, listen, Supervisor::default(), self.events(name)) {
                    Ok(server) => return server,
                    Err(TunnelError::Bind { .. }) => tokio::task::yield_now().await,
                    Err(other) => panic!("{other}"),
                }
            }
        })
        .await
    }

    fn server(&self, name: &str) -> ServerHandle {
        self.server_at(name, any_port(), echo_store(name))
    }

    fn agent(&self, cluster: &str, servers: &[(&str, SocketAddr)], handler: Handler) -> AgentHandle {
        self.agent_with(self.pki.agent(cluster).unwrap(), servers, handler)
    }

    fn agent_with(&self, credentials: Credentials, servers: &[(&str, SocketAddr)], handler: Handler) -> AgentHandle {
        let supervisor = Supervisor::default();
        let (intents_in, intents) = mpsc::channel(4096);
        let servers: Vec<ServerAddress> = servers
            .iter()
            .map(|(name, address)| ServerAddress {
                name: (*name).to_owned(),
                address: address.to_string(),
            })
            .collect();
        let config = DialerConfig {
            preferred: servers.first().map(|server| server.name.clone()),
            servers,
            credentials,
            version: "v-agent".into(),
            store: true,
            local: None,
            settings: self.settings.clone(),
        };
        let events = Arc::new(TestAgent {
            handler,
            intents: intents_in,
        });
        let dialer = Dialer::start(config, parts(&supervisor), events).unwrap();
        AgentHandle {
            dialer,
            supervisor,
            intents,
        }
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// Answers with method, path and body.
fn echo() -> Handler {
    Box::new(|head, body| {
        Box::pin(async move {
            let bytes = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
            let what = format!("{} {} {}", head.method, head.path_and_query, bytes.len());
            Response::builder().header("what", what).body(full_body(bytes)).unwrap()
        })
    })
}

fn request(path: &str) -> RequestHead {
    RequestHead {
        request_id: "r-1".into(),
        target: Target::Cluster,
        assertion: vec![],
        method: Method::GET,
        path_and_query: path.parse().unwrap(),
        headers: HeaderMap::new(),
        upgrade: false,
    }
}

fn store_call(method: &str) -> StoreHead {
    let path = format!("/etcdserverpb.{method}");
    StoreHead {
        tenant: "t1".into(),
        epoch: 3,
        path,
        headers: HeaderMap::new(),
    }
}

/// Long enough for anything on a busy machine; nothing waits for it unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

impl ServerHandle {
    /// Waits until the agents with a session here are these.
    async fn agents(&self, want: &[&str]) {
        let mut changes = self.hub.changes();
        soon("sessions", async {
            while self
                .hub
                .sessions()
                .iter()
                .map(|s| s.cluster.as_str())
                .collect::<Vec<_>>()
                != want
            {
                changes.changed().await.unwrap();
            }
        })
        .await;
    }
}

impl AgentHandle {
    /// Waits until it has `count` healthy connections.
    async fn connected(&self, count: usize) {
        let mut changes = self.dialer.changes();
        soon("connections", async {
            while self
                .dialer
                .connections()
                .iter()
                .filter(|c| !c.draining && !c.suspect)
                .count()
                != count
            {
                changes.changed().await.unwrap();
            }
        })
        .await;
    }
}
