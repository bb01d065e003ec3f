//! The HTTPS front door of every server: authentication, authorization, the management API in Kubernetes' style, and the
//! impersonating proxy to the API servers of tenant clusters and connected clusters.
//!
//! - [`listen`]: TLS, HTTP/1.1 and HTTP/2 on one port, limits, drain.
//! - `middleware`: what every request goes through, in one order.
//! - `router`: from a path to the part that answers.
//! - `throttle`: logins that fail; `sweep`: keys, tokens and logins that are over.
//! - `authn`, `authz`: who asks, and whether he may; `directory`: teams and roles, kept at hand.
//! - `oidc`: logins by identity providers.
//! - `audit`: who did what, into the trail.
//! - `kinds`, `apiserver`: the table of kinds, and the machinery around it; `garbage`: objects go with their owners.
//! - `proxy`: requests for other API servers; the outgoing request is built anew from what is allowed.
//! - `https`: requests to others.
//! - `reference`: the pages of `docs/api`, from the kinds.
//! - `ops`: health, version, metrics; `backup`: everything that the store holds, and `restore` of one tenant, for
//!   administrators.
//!
//! Nothing here is remembered between requests but counters: any server answers any request.

mod answer;
mod apiserver;
mod audit;
mod authn;
mod authz;
mod backup;
mod body;
mod directory;
mod error;
#[cfg(test)]
mod fuzzing;
mod garbage;
mod https;
mod kinds;
mod listen;
mod meters;
mod middleware;
mod oidc;
mod ops;
mod parts;
mod proxy;
mod query;
mod reference;
mod restore;
mod rights;
mod router;
mod sweep;
mod throttle;

pub use audit::policy::{AuditLevel, AuditPolicy, AuditResources, AuditRule, AuditStage, AuditTarget};
pub use audit::settings::{AuditKept, AuditSettings, AuditSink, FileSink, SyslogSink, WebhookSink};
pub use audit::sinks::{AuditSinkFiles, AuditSinks};
pub use authn::{ACCESS_KEY_PREFIX, ENROLMENT_TOKEN_PREFIX, access_key, enrolment_token};
pub use error::GatewayError;
pub use listen::tls_config;
pub use oidc::{Oidc, OidcFiles, OidcIssuer};
pub use parts::{BackupOf, BackupStream, Backups, ChangeFault, ClusterStatus, GatewayParts, Limits, PutBack, Said};
pub use reference::api_reference;
pub use throttle::{LoginLimits, Rate};

use apiserver::backend::Backend;
use audit::recorder::Recorder;
use audit::{retention, sinks};
use authn::Authenticator;
use authn::revocation::{Changes, watch_rights};
use directory::Directory;
use hanse_api::status::Status;
use hanse_runtime::shutdown::{Phase, Shutdown};
use hanse_runtime::supervisor::TaskKind;
use meters::Meters;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use throttle::Throttle;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// The gateway of one server. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gateway(..)")
    }
}

/// What all requests share.
pub(crate) struct Inner {
    pub(crate) parts: GatewayParts,
    pub(crate) backend: Backend,
    pub(crate) authenticator: Authenticator,
    pub(crate) changes: Changes,
    pub(crate) requests: Arc<Semaphore>,
    pub(crate) streams: Arc<Semaphore>,
    pub(crate) meters: Meters,
    pub(crate) recorder: Recorder,
    pub(crate) throttle: Mutex<Throttle>,
    pub(crate) shutdown: Shutdown,
}

impl Gateway {
    /// Puts a gateway together. It begins to follow changes of keys, users and projects at once.
    pub fn new(parts: GatewayParts) -> Self {
        let (changes, generation) = watch_rights(&parts.objects, &parts.clock, &parts.rng, &parts.supervisor);
        let directory = Directory::new(parts.objects.clone(), generation);
        let backend = Backend {
            objects: parts.objects.clone(),
            clock: parts.clock.clone(),
            rng: parts.rng.clone(),
            sealer: parts.sealer.clone(),
            cluster_status: Arc::clone(&parts.cluster_status),
            ca_sha256: parts.ca_sha256.clone(),
            ca_pem: parts.ca_pem.clone(),
            directory: directory.clone(),
        };
        let stop = parts.supervisor.shutdown_token().phase(Phase::Controllers);
        let sweep = sweep::run(parts.objects.clone(), parts.clock.clone(), stop.clone());
        parts.supervisor.spawn(TaskKind::Controller, "sweep", sweep);
        let collector = garbage::run(backend.clone(), stop);
        parts
            .supervisor
            .spawn(TaskKind::Controller, "garbage collector", collector);
        let inner = Inner {
            authenticator: Authenticator::new(
                parts.objects.clone(),
                parts.clock.clone(),
                directory,
                parts.oidc.clone(),
            ),
            changes,
            requests: Arc::new(Semaphore::new(parts.limits.requests)),
            streams: Arc::new(Semaphore::new(parts.limits.streams)),
            meters: Meters::new(&parts.metrics),
            shutdown: parts.supervisor.shutdown_token(),
            recorder: audited(&parts),
            throttle: Mutex::new(Throttle::new(parts.limits.logins)),
            backend,
            parts,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Serves `listener` until the shutdown begins, then lets requests in flight end. Make `tls` with [`tls_config`].
    pub async fn serve(&self, listener: TcpListener, tls: Arc<rustls::ServerConfig>) -> Result<(), GatewayError> {
        listen::serve(Arc::clone(&self.inner), listener, tls).await
    }
}

/// Starts what keeps the audit trail.
fn audited(parts: &GatewayParts) -> Recorder {
    let GatewayParts {
        objects,
        clock,
        rng,
        metrics,
        supervisor,
        limits,
        audit_sinks,
        ..
    } = parts;
    let (recorder, writing) = Recorder::new(objects.clone(), clock.clone(), metrics);
    let shutdown = supervisor.shutdown_token();
    // The phase after requests have ended, and before the store goes.
    let stop = shutdown.phase(Phase::Controllers);
    supervisor.spawn(TaskKind::Controller, "audit", writing.run(stop.clone()));
    let names = audit_sinks.names();
    let trim = retention::run(objects.clone(), clock.clone(), limits.audit.clone(), names, stop);
    supervisor.spawn(TaskKind::Controller, "audit retention", trim);
    sinks::start(audit_sinks, objects, (clock, rng), metrics, supervisor, &shutdown);
    recorder
}

impl Inner {
    /// Brings a request that is about to be let in into the trail, unless a rule wants nothing of it there.
    pub(crate) async fn begin_audited(&self, facts: &audit::Facts) -> Result<(), Box<Status>> {
        match facts.begun(&self.parts.audit_policy, self.parts.clock.wall()) {
            Some(event) => self.recorder.record(event).await,
            None => Ok(()),
        }
    }

    /// Whether the server is about to stop.
    pub(crate) fn draining(&self) -> bool {
        self.shutdown.is_cancelled()
    }

    /// Completes when streams shall end.
    pub(crate) async fn drain(&self) {
        self.shutdown.phase(Phase::Drain).cancelled().await;
    }
}
