//! What the gateway needs from the rest of the server. `server/` fills it in; tests use stand-ins.

use crate::audit::policy::AuditPolicy;
use crate::audit::settings::AuditKept;
use crate::audit::sinks::AuditSinks;
use crate::oidc::Oidc;
use crate::throttle::LoginLimits;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use hanse_api::resources::Server;
use hanse_runtime::BoxError;
use hanse_runtime::clock::SharedClock;
use hanse_runtime::rng::SharedRng;
use hanse_runtime::seal::Sealer;
use hanse_runtime::supervisor::Supervisor;
use hanse_runtime::telemetry::Metrics;
use hanse_state::StoreError;
use hanse_state::backup::{BackupError, Replaced};
use hanse_state::objects::Objects;
use hanse_tunnel::AgentHub;
use hanse_tunnel::assertion::Signer;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Why the members were not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeFault {
    /// They must not be, for this reason.
    Refused(String),
    /// It is not known whether they were.
    Store(StoreError),
}

/// How the servers are, and what changes who they are.
#[async_trait]
pub trait ClusterStatus: Send + Sync + 'static {
    /// All servers with their status; one that does not answer is there with `online: false`.
    async fn servers(&self) -> Vec<Server>;
    /// Whether this server, lately started, waits for agents that others hold. It is not ready until then: a load balancer
    /// would send it requests for tenants that it cannot reach yet.
    fn awaits_agents(&self) -> bool;
    /// Takes the server with this name and id out of the system for good; its object goes as well, through `objects`. May be
    /// asked for again.
    async fn remove(&self, objects: &Objects, name: &str, id: u64) -> Result<(), ChangeFault>;
    /// Lets the members reach the server with this id at another address, `host:port`.
    async fn relocate(&self, id: u64, address: &str) -> Result<(), ChangeFault>;
}

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupOf {
    /// All groups.
    Everything,
    /// The key space of the tenant with this id.
    Tenant(String),
}

/// The bytes of a backup. An error, or an end without the file's last frame, means that it is worth nothing.
pub type BackupStream = BoxStream<'static, Result<Bytes, BoxError>>;

/// Makes backups.
#[async_trait]
pub trait Backups: Send + Sync + 'static {
    /// Begins one that holds everything that was acknowledged before the call. [`StoreError::Overloaded`]: this server makes
    /// as many as it may.
    async fn take(&self, of: BackupOf) -> Result<BackupStream, StoreError>;
    /// Receives a file with one tenant's key space, to be put back, and reads it to its end. Nothing is changed by that.
    async fn receive(&self, tenant: &str, file: BackupStream) -> Result<Box<dyn PutBack>, BackupError>;
}

/// Hears how many bytes are put back.
pub type Said = Box<dyn Fn(u64) + Send + Sync>;

/// A backup of one tenant's key space that was received and found fit.
#[async_trait]
pub trait PutBack: Send {
    /// Puts it in the place of what the tenant's key space holds, which is closed to the tenant meanwhile.
    async fn run(self: Box<Self>, said: Said) -> Result<Replaced, BackupError>;
}

/// Bounds. The defaults are what an installation should have; tests make some smaller.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections.
    pub connections: usize,
    /// Short requests in flight; further ones are answered 429.
    pub requests: usize,
    /// Long-running requests (watches, logs, exec) in flight.
    pub streams: usize,
    /// Bytes of a request body of the management API.
    pub body: usize,
    /// Time for a TLS handshake.
    pub handshake: Duration,
    /// Time for the head of a request on HTTP/1.1.
    pub head: Duration,
    /// Time for a short request of the management API.
    pub request: Duration,
    /// Time until the head of a proxied answer, for short requests. A little more than an API server's own 60 s.
    pub proxy_head: Duration,
    /// Time that streams get after a drain began.
    pub drain: Duration,
    /// What is kept of the audit trail.
    pub audit: AuditKept,
    /// How often logins may fail.
    pub logins: LoginLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            requests: 1_000,
            streams: 20_000,
            body: 3 * 1024 * 1024,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(32),
            request: Duration::from_secs(60),
            proxy_head: Duration::from_secs(65),
            drain: Duration::from_secs(2),
            audit: AuditKept::default(),
            logins: LoginLimits::default(),
        }
    }
}

/// Everything that a gateway is made of.
#[derive(Clone)]
pub struct GatewayParts {
    /// The registry, on top of the council's store.
    pub objects: Objects,
    /// Way to the agents.
    pub hub: Arc<dyn AgentHub>,
    /// Signs who asks, for the agents.
    pub signer: Arc<Signer>,
    /// Time.
    pub clock: SharedClock,
    /// Chance.
    pub rng: SharedRng,
    /// Seals what no log may hold in clear: with the system's key, the same on every server.
    pub sealer: Sealer,
    /// Live status of servers.
    pub cluster_status: Arc<dyn ClusterStatus>,
    /// Makes backups.
    pub backups: Arc<dyn Backups>,
    /// Where metrics are registered.
    pub metrics: Metrics,
    /// Runs connections and background tasks.
    pub supervisor: Supervisor,
    /// SHA-256 (hex) of the system's CA certificate; enrolment tokens pin it.
    pub ca_sha256: String,
    /// The system's CA certificates, PEM; kubeconfigs hold them.
    pub ca_pem: String,
    /// Identity providers by which people log in; none without.
    pub oidc: Option<Arc<Oidc>>,
    /// Which requests are audited, beside those that always are.
    pub audit_policy: AuditPolicy,
    /// Who else is given the audit trail.
    pub audit_sinks: AuditSinks,
    /// Bounds.
    pub limits: Limits,
}

impl fmt::Debug for GatewayParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayParts")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
