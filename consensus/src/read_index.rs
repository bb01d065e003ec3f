//! Linearizable reads on any member: ask the leader how far the log is committed, wait until that is applied here, read here.
//!
//! One question per member and group is under way at a time; all reads that came before it was sent share its answer, and
//! those that came later share the next one.

use crate::codec::pb;
use crate::exchange::Exchange;
use crate::group::{Group, Leadership};
use crate::network::Lane;
use crate::types::{Member, NodeId};
use hanse_runtime::clock::timeout;
use hanse_state::StoreError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Code;

/// Reads that may wait for an answer; a further one is refused.
pub const MAX_WAITING_READS: usize = 16_384;

/// Waits for the index up to which to apply before reading.
pub type ReadWaiter = oneshot::Sender<Result<u64, StoreError>>;

/// The way of this member's questions to one leader.
struct Way {
    leader: NodeId,
    member: Member,
    questions: Exchange<pb::ReadIndexRequest, tonic::Streaming<pb::ReadIndexReply>>,
}

/// Takes what waits beside `first`. A round costs a heartbeat to every member however many reads share it, so on a busy server what
/// is ready to run may run before, as long as that brings further reads; on one with time to spare it is no delay.
async fn gather(first: ReadWaiter, queue: &mut mpsc::Receiver<ReadWaiter>) -> Vec<ReadWaiter> {
    let mut waiting = vec![first];
    loop {
        let before = waiting.len();
        while waiting.len() < MAX_WAITING_READS {
            match queue.try_recv() {
                Ok(next) => waiting.push(next),
                Err(_) => break,
            }
        }
        if waiting.len() == before || waiting.len() == MAX_WAITING_READS {
            return waiting;
        }
        tokio::task::yield_now().await;
    }
}

impl Group {
    /// Waits until a read of this member's state sees everything that was acknowledged before the call.
    pub async fn linearize(&self) -> Result<(), StoreError> {
        let (sender, answer) = oneshot::channel();
        self.reads.try_send(sender).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => StoreError::Stopped,
        })?;
        let index = answer.await.map_err(|_| StoreError::Stopped)??;
        self.wait_applied(index).await
    }

    /// Whether this server leads with a quorum behind it, and has applied all that was committed before this call.
    pub(crate) async fn lead_with_all(&self) -> bool {
        match self.read_index_here().await {
            Some(index) => self.wait_applied(index).await.is_ok(),
            None => false,
        }
    }

    /// Waits until the entry at `index` is applied here.
    async fn wait_applied(&self, index: u64) -> Result<(), StoreError> {
        let mut progress = self.pending.progress();
        if progress.borrow().next > index {
            return Ok(());
        }
        let applied = progress.wait_for(|now| now.next > index);
        match timeout(self.clock().as_ref(), self.settings().request_timeout, applied).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(StoreError::Stopped),
            Err(_) => Err(StoreError::Timeout),
        }
    }

    /// Answers the reads that wait, round after round, until `stop`.
    pub(crate) async fn run_reads(
        self: Arc<Self>,
        mut queue: mpsc::Receiver<ReadWaiter>,
        stop: CancellationToken,
    ) -> Result<(), hanse_runtime::BoxError> {
        let mut way = None;
        loop {
            let first = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                first = queue.recv() => first,
            };
            let Some(first) = first else { return Ok(()) };
            let waiting = gather(first, &mut queue).await;
            self.read_counts.rounds.add(1);
            self.read_counts.reads.add(waiting.len() as u64);
            let answer = tokio::select! {
                biased;
                answer = self.round(&mut way) => answer,
                () = stop.cancelled() => Err(StoreError::Stopped),
            };
            for waiter in waiting {
                // A reader that gave up needs no answer.
                waiter.send(answer.clone()).ok();
            }
        }
    }

    /// Asks until a leader answers or time is up.
    async fn round(&self, way: &mut Option<Way>) -> Result<u64, StoreError> {
        let deadline = self.clock().mono() + self.settings().request_timeout;
        let mut leadership = self.leadership.subscribe();
        loop {
            let leader = leadership.borrow_and_update().clone();
            let left = deadline.saturating_sub(self.clock().mono());
            // Asking twice does no harm, so a silent leader is not waited for longer than an election takes.
            let limit = left.min(self.settings().election_max * 2);
            if let Ok(Some(index)) = timeout(self.clock().as_ref(), limit, self.ask(&leader, way)).await {
                return Ok(index);
            }
            if !self.pause(&mut leadership, deadline).await {
                return Err(if leader.leader.is_some() {
                    StoreError::Timeout
                } else {
                    StoreError::NoLeader
                });
            }
        }
    }

    async fn ask(&self, leadership: &Leadership, way: &mut Option<Way>) -> Option<u64> {
        if leadership.here {
            return self.read_index_here().await;
        }
        let (leader, member) = (leadership.leader?, leadership.member.as_ref()?);
        if !way
            .as_ref()
            .is_some_and(|way| way.leader == leader && way.member == *member)
        {
            *way = None;
        }
        let way = way.get_or_insert_with(|| Way {
            leader,
            member: member.clone(),
            questions: Exchange::default(),
        });
        let question = pb::ReadIndexRequest { group: self.id.0 };
        let mut client = self.peers.client(leader, member, Lane::Control).ok()?;
        let mut old = client.clone();
        let open = |questions| async move { client.read_indexes(questions).await };
        let reply = match way.questions.ask(question, open).await {
            Err(status) if status.code() == Code::Unimplemented => old.read_index(question).await.ok()?.into_inner(),
            answer => answer.ok()?,
        };
        reply.leader.then_some(reply.index)
    }

    /// The longest that a member asks at this server.
    pub(crate) fn read_limit(&self) -> Duration {
        self.settings().request_timeout
    }
}
