//! A real gateway on loopback: TLS, registry in memory, an agent in the same process, and clients.

use bytes::Bytes;
use hanse_api::access::GROUP_ADMINS;
use hanse_api::kinds::{ACCESS_KEYS, CLUSTERS, KindName, PROJECTS, TENANT_STORES, USERS, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::resources::Server;
use hanse_gateway::{
    AuditPolicy, AuditSinks, BackupOf, BackupStream, Backups, ChangeFault, ClusterStatus, Gateway, GatewayParts,
    Limits, PutBack, access_key, tls_config,
};
use hanse_runtime::clock::{SharedClock, SystemClock};
use hanse_runtime::pki::{LeafSpec, load_certs, load_key, sha256_hex};
use hanse_runtime::rng::SystemRng;
use hanse_runtime::seal::Sealer;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use hanse_runtime::telemetry::Metrics;
use hanse_state::backup::BackupError;
use hanse_state::engine::{LogWriter, MemoryEngine, WriterOptions};
use hanse_state::objects::{ObjectKey, Objects, Op};
use hanse_state::{GroupId, LocalParts, LocalStore, StoreError};
use hanse_tunnel::assertion::{Expected, Signer, Verified, Verifier};
use hanse_tunnel::testing::{LoopbackHub, TestPki};
use hanse_tunnel::{AgentEvents, RequestHead, Upgraded};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls::RootCertStore;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Name of the connected cluster whose agent is [`TestAgent`].
pub const CLUSTER: &str = "eu";
/// Id of the tenant's key space.
pub const TENANT: &str = "tenant-uid-1";
/// Path of the tenant cluster that every world has.
pub const DEMO: &str = "/kubernetes/project/default/virtualcluster/demo";
pub const API: &str = "/kubernetes/management/apis/management.loft.sh/v1";

/// No live servers; agents are awaited while the flag is set.
#[derive(Default)]
pub struct NoServers {
    pub awaits_agents: AtomicBool,
}

#[async_trait::async_trait]
impl ClusterStatus for NoServers {
    async fn servers(&self) -> Vec<Server> {
        Vec::new()
    }

    fn awaits_agents(&self) -> bool {
        self.awaits_agents.load(Ordering::SeqCst)
    }

    async fn remove(&self, _objects: &Objects, _name: &str, _id: u64) -> Result<(), ChangeFault> {
        Err(ChangeFault::Store(StoreError::NoLeader))
    }

    async fn relocate(&self, _id: u64, _address: &str) -> Result<(), ChangeFault> {
        Err(ChangeFault::Store(StoreError::NoLeader))
    }
}

/// Nothing to back up.
pub struct NoBackups;

#[async_trait::async_trait]
impl Backups for NoBackups {
    async fn take(&self, _of: BackupOf) -> Result<BackupStream, StoreError> {
        Err(StoreError::NoLeader)
    }

    async fn receive(&self, _tenant: &str, _file: BackupStream) -> Result<Box<dyn PutBack>, BackupError> {
        Err(StoreError::NoLeader.into())
    }
}

pub type Script = Box<dyn Fn(&RequestHead, &Bytes) -> Response<hanse_tunnel::Body> + Send + Sync>;
pub type UpgradeScript = Box<dyn Fn(&RequestHead) -> Upgraded + Send + Sync>;

/// What the agent saw.
#[derive(Clone, Debug)]
pub struct Seen {
    pub head: RequestHead,
    pub body: Bytes,
    pub verified: Verified,
}

/// An agent that checks every assertion, remembers what it saw and answers by a script.
pub struct TestAgent {
    verifier: Verifier,
    clock: SharedClock,
    pub seen: Mutex<Vec<Seen>>,
    pub script: Mutex<Script>,
    pub upgrades: Mutex<UpgradeScript>,
    /// Never answers while set.
    pub stalls: AtomicBool,
}

impl TestAgent {
    fn check(&self, head: &RequestHead) -> Verified {
        let expected = Expected {
            cluster: CLUSTER,
            target: &head.target,
            request_id: &head.request_id,
        };
        self.verifier
            .verify(&head.assertion, expected, self.clock.wall())
            .expect("the assertion holds")
    }

    pub fn answer(
        &self,
        script: impl Fn(&RequestHead, &Bytes) -> Response<hanse_tunnel::Body> + Send + Sync + 'static,
    ) {
        *self.script.lock() = Box::new(script);
    }

    pub fn switch(&self, script: impl Fn(&RequestHead) -> Upgraded + Send + Sync + 'static) {
        *self.upgrades.lock() = Box::new(script);
    }

    pub fn last(&self) -> Seen {
        self.seen.lock().last().cloned().expect("the agent saw a request")
    }

    pub fn count(&self) -> usize {
        self.seen.lock().len()
    }
}

#[async_trait::async_trait]
impl AgentEvents for TestAgent {
    async fn request(
        &self,
        _server: &str,
        head: RequestHead,
        body: hanse_tunnel::Body,
    ) -> Response<hanse_tunnel::Body> {
        let verified = self.check(&head);
        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        self.seen.lock().push(Seen {
            head: head.clone(),
            body: body.clone(),
            verified,
        });
        if self.stalls.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        (self.script.lock())(&head, &body)
    }

    async fn upgrade(&self, _server: &str, head: RequestHead) -> Upgraded {
        let verified = self.check(&head);
        self.seen.lock().push(Seen {
            head: head.clone(),
            body: Bytes::new(),
            verified,
        });
        (self.upgrades.lock())(&head)
    }

    fn intent(&self, _server: &str, _intent: Bytes) {}
}

pub fn plain(code: u16, text: &'static str) -> Response<hanse_tunnel::Body> {
    Response::builder()
        .status(code)
        .header("content-type", "text/plain")
        .body(hanse_tunnel::full_body(text))
        .unwrap()
}

pub struct World {
    pub addr: SocketAddr,
    pub ca_pem: String,
    pub objects: Objects,
    pub hub: Arc<LoopbackHub>,
    pub agent: Arc<TestAgent>,
    pub supervisor: Supervisor,
}

impl World {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(adapt: impl FnOnce(&mut GatewayParts)) -> Self {
        Self::at(TcpListener::bind("127.0.0.1:0").await.unwrap(), adapt).await
    }

    /// Behind a listener whose address somebody had to know before.
    pub async fn at(listener: TcpListener, adapt: impl FnOnce(&mut GatewayParts)) -> Self {
        Self::made(listener, adapt, async |_| {}).await
    }

    /// With a registry that holds something before the gateway begins.
    pub async fn over(prepare: impl AsyncFnOnce(&Objects)) -> Self {
        Self::made(TcpListener::bind("127.0.0.1:0").await.unwrap(), |_| {}, prepare).await
    }

    async fn made(
        listener: TcpListener,
        adapt: impl FnOnce(&mut GatewayParts),
        prepare: impl AsyncFnOnce(&Objects),
    ) -> Self {
        let (supervisor, clock, rng) = (Supervisor::default(), SystemClock::shared(), SystemRng::shared());
        let writer = LogWriter::start(Arc::new(MemoryEngine::new()), WriterOptions::default()).unwrap();
        let parts = LocalParts {
            writer,
            clock: clock.clone(),
            rng: rng.clone(),
            supervisor: supervisor.clone(),
        };
        let objects = Objects::new(LocalStore::open(GroupId(0), parts).unwrap());
        prepare(&objects).await;
        let pki = TestPki::new(clock.wall()).unwrap();
        let spec = LeafSpec {
            ips: vec!["127.0.0.1".parse().unwrap()],
            server: true,
            days: 1,
            ..Default::default()
        };
        let leaf = pki.authority().issue(&spec, clock.wall()).unwrap();
        let tls = tls_config(load_certs(&leaf.cert).unwrap(), load_key(&leaf.key).unwrap()).unwrap();
        let agent = Arc::new(TestAgent {
            verifier: Verifier::new(&pki.ca().unwrap()).unwrap(),
            clock: clock.clone(),
            seen: Mutex::default(),
            script: Mutex::new(Box::new(|_, _| plain(200, "ok"))),
            stalls: AtomicBool::new(false),
            upgrades: Mutex::new(Box::new(|_| Upgraded::Answered(plain(400, "no upgrade here")))),
        });
        let hub = Arc::new(LoopbackHub::new());
        hub.connect(CLUSTER, agent.clone());
        let ca_pem = pki.authority().cert_pem().to_owned();
        let seal_key = Sealer::generate(rng.as_ref());
        let mut parts = GatewayParts {
            objects: objects.clone(),
            hub: hub.clone(),
            signer: Arc::new(Signer::new(&pki.server("eu-1").unwrap()).unwrap()),
            clock,
            rng,
            sealer: Sealer::from_key(&seal_key).unwrap(),
            cluster_status: Arc::new(NoServers::default()),
            backups: Arc::new(NoBackups),
            metrics: Metrics::default(),
            supervisor: supervisor.clone(),
            ca_sha256: "c".repeat(64),
            ca_pem: ca_pem.clone(),
            oidc: None,
            audit_policy: AuditPolicy::default(),
            audit_sinks: AuditSinks::default(),
            limits: Limits::default(),
        };
        adapt(&mut parts);
        let gateway = Gateway::new(parts);
        let addr = listener.local_addr().unwrap();
        supervisor.spawn(TaskKind::Listener, "gateway", async move {
            Ok(gateway.serve(listener, tls).await?)
        });
        let world = Self {
            addr,
            ca_pem,
            objects,
            hub,
            agent,
            supervisor,
        };
        world.seed().await;
        world
    }

    async fn seed(&self) {
        self.user("admin", &[GROUP_ADMINS]).await;
        self.user("bob", &["devs"]).await;
        self.key("admin", "admin").await;
        self.key("bob", "bob").await;
        self.put(&CLUSTERS, "", CLUSTER, json!({ "networkPeer": true })).await;
        self.put(
            &PROJECTS,
            "",
            "default",
            json!({ "members": [], "allowedClusters": [{ "name": "*" }] }),
        )
        .await;
        self.put(
            &VIRTUAL_CLUSTER_INSTANCES,
            "p-default",
            "demo",
            json!({ "clusterRef": { "cluster": CLUSTER } }),
        )
        .await;
        self.put(
            &TENANT_STORES,
            "p-default",
            "demo",
            json!({ "tenant": TENANT, "cluster": CLUSTER, "epoch": 1, "sealedPki": "" }),
        )
        .await;
    }

    pub async fn user(&self, name: &str, groups: &[&str]) {
        self.put(&USERS, "", name, json!({ "username": name, "groups": groups }))
            .await;
    }

    pub async fn key(&self, id: &str, user: &str) {
        self.put(
            &ACCESS_KEYS,
            "",
            id,
            json!({ "user": user, "secretSha256": sha256_hex(format!("{id}-secret").as_bytes()) }),
        )
        .await;
    }

    /// Writes an object, whatever is there.
    pub async fn put(&self, kind: &KindName, namespace: &str, name: &str, spec: Value) {
        let key = ObjectKey::new(kind, namespace, name);
        let mut metadata = json!({
            "name": name, "uid": format!("uid-{name}"), "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z",
        });
        if !namespace.is_empty() {
            metadata["namespace"] = namespace.into();
        }
        let value = json!({ "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": metadata, "spec": spec })
            .to_string();
        let op = match self.objects.get(&key).await.unwrap() {
            None => Op::Create {
                key,
                value: value.into(),
            },
            Some(old) => Op::Update {
                key,
                value: value.into(),
                expected: old.revision,
            },
        };
        self.objects.commit(vec![op]).await.unwrap();
    }

    pub async fn remove(&self, kind: &KindName, namespace: &str, name: &str) {
        let key = ObjectKey::new(kind, namespace, name);
        let old = self.objects.get(&key).await.unwrap().unwrap();
        self.objects
            .commit(vec![Op::Delete {
                key,
                expected: old.revision,
            }])
            .await
            .unwrap();
    }

    pub fn admin(&self) -> Client {
        self.client(Some(access_key("admin", "admin-secret")))
    }

    pub fn bob(&self) -> Client {
        self.client(Some(access_key("bob", "bob-secret")))
    }

    pub fn client(&self, token: Option<String>) -> Client {
        Client::new(self.addr, self.ca_pem.clone(), token)
    }
}

#[derive(Clone)]
pub struct Client {
    pub addr: SocketAddr,
    pub ca_pem: String,
    pub token: Option<String>,
}

#[derive(Debug)]
pub struct Answer {
    pub code: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The answer must be a `Status` of this code.
    #[track_caller]
    pub fn fails(&self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text);
        let status = self.json();
        assert_eq!(status["kind"], "Status", "{status}");
        assert_eq!(status["code"], code, "{status}");
        assert_eq!(self.headers["content-type"], "application/json");
        status
    }

    #[track_caller]
    pub fn good(&self) -> Value {
        assert!(self.code.is_success(), "{} {}", self.code, self.text);
        self.json()
    }
}

/// Longest wait for anything in a test.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it happens in time")
}

impl Client {
    pub fn new(addr: SocketAddr, ca_pem: String, token: Option<String>) -> Self {
        Self { addr, ca_pem, token }
    }

    pub async fn tls(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        for cert in load_certs(&self.ca_pem).unwrap() {
            roots.add(cert).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.addr).await.unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(self.addr.ip().into(), stream)
            .await
            .unwrap()
    }

    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body.into()));
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        *request.uri_mut() = path.parse().unwrap();
        request
            .headers_mut()
            .insert("host", HeaderValue::from_static("gateway"));
        if let Some(token) = &self.token {
            request
                .headers_mut()
                .insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        for (name, value) in headers {
            request
                .headers_mut()
                .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        request
    }

    /// Sends over HTTP/1.1 and gives the answer before its body.
    pub async fn open(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        let stream = self.tls(b"http/1.1").await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection.with_upgrades());
        soon(sender.send_request(request)).await.unwrap()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        whole(self.open(request).await).await
    }

    /// Sends over HTTP/2.
    pub async fn send_h2(&self, mut request: Request<Full<Bytes>>) -> Answer {
        let stream = self.tls(b"h2").await;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        request.headers_mut().remove("host");
        *request.uri_mut() = format!("https://gateway{}", request.uri()).parse().unwrap();
        whole(soon(sender.send_request(request)).await.unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path, &[], "")).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request("POST", path, &[("content-type", "application/json")], body.to_string()))
            .await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request("PUT", path, &[("content-type", "application/json")], body.to_string()))
            .await
    }

    pub async fn merge(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(
            "PATCH",
            path,
            &[("content-type", "application/merge-patch+json")],
            body.to_string(),
        ))
        .await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request("DELETE", path, &[], "")).await
    }

    /// Opens a watch.
    pub async fn watch(&self, path: &str) -> Lines {
        let response = self.open(self.request("GET", path, &[], "")).await;
        assert_eq!(response.status(), 200);
        Lines {
            body: response.into_body(),
            rest: String::new(),
        }
    }
}

async fn whole(response: Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    let bytes = soon(body.collect()).await.unwrap().to_bytes();
    Answer {
        code: head.status,
        headers: head.headers,
        text: String::from_utf8_lossy(&bytes).into_owned(),
    }
}

/// The lines of a watch.
pub struct Lines {
    body: Incoming,
    rest: String,
}

impl Lines {
    /// The next event; none when the watch has ended.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.rest.split_once('\n') {
                let event = serde_json::from_str(line).unwrap();
                self.rest = rest.to_owned();
                return Some(event);
            }
            let frame = soon(self.body.frame()).await?.ok()?;
            self.rest.push_str(std::str::from_utf8(frame.data_ref()?).unwrap());
        }
    }

    /// The next event as `TYPE name`.
    pub async fn brief(&mut self) -> String {
        let event = self.next().await.expect("an event");
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        format!("{} {name}", event["type"].as_str().unwrap())
    }
}
