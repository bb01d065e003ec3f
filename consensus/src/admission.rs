//! Whether this server may take part in Raft, by what the others say of it.
//!
//! A server that lost its data must not vote: with its vote a member that is behind could be elected, and what was acknowledged
//! with its help would be gone. Nobody can tell an empty server from a new one by looking at it, so an empty one first asks. It
//! takes part when a leader has it among its members as one that never held data, or when most founders are up and none has
//! anything; until then it answers nothing but the question how it is. That a member held data stands in the log
//! ([`crate::types::Seat::held`]), so every later leader knows it.

use crate::codec::pb;
use crate::error::ConsensusError;
use crate::group::{Group, role_name};
use crate::network::Peers;
use crate::status::{About, ask_all};
use crate::types::{GroupId, Member, NodeId};
use hanse_runtime::BoxError;
use hanse_runtime::clock::timeout;
use hanse_state::Role;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two questions of an empty server.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// How often a server that hears of no leader asks whether it was removed.
const REMOVED_TICK: Duration = Duration::from_secs(1);

/// What the others' answers mean for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Nobody can tell yet.
    Wait,
    /// Most founders are up and nobody ever wrote anything.
    Fresh,
    /// A leader knows it as a member without data.
    Member,
    /// It held data of this group once.
    Gone(GroupId),
    /// It was a member once.
    Removed,
}

fn council(reply: &pb::StatusReply) -> Option<&pb::GroupStatus> {
    reply.groups.iter().find(|status| status.group == GroupId::COUNCIL.0)
}

fn seat_in(status: &pb::GroupStatus, id: NodeId) -> Option<&pb::Member> {
    status.membership.as_ref()?.members.get(&id)
}

/// Whether nothing was ever written: a formation alone is entry 0.
fn untouched(reply: &pb::StatusReply) -> bool {
    reply.groups.iter().all(|status| status.last_index == 0)
}

/// What `replies` mean for the server `me`, whose groups `empty` have nothing. `founders` are as many as were configured. Pure.
pub fn admit(me: NodeId, founders: usize, empty: &BTreeSet<GroupId>, replies: &[pb::StatusReply]) -> Admission {
    if replies.iter().any(|reply| reply.removed.contains(&me)) {
        return Admission::Removed;
    }
    let statuses = || replies.iter().flat_map(|reply| &reply.groups);
    let acked = statuses().find(|status| empty.contains(&GroupId(status.group)) && status.matched.contains_key(&me));
    if let Some(status) = acked {
        return Admission::Gone(GroupId(status.group));
    }
    let councils = || replies.iter().filter_map(council);
    if empty.contains(&GroupId::COUNCIL) && councils().any(|status| seat_in(status, me).is_some_and(|seat| seat.held)) {
        return Admission::Gone(GroupId::COUNCIL);
    }
    let leads = |status: &pb::GroupStatus| status.role == role_name(Role::Leader);
    if councils().any(|status| leads(status) && seat_in(status, me).is_some()) {
        return Admission::Member;
    }
    if replies.len() + 1 > founders / 2 && replies.iter().all(untouched) {
        return Admission::Fresh;
    }
    Admission::Wait
}

/// Whether a server is out: it was removed from the council, and the leader of each of its `groups` has it among the members no
/// more. A group whose leader is not known may still need its vote. `replies` hold its own: it may be such a leader. Pure.
pub fn is_out(me: NodeId, groups: impl IntoIterator<Item = GroupId>, replies: &[pb::StatusReply]) -> bool {
    let removed = replies.iter().any(|reply| reply.removed.contains(&me));
    let leader = |group: GroupId| {
        let statuses = replies.iter().flat_map(|reply| &reply.groups);
        let leaders = statuses.filter(|status| status.group == group.0 && status.role == role_name(Role::Leader));
        leaders.max_by_key(|status| status.term)
    };
    let has_left = |group: GroupId| leader(group).is_some_and(|status| seat_in(status, me).is_none());
    removed && groups.into_iter().all(has_left)
}

/// Whether this server takes part in Raft. Opens once.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    /// A server with data takes part from the start.
    pub fn new(open: bool) -> Self {
        Self(Arc::new(watch::Sender::new(open)))
    }

    /// Lets it take part.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// Whether it does.
    pub fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    /// Completes when it does.
    pub async fn opened(&self) {
        // The sender lives as long as this gate.
        let mut seen = self.0.subscribe();
        let _open = seen.wait_for(|open| *open).await.is_ok();
    }
}

/// Asks the others what they know of this server.
#[derive(Debug)]
pub(crate) struct Entrance {
    pub(crate) peers: Peers,
    pub(crate) members: BTreeMap<NodeId, Member>,
    pub(crate) empty: BTreeSet<GroupId>,
    pub(crate) gate: Gate,
    /// Whether Raft runs, so that what is empty may have become full.
    pub(crate) started: AtomicBool,
}

pub(crate) async fn replies(peers: &Peers, members: &BTreeMap<NodeId, Member>) -> Vec<pb::StatusReply> {
    let answers = ask_all(peers, members).await;
    answers.into_iter().filter_map(|(_, reply)| reply).collect()
}

impl Entrance {
    /// What the answers mean, as an error if this server must not run; and which groups may be formed.
    pub(crate) async fn ask(&self) -> Result<(Admission, BTreeSet<GroupId>), ConsensusError> {
        let id = self.peers.me();
        let replies = replies(&self.peers, &self.members).await;
        let formed = replies.iter().flat_map(|reply| &reply.groups);
        let formed = formed.filter(|status| status.initialized);
        let formed: BTreeSet<GroupId> = formed.map(|status| GroupId(status.group)).collect();
        let unformed = self.empty.difference(&formed).copied().collect();
        if self.started.load(Ordering::Relaxed) && self.gate.is_open() {
            // It takes part already, and so has data that the others may know of.
            return Ok((Admission::Wait, unformed));
        }
        match admit(id, self.members.len(), &self.empty, &replies) {
            Admission::Gone(group) => Err(ConsensusError::DataGone { group, id }),
            Admission::Removed => Err(ConsensusError::Removed { id }),
            admission => Ok((admission, unformed)),
        }
    }

    /// Waits until a leader knows this server as a member, and then lets it take part.
    pub(crate) async fn wait(self: Arc<Self>, stop: CancellationToken) -> Result<(), BoxError> {
        let clock = Arc::clone(self.peers.clock());
        while !self.gate.is_open() {
            let admission = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                asked = self.ask() => asked?.0,
            };
            match admission {
                Admission::Member => self.gate.open(),
                _ => clock.sleep(ASK_AGAIN).await,
            }
        }
        Ok(())
    }
}

/// Stops a server that was removed: as it gets no entries any more, it can only hear of it from the others.
pub(crate) async fn watch_removal(
    about: Arc<About>,
    group: Arc<Group>,
    stop: CancellationToken,
) -> Result<(), BoxError> {
    loop {
        let seats = group.roll.borrow().membership.clone();
        let members = seats.nodes().map(|(id, seat)| (*id, seat.member.clone())).collect();
        if !group.has_leader() {
            let mut replies = replies(&group.peers, &members).await;
            replies.push(about.reply());
            if is_out(group.me, about.groups.keys().copied(), &replies) {
                return Err(Box::new(ConsensusError::Removed { id: group.me }));
            }
        }
        let clock = group.clock();
        if timeout(clock.as_ref(), REMOVED_TICK, stop.cancelled()).await.is_ok() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = 3;

    fn status(group: GroupId, role: Role, last_index: u64) -> pb::GroupStatus {
        pb::GroupStatus {
            group: group.0,
            role: role_name(role).to_owned(),
            last_index,
            initialized: true,
            ..pb::GroupStatus::default()
        }
    }

    fn unformed(group: GroupId) -> pb::GroupStatus {
        pb::GroupStatus {
            initialized: false,
            ..status(group, Role::Learner, 0)
        }
    }

    fn knows_me(mut status: pb::GroupStatus, held: bool) -> pb::GroupStatus {
        let seat = pb::Member {
            held,
            ..pb::Member::default()
        };
        let members = [(ME, seat)].into_iter().collect();
        status.membership = Some(pb::Membership {
            members,
            ..pb::Membership::default()
        });
        status
    }

    fn reply(groups: Vec<pb::GroupStatus>) -> pb::StatusReply {
        pb::StatusReply {
            groups,
            ..pb::StatusReply::default()
        }
    }

    #[test]
    fn an_empty_server_takes_part_only_when_nobody_can_miss_its_data() {
        let (council, tenants) = (GroupId::COUNCIL, GroupId::TENANTS);
        let leader = || status(council, Role::Leader, 9);
        let follower = || status(council, Role::Follower, 9);
        let nothing = unformed(council);
        let mut removed = reply(vec![leader()]);
        removed.removed = vec![ME];
        let mut acked = status(tenants, Role::Leader, 9);
        acked.matched.insert(ME, 5);
        let cases: [(&str, Vec<pb::StatusReply>, Admission); 12] = [
            ("nobody answers", vec![], Admission::Wait),
            (
                "another empty one",
                vec![reply(vec![nothing.clone()])],
                Admission::Fresh,
            ),
            (
                "one that has formed and no more",
                vec![reply(vec![status(council, Role::Candidate, 0)])],
                Admission::Fresh,
            ),
            (
                "one empty, one with entries",
                vec![reply(vec![nothing]), reply(vec![follower()])],
                Admission::Wait,
            ),
            (
                "entries in the other group",
                vec![reply(vec![status(tenants, Role::Follower, 4)])],
                Admission::Wait,
            ),
            (
                "a leader that knows it",
                vec![reply(vec![knows_me(leader(), false)])],
                Admission::Member,
            ),
            ("a leader that does not", vec![reply(vec![leader()])], Admission::Wait),
            (
                "a follower that knows it",
                vec![reply(vec![knows_me(follower(), false)])],
                Admission::Wait,
            ),
            (
                "a leader that knows of its data",
                vec![reply(vec![knows_me(leader(), true)])],
                Admission::Gone(council),
            ),
            (
                "a follower that knows of its data",
                vec![reply(vec![knows_me(follower(), true)])],
                Admission::Gone(council),
            ),
            (
                "a leader that counts on it",
                vec![reply(vec![knows_me(leader(), false), acked])],
                Admission::Gone(tenants),
            ),
            (
                "one that knows it as removed",
                vec![reply(vec![follower()]), removed],
                Admission::Removed,
            ),
        ];
        let empty = BTreeSet::from([council, tenants]);
        for (case, replies, wanted) in cases {
            assert_eq!(admit(ME, 3, &empty, &replies), wanted, "{case}");
        }
        assert_eq!(admit(ME, 1, &empty, &[]), Admission::Fresh, "alone");
    }

    #[test]
    fn a_server_is_out_when_no_group_has_it_any_more() {
        let groups = [GroupId::COUNCIL, GroupId::TENANTS];
        let out = |replies: &[pb::StatusReply]| is_out(ME, groups, replies);
        let leads = |group: GroupId, term: u64| pb::GroupStatus {
            term,
            ..status(group, Role::Leader, 9)
        };
        let (council, tenants) = (leads(GroupId::COUNCIL, 7), leads(GroupId::TENANTS, 7));
        let mut other = reply(vec![council.clone(), tenants]);
        assert!(!out(&[other.clone()]), "nobody says so");
        assert!(!out(&[]), "nobody answers");
        other.removed = vec![ME];
        assert!(out(&[other.clone()]));
        let own = |term| reply(vec![knows_me(leads(GroupId::TENANTS, term), false)]);
        assert!(out(&[other.clone(), own(6)]), "it does not know yet that another leads");
        assert!(!out(&[other.clone(), own(8)]), "it leads that group itself");
        other.groups = vec![council.clone(), knows_me(leads(GroupId::TENANTS, 7), false)];
        assert!(!out(&[other.clone()]), "a group has it still");
        other.groups = vec![council, status(GroupId::TENANTS, Role::Candidate, 9)];
        assert!(!out(&[other]), "a group may need its vote to elect a leader");
    }
}
