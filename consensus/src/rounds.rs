//! Rounds of heartbeats by which a leader learns that it still leads. Questions of all members that come close together share
//! one: each round costs a message to every member and back.
//!
//! A question is answered by a round that began after it came (Raft dissertation, section 6.4). Over a short way the next
//! round begins when the one before is over; over a long way a question does not wait for that, but [`GAP`] at most.

use crate::group::Group;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hanse_runtime::clock::timeout;
use openraft::ReadPolicy;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Between the beginnings of two rounds while one is under way.
const GAP: Duration = Duration::from_millis(1);
/// Rounds under way at a time: by then the ways to the others are so long or so silent that more would not help.
const MAX_ROUNDS: usize = 256;
/// Questions that may wait. Each member asks one at a time, but for those that gave up and asked again.
pub(crate) const MAX_QUESTIONS: usize = 1024;

/// Wants the read index, or nothing if this server does not lead with a quorum behind it.
pub(crate) type Question = oneshot::Sender<Option<u64>>;

/// Takes what waits beside `first`; what is ready to run runs before, as long as it brings further questions.
async fn gather(first: Question, queue: &mut mpsc::Receiver<Question>) -> Vec<Question> {
    let mut waiting = vec![first];
    loop {
        let before = waiting.len();
        while waiting.len() < MAX_QUESTIONS
            && let Ok(next) = queue.try_recv()
        {
            waiting.push(next);
        }
        if waiting.len() == before || waiting.len() == MAX_QUESTIONS {
            return waiting;
        }
        tokio::task::yield_now().await;
    }
}

impl Group {
    /// The read index, if this server leads with a quorum behind it at some time between this call and its end.
    pub(crate) async fn read_index_here(&self) -> Option<u64> {
        if self.is_alone() {
            return self.confirm().await;
        }
        let (sender, answer) = oneshot::channel();
        self.rounds.try_send(sender).ok()?;
        answer.await.ok().flatten()
    }

    /// Whether a round needs nobody else.
    fn is_alone(&self) -> bool {
        self.roll.borrow().membership.voter_ids().nth(1).is_none()
    }

    async fn confirm(&self) -> Option<u64> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Some(linearizer.read_log_id().index()),
            Err(error) => {
                tracing::debug!(group = %self.id, %error, "no read index");
                None
            }
        }
    }

    /// Answers questions, round after round, until `stop`.
    pub(crate) async fn run_rounds(
        self: Arc<Self>,
        mut queue: mpsc::Receiver<Question>,
        stop: CancellationToken,
    ) -> Result<(), hanse_runtime::BoxError> {
        let mut under_way = FuturesUnordered::new();
        let mut next = Duration::ZERO;
        loop {
            let now = self.clock().mono();
            let begins = under_way.is_empty() || (now >= next && under_way.len() < MAX_ROUNDS);
            let first = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                Some(()) = under_way.next() => continue,
                () = self.clock().sleep(next.saturating_sub(now)), if !begins && now < next => continue,
                first = queue.recv(), if begins => first,
            };
            let Some(first) = first else { return Ok(()) };
            let waiting = gather(first, &mut queue).await;
            next = self.clock().mono() + GAP;
            under_way.push(self.round_for(waiting));
        }
    }

    async fn round_for(&self, waiting: Vec<Question>) {
        let answer = timeout(self.clock().as_ref(), self.read_limit(), self.confirm()).await;
        let index = answer.ok().flatten();
        for question in waiting {
            // Whoever gave up needs no answer.
            question.send(index).ok();
        }
    }
}
