//! `state::Store` of one group, on any of its members.
//!
//! Writes go through the log, wherever the leader is. Reads are of this member's applied state, after asking the leader how far
//! that must be; serializable reads and watches do not ask.

use crate::disk::Disks;
use crate::fair::{Turn, Turns};
use crate::group::Group;
use crate::meters::{self, GroupMeters};
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use hanse_api::resources::StoreLimits;
use hanse_runtime::meter::Family;
use hanse_runtime::rng::SharedRng;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use hanse_state::engine::LogWriter;
use hanse_state::machine::limits::limits_command;
use hanse_state::machine::{Machine, check_audited, check_range, check_txn, grows, is_read_only};
use hanse_state::pb::command::command::Op;
use hanse_state::pb::command::outcome::Answer;
use hanse_state::pb::{self, Outcome, command};
use hanse_state::store::SpaceHash;
use hanse_state::watch::Watch;
use hanse_state::{Access, KeySpace, Store, StoreError, StoreStatus, WatchRequest};
use prost::Message;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::runtime::Handle;

/// A group's store on this member.
pub struct ReplicatedStore {
    group: Arc<Group>,
    writer: LogWriter,
    rng: SharedRng,
    meters: Arc<GroupMeters>,
    turns: Turns<KeySpace>,
    disks: Arc<Disks>,
    supervisor: Supervisor,
}

impl fmt::Debug for ReplicatedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicatedStore")
            .field("group", &self.group.id)
            .finish_non_exhaustive()
    }
}

/// The log applied a command, but answered something that does not belong to it: members run different programs.
fn mismatch() -> StoreError {
    StoreError::Corrupt("a command was answered with the answer to another one".to_owned())
}

fn revision_of(answer: &Answer) -> Result<i64, StoreError> {
    match answer {
        Answer::Revision(revision) => Ok(*revision),
        _ => Err(mismatch()),
    }
}

/// Whether a command waits for its space's turn. What is done about a tenant does not: a fence must not wait behind the writes
/// that it is to end, nor new limits behind those that they are to bound.
const fn takes_turn(op: &Op) -> bool {
    match op {
        Op::Txn(_)
        | Op::AuditedTxn(_)
        | Op::Compact(_)
        | Op::LeaseGrant(_)
        | Op::LeaseRevoke(_)
        | Op::LeaseKeepAlive(_)
        | Op::RestoreSpace(_)
        | Op::SetAlarm(_) => true,
        Op::SetFence(_)
        | Op::DropSpace(_)
        | Op::SetLimits(_)
        | Op::SetLevel(_)
        | Op::ExpireLeases(_)
        | Op::ExtendLeases(_) => false,
    }
}

/// A write in the log's hands. It goes on when nobody waits for it any more, and so keeps its turn: else whoever gives up at once
/// could have any number under way.
struct Proposed {
    outcome: Option<BoxFuture<'static, Result<Outcome, StoreError>>>,
    supervisor: Supervisor,
}

impl Future for Proposed {
    type Output = Result<Outcome, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(outcome) = &mut self.outcome else {
            return Poll::Ready(Err(StoreError::Stopped));
        };
        let outcome = ready!(outcome.as_mut().poll(cx));
        self.outcome = None;
        Poll::Ready(outcome)
    }
}

impl Drop for Proposed {
    fn drop(&mut self) {
        // Outside of a runtime this process is on its way out.
        if let Some(outcome) = self.outcome.take()
            && Handle::try_current().is_ok()
        {
            // A server that stops needs its turns no more, and the last one of a system would wait for a quorum that has gone.
            let stop = self.supervisor.shutdown_token().phase(TaskKind::BestEffort.phase());
            let rest = async move {
                tokio::select! {
                    _nobody_asks = outcome => {}
                    () = stop.cancelled() => {}
                }
                Ok(())
            };
            self.supervisor.spawn(TaskKind::BestEffort, "an abandoned write", rest);
        }
    }
}

impl ReplicatedStore {
    pub(crate) fn new(
        group: Arc<Group>,
        writer: LogWriter,
        rng: SharedRng,
        disks: Arc<Disks>,
        supervisor: Supervisor,
    ) -> Arc<Self> {
        let meters = Arc::default();
        let settings = group.settings();
        let turns = Turns::new(settings.turns, settings.request_timeout, Arc::clone(group.clock()));
        Arc::new(Self {
            group,
            writer,
            rng,
            meters,
            turns,
            disks,
            supervisor,
        })
    }

    pub(crate) fn meters(&self) -> &Arc<GroupMeters> {
        &self.meters
    }

    /// What is counted of the group here, without what its members on this server share.
    pub(crate) fn own_families(&self) -> Vec<Family> {
        let mut families = meters::families(&self.group, &self.meters);
        families.extend(self.turns.families());
        families
    }

    fn check(&self, space: &KeySpace) -> Result<(), StoreError> {
        space.check()?;
        let asked = space.group();
        if asked == self.group.id {
            Ok(())
        } else {
            Err(StoreError::WrongGroup {
                asked,
                here: self.group.id,
            })
        }
    }

    /// Puts a command through the log.
    async fn change(&self, space: &KeySpace, epoch: Option<u64>, op: Op) -> Result<Answer, StoreError> {
        self.check(space)?;
        if self.disks.refuses(self.group.id) && grows(&op) {
            return Err(StoreError::NoSpace);
        }
        // The leader stamps the time.
        let in_turn = takes_turn(&op);
        // The tenant's own limit is not for what is done to its space.
        let rate = match op {
            Op::RestoreSpace(_) => 0,
            _ => self.rate(space),
        };
        let command = Machine::command(0, space, epoch, op).encode_to_vec();
        let turn = if in_turn {
            Some(self.turns.take(space, command.len(), rate).await?)
        } else {
            None
        };
        let GroupMeters {
            stopwatch,
            commit,
            failed,
            ..
        } = self.meters.as_ref();
        let proposed = stopwatch.time_async(commit, self.propose(command.into(), turn));
        let Outcome { answer } = proposed.await.inspect_err(|_| failed.add(1))?;
        match answer {
            Some(Answer::Refusal(refusal)) => Err(StoreError::from_refusal(refusal)),
            Some(answer) => Ok(answer),
            None => Err(mismatch()),
        }
    }

    /// Writes per second that a space is limited to; 0: not limited.
    fn rate(&self, space: &KeySpace) -> u32 {
        let access = Access {
            space: space.clone(),
            epoch: None,
        };
        // A space that is gone refuses by itself.
        self.machine()
            .limits(&access)
            .map_or(0, |limits| limits.writes_per_second)
    }

    fn propose(&self, command: Bytes, turn: Option<Turn<KeySpace>>) -> Proposed {
        let group = Arc::clone(&self.group);
        let outcome = async move {
            let _until_its_fate_is_known = turn;
            group.propose(command).await
        };
        Proposed {
            outcome: Some(outcome.boxed()),
            supervisor: self.supervisor.clone(),
        }
    }

    async fn change_as(&self, access: &Access, op: Op) -> Result<Answer, StoreError> {
        self.change(&access.space, access.epoch, op).await
    }

    /// An id for a lease; positive, because etcd's clients read 0 as none.
    fn lease_id(&self) -> i64 {
        let mut bytes = [0; 8];
        self.rng.fill(&mut bytes);
        (i64::from_le_bytes(bytes) & i64::MAX).max(1)
    }
}

#[async_trait]
impl Store for ReplicatedStore {
    async fn range(&self, access: &Access, req: pb::RangeRequest) -> Result<pb::RangeResponse, StoreError> {
        self.check(&access.space)?;
        check_range(&req)?;
        if !req.serializable {
            self.group.linearize().await?;
        }
        self.machine().range(access, req).await
    }

    async fn txn(&self, access: &Access, req: pb::TxnRequest) -> Result<pb::TxnResponse, StoreError> {
        self.check(&access.space)?;
        check_txn(&req)?;
        if is_read_only(&req) {
            self.group.linearize().await?;
            return self.machine().read_txn(access, &req);
        }
        match self.change_as(access, Op::Txn(req)).await? {
            Answer::Txn(response) => Ok(response),
            _ => Err(mismatch()),
        }
    }

    async fn txn_audited(&self, req: pb::TxnRequest, events: Vec<String>) -> Result<pb::TxnResponse, StoreError> {
        let audited = check_audited(req, events)?;
        match self.change_as(&Access::registry(), Op::AuditedTxn(audited)).await? {
            Answer::Txn(response) => Ok(response),
            _ => Err(mismatch()),
        }
    }

    async fn compact(&self, access: &Access, revision: i64) -> Result<i64, StoreError> {
        revision_of(
            &self
                .change_as(access, Op::Compact(command::Compact { revision }))
                .await?,
        )
    }

    async fn lease_grant(
        &self,
        access: &Access,
        id: i64,
        ttl_seconds: i64,
    ) -> Result<pb::LeaseGrantResponse, StoreError> {
        let id = if id == 0 { self.lease_id() } else { id };
        match self
            .change_as(access, Op::LeaseGrant(command::LeaseGrant { id, ttl_seconds }))
            .await?
        {
            Answer::LeaseGrant(response) => Ok(response),
            _ => Err(mismatch()),
        }
    }

    async fn lease_revoke(&self, access: &Access, id: i64) -> Result<i64, StoreError> {
        revision_of(
            &self
                .change_as(access, Op::LeaseRevoke(command::LeaseRevoke { id }))
                .await?,
        )
    }

    async fn lease_keep_alive(&self, access: &Access, id: i64) -> Result<pb::LeaseKeepAliveResponse, StoreError> {
        match self
            .change_as(access, Op::LeaseKeepAlive(command::LeaseKeepAlive { id }))
            .await?
        {
            Answer::LeaseKeepAlive(response) => Ok(response),
            _ => Err(mismatch()),
        }
    }

    async fn lease_time_to_live(
        &self,
        access: &Access,
        id: i64,
        keys: bool,
    ) -> Result<pb::LeaseTimeToLiveResponse, StoreError> {
        self.check(&access.space)?;
        self.group.linearize().await?;
        let now = self.group.clock().wall().as_millis();
        self.machine().lease_time_to_live(access, id, keys, now)
    }

    async fn leases(&self, access: &Access) -> Result<Vec<i64>, StoreError> {
        self.check(&access.space)?;
        self.group.linearize().await?;
        self.machine().leases(access)
    }

    async fn watch(&self, access: &Access, req: WatchRequest) -> Result<Watch, StoreError> {
        self.check(&access.space)?;
        self.machine().watch(access, req)
    }

    async fn set_fence(&self, tenant: &str, epoch: u64) -> Result<(), StoreError> {
        let space = KeySpace::Tenant(tenant.to_owned());
        self.change(&space, None, Op::SetFence(command::SetFence { epoch }))
            .await
            .map(|_| ())
    }

    async fn set_limits(&self, tenant: &str, limits: StoreLimits) -> Result<(), StoreError> {
        let space = KeySpace::Tenant(tenant.to_owned());
        let op = Op::SetLimits(limits_command(limits));
        self.machine().check_level(&op)?;
        self.change(&space, None, op).await.map(|_| ())
    }

    async fn restore(&self, tenant: &str, step: command::RestoreSpace) -> Result<i64, StoreError> {
        let space = KeySpace::Tenant(tenant.to_owned());
        let op = Op::RestoreSpace(step);
        self.machine().check_level(&op)?;
        revision_of(&self.change(&space, None, op).await?)
    }

    async fn drop_space(&self, tenant: &str) -> Result<(), StoreError> {
        let space = KeySpace::Tenant(tenant.to_owned());
        self.change(&space, None, Op::DropSpace(command::DropSpace {}))
            .await
            .map(|_| ())
    }

    async fn set_alarm(&self, access: &Access, member: u64, kind: i32, raised: bool) -> Result<(), StoreError> {
        let change = command::SetAlarm { member, kind, raised };
        self.change_as(access, Op::SetAlarm(change)).await.map(|_| ())
    }

    fn machine(&self) -> &Arc<Machine> {
        &self.group.machine
    }

    async fn hash(&self, access: &Access) -> Result<SpaceHash, StoreError> {
        self.check(&access.space)?;
        let (group, access) = (Arc::clone(&self.group), access.clone());
        let work = move || group.machine.hash(&access);
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or(Err(StoreError::Stopped))
    }

    fn revision(&self) -> i64 {
        self.machine().revision()
    }

    fn has_leader(&self) -> bool {
        self.group.has_leader()
    }

    fn header(&self) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.group.cluster_id(),
            member_id: self.group.me,
            revision: self.revision(),
            raft_term: self.group.leadership.borrow().term,
        }
    }

    fn status(&self) -> StoreStatus {
        self.group.status(self.writer.engine().size())
    }

    fn families(&self) -> Vec<Family> {
        let mut families = self.own_families();
        families.extend(self.writer.meters().families());
        families
    }
}
