//! Builds a server's parts in order, runs them until a signal or a fault, ends them in order.

use crate::backup::LiveBackups;
use crate::config::{MemberConfig, ServerConfig};
use crate::error::ServerError;
use crate::events::Events;
use crate::files;
use crate::inbox::Inbox;
use crate::joining::{Common, Door};
use crate::membership;
use crate::readiness::await_agents;
use crate::rejoin;
use crate::signals;
use crate::status::{self, LiveStatus};
use hanse_api::resources::ServerSpec;
use hanse_consensus::{Member, Node, NodeConfig, NodeParts, Rejoin, Settings, TlsPem};
use hanse_gateway::{AuditSinkFiles, AuditSinks, Gateway, GatewayParts, Limits, LoginLimits, Oidc, OidcFiles, Rate};
use hanse_regions::author::author;
use hanse_regions::bootstrap::{AdminSeed, Seed, bootstrap};
use hanse_regions::{Regions, RegionsParts};
use hanse_runtime::clock::{SharedClock, SystemClock};
use hanse_runtime::meter;
use hanse_runtime::pki::{Ca, cert_key_sha256, load_certs, load_key, sha256_hex};
use hanse_runtime::rng::{SharedRng, SystemRng};
use hanse_runtime::seal::Sealer;
use hanse_runtime::shutdown::Shutdown;
use hanse_runtime::supervisor::{Supervisor, TaskKind, chain};
use hanse_runtime::telemetry::{self, Metrics};
use hanse_state::engine::{LogWriter, RocksEngine, RocksOptions, SharedEngine, WriterOptions};
use hanse_state::objects::Objects;
use hanse_tunnel::assertion::Signer;
use hanse_tunnel::hub::{Hub, HubConfig, Parts};
use hanse_tunnel::identity::Credentials;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;

/// Version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long a server waits for the others at its start before it gives up and says so. Three regions rarely come up together.
const FORMING: Duration = Duration::from_secs(600);
/// How long each phase of a shutdown may take.
const PHASE_LIMIT: Duration = Duration::from_secs(5);
/// Waits between tries to write the first objects.
const BOOTSTRAP_RETRY: Duration = Duration::from_millis(500);
/// User of the first administrator.
const ADMIN_USER: &str = "admin";

struct Machine {
    clock: SharedClock,
    rng: SharedRng,
    supervisor: Supervisor,
    metrics: Metrics,
}

struct Secrets {
    ca_pem: String,
    cert_pem: String,
    key_pem: String,
    ca: Ca,
    sealer: Sealer,
}

/// Runs the server of the configuration at `path` until SIGTERM, SIGINT or a fault. A second signal ends it at once.
pub async fn run(path: &Path) -> Result<(), ServerError> {
    let mut config: ServerConfig = hanse_runtime::config::load(path)?;
    telemetry::init(config.log_format);
    let machine = Machine {
        clock: SystemClock::shared(),
        rng: SystemRng::shared(),
        supervisor: Supervisor::new(Shutdown::new()),
        metrics: Metrics::default(),
    };
    let _lock = files::lock_data_dir(&config.data_dir)?;
    files::check_free_space(&config.data_dir)?;
    config = rejoin::resume(config)?;
    let secrets = read_secrets(&config)?;
    let (gateway_listener, node, engine) = match begin(&config, &machine, &secrets).await {
        Err(error) if rejoin::is_loss(&error) => {
            let Some(renewed) = come_back(config, &machine, &secrets, error).await? else {
                return Ok(());
            };
            config = renewed;
            begin(&config, &machine, &secrets).await?
        }
        begun => begun?,
    };
    let outcome = serve(&config, &machine, secrets, (&node, engine), gateway_listener).await;
    // Consensus hands leadership over by itself when its phase comes.
    machine.supervisor.shut_down(PHASE_LIMIT).await;
    tracing::info!("stopped");
    outcome?;
    machine
        .supervisor
        .failure()
        .map_or(Ok(()), |failure| Err(ServerError::Task(failure)))
}

/// Listens, and starts consensus.
async fn begin(
    config: &ServerConfig,
    machine: &Machine,
    secrets: &Secrets,
) -> Result<(TcpListener, Node, SharedEngine), ServerError> {
    let gateway_listener = bind(config.gateway.listen, "the HTTPS gateway", "gateway.listen").await?;
    let raft_listener = bind(config.raft.listen, "Raft", "raft.listen").await?;
    let (node, engine) = start_node(config, machine, secrets, raft_listener).await?;
    Ok((gateway_listener, node, engine))
}

/// Asks the others for a new id, as data is missing or damaged here, and puts what is left aside. Gives the configuration by which to start
/// under that id; nothing if the server was told to stop.
async fn come_back(
    config: ServerConfig,
    machine: &Machine,
    secrets: &Secrets,
    loss: ServerError,
) -> Result<Option<ServerConfig>, ServerError> {
    tracing::error!(error = chain(&loss), id = config.id, "data is missing or damaged");
    let stays = |why: String, loss: ServerError| ServerError::Lost {
        why,
        source: Box::new(loss),
    };
    if let Some(why) = rejoin::may_ask(&config)? {
        return Err(stays(why.to_string(), loss));
    }
    let own = config.own_member().map(|member| member.raft.clone());
    let asked = Rejoin {
        old: config.id,
        name: config.name.clone(),
        address: own.unwrap_or_default(),
        members: founders(&config),
        tls: tls_pem(secrets),
        settings: settings(&config),
    };
    let stop = machine.supervisor.shutdown_token();
    tokio::select! {
        ended = signals::wait_for_the_end(&stop) => ended.map(|()| None),
        joined = asked.run(&machine.clock, rejoin::PATIENCE) => match joined {
            Ok(joined) => rejoin::take(config, &joined).map(Some),
            Err(error) => Err(stays(chain(&error), loss)),
        },
    }
}

async fn bind(address: SocketAddr, what: &'static str, key: &'static str) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen {
        address,
        what,
        key,
        source,
    })
}

fn read_secrets(config: &ServerConfig) -> Result<Secrets, ServerError> {
    let tls = &config.tls;
    let ca_pem = files::read_public("the authority's certificate", &tls.ca)?;
    let ca_key = files::read_secret("the authority's key", &tls.ca_key)?;
    files::check_secret("the seal key", &tls.seal_key)?;
    Ok(Secrets {
        cert_pem: files::read_public("the server's certificate", &tls.cert)?,
        key_pem: files::read_secret("the server's key", &tls.key)?,
        ca: Ca::load(&ca_pem, &ca_key).map_err(|error| ServerError::part("the authority", error))?,
        sealer: Sealer::from_key_file(&tls.seal_key).map_err(|error| ServerError::part("sealing", error))?,
        ca_pem,
    })
}

async fn start_node(
    config: &ServerConfig,
    machine: &Machine,
    secrets: &Secrets,
    listener: TcpListener,
) -> Result<(Node, SharedEngine), ServerError> {
    let fault = |error| ServerError::part("the store", error);
    let engine = RocksEngine::open(&files::store_dir(&config.data_dir), &RocksOptions::default()).map_err(fault)?;
    let engine: SharedEngine = Arc::new(engine);
    let writer = LogWriter::start(Arc::clone(&engine), WriterOptions::default()).map_err(fault)?;
    let node_config = NodeConfig {
        id: config.id,
        name: config.name.clone(),
        listen: config.raft.listen.to_string(),
        addresses: BTreeMap::new(),
        data_dir: config.data_dir.join("raft"),
        tls: tls_pem(secrets),
        members: founders(config),
        settings: settings(config),
        version: VERSION.to_owned(),
    };
    let parts = NodeParts {
        writer,
        supervisor: machine.supervisor.clone(),
        clock: Arc::clone(&machine.clock),
        rng: Arc::clone(&machine.rng),
        listener: Some(listener),
    };
    let node = Node::start(node_config, parts)
        .await
        .map_err(|error| ServerError::part("consensus", error))?;
    let disk = files::DataDisk(config.data_dir.clone());
    node.watch_disk(disk, files::FREE_SPACE_LOW, &machine.supervisor);
    Ok((node, engine))
}

fn tls_pem(secrets: &Secrets) -> TlsPem {
    TlsPem {
        ca: secrets.ca_pem.clone(),
        cert: secrets.cert_pem.clone(),
        key: secrets.key_pem.clone(),
    }
}

fn settings(config: &ServerConfig) -> Settings {
    Settings {
        heartbeat: Duration::from_millis(config.raft.heartbeat_ms),
        election_min: Duration::from_millis(config.raft.election_ms),
        election_max: Duration::from_millis(config.raft.election_ms.saturating_mul(2)),
        snapshot_rate: u64::from(config.raft.snapshot_mib_per_second) << 20,
        ..Settings::default()
    }
}

/// The servers that the system starts with, as consensus knows them.
pub(crate) fn founders(config: &ServerConfig) -> BTreeMap<u64, Member> {
    let member = |m: &MemberConfig| Member {
        name: m.name.clone(),
        address: m.raft.clone(),
    };
    config.members.iter().map(|m| (m.id, member(m))).collect()
}

/// SHA-256 (hex) of the authority's certificate.
fn fingerprint(ca_pem: &str) -> Result<String, ServerError> {
    let certs = load_certs(ca_pem).map_err(|error| ServerError::part("the authority", error))?;
    Ok(certs.first().map(|der| sha256_hex(der)).unwrap_or_default())
}

async fn serve(
    config: &ServerConfig,
    machine: &Machine,
    secrets: Secrets,
    (node, engine): (&Node, SharedEngine),
    gateway_listener: TcpListener,
) -> Result<(), ServerError> {
    let part = |name| move |error: hanse_tunnel::TunnelError| ServerError::part(name, error);
    let credentials = || Credentials::from_pem(&secrets.cert_pem, &secrets.key_pem, &secrets.ca_pem);
    let objects = Objects::new(node.council()).by(author(&config.name, &machine.clock, &machine.rng));
    let signer = Arc::new(Signer::new(&credentials().map_err(part("the tunnel"))?).map_err(part("the tunnel"))?);
    let door = door(config, machine, (node, &objects), &secrets.sealer);
    let events = Events {
        etcd: counted_routes(config, machine, node),
        objects: objects.clone(),
        ca: secrets.ca,
        clock: Arc::clone(&machine.clock),
        regions: OnceLock::new(),
        door,
    };
    let events = Arc::new(events);
    let own = credentials().map_err(part("the tunnel"))?;
    let hub = start_hub(config, machine, own, Arc::clone(&events))?;
    status::tell(node, Arc::clone(&hub) as _);
    let gateway = Gateway::new(GatewayParts {
        objects: objects.clone(),
        hub: Arc::clone(&hub) as _,
        signer,
        clock: Arc::clone(&machine.clock),
        rng: Arc::clone(&machine.rng),
        sealer: secrets.sealer.clone(),
        cluster_status: Arc::new(LiveStatus {
            node: node.clone(),
            objects: objects.clone(),
            agents_here: await_agents(node, Arc::clone(&hub) as _, &machine.clock, &machine.supervisor),
        }),
        backups: backups(config, machine, &secrets.sealer, (node, engine))?,
        metrics: machine.metrics.clone(),
        supervisor: machine.supervisor.clone(),
        ca_sha256: fingerprint(&secrets.ca_pem)?,
        ca_pem: secrets.ca_pem.clone(),
        oidc: identity_providers(config, machine, &secrets.sealer)?,
        audit_policy: config.audit.policy(),
        audit_sinks: audit_sinks(config, machine)?,
        limits: limits(config),
    });
    listen(
        machine,
        &gateway,
        gateway_listener,
        (&secrets.cert_pem, &secrets.key_pem),
    )?;
    let regions = Regions::start(RegionsParts {
        server: config.name.clone(),
        objects: objects.clone(),
        tenants: node.tenants(),
        hub: Arc::clone(&hub) as _,
        sealer: secrets.sealer,
        clock: Arc::clone(&machine.clock),
        rng: Arc::clone(&machine.rng),
        supervisor: machine.supervisor.clone(),
    });
    let first = events.regions.set(regions).is_ok();
    debug_assert!(first, "the controllers are started once");
    form(config, machine, (node, &objects), &secrets.cert_pem);
    signals::wait_for_the_end(&machine.supervisor.shutdown_token()).await
}

/// A minute's worth may come at once.
const fn rate(per_minute: u32) -> Rate {
    Rate {
        per_minute,
        burst: per_minute,
    }
}

fn limits(config: &ServerConfig) -> Limits {
    Limits {
        audit: config.audit.kept(),
        logins: LoginLimits {
            by_address: rate(config.gateway.failed_logins_per_minute),
            steps: rate(config.gateway.login_steps_per_minute),
            ..LoginLimits::default()
        },
        ..Limits::default()
    }
}

/// Where new servers come in.
fn door(config: &ServerConfig, machine: &Machine, (node, objects): (&Node, &Objects), sealer: &Sealer) -> Door {
    Door {
        node: node.clone(),
        objects: objects.clone(),
        sealer: sealer.clone(),
        clock: Arc::clone(&machine.clock),
        rng: Arc::clone(&machine.rng),
        common: Common::of(config),
    }
}

/// What takes backups of the store, and puts tenants back into it.
fn backups(
    config: &ServerConfig,
    machine: &Machine,
    sealer: &Sealer,
    (node, engine): (&Node, SharedEngine),
) -> Result<Arc<LiveBackups>, ServerError> {
    let inbox = Inbox::in_data_dir(&config.data_dir, Arc::clone(&machine.rng))?;
    let backups = LiveBackups::new(node, engine, &machine.clock, sealer, inbox);
    Ok(Arc::new(backups))
}

/// The tenants' way into the store, and everything that the store counts among the process' metrics.
fn counted_routes(config: &ServerConfig, machine: &Machine, node: &Node) -> tonic::service::Routes {
    let (routes, calls) = hanse_state::etcd::counted_routes(node.tenants());
    let (counted, data_dir) = (node.clone(), config.data_dir.clone());
    machine.metrics.gather(move || {
        let own = rejoin::families(&data_dir);
        [counted.families(), calls.families().into(), meter::process(), own].concat()
    });
    routes
}

/// Those of the configuration, with what is in the files that it names.
fn identity_providers(
    config: &ServerConfig,
    machine: &Machine,
    sealer: &Sealer,
) -> Result<Option<Arc<Oidc>>, ServerError> {
    if config.oidc.is_empty() {
        return Ok(None);
    }
    let mut issuers = Vec::new();
    for issuer in &config.oidc {
        let secret = issuer.client_secret_file.as_deref();
        let ca = issuer.ca_file.as_deref();
        let files = OidcFiles {
            client_secret: secret
                .map(|path| files::read_secret("the secret of an identity provider", path))
                .transpose()?,
            ca: ca
                .map(|path| files::read_public("the authority of an identity provider", path))
                .transpose()?,
        };
        issuers.push((issuer.clone(), files));
    }
    let session = Duration::from_secs(config.gateway.login_seconds);
    let url = &config.gateway.external_url;
    Oidc::new(issuers, sealer.clone(), url, session, &machine.clock)
        .map(|oidc| Some(Arc::new(oidc)))
        .map_err(|error| ServerError::part("logins", error))
}

/// Those of the configuration, with what is in the files that it names.
fn audit_sinks(config: &ServerConfig, machine: &Machine) -> Result<AuditSinks, ServerError> {
    let mut sinks = Vec::new();
    for sink in &config.audit.sinks {
        let webhook = sink.webhook.as_ref();
        let token = webhook.and_then(|webhook| webhook.token_file.as_deref());
        let ca = webhook.and_then(|webhook| webhook.ca_file.as_deref());
        let files = AuditSinkFiles {
            token: token
                .map(|path| files::read_secret("the token of an audit sink", path))
                .transpose()?,
            ca: ca
                .map(|path| files::read_public("the authority of an audit sink", path))
                .transpose()?,
        };
        sinks.push((sink.clone(), files));
    }
    AuditSinks::new(&config.name, sinks, &machine.clock).map_err(|error| ServerError::part("the audit", error))
}

fn start_hub(
    config: &ServerConfig,
    machine: &Machine,
    credentials: Credentials,
    events: Arc<Events>,
) -> Result<Arc<Hub>, ServerError> {
    let hub_config = HubConfig {
        listen: config.tunnel.listen,
        credentials,
        version: VERSION.to_owned(),
        settings: hanse_tunnel::Settings::default(),
    };
    let parts = Parts {
        clock: Arc::clone(&machine.clock),
        rng: Arc::clone(&machine.rng),
        supervisor: machine.supervisor.clone(),
    };
    let hub = Hub::start(hub_config, parts, events).map_err(|error| ServerError::part("the tunnel", error))?;
    Ok(Arc::new(hub))
}

fn listen(
    machine: &Machine,
    gateway: &Gateway,
    listener: TcpListener,
    (cert_pem, key_pem): (&str, &str),
) -> Result<(), ServerError> {
    let fault = |error| ServerError::part("the server's certificate", error);
    let chain = load_certs(cert_pem).map_err(fault)?;
    let key = load_key(key_pem).map_err(fault)?;
    let tls = hanse_gateway::tls_config(chain, key).map_err(|error| ServerError::part("the gateway", error))?;
    let gateway = gateway.clone();
    machine.supervisor.spawn(TaskKind::Listener, "gateway", async move {
        Ok(gateway.serve(listener, tls).await?)
    });
    Ok(())
}

/// Starts what follows the members of the cluster.
fn follow_members(machine: &Machine, node: &Node, objects: &Objects) {
    let spawn = |kind: TaskKind, name: &'static str, task: futures::future::BoxFuture<'static, _>| {
        machine.supervisor.spawn(kind, name, task);
    };
    let stop = |kind: TaskKind| machine.supervisor.shutdown_token().phase(kind.phase());
    let clock = || Arc::clone(&machine.clock);
    let kind = TaskKind::BestEffort;
    let sweep = membership::sweep(node.clone(), objects.clone(), clock(), stop(kind));
    spawn(kind, "entries of removed servers", Box::pin(sweep));
    let revoked = membership::refuse_revoked(node.clone(), objects.clone(), clock(), stop(kind));
    spawn(kind, "revoked keys", Box::pin(revoked));
    let progress = membership::tell_progress(node.clone(), clock(), stop(kind));
    spawn(kind, "progress", Box::pin(progress));
}

/// Becomes part of the cluster and makes sure of the first objects, while everything else already answers that it waits.
fn form(config: &ServerConfig, machine: &Machine, (node, objects): (&Node, &Objects), cert_pem: &str) {
    follow_members(machine, node, objects);
    let (seed, node, objects) = (seed(config, cert_pem), node.clone(), objects.clone());
    let joins = config.raft.joins;
    let (clock, rng) = (Arc::clone(&machine.clock), Arc::clone(&machine.rng));
    let stop = machine.supervisor.shutdown_token();
    machine
        .supervisor
        .spawn(TaskKind::Controller, "forming the cluster", async move {
            let work = async {
                if joins {
                    node.join(FORMING).await?;
                } else {
                    node.initialize(FORMING).await?;
                }
                while let Err(error) = bootstrap(&objects, clock.as_ref(), rng.as_ref(), &seed).await {
                    tracing::info!(error = chain(&error), "the first objects cannot be written yet");
                    clock.sleep(BOOTSTRAP_RETRY).await;
                }
                tracing::info!("ready");
                Ok(())
            };
            tokio::select! {
                done = work => done,
                () = stop.cancelled() => Ok(()),
            }
        });
}

fn seed(config: &ServerConfig, cert_pem: &str) -> Seed {
    let own = config.own_member();
    let chain = load_certs(cert_pem).unwrap_or_default();
    let key_sha256 = chain.first().and_then(|cert| cert_key_sha256(cert).ok());
    let admin = config
        .bootstrap
        .admin_key_id
        .as_ref()
        .zip(config.bootstrap.admin_key_sha256.as_ref());
    Seed {
        server: config.name.clone(),
        server_spec: ServerSpec {
            id: config.id,
            region: config.region.clone(),
            gateway: own.map(|m| m.gateway.clone()).unwrap_or_default(),
            raft: own.map(|m| m.raft.clone()).unwrap_or_default(),
            tunnel: own.map(|m| m.tunnel.clone()).unwrap_or_default(),
            key_sha256: key_sha256.unwrap_or_default(),
        },
        admin: admin.map(|(id, hash)| AdminSeed {
            user: ADMIN_USER.to_owned(),
            key_id: id.clone(),
            secret_sha256: hash.clone(),
        }),
        clusters: Vec::new(),
    }
}
