//! The agent's side: stays connected to all servers, serves what they ask, and reaches any of them.
//!
//! To each server there are two connections: one for users' requests, which lives through short faults, and one for store calls,
//! on which a dead server is noticed fast. Store calls use the preferred server, or else the nearest that shows signs of life.

mod link;
mod store;
mod watchdog;

pub use store::{CallClass, classify_call};
pub use watchdog::suspect_after;

use crate::api::{AgentEvents, Body, Uplink};
use crate::error::TunnelError;
use crate::hub::Parts;
use crate::identity::{Credentials, Identity, Protocol};
use crate::quic::Connector;
use crate::settings::Settings;
use crate::wire::StoreHead;
use async_trait::async_trait;
use bytes::Bytes;
use hanse_api::Timestamp;
use hanse_runtime::backoff::Backoff;
use hanse_runtime::shutdown::Phase;
use hanse_runtime::supervisor::TaskKind;
use link::{Link, LinkEnd};
use parking_lot::RwLock;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::watch;

/// Most servers that one agent connects to.
const SERVERS_MAX: usize = 32;
/// An agent that was pushed out by another with the same certificate does not come back sooner, so that the two do not take turns
/// many times a second.
const SUPERSEDED_WAIT: Duration = Duration::from_secs(5);

/// A server to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// Its name, which its certificate must carry.
    pub name: String,
    /// Host and UDP port.
    pub address: String,
}

/// What a dialer needs to start.
#[derive(Debug)]
pub struct DialerConfig {
    /// All servers to stay connected to.
    pub servers: Vec<ServerAddress>,
    /// The server that gets store calls and reports while it lives.
    pub preferred: Option<String>,
    /// The agent's key and certificate, with an agent's identity.
    pub credentials: Credentials,
    /// Version of the program, told to servers.
    pub version: String,
    /// Whether to keep connections for store calls. Agents that host no control plane by `process` do without.
    pub store: bool,
    /// The address to dial from; any when not given.
    pub local: Option<IpAddr>,
    /// Numbers of the transport.
    pub settings: Settings,
}

/// A live connection, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Name of the server.
    pub server: String,
    /// What it carries.
    pub protocol: Protocol,
    /// Since when.
    pub since: Timestamp,
    /// Smoothed round trip.
    pub rtt: Duration,
    /// Whether the server shuts down.
    pub draining: bool,
    /// Whether it has been silent for suspiciously long.
    pub suspect: bool,
    /// Version of the server's program.
    pub version: String,
}

/// State shared by the dialer's tasks.
struct Inner {
    cluster: String,
    boot_id: String,
    version: String,
    preferred: Option<String>,
    settings: Settings,
    parts: Parts,
    connector: Connector,
    events: Arc<dyn AgentEvents>,
    links: RwLock<Vec<Arc<Link>>>,
    // Bumped when a link comes, goes, becomes suspect or drains.
    changed: watch::Sender<u64>,
    reports: watch::Sender<Option<Bytes>>,
    next_link: AtomicU64,
}

/// The agent's end of all tunnels. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    inner: Arc<Inner>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("cluster", &self.inner.cluster)
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// Starts to connect, and goes on until [`Phase::Agents`] of the process's shutdown.
    pub fn start(config: DialerConfig, parts: Parts, events: Arc<dyn AgentEvents>) -> Result<Self, TunnelError> {
        let Identity::Agent(cluster) = config.credentials.identity()? else {
            return Err(TunnelError::Identity {
                fault: "the tunnel's own certificate is not an agent's".into(),
            });
        };
        if !config.credentials.key_fits() {
            return Err(TunnelError::Identity {
                fault: "the tunnel's own certificate is for another key".into(),
            });
        }
        if config.servers.is_empty() || config.servers.len() > SERVERS_MAX {
            let fault = format!(
                "between 1 and {SERVERS_MAX} servers must be given, not {}",
                config.servers.len()
            );
            return Err(TunnelError::Credentials {
                what: "reading the list of servers",
                fault,
            });
        }
        let connector = Connector::new(&config.credentials, &config.settings, config.local)?;
        let inner = Arc::new(Inner {
            cluster,
            boot_id: parts.rng.uuid(),
            version: config.version,
            preferred: config.preferred,
            settings: config.settings,
            parts,
            connector,
            events,
            links: RwLock::default(),
            changed: watch::Sender::new(0),
            reports: watch::Sender::new(None),
            next_link: AtomicU64::new(1),
        });
        inner.spawn_tasks(config.servers, config.store);
        Ok(Self { inner })
    }

    /// The live connections.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.inner.links.read().iter().map(|link| link.info()).collect()
    }

    /// Changes whenever a connection comes, goes, or changes its health.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }
}

#[async_trait]
impl Uplink for Dialer {
    async fn store_call(&self, head: StoreHead, body: Body) -> Result<http::Response<Body>, TunnelError> {
        self.inner.store_call(head, body).await
    }

    fn report(&self, report: Bytes) {
        self.inner.reports.send_replace(Some(report));
    }
}

/// Takes the link out of the list when its connection is over, however that came.
struct Listed<'a> {
    inner: &'a Inner,
    id: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.inner.links.write().retain(|link| link.id != self.id);
        self.inner.bump();
    }
}

impl Inner {
    fn bump(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    fn stopping(&self) -> tokio_util::sync::CancellationToken {
        self.parts.supervisor.shutdown_token().phase(Phase::Agents)
    }

    fn links_of(&self, protocol: Protocol) -> Vec<Arc<Link>> {
        self.links
            .read()
            .iter()
            .filter(|link| link.protocol == protocol)
            .map(Arc::clone)
            .collect()
    }

    fn spawn_tasks(self: &Arc<Self>, servers: Vec<ServerAddress>, store: bool) {
        let supervisor = &self.parts.supervisor;
        let protocols: &[Protocol] = if store {
            &[Protocol::Control, Protocol::Store]
        } else {
            &[Protocol::Control]
        };
        for server in servers {
            for protocol in protocols.iter().copied() {
                let (dialer, server) = (Arc::clone(self), server.clone());
                let name = format!("tunnel {} {}", protocol.name(), server.name);
                supervisor.spawn(TaskKind::Session, name, async move {
                    dialer.keep(&server, protocol).await;
                    Ok(())
                });
            }
        }
        let reporting = Arc::clone(self);
        supervisor.spawn(TaskKind::Session, "tunnel reports", async move {
            reporting.deliver_reports().await;
            Ok(())
        });
        let leaving = Arc::clone(self);
        supervisor.spawn(TaskKind::Session, "tunnel farewell", async move {
            leaving.stopping().cancelled().await;
            leaving.connector.close(&*leaving.parts.clock).await;
            Ok(())
        });
    }

    /// Keeps one connection, dialing again with growing waits.
    async fn keep(self: Arc<Self>, server: &ServerAddress, protocol: Protocol) {
        let (min, max) = self.settings.backoff;
        let mut backoff = Backoff::new(min, max);
        let stopping = self.stopping();
        loop {
            let began = self.parts.clock.mono();
            let end = tokio::select! {
                () = stopping.cancelled() => return,
                end = self.connect_and_serve(server, protocol) => end,
            };
            if self.parts.clock.mono().saturating_sub(began) >= self.settings.stable_after {
                backoff.reset();
            }
            let first = backoff.tries() == 0;
            let mut wait = backoff.next(&*self.parts.rng);
            match &end {
                Ok(end) => {
                    tracing::info!(
                        server = server.name,
                        protocol = protocol.name(),
                        why = end.text,
                        "disconnected"
                    );
                    // Not all agents of a server that restarts come back at the same moment.
                    wait += end.stay_away.mul_f64(0.5 + self.parts.rng.unit());
                    if end.superseded {
                        wait = wait.max(SUPERSEDED_WAIT);
                    }
                }
                Err(error) if first => {
                    tracing::warn!(server = server.name, protocol = protocol.name(), %error, "cannot connect; trying on");
                }
                Err(error) => {
                    tracing::debug!(server = server.name, protocol = protocol.name(), %error, "cannot connect");
                }
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = self.parts.clock.sleep(wait) => {}
            }
        }
    }

    async fn connect_and_serve(
        self: &Arc<Self>,
        server: &ServerAddress,
        protocol: Protocol,
    ) -> Result<LinkEnd, TunnelError> {
        let (link, control) = link::connect(self, server, protocol).await?;
        self.links.write().push(Arc::clone(&link));
        let _listed = Listed {
            inner: self,
            id: link.id,
        };
        self.bump();
        tracing::info!(server = server.name, protocol = protocol.name(), "connected");
        Ok(link::serve(self, &link, control).await)
    }

    /// Hands the latest report to a server, the preferred one if it takes it, and tries on until one has it.
    async fn deliver_reports(&self) {
        let mut reports = self.reports.subscribe();
        let mut changed = self.changed.subscribe();
        let stopping = self.stopping();
        let (min, max) = self.settings.backoff;
        let mut backoff = Backoff::new(min, max);
        loop {
            let report = reports.borrow_and_update().clone();
            let delivered = match report {
                Some(report) => self.deliver(&report).await,
                None => true,
            };
            let again = async {
                if delivered {
                    std::future::pending::<()>().await;
                }
                let wait = backoff.next(&*self.parts.rng);
                tokio::select! {
                    () = self.parts.clock.sleep(wait) => {}
                    // Fails only when the dialer is gone, and then this loop is too.
                    _changed = changed.changed() => {}
                }
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                new = reports.changed() => if new.is_err() { return },
                () = again => {}
            }
            if delivered {
                backoff.reset();
            }
        }
    }

    async fn deliver(&self, report: &Bytes) -> bool {
        let mut links = self.links_of(Protocol::Control);
        links.sort_by_key(|link| (link.is_draining(), !self.prefers(link), link.conn.rtt()));
        for link in links {
            match link::report(self, &link, report).await {
                Ok(()) => return true,
                Err(error) => {
                    tracing::debug!(server = link.server, %error, "a report was not taken; trying the next server")
                }
            }
        }
        false
    }

    fn prefers(&self, link: &Link) -> bool {
        self.preferred.as_ref() == Some(&link.server)
    }
}
