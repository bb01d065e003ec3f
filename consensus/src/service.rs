//! The answering side of the Raft port.

use crate::codec::{self, pb};
use crate::error::CodecError;
use crate::group::Group;
use crate::membership::Changes;
use crate::network::{
    CONNECTION_WINDOW, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_MESSAGE_BYTES, Peers, STREAM_WINDOW, TO,
};
use crate::peer_stream::PeerStream;
use crate::revoked::{Caller, caller};
use crate::status::About;
use crate::tls::Tls;
use crate::types::GroupId;
use futures::stream::BoxStream;
use futures::{StreamExt, TryFutureExt, TryStreamExt};
use hanse_runtime::BoxError;
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::supervisor::{Supervisor, TaskKind, chain};
use openraft::raft::StreamAppendError;
use pb::consensus_server::{Consensus, ConsensusServer};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Calls under way on one connection: a few streams for each group, and reads of the index one at a time.
const MAX_CALLS: u32 = 1_024;
/// Handshakes under way.
const MAX_HANDSHAKES: usize = 128;
/// For a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait after the system refused a connection (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every group of this server answers.
#[derive(Clone)]
pub struct Service {
    about: Arc<About>,
    changes: Arc<Changes>,
}

/// Before any answer: bad records are the caller's fault, a stopping server is not.
impl From<CodecError> for Status {
    fn from(error: CodecError) -> Self {
        Self::invalid_argument(chain(&error))
    }
}

fn stopped<E: std::fmt::Display>(error: E) -> Status {
    Status::unavailable(format!("Raft does not run here: {error}"))
}

fn append_reply(
    result: Result<Option<crate::types::LogId>, StreamAppendError<crate::types::TypeConfig>>,
) -> pb::AppendReply {
    use pb::append_reply::{Matched, Result as R};
    let result = match result {
        Ok(matched) => R::Matched(Matched {
            log_id: matched.as_ref().map(codec::log_id_to_pb),
        }),
        Err(StreamAppendError::Conflict(at)) => R::Conflict(codec::log_id_to_pb(&at)),
        Err(StreamAppendError::HigherVote(vote)) => R::HigherVote(codec::vote_to_pb(&vote)),
    };
    pb::AppendReply { result: Some(result) }
}

type Replies = BoxStream<'static, Result<pb::AppendReply, Status>>;
type Verdicts = BoxStream<'static, Result<pb::ForwardReply, Status>>;
type Indexes = BoxStream<'static, Result<pb::ReadIndexReply, Status>>;

impl Service {
    /// For this server and its groups.
    pub fn new(about: Arc<About>, changes: Arc<Changes>) -> Self {
        Self { about, changes }
    }

    /// Who makes a call of Raft, if it is for this server. One that came back under another id must not answer for the old one, nor
    /// one with old data for the new: votes and acknowledgements would be counted for somebody else's log.
    fn addressed<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = caller(request)?;
        let to = request.metadata().get(TO).and_then(|to| to.to_str().ok());
        match to.map(str::parse::<u64>) {
            // A caller of an older version does not say.
            None => Ok(caller),
            Some(Ok(id)) if id == self.about.id() => Ok(caller),
            Some(_) => Err(Status::failed_precondition(format!(
                "this call is for another member: here is the one with id {:x}",
                self.about.id()
            ))),
        }
    }

    /// A group of this server, once that may take part in Raft.
    async fn admitted(&self, id: u32) -> Result<Arc<Group>, Status> {
        let group = self.group(id)?;
        let opened = self.about.gate.opened();
        // Callers wait longer than that; a new server is told soon.
        if timeout(group.clock().as_ref(), group.settings().election_min, opened)
            .await
            .is_err()
        {
            return Err(Status::unavailable(
                "this server has no data, and no leader has told it yet that it never had any",
            ));
        }
        Ok(group)
    }

    fn group(&self, id: u32) -> Result<Arc<Group>, Status> {
        let group = self.about.groups.get(&GroupId(id));
        group
            .cloned()
            .ok_or_else(|| Status::not_found(format!("Raft group {id} is not on this server")))
    }

    /// Answers to a replication stream. The group is in its first request.
    async fn append_replies(
        self,
        caller: Caller,
        mut requests: Streaming<pb::AppendRequest>,
    ) -> Result<Replies, Status> {
        let Some(first) = requests.next().await else {
            return Ok(futures::stream::empty().boxed());
        };
        let first = first?;
        let group = self.admitted(first.group).await?;
        let number = first.group;
        let follower = Arc::clone(&group);
        let requests = futures::stream::once(async { Ok(first) }).chain(requests);
        // A stream that breaks, changes its group or is not readable simply ends; the leader makes a new one.
        let requests = requests.take_while(move |request| {
            let fine = request.as_ref().is_ok_and(|request| request.group == number) && caller.is_heard();
            futures::future::ready(fine)
        });
        let requests = requests.filter_map(move |request| {
            follower.note_contact();
            let request = request.map_err(|status| status.to_string());
            let request = request.and_then(|r| codec::append_from_pb(r).map_err(|error| chain(&error)));
            let request = request
                .inspect_err(|fault| tracing::error!(fault, "an append request is not readable"))
                .ok();
            futures::future::ready(request)
        });
        let results = group.raft.stream_append(requests);
        Ok(results.map(|result| result.map(append_reply).map_err(stopped)).boxed())
    }

    /// Answers to a stream of forwarded writes. The group is in its first message.
    async fn verdicts(self, caller: Caller, mut requests: Streaming<pb::ForwardRequest>) -> Result<Verdicts, Status> {
        let Some(first) = requests.next().await else {
            return Ok(futures::stream::empty().boxed());
        };
        let first = first?;
        let number = first.group;
        let group = self.group(number)?;
        let requests = futures::stream::once(async { Ok(first) }).chain(requests);
        // A stream that breaks or changes its group ends; the other side makes a new one.
        let requests = requests.scan((), move |(), request: Result<pb::ForwardRequest, Status>| {
            let request = request.ok().filter(|request| request.group == number);
            futures::future::ready(request.filter(|_| caller.is_heard()))
        });
        Ok(group.take_forwarded(requests).map(Ok).boxed())
    }

    async fn index_for(&self, request: pb::ReadIndexRequest) -> Result<pb::ReadIndexReply, Status> {
        let group = self.group(request.group)?;
        let index = timeout(group.clock().as_ref(), group.read_limit(), group.read_index_here())
            .await
            .ok()
            .flatten();
        Ok(pb::ReadIndexReply {
            leader: index.is_some(),
            index: index.unwrap_or(0),
        })
    }

    async fn receive_snapshot(&self, mut frames: Streaming<pb::SnapshotFrame>) -> Result<pb::SnapshotReply, Status> {
        use pb::snapshot_frame::Frame;
        let Some(Frame::Head(head)) = frames.message().await?.and_then(|frame| frame.frame) else {
            return Err(Status::invalid_argument("a snapshot must begin with its head"));
        };
        let group = self.admitted(head.group).await?;
        group.arrivals.receive(&group, head, frames).await
    }
}

#[tonic::async_trait]
impl Consensus for Service {
    type AppendStream = Replies;
    type ForwardStream = Verdicts;
    type ReadIndexesStream = Indexes;

    async fn append(&self, request: Request<Streaming<pb::AppendRequest>>) -> Result<Response<Replies>, Status> {
        // The first request may come late (nothing to replicate yet), the answer's head must not.
        let caller = self.addressed(&request)?;
        let replies = self
            .clone()
            .append_replies(caller, request.into_inner())
            .try_flatten_stream();
        Ok(Response::new(replies.boxed()))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteReply>, Status> {
        self.addressed(&request)?;
        let request = request.into_inner();
        let group = self.admitted(request.group).await?;
        let reply = group
            .raft
            .vote(codec::vote_request_from_pb(request)?)
            .await
            .map_err(stopped)?;
        Ok(Response::new(codec::vote_reply_to_pb(&reply)))
    }

    async fn pre_vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteReply>, Status> {
        self.addressed(&request)?;
        let request = request.into_inner();
        let group = self.admitted(request.group).await?;
        let reply = group
            .raft
            .pre_vote(codec::vote_request_from_pb(request)?)
            .await
            .map_err(stopped)?;
        Ok(Response::new(codec::vote_reply_to_pb(&reply)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotFrame>>,
    ) -> Result<Response<pb::SnapshotReply>, Status> {
        self.addressed(&request)?;
        Ok(Response::new(self.receive_snapshot(request.into_inner()).await?))
    }

    async fn snapshot_held(
        &self,
        request: Request<pb::SnapshotHeldRequest>,
    ) -> Result<Response<pb::SnapshotHeldReply>, Status> {
        self.addressed(&request)?;
        let request = request.into_inner();
        let group = self.admitted(request.group).await?;
        Ok(Response::new(group.arrivals.held(request.transfer).await?))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferRequest>,
    ) -> Result<Response<pb::TransferReply>, Status> {
        self.addressed(&request)?;
        let request = request.into_inner();
        let group = self.admitted(request.group).await?;
        let answer = group
            .raft
            .handle_transfer_leader(codec::transfer_from_pb(request)?)
            .await
            .map_err(stopped)?;
        let refused = answer.err().map(|error| error.to_string()).unwrap_or_default();
        Ok(Response::new(pb::TransferReply { refused }))
    }

    async fn forward(&self, request: Request<Streaming<pb::ForwardRequest>>) -> Result<Response<Verdicts>, Status> {
        let caller = caller(&request)?;
        let verdicts = self.clone().verdicts(caller, request.into_inner()).try_flatten_stream();
        Ok(Response::new(verdicts.boxed()))
    }

    async fn read_index(&self, request: Request<pb::ReadIndexRequest>) -> Result<Response<pb::ReadIndexReply>, Status> {
        caller(&request)?;
        Ok(Response::new(self.index_for(request.into_inner()).await?))
    }

    async fn read_indexes(
        &self,
        request: Request<Streaming<pb::ReadIndexRequest>>,
    ) -> Result<Response<Indexes>, Status> {
        let (service, caller) = (self.clone(), caller(&request)?);
        let answers = request.into_inner().and_then(move |request| {
            let (service, heard) = (service.clone(), caller.check());
            async move {
                heard?;
                service.index_for(request).await
            }
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn status(&self, _request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusReply>, Status> {
        // Also for a server that was removed: it asks whether it was.
        Ok(Response::new(self.about.reply()))
    }

    async fn change(&self, request: Request<pb::ChangeRequest>) -> Result<Response<pb::ChangeReply>, Status> {
        caller(&request)?;
        Ok(Response::new(self.changes.change_for(request.into_inner()).await?))
    }

    async fn rejoin(&self, request: Request<pb::RejoinRequest>) -> Result<Response<pb::RejoinReply>, Status> {
        let caller = caller(&request)?;
        let nameless =
            || Status::permission_denied("only a server whose certificate says its name comes back by itself");
        let name = caller.name().ok_or_else(nameless)?;
        let reply = self.changes.replace_for(name, request.get_ref().old).await;
        Ok(Response::new(reply))
    }
}

/// Where the service runs.
pub struct Server {
    /// Takes connections.
    pub listener: TcpListener,
    /// Its side of TLS.
    pub tls: Tls,
    /// Hears of connections that are gone.
    pub peers: Peers,
    /// For deadlines.
    pub clock: SharedClock,
    /// Runs the handshakes.
    pub supervisor: Supervisor,
    /// Ends it.
    pub stop: CancellationToken,
}

impl Server {
    /// Serves until stopped. Connections that are still open then are cut.
    pub async fn run(self, service: Service) -> Result<(), BoxError> {
        let (sender, connections) = mpsc::channel(MAX_HANDSHAKES);
        let stop = self.stop.clone();
        let service = ConsensusServer::new(service)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let serve = tonic::transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_CALLS)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .add_service(service)
            .serve_with_incoming(ReceiverStream::new(connections));
        tokio::select! {
            served = serve => served.map_err(Into::into),
            () = self.accept(sender) => Ok(()),
            () = stop.cancelled() => Ok(()),
        }
    }

    async fn accept(&self, connections: mpsc::Sender<Result<PeerStream, std::io::Error>>) {
        let acceptor = self.tls.server().map(TlsAcceptor::from);
        let trust = self.tls.trust();
        let room = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection of another server could not be accepted");
                    self.clock.sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (acceptor, clock, connections) = (acceptor.clone(), Arc::clone(&self.clock), connections.clone());
            let peers = self.peers.clone();
            self.supervisor.spawn(TaskKind::Request, "raft handshake", async move {
                stream.set_nodelay(true)?;
                let stream = match acceptor {
                    Some(acceptor) => {
                        let accepted = timeout(clock.as_ref(), HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
                        PeerStream::secure(accepted, trust, peers)?
                    }
                    None => PeerStream::open(stream, peers),
                };
                drop(permit);
                // The service has ended: nobody waits for this connection any more.
                connections.send(Ok(stream)).await.ok();
                Ok(())
            });
        }
    }
}
