//! A server that found log entries missing asks the others to take it in again under a new id ([`crate::replace`] decides, at the council's
//! leader). It speaks for itself by its certificate, and does not take part in Raft until it has the answer.

use crate::codec::{self, pb};
use crate::config::{NodeConfig, Settings};
use crate::error::ConsensusError;
use crate::group::role_name;
use crate::identity::Joined;
use crate::network::{Lane, Peers};
use crate::roster::{Roster, quorum};
use crate::tls::{Tls, TlsPem};
use crate::types::{GroupId, Member, NodeId};
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::supervisor::chain;
use hanse_state::Role;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Between two rounds of questions.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How many times as long as a write the change may take: it is several of them in every group.
const PATIENCE: u32 = 4;
/// Servers that are asked at most: those in the configuration, and those that they name.
const CONTACTS_MAX: usize = 64;

/// A member that comes back as a new one.
#[derive(Debug)]
pub struct Rejoin {
    /// Its id until now.
    pub old: NodeId,
    /// Its name, as in its certificate.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Members that are known, perhaps by ids that they do not have any more.
    pub members: BTreeMap<NodeId, Member>,
    /// Certificates and key.
    pub tls: TlsPem,
    /// Timing.
    pub settings: Settings,
}

/// What the others' answers mean.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Prospect {
    /// This one of them leads the council, and may be asked.
    Leader(usize),
    /// Nobody can say now, for this reason.
    Wait(String),
}

fn council(reply: &pb::StatusReply) -> Option<&pb::GroupStatus> {
    reply.groups.iter().find(|status| status.group == GroupId::COUNCIL.0)
}

fn roster(status: &pb::GroupStatus) -> Option<Roster> {
    let membership = codec::membership_from_pb(status.membership.clone()?).ok()?;
    Some(Roster::of(&membership)).filter(|roster| !roster.seats.is_empty())
}

/// Who leads, of those that answered, by their numbers; or why nobody can. Pure.
fn prospect(old: NodeId, asked: usize, replies: &[(usize, pb::StatusReply)]) -> Prospect {
    let councils = || replies.iter().filter_map(|(n, reply)| Some((*n, council(reply)?)));
    let leads = |(_, status): &(usize, &pb::GroupStatus)| status.role == role_name(Role::Leader);
    let leader = councils().filter(leads).max_by_key(|(_, status)| status.term);
    let newest = || councils().max_by_key(|(_, status)| status.last_index);
    let Some(known) = leader.or_else(newest).and_then(|(_, status)| roster(status)) else {
        return Prospect::Wait(format!("none of the {asked} other servers that are known answers"));
    };
    let votes = |id: &NodeId| *id != old && known.voters.contains(id);
    let present = replies.iter().filter(|(_, reply)| votes(&reply.id)).count();
    let (voters, needed) = (known.voters.len(), quorum(known.voters.len()));
    // One that has lost its quorum may not have noticed yet.
    match (needed.saturating_sub(present), leader) {
        (0, Some((n, _))) => Prospect::Leader(n),
        (0, None) => Prospect::Wait(format!(
            "{present} of {voters} voters answer, but none of them leads yet"
        )),
        (short, _) => Prospect::Wait(format!(
            "of {voters} voters {needed} must answer besides this server, whose vote is lost, and {present} do: {short} too few; start \
             the others. If they lost their data, too, restore a backup"
        )),
    }
}

/// Takes servers up that are not known yet. Pure.
fn learn(contacts: &mut Vec<Member>, own: &str, replies: &[(usize, pb::StatusReply)]) {
    let told = replies.iter().filter_map(|(_, reply)| roster(council(reply)?));
    for member in told
        .flat_map(|roster| roster.seats.into_values())
        .map(|seat| seat.member)
    {
        let known = member.address == own || contacts.contains(&member);
        if !known && !member.name.is_empty() && contacts.len() < CONTACTS_MAX {
            contacts.push(member);
        }
    }
}

impl Rejoin {
    /// Asks until the leader has given this server a new id, or says that it never will, or `limit` has passed. Gives the id, and all
    /// members.
    pub async fn run(&self, clock: &SharedClock, limit: Duration) -> Result<Joined, ConsensusError> {
        let deadline = clock.mono() + limit;
        let tls = Tls::new(&self.tls, &self.name)?;
        let peers = Peers::new(
            &NodeConfig::stranger(&self.name, &self.tls, &self.settings),
            tls,
            Arc::clone(clock),
        );
        let others = self.members.iter().filter(|(id, _)| **id != self.old);
        let others = others.map(|(_, member)| member.clone());
        let mut contacts: Vec<Member> = others.filter(|member| member.address != self.address).collect();
        let mut told = String::new();
        loop {
            let replies = self.ask_all(&peers, &contacts).await;
            learn(&mut contacts, &self.address, &replies);
            let why = match prospect(self.old, contacts.len(), &replies) {
                Prospect::Wait(why) => why,
                Prospect::Leader(n) => match self.ask_leader(&peers, n, &contacts).await? {
                    Ok(id) => return Ok(self.joined(id, n, &replies)),
                    Err(why) => why,
                },
            };
            if clock.mono() >= deadline {
                let why = format!("{why} (it was tried for {} s)", limit.as_secs());
                return Err(ConsensusError::NotReplaced { id: self.old, why });
            }
            if why != told {
                tracing::warn!(why, "this server cannot come back under a new id yet, and tries again");
                told = why;
            }
            clock.sleep(ASK_AGAIN).await;
        }
    }

    async fn ask_all(&self, peers: &Peers, contacts: &[Member]) -> Vec<(usize, pb::StatusReply)> {
        let ask = |(n, member): (usize, &Member)| {
            let client = peers.client(number(n), member, Lane::Control);
            async move {
                let mut client = client.ok()?;
                let call = client.status(pb::StatusRequest {});
                let reply = timeout(peers.clock().as_ref(), self.settings.status_timeout, call).await;
                Some((n, reply.ok()?.ok()?.into_inner()))
            }
        };
        let asks = contacts.iter().enumerate().map(ask);
        futures::future::join_all(asks).await.into_iter().flatten().collect()
    }

    /// The new id, or why it cannot be had yet; an error if it never can.
    async fn ask_leader(
        &self,
        peers: &Peers,
        n: usize,
        contacts: &[Member],
    ) -> Result<Result<NodeId, String>, ConsensusError> {
        use pb::rejoin_reply::Result as R;
        let Some(member) = contacts.get(n) else {
            return Ok(Err("the leader is not known".to_owned()));
        };
        let mut client = peers.client(number(n), member, Lane::Control)?;
        let call = client.rejoin(pb::RejoinRequest { old: self.old });
        let limit = self.settings.request_timeout * PATIENCE;
        let reply = match timeout(peers.clock().as_ref(), limit, call).await {
            Err(elapsed) => return Ok(Err(format!("{}: {elapsed}", member.name))),
            Ok(Err(status)) if status.code() == tonic::Code::PermissionDenied => {
                let why = format!("{} refuses it: {}", member.name, status.message());
                return Err(ConsensusError::NotReplaced { id: self.old, why });
            }
            Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => {
                let why = "leads and runs an older version, which does not know that members come back: update it";
                return Ok(Err(format!("{} {why}", member.name)));
            }
            Ok(Err(status)) => return Ok(Err(format!("{}: {}", member.name, status.message()))),
            Ok(Ok(reply)) => reply.into_inner(),
        };
        match reply.result {
            Some(R::Done(done)) => Ok(Ok(done.id)),
            Some(R::Refused(refused)) => {
                let refused = ConsensusError::Refused(codec::refusal_from_pb(refused));
                let why = chain(&refused);
                if refused.retryable() {
                    return Ok(Err(why));
                }
                Err(ConsensusError::NotReplaced { id: self.old, why })
            }
            Some(R::Elsewhere(there)) => Ok(Err(format!("{}: {}", member.name, there.reason))),
            None => Ok(Err(format!("{} gave an empty answer", member.name))),
        }
    }

    /// Who the members are, by what the leader said before it made the change.
    fn joined(&self, id: NodeId, leader: usize, replies: &[(usize, pb::StatusReply)]) -> Joined {
        let told = replies.iter().find(|(n, _)| *n == leader);
        let roster = told.and_then(|(_, reply)| roster(council(reply)?)).unwrap_or_default();
        let seats = roster.seats.into_iter().filter(|(member, _)| *member != self.old);
        let mut members: BTreeMap<NodeId, Member> = seats.map(|(id, seat)| (id, seat.member)).collect();
        let own = Member {
            name: self.name.clone(),
            address: self.address.clone(),
        };
        members.insert(id, own);
        Joined { id, members }
    }
}

/// Tells contacts apart.
fn number(n: usize) -> NodeId {
    NodeId::try_from(n).unwrap_or(NodeId::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(id: NodeId, role: Role, term: u64, voters: &[NodeId]) -> pb::StatusReply {
        let member = |id: &NodeId| {
            let member = pb::Member {
                name: format!("s{id}"),
                address: format!("h{id}:1"),
                ..pb::Member::default()
            };
            (*id, member)
        };
        let ids = voters.to_vec();
        let status = pb::GroupStatus {
            group: GroupId::COUNCIL.0,
            role: role_name(role).to_owned(),
            term,
            membership: Some(pb::Membership {
                configs: vec![pb::membership::Voters { ids }],
                members: voters.iter().map(member).collect(),
            }),
            ..pb::GroupStatus::default()
        };
        pb::StatusReply {
            id,
            groups: vec![status],
            ..pb::StatusReply::default()
        }
    }

    #[test]
    fn the_newest_leader_is_asked_and_without_one_the_numbers_say_why() {
        let three = &[1, 2, 3];
        let leader = |term| reply(2, Role::Leader, term, three);
        let follower = |id| reply(id, Role::Follower, 5, three);
        let words = |replies: &[(usize, pb::StatusReply)], part: &str| match prospect(3, 2, replies) {
            Prospect::Wait(why) => assert!(why.contains(part), "{part:?} is not in {why:?}"),
            Prospect::Leader(n) => panic!("{n} instead of {part:?}"),
        };
        assert_eq!(prospect(3, 2, &[(0, follower(1)), (1, leader(5))]), Prospect::Leader(1));
        let old = reply(1, Role::Leader, 4, three);
        assert_eq!(
            prospect(3, 2, &[(0, old), (1, leader(5))]),
            Prospect::Leader(1),
            "who was deposed"
        );
        words(&[], "none of the 2 other servers");
        words(&[(0, reply(1, Role::Leader, 5, three))], "1 too few");
        words(&[(0, follower(1))], "of 3 voters 2 must answer besides this server");
        words(&[(0, follower(1))], "1 do: 1 too few");
        words(&[(0, follower(1)), (1, follower(2))], "none of them leads yet");
        words(
            &[(0, reply(1, Role::Follower, 5, &[1, 3]))],
            "of 2 voters 2 must answer",
        );
        // Whoever runs by the id of the one that asks has no vote to give.
        words(&[(0, follower(1)), (1, follower(3))], "1 do: 1 too few");
    }

    #[test]
    fn servers_that_the_others_name_are_asked_too_and_never_too_many() {
        let mut contacts = vec![Member {
            name: "s1".into(),
            address: "h1:1".into(),
        }];
        let replies = [(0, reply(1, Role::Follower, 5, &[1, 2, 3]))];
        learn(&mut contacts, "h3:1", &replies);
        learn(&mut contacts, "h3:1", &replies);
        let addresses: Vec<&str> = contacts.iter().map(|member| member.address.as_str()).collect();
        assert_eq!(addresses, ["h1:1", "h2:1"]);
        let many: Vec<NodeId> = (1..200).collect();
        learn(&mut contacts, "h3:1", &[(0, reply(1, Role::Follower, 5, &many))]);
        assert_eq!(contacts.len(), CONTACTS_MAX);
    }
}
