//! The replicated store alone, as a stand-in for etcd: engine, consensus and the etcd API on TCP. `hanse store`.
//!
//! It serves one key space, without a prefix: the one that a management server keeps its objects in. See
//! `docs/design/0007-hanse-store.md`.

use crate::error::ServerError;
use crate::files;
use crate::node::VERSION;
use crate::signals;
use crate::store_members::{Members, id_of, settle_identity};
use hanse_api::Timestamp;
use hanse_api::intent::KeyPair;
use hanse_consensus::{Member, Node, NodeConfig, NodeId, NodeParts, Settings, TlsPem, Trust};
use hanse_runtime::clock::{SharedClock, SystemClock};
use hanse_runtime::pki::{Ca, LeafSpec, PkiError};
use hanse_runtime::rng::SystemRng;
use hanse_runtime::shutdown::{Phase, Shutdown};
use hanse_runtime::supervisor::{Supervisor, TaskKind, chain};
use hanse_state::engine::{LogWriter, RocksEngine, RocksOptions, SharedEngine, WriterOptions};
use hanse_state::etcd::{Door, DoorSettings, DoorTls};
use hanse_state::pb;
use hanse_state::{Access, GroupId, Store, StoreError};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;

pub use hanse_state::etcd::VERSION as ETCD_VERSION;

/// How long a member waits for a majority of the others. etcd waits for ever; so does this, for all that matters.
const FORMING: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long each phase of the end may take.
const PHASE_LIMIT: Duration = Duration::from_secs(5);
/// What calls in flight get after watches were ended.
const DRAIN: Duration = Duration::from_millis(500);
/// How often revisions are looked at for compaction by count, and at least by time.
const COMPACTION_TICK: Duration = Duration::from_secs(10);
/// How often the free space is looked at.
const DISK_TICK: Duration = Duration::from_secs(10);
/// Name in certificates that are made up.
const AUTO_NAME: &str = "hanse-store";
/// Lifetime of certificates that are made up; each start makes new ones.
const AUTO_DAYS: u32 = 3650;
/// Revisions and their times that are remembered for compaction by time: one each tick, for a bit more than a week.
const COMPACTION_MARKS: usize = 65_536;

/// Files of one side's TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authority of those who call; none: callers need no certificate.
    pub ca: Option<PathBuf>,
}

/// One address for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientListen {
    /// `host:port`.
    pub address: String,
    /// Whether it speaks TLS.
    pub tls: bool,
}

/// How the other members are met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerTls {
    /// http URLs.
    Open,
    /// https URLs without certificates: every member makes up its own, of an authority that follows from the token. Nobody
    /// who listens on the wire can read; who reaches the port and knows the token is let in.
    Auto,
    /// https URLs: certificates of one authority, for the hosts in the URLs.
    Files(TlsFiles),
}

/// Certificates of the addresses for clients with TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientTls {
    /// Made up at each start, for the hosts of the addresses; clients cannot check them.
    Auto,
    /// From files.
    Files(TlsFiles),
}

/// What history is dropped without being asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compaction {
    /// None.
    #[default]
    Off,
    /// Revisions older than this.
    Periodic(Duration),
    /// All but so many revisions.
    Revision(i64),
}

/// One member as `initial-cluster` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorePeer {
    /// Name.
    pub name: String,
    /// `host:port` of its peer URL.
    pub address: String,
}

/// What `hanse store` runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// This member's name.
    pub name: String,
    /// Where everything lies.
    pub data_dir: PathBuf,
    /// Tells clusters apart.
    pub token: String,
    /// All members, this one included.
    pub members: Vec<StorePeer>,
    /// Whether it is to join a cluster that runs, to which it was added, rather than to found one.
    pub existing: bool,
    /// Whether members must have been together for a while before one is added or removed. The quorum is minded in any case.
    pub strict: bool,
    /// `host:port` to listen on for members.
    pub peer_listen: String,
    /// How members meet.
    pub peer_tls: PeerTls,
    /// Addresses for clients.
    pub clients: Vec<ClientListen>,
    /// What members tell clients of this one.
    pub advertise: Vec<String>,
    /// For client addresses with TLS.
    pub client_tls: Option<ClientTls>,
    /// How often the leader is heard of.
    pub heartbeat: Duration,
    /// Without the leader for so long there is an election.
    pub election: Duration,
    /// Log entries after which older ones are purged.
    pub snapshot_every: u64,
    /// Compaction by itself.
    pub compaction: Compaction,
    /// Bytes that keys and their history may take; none: no limit.
    pub quota: Option<u64>,
}

/// Id of a founder: from what all founders know of it, so that they find the same one. Who joins later is given one.
pub fn member_id(token: &str, peer: &StorePeer) -> NodeId {
    id_of(&format!("{token}\n{}\n{}", peer.name, peer.address))
}

impl StoreConfig {
    fn node_config(&self, now: Timestamp) -> Result<NodeConfig, ServerError> {
        let members: BTreeMap<NodeId, Member> = self
            .members
            .iter()
            .map(|peer| {
                let member = Member {
                    name: peer.name.clone(),
                    address: peer.address.clone(),
                };
                (member_id(&self.token, peer), member)
            })
            .collect();
        let me = members.iter().find(|(_, member)| member.name == self.name);
        let id = me.map(|(id, _)| *id).unwrap_or_default();
        let (trust, tls) = self.peer_trust(now)?;
        Ok(NodeConfig {
            id,
            name: self.name.clone(),
            listen: self.peer_listen.clone(),
            data_dir: self.data_dir.join("raft"),
            tls,
            members,
            addresses: BTreeMap::new(),
            settings: self.settings(trust),
            version: VERSION.to_owned(),
        })
    }

    fn peer_trust(&self, now: Timestamp) -> Result<(Trust, TlsPem), ServerError> {
        match &self.peer_tls {
            PeerTls::Open => {
                let none = TlsPem {
                    ca: String::new(),
                    cert: String::new(),
                    key: String::new(),
                };
                Ok((Trust::Open, none))
            }
            PeerTls::Auto => {
                let fault = |error| ServerError::part("certificates for members", error);
                let ca = Ca::derived(AUTO_NAME, self.token.as_bytes(), AUTO_DAYS, now).map_err(fault)?;
                let me = self.members.iter().find(|peer| peer.name == self.name);
                let leaf = made_up(&ca, me.map(|peer| peer.address.as_str()), now).map_err(fault)?;
                let pem = TlsPem {
                    ca: ca.cert_pem().to_owned(),
                    cert: leaf.cert,
                    key: leaf.key,
                };
                Ok((Trust::Hosts, pem))
            }
            PeerTls::Files(files) => {
                let ca = files.ca.as_ref();
                let pem = TlsPem {
                    ca: ca.map_or(Ok(String::new()), |ca| files::read_public("the peers' authority", ca))?,
                    cert: files::read_public("the peer certificate", &files.cert)?,
                    key: files::read_public("the peer key", &files.key)?,
                };
                Ok((Trust::Hosts, pem))
            }
        }
    }

    /// A member without a leader stands for election after `election_max` and a random time between the two: together once to
    /// one and a third times etcd's timeout, whose own range is once to twice.
    fn settings(&self, trust: Trust) -> Settings {
        Settings {
            heartbeat: self.heartbeat,
            election_min: self.election / 3,
            election_max: self.election * 2 / 3,
            append_timeout: self.election.max(Settings::default().append_timeout),
            snapshot_every: self.snapshot_every,
            keep_entries: self.snapshot_every,
            trust,
            ..Settings::default()
        }
    }

    fn client_tls(&self, now: Timestamp) -> Result<Option<DoorTls>, ServerError> {
        let files = match &self.client_tls {
            None => return Ok(None),
            Some(ClientTls::Auto) => {
                let fault = |error| ServerError::part("certificates for clients", error);
                let hosts = self.clients.iter().map(|listen| listen.address.as_str());
                let ca = Ca::generate(AUTO_NAME, AUTO_DAYS, now).map_err(fault)?;
                let leaf = made_up(&ca, hosts, now).map_err(fault)?;
                return Ok(Some(DoorTls {
                    cert: leaf.cert + ca.cert_pem(),
                    key: leaf.key,
                    ca: None,
                }));
            }
            Some(ClientTls::Files(files)) => files,
        };
        Ok(Some(DoorTls {
            cert: files::read_public("the certificate for clients", &files.cert)?,
            key: files::read_public("the key for clients", &files.key)?,
            ca: match &files.ca {
                Some(ca) => Some(files::read_public("the authority of clients", ca)?),
                None => None,
            },
        }))
    }
}

/// A certificate for the hosts of addresses.
fn made_up<'a>(ca: &Ca, addresses: impl IntoIterator<Item = &'a str>, now: Timestamp) -> Result<KeyPair, PkiError> {
    let mut spec = LeafSpec {
        common_name: AUTO_NAME.to_owned(),
        client: true,
        server: true,
        days: AUTO_DAYS,
        ..LeafSpec::default()
    };
    for address in addresses {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        match host.trim_matches(['[', ']']).parse() {
            Ok(ip) => spec.ips.push(ip),
            Err(_) => spec.dns.push(host.to_owned()),
        }
    }
    ca.issue(&spec, now)
}

async fn bind(address: &str, what: &str, key: &str) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| {
        let fault =
            format!("cannot listen on {address} for {what} (flag {key}): {source}; is another program using it?");
        ServerError::part("listening", fault)
    })
}

/// Runs a member until SIGTERM, SIGINT or a fault.
pub async fn run_store(config: StoreConfig) -> Result<(), ServerError> {
    let supervisor = Supervisor::new(Shutdown::new());
    let clock = SystemClock::shared();
    let _lock = files::lock_data_dir(&config.data_dir)?;
    files::check_free_space(&config.data_dir)?;
    let tls = config.client_tls(clock.wall())?;
    let mut doors = Vec::new();
    for listen in &config.clients {
        doors.push(Door {
            listener: bind(&listen.address, "clients", "--listen-client-urls").await?,
            tls: tls.clone().filter(|_| listen.tls),
            access: Access::registry(),
            operator: None,
            settings: DoorSettings {
                quota: config.quota,
                spool: Some(config.data_dir.join("snapshots")),
            },
        });
    }
    let peer_listener = bind(&config.peer_listen, "members", "--listen-peer-urls").await?;
    let fault = |error| ServerError::part("the store", error);
    let engine = RocksEngine::open(&config.data_dir.join("store"), &RocksOptions::default()).map_err(fault)?;
    let engine: SharedEngine = Arc::new(engine);
    let node_config = config.node_config(clock.wall())?;
    let node_config = settle_identity(node_config, config.existing, &engine, &clock).await?;
    let parts = NodeParts {
        writer: LogWriter::start(engine, WriterOptions::default()).map_err(fault)?,
        supervisor: supervisor.clone(),
        clock: Arc::clone(&clock),
        rng: SystemRng::shared(),
        listener: Some(peer_listener),
    };
    let node = Node::start(node_config, parts)
        .await
        .map_err(|error| ServerError::part("consensus", error))?;
    let shutdown = supervisor.shutdown_token();
    let outcome = tokio::select! {
        outcome = serve(&config, &node, &supervisor, &clock, doors) => outcome,
        ended = signals::wait_for_the_end(&shutdown) => ended,
    };
    supervisor.shut_down(PHASE_LIMIT).await;
    tracing::info!("stopped");
    outcome?;
    supervisor
        .failure()
        .map_or(Ok(()), |failure| Err(ServerError::Task(failure)))
}

/// Becomes part of the cluster, opens the doors, and never comes back by itself.
async fn serve(
    config: &StoreConfig,
    node: &Node,
    supervisor: &Supervisor,
    clock: &SharedClock,
    doors: Vec<Door>,
) -> Result<(), ServerError> {
    let fault = |error| ServerError::part("the cluster", error);
    let advertise = config.advertise.join(",").into_bytes();
    node.tell(move || advertise.clone());
    let part = if config.existing {
        node.join(FORMING).await
    } else {
        node.initialize(FORMING).await
    };
    part.map_err(fault)?;
    node.wait_for_leaders(FORMING).await.map_err(fault)?;
    let operator = Arc::new(Members {
        node: node.clone(),
        clock: Arc::clone(clock),
        rng: SystemRng::shared(),
        scheme: match config.peer_tls {
            PeerTls::Open => "http",
            PeerTls::Auto | PeerTls::Files(_) => "https",
        },
        limit: config.election * 5,
        since: clock.mono(),
        strict: config.strict,
        urls: Mutex::default(),
    });
    let shutdown = supervisor.shutdown_token();
    for mut door in doors {
        door.operator = Some(Arc::clone(&operator) as _);
        let (refuse, drain) = (shutdown.phase(Phase::Refuse), shutdown.phase(Phase::Drain));
        let address = door.listener.local_addr().map(|address| address.to_string());
        let (clock, store) = (Arc::clone(clock), node.council());
        supervisor.spawn(TaskKind::Controller, "client door", async move {
            let cut = async {
                drain.cancelled().await;
                clock.sleep(DRAIN).await;
            };
            tokio::select! {
                served = door.serve(store, async move { refuse.cancelled().await }) => Ok(served?),
                () = cut => Ok(()),
            }
        });
        tracing::info!(address = address.unwrap_or_default(), "ready to serve client requests");
    }
    tokio::join!(
        compact_for_ever(config.compaction, node, clock),
        watch_the_disk(&config.data_dir, node, clock)
    );
    Ok(())
}

/// Raises the alarm before the disk is full: then reads and deletions still work, and there is room for them.
async fn watch_the_disk(path: &Path, node: &Node, clock: &SharedClock) {
    let (store, access) = (node.council(), Access::registry());
    let mut low = false;
    loop {
        let free = match files::free_space(path) {
            Ok(free) => free,
            Err(error) => {
                tracing::warn!(error = chain(&error), "free space is not known");
                u64::MAX
            }
        };
        // Once for each time that it gets low, so that an operator can disarm it and go on at his own risk.
        let was_low = std::mem::replace(&mut low, free < files::FREE_SPACE_LOW);
        if low && !was_low {
            tracing::error!(
                free_mib = free >> 20,
                "the disk is nearly full: writes are refused until there is room"
            );
            let member = node.id();
            if let Err(error) = store
                .set_alarm(&access, member, pb::AlarmType::Nospace.into(), true)
                .await
            {
                tracing::warn!(
                    error = chain(&error),
                    "the alarm could not be raised; it is tried again"
                );
                low = false;
            }
        }
        clock.sleep(DISK_TICK).await;
    }
}

/// The leader drops history by the policy.
async fn compact_for_ever(policy: Compaction, node: &Node, clock: &SharedClock) {
    let store = node.council();
    let leadership = node.leadership(GroupId::COUNCIL);
    let mut marks = Marks::default();
    loop {
        clock.sleep(COMPACTION_TICK).await;
        marks.note(clock.mono(), store.revision());
        let leads = leadership.as_ref().is_some_and(|leadership| leadership.borrow().here);
        let Some(revision) = marks.due(policy, clock.mono(), store.revision()) else {
            continue;
        };
        if !leads {
            continue;
        }
        match store.compact(&Access::registry(), revision).await {
            Ok(_) => tracing::info!(revision, "compacted by policy"),
            Err(StoreError::Compacted { .. }) => {}
            Err(error) => tracing::warn!(
                revision,
                error = chain(&error),
                "compaction by policy failed; it is tried again"
            ),
        }
    }
}

/// Which revision was current when.
#[derive(Debug, Default)]
struct Marks {
    seen: std::collections::VecDeque<(Duration, i64)>,
    done: i64,
}

impl Marks {
    fn note(&mut self, now: Duration, revision: i64) {
        if self.seen.back().is_none_or(|(_, last)| *last != revision) {
            self.seen.push_back((now, revision));
        }
        if self.seen.len() > COMPACTION_MARKS {
            self.seen.pop_front();
        }
    }

    /// The revision to compact at, once.
    fn due(&mut self, policy: Compaction, now: Duration, current: i64) -> Option<i64> {
        let target = match policy {
            Compaction::Off => return None,
            Compaction::Revision(keep) => current - keep,
            Compaction::Periodic(age) => {
                let mut target = 0;
                while let Some((at, revision)) = self.seen.front().copied()
                    && now.saturating_sub(at) >= age
                {
                    target = revision;
                    self.seen.pop_front();
                }
                target
            }
        };
        if target <= self.done || target <= 0 {
            return None;
        }
        self.done = target;
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_dropped_once_by_age_or_count() {
        let mut marks = Marks::default();
        let at = Duration::from_secs;
        marks.note(at(0), 5);
        marks.note(at(10), 9);
        let hour = Compaction::Periodic(at(3600));
        assert_eq!(marks.due(hour, at(3599), 9), None);
        assert_eq!(marks.due(hour, at(3600), 9), Some(5));
        assert_eq!(marks.due(hour, at(3605), 9), None);
        assert_eq!(marks.due(hour, at(3610), 9), Some(9));
        let mut marks = Marks::default();
        assert_eq!(marks.due(Compaction::Revision(100), at(1), 90), None);
        assert_eq!(marks.due(Compaction::Revision(100), at(1), 150), Some(50));
        assert_eq!(marks.due(Compaction::Revision(100), at(2), 150), None);
        assert_eq!(marks.due(Compaction::Off, at(2), 150), None);
    }

    #[test]
    fn a_member_has_one_id_and_clusters_do_not_share_any() {
        let peer = StorePeer {
            name: "a".into(),
            address: "127.0.0.1:2380".into(),
        };
        assert_eq!(member_id("t", &peer), member_id("t", &peer));
        assert_ne!(member_id("t", &peer), member_id("u", &peer));
    }
}
