//! A server's consensus: all Raft groups over one engine, one log writer, one port.

use crate::admission::{Admission, Entrance, Gate, is_out, replies, watch_removal};
use crate::arrival::Arrivals;
use crate::config::NodeConfig;
use crate::disk::Disk;
use crate::error::ConsensusError;
use crate::forward::Forwarder;
use crate::group::{Group, GroupRaft, Leadership};
use crate::identity;
use crate::level;
use crate::log_store::LogStore;
use crate::membership::Changes;
use crate::meters::ReadCounts;
use crate::network::{NetworkFactory, Peers, Snapshots};
use crate::pending::Pending;
use crate::purge;
use crate::read_index::MAX_WAITING_READS;
use crate::replicated_store::ReplicatedStore;
use crate::roster::{Change, Roster};
use crate::rounds::MAX_QUESTIONS;
use crate::service::{Server, Service};
use crate::spool::Spool;
use crate::state_machine::StateMachine;
use crate::status::{About, MemberStatus, ask_all, member_statuses};
use crate::timers;
use crate::tls::Tls;
use crate::types::{GROUPS, GroupId, Member, NodeId, Seat, group_name};
use crate::vacancy;
use hanse_runtime::clock::SharedClock;
use hanse_runtime::meter::{self, Family};
use hanse_runtime::rng::SharedRng;
use hanse_runtime::shutdown::Phase;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use hanse_state::engine::{LogWriter, WriteBatch};
use hanse_state::machine::Machine;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// Between two looks at something that is awaited.
const POLL: Duration = Duration::from_millis(20);

/// What a node runs on.
pub struct NodeParts {
    /// The one log writer, on the server's one engine.
    pub writer: LogWriter,
    /// Runs its tasks.
    pub supervisor: Supervisor,
    /// Its clock.
    pub clock: SharedClock,
    /// Its source of random numbers.
    pub rng: SharedRng,
    /// A listener that is already bound; otherwise `NodeConfig::listen` is.
    pub listener: Option<TcpListener>,
}

impl fmt::Debug for NodeParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeParts")
            .field("writer", &self.writer)
            .finish_non_exhaustive()
    }
}

/// A running node. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: NodeConfig,
    groups: Arc<BTreeMap<GroupId, Arc<Group>>>,
    about: Arc<About>,
    stores: BTreeMap<GroupId, Arc<ReplicatedStore>>,
    changes: Arc<Changes>,
    entrance: Arc<Entrance>,
    peers: Peers,
    clock: SharedClock,
    writer: LogWriter,
    /// Whether Raft was stopped; held while it is being stopped.
    stopped: tokio::sync::Mutex<bool>,
}

async fn listen(address: &str) -> Result<TcpListener, ConsensusError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| ConsensusError::Listen {
        address: address.to_owned(),
        source,
    })
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.inner.config.id)
            .field("name", &self.inner.config.name)
            .finish_non_exhaustive()
    }
}

fn raft_fault<E: fmt::Display>(group: GroupId, what: &'static str) -> impl FnOnce(E) -> ConsensusError {
    move |error| ConsensusError::Raft {
        group,
        what,
        fault: error.to_string(),
    }
}

impl Node {
    /// Opens the groups, starts Raft and listens for the other servers. [`Node::initialize`] comes next.
    pub async fn start(config: NodeConfig, parts: NodeParts) -> Result<Self, ConsensusError> {
        config.check()?;
        identity::claim(&config.data_dir, config.id)?;
        // Before anything runs: one that lost entries of a group must not vote in another either.
        let logs = open_logs(&config, &parts.writer)?;
        let tls = Tls::by(config.settings.trust, &config.tls, &config.name)?;
        let NodeParts {
            writer,
            supervisor,
            clock,
            rng,
            listener,
        } = parts;
        let listener = match listener {
            Some(listener) => listener,
            None => listen(&config.listen).await?,
        };
        let peers = Peers::new(&config, tls.clone(), Arc::clone(&clock));
        let starting = Starting {
            config: &config,
            peers: &peers,
            writer: &writer,
            rng: &rng,
            supervisor: &supervisor,
        };
        let entrance = starting.entrance().await?;
        let groups = Arc::new(starting.groups(logs).await?);
        let about = Arc::new(About::new(
            &config,
            Arc::clone(&groups),
            entrance.gate.clone(),
            Arc::default(),
        ));
        let changes = starting.changes(&about)?;
        let service = Service::new(Arc::clone(&about), Arc::clone(&changes));
        let shutdown = supervisor.shutdown_token();
        let server = Server {
            listener,
            tls: tls.clone(),
            peers: peers.clone(),
            clock: Arc::clone(&clock),
            supervisor: supervisor.clone(),
            stop: shutdown.phase(Phase::Flush),
        };
        // The port stays open until leadership was handed over: its phase is that of apply, not that of listeners.
        supervisor.spawn(TaskKind::Apply, "raft port", server.run(service));
        let stores = starting.stores(&about);
        let stopped = tokio::sync::Mutex::new(false);
        if !entrance.gate.is_open() {
            let task = Arc::clone(&entrance).wait(shutdown.phase(Phase::Consensus));
            supervisor.spawn(TaskKind::Consensus, "admission", task);
        }
        let node = Self {
            inner: Arc::new(Inner {
                config,
                groups,
                about,
                stores,
                changes,
                entrance,
                peers,
                clock,
                writer,
                stopped,
            }),
        };
        node.end_with(&supervisor);
        Ok(node)
    }

    /// Ends watches, then Raft, when the supervisor's shutdown comes to them.
    fn end_with(&self, supervisor: &Supervisor) {
        let shutdown = supervisor.shutdown_token();
        let (watched, drain) = (self.clone(), shutdown.phase(Phase::Drain));
        supervisor.spawn(TaskKind::Request, "end of watches", async move {
            drain.cancelled().await;
            for group in watched.inner.groups.values() {
                group.machine.close_watches();
            }
            Ok(())
        });
        let (leaving, stop) = (self.clone(), shutdown.phase(Phase::Consensus));
        supervisor.spawn(TaskKind::Consensus, "raft", async move {
            stop.cancelled().await;
            Ok(leaving.shutdown().await?)
        });
    }

    /// This server's id.
    pub fn id(&self) -> NodeId {
        self.inner.config.id
    }

    /// The replicated store of a group; none for a group that this version does not have.
    pub fn store(&self, group: GroupId) -> Option<Arc<ReplicatedStore>> {
        self.inner.stores.get(&group).cloned()
    }

    /// The store of group 0.
    pub fn council(&self) -> Arc<ReplicatedStore> {
        self.known(GroupId::COUNCIL)
    }

    /// The store of group 1.
    pub fn tenants(&self) -> Arc<ReplicatedStore> {
        self.known(GroupId::TENANTS)
    }

    fn known(&self, group: GroupId) -> Arc<ReplicatedStore> {
        // `start` makes every group of `GROUPS`, and these are its members.
        #[expect(clippy::expect_used, reason = "every group of GROUPS has a store")]
        self.store(group).expect("a group of GROUPS")
    }

    /// Follows who leads a group.
    pub fn leadership(&self, group: GroupId) -> Option<watch::Receiver<Leadership>> {
        self.inner.groups.get(&group).map(|group| group.leadership.subscribe())
    }

    /// Forms the cluster of the configured members, or joins the one they have formed. Every server calls it at every start; it
    /// changes nothing in a cluster that exists. Completes when this server is part of every group.
    ///
    /// A server without data starts a cluster only when most members are up and none has data: one that lost its data while
    /// the others are down must not begin anew.
    pub async fn initialize(&self, limit: Duration) -> Result<(), ConsensusError> {
        self.become_part(limit, true).await
    }

    /// Becomes part of a cluster that has, or is about to have, this server among its members. Never forms one.
    pub async fn join(&self, limit: Duration) -> Result<(), ConsensusError> {
        self.become_part(limit, false).await
    }

    async fn become_part(&self, limit: Duration, found: bool) -> Result<(), ConsensusError> {
        let deadline = self.inner.clock.mono() + limit;
        for (id, group) in self.inner.groups.iter() {
            while !group
                .raft
                .is_initialized()
                .await
                .map_err(raft_fault(*id, "say whether it is initialized"))?
            {
                let (admission, unformed) = self.inner.entrance.ask().await?;
                if found && admission == Admission::Fresh {
                    self.inner.entrance.gate.open();
                }
                if found && self.inner.entrance.gate.is_open() && unformed.contains(id) && self.most_are_up().await {
                    self.form(group).await?;
                } else if self.inner.clock.mono() >= deadline {
                    let what = "becoming part of the cluster (are most of the other servers up?)";
                    return Err(ConsensusError::Timeout {
                        group: *id,
                        what,
                        seconds: limit.as_secs(),
                    });
                } else {
                    self.inner.clock.sleep(POLL).await;
                }
            }
        }
        Ok(())
    }

    async fn most_are_up(&self) -> bool {
        let members = &self.inner.config.members;
        let replies = ask_all(&self.inner.peers, members).await;
        let up = 1 + replies.iter().filter(|(_, reply)| reply.is_some()).count();
        up > members.len() / 2
    }

    async fn form(&self, group: &Group) -> Result<(), ConsensusError> {
        let members = self.inner.config.members.clone().into_iter();
        let seats: BTreeMap<NodeId, Seat> = members.map(|(id, member)| (id, Seat::of(member))).collect();
        match group.raft.initialize(seats).await {
            // The others may have been faster: then this server has their first entry already.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(raft_fault(group.id, "form the cluster")(error)),
        }
    }

    /// Waits until every group has a leader that this server hears of.
    pub async fn wait_for_leaders(&self, limit: Duration) -> Result<(), ConsensusError> {
        let deadline = self.inner.clock.mono() + limit;
        for (id, group) in self.inner.groups.iter() {
            while !group.has_leader() {
                if self.inner.clock.mono() >= deadline {
                    let what = "the election of a leader";
                    return Err(ConsensusError::Timeout {
                        group: *id,
                        what,
                        seconds: limit.as_secs(),
                    });
                }
                self.inner.clock.sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// What the server's other parts tell of this server in every answer to the question how it is. The first call counts.
    pub fn tell(&self, extra: impl Fn() -> Vec<u8> + Send + Sync + 'static) {
        self.inner.about.tell(extra);
    }

    /// Refuses what grows, with etcd's words, while a server of the cluster that watches its disk has less than `limit` bytes
    /// free: so that there is room for what is under way, and for making room. The first call counts.
    pub fn watch_disk(&self, disk: impl Disk, limit: u64, supervisor: &Supervisor) {
        self.inner.about.disks.watch(Box::new(disk), limit);
        let (node, stop) = (self.clone(), supervisor.shutdown_token().phase(Phase::Consensus));
        supervisor.spawn(TaskKind::Consensus, "free space", async move {
            let Inner { about, peers, .. } = node.inner.as_ref();
            about.disks.keep_looking(peers, || node.members(), stop).await
        });
    }

    /// What this server counts of its groups, by their names, and of what they share.
    pub fn families(&self) -> Vec<Family> {
        let stores = self.inner.stores.iter();
        let mut families =
            meter::labelled(stores.map(|(id, store)| (("group", group_name(*id)), store.own_families())));
        families.extend(self.inner.writer.meters().families());
        families.extend(self.inner.about.disks.families());
        families
    }

    /// How all servers are doing. Those that do not answer within the configured time are marked as offline.
    pub async fn cluster_status(&self) -> Vec<MemberStatus> {
        let members = self.members();
        let mut answers: BTreeMap<_, _> = ask_all(&self.inner.peers, &members).await.into_iter().collect();
        answers.insert(self.id(), Some(self.inner.about.reply()));
        member_statuses(&members, &answers)
    }

    /// The members of the council as this server knows them, which are those of every group.
    pub fn members(&self) -> BTreeMap<NodeId, Member> {
        let found: BTreeMap<NodeId, Member> =
            self.inner
                .groups
                .get(&GroupId::COUNCIL)
                .map_or_else(BTreeMap::new, |group| {
                    let metrics = group.raft.metrics();
                    let seen = metrics.borrow_watched();
                    let located = |(id, seat): (&NodeId, &Seat)| (*id, self.inner.peers.locate(*id, &seat.member));
                    seen.membership_config.nodes().map(located).collect()
                });
        if found.is_empty() {
            self.inner.config.members.clone()
        } else {
            found
        }
    }

    /// Who the members of the council are and who of them votes, by the newest entry here.
    pub fn roster(&self) -> Roster {
        self.inner
            .groups
            .get(&GroupId::COUNCIL)
            .map_or_else(Roster::default, |group| group.roster().0)
    }

    /// Servers that were members once, by what is applied here. Their ids are never used again.
    pub fn removed(&self) -> BTreeSet<NodeId> {
        self.inner.about.removed()
    }

    /// Whether a server is out of all groups: it was removed, and the leaders have it no more.
    pub async fn is_out(&self, id: NodeId) -> bool {
        let mut replies = replies(&self.inner.peers, &self.members()).await;
        replies.push(self.inner.about.reply());
        is_out(id, self.inner.groups.keys().copied(), &replies)
    }

    /// Listens from now on to no server with one of these keys
    /// ([`hanse_runtime::pki::cert_key_sha256`]), whatever its certificate says, and to all others.
    pub fn revoke(&self, keys: BTreeSet<String>) {
        self.inner.peers.revoke(keys);
    }

    /// Changes the members of all groups, wherever their leaders are. Completes when all groups have followed; may be asked for
    /// again when it is not known whether it was done.
    pub async fn change(&self, change: Change) -> Result<(), ConsensusError> {
        self.inner.changes.change(&change).await
    }

    /// Waits until what was acknowledged anywhere before the call is known here.
    pub async fn catch_up(&self) -> Result<(), ConsensusError> {
        Ok(self.group(GroupId::COUNCIL)?.linearize().await?)
    }

    /// The same, of every group.
    pub async fn catch_up_all(&self) -> Result<(), ConsensusError> {
        for group in self.inner.groups.values() {
            group.linearize().await?;
        }
        Ok(())
    }

    fn group(&self, group: GroupId) -> Result<&Group, ConsensusError> {
        let found = self.inner.groups.get(&group).map(Arc::as_ref);
        found.ok_or_else(|| raft_fault(group, "be found")("this version has no such group"))
    }

    /// Hands the leadership of a group over to `to`. Nothing happens if this server does not lead it.
    pub async fn transfer_leadership(&self, group: GroupId, to: NodeId) -> Result<(), ConsensusError> {
        self.group(group)?
            .raft
            .trigger()
            .transfer_leader(to)
            .await
            .map_err(raft_fault(group, "hand leadership over"))
    }

    /// Hands leadership over where this server has it, then stops Raft. Happens by itself when the supervisor's shutdown comes
    /// to consensus; may be called again.
    pub async fn shutdown(&self) -> Result<(), ConsensusError> {
        let mut stopped = self.inner.stopped.lock().await;
        if std::mem::replace(&mut *stopped, true) {
            return Ok(());
        }
        futures::future::join_all(self.inner.groups.values().map(|group| self.hand_over(group))).await;
        for (id, group) in self.inner.groups.iter() {
            group.raft.shutdown().await.map_err(raft_fault(*id, "stop"))?;
        }
        // Nothing is queued behind an empty write: whatever Raft wrote is on disk when it is done.
        let last = self.inner.writer.write(WriteBatch::new()).await;
        last.map_err(raft_fault(GroupId::COUNCIL, "write its last entries"))?;
        Ok(())
    }

    async fn hand_over(&self, group: &Group) {
        if group.followers().is_empty() {
            return;
        }
        // One that is gone already would let everybody wait for nothing, as when all servers are stopped one by one.
        let answers = ask_all(&self.inner.peers, &self.members()).await;
        let alive = answers.iter().filter_map(|(id, reply)| reply.as_ref().map(|_| *id));
        group.hand_over_to(&alive.collect()).await;
    }
}

/// The logs of all groups; an error if one of them lost entries.
fn open_logs(config: &NodeConfig, writer: &LogWriter) -> Result<BTreeMap<GroupId, LogStore>, ConsensusError> {
    let open = |id: GroupId| Ok((id, LogStore::open(id, writer.clone(), Some(&config.data_dir))?));
    GROUPS.into_iter().map(open).collect()
}

/// What a start works with.
struct Starting<'a> {
    config: &'a NodeConfig,
    peers: &'a Peers,
    writer: &'a LogWriter,
    rng: &'a SharedRng,
    supervisor: &'a Supervisor,
}

impl Starting<'_> {
    async fn groups(&self, logs: BTreeMap<GroupId, LogStore>) -> Result<BTreeMap<GroupId, Arc<Group>>, ConsensusError> {
        let mut groups = BTreeMap::new();
        for (id, log) in logs {
            groups.insert(id, self.group(id, log).await?);
        }
        Ok(groups)
    }

    /// The stores on top of the groups.
    fn stores(&self, about: &About) -> BTreeMap<GroupId, Arc<ReplicatedStore>> {
        let store = |group: &Arc<Group>| {
            ReplicatedStore::new(
                Arc::clone(group),
                self.writer.clone(),
                Arc::clone(self.rng),
                Arc::clone(&about.disks),
                self.supervisor.clone(),
            )
        };
        let stores = about.groups.iter().map(|(id, group)| (*id, store(group))).collect();
        self.count_leaders(&about.groups, &stores);
        stores
    }

    fn count_leaders(&self, groups: &BTreeMap<GroupId, Arc<Group>>, stores: &BTreeMap<GroupId, Arc<ReplicatedStore>>) {
        let stop = self.supervisor.shutdown_token().phase(TaskKind::BestEffort.phase());
        for (group, store) in groups.values().zip(stores.values()) {
            let count = Arc::clone(store.meters()).count_leaders(group.leadership.subscribe(), stop.clone());
            let name = format!("count of leaders of {}", group_name(group.id));
            self.supervisor.spawn(TaskKind::BestEffort, name, count);
        }
    }

    /// What asks the others whether this server may take part; an error if they know already that it may not.
    async fn entrance(&self) -> Result<Arc<Entrance>, ConsensusError> {
        let empty = identity::empty_groups(self.writer.engine())?;
        let entrance = Entrance {
            peers: self.peers.clone(),
            members: self.config.members.clone(),
            gate: Gate::new(!empty.contains(&GroupId::COUNCIL)),
            empty,
            started: AtomicBool::new(false),
        };
        if !entrance.empty.is_empty() {
            entrance.ask().await?;
        }
        entrance.started.store(true, Ordering::Relaxed);
        Ok(Arc::new(entrance))
    }

    /// What changes the members, and looks after them while this server leads.
    fn changes(&self, about: &Arc<About>) -> Result<Arc<Changes>, ConsensusError> {
        let council = about.groups.get(&GroupId::COUNCIL);
        let council =
            council.ok_or_else(|| raft_fault(GroupId::COUNCIL, "be found")("this version has no such group"))?;
        let changes = Arc::new(Changes::new(Arc::clone(about), self.peers.clone(), Arc::clone(council)));
        let stop = self.supervisor.shutdown_token().phase(Phase::Consensus);
        for (id, group) in about.groups.iter() {
            let task = Arc::clone(&changes).tend(Arc::clone(group), stop.clone());
            let name = format!("members of {}", group_name(*id));
            self.supervisor.spawn(TaskKind::Consensus, name, task);
        }
        let task = watch_removal(Arc::clone(about), Arc::clone(council), stop);
        self.supervisor.spawn(TaskKind::Consensus, "removal", task);
        Ok(changes)
    }

    async fn group(&self, id: GroupId, log: LogStore) -> Result<Arc<Group>, ConsensusError> {
        let engine = Arc::clone(self.writer.engine());
        let pending = Pending::new(self.rng.as_ref());
        let spool = Spool::new(&self.config.data_dir, id);
        let machine = Arc::new(Machine::open(id, Arc::clone(&engine))?);
        let state_machine = StateMachine::open(id, Arc::clone(&machine), engine, Arc::clone(&pending), spool.clone())?;
        let config = Arc::new(self.config.settings.raft(format!("hanse-{}", group_name(id)))?);
        let mut first = [0; 8];
        self.rng.fill(&mut first);
        let snapshots = Snapshots::new(u64::from_le_bytes(first), Arc::clone(spool.meters()));
        let network = NetworkFactory::new(self.peers.clone(), id, snapshots);
        let kept = log.clone();
        spool.meters().log_bytes.get_or_init(|| log.bytes());
        let roll = state_machine.roll();
        let raft = GroupRaft::new(self.config.id, config, network, log, state_machine).await;
        let raft = raft.map_err(raft_fault(id, "start"))?;
        let (reads, queue) = mpsc::channel(MAX_WAITING_READS);
        let (rounds, questions) = mpsc::channel(MAX_QUESTIONS);
        let (name, stop) = (group_name(id), self.supervisor.shutdown_token().phase(Phase::Consensus));
        let forwarder = Forwarder::new(id, self.peers.clone(), self.supervisor.clone(), stop.clone());
        let group = Arc::new(Group {
            id,
            me: self.config.id,
            raft,
            machine,
            pending,
            arrivals: Arrivals::new(spool, self.supervisor.clone()),
            peers: self.peers.clone(),
            forwarder,
            roll,
            leadership: watch::Sender::new(Leadership::default()),
            reads,
            rounds,
            read_counts: ReadCounts::default(),
            contact: AtomicU64::new(0),
        });
        let follower = Arc::clone(&group);
        let task = async move { follower.follow_leadership().await };
        self.supervisor.spawn(TaskKind::Apply, format!("raft {name}"), task);
        let task = Arc::clone(&group).run_reads(queue, stop.clone());
        self.supervisor
            .spawn(TaskKind::Consensus, format!("reads of {name}"), task);
        let task = Arc::clone(&group).run_rounds(questions, stop.clone());
        self.supervisor
            .spawn(TaskKind::Consensus, format!("rounds of {name}"), task);
        let task = vacancy::watch(Arc::clone(&group), Arc::clone(self.rng), stop.clone());
        self.supervisor
            .spawn(TaskKind::Consensus, format!("succession in {name}"), task);
        let task = timers::expire_leases(Arc::clone(&group), stop.clone());
        self.supervisor
            .spawn(TaskKind::Consensus, format!("leases of {name}"), task);
        let task = purge::keep_short(Arc::clone(&group), kept, stop.clone());
        self.supervisor
            .spawn(TaskKind::Consensus, format!("purge of {name}"), task);
        let task = level::raise_for_ever(Arc::clone(&group), stop.clone());
        self.supervisor
            .spawn(TaskKind::Consensus, format!("feature level of {name}"), task);
        let task = timers::keep_house(Arc::clone(&group), stop);
        self.supervisor
            .spawn(TaskKind::Consensus, format!("upkeep of {name}"), task);
        Ok(group)
    }
}
