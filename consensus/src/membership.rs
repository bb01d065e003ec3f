//! Changes of the members, at the leaders.
//!
//! The council's membership is the truth. A change is decided and made there, at its leader, one at a time; the leader of every
//! other group brings its group to what the council's members are. So a change that a crash cut short is ended by whoever leads
//! next, and a repeated one does no harm. A change begins only when all groups have followed the one before, and is done when
//! they have followed it: otherwise two removals in a row could take the quorum of a group that is behind.

use crate::codec::{self, pb};
use crate::error::ConsensusError;
use crate::group::{Group, role_name};
use crate::network::{Lane, Peers, never_left};
use crate::replace::{Returning, replace, successor};
use crate::roster::{Change, MAX_BEHIND, Refusal, Roster, Seen, Step, decide, next_step, tend};
use crate::status::{About, ask_all};
use crate::types::{GroupId, LogId, Member, NodeId, TypeConfig};
use hanse_runtime::BoxError;
use hanse_runtime::clock::timeout;
use hanse_state::Role;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::Precondition;
use openraft::{ChangeMembers, ServerState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Wait before a step is tried again, and between two looks at whether the groups have followed.
const RETRY: Duration = Duration::from_millis(50);
/// Looks before it is believed that a member does not answer, and the pause between two.
const LOOKS: usize = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How many times as long as a write a change may take: it is several of them, and leadership may have to move.
const CHANGE: u32 = 4;
/// How often a leader looks whether something is to be noted of the members.
const TICK: Duration = Duration::from_millis(500);
/// For handing leadership over.
pub(crate) const HANDOVER: Duration = Duration::from_secs(3);

/// Why a change was not made here.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It is not allowed.
    Refused(Refusal),
    /// Somebody else may do it, or later; `begun`: part of it may be done.
    Elsewhere { reason: String, begun: bool },
}

fn elsewhere(reason: impl Into<String>) -> Fault {
    Fault::Elsewhere {
        reason: reason.into(),
        begun: false,
    }
}

impl Fault {
    fn begun(self) -> Self {
        match self {
            Self::Elsewhere { reason, .. } => Self::Elsewhere { reason, begun: true },
            refused @ Self::Refused(_) => refused,
        }
    }
}

/// What somebody asks a leader for.
#[derive(Clone, Copy, Debug)]
enum Wish<'a> {
    /// A change; `again`: an earlier try of it may have been carried out.
    Change { change: &'a Change, again: bool },
    /// A member that lost log entries comes back as a new one.
    Return(Returning<'a>),
}

impl Wish<'_> {
    fn decide(&self, now: &Roster, seen: &Seen, me: NodeId) -> Result<Roster, Refusal> {
        match self {
            Self::Change { change, again } => decide(now, seen, me, change, *again),
            Self::Return(asks) => replace(now, seen, *asks),
        }
    }
}

/// The members as a leader sees them.
#[derive(Debug, Default)]
struct View {
    seen: Seen,
    /// What members call themselves.
    names: BTreeMap<NodeId, String>,
    /// What each group's leader says of its group.
    groups: BTreeMap<GroupId, pb::GroupStatus>,
}

/// Puts the answers together. A member is as far behind as in the group where it is most, by its leader's count. Pure.
fn view(replies: &[pb::StatusReply]) -> View {
    let mut view = View::default();
    for reply in replies {
        view.seen.live.insert(reply.id);
        view.seen.removed.extend(&reply.removed);
        view.names.insert(reply.id, reply.name.clone());
    }
    let statuses = replies
        .iter()
        .flat_map(|reply| reply.groups.iter().map(|status| (reply.id, status)));
    let groups: BTreeSet<GroupId> = statuses.clone().map(|(_, status)| GroupId(status.group)).collect();
    let mut behind: BTreeMap<NodeId, Option<u64>> = view.seen.live.iter().map(|id| (*id, Some(0))).collect();
    for group in groups {
        let leaders = statuses.clone().filter(|(_, status)| GroupId(status.group) == group);
        let leaders = leaders.filter(|(_, status)| status.role == role_name(Role::Leader));
        let leader = leaders.max_by_key(|(_, status)| status.term);
        for (id, worst) in &mut behind {
            let here = leader.and_then(|(leads, status)| match status.matched.get(id) {
                _ if leads == *id => Some(0),
                matched => matched.map(|matched| status.last_index.saturating_sub(*matched)),
            });
            *worst = worst.zip(here).map(|(worst, here)| worst.max(here));
        }
        if let Some((_, status)) = leader {
            view.groups.insert(group, status.clone());
        }
    }
    view.seen.behind = behind.into_iter().filter_map(|(id, n)| Some((id, n?))).collect();
    view
}

type RaftRefusal = RaftError<TypeConfig, ClientWriteError<TypeConfig>>;

/// Whether the leader may take the step in a moment: the step before is not committed yet, or somebody else was faster.
fn passing(refusal: &RaftRefusal) -> bool {
    use openraft::errors::ChangeMembershipError as E;
    match refusal {
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
            !matches!(error, E::EmptyMembership(_) | E::LearnerNotFound(_))
        }
        RaftError::APIError(ClientWriteError::PreconditionFailed(_)) => true,
        RaftError::APIError(ClientWriteError::ForwardToLeader(_) | ClientWriteError::LogEntryDiscarded(_)) => false,
        RaftError::Fatal(_) => false,
    }
}

impl Group {
    /// The members by the newest entry here, and where that stands.
    pub(crate) fn roster(&self) -> (Roster, Option<LogId>) {
        let metrics = self.raft.metrics();
        let seen = metrics.borrow_watched();
        let stored = &seen.membership_config;
        (Roster::of(stored.membership()), *stored.log_id())
    }

    fn leads(&self) -> bool {
        self.leadership.borrow().here
    }

    /// Takes a step from the membership that stands at `at`.
    async fn take(&self, step: Step, at: Option<LogId>) -> Result<(), RaftRefusal> {
        tracing::info!(group = %self.id, ?step, "the members change");
        // Voters that leave are not to stay as learners.
        let change = match step {
            Step::Finish => ChangeMembers::AddVoterIds(BTreeSet::new()),
            Step::Seat(seats) => ChangeMembers::SetNodes(seats),
            Step::Replace { id, seat, old, voted } => {
                let (new, old) = (BTreeMap::from([(id, seat)]), BTreeSet::from([old]));
                let leaves = if voted {
                    ChangeMembers::RemoveVoters(old)
                } else {
                    ChangeMembers::RemoveNodes(old)
                };
                ChangeMembers::Batch(vec![ChangeMembers::SetNodes(new), leaves])
            }
            Step::Vote(ids) => ChangeMembers::AddVoterIds(ids),
            Step::Retire(ids) => ChangeMembers::RemoveVoters(ids),
            Step::Drop(ids) => ChangeMembers::RemoveNodes(ids),
            Step::HandOver | Step::Await(_) => return Ok(()),
        };
        let unchanged = Precondition::LastMembershipLogId {
            last_membership_log_id: at,
        };
        self.raft
            .change_membership_if(change, false, [unchanged])
            .await
            .map(|_| ())
    }

    /// The other voters and how far each is, if this server leads.
    pub(crate) fn followers(&self) -> BTreeMap<NodeId, Option<u64>> {
        let metrics = self.raft.metrics();
        let seen = metrics.borrow_watched();
        if seen.state != ServerState::Leader {
            return BTreeMap::new();
        }
        let voters: BTreeSet<NodeId> = seen.membership_config.voter_ids().filter(|id| *id != self.me).collect();
        let matched = seen.replication.iter().flatten().filter(|(id, _)| voters.contains(id));
        matched
            .map(|(id, matched)| (*id, matched.as_ref().map(|id| id.index)))
            .collect()
    }

    /// Members that have acknowledged entries to this leader, and the leader.
    fn acked(&self) -> BTreeSet<NodeId> {
        let metrics = self.raft.metrics();
        let seen = metrics.borrow_watched();
        let acked = seen
            .replication
            .iter()
            .flatten()
            .filter(|(_, matched)| matched.is_some());
        acked.map(|(id, _)| *id).chain([self.me]).collect()
    }

    /// Members that are at most [`MAX_BEHIND`] entries behind this leader.
    fn ready(&self) -> BTreeSet<NodeId> {
        let metrics = self.raft.metrics();
        let seen = metrics.borrow_watched();
        let last = seen.last_log_index.unwrap_or(0);
        let near = |matched: &Option<LogId>| matched.is_some_and(|id| last.saturating_sub(id.index) <= MAX_BEHIND);
        let ready = seen.replication.iter().flatten().filter(|(_, matched)| near(matched));
        ready.map(|(id, _)| *id).chain([self.me]).collect()
    }

    /// Hands leadership over to one of `among`; says whether another leads now.
    pub(crate) async fn hand_over_to(&self, among: &BTreeSet<NodeId>) -> bool {
        let Some(to) = best_of(&self.followers(), among.iter().copied()) else {
            tracing::warn!(group = %self.id, "no other server can lead; leadership is not handed over");
            return false;
        };
        if let Err(error) = self.raft.trigger().transfer_leader(to).await {
            tracing::warn!(group = %self.id, %error, "leadership could not be handed over");
            return false;
        }
        let mut leadership = self.leadership.subscribe();
        let gone = leadership.wait_for(|now| !now.here && now.leader.is_some());
        let taken = timeout(self.clock().as_ref(), HANDOVER, gone).await.is_ok();
        if !taken {
            tracing::warn!(group = %self.id, to, "nobody took leadership over in time");
        }
        taken
    }
}

/// Of those that are alive the one with the most entries. Pure.
pub(crate) fn best_of(matched: &BTreeMap<NodeId, Option<u64>>, alive: impl Iterator<Item = NodeId>) -> Option<NodeId> {
    alive
        .filter_map(|id| matched.get(&id).map(|index| (*index, id)))
        .max()
        .map(|(_, id)| id)
}

/// What changes the members on this server.
#[derive(Debug)]
pub struct Changes {
    about: Arc<About>,
    peers: Peers,
    council: Arc<Group>,
    /// One change at a time.
    one: tokio::sync::Mutex<()>,
}

impl Changes {
    pub(crate) fn new(about: Arc<About>, peers: Peers, council: Arc<Group>) -> Self {
        let one = tokio::sync::Mutex::new(());
        Self {
            about,
            peers,
            council,
            one,
        }
    }

    async fn look(&self) -> View {
        let (roster, _) = self.council.roster();
        let members = roster.seats.into_iter().map(|(id, seat)| (id, seat.member));
        let members: BTreeMap<NodeId, Member> = members.collect();
        let answers = ask_all(&self.peers, &members).await.into_iter();
        let mut replies: Vec<_> = answers.filter_map(|(_, reply)| reply).collect();
        replies.push(self.about.reply());
        view(&replies)
    }

    /// Makes a change wherever the leader is. Completes when all groups have followed.
    pub(crate) async fn change(&self, change: &Change) -> Result<(), ConsensusError> {
        let council = &self.council;
        let limit = council.settings().request_timeout * CHANGE;
        let deadline = council.clock().mono() + limit;
        let mut leadership = council.leadership.subscribe();
        let mut again = false;
        loop {
            let leader = leadership.borrow_and_update().clone();
            let done = match (leader.leader, &leader.member) {
                _ if leader.here => self.change_here(Wish::Change { change, again }, deadline).await,
                (Some(id), Some(member)) => self.forward((id, member), change, again, deadline).await,
                _ => Err(elsewhere("no leader")),
            };
            match done {
                Ok(()) => return Ok(()),
                Err(Fault::Refused(refusal)) => return Err(ConsensusError::Refused(refusal)),
                Err(Fault::Elsewhere { reason, begun }) => {
                    again |= begun;
                    tracing::info!(reason, again, "a change of the members is tried again");
                    if !council.pause(&mut leadership, deadline).await {
                        return Err(ConsensusError::Timeout {
                            group: council.id,
                            what: "the change of the members",
                            seconds: limit.as_secs(),
                        });
                    }
                }
            }
        }
    }

    async fn forward(
        &self,
        (id, member): (NodeId, &Member),
        change: &Change,
        again: bool,
        deadline: Duration,
    ) -> Result<(), Fault> {
        let client = self.peers.client(id, member, Lane::Control);
        let mut client = client.map_err(|error| elsewhere(error.to_string()))?;
        let left = deadline.saturating_sub(self.council.clock().mono());
        let call = client.change(codec::change_to_pb(change, again));
        use pb::change_reply::Result as R;
        match timeout(self.council.clock().as_ref(), left, call).await {
            Err(elapsed) => Err(elsewhere(elapsed.to_string()).begun()),
            Ok(Err(status)) if never_left(&status) => Err(elsewhere(status.message())),
            Ok(Err(status)) => Err(elsewhere(status.message()).begun()),
            Ok(Ok(reply)) => match reply.into_inner().result {
                Some(R::Done(_)) => Ok(()),
                Some(R::Refused(refused)) => Err(Fault::Refused(codec::refusal_from_pb(refused))),
                Some(R::Elsewhere(there)) => Err(Fault::Elsewhere {
                    reason: there.reason,
                    begun: there.begun,
                }),
                None => Err(elsewhere("an empty answer").begun()),
            },
        }
    }

    /// Answers a member that forwards a change.
    pub(crate) async fn change_for(&self, request: pb::ChangeRequest) -> Result<pb::ChangeReply, tonic::Status> {
        use pb::change_reply::{Done, Elsewhere, Result as R};
        let (change, again) = codec::change_from_pb(request)?;
        let deadline = self.council.clock().mono() + self.council.settings().request_timeout * (CHANGE - 1);
        let wish = Wish::Change { change: &change, again };
        let result = match self.change_here(wish, deadline).await {
            Ok(()) => R::Done(Done {}),
            Err(Fault::Refused(refusal)) => R::Refused(codec::refusal_to_pb(&refusal)),
            Err(Fault::Elsewhere { reason, begun }) => R::Elsewhere(Elsewhere { reason, begun }),
        };
        Ok(pb::ChangeReply { result: Some(result) })
    }

    /// Answers a member that lost log entries, whose certificate says `name`. It may start under the new id when it has that: all groups
    /// have followed then, so nobody can take its first vote for one of the old member.
    pub(crate) async fn replace_for(&self, name: &str, old: NodeId) -> pb::RejoinReply {
        use pb::change_reply::Elsewhere;
        use pb::rejoin_reply::{Done, Result as R};
        let deadline = self.council.clock().mono() + self.council.settings().request_timeout * (CHANGE - 1);
        tracing::warn!(
            name,
            old,
            "a member lost log entries, and asks to come back as a new one"
        );
        let seat = self.council.roster().0.seats.get(&old).cloned();
        let address = seat.map(|seat| self.council.peers.public_address(old, &seat));
        let asks = Returning {
            old,
            name,
            address: address.as_deref(),
        };
        let done = self.change_here(Wish::Return(asks), deadline).await;
        let result = match done {
            Ok(()) => match successor(&self.council.roster().0, old) {
                Some(id) => {
                    tracing::warn!(name, old, id, "a member that lost log entries comes back as a new one");
                    R::Done(Done { id })
                }
                None => R::Refused(codec::refusal_to_pb(&Refusal::Gone { id: old })),
            },
            Err(Fault::Refused(refusal)) => {
                tracing::warn!(name, old, %refusal, "a member that lost log entries may not come back now");
                R::Refused(codec::refusal_to_pb(&refusal))
            }
            Err(Fault::Elsewhere { reason, begun }) => R::Elsewhere(Elsewhere { reason, begun }),
        };
        pb::RejoinReply { result: Some(result) }
    }

    /// Makes a change, if this server leads the council.
    async fn change_here(&self, wish: Wish<'_>, deadline: Duration) -> Result<(), Fault> {
        let council = &self.council;
        let left = deadline.saturating_sub(council.clock().mono());
        let Ok(_one) = timeout(council.clock().as_ref(), left, self.one.lock()).await else {
            return Err(elsewhere("another change is under way"));
        };
        self.settle(deadline).await?;
        // A leader that was replaced without knowing it must not refuse by what was, nor a new one by what it has not applied yet: an
        // id that was just removed would be given again.
        let leads = timeout(council.clock().as_ref(), left, council.lead_with_all()).await;
        if !council.leads() || !leads.unwrap_or(false) {
            return Err(elsewhere("this server does not lead"));
        }
        let (wanted, live) = self.decided(wish).await.map_err(Fault::Refused)?;
        tracing::info!(?wish, "the members are to change");
        self.drive(&wanted, &live, deadline).await.map_err(Fault::begun)?;
        self.settle(deadline).await.map_err(Fault::begun)
    }

    /// What the members shall be, and who answers. That too few answer, or that the one who asks for another's place does not, is
    /// believed only when it is seen again and again: a busy one may be slow, and a connection may have to be made anew.
    async fn decided(&self, wish: Wish<'_>) -> Result<(Roster, BTreeSet<NodeId>), Refusal> {
        let council = &self.council;
        let mut looks = 0;
        loop {
            looks += 1;
            let seen = self.look().await.seen;
            let (now, _) = council.roster();
            match wish.decide(&now, &seen, council.me) {
                Ok(_) if matches!(wish, Wish::Return(_)) && looks < LOOKS => {}
                Ok(wanted) => return Ok((wanted, seen.live)),
                Err(Refusal::Unreachable { .. } | Refusal::Unstarted { .. }) if looks < LOOKS => {}
                Err(refusal) => return Err(refusal),
            }
            council.clock().sleep(LOOK_AGAIN).await;
        }
    }

    /// Brings the council to `wanted`, step by step.
    async fn drive(&self, wanted: &Roster, live: &BTreeSet<NodeId>, deadline: Duration) -> Result<(), Fault> {
        let council = &self.council;
        let ready = wanted.voters.clone();
        loop {
            let (now, at) = council.roster();
            let Some(step) = next_step(&now, wanted, council.me, &ready) else {
                return Ok(());
            };
            if step == Step::HandOver {
                let among = wanted.voters.intersection(live).copied().collect();
                council.hand_over_to(&among).await;
                return Err(elsewhere("the leader leaves and hands over"));
            }
            self.take(council, step, at, deadline).await?;
        }
    }

    /// Takes a step, or waits a moment where it may be taken then.
    async fn take(&self, group: &Group, step: Step, at: Option<LogId>, deadline: Duration) -> Result<(), Fault> {
        let left = deadline.saturating_sub(group.clock().mono());
        match timeout(group.clock().as_ref(), left, group.take(step, at)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refusal)) if passing(&refusal) && !left.is_zero() => {
                group.clock().sleep(RETRY).await;
                Ok(())
            }
            Ok(Err(refusal)) => Err(elsewhere(refusal.to_string())),
            Err(elapsed) => Err(elsewhere(elapsed.to_string())),
        }
    }

    /// Waits until no change is under way in the council and the other groups have its members.
    async fn settle(&self, deadline: Duration) -> Result<(), Fault> {
        loop {
            if !self.council.leads() {
                return Err(elsewhere("this server does not lead"));
            }
            let (now, at) = self.council.roster();
            let late = if now.joint {
                self.take(&self.council, Step::Finish, at, deadline).await?;
                Some(self.council.id)
            } else {
                self.late(&now).await
            };
            let Some(group) = late else { return Ok(()) };
            if self.council.clock().mono() >= deadline {
                return Err(elsewhere(format!(
                    "Raft group {group} has not followed the last change yet"
                )));
            }
            self.council.clock().sleep(RETRY).await;
        }
    }

    /// A group whose leader has other members than `wanted`, or that has no leader.
    async fn late(&self, wanted: &Roster) -> Option<GroupId> {
        let view = self.look().await;
        let others = self.about.groups.keys().filter(|id| **id != self.council.id);
        let has = |id: &GroupId| {
            let membership = view.groups.get(id).and_then(|status| status.membership.clone());
            let membership = membership.and_then(|record| codec::membership_from_pb(record).ok());
            membership.is_some_and(|membership| Roster::of(&membership).has_members_of(wanted))
        };
        others.copied().find(|id| !has(id))
    }

    /// Does at the leader of `group` what is due, for as long as this server leads it; until `stop`.
    pub(crate) async fn tend(self: Arc<Self>, group: Arc<Group>, stop: CancellationToken) -> Result<(), BoxError> {
        let (mut leadership, mut roll) = (group.leadership.subscribe(), self.council.roll.clone());
        loop {
            let round = async {
                if leadership.wait_for(|now| now.here).await.is_err() {
                    return false;
                }
                let done = if group.id == self.council.id {
                    self.note().await
                } else {
                    self.follow(&group).await
                };
                match done {
                    Ok(true) => {}
                    Ok(false) => {
                        let changed = timeout(group.clock().as_ref(), TICK, roll.changed()).await;
                        return !matches!(changed, Ok(Err(_)));
                    }
                    Err(Fault::Refused(_)) => group.clock().sleep(TICK).await,
                    Err(Fault::Elsewhere { reason, .. }) => {
                        tracing::debug!(group = %group.id, reason, "the members are looked after again in a moment");
                        group.clock().sleep(RETRY).await;
                    }
                }
                true
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                go_on = round => if !go_on { return Ok(()) },
            }
        }
    }

    /// Notes in the council what its leader has learned of the members. Says whether there was anything.
    async fn note(&self) -> Result<bool, Fault> {
        let Ok(_one) = self.one.try_lock() else {
            return Ok(false);
        };
        let (now, at) = self.council.roster();
        let open = |(id, seat): (&NodeId, &crate::types::Seat)| {
            seat.member.name.is_empty() || (seat.awaits_vote && !now.voters.contains(id))
        };
        let view = if now.seats.iter().any(open) {
            self.look().await
        } else {
            View::default()
        };
        let wanted = tend(&now, &view.seen, &self.council.acked(), &view.names);
        let Some(step) = next_step(&now, &wanted, self.council.me, &wanted.voters) else {
            return Ok(false);
        };
        let deadline = self.council.clock().mono() + self.council.settings().request_timeout;
        self.take(&self.council, step, at, deadline).await?;
        Ok(true)
    }

    /// Brings a group that this server leads one step nearer to the council's members. Says whether there was one.
    async fn follow(&self, group: &Group) -> Result<bool, Fault> {
        let wanted = || {
            let stored = self.council.roll.borrow().membership.clone();
            Some(Roster::of(stored.membership()).plain()).filter(|roster| !roster.joint && !roster.voters.is_empty())
        };
        if !self.council.has_leader() {
            let seen = self.look().await.seen;
            // The council has this server no more, and so does not tell it either.
            return Ok(seen.removed.contains(&group.me) && group.hand_over_to(&seen.live).await);
        }
        let (now, at) = group.roster();
        if !now.joint && wanted().is_none_or(|wanted| now == wanted) {
            return Ok(false);
        }
        // This member may be behind in the council, and must not bring back what was.
        let current = self.council.linearize().await;
        current.map_err(|error| elsewhere(error.to_string()))?;
        let Some(wanted) = wanted() else { return Ok(false) };
        let deadline = group.clock().mono() + group.settings().request_timeout;
        match next_step(&now, &wanted, group.me, &group.ready()) {
            None | Some(Step::Await(_)) => Ok(false),
            Some(Step::HandOver) => {
                let live = self.look().await.seen.live;
                Ok(group
                    .hand_over_to(&wanted.voters.intersection(&live).copied().collect())
                    .await)
            }
            Some(step) => self.take(group, step, at, deadline).await.map(|()| true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leadership_goes_to_the_most_advanced_server_that_answers() {
        let matched = BTreeMap::from([(2, Some(9)), (3, Some(7)), (4, None)]);
        assert_eq!(best_of(&matched, [2, 3, 4].into_iter()), Some(2));
        assert_eq!(best_of(&matched, [3, 4].into_iter()), Some(3));
        assert_eq!(best_of(&matched, [4].into_iter()), Some(4));
        // Server 5 answers, but is no voter.
        assert_eq!(best_of(&matched, [5].into_iter()), None);
        assert_eq!(best_of(&matched, std::iter::empty()), None);
    }

    /// Group, role, term, last entry, and how far others are.
    type Part<'a> = (u32, Role, u64, u64, &'a [(NodeId, u64)]);

    fn reply(id: NodeId, groups: &[Part<'_>]) -> pb::StatusReply {
        let status = |(group, role, term, last_index, matched): &Part<'_>| pb::GroupStatus {
            group: *group,
            role: role_name(*role).to_owned(),
            term: *term,
            last_index: *last_index,
            matched: matched.iter().copied().collect(),
            ..pb::GroupStatus::default()
        };
        pb::StatusReply {
            id,
            name: format!("s{id}"),
            groups: groups.iter().map(status).collect(),
            ..pb::StatusReply::default()
        }
    }

    #[test]
    fn a_member_is_as_far_behind_as_in_the_group_where_it_is_most() {
        let replies = [
            // Leads the council, and believes to lead the other group.
            reply(
                1,
                &[
                    (0, Role::Leader, 5, 100, &[(2, 90), (3, 99)]),
                    (1, Role::Leader, 2, 9, &[(2, 9), (3, 9)]),
                ],
            ),
            reply(
                2,
                &[
                    (0, Role::Follower, 5, 90, &[]),
                    (1, Role::Leader, 3, 500, &[(1, 499), (3, 450)]),
                ],
            ),
            reply(3, &[]),
            // Has acknowledged nothing yet.
            reply(4, &[(0, Role::Learner, 0, 0, &[])]),
        ];
        let view = view(&replies);
        assert_eq!(view.seen.live, BTreeSet::from([1, 2, 3, 4]));
        assert_eq!(view.seen.behind, BTreeMap::from([(1, 1), (2, 10), (3, 50)]));
        assert_eq!(view.groups[&GroupId(1)].term, 3);
        assert_eq!(view.names[&4], "s4");
    }
}
