//! The server's side: takes agents in, reaches them, and hands on what they send.
//!
//! One session per agent and protocol; the newest wins. Sessions are soft state of this process: nothing of them is stored.

mod session;

use crate::api::{AgentHub, Body, ServerEvents, SessionInfo, Upgraded};
use crate::code::Code;
use crate::error::TunnelError;
use crate::exchange::client;
use crate::identity::{Credentials, Identity, Protocol};
use crate::quic::{Arriving, Conn, Listener, QuicRecv, QuicSend};
use crate::settings::Settings;
use crate::wire::RequestHead;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::rng::SharedRng;
use hanse_runtime::shutdown::Phase;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use parking_lot::RwLock;
use session::Session;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Streams of switched connections (shells) come before bulk.
const PRIORITY_INTERACTIVE: i32 = 1;
/// The control stream comes before all others.
pub(crate) const PRIORITY_CONTROL: i32 = 2;

/// How long a draining server turns calls away before it closes connections at the earliest.
const DRAIN_NOTICE: Duration = Duration::from_millis(250);

/// What a hub needs to start.
#[derive(Debug)]
pub struct HubConfig {
    /// UDP address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The server's key and certificate, with a server's identity.
    pub credentials: Credentials,
    /// Version of the program, told to agents.
    pub version: String,
    /// Numbers of the transport.
    pub settings: Settings,
}

/// What a process gives its parts.
#[derive(Clone)]
pub struct Parts {
    /// Time.
    pub clock: SharedClock,
    /// Randomness.
    pub rng: SharedRng,
    /// Runs the tasks.
    pub supervisor: Supervisor,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("supervisor", &self.supervisor)
            .finish_non_exhaustive()
    }
}

/// The sessions of one agent here.
#[derive(Default)]
struct Slots {
    control: Option<Arc<Session>>,
    store: Option<Arc<Session>>,
    // Boot id of the session that was pushed out last: when it comes back, two agents fight over one identity.
    pushed_out: Option<String>,
}

impl Slots {
    fn of(&mut self, protocol: Protocol) -> &mut Option<Arc<Session>> {
        match protocol {
            Protocol::Store => &mut self.store,
            Protocol::Control | Protocol::Enrol => &mut self.control,
        }
    }
}

/// State shared by the hub's tasks.
struct Inner {
    name: String,
    version: String,
    settings: Settings,
    parts: Parts,
    listener: Listener,
    events: Arc<dyn ServerEvents>,
    sessions: RwLock<BTreeMap<String, Slots>>,
    changes: watch::Sender<u64>,
    next_session: AtomicU64,
    handshakes: AtomicUsize,
    enrolments: AtomicUsize,
    draining: CancellationToken,
    exchanges: TaskTracker,
}

/// The server's end of all tunnels. Cheap to clone.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("name", &self.inner.name)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// Listens, and serves until the process shuts down: no new agents from [`Phase::Refuse`] on, and in [`Phase::Agents`] those
    /// that are there are sent away.
    pub fn start(config: HubConfig, parts: Parts, events: Arc<dyn ServerEvents>) -> Result<Self, TunnelError> {
        let Identity::Server(name) = config.credentials.identity()? else {
            return Err(TunnelError::Identity {
                fault: "the tunnel's own certificate is not a server's".into(),
            });
        };
        if !config.credentials.key_fits() {
            return Err(TunnelError::Identity {
                fault: "the tunnel's own certificate is for another key".into(),
            });
        }
        let rng = Arc::clone(&parts.rng);
        let listener = Listener::bind(config.listen, &config.credentials, &config.settings, rng)?;
        let inner = Arc::new(Inner {
            name,
            version: config.version,
            settings: config.settings,
            parts,
            listener,
            events,
            sessions: RwLock::default(),
            changes: watch::Sender::new(0),
            next_session: AtomicU64::new(1),
            handshakes: AtomicUsize::new(0),
            enrolments: AtomicUsize::new(0),
            draining: CancellationToken::new(),
            exchanges: TaskTracker::new(),
        });
        let supervisor = inner.parts.supervisor.clone();
        let accepting = Arc::clone(&inner);
        supervisor.spawn(TaskKind::Listener, "tunnel listener", async move {
            accepting.accept().await
        });
        let leaving = Arc::clone(&inner);
        supervisor.spawn(TaskKind::Session, "tunnel drain", async move {
            leaving
                .parts
                .supervisor
                .shutdown_token()
                .phase(Phase::Agents)
                .cancelled()
                .await;
            leaving.drain().await;
            Ok(())
        });
        Ok(Self { inner })
    }

    /// The UDP address that it listens on.
    pub fn local_addr(&self) -> Result<SocketAddr, TunnelError> {
        self.inner.listener.local_addr()
    }

    /// Ends all sessions of an agent, such as one whose certificate was revoked. It may dial again.
    pub fn disconnect(&self, cluster: &str) {
        let slots = self.inner.sessions.write().remove(cluster);
        let Some(slots) = slots else { return };
        for session in [slots.control, slots.store].into_iter().flatten() {
            session.conn.close(Code::Revoked, "disconnected by the server");
        }
        self.inner.changes.send_modify(|n| *n += 1);
    }

    /// Tells all agents to go elsewhere, lets exchanges end for the configured time, then closes. Done by itself in
    /// [`Phase::Agents`].
    pub async fn drain(&self) {
        self.inner.drain().await;
    }

    fn session(&self, cluster: &str) -> Result<Arc<Session>, TunnelError> {
        if self.inner.draining.is_cancelled() {
            return Err(TunnelError::Draining {
                peer: format!("server {}", self.inner.name),
            });
        }
        let sessions = self.inner.sessions.read();
        let session = sessions.get(cluster).and_then(|slots| slots.control.as_ref());
        session.map(Arc::clone).ok_or_else(|| TunnelError::NotConnected {
            peer: Identity::Agent(cluster.to_owned()).to_string(),
        })
    }

    async fn open(&self, session: &Session, priority: i32) -> Result<(QuicSend, QuicRecv), TunnelError> {
        let wait = self.inner.settings.connect_wait;
        timeout(&*self.inner.parts.clock, wait, session.conn.open(priority))
            .await
            .map_err(|_elapsed| TunnelError::Busy {
                peer: session.conn.peer().to_owned(),
            })?
    }

    /// Runs an exchange; while its answer is awaited, checks now and then that the agent lives at all. A dead agent's
    /// connection is closed, and the exchange fails with it.
    async fn alive<T>(
        &self,
        session: &Session,
        exchange: impl Future<Output = Result<T, TunnelError>>,
    ) -> Result<T, TunnelError> {
        let checks = async {
            loop {
                self.inner.parts.clock.sleep(self.inner.settings.probe_after).await;
                session.probe.notify_one();
            }
        };
        tokio::select! {
            biased;
            outcome = exchange => outcome,
            () = checks => Err(TunnelError::lost(session.conn.peer(), "no sign of life from the other end")),
        }
    }
}

#[async_trait]
impl AgentHub for Hub {
    async fn request(&self, cluster: &str, head: RequestHead, body: Body) -> Result<http::Response<Body>, TunnelError> {
        let session = self.session(cluster)?;
        let mut frame = BytesMut::new();
        head.put(&mut frame)?;
        let streams = self.open(&session, 0).await?;
        let call = client::call(streams, session.conn.peer(), frame, body, &self.inner.parts.supervisor);
        self.alive(&session, call).await
    }

    async fn upgrade(&self, cluster: &str, head: RequestHead) -> Result<Upgraded, TunnelError> {
        let session = self.session(cluster)?;
        let mut frame = BytesMut::new();
        RequestHead { upgrade: true, ..head }.put(&mut frame)?;
        let streams = self.open(&session, PRIORITY_INTERACTIVE).await?;
        self.alive(&session, client::upgrade(streams, session.conn.peer(), frame))
            .await
    }

    fn send_intent(&self, cluster: &str, intent: Bytes) -> bool {
        match self.session(cluster) {
            Ok(session) => {
                session.intents.send_replace(Some(intent));
                true
            }
            Err(_not_connected) => false,
        }
    }

    fn sessions(&self) -> Vec<SessionInfo> {
        let sessions = self.inner.sessions.read();
        sessions
            .values()
            .filter_map(|slots| slots.control.as_ref())
            .map(|session| session.info.clone())
            .collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }
}

/// Counts something for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inner {
    async fn accept(self: Arc<Self>) -> Result<(), hanse_runtime::BoxError> {
        let refuse = self.parts.supervisor.shutdown_token().phase(Phase::Refuse);
        loop {
            let arriving = tokio::select! {
                () = refuse.cancelled() => {
                    self.listener.refuse_new();
                    return Ok(());
                }
                arriving = self.listener.next() => arriving,
            };
            let Some(arriving) = arriving else {
                // Closed from within, by a drain that somebody asked for.
                return Ok(());
            };
            let in_progress = self.handshakes.load(Ordering::Relaxed);
            let Some(arriving) = arriving.screen(in_progress, &self.settings) else {
                continue;
            };
            let hub = Arc::clone(&self);
            self.parts
                .supervisor
                .spawn(TaskKind::Session, "tunnel session", async move {
                    hub.receive(arriving).await;
                    Ok(())
                });
        }
    }

    async fn receive(self: Arc<Self>, arriving: Arriving) {
        let clock = Arc::clone(&self.parts.clock);
        let shaken = {
            let _counted = Counted::new(&self.handshakes);
            timeout(&*clock, self.settings.handshake, arriving.handshake()).await
        };
        let outcome = match shaken {
            Ok(Ok((conn, Protocol::Enrol, _))) => self.enrol(conn).await,
            Ok(Ok((conn, protocol, Some(cluster)))) => session::run(&self, conn, protocol, cluster).await,
            Ok(Ok((_, _, None))) => Err(TunnelError::Identity {
                fault: "no certificate was shown".into(),
            }),
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => Err(TunnelError::Deadline {
                what: "a handshake".into(),
            }),
        };
        if let Err(error) = outcome {
            tracing::info!(server = self.name, %error, "a connection to the tunnel ended");
        }
    }

    async fn enrol(&self, conn: Conn) -> Result<(), TunnelError> {
        let counted = Counted::new(&self.enrolments);
        if counted.0.load(Ordering::Relaxed) > self.settings.enrolments_max {
            conn.close(Code::Busy, "too many enrolments at once; try again");
            return Err(TunnelError::Busy {
                peer: format!("server {}", self.name),
            });
        }
        let limit = (self.settings.handshake, &self.parts.clock);
        let outcome = crate::enrol::serve(&conn, &*self.events, limit).await;
        conn.close(Code::None, "enrolment is over");
        outcome
    }

    async fn drain(&self) {
        if self.draining.is_cancelled() {
            return;
        }
        self.draining.cancel();
        self.listener.refuse_new();
        self.exchanges.close();
        if !self.sessions.read().is_empty() {
            // Calls that are on their way cross the news that this server drains; they are turned away unread.
            self.parts
                .clock
                .sleep(DRAIN_NOTICE.min(self.settings.drain_grace))
                .await;
        }
        let waited = timeout(&*self.parts.clock, self.settings.drain_grace, self.exchanges.wait()).await;
        if waited.is_err() {
            tracing::debug!(
                left = self.exchanges.len(),
                "exchanges that were still going on are broken off"
            );
        }
        self.listener
            .close(Code::Draining, "the server shuts down", &*self.parts.clock)
            .await;
    }
}
