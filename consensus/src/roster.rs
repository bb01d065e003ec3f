//! Who the members are, which change of them is allowed, and the next step towards it. Pure.
//!
//! The rules of [`decide`] are etcd's, where etcd has one. A member that was added with a vote follows as a learner until it has
//! the data ([`Seat::awaits_vote`]), so that adding it never costs the quorum; for the rules it counts as a voter from the start.

use crate::types::{Member, Membership, NodeId, Seat};
use std::collections::{BTreeMap, BTreeSet};

/// Learners without a claim to a vote that there may be; etcd's number.
pub const MAX_LEARNERS: usize = 1;
/// Log entries that a learner may be behind when it gets a vote: what it makes up for while the change is replicated.
pub const MAX_BEHIND: u64 = 1000;

/// The members of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// All of them.
    pub seats: BTreeMap<NodeId, Seat>,
    /// Those whose votes count. While a change is under way, those that will count after it.
    pub voters: BTreeSet<NodeId>,
    /// Whether a change is under way.
    pub joint: bool,
}

impl Roster {
    /// As the log has it.
    pub fn of(membership: &Membership) -> Self {
        let configs = membership.get_joint_config();
        Self {
            seats: membership.nodes().map(|(id, seat)| (*id, seat.clone())).collect(),
            voters: configs.last().cloned().unwrap_or_default(),
            joint: configs.len() > 1,
        }
    }

    /// Voters and those that will be voters.
    pub fn voting(&self) -> BTreeSet<NodeId> {
        let awaiting = self.seats.iter().filter(|(_, seat)| seat.awaits_vote);
        let awaiting = awaiting.map(|(id, _)| *id);
        self.voters.iter().copied().chain(awaiting).collect()
    }

    /// The same without what only the council needs to know: the other groups get these members.
    pub fn plain(mut self) -> Self {
        for seat in self.seats.values_mut() {
            seat.held = false;
            seat.awaits_vote = false;
        }
        self
    }

    /// [`Roster::plain`] without whom a seat replaces: a program from before there was that keeps the members without, for ever, and
    /// has them all the same.
    pub fn has_members_of(&self, other: &Self) -> bool {
        let bare = |roster: &Self| {
            let mut bare = roster.clone().plain();
            bare.seats.values_mut().for_each(|seat| seat.replaces = 0);
            bare
        };
        bare(self) == bare(other)
    }

    fn address_taken(&self, by_other_than: NodeId, address: &str) -> bool {
        let mut others = self.seats.iter().filter(|(id, _)| **id != by_other_than);
        others.any(|(_, seat)| seat.member.address == address)
    }
}

/// A change that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new server, with an id that was never used.
    Add {
        /// Its id.
        id: NodeId,
        /// Its name and address.
        member: Member,
        /// Whether it is to follow only.
        learner: bool,
    },
    /// A vote for a learner.
    Promote(NodeId),
    /// A server leaves for good.
    Remove(NodeId),
    /// A server has moved.
    Update {
        /// Its id.
        id: NodeId,
        /// Where it is reached now.
        address: String,
    },
}

/// What the leader knows of the members when it decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Those that answer; the leader itself among them.
    pub live: BTreeSet<NodeId>,
    /// How many entries a member is behind, in the group where it is most; nothing if it never acknowledged any.
    pub behind: BTreeMap<NodeId, u64>,
    /// Those that were members once.
    pub removed: BTreeSet<NodeId>,
}

/// Why a change is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such member.
    #[error("no member has the id {id:x}")]
    NoSuchMember {
        /// The id.
        id: NodeId,
    },
    /// The id is, or was, another's.
    #[error("the id {id:x} is in use or was once: a new server needs an id that was never used")]
    IdUsed {
        /// The id.
        id: NodeId,
    },
    /// The address is another member's.
    #[error("another member has the address {address}")]
    AddressTaken {
        /// The address.
        address: String,
    },
    /// Only learners are promoted.
    #[error("member {id:x} is no learner")]
    NotLearner {
        /// The id.
        id: NodeId,
    },
    /// It does not have the data yet.
    #[error("member {id:x} does not have the data yet ({}): wait until it has caught up", told(*behind))]
    Behind {
        /// The id.
        id: NodeId,
        /// By how many entries; nothing if it does not answer or has acknowledged none.
        behind: Option<u64>,
    },
    /// There are as many learners as there may be.
    #[error("there is a learner already: promote or remove it first")]
    TooManyLearners,
    /// It was a member once, or has come back under another id.
    #[error("the member {id:x} is none any more: it was removed, or has come back under another id already")]
    Gone {
        /// The id.
        id: NodeId,
    },
    /// A server with this id runs.
    #[error("a server with the id {id:x} answers the others: stop it first, two must not run with one name")]
    Alive {
        /// The id.
        id: NodeId,
    },
    /// Somebody asks for another member.
    #[error("the certificate is not that of the member {id:x}: a server can speak for itself only")]
    Foreign {
        /// The id.
        id: NodeId,
    },
    /// Too many of the voters have never been up.
    #[error(
        "of {voters} voters after the change {needed} would be needed, but only {present} were ever started: {} too few",
        needed.saturating_sub(*present)
    )]
    Unstarted {
        /// Voters after the change.
        voters: usize,
        /// Those of them that were started.
        present: usize,
        /// The quorum.
        needed: usize,
    },
    /// Too many of the voters do not answer.
    #[error(
        "of {voters} voters after the change {needed} would be needed, but only {present} answer: {} too few",
        needed.saturating_sub(*present)
    )]
    Unreachable {
        /// Voters after the change.
        voters: usize,
        /// Those of them that answer.
        present: usize,
        /// The quorum.
        needed: usize,
    },
}

fn told(behind: Option<u64>) -> String {
    behind.map_or_else(
        || "it does not answer".to_owned(),
        |n| format!("it is {n} entries behind"),
    )
}

/// Votes that it takes.
pub fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// Who the members shall be after `change`, or why not. With `again`, an earlier try of the same request may have been carried
/// out: what is as wanted is then no fault. `me` leads, and so answers.
pub fn decide(now: &Roster, seen: &Seen, me: NodeId, change: &Change, again: bool) -> Result<Roster, Refusal> {
    match change {
        Change::Add { id, member, learner } => add(now, seen, (*id, member, *learner), again),
        Change::Promote(id) => promote(now, seen, *id, again),
        Change::Remove(id) => remove(now, seen, me, *id, again),
        Change::Update { id, address } => update(now, *id, address),
    }
}

fn started(now: &Roster, seen: &Seen, voters: &BTreeSet<NodeId>) -> usize {
    let held = |id: &NodeId| now.seats.get(id).is_some_and(|seat| seat.held);
    voters.iter().filter(|id| held(id) || seen.live.contains(id)).count()
}

pub(crate) fn answering(seen: &Seen, voters: &BTreeSet<NodeId>) -> usize {
    voters.intersection(&seen.live).count()
}

fn add(
    now: &Roster,
    seen: &Seen,
    (id, member, learner): (NodeId, &Member, bool),
    again: bool,
) -> Result<Roster, Refusal> {
    if again
        && now
            .seats
            .get(&id)
            .is_some_and(|seat| seat.member.address == member.address)
    {
        return Ok(now.clone());
    }
    let voting = now.voting();
    let (voters, needed) = (voting.len() + 1, quorum(voting.len() + 1));
    // A single server may always take a second one in.
    if voting.len() > 1 {
        let present = started(now, seen, &voting);
        if !learner && present < needed {
            return Err(Refusal::Unstarted {
                voters,
                present,
                needed,
            });
        }
        let present = answering(seen, &voting);
        if present < needed {
            return Err(Refusal::Unreachable {
                voters,
                present,
                needed,
            });
        }
    }
    if now.seats.contains_key(&id) || seen.removed.contains(&id) {
        return Err(Refusal::IdUsed { id });
    }
    if now.address_taken(id, &member.address) {
        let address = member.address.clone();
        return Err(Refusal::AddressTaken { address });
    }
    if learner && now.seats.len() - voting.len() >= MAX_LEARNERS {
        return Err(Refusal::TooManyLearners);
    }
    let mut wanted = now.clone();
    let seat = Seat {
        awaits_vote: !learner,
        ..Seat::of(member.clone())
    };
    wanted.seats.insert(id, seat);
    Ok(wanted)
}

fn promote(now: &Roster, seen: &Seen, id: NodeId, again: bool) -> Result<Roster, Refusal> {
    if !now.seats.contains_key(&id) {
        return Err(Refusal::NoSuchMember { id });
    }
    if again && now.voters.contains(&id) {
        return Ok(now.clone());
    }
    let voting = now.voting();
    if !voting.contains(&id) && !caught_up(seen, id) {
        let behind = seen.behind.get(&id).copied().filter(|_| seen.live.contains(&id));
        return Err(Refusal::Behind { id, behind });
    }
    let (voters, present) = (voting.len() + 1, started(now, seen, &voting) + 1);
    let needed = quorum(voters);
    if present < needed {
        return Err(Refusal::Unstarted {
            voters,
            present,
            needed,
        });
    }
    if voting.contains(&id) {
        return Err(Refusal::NotLearner { id });
    }
    let mut wanted = now.clone();
    wanted.voters.insert(id);
    Ok(wanted)
}

fn remove(now: &Roster, seen: &Seen, me: NodeId, id: NodeId, again: bool) -> Result<Roster, Refusal> {
    if again && seen.removed.contains(&id) {
        return Ok(now.clone());
    }
    let mut wanted = now.clone();
    wanted.seats.remove(&id);
    wanted.voters.remove(&id);
    let (before, after) = (now.voting(), wanted.voting());
    let learner = now.seats.contains_key(&id) && !before.contains(&id);
    if learner {
        return Ok(wanted);
    }
    let (voters, needed) = (after.len(), quorum(after.len()));
    let present = started(now, seen, &after);
    if present < needed {
        return Err(Refusal::Unstarted {
            voters,
            present,
            needed,
        });
    }
    if !now.seats.contains_key(&id) {
        return Err(Refusal::NoSuchMember { id });
    }
    // One that is down is missed by nobody; unless it only seems so, because the others' votes do not make a quorum without it.
    let present = answering(seen, &after);
    let counts = id == me || seen.live.contains(&id) || answering(seen, &now.voters) < quorum(now.voters.len());
    if counts && present < needed {
        return Err(Refusal::Unreachable {
            voters,
            present,
            needed,
        });
    }
    Ok(wanted)
}

fn update(now: &Roster, id: NodeId, address: &str) -> Result<Roster, Refusal> {
    let mut wanted = now.clone();
    let Some(seat) = wanted.seats.get_mut(&id) else {
        return Err(Refusal::NoSuchMember { id });
    };
    if now.address_taken(id, address) {
        let address = address.to_owned();
        return Err(Refusal::AddressTaken { address });
    }
    if seat.member.address != address {
        address.clone_into(&mut seat.member.address);
        seat.moved = true;
    }
    Ok(wanted)
}

fn caught_up(seen: &Seen, id: NodeId) -> bool {
    seen.live.contains(&id) && seen.behind.get(&id).is_some_and(|behind| *behind <= MAX_BEHIND)
}

/// What the leader writes down of the members unasked: who has acknowledged entries (`acked`), how those are called that were
/// added without a name, and a vote for one that awaits it and has the data.
pub fn tend(now: &Roster, seen: &Seen, acked: &BTreeSet<NodeId>, names: &BTreeMap<NodeId, String>) -> Roster {
    let mut wanted = now.clone();
    for (id, seat) in &mut wanted.seats {
        seat.held |= acked.contains(id);
        if let Some(name) = names.get(id).filter(|_| seat.member.name.is_empty()) {
            seat.member.name.clone_from(name);
        }
    }
    let due = now.seats.iter().find(|(id, seat)| {
        let live = answering(seen, &now.voters) + 1;
        seat.awaits_vote && !now.voters.contains(id) && caught_up(seen, **id) && live >= quorum(now.voters.len() + 1)
    });
    wanted.voters.extend(due.map(|(id, _)| *id));
    wanted
}

/// One step of a group towards other members. Each is one change in Raft's sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// End the change that is under way.
    Finish,
    /// Put seats in, or change what is known of them.
    Seat(BTreeMap<NodeId, Seat>),
    /// A member goes and comes back under another id, in one transition.
    Replace {
        /// The new id.
        id: NodeId,
        /// Its seat.
        seat: Seat,
        /// Who goes.
        old: NodeId,
        /// Whether that one's vote counts.
        voted: bool,
    },
    /// Votes for members that have them not.
    Vote(BTreeSet<NodeId>),
    /// The leader is to leave: somebody else must lead first.
    HandOver,
    /// Voters leave.
    Retire(BTreeSet<NodeId>),
    /// Learners leave.
    Drop(BTreeSet<NodeId>),
    /// A member that is to vote does not have the data yet.
    Await(NodeId),
}

/// The next step from `now` to `wanted` at the leader `me`; nothing if there is none left. Only members that are `ready` get a
/// vote.
pub fn next_step(now: &Roster, wanted: &Roster, me: NodeId, ready: &BTreeSet<NodeId>) -> Option<Step> {
    if now.joint {
        return Some(Step::Finish);
    }
    let changed = wanted.seats.iter().filter(|(id, seat)| now.seats.get(id) != Some(seat));
    let changed: BTreeMap<NodeId, Seat> = changed.map(|(id, seat)| (*id, seat.clone())).collect();
    let back = changed.iter().find(|(id, seat)| {
        let old = &seat.replaces;
        !now.seats.contains_key(id) && now.seats.contains_key(old) && !wanted.seats.contains_key(old) && *old != me
    });
    if let Some((id, seat)) = back {
        return Some(Step::Replace {
            id: *id,
            seat: seat.clone(),
            old: seat.replaces,
            voted: now.voters.contains(&seat.replaces),
        });
    }
    if !changed.is_empty() {
        return Some(Step::Seat(changed));
    }
    let newcomers: BTreeSet<NodeId> = wanted.voters.difference(&now.voters).copied().collect();
    if let Some(id) = newcomers.iter().find(|id| !ready.contains(id)) {
        return Some(Step::Await(*id));
    }
    if !newcomers.is_empty() {
        return Some(Step::Vote(newcomers));
    }
    let mut leavers: BTreeSet<NodeId> = now.voters.difference(&wanted.voters).copied().collect();
    if leavers.contains(&me) && !wanted.voters.is_empty() {
        return Some(Step::HandOver);
    }
    leavers.remove(&me);
    if !leavers.is_empty() {
        return Some(Step::Retire(leavers));
    }
    let gone = now.seats.keys().filter(|id| !wanted.seats.contains_key(id));
    let gone: BTreeSet<NodeId> = gone.copied().collect();
    (!gone.is_empty()).then_some(Step::Drop(gone))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: NodeId) -> Member {
        Member {
            name: format!("s{id}"),
            address: format!("10.0.0.{id}:1"),
        }
    }

    fn seat(id: NodeId) -> Seat {
        Seat {
            held: true,
            ..Seat::of(member(id))
        }
    }

    /// Voters and learners that have been up, and members that await their vote and have not.
    fn roster(voters: &[NodeId], learners: &[NodeId], awaiting: &[NodeId]) -> Roster {
        let mut seats: BTreeMap<_, _> = voters.iter().chain(learners).map(|id| (*id, seat(*id))).collect();
        let new = |id: &NodeId| {
            let seat = Seat {
                awaits_vote: true,
                ..Seat::of(member(*id))
            };
            (*id, seat)
        };
        seats.extend(awaiting.iter().map(new));
        Roster {
            seats,
            voters: voters.iter().copied().collect(),
            joint: false,
        }
    }

    /// One voter, and two that were up and await their votes.
    fn started_but_voteless() -> Roster {
        let mut now = roster(&[1], &[], &[2, 3]);
        now.seats.values_mut().for_each(|seat| seat.held = true);
        now
    }

    fn seen(live: &[NodeId], behind: &[(NodeId, u64)]) -> Seen {
        Seen {
            live: live.iter().copied().collect(),
            behind: behind.iter().copied().collect(),
            removed: BTreeSet::from([66]),
        }
    }

    fn asked(now: &Roster, seen: &Seen, change: Change) -> Result<Roster, String> {
        decide(now, seen, 1, &change, false).map_err(|refusal| refusal.to_string())
    }

    fn added(id: NodeId, learner: bool) -> Change {
        Change::Add {
            id,
            member: member(id),
            learner,
        }
    }

    #[test]
    fn additions_are_allowed_while_a_quorum_would_be_left() {
        let cases = [
            ("the second", roster(&[1], &[], &[]), seen(&[1], &[]), (2, false)),
            ("a first learner", roster(&[1], &[], &[]), seen(&[1], &[]), (2, true)),
            ("the third", roster(&[1, 2], &[], &[]), seen(&[1, 2], &[]), (3, false)),
        ];
        for (case, now, seen, (id, learner)) in cases {
            let wanted = asked(&now, &seen, added(id, learner)).unwrap();
            assert_eq!(wanted.voters, now.voters, "{case}: nobody votes before it has the data");
            assert_eq!(wanted.seats[&id].awaits_vote, !learner, "{case}");
        }
    }

    #[test]
    fn additions_that_would_cost_the_quorum_are_refused() {
        let (alone, three) = (roster(&[1], &[], &[]), roster(&[1, 2, 3], &[], &[]));
        let one_is_new = roster(&[1], &[], &[2]);
        let unstarted = "of 3 voters after the change 2 would be needed, but only 1 were ever started: 1 too few";
        let silent = "of 4 voters after the change 3 would be needed, but only 2 answer: 1 too few";
        let cases = [
            ("one more", &one_is_new, seen(&[1], &[]), added(3, false), unstarted),
            (
                "a learner",
                &one_is_new,
                seen(&[1], &[]),
                added(3, true),
                "only 1 answer: 1 too few",
            ),
            ("with one down", &three, seen(&[1, 2], &[]), added(4, false), silent),
            (
                "a learner with one down",
                &three,
                seen(&[1, 2], &[]),
                added(4, true),
                "1 too few",
            ),
            (
                "an id in use",
                &roster(&[1, 2], &[], &[]),
                seen(&[1, 2], &[]),
                added(2, false),
                "never used",
            ),
            ("an id of old", &alone, seen(&[1], &[]), added(66, false), "never used"),
            (
                "a second learner",
                &roster(&[1], &[2], &[]),
                seen(&[1, 2], &[]),
                added(3, true),
                "a learner already",
            ),
        ];
        for (case, now, seen, change, refusal) in cases {
            let text = asked(now, &seen, change).unwrap_err();
            assert!(text.contains(refusal), "{case}: {text}");
        }
        let taken = Change::Add {
            id: 2,
            member: member(1),
            learner: true,
        };
        let text = asked(&alone, &seen(&[1], &[]), taken).unwrap_err();
        assert_eq!(text, "another member has the address 10.0.0.1:1");
    }

    #[test]
    fn removals_are_allowed_while_a_quorum_would_be_left() {
        let cases: [(&str, Roster, &[NodeId], NodeId, &str); 12] = [
            ("one of three", roster(&[1, 2, 3], &[], &[]), &[1, 2, 3], 3, ""),
            ("the leader of three", roster(&[1, 2, 3], &[], &[]), &[1, 2, 3], 1, ""),
            ("the dead one of three", roster(&[1, 2, 3], &[], &[]), &[1, 2], 3, ""),
            (
                "a living one beside a dead one",
                roster(&[1, 2, 3], &[], &[]),
                &[1, 2],
                2,
                "of 2 voters after the change 2 would be needed, but only 1 answer: 1 too few",
            ),
            (
                "the leader beside a dead one",
                roster(&[1, 2, 3], &[], &[]),
                &[1, 2],
                1,
                "only 1 answer",
            ),
            (
                "one that is slow to answer beside a dead one",
                roster(&[1, 2, 3], &[], &[]),
                &[1],
                2,
                "of 2 voters after the change 2 would be needed, but only 1 answer: 1 too few",
            ),
            (
                "one of two that died before they voted",
                started_but_voteless(),
                &[1],
                2,
                "",
            ),
            ("one of two", roster(&[1, 2], &[], &[]), &[1, 2], 2, ""),
            (
                "the last",
                roster(&[1], &[], &[]),
                &[1],
                1,
                "of 0 voters after the change 1 would be needed",
            ),
            ("a learner", roster(&[1], &[2], &[]), &[1], 2, ""),
            ("one that never came up", roster(&[1], &[], &[2]), &[1], 2, ""),
            (
                "nobody",
                roster(&[1, 2], &[], &[]),
                &[1, 2],
                9,
                "no member has the id 9",
            ),
        ];
        for (case, now, live, id, refusal) in cases {
            match asked(&now, &seen(live, &[]), Change::Remove(id)) {
                Ok(wanted) => {
                    assert_eq!(refusal, "", "{case} was allowed");
                    assert!(
                        !wanted.seats.contains_key(&id) && !wanted.voters.contains(&id),
                        "{case}"
                    );
                }
                Err(text) => assert!(!refusal.is_empty() && text.contains(refusal), "{case}: {text}"),
            }
        }
    }

    #[test]
    fn learners_get_a_vote_when_they_have_the_data() {
        let now = roster(&[1], &[2], &[3]);
        let ask = |live: &[NodeId], behind: &[(NodeId, u64)], id| {
            asked(&now, &seen(live, behind), Change::Promote(id)).map(|wanted| wanted.voters.contains(&id))
        };
        let refused = |result: Result<bool, String>, words: &str| {
            let text = result.unwrap_err();
            assert!(text.contains(words), "{text}");
        };
        assert_eq!(ask(&[1, 2, 3], &[(2, MAX_BEHIND)], 2), Ok(true));
        refused(ask(&[1, 2, 3], &[(2, MAX_BEHIND + 1)], 2), "1001 entries behind");
        refused(ask(&[1, 2, 3], &[], 2), "does not answer");
        refused(ask(&[1, 3], &[(2, 0)], 2), "does not answer");
        refused(ask(&[1, 2], &[(2, 0)], 9), "no member");
        refused(ask(&[1, 2, 3], &[(2, 0)], 1), "no learner");
        refused(ask(&[1, 2, 3], &[(3, 0)], 3), "no learner");
    }

    #[test]
    fn a_request_may_be_repeated_when_nobody_knows_whether_it_was_carried_out() {
        let now = roster(&[1, 2], &[], &[3]);
        let seen = seen(&[1, 2], &[]);
        for change in [added(3, false), Change::Promote(2), Change::Remove(66)] {
            assert_eq!(decide(&now, &seen, 1, &change, true).as_ref(), Ok(&now), "{change:?}");
            assert!(decide(&now, &seen, 1, &change, false).is_err(), "{change:?}");
        }
    }

    #[test]
    fn a_server_that_moved_is_remembered_as_moved() {
        let now = roster(&[1, 2], &[], &[]);
        let change = |id, address: &str| Change::Update {
            id,
            address: address.to_owned(),
        };
        let moved = asked(&now, &seen(&[1], &[]), change(2, "10.9.9.9:1")).unwrap();
        assert!(moved.seats[&2].moved && moved.seats[&2].held);
        assert_eq!(moved.seats[&2].member.address, "10.9.9.9:1");
        assert_eq!(asked(&now, &seen(&[1], &[]), change(2, "10.0.0.2:1")), Ok(now.clone()));
        assert!(
            asked(&now, &seen(&[1], &[]), change(2, "10.0.0.1:1"))
                .unwrap_err()
                .contains("another member")
        );
        assert!(
            asked(&now, &seen(&[1], &[]), change(9, "10.9.9.9:1"))
                .unwrap_err()
                .contains("no member")
        );
    }

    #[test]
    fn the_leader_notes_who_has_data_and_lets_the_new_ones_vote() {
        let now = roster(&[1], &[], &[2]);
        let acked = BTreeSet::from([1, 2]);
        let nobody = BTreeMap::new();
        let wanted = tend(&now, &seen(&[1, 2], &[(2, 5000)]), &acked, &nobody);
        assert!(wanted.seats[&2].held && !wanted.voters.contains(&2));
        let wanted = tend(&now, &seen(&[1, 2], &[(2, 5)]), &acked, &nobody);
        assert!(wanted.voters.contains(&2));
        let down = tend(&now, &seen(&[1], &[(2, 5)]), &acked, &nobody);
        assert!(!down.voters.contains(&2), "a dead one would cost the quorum");
        let beside_a_dead_one = tend(
            &roster(&[1, 3, 4, 5], &[], &[2]),
            &seen(&[1, 2], &[(2, 5)]),
            &acked,
            &nobody,
        );
        assert!(!beside_a_dead_one.voters.contains(&2));
        let mut unnamed = now.clone();
        unnamed.seats.get_mut(&2).unwrap().member.name.clear();
        let names = BTreeMap::from([(1, "other".to_owned()), (2, "two".to_owned())]);
        let named = tend(&unnamed, &seen(&[1], &[]), &BTreeSet::new(), &names);
        assert_eq!(
            (
                named.seats[&1].member.name.as_str(),
                named.seats[&2].member.name.as_str()
            ),
            ("s1", "two")
        );
        let learner = tend(&roster(&[1], &[2], &[]), &seen(&[1, 2], &[(2, 0)]), &acked, &nobody);
        assert!(!learner.voters.contains(&2), "a learner waits to be promoted");
    }

    #[test]
    fn every_difference_is_a_few_steps_and_then_there_is_none() {
        let ready = BTreeSet::from([4]);
        let all: Vec<Roster> = vec![
            roster(&[1], &[], &[]),
            roster(&[1, 2], &[4], &[]),
            roster(&[1, 2, 4], &[], &[]),
            roster(&[2, 4], &[], &[]),
            roster(&[1, 4], &[], &[3]),
        ];
        for from in &all {
            for to in &all {
                let leader = from.voters.intersection(&to.voters).next();
                let Some(me) = leader else { continue };
                let ready: BTreeSet<NodeId> = ready.iter().chain(&to.voters).copied().collect();
                let (mut now, mut steps) = (from.clone(), 0);
                while let Some(step) = next_step(&now, to, *me, &ready) {
                    steps += 1;
                    assert!(steps < 6, "{from:?} to {to:?}: {step:?}");
                    match step {
                        Step::Seat(seats) => now.seats.extend(seats),
                        Step::Vote(ids) => now.voters.extend(ids),
                        Step::Retire(ids) => {
                            now.voters.retain(|id| !ids.contains(id));
                            now.seats.retain(|id, _| !ids.contains(id));
                        }
                        Step::Drop(ids) => now.seats.retain(|id, _| !ids.contains(id)),
                        other => panic!("{other:?}"),
                    }
                    assert!(now.voters.iter().all(|id| now.seats.contains_key(id)));
                }
                // A voter that becomes a learner is put in again as one.
                assert_eq!(&now, to);
            }
        }
    }

    #[test]
    fn a_leader_that_is_to_leave_hands_over_and_a_newcomer_without_data_is_waited_for() {
        let (now, without) = (roster(&[1, 2], &[], &[]), roster(&[2], &[], &[]));
        let nobody = BTreeSet::new();
        assert_eq!(next_step(&now, &without, 1, &nobody), Some(Step::HandOver));
        assert_eq!(
            next_step(&now, &without, 2, &nobody),
            Some(Step::Retire(BTreeSet::from([1])))
        );
        let (learner, voter) = (roster(&[1], &[2], &[]), roster(&[1, 2], &[], &[]));
        assert_eq!(next_step(&learner, &voter, 1, &nobody), Some(Step::Await(2)));
        // One that lost entries goes and comes back in one step; its vote does not come along.
        let mut back = without;
        let seat = Seat {
            replaces: 1,
            ..Seat::of(member(1))
        };
        back.seats.insert(9, seat.clone());
        let (id, old, voted) = (9, 1, true);
        let step = next_step(&now, &back, 2, &nobody);
        assert_eq!(step, Some(Step::Replace { id, seat, old, voted }));
        let joint = Roster { joint: true, ..now };
        assert_eq!(next_step(&joint, &back, 1, &nobody), Some(Step::Finish));
    }
}
