//! The way of a member's writes to the leader: one stream per leader and group, on which writes that come together travel together.
//!
//! The leader answers only what it refuses or loses sight of. Whoever forwarded a write hears its outcome from its own apply.

use crate::codec::{self, pb};
use crate::error::ConsensusError;
use crate::network::{Client, Lane, Peers};
use crate::types::{GroupId, Member, NodeId, Proposal, group_name};
use futures::Stream;
use hanse_runtime::BoxError;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use parking_lot::Mutex;
use pb::verdict::Verdict as Word;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Writes that may wait to be sent; a further one is refused.
const QUEUE: usize = 16_384;
/// Writes in one message.
const MAX_WRITES: usize = 512;
/// A message takes no further write once it has so many bytes. With the largest write it stays below what a server reads.
const MAX_BYTES: usize = 1024 * 1024;

/// Why a write was not put on its way.
#[derive(Debug)]
pub(crate) enum NotSent {
    /// Too many wait.
    Full,
    /// It may be tried again.
    Refused(String),
}

/// What is to be thought of a write that was put on its way.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not proposed, and never will be.
    Refused(String),
    /// Perhaps proposed.
    Lost(String),
}

/// The way of one group's writes to whoever leads it.
pub struct Forwarder {
    group: GroupId,
    peers: Peers,
    supervisor: Supervisor,
    stop: CancellationToken,
    link: Mutex<Option<Link>>,
}

/// A stream to one leader.
struct Link {
    leader: NodeId,
    member: Member,
    queue: mpsc::Sender<pb::Forwarded>,
    waiting: Arc<Waiting>,
}

/// The writes of a link whose fate is open, by the sequence of their proposals; nothing any more once the link has ended.
struct Waiting(Mutex<Option<HashMap<u64, Open>>>);

struct Open {
    /// It may have left this server.
    sent: bool,
    verdict: oneshot::Sender<Verdict>,
}

/// A write on its way. Dropping it stops waiting for a verdict, and takes nothing back.
pub(crate) struct Ticket {
    waiting: Arc<Waiting>,
    sequence: u64,
    verdict: oneshot::Receiver<Verdict>,
}

impl Waiting {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(HashMap::new()))))
    }

    /// Waits for a verdict; not when the link has ended.
    fn open(self: &Arc<Self>, sequence: u64) -> Option<Ticket> {
        let (sender, verdict) = oneshot::channel();
        let open = Open {
            sent: false,
            verdict: sender,
        };
        self.0.lock().as_mut()?.insert(sequence, open);
        Some(Ticket {
            waiting: Arc::clone(self),
            sequence,
            verdict,
        })
    }

    fn close(&self, sequence: u64) -> Option<Open> {
        self.0.lock().as_mut()?.remove(&sequence)
    }

    fn sent(&self, writes: &[pb::Forwarded]) {
        if let Some(open) = self.0.lock().as_mut() {
            for write in writes {
                if let Some(open) = write.proposal.as_ref().and_then(|p| open.get_mut(&p.sequence)) {
                    open.sent = true;
                }
            }
        }
    }

    fn judge(&self, verdicts: Vec<pb::Verdict>) {
        for pb::Verdict { sequence, verdict } in verdicts {
            let verdict = match verdict {
                Some(Word::Refused(refused)) => Verdict::Refused(refused.reason),
                Some(Word::Unknown(unknown)) => Verdict::Lost(unknown.reason),
                None => Verdict::Lost("an empty verdict".to_owned()),
            };
            if let Some(open) = self.close(sequence) {
                // Whoever gave up since needs no verdict.
                open.verdict.send(verdict).ok();
            }
        }
    }

    /// The link is no more: what never left this server is not proposed, of the rest nobody knows.
    fn end(&self, reason: &str) {
        for open in self.0.lock().take().into_iter().flat_map(HashMap::into_values) {
            let verdict = if open.sent { Verdict::Lost } else { Verdict::Refused };
            open.verdict.send(verdict(reason.to_owned())).ok();
        }
    }

    fn ended(&self) -> bool {
        self.0.lock().is_none()
    }
}

impl Ticket {
    /// Waits for a verdict, which most writes never get. Cancel safe.
    pub(crate) async fn verdict(&mut self) -> Verdict {
        let verdict = (&mut self.verdict).await;
        verdict.unwrap_or_else(|_| Verdict::Lost("nobody listens to the leader any more".to_owned()))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.waiting.close(self.sequence);
    }
}

impl Link {
    fn send(&self, term: u64, proposal: &Proposal) -> Result<Ticket, NotSent> {
        let gone = || NotSent::Refused("the way to the leader has just ended".to_owned());
        let ticket = self.waiting.open(proposal.id.sequence).ok_or_else(gone)?;
        let write = pb::Forwarded {
            term,
            proposal: Some(codec::proposal_to_pb(proposal)),
        };
        match self.queue.try_send(write) {
            Ok(()) => Ok(ticket),
            Err(mpsc::error::TrySendError::Full(_)) => Err(NotSent::Full),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(gone()),
        }
    }
}

impl Forwarder {
    /// For `group`. No stream yet; the first write makes one.
    pub fn new(group: GroupId, peers: Peers, supervisor: Supervisor, stop: CancellationToken) -> Self {
        Self {
            group,
            peers,
            supervisor,
            stop,
            link: Mutex::new(None),
        }
    }

    /// Puts a write on its way to the leader of `term`.
    pub(crate) fn send(
        &self,
        (id, member): (NodeId, &Member),
        term: u64,
        proposal: &Proposal,
    ) -> Result<Ticket, NotSent> {
        let member = self.peers.locate(id, member);
        let mut known = self.link.lock();
        let fits = |link: &Link| link.leader == id && link.member == member && !link.waiting.ended();
        if let Some(link) = known.as_ref().filter(|link| fits(link)) {
            return link.send(term, proposal);
        }
        let link = self
            .open(id, member)
            .map_err(|error| NotSent::Refused(error.to_string()))?;
        // The one before, if any, sends what waits in it, hears its verdicts and ends.
        known.insert(link).send(term, proposal)
    }

    fn open(&self, leader: NodeId, member: Member) -> Result<Link, ConsensusError> {
        let client = self.peers.client(leader, &member, Lane::Control)?;
        let (queue, writes) = mpsc::channel(QUEUE);
        let waiting = Waiting::new();
        let requests = requests(self.group, writes, Arc::clone(&waiting));
        let task = run(client, requests, Arc::clone(&waiting), self.stop.clone());
        let name = format!("writes of {} to {}", group_name(self.group), member.name);
        self.supervisor.spawn(TaskKind::Consensus, name, task);
        Ok(Link {
            leader,
            member,
            queue,
            waiting,
        })
    }
}

/// Writes as messages: whatever waits when the connection has room goes into the next one.
fn requests(
    group: GroupId,
    writes: mpsc::Receiver<pb::Forwarded>,
    waiting: Arc<Waiting>,
) -> impl Stream<Item = pb::ForwardRequest> + Send + 'static {
    let size = |write: &pb::Forwarded| write.proposal.as_ref().map_or(0, |proposal| proposal.command.len());
    futures::stream::unfold((writes, waiting), move |(mut queue, waiting)| async move {
        let first = queue.recv().await?;
        let mut bytes = size(&first);
        let mut writes = vec![first];
        while writes.len() < MAX_WRITES && bytes < MAX_BYTES {
            let Ok(next) = queue.try_recv() else { break };
            bytes += size(&next);
            writes.push(next);
        }
        waiting.sent(&writes);
        Some((pb::ForwardRequest { group: group.0, writes }, (queue, waiting)))
    })
}

async fn run(
    client: Client,
    requests: impl Stream<Item = pb::ForwardRequest> + Send + 'static,
    waiting: Arc<Waiting>,
    stop: CancellationToken,
) -> Result<(), BoxError> {
    let reason = tokio::select! {
        biased;
        () = stop.cancelled() => "this server is stopping".to_owned(),
        reason = converse(client, requests, &waiting) => reason,
    };
    tracing::debug!(reason, "a way of writes to a leader ended");
    waiting.end(&reason);
    Ok(())
}

/// Until the stream ends; answers why it did.
async fn converse(
    mut client: Client,
    requests: impl Stream<Item = pb::ForwardRequest> + Send + 'static,
    waiting: &Waiting,
) -> String {
    let mut replies = match client.forward(requests).await {
        Ok(replies) => replies.into_inner(),
        Err(status) => return status.to_string(),
    };
    loop {
        match replies.message().await {
            Ok(Some(reply)) => waiting.judge(reply.verdicts),
            Ok(None) => return "the leader has ended the stream".to_owned(),
            Err(status) => return status.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ProposalId;
    use bytes::Bytes;
    use futures::{FutureExt, StreamExt};
    use pb::verdict::Refused;

    fn proposal(sequence: u64, bytes: usize) -> Proposal {
        Proposal {
            id: ProposalId { origin: 7, sequence },
            command: Bytes::from(vec![0; bytes]),
        }
    }

    fn link(queue: usize) -> (Link, impl Stream<Item = pb::ForwardRequest>) {
        let (sender, writes) = mpsc::channel(queue);
        let waiting = Waiting::new();
        let requests = requests(GroupId::TENANTS, writes, Arc::clone(&waiting));
        let link = Link {
            leader: 2,
            member: Member::default(),
            queue: sender,
            waiting,
        };
        (link, requests)
    }

    #[tokio::test]
    async fn writes_that_wait_travel_together_within_bounds() {
        let (link, requests) = link(2 * MAX_WRITES);
        let mut requests = std::pin::pin!(requests);
        let _small: Vec<_> = (0..MAX_WRITES as u64 + 1)
            .map(|n| link.send(3, &proposal(n, 10)).unwrap())
            .collect();
        for wanted in [MAX_WRITES, 1] {
            assert_eq!(requests.next().await.unwrap().writes.len(), wanted);
        }
        let _large: Vec<_> = (0..3)
            .map(|n| link.send(3, &proposal(1000 + n, MAX_BYTES / 2 + 1)).unwrap())
            .collect();
        for wanted in [2, 1] {
            assert_eq!(requests.next().await.unwrap().writes.len(), wanted);
        }
        assert!(requests.next().now_or_never().is_none(), "nothing waits any more");
    }

    #[tokio::test]
    async fn an_ended_link_has_lost_only_what_may_have_left() {
        let (link, requests) = link(8);
        let mut requests = std::pin::pin!(requests);
        let mut left = link.send(3, &proposal(1, 1)).unwrap();
        requests.next().await.unwrap();
        let mut kept = link.send(3, &proposal(2, 1)).unwrap();
        link.waiting.end("broken");
        assert_eq!(left.verdict().await, Verdict::Lost("broken".into()));
        assert_eq!(kept.verdict().await, Verdict::Refused("broken".into()));
        assert!(link.waiting.ended());
        assert!(matches!(link.send(3, &proposal(3, 1)), Err(NotSent::Refused(_))));
    }

    #[tokio::test]
    async fn verdicts_find_their_writes_and_waiters_that_left_leave_nothing() {
        let (link, _requests) = link(2);
        let mut refused = link.send(3, &proposal(1, 1)).unwrap();
        drop(link.send(3, &proposal(2, 1)).unwrap());
        assert!(matches!(link.send(3, &proposal(3, 1)), Err(NotSent::Full)));
        assert_eq!(link.waiting.0.lock().as_ref().unwrap().len(), 1);
        let reason = || "not the leader".to_owned();
        let verdict = |sequence| pb::Verdict {
            sequence,
            verdict: Some(Word::Refused(Refused { reason: reason() })),
        };
        link.waiting.judge(vec![verdict(1), verdict(2)]);
        assert_eq!(refused.verdict().await, Verdict::Refused(reason()));
    }
}
