//! Runs one controller: queueing, one run per key, bounded concurrency, jittered backoff, periodic resync, giving up.
//!
//! One task per controller and scope. Runs are futures inside that task, so ending the driver ends its work: on
//! shutdown it lets the steps in flight finish first; when the lease is lost it need not, as the store refuses what
//! is late.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use hanse_api::Timestamp;
use hanse_runtime::backoff::Backoff;
use hanse_runtime::clock::timeout;
use hanse_runtime::queue::{Queue, STORM};
use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::error::{StepError, chain};
use crate::feed::SharedView;
use crate::reconciler::{Plan, Progress, Reconciler, StepCtx};

/// Every key is looked at again this often, whatever happened.
pub const RESYNC: Duration = Duration::from_secs(300);
/// Failures in a row after which a condition says so. The key is still tried, at the slowest pace.
pub const GIVE_UP_AFTER: u32 = 8;
/// Shortest wait after a failure.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest wait after a failure.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How long a run waits for the view to show its own commit. Longer means that the watch is broken; then a plan on an
/// old view is refused by its preconditions and made again.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(2);
/// How long steps in flight may take at shutdown.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at whether they still can end.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// How a driver ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Cancelled,
    /// The lease is another's now.
    Fenced,
}

/// What a driver is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriverStatus {
    /// Keys that are due now.
    pub due: usize,
    /// Keys that wait for a later time.
    pub waiting: usize,
    /// Keys that run.
    pub running: usize,
    /// Keys whose last run failed.
    pub failing: usize,
    /// Plans made.
    pub plans: u64,
    /// Steps done.
    pub steps: u64,
    /// Last failure, for people.
    pub last_error: Option<String>,
}

/// A status that a driver writes and others read.
pub type SharedStatus = Arc<Mutex<DriverStatus>>;

enum Outcome {
    Settled(Option<Timestamp>),
    Stepped,
    Failed(StepError),
    /// Work beside the queue: says nothing about the key.
    Aside,
}

type Run<K> = BoxFuture<'static, (K, Outcome)>;

/// Runs one controller.
pub struct Driver<R: Reconciler> {
    reconciler: Arc<R>,
    view: Arc<SharedView>,
    ctx: StepCtx,
    status: SharedStatus,
    queue: Queue<R::Key>,
    backoffs: BTreeMap<R::Key, Backoff>,
    resync_at: Duration,
}

impl<R: Reconciler> Driver<R> {
    /// A driver of `reconciler` that writes by the fence in `ctx`.
    pub fn new(reconciler: R, view: Arc<SharedView>, ctx: StepCtx, status: SharedStatus) -> Self {
        Self {
            reconciler: Arc::new(reconciler),
            view,
            ctx,
            status,
            queue: Queue::new(R::CONCURRENCY),
            backoffs: BTreeMap::new(),
            resync_at: Duration::ZERO,
        }
    }

    /// Works until `cancel`, or until the lease is lost.
    pub async fn run(mut self, cancel: CancellationToken) -> Ended {
        let mut changes = self.view.subscribe();
        let mut runs: FuturesUnordered<Run<R::Key>> = FuturesUnordered::new();
        loop {
            self.start_due(&mut runs);
            self.publish();
            let wait = self.wait();
            tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    self.drain(runs).await;
                    return Ended::Cancelled;
                }
                Some((key, outcome)) = runs.next(), if !runs.is_empty() => {
                    if self.finish(&key, outcome, &mut runs) == Some(Ended::Fenced) {
                        return Ended::Fenced;
                    }
                }
                change = changes.recv() => match change {
                    Ok(change) => {
                        let keys = self.view.read(|view| self.reconciler.wakes_on(view, &change));
                        self.wake(keys);
                    }
                    // Too many changes at once to hear each: look at everything.
                    Err(RecvError::Lagged(_)) => self.resync_at = Duration::ZERO,
                    Err(RecvError::Closed) => return Ended::Cancelled,
                },
                () = self.ctx.clock.sleep(wait) => {}
            }
        }
    }

    fn start_due(&mut self, runs: &mut FuturesUnordered<Run<R::Key>>) {
        let now = self.ctx.clock.mono();
        if !self.view.is_live() {
            return;
        }
        if now >= self.resync_at {
            let keys = self.view.read(|view| self.reconciler.keys(view));
            self.wake(keys);
            // Spread, so that the controllers of all servers do not resync in step.
            self.resync_at = now + RESYNC.mul_f64(0.8 + 0.4 * self.ctx.rng.unit());
        }
        while let Some(key) = self.queue.take(now) {
            let (reconciler, view, ctx) = (Arc::clone(&self.reconciler), Arc::clone(&self.view), self.ctx.clone());
            runs.push(Box::pin(async move {
                let now = ctx.clock.wall();
                let plan = view.read(|view| reconciler.plan(view, &key, now));
                let outcome = execute(reconciler.as_ref(), &view, &ctx, &key, plan).await;
                (key, outcome)
            }));
        }
    }

    fn wake(&mut self, keys: Vec<R::Key>) {
        let now = self.ctx.clock.mono();
        for key in keys {
            self.queue.wake(key, now);
        }
    }

    fn wait(&self) -> Duration {
        let now = self.ctx.clock.mono();
        if !self.view.is_live() {
            return BACKOFF_MIN;
        }
        let next = self
            .queue
            .next_due()
            .map_or(self.resync_at, |due| due.min(self.resync_at));
        next.saturating_sub(now)
    }

    fn finish(&mut self, key: &R::Key, outcome: Outcome, runs: &mut FuturesUnordered<Run<R::Key>>) -> Option<Ended> {
        let now = self.ctx.clock.mono();
        self.status.lock().plans += 1;
        match outcome {
            Outcome::Settled(wake_at) => {
                self.backoffs.remove(key);
                let next = wake_at.map(|at| now + at.since(self.ctx.clock.wall()));
                self.queue.settled(key, next, now);
            }
            Outcome::Stepped => {
                self.status.lock().steps += 1;
                let storm = self.queue.unsettled(key) + 1 >= STORM;
                let next = if storm { now + self.backoff(key) } else { now };
                if storm {
                    tracing::warn!(controller = R::NAME, %key, "a plan does not settle; it is slowed down");
                }
                self.queue.stepped(key, next, now);
            }
            Outcome::Failed(StepError::Fenced(scope)) => {
                tracing::warn!(controller = R::NAME, %scope, "the lease is another server's; this controller stops");
                return Some(Ended::Fenced);
            }
            Outcome::Failed(error) => self.fail(key, error, now, runs),
            Outcome::Aside => {}
        }
        None
    }

    fn fail(&mut self, key: &R::Key, error: StepError, now: Duration, runs: &mut FuturesUnordered<Run<R::Key>>) {
        let next = now + self.backoff(key);
        let (overtaken, hopeless) = (matches!(error, StepError::Conflict(_)), !error.retryable());
        let text = chain(error);
        self.queue.failed(key, next, now);
        let failures = self.queue.failures(key);
        if overtaken {
            tracing::debug!(controller = R::NAME, %key, failures, error = text, "a plan was overtaken");
        } else {
            tracing::warn!(controller = R::NAME, %key, failures, error = text, "a step failed");
        }
        self.status.lock().last_error = Some(format!("{key}: {text}"));
        if failures == if hopeless { 1 } else { GIVE_UP_AFTER } {
            tracing::error!(controller = R::NAME, %key, error = text, "gave up; tried again at a slow pace");
            runs.push(self.give_up(key.clone(), text));
        }
    }

    /// Says on the object that its controller gave up. Runs beside the queue: the key itself waits for its next try.
    fn give_up(&self, key: R::Key, failure: String) -> Run<R::Key> {
        let (reconciler, view, ctx) = (Arc::clone(&self.reconciler), Arc::clone(&self.view), self.ctx.clone());
        Box::pin(async move {
            let now = ctx.clock.wall();
            let plan = view.read(|view| reconciler.gave_up(view, &key, now, &failure));
            let outcome = match execute(reconciler.as_ref(), &view, &ctx, &key, plan).await {
                Outcome::Failed(fenced @ StepError::Fenced(_)) => Outcome::Failed(fenced),
                Outcome::Failed(error) => {
                    tracing::warn!(controller = R::NAME, %key, %error, "the condition that says so was not written");
                    Outcome::Aside
                }
                Outcome::Settled(_) | Outcome::Stepped | Outcome::Aside => Outcome::Aside,
            };
            (key, outcome)
        })
    }

    fn backoff(&mut self, key: &R::Key) -> Duration {
        let backoff = self
            .backoffs
            .entry(key.clone())
            .or_insert(Backoff::new(BACKOFF_MIN, BACKOFF_MAX));
        backoff.next(self.ctx.rng.as_ref())
    }

    fn publish(&self) {
        let now = self.ctx.clock.mono();
        let mut status = self.status.lock();
        status.due = self.queue.due(now) + usize::from(now >= self.resync_at);
        status.waiting = self.queue.waiting();
        status.running = self.queue.running();
        status.failing = self.queue.failing();
    }

    /// Lets the steps in flight end. Without a leader they cannot: what they wait for is the council's answer, which the last
    /// servers of a system that is being stopped would wait for in vain.
    async fn drain(&self, runs: FuturesUnordered<Run<R::Key>>) {
        let clock = self.ctx.clock.as_ref();
        let leaderless = async {
            while self.ctx.objects.store().has_leader() {
                clock.sleep(DRAIN_LOOK).await;
            }
        };
        let drained = tokio::select! {
            biased;
            drained = timeout(clock, DRAIN_LIMIT, runs.collect::<Vec<_>>()) => drained.is_ok(),
            () = leaderless => false,
        };
        if !drained {
            tracing::warn!(
                controller = R::NAME,
                "steps in flight did not end in time and were left behind"
            );
        }
    }
}

async fn execute<R: Reconciler>(
    reconciler: &R,
    view: &SharedView,
    ctx: &StepCtx,
    key: &R::Key,
    plan: Plan<R::Step>,
) -> Outcome {
    if plan.steps.is_empty() {
        return Outcome::Settled(plan.wake_at);
    }
    for planned in &plan.steps {
        tracing::info!(controller = R::NAME, scope = %ctx.fence.scope, %key, reason = planned.reason, "step");
        match reconciler.step(ctx, &planned.step).await {
            Ok(Progress::Done) => {}
            Ok(Progress::Committed(commit)) => {
                let seen = timeout(ctx.clock.as_ref(), CATCH_UP_LIMIT, view.seen(&commit)).await;
                if seen.is_err() {
                    tracing::warn!(controller = R::NAME, %key, revision = commit.revision, "the view is behind");
                }
            }
            Err(error) => return Outcome::Failed(error),
        }
    }
    Outcome::Stepped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconciler::Fence;
    use crate::scope::Scope;
    use crate::testing::{START, objects};
    use crate::view::{Change, View};
    use async_trait::async_trait;
    use hanse_runtime::clock::testing::ManualClock;
    use hanse_runtime::rng::SeededRng;
    use hanse_runtime::seal::Sealer;

    #[derive(Default)]
    struct Log {
        steps: Vec<(Duration, String)>,
        at_once: usize,
        most_at_once: usize,
        done: std::collections::BTreeSet<String>,
        gave_up: Vec<String>,
    }

    /// Keys that begin with `bad` never succeed; the others need one step, once.
    struct Scripted {
        keys: Vec<String>,
        log: Arc<Mutex<Log>>,
    }

    #[async_trait]
    impl Reconciler for Scripted {
        type Key = String;
        type Step = String;
        const NAME: &'static str = "scripted";
        const CONCURRENCY: usize = 3;

        fn wakes_on(&self, _view: &View, change: &Change) -> Vec<String> {
            if let Change::Cluster(name) = change {
                vec![name.clone()]
            } else {
                Vec::new()
            }
        }

        fn keys(&self, _view: &View) -> Vec<String> {
            self.keys.clone()
        }

        fn plan(&self, _view: &View, key: &String, _now: Timestamp) -> Plan<String> {
            let done = self.log.lock().done.contains(key);
            if done {
                Plan::converged()
            } else {
                Plan::one("to do", key.clone())
            }
        }

        async fn step(&self, ctx: &StepCtx, step: &String) -> Result<Progress, StepError> {
            {
                let mut log = self.log.lock();
                log.steps.push((ctx.clock.mono(), step.clone()));
                log.at_once += 1;
                log.most_at_once = log.most_at_once.max(log.at_once);
            }
            ctx.clock.sleep(Duration::from_millis(10)).await;
            let mut log = self.log.lock();
            log.at_once -= 1;
            match step.as_str() {
                "fenced" => return Err(StepError::Fenced(ctx.fence.scope.clone())),
                bad if bad.starts_with("bad") => return Err(StepError::Timeout("trying")),
                _ => {}
            }
            log.done.insert(step.clone());
            Ok(Progress::Done)
        }

        fn gave_up(&self, _view: &View, key: &String, _now: Timestamp, _failure: &str) -> Plan<String> {
            self.log.lock().gave_up.push(key.clone());
            Plan::converged()
        }
    }

    struct Stage {
        clock: ManualClock,
        log: Arc<Mutex<Log>>,
        view: Arc<SharedView>,
        status: SharedStatus,
        cancel: CancellationToken,
    }

    fn stage(keys: &[&str]) -> (Stage, impl Future<Output = Ended>) {
        let (clock, log) = (ManualClock::new(START), Arc::new(Mutex::new(Log::default())));
        let rng = Arc::new(SeededRng::new(9));
        let objects = objects();
        let ctx = StepCtx {
            tenants: Arc::clone(objects.store()),
            objects,
            sealer: Sealer::from_key(&Sealer::generate(rng.as_ref())).unwrap(),
            fence: Fence {
                scope: Scope::Fleet,
                token: 1,
            },
            clock: Arc::new(clock.clone()),
            rng,
        };
        let view = Arc::new(SharedView::live(View::new(START)));
        let status = SharedStatus::default();
        let keys = keys.iter().map(|k| (*k).to_owned()).collect();
        let reconciler = Scripted {
            keys,
            log: Arc::clone(&log),
        };
        let driver = Driver::new(reconciler, Arc::clone(&view), ctx, Arc::clone(&status));
        let cancel = CancellationToken::new();
        let run = driver.run(cancel.clone());
        (
            Stage {
                clock,
                log,
                view,
                status,
                cancel,
            },
            run,
        )
    }

    impl Stage {
        /// Runs the driver to its end while time goes on in small steps.
        async fn drive(&self, run: impl Future<Output = Ended>) -> Ended {
            tokio::pin!(run);
            loop {
                tokio::select! {
                    biased;
                    ended = &mut run => return ended,
                    () = tokio::task::yield_now() => self.clock.advance(Duration::from_millis(5)),
                }
            }
        }

        /// Waits until `condition` holds.
        async fn until(&self, condition: impl Fn(&Log) -> bool) {
            for _ in 0..200_000 {
                if condition(&self.log.lock()) {
                    return;
                }
                tokio::task::yield_now().await;
            }
            panic!("never happened; {:?}", self.status.lock());
        }
    }

    #[tokio::test]
    async fn every_key_runs_once_and_not_too_many_at_the_same_time() {
        let (stage, run) = stage(&["a", "b", "c", "d", "e", "f", "g"]);
        let watch = async {
            stage.until(|log| log.done.len() == 7).await;
            stage.cancel.cancel();
        };
        let (ended, ()) = tokio::join!(stage.drive(run), watch);
        assert_eq!(ended, Ended::Cancelled);
        let log = stage.log.lock();
        assert_eq!((log.steps.len(), log.most_at_once), (7, 3));
    }

    #[tokio::test]
    async fn a_failing_key_backs_off_is_given_up_once_and_still_tried() {
        let (stage, run) = stage(&["bad"]);
        let watch = async {
            stage.until(|log| log.steps.len() >= 12).await;
            stage.cancel.cancel();
        };
        let (_, ()) = tokio::join!(stage.drive(run), watch);
        let log = stage.log.lock();
        assert_eq!(log.gave_up, ["bad"]);
        let first = log.steps[1].0 - log.steps[0].0;
        let last = log.steps[11].0 - log.steps[10].0;
        assert!(
            first < Duration::from_millis(300) && last > Duration::from_secs(2),
            "{first:?} {last:?}"
        );
        assert!(
            stage
                .status
                .lock()
                .last_error
                .as_ref()
                .unwrap()
                .contains("bad: no answer in time")
        );
    }

    #[tokio::test]
    async fn changes_wake_their_key_and_a_lost_lease_ends_everything() {
        let (stage, run) = stage(&[]);
        let watch = async {
            // The change must come after the driver has begun to listen.
            stage
                .until(|_| stage.status.lock().waiting == 0 && stage.view.listeners() > 0)
                .await;
            stage.view.update(|_| vec![Change::Cluster("a".into())]);
            stage.until(|log| log.done.contains("a")).await;
            stage.view.update(|_| vec![Change::Cluster("fenced".into())]);
        };
        let (ended, ()) = tokio::join!(stage.drive(run), watch);
        assert_eq!(ended, Ended::Fenced);
    }
}
