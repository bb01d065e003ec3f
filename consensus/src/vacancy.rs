//! A leader whose process is gone is not waited for.
//!
//! Raft waits while its leader is silent, because silence proves nothing. A process that was killed is not silent, though: its
//! system closes its connections and refuses new ones. When a connection from another server is gone, this server asks at the
//! leader's address. If nobody listens there, or whoever answers does not lead, it takes back the promise not to vote for others
//! (the leader lease; what a leader who hands over asks for, Raft dissertation 3.10) and stands for election after a short
//! random wait.
//!
//! Nothing of Raft's safety hangs on that: a new leader needs votes, and gets none from servers that still hear the old one
//! (pre-vote, dissertation 9.6). A machine or a line that is silent is waited for as ever.

use crate::group::{Group, Leadership, role_name};
use crate::status::{Unasked, ask};
use crate::types::{Member, NodeId};
use hanse_runtime::BoxError;
use hanse_runtime::clock::timeout;
use hanse_runtime::rng::SharedRng;
use hanse_state::Role;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often is knocked before time decides: the others notice a moment earlier or later, and votes may be split.
const TRIES: u32 = 8;
/// Between two knocks without an answer.
const PAUSE: Duration = Duration::from_millis(50);

/// What a knock at the leader's address found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// No leader: nobody listens, or who answers does not lead.
    Nobody,
    /// The leader.
    Leader,
    /// No answer, which says nothing.
    Silence,
}

/// Looks after the leader whenever a connection from another server is gone, until `stop`.
pub(crate) async fn watch(group: Arc<Group>, rng: SharedRng, stop: CancellationToken) -> Result<(), BoxError> {
    let mut losses = group.peers.losses();
    loop {
        let noticed = async {
            losses.changed().await?;
            succeed(&group, &rng).await
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            done = noticed => done?,
        }
    }
}

/// Sees to it that the group gets another leader, if the one that is known here is gone.
async fn succeed(group: &Group, rng: &SharedRng) -> Result<(), BoxError> {
    let known = group.leadership.borrow().clone();
    let (Some(leader), Some(member), false) = (known.leader, &known.member, known.here) else {
        return Ok(());
    };
    let timing = group.settings();
    // Both are some round trips long, by the rule for `election_min`.
    let (spread, round) = (timing.election_min / 4, timing.election_min / 2);
    for _ in 0..TRIES {
        match knock(group, leader, member).await {
            Found::Nobody => {}
            Found::Leader => return Ok(()),
            // A dying process may still have its port while its connections are gone already.
            Found::Silence if another_leads(group, &known, PAUSE).await => return Ok(()),
            Found::Silence => continue,
        }
        forget(group, leader).await?;
        if another_leads(group, &known, spread.mul_f64(rng.unit())).await {
            return Ok(());
        }
        tracing::info!(group = %group.id, leader, "the leader's process is gone; this server stands for election");
        group.raft.trigger().elect(true).await?;
        if another_leads(group, &known, round).await {
            return Ok(());
        }
    }
    Ok(())
}

async fn knock(group: &Group, leader: NodeId, member: &Member) -> Found {
    let reply = match ask(&group.peers, leader, member).await {
        Ok(reply) => reply,
        Err(Unasked::Refused) => return Found::Nobody,
        Err(Unasked::Silent) => return Found::Silence,
    };
    let here = reply.groups.iter().find(|status| status.group == group.id.0);
    match here {
        Some(status) if status.role == role_name(Role::Leader) => Found::Leader,
        Some(_) => Found::Nobody,
        None => Found::Silence,
    }
}

/// Takes back what was promised to `leader`, if it is still the one that has this server's vote.
async fn forget(group: &Group, leader: NodeId) -> Result<(), BoxError> {
    let vote = group.raft.metrics().borrow_watched().vote;
    if vote.committed && vote.leader_id.voted_for == leader {
        // Names the leader itself as its successor: so that nobody is made to stand.
        let given_up = TransferLeaderRequest::new(vote, leader, None);
        group.raft.handle_transfer_leader(given_up).await?.ok();
    }
    Ok(())
}

/// Whether somebody leads a newer term than in `known` within `limit`.
async fn another_leads(group: &Group, known: &Leadership, limit: Duration) -> bool {
    let mut leadership = group.leadership.subscribe();
    let newer = leadership.wait_for(|now| now.leader.is_some() && now.term > known.term);
    matches!(timeout(group.clock().as_ref(), limit, newer).await, Ok(Ok(_)))
}
