//! Writes: from any member to the leader, and back to the caller with their outcome.
//!
//! A command is never proposed again while an earlier proposal of it may still be committed. Each proposal is for one term
//! only. When it gets lost on the way (the leader died, the connection broke), the proposer waits for what its own apply
//! says: the outcome, if the entry was committed; or an entry of a later term, after which the lost proposal can never be
//! committed and is made again. If neither comes in time, the caller hears that the outcome is unknown.

use crate::codec::{self, pb};
use crate::forward::{NotSent, Verdict};
use crate::group::{Group, Leadership};
use crate::pending::{Fate, Waiter};
use crate::types::{Proposal, TypeConfig};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use hanse_runtime::clock::timeout;
use hanse_state::StoreError;
use hanse_state::pb::{Command, Outcome};
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use openraft::type_config::alias::CommittedLeaderIdOf;
use pb::verdict::{Refused, Unknown, Verdict as Word};
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long to wait at most before a refused proposal is tried again, if no new leader shows up earlier.
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// Forwarded writes of one member that this one has under way; it reads no more of them until some are through.
const UNDER_WAY: usize = 16_384;
/// Verdicts in one answer.
const MAX_VERDICTS: usize = 512;

/// What became of one try.
#[derive(Debug)]
enum Attempt {
    /// Applied here.
    Done(Outcome),
    /// Not proposed, and never will be.
    Refused(String),
    /// Perhaps proposed.
    Lost(String),
    /// Not proposed: too many writes are on their way.
    Overloaded,
    /// This server is stopping.
    Stopped,
}

impl Group {
    /// Puts a command through the log and answers its outcome.
    pub async fn propose(&self, command: Bytes) -> Result<Outcome, StoreError> {
        let clock = self.clock();
        let deadline = clock.mono() + self.settings().request_timeout;
        let mut waiter = self.pending.register();
        let mut leadership = self.leadership.subscribe();
        let proposal = waiter.proposal(command);
        loop {
            let installs = self.pending.progress().borrow().installs;
            let leader = leadership.borrow_and_update().clone();
            let left = deadline.saturating_sub(clock.mono());
            let attempt = self.attempt(&mut waiter, &leader, &proposal, &mut leadership);
            let attempt = timeout(clock.as_ref(), left, attempt).await;
            match attempt.unwrap_or_else(|elapsed| Attempt::Lost(elapsed.to_string())) {
                Attempt::Done(outcome) => return Ok(outcome),
                Attempt::Stopped => return Err(StoreError::Stopped),
                Attempt::Overloaded => return Err(StoreError::Overloaded),
                Attempt::Refused(reason) => {
                    tracing::debug!(group = %self.id, term = leader.term, reason, "a write waits for a leader");
                    if !self.pause(&mut leadership, deadline).await {
                        return Err(StoreError::NoLeader);
                    }
                }
                Attempt::Lost(reason) => {
                    tracing::debug!(group = %self.id, term = leader.term, reason, "a write got lost on its way");
                    let left = deadline.saturating_sub(clock.mono());
                    match timeout(clock.as_ref(), left, waiter.fate(leader.term, installs)).await {
                        Ok(Fate::Applied(outcome)) => return Ok(outcome),
                        Ok(Fate::Dead) => {}
                        Ok(Fate::Unknown) => return Err(StoreError::LeaderChanged),
                        Err(_) => return Err(StoreError::Timeout),
                    }
                }
            }
        }
    }

    /// Waits for a change of leadership, or a little while. False: the deadline has come.
    pub(crate) async fn pause(&self, leadership: &mut watch::Receiver<Leadership>, deadline: Duration) -> bool {
        let clock = self.clock();
        let left = deadline.saturating_sub(clock.mono());
        if left.is_zero() {
            return false;
        }
        // Elapsed or changed: either way the next try looks anew.
        let _changed = timeout(clock.as_ref(), left.min(RETRY_PAUSE), leadership.changed())
            .await
            .is_ok();
        true
    }

    async fn attempt(
        &self,
        waiter: &mut Waiter,
        leader: &Leadership,
        proposal: &Proposal,
        leadership: &mut watch::Receiver<Leadership>,
    ) -> Attempt {
        if leader.here {
            self.propose_to_myself(waiter, leader.term, proposal).await
        } else {
            self.forward(waiter, leader, proposal, leadership).await
        }
    }

    async fn propose_to_myself(&self, waiter: &mut Waiter, term: u64, proposal: &Proposal) -> Attempt {
        let raft = self.propose_here(term, proposal.clone());
        tokio::select! {
            biased;
            outcome = waiter.outcome() => outcome.map_or(Attempt::Stopped, Attempt::Done),
            result = raft => match result {
                Here::Applied => match waiter.outcome().await {
                    Some(outcome) => Attempt::Done(outcome),
                    None => Attempt::Stopped,
                },
                Here::Refused(reason) => Attempt::Refused(reason),
                Here::Unknown(reason) => Attempt::Lost(reason),
                Here::Stopped => Attempt::Stopped,
            },
        }
    }

    async fn forward(
        &self,
        waiter: &mut Waiter,
        leader: &Leadership,
        proposal: &Proposal,
        leadership: &mut watch::Receiver<Leadership>,
    ) -> Attempt {
        let (Some(id), Some(member)) = (leader.leader, &leader.member) else {
            return Attempt::Refused("no leader".to_owned());
        };
        let mut ticket = match self.forwarder.send((id, member), leader.term, proposal) {
            Ok(ticket) => ticket,
            Err(NotSent::Full) => return Attempt::Overloaded,
            Err(NotSent::Refused(reason)) => return Attempt::Refused(reason),
        };
        tokio::select! {
            biased;
            outcome = waiter.outcome() => outcome.map_or(Attempt::Stopped, Attempt::Done),
            verdict = ticket.verdict() => match verdict {
                Verdict::Refused(reason) => Attempt::Refused(reason),
                Verdict::Lost(reason) => Attempt::Lost(reason),
            },
            // A leader that fell silent says nothing of it.
            _later = leadership.wait_for(|now| now.term > leader.term) => Attempt::Lost("a later term has begun".to_owned()),
        }
    }

    /// Proposes at this server, if it leads `term`. The leader stamps the time: members' clocks differ.
    pub(crate) async fn propose_here(&self, term: u64, mut proposal: Proposal) -> Here {
        proposal.command = stamped(&proposal.command, self.clock().wall().as_millis());
        type Responder = ProgressResponder<TypeConfig, ClientWriteResult<TypeConfig>>;
        let (responder, result) = Responder::complete_only();
        let write = self
            .raft
            .write(proposal)
            .with_leader(CommittedLeaderIdOf::<TypeConfig>::new(term))
            .responder(responder);
        if write.await.is_err() {
            return Here::Stopped;
        }
        match result.await {
            Err(_) => Here::Stopped,
            Ok(Ok(_)) => Here::Applied,
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => Here::Refused(format!("{:?}", forward.reason)),
            Ok(Err(error @ ClientWriteError::LogEntryDiscarded(_))) => Here::Unknown(error.to_string()),
            Ok(Err(error)) => Here::Refused(error.to_string()),
        }
    }

    /// Proposes what other members forward; answers what must be said about it.
    pub(crate) fn take_forwarded(
        self: Arc<Self>,
        requests: impl Stream<Item = pb::ForwardRequest> + Send + 'static,
    ) -> impl Stream<Item = pb::ForwardReply> + Send + 'static {
        requests
            .flat_map(|request| futures::stream::iter(request.writes))
            .map(move |write| {
                let group = Arc::clone(&self);
                async move { group.take_one(write).await }
            })
            .buffer_unordered(UNDER_WAY)
            .filter_map(futures::future::ready)
            .ready_chunks(MAX_VERDICTS)
            .map(|verdicts| pb::ForwardReply { verdicts })
    }

    async fn take_one(&self, write: pb::Forwarded) -> Option<pb::Verdict> {
        let pb::Forwarded { term, proposal } = write;
        // Nobody waits for a write without a name.
        let proposal = codec::proposal_from_pb(proposal?);
        let sequence = proposal.id.sequence;
        let verdict = match self.propose_here(term, proposal).await {
            Here::Applied => return None,
            Here::Refused(reason) => Word::Refused(Refused { reason }),
            Here::Unknown(reason) => Word::Unknown(Unknown { reason }),
            Here::Stopped => Word::Unknown(Unknown {
                reason: "the leader is stopping".to_owned(),
            }),
        };
        let verdict = Some(verdict);
        Some(pb::Verdict { sequence, verdict })
    }
}

/// What a proposal at this server came to.
#[derive(Debug)]
pub(crate) enum Here {
    /// Applied.
    Applied,
    /// Not proposed.
    Refused(String),
    /// Proposed, fate unknown.
    Unknown(String),
    /// Raft stopped.
    Stopped,
}

/// An encoded command with another time. Of a field that occurs twice, protobuf takes the last, so the stamp is appended
/// and nothing is decoded.
fn stamped(command: &Bytes, at_millis: i64) -> Bytes {
    let stamp = Command {
        at_millis,
        ..Command::default()
    }
    .encode_to_vec();
    [command.as_ref(), &stamp].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_state::KeySpace;
    use hanse_state::machine::Machine;
    use hanse_state::pb::command::{Compact, command::Op};

    #[test]
    fn the_leader_stamps_the_time_and_changes_nothing_else() {
        let op = Op::Compact(Compact { revision: 7 });
        for at in [0, 1, 1_790_000_000_000] {
            let command = Machine::command(5, &KeySpace::Tenant("t".into()), Some(3), op.clone());
            let stamped = Command::decode(stamped(&command.encode_to_vec().into(), at)).unwrap();
            let wanted = if at == 0 {
                command
            } else {
                Command {
                    at_millis: at,
                    ..command
                }
            };
            assert_eq!(stamped, wanted);
        }
    }
}
