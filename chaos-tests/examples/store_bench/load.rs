//! Closed loops: each client asks, waits for the answer, asks again.

use crate::cluster::Cluster;
use anyhow::{Context as _, Result, ensure};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

/// Clients share connections beyond this many, as the replicas of an API server do.
const CONNECTIONS: usize = 32;

/// How long a load runs, and how long before it counts.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub warm_up: Duration,
    pub counted: Duration,
}

/// What one run of a load gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Answers per second; of a watch, events delivered.
    pub per_second: f64,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    /// Requests that failed.
    pub errors: u64,
    /// Processor time of the servers per answer, microseconds.
    pub server_micros: f64,
}

impl Figures {
    /// Of all `times`, taken in `window`.
    pub fn of(mut times: Vec<Duration>, window: Duration, errors: u64, cpu: Duration) -> Self {
        times.sort_unstable();
        let millis = |part: f64| {
            let place = (times.len().saturating_sub(1) as f64 * part).round() as usize;
            times.get(place).map_or(f64::NAN, |t| t.as_secs_f64() * 1000.0)
        };
        Self {
            per_second: times.len() as f64 / window.as_secs_f64(),
            p50: millis(0.5),
            p99: millis(0.99),
            max: millis(1.0),
            errors,
            server_micros: cpu.as_secs_f64() * 1e6 / times.len().max(1) as f64,
        }
    }
}

const WARMING: u8 = 0;
const COUNTING: u8 = 1;
const OVER: u8 = 2;

/// One client: its number, its connection, its randomness.
pub struct Client {
    pub number: usize,
    pub channel: Channel,
    pub rng: SmallRng,
}

/// Runs `clients` of them, spread over the members. `ask` is one request.
pub async fn closed_loop<F>(cluster: &Cluster, clients: usize, window: Window, ask: F) -> Result<Figures>
where
    F: AsyncAsk,
{
    let channels: Vec<Channel> = (0..clients.min(CONNECTIONS))
        .map(|n| cluster.any_channel(n))
        .collect::<Result<_>>()?;
    let phase = Arc::new(AtomicU8::new(WARMING));
    let ask = Arc::new(ask);
    let workers: Vec<_> = (0..clients)
        .map(|number| {
            let client = Client {
                number,
                channel: channels[number % channels.len()].clone(),
                rng: SmallRng::seed_from_u64(number as u64 + 1),
            };
            tokio::spawn(work(client, Arc::clone(&phase), Arc::clone(&ask)))
        })
        .collect();
    tokio::time::sleep(window.warm_up).await;
    let (cpu, begun) = (cluster.cpu(), Instant::now());
    phase.store(COUNTING, Ordering::Relaxed);
    tokio::time::sleep(window.counted).await;
    phase.store(OVER, Ordering::Relaxed);
    let (took, cpu) = (begun.elapsed(), cluster.cpu().saturating_sub(cpu));
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
    Ok(Figures::of(times, took, errors, cpu))
}

/// One request of a load; an error is counted and the client goes on.
pub trait AsyncAsk: Send + Sync + 'static {
    fn ask(&self, client: &mut Client) -> impl Future<Output = Result<(), tonic::Status>> + Send;
}

async fn work<F: AsyncAsk>(
    mut client: Client,
    phase: Arc<AtomicU8>,
    ask: Arc<F>,
) -> (Vec<Duration>, u64, Option<String>) {
    /// So that a server that refuses at once does not get all the processor.
    const AFTER_AN_ERROR: Duration = Duration::from_millis(5);
    let (mut times, mut errors, mut last) = (Vec::new(), 0, None);
    loop {
        let begun = Instant::now();
        let outcome = ask.ask(&mut client).await;
        match (phase.load(Ordering::Relaxed), outcome) {
            (OVER, _) => return (times, errors, last),
            (COUNTING, Ok(())) => times.push(begun.elapsed()),
            (_, Ok(())) => {}
            (_, Err(status)) => {
                errors += 1;
                last = Some(status.to_string());
                tokio::time::sleep(AFTER_AN_ERROR).await;
            }
        }
    }
}
