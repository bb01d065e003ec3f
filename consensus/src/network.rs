//! The calling side of the Raft port: connections to other servers, shared by all groups, and Raft's RPCs over them.
//!
//! Two connections go to every server: one for what must never wait (heartbeats, votes, reads, forwarded writes), one for
//! log replication and snapshots. Replication is one long-lived stream per follower and group, answers in request order;
//! openraft-multi's adapter sends one request per round trip instead, so its connection sharing is done here.

use crate::codec::{self, pb};
use crate::config::{NodeConfig, Settings};
use crate::error::ConsensusError;
use crate::exchange::Exchange;
use crate::meters::SnapshotMeters;
use crate::revoked::Revoked;
use crate::snapshot::{Pace, SnapshotData, Transfer};
use crate::tls::Tls;
use crate::types::{GroupId, Member, NodeId, Seat, TypeConfig, Vote};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_state::StoreError;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RPCTypes,
    RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::Mutex;
use pb::consensus_client::ConsensusClient;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Largest message between servers: a full append of [`crate::log_store::MAX_READ_BYTES`] and one more entry.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// HTTP/2 window of a stream: at least bandwidth x round trip (1 Gbit/s x 80 ms = 10 MB).
pub const STREAM_WINDOW: u32 = 8 * 1024 * 1024;
/// HTTP/2 window of a connection.
pub const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Pings on an idle connection, so that a dead path is noticed.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// A ping without answer for so long closes the connection.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Waits between tries to reach a server that is down: first, and longest.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// So often a snapshot is begun or gone on with without a chunk more coming in; then it is given up.
const TRIES_IN_VAIN: u32 = 5;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Small and urgent.
    Control,
    /// Large, may be slow.
    Bulk,
}

struct Peer {
    member: Member,
    control: Channel,
    bulk: Channel,
}

/// Connections to the other servers. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    tls: Tls,
    clock: SharedClock,
    settings: Settings,
    /// Members as this server's own configuration has them.
    configured: BTreeMap<NodeId, Member>,
    addresses: BTreeMap<NodeId, String>,
    /// Members that were moved through the log. Raft's replication streams outlive such a change, and look here.
    moved: Mutex<BTreeMap<NodeId, Member>>,
    peers: Mutex<HashMap<NodeId, Peer>>,
    /// Counts connections from other servers that are gone.
    losses: watch::Sender<u64>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers")
            .field("me", &self.inner.me)
            .finish_non_exhaustive()
    }
}

/// A client on one connection.
pub type Client = ConsensusClient<Channel>;
/// The same for calls of Raft, which say which member they are for.
type RaftClient = ConsensusClient<InterceptedService<Channel, To>>;

/// Who a call is for, in its metadata: a server may come back under another id at the same address, and must not answer for the old one.
pub(crate) const TO: &str = "hanse-to";

/// Writes on calls who they are for.
#[derive(Clone, Debug)]
struct To(MetadataValue<Ascii>);

impl Interceptor for To {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert(TO, self.0.clone());
        Ok(request)
    }
}

impl Peers {
    /// No connection yet; they are made when used.
    pub fn new(config: &NodeConfig, tls: Tls, clock: SharedClock) -> Self {
        Self {
            inner: Arc::new(Inner {
                me: config.id,
                tls,
                clock,
                settings: config.settings.clone(),
                configured: config.members.clone(),
                addresses: config.addresses.clone(),
                moved: Mutex::default(),
                peers: Mutex::default(),
                losses: watch::Sender::new(0),
            }),
        }
    }

    /// Takes in who the members are, by the log.
    pub fn learn<'a>(&self, seats: impl Iterator<Item = (&'a NodeId, &'a Seat)>) {
        let seats: BTreeMap<&NodeId, &Seat> = seats.collect();
        let moved = seats.iter().filter(|(_, seat)| seat.moved);
        *self.inner.moved.lock() = moved.map(|(id, seat)| (**id, seat.member.clone())).collect();
        if !seats.is_empty() {
            let configured = &self.inner.configured;
            let mut peers = self.inner.peers.lock();
            peers.retain(|id, _| seats.contains_key(id) || configured.contains_key(id));
        }
    }

    /// How to reach a member that the log knows as `member`: as this server's configuration says, if it means the same server and
    /// that was not moved through the log.
    pub fn locate(&self, id: NodeId, member: &Member) -> Member {
        if let Some(moved) = self.inner.moved.lock().get(&id) {
            return moved.clone();
        }
        let mut found = self.configured(id, member);
        if let Some(address) = self.inner.addresses.get(&id) {
            found.address.clone_from(address);
        }
        found
    }

    /// The same without the addresses that only this server uses.
    fn configured(&self, id: NodeId, member: &Member) -> Member {
        let configured = self.inner.configured.get(&id);
        let same = configured.filter(|configured| configured.name == member.name);
        same.unwrap_or(member).clone()
    }

    /// Where everybody reaches a member that the log knows as `seat`.
    pub(crate) fn public_address(&self, id: NodeId, seat: &Seat) -> String {
        if seat.moved {
            return seat.member.address.clone();
        }
        self.configured(id, &seat.member).address
    }

    /// A connection from another server is gone.
    pub(crate) fn note_loss(&self) {
        self.inner.losses.send_modify(|count| *count += 1);
    }

    /// How many connections from other servers are gone, from now on.
    pub(crate) fn losses(&self) -> watch::Receiver<u64> {
        self.inner.losses.subscribe()
    }

    /// Refuses these keys from now on, on new connections and old ones.
    pub(crate) fn revoke(&self, keys: BTreeSet<String>) {
        self.revoked().set(keys);
    }

    /// The keys that are refused.
    pub(crate) fn revoked(&self) -> &Revoked {
        self.inner.tls.revoked()
    }

    /// This server.
    pub fn me(&self) -> NodeId {
        self.inner.me
    }

    /// The clock that deadlines go by.
    pub fn clock(&self) -> &SharedClock {
        &self.inner.clock
    }

    /// The timing of this server.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// A client to `member`. Does not connect: the first call does, and every call after a loss again.
    pub fn client(&self, id: NodeId, member: &Member, lane: Lane) -> Result<Client, ConsensusError> {
        let client = ConsensusClient::new(self.channel(id, member, lane)?);
        Ok(client
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// The same for what only the member with this id may answer.
    fn raft_client(&self, id: NodeId, member: &Member, lane: Lane) -> Result<RaftClient, ConsensusError> {
        let channel = self.channel(id, member, lane)?;
        let client = ConsensusClient::with_interceptor(channel, To(MetadataValue::from(id)));
        Ok(client
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    fn channel(&self, id: NodeId, member: &Member, lane: Lane) -> Result<Channel, ConsensusError> {
        let member = &self.locate(id, member);
        let mut peers = self.inner.peers.lock();
        let known = peers.get(&id).is_some_and(|peer| peer.member == *member);
        if !known {
            let connect = || self.endpoint(member).map(|endpoint| endpoint.connect_lazy());
            peers.insert(
                id,
                Peer {
                    member: member.clone(),
                    control: connect()?,
                    bulk: connect()?,
                },
            );
        }
        let channel = peers.get(&id).map(|peer| match lane {
            Lane::Control => peer.control.clone(),
            Lane::Bulk => peer.bulk.clone(),
        });
        channel.ok_or_else(|| no_address(member, "was just added"))
    }

    fn endpoint(&self, member: &Member) -> Result<Endpoint, ConsensusError> {
        let url = format!("{}://{}", self.inner.tls.scheme(), member.address);
        let endpoint = Endpoint::from_shared(url)
            .map_err(|error| no_address(member, &error.to_string()))?
            .connect_timeout(self.inner.settings.connect_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(KEEPALIVE_INTERVAL))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_adaptive_window(false)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        self.inner.tls.secure(endpoint, &member.name)
    }
}

fn no_address(member: &Member, fault: &str) -> ConsensusError {
    let fault = format!(
        "address {:?} of server {} is not usable ({fault}): write host:port",
        member.address, member.name
    );
    ConsensusError::Config {
        field: "members",
        fault,
    }
}

/// Makes Raft's clients for one group.
#[derive(Clone, Debug)]
pub struct NetworkFactory {
    peers: Peers,
    group: GroupId,
    snapshots: Snapshots,
}

/// What the transfers of a group's snapshots from here have in common.
#[derive(Clone, Debug)]
pub struct Snapshots {
    /// Number of the next one.
    next: Arc<AtomicU64>,
    meters: Arc<SnapshotMeters>,
}

impl Snapshots {
    /// `first` is random, so that no two servers, and no server after a restart, give the same numbers.
    pub fn new(first: u64, meters: Arc<SnapshotMeters>) -> Self {
        let next = Arc::new(AtomicU64::new(first));
        Self { next, meters }
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed).max(1)
    }
}

impl NetworkFactory {
    /// For `group`, over the shared connections.
    pub fn new(peers: Peers, group: GroupId, snapshots: Snapshots) -> Self {
        Self {
            peers,
            group,
            snapshots,
        }
    }

    fn network(&self, target: NodeId, member: &Member, lane: Lane) -> PeerNetwork {
        PeerNetwork {
            peers: self.peers.clone(),
            group: self.group,
            target,
            member: member.clone(),
            lane,
            beats: Arc::default(),
            snapshots: self.snapshots.clone(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: NodeId, node: &Seat) -> PeerNetwork {
        self.network(target, &node.member, Lane::Bulk)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Seat) -> PeerNetwork {
        self.network(target, &node.member, Lane::Control)
    }
}

/// Raft's way to one follower of one group.
#[derive(Clone, Debug)]
pub struct PeerNetwork {
    peers: Peers,
    group: GroupId,
    target: NodeId,
    member: Member,
    lane: Lane,
    /// openraft makes a stream for every heartbeat; they all go over this one.
    beats: Arc<Exchange<pb::AppendRequest, tonic::Streaming<pb::AppendReply>>>,
    snapshots: Snapshots,
}

type Rpc = RPCError<TypeConfig>;

impl PeerNetwork {
    fn client(&self, lane: Lane) -> Result<RaftClient, Rpc> {
        self.peers
            .raft_client(self.target, &self.member, lane)
            .map_err(|error| unreachable(&error))
    }

    fn timed_out(&self, action: RPCTypes, after: Duration) -> Rpc {
        RPCError::Timeout(Timeout {
            action,
            id: self.peers.me(),
            target: self.target,
            timeout: after,
        })
    }

    /// Runs one call within `limit`. The future owns what it needs: one that borrowed `self` could not cross threads inside
    /// openraft's boxed futures.
    fn call<T, F>(
        &self,
        action: RPCTypes,
        limit: Duration,
        call: F,
    ) -> impl Future<Output = Result<T, Rpc>> + Send + use<T, F>
    where
        T: Send,
        F: Future<Output = Result<tonic::Response<T>, Status>> + Send,
    {
        let network = self.clone();
        async move {
            match timeout(network.peers.clock().as_ref(), limit, call).await {
                Ok(Ok(reply)) => Ok(reply.into_inner()),
                Ok(Err(status)) => Err(network.refused(action, limit, &status)),
                Err(_) => Err(network.timed_out(action, limit)),
            }
        }
    }

    /// One request whose answer is all that is wanted of it.
    async fn beat(&self, request: AppendEntriesRequest<TypeConfig>, limit: Duration) -> Result<pb::AppendReply, Rpc> {
        let mut client = self.client(self.lane)?;
        let open = |requests| async move { client.append(requests).await };
        let ask = self.beats.ask(codec::append_to_pb(self.group.0, &request), open);
        let ask = async { ask.await.map(tonic::Response::new) };
        self.call(RPCTypes::AppendEntries, limit, ask).await
    }

    fn refused(&self, action: RPCTypes, limit: Duration, status: &Status) -> Rpc {
        match status.code() {
            Code::DeadlineExceeded => self.timed_out(action, limit),
            _ => unreachable(status),
        }
    }
}

/// Everything but a deadline backs off before the next try: a server that refuses us will not change its mind at once.
fn unreachable<E: std::error::Error + 'static>(error: &E) -> Rpc {
    // The chain says why (refused, certificate, reset); openraft keeps only the text.
    RPCError::Unreachable(Unreachable::from_string(hanse_runtime::supervisor::chain(error)))
}

/// Whether a call failed before anything of it was sent.
pub(crate) fn never_left(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

impl NetBackoff<TypeConfig> for PeerNetwork {
    fn backoff(&self) -> Option<Backoff> {
        let (first, longest) = RECONNECT;
        Some(Backoff::new(std::iter::successors(Some(first), move |wait| {
            Some((*wait * 2).min(longest))
        })))
    }
}

impl NetVote<TypeConfig> for PeerNetwork {
    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Result<VoteResponse<TypeConfig>, Rpc> {
        let mut client = self.client(Lane::Control)?;
        let request = codec::vote_request_to_pb(self.group.0, &rpc);
        let reply = self
            .call(RPCTypes::Vote, option.soft_ttl(), client.vote(request))
            .await?;
        codec::vote_reply_from_pb(reply).map_err(|error| unreachable(&error))
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Rpc> {
        let mut client = self.client(Lane::Control)?;
        let request = codec::vote_request_to_pb(self.group.0, &rpc);
        let reply = self
            .call(RPCTypes::Vote, option.soft_ttl(), client.pre_vote(request))
            .await?;
        codec::vote_reply_from_pb(reply).map_err(|error| unreachable(&error))
    }
}

impl NetTransferLeader<TypeConfig> for PeerNetwork {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Rpc> {
        let mut client = self.client(Lane::Control)?;
        let request = codec::transfer_to_pb(self.group.0, &req);
        let reply = self
            .call(
                RPCTypes::TransferLeader,
                option.soft_ttl(),
                client.transfer_leader(request),
            )
            .await?;
        if reply.refused.is_empty() {
            return Ok(Ok(()));
        }
        tracing::info!(group = %self.group, target = self.target, reason = reply.refused, "leadership was not taken over");
        let expected = *req.from_leader();
        Ok(Err(TransferLeaderError::VoteChanged {
            expected,
            actual: expected,
        }))
    }
}

impl NetSnapshot<TypeConfig> for PeerNetwork {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let number = self.snapshots.number();
        let transfer = Transfer::new(self.group, number, &vote, &snapshot.meta, snapshot.snapshot);
        let nothing = || StreamingError::from(unreachable(&StoreError::Stopped));
        let transfer = transfer.ok_or_else(nothing)?;
        let (clock, limit) = (Arc::clone(self.peers.clock()), option.soft_ttl());
        let moved = watch::Sender::new(());
        let stuck = stands_still(Arc::clone(&clock), limit, moved.subscribe());
        let sender = Sender {
            client: self.client(Lane::Bulk)?,
            network: self.clone(),
            transfer,
            moved: moved.subscribe(),
            pace: Pace::new(clock, self.peers.settings().snapshot_rate, moved),
        };
        let action = RPCTypes::InstallSnapshot;
        let reply = tokio::select! {
            reply = sender.send() => reply.map_err(|status| self.refused(action, limit, &status))?.into_inner(),
            () = stuck => return Err(self.timed_out(action, limit).into()),
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        let vote = codec::required_vote(reply.vote).map_err(|error| StreamingError::from(unreachable(&error)))?;
        Ok(SnapshotResponse::new(vote))
    }
}

/// Completes when nothing has moved for as long as `limit`: what is on its way slowly has all the time it needs.
async fn stands_still(clock: SharedClock, limit: Duration, mut moved: watch::Receiver<()>) {
    while let Ok(Ok(())) = timeout(clock.as_ref(), limit, moved.changed()).await {}
}

/// Sends one snapshot to one member, and goes on where it was when a connection breaks.
struct Sender {
    client: RaftClient,
    network: PeerNetwork,
    transfer: Transfer,
    pace: Pace,
    moved: watch::Receiver<()>,
}

impl Sender {
    async fn send(mut self) -> Result<tonic::Response<pb::SnapshotReply>, Status> {
        let (mut from, mut in_vain) = (0, 0);
        loop {
            let frames = self.transfer.frames(from, self.pace.clone());
            let broken = match self.client.snapshot(frames).await {
                Err(status) if may_go_on(&status) => status,
                answered => return answered,
            };
            if !self.moved.has_changed().unwrap_or(false) {
                // Nothing went out yet. When the other side can be reached, a view of that time is worth more than this one.
                return Err(broken);
            }
            let pb::SnapshotHeldReply {
                chunks: held,
                installed,
            } = self.held().await?;
            if let Some(reply) = installed {
                // Only its answer was lost.
                return Ok(tonic::Response::new(reply));
            }
            in_vain = if held > from { 0 } else { in_vain + 1 };
            if in_vain >= TRIES_IN_VAIN {
                return Err(broken);
            }
            let (group, target) = (self.network.group, self.network.target);
            tracing::info!(%group, target, held, error = %broken, "a snapshot's transfer broke off and goes on");
            if held > 0 {
                self.network.snapshots.meters.resumed.add(1);
            }
            from = held;
        }
    }

    /// What the other side has, once it answers; the caller's deadline ends the waiting.
    async fn held(&mut self) -> Result<pb::SnapshotHeldReply, Status> {
        let clock = Arc::clone(self.network.peers.clock());
        let (mut pause, longest) = RECONNECT;
        loop {
            let request = pb::SnapshotHeldRequest {
                group: self.network.group.0,
                transfer: self.transfer.number(),
            };
            let limit = self.network.peers.settings().snapshot_stall;
            match timeout(clock.as_ref(), limit, self.client.snapshot_held(request)).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) if !may_go_on(&status) => return Err(status),
                Ok(Err(_)) | Err(_) => clock.sleep(pause).await,
            }
            pause = (pause * 2).min(longest);
        }
    }
}

/// Whether an answer is about the connection and not about the snapshot; an older server knows of no going on.
fn may_go_on(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::FailedPrecondition
    )
}

/// When the requests went out that have no answer yet, oldest first.
#[derive(Clone, Debug, Default)]
struct Unanswered(Arc<Mutex<VecDeque<Duration>>>);

impl Unanswered {
    fn sent(&self, at: Duration) {
        self.0.lock().push_back(at);
    }

    fn answered(&self) {
        self.0.lock().pop_front();
    }

    fn oldest(&self) -> Option<Duration> {
        self.0.lock().front().copied()
    }
}

impl NetStreamAppend<TypeConfig> for PeerNetwork {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, Rpc>>, Rpc>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        let network = self.clone();
        let mut input = input;
        Box::pin(async move {
            // openraft waits its backoff out where it makes requests. Dialing before the first one is there would go round
            // without any wait while the other server is down.
            let Some(first) = input.next().await else {
                let nothing: BoxStream<'s, _> = Box::pin(futures::stream::empty());
                return Ok(nothing);
            };
            // A follower answers after its disk has; that may take longer than a heartbeat's share of the time.
            let limit = option.soft_ttl().max(network.peers.settings().append_timeout);
            if network.lane == Lane::Control {
                let reply = network.beat(first, limit).await?;
                let answer: BoxStream<'s, _> = Box::pin(futures::stream::iter([append_result(reply)]));
                return Ok(answer);
            }
            let input = futures::stream::iter([first]).chain(input);
            let mut client = network.client(network.lane)?;
            let unanswered = Unanswered::default();
            let (group, clock) = (network.group.0, Arc::clone(network.peers.clock()));
            let sent = unanswered.clone();
            let requests = input.map(move |request| {
                sent.sent(clock.mono());
                codec::append_to_pb(group, &request)
            });
            let replies = network
                .call(RPCTypes::AppendEntries, limit, client.append(requests))
                .await?;
            let session = Session {
                network: network.clone(),
                replies,
                unanswered,
                limit,
            };
            let results = futures::stream::unfold(Some(session), |session| async move {
                let mut session = session?;
                let result = session.next().await?;
                let go_on = matches!(result, Ok(Ok(_)));
                Some((result, go_on.then_some(session)))
            });
            let results: BoxStream<'s, _> = Box::pin(results);
            Ok(results)
        })
    }
}

/// One replication stream.
struct Session {
    network: PeerNetwork,
    replies: tonic::Streaming<pb::AppendReply>,
    unanswered: Unanswered,
    limit: Duration,
}

impl Session {
    /// The next answer; nothing when the stream has ended. A request that stays unanswered for the limit is an error:
    /// a path that swallows answers must not hold replication up for ever.
    async fn next(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, Rpc>> {
        let clock = self.network.peers.clock();
        let action = RPCTypes::AppendEntries;
        loop {
            tokio::select! {
                biased;
                reply = self.replies.next() => {
                    self.unanswered.answered();
                    return match reply? {
                        Ok(reply) => Some(append_result(reply)),
                        Err(status) => Some(Err(self.network.refused(action, self.limit, &status))),
                    };
                }
                () = clock.sleep(self.limit) => {
                    let waited = self.unanswered.oldest().map(|sent| clock.mono().saturating_sub(sent));
                    if waited.is_some_and(|waited| waited >= self.limit) {
                        return Some(Err(self.network.timed_out(action, self.limit)));
                    }
                }
            }
        }
    }
}

fn append_result(reply: pb::AppendReply) -> Result<StreamAppendResult<TypeConfig>, Rpc> {
    use pb::append_reply::Result as R;
    match reply.result {
        Some(R::Matched(matched)) => Ok(Ok(matched.log_id.map(codec::log_id_from_pb))),
        Some(R::Conflict(at)) => Ok(Err(StreamAppendError::Conflict(codec::log_id_from_pb(at)))),
        Some(R::HigherVote(vote)) => Ok(Err(StreamAppendError::HigherVote(codec::vote_from_pb(vote)))),
        None => Err(RPCError::Unreachable(Unreachable::from_string(
            "an append reply without a result",
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{TlsPem, Trust};
    use hanse_runtime::clock::SystemClock;

    /// openraft calls again at once when replication has nothing to send and ended well; that must not reach the network. It
    /// did: a dead follower was dialed without any pause, on one core's whole time.
    #[tokio::test]
    async fn a_dead_server_is_not_dialed_while_there_is_nothing_to_send() {
        // Bound and let go: nobody listens there.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let member = Member {
            name: "dead".into(),
            address,
        };
        let nothing = String::new;
        let pem = TlsPem {
            ca: nothing(),
            cert: nothing(),
            key: nothing(),
        };
        let tls = Tls::by(Trust::Open, &pem, "here").unwrap();
        let config = NodeConfig {
            id: 1,
            name: "here".into(),
            listen: nothing(),
            data_dir: std::path::PathBuf::new(),
            tls: pem,
            members: BTreeMap::new(),
            addresses: BTreeMap::new(),
            settings: Settings::default(),
            version: nothing(),
        };
        let peers = Peers::new(&config, tls, SystemClock::shared());
        let factory = NetworkFactory::new(peers, GroupId::COUNCIL, Snapshots::new(1, Arc::default()));
        let mut network = factory.network(2, &member, Lane::Bulk);
        let option = || RPCOption::new(Duration::from_secs(5));
        let idle = futures::stream::empty();
        let mut answers = network.stream_append(idle, option()).await.unwrap();
        assert!(
            answers.next().await.is_none(),
            "nothing was sent, so nothing is answered"
        );
        drop(answers);
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        let refused = network.stream_append(futures::stream::iter([request]), option()).await;
        assert!(matches!(refused, Err(RPCError::Unreachable(_))), "a request is tried");
    }

    #[test]
    fn only_a_failed_connection_is_known_not_to_have_sent() {
        assert!(!never_left(&tonic::Status::unavailable("connection reset")));
        let source: Box<dyn std::error::Error + Send + Sync> = Box::new(tonic::ConnectError("refused".into()));
        assert!(never_left(&tonic::Status::from_error(source)));
    }
}
