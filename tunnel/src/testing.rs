//! Stand-ins for tests of other crates: a tunnel without a network, and certificates.

use crate::api::{AgentEvents, AgentHub, Body, ServerEvents, SessionInfo, Upgraded, Uplink, take_refusal};
use crate::error::TunnelError;
use crate::identity::{Credentials, Identity};
use crate::wire::{RequestHead, StoreHead};
use async_trait::async_trait;
use bytes::Bytes;
use hanse_api::Timestamp;
use hanse_runtime::pki::{Ca, LeafSpec, PkiError};
use parking_lot::RwLock;
use rustls_pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::sync::watch;

/// Name that stands for the server in calls to [`AgentEvents`].
pub const SERVER: &str = "loopback";

struct Agent {
    events: Arc<dyn AgentEvents>,
    info: SessionInfo,
}

/// An [`AgentHub`] that calls agents in the same process, straight through.
pub struct LoopbackHub {
    agents: RwLock<BTreeMap<String, Agent>>,
    changes: watch::Sender<u64>,
}

impl fmt::Debug for LoopbackHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopbackHub")
            .field("agents", &self.agents.read().len())
            .finish()
    }
}

impl Default for LoopbackHub {
    fn default() -> Self {
        Self::new()
    }
}

impl LoopbackHub {
    /// A hub without agents.
    pub fn new() -> Self {
        Self {
            agents: RwLock::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// Connects the agent of `cluster`; replaces an earlier one.
    pub fn connect(&self, cluster: &str, events: Arc<dyn AgentEvents>) {
        let info = SessionInfo {
            cluster: cluster.to_owned(),
            since: Timestamp::default(),
            remote: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            version: "test".into(),
            boot_id: "test".into(),
        };
        self.agents.write().insert(cluster.to_owned(), Agent { events, info });
        self.changes.send_modify(|n| *n += 1);
    }

    /// Disconnects the agent of `cluster`.
    pub fn disconnect(&self, cluster: &str) {
        if self.agents.write().remove(cluster).is_some() {
            self.changes.send_modify(|n| *n += 1);
        }
    }

    fn agent(&self, cluster: &str) -> Result<Arc<dyn AgentEvents>, TunnelError> {
        let agents = self.agents.read();
        let agent = agents.get(cluster).map(|agent| Arc::clone(&agent.events));
        agent.ok_or_else(|| TunnelError::NotConnected {
            peer: Identity::Agent(cluster.to_owned()).to_string(),
        })
    }
}

#[async_trait]
impl AgentHub for LoopbackHub {
    async fn request(&self, cluster: &str, head: RequestHead, body: Body) -> Result<http::Response<Body>, TunnelError> {
        let mut response = self.agent(cluster)?.request(SERVER, head, body).await;
        take_refusal(&mut response).map_or(Ok(response), Err)
    }

    async fn upgrade(&self, cluster: &str, head: RequestHead) -> Result<Upgraded, TunnelError> {
        match self.agent(cluster)?.upgrade(SERVER, head).await {
            Upgraded::Answered(mut response) => {
                take_refusal(&mut response).map_or(Ok(Upgraded::Answered(response)), Err)
            }
            switched @ Upgraded::Switched { .. } => Ok(switched),
        }
    }

    fn send_intent(&self, cluster: &str, intent: Bytes) -> bool {
        match self.agent(cluster) {
            Ok(agent) => {
                agent.intent(SERVER, intent);
                true
            }
            Err(_not_connected) => false,
        }
    }

    fn sessions(&self) -> Vec<SessionInfo> {
        self.agents.read().values().map(|agent| agent.info.clone()).collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// An [`Uplink`] that calls a server in the same process, straight through. The latest report waits to be handed over by
/// [`LoopbackUplink::deliver`].
pub struct LoopbackUplink {
    cluster: String,
    events: Arc<dyn ServerEvents>,
    report: watch::Sender<Option<Bytes>>,
}

impl fmt::Debug for LoopbackUplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopbackUplink")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl LoopbackUplink {
    /// The uplink of the agent of `cluster`.
    pub fn new(cluster: &str, events: Arc<dyn ServerEvents>) -> Self {
        Self {
            cluster: cluster.to_owned(),
            events,
            report: watch::Sender::new(None),
        }
    }

    /// Hands the latest report to the server; false when there is no new one.
    pub async fn deliver(&self) -> bool {
        let report = self.report.send_replace(None);
        match report {
            Some(report) => {
                self.events.report(&self.cluster, report).await;
                true
            }
            None => false,
        }
    }

    /// Tells of each report that is handed in.
    pub fn reports(&self) -> watch::Receiver<Option<Bytes>> {
        self.report.subscribe()
    }
}

#[async_trait]
impl Uplink for LoopbackUplink {
    async fn store_call(&self, head: StoreHead, body: Body) -> Result<http::Response<Body>, TunnelError> {
        let mut response = self.events.store_call(&self.cluster, head, body).await;
        take_refusal(&mut response).map_or(Ok(response), Err)
    }

    fn report(&self, report: Bytes) {
        self.report.send_replace(Some(report));
    }
}

/// Both ends for one agent: a hub that calls `agent` as the agent of `cluster`, and an uplink that calls `server`.
pub fn pair(
    cluster: &str,
    agent: Arc<dyn AgentEvents>,
    server: Arc<dyn ServerEvents>,
) -> (Arc<LoopbackHub>, Arc<LoopbackUplink>) {
    let hub = LoopbackHub::new();
    hub.connect(cluster, agent);
    (Arc::new(hub), Arc::new(LoopbackUplink::new(cluster, server)))
}

/// An authority that makes credentials for tests.
#[derive(Debug)]
pub struct TestPki {
    ca: Ca,
    now: Timestamp,
}

impl TestPki {
    /// A new authority whose certificates are valid from `now`, for 30 days.
    pub fn new(now: Timestamp) -> Result<Self, PkiError> {
        Ok(Self {
            ca: Ca::generate("hanse test", 30, now)?,
            now,
        })
    }

    /// The authority itself.
    pub fn authority(&self) -> &Ca {
        &self.ca
    }

    /// The authority's certificate.
    pub fn ca(&self) -> Result<CertificateDer<'static>, PkiError> {
        Ok(hanse_runtime::pki::load_certs(self.ca.cert_pem())?.swap_remove(0))
    }

    /// Credentials of a server.
    pub fn server(&self, name: &str) -> Result<Credentials, TunnelError> {
        self.issue(&Identity::Server(name.to_owned()))
    }

    /// Credentials of an agent.
    pub fn agent(&self, cluster: &str) -> Result<Credentials, TunnelError> {
        self.issue(&Identity::Agent(cluster.to_owned()))
    }

    fn issue(&self, identity: &Identity) -> Result<Credentials, TunnelError> {
        let spec = LeafSpec {
            common_name: identity.to_string(),
            uris: vec![identity.uri()],
            client: true,
            server: matches!(identity, Identity::Server(_)),
            days: 30,
            ..Default::default()
        };
        let pair = self
            .ca
            .issue(&spec, self.now)
            .map_err(|error| TunnelError::credentials("issuing a test certificate")(error.to_string()))?;
        Credentials::from_pem(&pair.cert, &pair.key, self.ca.cert_pem())
    }
}
