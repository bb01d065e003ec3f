//! Watchers of the same things while writes come at a steady rate: from the moment a write is sent until each watcher has it.

use super::figures::{Figures, Window};
use super::usage::during;
use anyhow::{Context as _, Result, bail, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// For all watches to be on, and for a watcher between two events.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at whether all watches are on.
const PAUSE: Duration = Duration::from_millis(5);

/// What one watcher saw of one write: when it was sent, counted from the start of the run, and how long it took.
#[derive(Debug)]
struct Seen {
    sent_after: Duration,
    took: Duration,
}

/// The record of one watcher.
#[derive(Debug)]
pub struct Watcher {
    origin: Instant,
    on: Arc<AtomicUsize>,
    expected: usize,
    seen: Vec<Seen>,
}

impl Watcher {
    /// The server answered: from now on it tells of every write.
    pub fn is_on(&self) {
        self.on.fetch_add(1, Ordering::Relaxed);
    }

    /// It was told of the write that carries `stamp`.
    pub fn saw(&mut self, stamp: u64) {
        let sent_after = Duration::from_nanos(stamp);
        let took = self.origin.elapsed().saturating_sub(sent_after);
        self.seen.push(Seen { sent_after, took });
    }

    /// Whether it was told of all writes.
    pub fn is_done(&self) -> bool {
        self.seen.len() >= self.expected
    }

    /// How many of how many writes it was told of, for failures.
    pub fn progress(&self) -> String {
        format!("{} of {} events came", self.seen.len(), self.expected)
    }
}

/// A load of watchers.
#[derive(Clone, Copy, Debug)]
pub struct FanOut {
    /// How many.
    pub watchers: usize,
    /// Writes per second.
    pub rate: u32,
    /// How long.
    pub window: Window,
}

impl FanOut {
    /// Runs it. `follow` is one watcher, which ends when it is done; `put` one write (its number, its stamp, which what is
    /// written must carry). Writes do not wait for each other's answers.
    pub async fn run<F, P>(
        &self,
        servers: &[u32],
        follow: impl Fn(usize, Watcher) -> F,
        put: impl Fn(usize, u64) -> P,
    ) -> Result<Figures>
    where
        F: Future<Output = Result<Watcher>> + Send + 'static,
        P: Future<Output = Result<()>> + Send + 'static,
    {
        let Self { watchers, rate, window } = *self;
        let (origin, on) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
        let seconds = (window.warm_up + window.counted).as_secs_f64();
        let expected = ((seconds * f64::from(rate)) as usize).max(1);
        let mut tasks = JoinSet::new();
        for n in 0..watchers {
            let watcher = Watcher {
                origin,
                on: Arc::clone(&on),
                expected,
                seen: Vec::with_capacity(expected),
            };
            tasks.spawn(follow(n, watcher));
        }
        let begun = Instant::now();
        while on.load(Ordering::Relaxed) < watchers {
            if let Some(ended) = tasks.try_join_next() {
                ended.context("a watcher failed")??;
                bail!("a watcher ended before the first write");
            }
            ensure!(begun.elapsed() < PATIENCE, "not all watches are on within {PATIENCE:?}");
            tokio::time::sleep(PAUSE).await;
        }
        let from = origin.elapsed() + window.warm_up;
        let (times, used) = during(servers, async {
            write(origin, rate, expected, put).await?;
            let mut times = Vec::new();
            while let Some(watcher) = tasks.join_next().await {
                let seen = watcher.context("a watcher failed")??.seen;
                times.extend(seen.iter().filter(|s| s.sent_after >= from).map(|s| s.took));
            }
            Ok::<_, anyhow::Error>(times)
        })
        .await;
        Ok(Figures::of(times?, window.counted, 0, used))
    }
}

/// `count` writes at `rate`. An answer is not waited for before the next one.
async fn write<P>(origin: Instant, rate: u32, count: usize, put: impl Fn(usize, u64) -> P) -> Result<()>
where
    P: Future<Output = Result<()>> + Send + 'static,
{
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let mut puts = JoinSet::new();
    for n in 0..count {
        ticks.tick().await;
        puts.spawn(put(n, u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX)));
        while let Some(done) = puts.try_join_next() {
            done.context("a write")?
                .context("a write failed, so events are missing")?;
        }
    }
    while let Some(done) = puts.join_next().await {
        done.context("a write")?
            .context("a write failed, so events are missing")?;
    }
    Ok(())
}
