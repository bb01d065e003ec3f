//! A member that lost log entries comes back as a new one: who the members shall be then, or why it may not. Pure.
//!
//! What it had acknowledged may be needed by a quorum, so its vote must never count again. It goes and comes back under an id that was
//! never used, in one transition: the new member follows without data and without a vote, and gets that only when it has caught up
//! ([`crate::roster::tend`]). For Raft it is a server that died and another one that was added.

use crate::roster::{Refusal, Roster, Seen, answering, quorum};
use crate::types::{NodeId, Seat};

/// Who asks to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returning<'a> {
    /// Its id.
    pub old: NodeId,
    /// The server that its certificate names.
    pub name: &'a str,
    /// Where it is reached if that is not where the log says: nobody's configuration knows the new id.
    pub address: Option<&'a str>,
}

/// The member that `old` has come back as.
pub fn successor(now: &Roster, old: NodeId) -> Option<NodeId> {
    let mut seats = now.seats.iter().filter(|(_, seat)| old != 0 && seat.replaces == old);
    seats.next().map(|(id, _)| *id)
}

/// Who the members shall be, with [`successor`] in the place of the one that asks. May be asked for again by a server that did not get
/// the answer, until it has been up under its new id.
pub fn replace(now: &Roster, seen: &Seen, asks: Returning<'_>) -> Result<Roster, Refusal> {
    let id = asks.old;
    let Some(seat) = now.seats.get(&id) else {
        return again(now, seen, asks);
    };
    if seat.member.name != asks.name {
        return Err(Refusal::Foreign { id });
    }
    if seen.live.contains(&id) {
        return Err(Refusal::Alive { id });
    }
    let mut wanted = now.clone();
    wanted.seats.remove(&id);
    if wanted.voters.remove(&id) {
        // The change needs a quorum of those who vote now, too, and the lost vote is none of it.
        let (voters, needed) = (wanted.voters.len(), quorum(now.voters.len()));
        let present = answering(seen, &wanted.voters);
        if present < needed {
            return Err(Refusal::Unreachable {
                voters,
                present,
                needed,
            });
        }
    }
    let known = now.seats.keys().chain(&seen.removed).max();
    let fresh = known.map_or(1, |known| known.saturating_add(1));
    if now.seats.contains_key(&fresh) || seen.removed.contains(&fresh) {
        return Err(Refusal::IdUsed { id: fresh });
    }
    let mut seat = Seat {
        held: false,
        awaits_vote: now.voting().contains(&id),
        replaces: id,
        ..seat.clone()
    };
    if let Some(address) = asks.address {
        address.clone_into(&mut seat.member.address);
    }
    wanted.seats.insert(fresh, seat);
    Ok(wanted)
}

/// The same for a member that has gone: its place is still free for it if nobody has been up there.
fn again(now: &Roster, seen: &Seen, asks: Returning<'_>) -> Result<Roster, Refusal> {
    let gone = Refusal::Gone { id: asks.old };
    let place = successor(now, asks.old).and_then(|id| Some((id, now.seats.get(&id)?)));
    let Some((id, seat)) = place else {
        return Err(gone);
    };
    if seat.member.name != asks.name {
        return Err(Refusal::Foreign { id: asks.old });
    }
    if seat.held || now.voters.contains(&id) {
        return Err(gone);
    }
    if seen.live.contains(&id) {
        return Err(Refusal::Alive { id });
    }
    Ok(now.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Member;
    use std::collections::{BTreeMap, BTreeSet};

    fn seat(id: NodeId) -> Seat {
        Seat {
            held: true,
            ..Seat::of(Member {
                name: format!("s{id}"),
                address: format!("10.0.0.{id}:1"),
            })
        }
    }

    fn roster(voters: &[NodeId], learners: &[NodeId]) -> Roster {
        let seats: BTreeMap<_, _> = voters.iter().chain(learners).map(|id| (*id, seat(*id))).collect();
        Roster {
            seats,
            voters: voters.iter().copied().collect(),
            joint: false,
        }
    }

    fn seen(live: &[NodeId], removed: &[NodeId]) -> Seen {
        Seen {
            live: live.iter().copied().collect(),
            removed: removed.iter().copied().collect(),
            ..Seen::default()
        }
    }

    const S3: Returning<'_> = Returning {
        old: 3,
        name: "s3",
        address: None,
    };

    #[test]
    fn it_comes_back_without_a_vote_under_an_id_that_was_never_used() {
        let now = roster(&[1, 2, 3], &[]);
        let wanted = replace(&now, &seen(&[1, 2], &[4, 9]), S3).unwrap();
        assert_eq!(
            wanted.voters,
            BTreeSet::from([1, 2]),
            "the lost vote is out, and no new one in"
        );
        assert_eq!(wanted.seats.keys().copied().collect::<Vec<_>>(), [1, 2, 10]);
        let seat = &wanted.seats[&10];
        assert_eq!((seat.replaces, seat.awaits_vote, seat.held), (3, true, false));
        assert_eq!(seat.member, now.seats[&3].member);
        assert_eq!(successor(&wanted, 3), Some(10));
        assert_eq!(successor(&wanted, 0), None, "of most seats it is not said");
        let moved = Returning {
            address: Some("10.9.9.9:1"),
            ..S3
        };
        let wanted = replace(&now, &seen(&[1, 2], &[]), moved).unwrap();
        assert_eq!(wanted.seats[&4].member.address, "10.9.9.9:1");
        let learner = replace(&roster(&[1], &[3]), &seen(&[1], &[]), S3).unwrap();
        assert!(!learner.seats[&4].awaits_vote, "one that only followed goes on as such");
    }

    #[test]
    fn it_is_refused_where_it_would_cost_the_quorum() {
        // Voters besides 3, those of them that answer, how many are needed.
        let cases: [(&[NodeId], &[NodeId], usize); 7] = [
            (&[1, 2], &[1, 2], 0),
            // Two lost entries at once: one of them is as if it were down.
            (&[1, 2], &[1], 2),
            (&[1], &[1], 2),
            (&[], &[], 1),
            (&[1, 2, 4, 5], &[1, 2, 4], 0),
            (&[1, 2, 4, 5], &[1, 2], 3),
            (&[1, 2, 4], &[1, 2], 3),
        ];
        for (others, live, needed) in cases {
            let voters: Vec<NodeId> = others.iter().copied().chain([3]).collect();
            let outcome = replace(&roster(&voters, &[]), &seen(live, &[]), S3);
            let refused = Refusal::Unreachable {
                voters: others.len(),
                present: live.len(),
                needed,
            };
            let expected = if needed == 0 { None } else { Some(refused) };
            assert_eq!(outcome.err(), expected, "{others:?}, of whom {live:?} answer");
        }
    }

    #[test]
    fn of_five_two_come_back_one_after_the_other() {
        let live = &[1, 2, 4];
        let first = replace(&roster(&[1, 2, 3, 4, 5], &[]), &seen(live, &[]), S3).unwrap();
        let fifth = Returning {
            old: 5,
            name: "s5",
            ..S3
        };
        let second = replace(&first, &seen(live, &[3]), fifth).unwrap();
        assert_eq!(second.voters, BTreeSet::from([1, 2, 4]));
        assert_eq!((successor(&second, 3), successor(&second, 5)), (Some(6), Some(7)));
    }

    #[test]
    fn only_the_one_itself_may_ask_and_not_while_it_runs() {
        let now = roster(&[1, 2, 3], &[]);
        let thief = Returning { name: "s2", ..S3 };
        assert_eq!(
            replace(&now, &seen(&[1, 2], &[]), thief),
            Err(Refusal::Foreign { id: 3 })
        );
        assert_eq!(replace(&now, &seen(&[1, 2, 3], &[]), S3), Err(Refusal::Alive { id: 3 }));
        let stranger = Returning {
            old: 7,
            name: "s7",
            ..S3
        };
        assert_eq!(
            replace(&now, &seen(&[1, 2], &[7]), stranger),
            Err(Refusal::Gone { id: 7 })
        );
    }

    #[test]
    fn an_answer_that_was_lost_is_given_again_until_the_new_one_was_up() {
        let done = replace(&roster(&[1, 2, 3], &[]), &seen(&[1, 2], &[]), S3).unwrap();
        let ask = |now: &Roster, live: &[NodeId]| replace(now, &seen(live, &[3]), S3);
        assert_eq!(ask(&done, &[1, 2]).as_ref(), Ok(&done));
        assert_eq!(ask(&done, &[1, 2, 4]), Err(Refusal::Alive { id: 4 }));
        let thief = Returning { name: "s1", ..S3 };
        assert_eq!(
            replace(&done, &seen(&[1, 2], &[3]), thief),
            Err(Refusal::Foreign { id: 3 })
        );
        let mut up = done.clone();
        up.seats.get_mut(&4).unwrap().held = true;
        assert_eq!(
            ask(&up, &[1, 2]),
            Err(Refusal::Gone { id: 3 }),
            "the old id never comes back"
        );
        let mut left = done;
        left.seats.remove(&4);
        assert_eq!(ask(&left, &[1, 2]), Err(Refusal::Gone { id: 3 }));
    }
}
