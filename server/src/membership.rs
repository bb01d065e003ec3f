//! What follows the members of the cluster: the entries of servers that were removed go, and a new server tells how far it is.

use hanse_api::kinds::{REVOKED_KEYS, SERVERS};
use hanse_api::resources::{Seat, Server};
use hanse_consensus::replace::successor;
use hanse_consensus::{Change, ConsensusError, GroupId, Node, NodeId, Refusal, Roster};
use hanse_gateway::ChangeFault;
use hanse_regions::joining::{retire, succeed};
use hanse_runtime::BoxError;
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::supervisor::chain;
use hanse_state::objects::{Objects, Page, Stored};
use hanse_state::{Store as _, StoreError};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the council's leader looks for entries of servers that were removed.
const SWEEP: Duration = Duration::from_secs(2);
/// How often a new server looks how far it is, and any which keys are revoked.
const LOOK: Duration = Duration::from_millis(500);

/// A server's place. Pure.
pub(crate) fn seat(roster: &Roster, id: NodeId) -> Seat {
    match roster.seats.get(&id) {
        _ if roster.voters.contains(&id) => Seat::Voter,
        Some(seat) if seat.awaits_vote => Seat::AwaitingVote,
        Some(_) => Seat::Learner,
        None => Seat::None,
    }
}

/// Removes the server called so from all groups, and then its entry. This server, when it is the one, has left by then and can
/// write nothing any more: the others' [`sweep`] takes its entry out.
pub(crate) async fn remove(node: &Node, objects: &Objects, name: &str, id: NodeId) -> Result<(), ChangeFault> {
    // Its entry may still say the id under which it lost log entries.
    if let Err(error) = node.catch_up().await {
        tracing::debug!(error = chain(&error), "this server does not see the newest members");
    }
    let id = successor(&node.roster(), id).unwrap_or(id);
    tracing::info!(name, id, "a server is to be removed");
    match node.change(Change::Remove(id)).await {
        // One that never became a member, or is none any more, has an entry only.
        Ok(()) | Err(ConsensusError::Refused(Refusal::NoSuchMember { .. })) => {}
        Err(error) => return Err(fault(error)),
    }
    if id == node.id() {
        return Ok(());
    }
    let gone = retire(objects, name, id).await;
    gone.map_err(|error| {
        tracing::warn!(
            name,
            error = chain(&error),
            "the entry of a server that was removed stays for a moment"
        );
        ChangeFault::Store(StoreError::Timeout)
    })
}

/// Lets the members reach the server with this id at another address.
pub(crate) async fn relocate(node: &Node, id: NodeId, address: &str) -> Result<(), ChangeFault> {
    let address = address.to_owned();
    node.change(Change::Update { id, address }).await.map_err(fault)?;
    // Whoever asked looks here next. That this server lags is no fault of the change.
    if let Err(error) = node.catch_up().await {
        tracing::debug!(error = chain(&error), "this server does not see the change yet");
    }
    Ok(())
}

fn fault(error: ConsensusError) -> ChangeFault {
    match error {
        ConsensusError::Refused(refusal) => ChangeFault::Refused(refusal.to_string()),
        ConsensusError::Store(error) => ChangeFault::Store(error),
        error => {
            tracing::warn!(
                error = chain(&error),
                "it is not known whether the members were changed"
            );
            ChangeFault::Store(StoreError::Timeout)
        }
    }
}

/// Servers that are entered and are members no more by the ids in their entries: their names and those ids, and the ids under which
/// they came back, if they did; more than once, perhaps, since the entry was written. Pure.
fn left_over(entered: &[Stored], removed: &BTreeSet<NodeId>, now: &Roster) -> Vec<(String, NodeId, Option<NodeId>)> {
    let gone = |stored: &Stored| {
        let server: Server = serde_json::from_slice(&stored.value).ok()?;
        let id = server.spec.id;
        let by_name = || {
            let mut seats = now.seats.iter();
            seats
                .find(|(_, seat)| seat.member.name == stored.name)
                .map(|(id, _)| *id)
        };
        removed
            .contains(&id)
            .then(|| (stored.name.clone(), id, successor(now, id).or_else(by_name)))
    };
    entered.iter().filter_map(gone).collect()
}

/// Takes the entries of removed servers out, while this server leads the council: so they go also when whoever asked for the
/// removal did not come to it. Those of servers that came back under another id get that.
pub(crate) async fn sweep(
    node: Node,
    objects: Objects,
    clock: SharedClock,
    stop: CancellationToken,
) -> Result<(), BoxError> {
    let leadership = node.leadership(GroupId::COUNCIL);
    while timeout(clock.as_ref(), SWEEP, stop.cancelled()).await.is_err() {
        let leads = leadership.as_ref().is_some_and(|seen| seen.borrow().here);
        let removed = node.removed();
        if !leads || removed.is_empty() {
            continue;
        }
        let page = Page {
            local: true,
            ..Page::default()
        };
        let entered = match objects.list(&SERVERS, None, page).await {
            Ok(list) => list.items,
            Err(error) => {
                tracing::debug!(%error, "the servers cannot be listed");
                continue;
            }
        };
        for (name, id, successor) in left_over(&entered, &removed, &node.roster()) {
            if let Some(new) = successor {
                match succeed(&objects, &name, id, new).await {
                    Ok(()) => tracing::info!(
                        name,
                        id,
                        new,
                        "a server that lost log entries is entered under its new id"
                    ),
                    Err(error) => tracing::debug!(name, %error, "the entry of a server keeps its old id for a moment"),
                }
                continue;
            }
            // As long as a group has it, it must be heard: it may have to hand that group over.
            if !node.is_out(id).await {
                continue;
            }
            if let Err(error) = retire(&objects, &name, id).await {
                tracing::debug!(name, %error, "the entry of a removed server stays for a moment");
            }
        }
    }
    Ok(())
}

/// Tells consensus which keys are refused, by what is applied here.
pub(crate) async fn refuse_revoked(
    node: Node,
    objects: Objects,
    clock: SharedClock,
    stop: CancellationToken,
) -> Result<(), BoxError> {
    loop {
        let page = Page {
            local: true,
            ..Page::default()
        };
        match objects.list(&REVOKED_KEYS, None, page).await {
            Ok(list) => node.revoke(list.items.into_iter().map(|stored| stored.name).collect()),
            Err(error) => tracing::debug!(%error, "the revoked keys cannot be listed"),
        }
        if timeout(clock.as_ref(), LOOK, stop.cancelled()).await.is_ok() {
            return Ok(());
        }
    }
}

/// Tells in the log how far this server is, until it votes or stops.
pub(crate) async fn tell_progress(node: Node, clock: SharedClock, stop: CancellationToken) -> Result<(), BoxError> {
    let mut told = None;
    while timeout(clock.as_ref(), LOOK, stop.cancelled()).await.is_err() {
        let roster = node.roster();
        let now = seat(&roster, node.id());
        let voters = roster.voters.len();
        let revision = node.council().revision().max(0);
        if told == Some(now) && now != Seat::AwaitingVote {
            continue;
        }
        match now {
            Seat::Voter => {
                tracing::info!(voters, revision, "this server votes");
                return Ok(());
            }
            Seat::AwaitingVote if told != Some(now) => {
                tracing::info!(revision, "this server follows, and votes as soon as it has the data");
            }
            Seat::AwaitingVote => tracing::debug!(revision, "this server catches up"),
            Seat::Learner => tracing::info!(revision, "this server follows, without a vote"),
            Seat::None => tracing::info!("this server waits to hear of its place from the members"),
        }
        told = Some(now);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use hanse_consensus::Member;
    use hanse_consensus::Seat as RaftSeat;
    use std::collections::BTreeMap;

    #[test]
    fn places() {
        let awaiting = RaftSeat {
            awaits_vote: true,
            ..RaftSeat::default()
        };
        let roster = Roster {
            seats: BTreeMap::from([(1, awaiting.clone()), (2, awaiting), (3, RaftSeat::default())]),
            voters: BTreeSet::from([1]),
            joint: false,
        };
        let places = [1, 2, 3, 4].map(|id| seat(&roster, id));
        assert_eq!(places, [Seat::Voter, Seat::AwaitingVote, Seat::Learner, Seat::None]);
    }

    #[test]
    fn only_entries_of_removed_servers_go_and_those_that_came_back_get_their_new_ids() {
        let entry = |name: &str, id: u64| {
            let mut server = Server::default();
            server.spec.id = id;
            Stored {
                namespace: String::new(),
                name: name.to_owned(),
                revision: 7,
                created: 7,
                value: Bytes::from(serde_json::to_vec(&server).unwrap()),
            }
        };
        let mut broken = entry("broken", 2);
        broken.value = Bytes::from_static(b"{");
        let back = RaftSeat {
            replaces: 3,
            ..RaftSeat::default()
        };
        let twice = RaftSeat {
            replaces: 9,
            ..RaftSeat::of(Member {
                name: "d".into(),
                address: "h:1".into(),
            })
        };
        let now = Roster {
            seats: BTreeMap::from([(1, RaftSeat::default()), (10, back), (11, twice)]),
            ..Roster::default()
        };
        let entered = [entry("a", 1), entry("b", 2), entry("c", 3), entry("d", 4), broken];
        let gone = left_over(&entered, &BTreeSet::from([2, 3, 4, 9]), &now);
        let expected = [("b", 2, None), ("c", 3, Some(10)), ("d", 4, Some(11))];
        assert_eq!(gone, expected.map(|(name, id, new)| (name.to_owned(), id, new)));
    }
}
