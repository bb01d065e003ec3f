//! Writes: from any member to the leader, and back to the caller with their outcome.
//!
//! A command is never proposed again while an earlier proposal of it may still be committed. Each proposal is for one term
//! only. When it gets lost on the way (the leader died, the connection broke), the proposer waits for what its own apply
//! says: the outcome, if the entry was committed; or an entry of a later term, after which the lost proposal can never be
//! committed and is made again. If neither comes in time, the caller hears that the outcome is unknown.

use crate::codec::{self, pb};
use crate::group::{Group, Leadership};
use crate::network::Lane;
use crate::pending::{Fate, Waiter};
use crate::types::{Proposal, TypeConfig};
use bytes::Bytes;
use hanse_runtime::clock::timeout;
use hanse_state::StoreError;
use hanse_state::pb::{Command, Outcome};
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use openraft::type_config::alias::CommittedLeaderIdOf;
use prost::Message;
use std::time::Duration;
use tokio::sync::watch;

/// How long to wait at most before a refused proposal is tried again, if no new leader shows up earlier.
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// How long a member that forwarded a write waits for its own apply after the leader has answered: so that a caller who
/// then reads here finds his write.
const APPLY_LAG: Duration = Duration::from_secs(1);

/// How long a forwarded write that was seen applied here waits for the leader's answer, which then has nothing to add.
const REPLY_LAG: Duration = Duration::from_millis(250);

/// What became of one try.
#[derive(Debug)]
enum Attempt {
    /// Applied here.
    Done(Outcome),
    /// Not proposed, and never will be.
    Refused(String),
    /// Perhaps proposed.
    Lost(String),
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
            match self.attempt(&mut waiter, &leader, &proposal, left).await {
                Attempt::Done(outcome) => return Ok(outcome),
                Attempt::Stopped => return Err(StoreError::Stopped),
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

    async fn attempt(&self, waiter: &mut Waiter, leader: &Leadership, proposal: &Proposal, left: Duration) -> Attempt {
        match (&leader.member, leader.leader) {
            _ if leader.here => self.propose_to_myself(waiter, leader.term, proposal, left).await,
            (Some(_), Some(_)) => self.forward(waiter, leader, proposal, left).await,
            _ => Attempt::Refused("no leader".to_owned()),
        }
    }

    async fn propose_to_myself(&self, waiter: &mut Waiter, term: u64, proposal: &Proposal, left: Duration) -> Attempt {
        let raft = self.propose_here(term, proposal.clone(), left);
        tokio::select! {
            biased;
            outcome = waiter.outcome() => outcome.map_or(Attempt::Stopped, Attempt::Done),
            result = raft => match result {
                Here::Applied(..) => match waiter.outcome().await {
                    Some(outcome) => Attempt::Done(outcome),
                    None => Attempt::Stopped,
                },
                Here::Refused(reason) => Attempt::Refused(reason),
                Here::Unknown(reason) => Attempt::Lost(reason),
                Here::Stopped => Attempt::Stopped,
            },
        }
    }

    async fn forward(&self, waiter: &mut Waiter, leader: &Leadership, proposal: &Proposal, left: Duration) -> Attempt {
        let (Some(id), Some(member)) = (leader.leader, &leader.member) else {
            return Attempt::Refused("no leader".to_owned());
        };
        let mut client = match self.peers.client(id, member, Lane::Control) {
            Ok(client) => client,
            Err(error) => return Attempt::Refused(error.to_string()),
        };
        let request = pb::ProposeRequest {
            group: self.id.0,
            term: leader.term,
            proposal: Some(codec::proposal_to_pb(proposal)),
        };
        let mut call = std::pin::pin!(timeout(self.clock().as_ref(), left, client.propose(request)));
        let reply = tokio::select! {
            biased;
            reply = &mut call => reply,
            outcome = waiter.outcome() => {
                // The answer is on its way. Dropping the call would reset its stream, and after a thousand resets that cross
                // their answers HTTP/2 gives the connection up, with all other writes on it.
                let _late = timeout(self.clock().as_ref(), REPLY_LAG, call).await.is_ok();
                return outcome.map_or(Attempt::Stopped, Attempt::Done);
            }
        };
        use pb::propose_reply::Result as R;
        match reply {
            Err(elapsed) => Attempt::Lost(elapsed.to_string()),
            Ok(Err(status)) if never_left(&status) => Attempt::Refused(status.message().to_owned()),
            Ok(Err(status)) => Attempt::Lost(status.to_string()),
            Ok(Ok(reply)) => match reply.into_inner().result {
                Some(R::Done(done)) => self.applied_there(waiter, done.outcome).await,
                Some(R::Refused(refused)) => Attempt::Refused(refused.reason),
                Some(R::Unknown(unknown)) => Attempt::Lost(unknown.reason),
                None => Attempt::Lost("an empty answer".to_owned()),
            },
        }
    }

    /// The leader has applied it; this member does in a moment, unless it is far behind.
    async fn applied_there(&self, waiter: &mut Waiter, outcome: Bytes) -> Attempt {
        match timeout(self.clock().as_ref(), APPLY_LAG, waiter.outcome()).await {
            Ok(Some(outcome)) => Attempt::Done(outcome),
            Ok(None) | Err(_) => match Outcome::decode(outcome) {
                Ok(outcome) => Attempt::Done(outcome),
                Err(error) => Attempt::Lost(error.to_string()),
            },
        }
    }

    /// Proposes at this server, if it leads `term`. The leader stamps the time: members' clocks differ.
    pub(crate) async fn propose_here(&self, term: u64, mut proposal: Proposal, limit: Duration) -> Here {
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
        match timeout(self.clock().as_ref(), limit, result).await {
            Err(elapsed) => Here::Unknown(elapsed.to_string()),
            Ok(Err(_)) => Here::Stopped,
            Ok(Ok(Ok(response))) => Here::Applied(response.log_id.index, response.data.0),
            Ok(Ok(Err(ClientWriteError::ForwardToLeader(forward)))) => Here::Refused(format!("{:?}", forward.reason)),
            Ok(Ok(Err(error @ ClientWriteError::LogEntryDiscarded(_)))) => Here::Unknown(error.to_string()),
            Ok(Ok(Err(error))) => Here::Refused(error.to_string()),
        }
    }

    /// Answers a member that forwards a write.
    pub(crate) async fn propose_for(&self, request: pb::ProposeRequest) -> pb::ProposeReply {
        use pb::propose_reply::{Done, Refused, Result as R, Unknown};
        let result = match request.proposal {
            None => R::Refused(Refused {
                reason: "no proposal".to_owned(),
            }),
            Some(proposal) => {
                let limit = self.settings().request_timeout;
                match self
                    .propose_here(request.term, codec::proposal_from_pb(proposal), limit)
                    .await
                {
                    Here::Applied(index, outcome) => {
                        let outcome = outcome.unwrap_or_default().encode_to_vec().into();
                        R::Done(Done { index, outcome })
                    }
                    Here::Refused(reason) => R::Refused(Refused { reason }),
                    Here::Unknown(reason) => R::Unknown(Unknown { reason }),
                    Here::Stopped => R::Unknown(Unknown {
                        reason: "the leader is stopping".to_owned(),
                    }),
                }
            }
        };
        pb::ProposeReply { result: Some(result) }
    }
}

/// What a proposal at this server came to.
#[derive(Debug)]
pub(crate) enum Here {
    /// Applied at this index; the outcome, unless its waiter is on this server and has it.
    Applied(u64, Option<Outcome>),
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

    #[test]
    fn only_a_failed_connection_is_known_not_to_have_sent() {
        assert!(!never_left(&tonic::Status::unavailable("connection reset")));
        let source: Box<dyn std::error::Error + Send + Sync> = Box::new(tonic::ConnectError("refused".into()));
        assert!(never_left(&tonic::Status::from_error(source)));
    }
}
