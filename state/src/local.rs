//! The store in one process: no replication, every answer durable.
//!
//! Writes queue up, are decided in order as one batch, made durable by the log writer with one sync, then published and
//! answered. While a batch is on its way to the disk the next one is decided already.

use crate::engine::{EngineError, LogWriter};
use crate::error::StoreError;
use crate::keys::{GroupId, KeySpace};
use crate::machine::level::{self, LEVEL};
use crate::machine::limits::limits_command;
use crate::machine::{self, Machine, Staged};
use crate::pb::command::{self, command::Op, outcome::Answer};
use crate::pb::{self, Command, Outcome};
use crate::store::{Access, Role, SpaceHash, Store, StoreStatus, WatchRequest};
use crate::watch::Watch;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use hanse_api::resources::StoreLimits;
use hanse_runtime::clock::SharedClock;
use hanse_runtime::meter::Family;
use hanse_runtime::rng::SharedRng;
use hanse_runtime::shutdown::{Phase, Shutdown};
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Writes that may wait; a further one waits for room.
const QUEUE: usize = 4096;
/// Writes that are decided as one batch.
const BATCH: usize = 1024;
/// Batches on their way to the disk.
const IN_FLIGHT: usize = 3;
/// How often due leases and compacted versions are looked for.
const ROUND: Duration = Duration::from_millis(500);
/// Rounds after which idle watches hear how far the store is.
const ROUNDS_PER_TICK: u32 = 10;
/// Keys looked at in one go while compacted versions are removed.
const PRUNE_KEYS: usize = 2048;
/// Leases that one command expires.
const EXPIRE: u32 = 256;
/// Lease ids that are tried when the store chooses one.
const ID_TRIES: usize = 8;

struct Proposal {
    command: Command,
    answer: oneshot::Sender<Result<Outcome, StoreError>>,
}

/// What the store needs of its surroundings.
#[derive(Clone)]
pub struct LocalParts {
    /// Makes writes durable; its engine holds the state.
    pub writer: LogWriter,
    /// Time.
    pub clock: SharedClock,
    /// Ids of leases.
    pub rng: SharedRng,
    /// Runs the store's tasks.
    pub supervisor: Supervisor,
}

impl std::fmt::Debug for LocalParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalParts")
            .field("writer", &self.writer)
            .finish_non_exhaustive()
    }
}

/// A store of one group in one process.
#[derive(Debug)]
pub struct LocalStore {
    machine: Arc<Machine>,
    queue: mpsc::Sender<Proposal>,
    parts: LocalParts,
}

impl LocalStore {
    /// Opens the group's state in the writer's engine and starts the tasks that keep it.
    pub fn open(group: GroupId, parts: LocalParts) -> Result<Arc<Self>, StoreError> {
        let machine = Arc::new(Machine::open(group, parts.writer.engine().clone())?);
        let (queue, proposals) = mpsc::channel(QUEUE);
        let store = Arc::new(Self {
            machine: machine.clone(),
            queue,
            parts: parts.clone(),
        });
        let shutdown = parts.supervisor.shutdown_token();
        let committer = Committer {
            machine: machine.clone(),
            writer: parts.writer.clone(),
            in_flight: FuturesOrdered::new(),
        };
        let task = committer.run(proposals, shutdown.clone());
        parts
            .supervisor
            .spawn(TaskKind::Apply, format!("local store {group}"), async {
                Ok(task.await?)
            });
        let keeper = Keeper {
            machine,
            queue: store.queue.downgrade(),
            clock: parts.clock.clone(),
        };
        let task = keeper.run(shutdown);
        parts
            .supervisor
            .spawn(TaskKind::BestEffort, format!("keeper of local store {group}"), async {
                Ok(task.await?)
            });
        Ok(store)
    }

    async fn propose(&self, access: &Access, op: Op) -> Result<Answer, StoreError> {
        access.space.check()?;
        let at = self.parts.clock.wall().as_millis();
        propose(&self.queue, Machine::command(at, &access.space, access.epoch, op)).await
    }
}

/// Puts a command through the queue.
async fn propose(queue: &mpsc::Sender<Proposal>, command: Command) -> Result<Answer, StoreError> {
    let (answer, wait) = oneshot::channel();
    queue
        .send(Proposal { command, answer })
        .await
        .map_err(|_| StoreError::Stopped)?;
    match wait.await.map_err(|_| StoreError::Stopped)??.answer {
        Some(Answer::Refusal(refusal)) => Err(StoreError::from_refusal(refusal)),
        Some(answer) => Ok(answer),
        None => Err(unexpected()),
    }
}

fn unexpected() -> StoreError {
    StoreError::Corrupt("a command was answered in a form that does not belong to it".to_owned())
}

type Waiting = Vec<oneshot::Sender<Result<Outcome, StoreError>>>;

struct Written {
    staged: Staged,
    waiting: Waiting,
    result: Result<(), EngineError>,
}

struct Committer<F: Future<Output = Written> = futures::future::BoxFuture<'static, Written>> {
    machine: Arc<Machine>,
    writer: LogWriter,
    in_flight: FuturesOrdered<F>,
}

impl Committer {
    async fn run(mut self, mut proposals: mpsc::Receiver<Proposal>, shutdown: Shutdown) -> Result<(), StoreError> {
        let flush = shutdown.phase(Phase::Flush);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                Some(written) = self.in_flight.next() => self.publish(written)?,
                count = proposals.recv_many(&mut batch, BATCH), if self.in_flight.len() < IN_FLIGHT => {
                    if count == 0 {
                        break;
                    }
                    self.stage(std::mem::take(&mut batch)).await?;
                }
                () = flush.cancelled() => break,
            }
        }
        while let Some(written) = self.in_flight.next().await {
            self.publish(written)?;
        }
        Ok(())
    }

    async fn stage(&mut self, proposals: Vec<Proposal>) -> Result<(), StoreError> {
        let (commands, waiting): (Vec<_>, Waiting) = proposals.into_iter().map(|p| (p.command, p.answer)).unzip();
        let mut staged = match self.machine.stage(commands, None) {
            Ok(staged) => staged,
            Err(error) => {
                refuse(waiting, &error);
                return Err(error);
            }
        };
        let (done, wait) = oneshot::channel();
        let batch = std::mem::take(&mut staged.batch);
        let submitted = self.writer.submit(
            batch,
            Box::new(move |result| {
                // The committer went away with the process.
                done.send(result).ok();
            }),
        );
        submitted.await;
        self.in_flight.push_back(Box::pin(async move {
            let stopped = || EngineError::Stopped("the log writer has ended".to_owned());
            let result = wait.await.unwrap_or_else(|_| Err(stopped()));
            Written {
                staged,
                waiting,
                result,
            }
        }));
        Ok(())
    }

    fn publish(&self, written: Written) -> Result<(), StoreError> {
        if let Err(error) = written.result {
            let error = StoreError::from(error);
            self.machine.fail(error.clone());
            refuse(written.waiting, &error);
            return Err(error);
        }
        let outcomes = self.machine.publish(written.staged);
        for (waiting, outcome) in written.waiting.into_iter().zip(outcomes) {
            // A caller that went away no longer wants the answer.
            waiting.send(Ok(outcome)).ok();
        }
        Ok(())
    }
}

fn refuse(waiting: Waiting, error: &StoreError) {
    for waiting in waiting {
        // A caller that went away no longer wants the answer.
        waiting.send(Err(error.clone())).ok();
    }
}

/// Expires leases, removes what was compacted, tells idle watches how far the store is.
struct Keeper {
    machine: Arc<Machine>,
    queue: mpsc::WeakSender<Proposal>,
    clock: SharedClock,
}

impl Keeper {
    async fn run(self, shutdown: Shutdown) -> Result<(), StoreError> {
        let drain = shutdown.phase(Phase::Drain);
        self.extend().await?;
        for round in 1u32.. {
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                () = self.clock.sleep(ROUND) => {}
            }
            if !self.expire().await? {
                return Ok(());
            }
            self.prune().await?;
            if round.is_multiple_of(ROUNDS_PER_TICK) {
                self.machine.tick();
            }
        }
        self.machine.close_watches();
        Ok(())
    }

    /// Nobody could keep a lease alive while the store was down. And there is nobody else whose program could be too old.
    async fn extend(&self) -> Result<(), StoreError> {
        if self.machine.next_deadline().is_some() {
            self.propose(Op::ExtendLeases(command::ExtendLeases {})).await?;
        }
        if self.machine.level() < LEVEL {
            self.propose(level::raise()).await?;
        }
        Ok(())
    }

    async fn propose(&self, op: Op) -> Result<Option<Answer>, StoreError> {
        let Some(queue) = self.queue.upgrade() else {
            return Ok(None);
        };
        let at = self.clock.wall().as_millis();
        Ok(Some(
            propose(&queue, Machine::command(at, &KeySpace::Registry, None, op)).await?,
        ))
    }

    /// False: the store is gone.
    async fn expire(&self) -> Result<bool, StoreError> {
        while self
            .machine
            .next_deadline()
            .is_some_and(|deadline| deadline <= self.clock.wall().as_millis())
        {
            let op = Op::ExpireLeases(command::ExpireLeases { limit: EXPIRE });
            match self.propose(op).await? {
                Some(Answer::Expired(expired)) if expired.leases > 0 => {}
                Some(_) => return Ok(true),
                None => return Ok(false),
            }
        }
        Ok(self.queue.strong_count() > 0)
    }

    async fn prune(&self) -> Result<(), StoreError> {
        loop {
            let machine = self.machine.clone();
            let work = tokio::task::spawn_blocking(move || machine.prune(PRUNE_KEYS));
            if !work.await.unwrap_or(Err(StoreError::Stopped))? {
                return Ok(());
            }
        }
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn range(&self, access: &Access, req: pb::RangeRequest) -> Result<pb::RangeResponse, StoreError> {
        // Every write is published before it is answered, so the published state is linearizable.
        self.machine.range(access, req).await
    }

    async fn txn(&self, access: &Access, req: pb::TxnRequest) -> Result<pb::TxnResponse, StoreError> {
        machine::check_txn(&req)?;
        if machine::is_read_only(&req) {
            return self.machine.read_txn(access, &req);
        }
        match self.propose(access, Op::Txn(req)).await? {
            Answer::Txn(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    async fn txn_audited(&self, req: pb::TxnRequest, events: Vec<String>) -> Result<pb::TxnResponse, StoreError> {
        let audited = machine::check_audited(req, events)?;
        match self.propose(&Access::registry(), Op::AuditedTxn(audited)).await? {
            Answer::Txn(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    async fn compact(&self, access: &Access, revision: i64) -> Result<i64, StoreError> {
        match self.propose(access, Op::Compact(command::Compact { revision })).await? {
            Answer::Revision(revision) => Ok(revision),
            _ => Err(unexpected()),
        }
    }

    async fn lease_grant(
        &self,
        access: &Access,
        id: i64,
        ttl_seconds: i64,
    ) -> Result<pb::LeaseGrantResponse, StoreError> {
        for _ in 0..ID_TRIES {
            let chosen = if id == 0 { random_id(&self.parts.rng) } else { id };
            let op = Op::LeaseGrant(command::LeaseGrant {
                id: chosen,
                ttl_seconds,
            });
            match self.propose(access, op).await {
                Ok(Answer::LeaseGrant(answer)) => return Ok(answer),
                Ok(_) => return Err(unexpected()),
                Err(StoreError::LeaseExists) if id == 0 => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::LeaseExists)
    }

    async fn lease_revoke(&self, access: &Access, id: i64) -> Result<i64, StoreError> {
        match self
            .propose(access, Op::LeaseRevoke(command::LeaseRevoke { id }))
            .await?
        {
            Answer::Revision(revision) => Ok(revision),
            _ => Err(unexpected()),
        }
    }

    async fn lease_keep_alive(&self, access: &Access, id: i64) -> Result<pb::LeaseKeepAliveResponse, StoreError> {
        match self
            .propose(access, Op::LeaseKeepAlive(command::LeaseKeepAlive { id }))
            .await?
        {
            Answer::LeaseKeepAlive(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    async fn lease_time_to_live(
        &self,
        access: &Access,
        id: i64,
        keys: bool,
    ) -> Result<pb::LeaseTimeToLiveResponse, StoreError> {
        self.machine
            .lease_time_to_live(access, id, keys, self.parts.clock.wall().as_millis())
    }

    async fn leases(&self, access: &Access) -> Result<Vec<i64>, StoreError> {
        self.machine.leases(access)
    }

    async fn watch(&self, access: &Access, req: WatchRequest) -> Result<Watch, StoreError> {
        self.machine.watch(access, req)
    }

    async fn set_fence(&self, tenant: &str, epoch: u64) -> Result<(), StoreError> {
        self.propose(&Access::tenant(tenant), Op::SetFence(command::SetFence { epoch }))
            .await
            .map(|_| ())
    }

    async fn set_limits(&self, tenant: &str, limits: StoreLimits) -> Result<(), StoreError> {
        let op = Op::SetLimits(limits_command(limits));
        self.machine.check_level(&op)?;
        self.propose(&Access::tenant(tenant), op).await.map(|_| ())
    }

    async fn restore(&self, tenant: &str, step: command::RestoreSpace) -> Result<i64, StoreError> {
        let op = Op::RestoreSpace(step);
        self.machine.check_level(&op)?;
        match self.propose(&Access::tenant(tenant), op).await? {
            Answer::Revision(revision) => Ok(revision),
            _ => Err(unexpected()),
        }
    }

    async fn drop_space(&self, tenant: &str) -> Result<(), StoreError> {
        self.propose(&Access::tenant(tenant), Op::DropSpace(command::DropSpace {}))
            .await
            .map(|_| ())
    }

    async fn set_alarm(&self, access: &Access, member: u64, kind: i32, raised: bool) -> Result<(), StoreError> {
        let change = command::SetAlarm { member, kind, raised };
        self.propose(access, Op::SetAlarm(change)).await.map(|_| ())
    }

    fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    async fn hash(&self, access: &Access) -> Result<SpaceHash, StoreError> {
        let (machine, access) = (self.machine.clone(), access.clone());
        let work = tokio::task::spawn_blocking(move || machine.hash(&access));
        work.await.unwrap_or(Err(StoreError::Stopped))
    }

    fn revision(&self) -> i64 {
        self.machine.revision()
    }

    fn has_leader(&self) -> bool {
        true
    }

    fn header(&self) -> pb::ResponseHeader {
        let group = u64::from(self.machine.group().0) + 1;
        pb::ResponseHeader {
            cluster_id: group,
            member_id: 1,
            revision: self.revision(),
            raft_term: 1,
        }
    }

    fn families(&self) -> Vec<Family> {
        let mut families = self.machine.families();
        families.extend(self.parts.writer.meters().families());
        // Nothing is proposed that is not decided at once.
        let none = "No log: what is decided is applied.";
        let revision = self.machine.revision().unsigned_abs();
        families.push(Family::gauge("etcd_server_proposals_committed_total", none, revision));
        families
    }

    fn status(&self) -> StoreStatus {
        let pb::ResponseHeader {
            cluster_id,
            member_id,
            revision,
            raft_term,
        } = self.header();
        let applied = revision.cast_unsigned();
        StoreStatus {
            cluster_id,
            member_id,
            role: Role::Leader,
            term: raft_term,
            leader: Some(member_id),
            last_index: applied,
            applied_index: applied,
            revision,
            db_size: self.parts.writer.engine().size(),
        }
    }
}

/// A positive lease id, as etcd's are.
pub fn random_id(rng: &SharedRng) -> i64 {
    let mut bytes = [0; 8];
    rng.fill(&mut bytes);
    (i64::from_be_bytes(bytes) & i64::MAX).max(1)
}
