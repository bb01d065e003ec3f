//! Closed loops: each client asks, waits for the answer, asks again.

use super::figures::{Figures, Window};
use super::usage::during;
use anyhow::{Context as _, Result, ensure};
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// For the first answer; a machine that has no time for it makes the run longer, not void.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at whether it came.
const PAUSE: Duration = Duration::from_millis(10);

const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

/// One request of a load by a client; an error is counted and the client goes on.
pub trait Ask<C>: Send + Sync + 'static {
    /// Why a request failed.
    type Error: Display + Send;

    /// Sends it and waits for the whole answer.
    fn ask(&self, client: &mut C) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Lets each of `clients` ask again and again. What `servers` (process numbers) use while it counts is in the figures.
pub async fn closed_loop<C, A>(servers: &[u32], clients: Vec<C>, window: Window, ask: A) -> Result<Figures>
where
    C: Send + 'static,
    A: Ask<C>,
{
    let loads = Arc::new(Shared {
        phase: AtomicU8::new(WARMING),
        outcome: AtomicBool::new(false),
        ask,
    });
    let workers: Vec<_> = clients
        .into_iter()
        .map(|client| tokio::spawn(work(client, Arc::clone(&loads))))
        .collect();
    tokio::time::sleep(window.warm_up).await;
    let begun = Instant::now();
    loads.phase.store(COUNTING, Ordering::Relaxed);
    let counted = async {
        tokio::time::sleep(window.counted).await;
        while !loads.outcome.load(Ordering::Relaxed) && begun.elapsed() < PATIENCE {
            tokio::time::sleep(PAUSE).await;
        }
    };
    let ((), used) = during(servers, counted).await;
    loads.phase.store(OVER, Ordering::Relaxed);
    let took = begun.elapsed();
    let (mut times, mut errors, mut why) = (Vec::new(), 0, None);
    for worker in workers {
        let (mine, failed, last) = worker.await.context("a client of the load failed")?;
        times.extend(mine);
        errors += failed;
        why = why.or(last);
    }
    ensure!(!times.is_empty(), "no request was answered: {why:?}");
    if let Some(why) = why {
        eprintln!("    {errors} requests failed, one with: {why}");
    }
    Ok(Figures::of(times, took, errors, used))
}

/// What the clients of a load have in common.
struct Shared<A> {
    phase: AtomicU8,
    /// Whether any request ended while it counted.
    outcome: AtomicBool,
    ask: A,
}

async fn work<C, A: Ask<C>>(mut client: C, shared: Arc<Shared<A>>) -> (Vec<Duration>, u64, Option<String>) {
    /// So that a server that refuses at once does not get all the processor.
    const AFTER_AN_ERROR: Duration = Duration::from_millis(5);
    let (mut times, mut errors, mut last) = (Vec::new(), 0, None);
    loop {
        let begun = Instant::now();
        let outcome = shared.ask.ask(&mut client).await;
        let phase = shared.phase.load(Ordering::Relaxed);
        match (phase, outcome) {
            (OVER, _) => return (times, errors, last),
            (COUNTING, Ok(())) => times.push(begun.elapsed()),
            (_, Ok(())) => {}
            (_, Err(error)) => {
                errors += 1;
                last = Some(error.to_string());
                tokio::time::sleep(AFTER_AN_ERROR).await;
            }
        }
        if phase == COUNTING {
            shared.outcome.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers after a time, or fails.
    struct Slow(Result<Duration, &'static str>);

    impl Ask<usize> for Slow {
        type Error = &'static str;

        async fn ask(&self, asked: &mut usize) -> Result<(), &'static str> {
            *asked += 1;
            tokio::time::sleep(self.0?).await;
            Ok(())
        }
    }

    fn window() -> Window {
        Window {
            warm_up: Duration::from_millis(50),
            counted: Duration::from_millis(100),
        }
    }

    #[tokio::test]
    async fn an_answer_that_takes_longer_than_the_window_is_waited_for() {
        let slow = Slow(Ok(Duration::from_millis(400)));
        let figures = closed_loop(&[], vec![0, 0], window(), slow).await.unwrap();
        assert!(figures.per_second > 0.0 && figures.errors == 0, "{figures:?}");
    }

    #[tokio::test]
    async fn without_a_single_answer_there_are_no_figures() {
        let refused = closed_loop(&[], vec![0], window(), Slow(Err("no"))).await.unwrap_err();
        assert!(
            refused.to_string().contains("no request was answered: Some(\"no\")"),
            "{refused}"
        );
    }
}
