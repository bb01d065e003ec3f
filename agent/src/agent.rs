//! Puts the parts together.

use crate::api_proxy::{ApiProxy, Targets};
use crate::config::AgentConfig;
use crate::error::AgentError;
use crate::executor::{Executor, Inbox, Position};
use crate::files;
use crate::journal::Journal;
use crate::paths::Layout;
use crate::ports::PortBook;
use crate::process::{self, LOG_KEEP, LOG_MAX, ProcessError};
use crate::tenant::render::HostFacts;
use crate::tenant::{Board, Host};
use crate::tools::{KubeTools, Search};
use crate::{identity, sim};
use async_trait::async_trait;
use bytes::Bytes;
use hanse_api::intent::AgentReport;
use hanse_runtime::clock::{Clock, SharedClock};
use hanse_runtime::rng::SharedRng;
use hanse_runtime::supervisor::{Supervisor, TaskKind, chain};
use hanse_tunnel::assertion::Verifier;
use hanse_tunnel::hub::Parts;
use hanse_tunnel::{
    AgentEvents, Body, Credentials, Dialer, DialerConfig, RequestHead, ServerAddress, Settings, StoreHead, TunnelError,
    Upgraded, Uplink, refuse,
};
use rustix::fs::{FlockOperation, flock};
use rustls::pki_types::CertificateDer;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// How often a report is sent when nothing changes.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// Reports are not sent faster than this.
const REPORT_PAUSE: Duration = Duration::from_millis(100);
/// How often logs are looked at.
const ROTATE_EVERY: Duration = Duration::from_secs(30);
/// Whose port the listener for simulated pods has in the port book.
const SIMULATED_PODS: (&str, &str) = ("_agent", "simulated-pods");

/// What an agent takes from its process.
#[derive(Clone)]
pub struct Deps {
    /// Time.
    pub clock: SharedClock,
    /// Randomness.
    pub rng: SharedRng,
    /// Tasks.
    pub supervisor: Supervisor,
    /// Version of the program, for reports.
    pub version: String,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// An uplink that is there before the tunnel is: the tunnel needs someone to call, and tenants need the tunnel.
#[derive(Default)]
struct LateUplink(OnceLock<Arc<dyn Uplink>>);

#[async_trait]
impl Uplink for LateUplink {
    async fn store_call(&self, head: StoreHead, body: Body) -> Result<http::Response<Body>, TunnelError> {
        match self.0.get() {
            Some(uplink) => uplink.store_call(head, body).await,
            None => Err(TunnelError::NotConnected {
                peer: "any server".into(),
            }),
        }
    }

    fn report(&self, report: Bytes) {
        if let Some(uplink) = self.0.get() {
            uplink.report(report);
        }
    }
}

/// An agent without its tunnel: what the tunnel calls, and what calls the tunnel.
pub struct Agent {
    proxy: ApiProxy,
    inbox: Arc<Inbox>,
    host: Arc<Host>,
    uplink: Arc<LateUplink>,
    // Held as long as the agent lives.
    _lock: File,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl AgentEvents for Agent {
    async fn request(&self, _server: &str, head: RequestHead, body: Body) -> http::Response<Body> {
        self.proxy.request(head, body).await
    }

    async fn upgrade(&self, _server: &str, head: RequestHead) -> Upgraded {
        self.proxy.upgrade(head).await
    }

    fn intent(&self, server: &str, intent: Bytes) {
        self.inbox.put(server, intent);
    }
}

/// What the tunnel holds of the agent. Weak, since the agent holds the tunnel: the one who runs the agent ends both.
struct Events(Weak<Agent>);

impl Events {
    fn gone() -> TunnelError {
        TunnelError::Draining {
            peer: "the agent".into(),
        }
    }
}

#[async_trait]
impl AgentEvents for Events {
    async fn request(&self, server: &str, head: RequestHead, body: Body) -> http::Response<Body> {
        match self.0.upgrade() {
            Some(agent) => agent.request(server, head, body).await,
            None => refuse(Self::gone()),
        }
    }

    async fn upgrade(&self, server: &str, head: RequestHead) -> Upgraded {
        match self.0.upgrade() {
            Some(agent) => AgentEvents::upgrade(&*agent, server, head).await,
            None => Upgraded::Answered(refuse(Self::gone())),
        }
    }

    fn intent(&self, server: &str, intent: Bytes) {
        if let Some(agent) = self.0.upgrade() {
            agent.intent(server, intent);
        }
    }
}

impl Agent {
    /// Runs an agent until its process is told to end. Tenants are left running.
    pub async fn run(config: AgentConfig, deps: Deps) -> Result<(), AgentError> {
        // First everything that can be wrong on this host, then the network.
        let tools = Search::from_env(config.kube_tools.clone()).find()?;
        files::private_dir(&config.data_dir)?;
        let lock = lock(&config.data_dir)?;
        let settings = Settings::default();
        let credentials = identity::obtain(&config, &settings, &deps.clock).await?;
        let agent = Self::start(&config, &deps, tools, &credentials.ca, lock).await?;
        agent.connect(&config, &deps, credentials, settings)?;
        deps.supervisor.shutdown_token().cancelled().await;
        Ok(())
    }

    fn connect(
        self: &Arc<Self>,
        config: &AgentConfig,
        deps: &Deps,
        credentials: Credentials,
        settings: Settings,
    ) -> Result<(), AgentError> {
        let servers = config.servers_by_preference();
        let preferred = servers.first().map(|server| server.name.clone());
        let servers = servers.iter().map(|server| ServerAddress {
            name: server.name.clone(),
            address: server.address.to_string(),
        });
        let dialer = DialerConfig {
            servers: servers.collect(),
            preferred,
            credentials,
            version: deps.version.clone(),
            store: true,
            local: None,
            settings,
        };
        let parts = Parts {
            clock: deps.clock.clone(),
            rng: deps.rng.clone(),
            supervisor: deps.supervisor.clone(),
        };
        let dialer =
            Dialer::start(dialer, parts, Arc::new(Events(Arc::downgrade(self)))).map_err(AgentError::Tunnel)?;
        self.attach(Arc::new(dialer));
        Ok(())
    }

    /// Starts everything but the tunnel; `ca` is the system's authority.
    pub async fn start_offline(
        config: &AgentConfig,
        deps: &Deps,
        tools: KubeTools,
        ca: &CertificateDer<'_>,
    ) -> Result<Arc<Self>, AgentError> {
        files::private_dir(&config.data_dir)?;
        let lock = lock(&config.data_dir)?;
        Self::start(config, deps, tools, ca, lock).await
    }

    async fn start(
        config: &AgentConfig,
        deps: &Deps,
        tools: KubeTools,
        ca: &CertificateDer<'_>,
        lock: File,
    ) -> Result<Arc<Self>, AgentError> {
        let layout = Layout::new(&config.data_dir);
        for dir in [layout.sockets(), layout.tenants()] {
            files::private_dir(&dir)?;
        }
        let journal = Journal::open(layout.journal(), &config.cluster)?;
        let ports = PortBook::open(layout.ports(), config.listen_address, config.ports)?;
        let pod_port = serve_pods(&ports, &deps.supervisor).await?;
        let uplink = Arc::new(LateUplink::default());
        let targets = Arc::new(Targets::default());
        let facts = HostFacts {
            layout,
            tools,
            address: config.listen_address,
            pod_port,
            exec_on_host: config.simulation.exec_on_host,
            root: rustix::process::geteuid().is_root(),
        };
        let host = Arc::new(Host {
            facts,
            ports,
            uplink: uplink.clone(),
            targets: targets.clone(),
            board: Board::default(),
            clock: deps.clock.clone(),
            rng: deps.rng.clone(),
            supervisor: deps.supervisor.clone(),
            bring_up: Arc::new(Semaphore::new(
                std::thread::available_parallelism().map_or(1, usize::from),
            )),
        });
        let inbox = Arc::new(Inbox::default());
        let executor = Executor::new(host.clone(), journal, inbox.clone());
        let position = executor.position();
        deps.supervisor.spawn(
            TaskKind::Controller,
            "executor",
            async move { Ok(executor.run().await?) },
        );
        let verifier = Verifier::new(ca).map_err(AgentError::Tunnel)?;
        let proxy = ApiProxy::new(&config.cluster, verifier, targets, deps.clock.clone());
        let agent = Arc::new(Self {
            proxy,
            inbox,
            host,
            uplink,
            _lock: lock,
        });
        agent.spawn_reports(config.cluster.clone(), deps.version.clone(), position);
        agent.spawn_rotation();
        Ok(agent)
    }

    /// Gives the agent its way to the servers. Only the first counts.
    pub fn attach(&self, uplink: Arc<dyn Uplink>) {
        let attached = self.uplink.0.set(uplink).is_ok();
        if !attached {
            tracing::warn!("the agent has an uplink already");
        }
    }

    /// What is reported of the tenants now.
    pub fn board(&self) -> &Board {
        &self.host.board
    }

    fn spawn_reports(&self, cluster: String, version: String, mut position: watch::Receiver<Position>) {
        let (host, uplink) = (self.host.clone(), self.uplink.clone());
        self.host.supervisor.spawn(TaskKind::BestEffort, "reports", async move {
            let shutdown = host.supervisor.shutdown_token();
            let mut changes = host.board.changes();
            loop {
                let (intent_epoch, intent_revision) = *position.borrow_and_update();
                changes.mark_unchanged();
                let report = AgentReport {
                    cluster: cluster.clone(),
                    version: version.clone(),
                    intent_epoch,
                    intent_revision,
                    observed_at: host.clock.wall(),
                    tenants: host.board.all(),
                };
                uplink.report(Bytes::from(serde_json::to_vec(&report)?));
                host.clock.sleep(REPORT_PAUSE).await;
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    () = host.clock.sleep(REPORT_EVERY) => {}
                    changed = changes.changed() => changed?,
                    changed = position.changed() => changed?,
                }
            }
        });
    }

    fn spawn_rotation(&self) {
        let host = self.host.clone();
        self.host
            .supervisor
            .spawn(TaskKind::BestEffort, "log rotation", async move {
                let shutdown = host.supervisor.shutdown_token();
                loop {
                    tokio::select! {
                        () = shutdown.cancelled() => return Ok(()),
                        () = host.clock.sleep(ROTATE_EVERY) => {}
                    }
                    let layout = host.facts.layout.clone();
                    tokio::task::spawn_blocking(move || rotate_all(&layout)).await??;
                }
            });
    }
}

fn rotate_all(layout: &Layout) -> Result<(), AgentError> {
    for tenant in files::names_in(&layout.tenants())? {
        let dir = layout.tenant(&tenant).log();
        for name in files::names_in(&dir)?.iter().filter(|name| name.ends_with(".log")) {
            let path = dir.join(name);
            if let Err(source) = process::rotate(&path, LOG_MAX, LOG_KEEP) {
                // Other logs still have to be bounded.
                tracing::warn!(path = %path.display(), error = %source, "a log cannot be rotated");
            }
        }
    }
    Ok(())
}

async fn serve_pods(ports: &PortBook, supervisor: &Supervisor) -> Result<u16, AgentError> {
    let (owner, usage) = SIMULATED_PODS;
    let port = ports.get(owner, usage)?;
    match sim::serve(SocketAddr::new(ports.address(), port), supervisor).await {
        Ok(()) => Ok(port),
        Err(error) => {
            tracing::warn!(
                error = chain(&error),
                "the port for simulated pods is in use; another is taken"
            );
            let port = ports.replace(owner, usage)?;
            sim::serve(SocketAddr::new(ports.address(), port), supervisor).await?;
            Ok(port)
        }
    }
}

/// Keeps a second agent off the data directory.
fn lock(data_dir: &Path) -> Result<File, AgentError> {
    let path = data_dir.join("agent.lock");
    let fault = |source| AgentError::File {
        what: "lock",
        path: path.clone(),
        source,
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(fault)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(fault(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another agent runs on this data directory; stop it first",
        ))),
        Err(error) => Err(fault(error.into())),
    }
}

/// Stops all processes of all tenants below `data_dir`, for when no agent runs. With no grace they are killed at once.
/// Only processes that the records certainly name are touched. Says how many there were.
pub async fn stop_all(data_dir: &Path, grace: Duration, clock: &dyn Clock) -> Result<usize, AgentError> {
    let layout = Layout::new(data_dir);
    let stop = async |tenant: String| -> Result<usize, ProcessError> {
        let run = layout.tenant(&tenant).run();
        let records = process::load_all(&run)?;
        let mut alive = 0;
        for record in &records {
            alive += usize::from(record.is_alive()?);
        }
        process::stop_records(&run, records, grace, clock).await?;
        Ok(alive)
    };
    let all = files::names_in(&layout.tenants())?.into_iter().map(|tenant| {
        let stop = &stop;
        async move {
            stop(tenant.clone())
                .await
                .map_err(|source| AgentError::Process { tenant, source })
        }
    });
    // Each tenant gets its chance, also when another's fails.
    let outcomes = futures::future::join_all(all).await;
    outcomes.into_iter().sum()
}
