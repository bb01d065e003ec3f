//! Watchers of one prefix while writes come at a steady rate: from the moment a write is sent until each watcher has it.

use crate::cluster::Cluster;
use crate::load::{Figures, Window};
use crate::works::{VALUE, key, put};
use anyhow::{Context as _, Result, bail, ensure};
use hanse_state::pb;
use hanse_state::pb::kv_client::KvClient;
use hanse_state::pb::watch_client::WatchClient;
use hanse_state::pb::watch_request::RequestUnion;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::Channel;

const PREFIX: &str = "/watch/";
const KEYS: u64 = 10_000;
/// Watch streams share connections beyond this many.
const CONNECTIONS: usize = 32;
/// For all watches to be created, and after the last write for all events to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// What one watcher saw: when each event was sent, counted from the start of the run, and how long it took.
struct Seen {
    sent_after: Duration,
    took: Duration,
}

/// Runs it.
pub async fn run(cluster: &Cluster, watchers: usize, rate: u32, window: Window) -> Result<Figures> {
    let channels: Vec<Channel> = (0..watchers.min(CONNECTIONS))
        .map(|n| cluster.any_channel(n))
        .collect::<Result<_>>()?;
    let (origin, created) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let expected = (window.warm_up + window.counted).as_secs_f64() * f64::from(rate);
    let expected = expected as usize;
    let mut tasks = JoinSet::new();
    for n in 0..watchers {
        let watch = follow(
            channels[n % channels.len()].clone(),
            origin,
            Arc::clone(&created),
            expected,
        );
        tasks.spawn(watch);
    }
    let begun = Instant::now();
    while created.load(Ordering::Relaxed) < watchers {
        if let Some(ended) = tasks.try_join_next() {
            ended.context("a watcher failed")??;
            bail!("a watcher ended before the first write");
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "not all watches are created within {PATIENCE:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let from = origin.elapsed() + window.warm_up;
    let cpu = cluster.cpu();
    write(cluster, origin, rate, expected).await?;
    let mut times = Vec::new();
    while let Some(seen) = tasks.join_next().await {
        let seen = seen.context("a watcher failed")??;
        times.extend(seen.iter().filter(|s| s.sent_after >= from).map(|s| s.took));
    }
    Ok(Figures::of(times, window.counted, 0, cluster.cpu().saturating_sub(cpu)))
}

/// One watcher on a stream of its own; it ends with the last write.
async fn follow(channel: Channel, origin: Instant, created: Arc<AtomicUsize>, expected: usize) -> Result<Vec<Seen>> {
    let create = pb::WatchCreateRequest {
        key: PREFIX.into(),
        range_end: "/watch0".into(),
        ..Default::default()
    };
    let request = pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    let requests = futures::StreamExt::chain(futures::stream::iter([request]), futures::stream::pending());
    let mut answers = WatchClient::new(channel).watch(requests).await?.into_inner();
    let (mut seen, mut last) = (Vec::with_capacity(expected), 0);
    while seen.len() < expected {
        let answer = tokio::time::timeout(PATIENCE, answers.message()).await;
        let answer = answer.with_context(|| format!("{} of {expected} events came", seen.len()))??;
        let answer = answer.context("the server ended a watch")?;
        ensure!(!answer.canceled, "a watch was cancelled: {}", answer.cancel_reason);
        if answer.created {
            created.fetch_add(1, Ordering::Relaxed);
        }
        let now = origin.elapsed();
        for kv in answer.events.iter().filter_map(|event| event.kv.as_ref()) {
            ensure!(kv.mod_revision > last, "revision {} came after {last}", kv.mod_revision);
            last = kv.mod_revision;
            let stamp = kv.value.first_chunk::<8>().context("a value without its time")?;
            let sent_after = Duration::from_nanos(u64::from_le_bytes(*stamp));
            let took = now.saturating_sub(sent_after);
            seen.push(Seen { sent_after, took });
        }
    }
    Ok(seen)
}

/// `count` writes at `rate`, each with the time at which it was sent. An answer is not waited for before the next one.
async fn write(cluster: &Cluster, origin: Instant, rate: u32, count: usize) -> Result<()> {
    const CONNECTIONS: usize = 4;
    let channels: Vec<Channel> = (0..CONNECTIONS)
        .map(|n| cluster.any_channel(n))
        .collect::<Result<_>>()?;
    let failed = Arc::new(AtomicBool::new(false));
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let mut puts = JoinSet::new();
    for n in 0..count {
        ticks.tick().await;
        let stamp = u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut value = vec![b'v'; VALUE];
        value[..8].copy_from_slice(&stamp.to_le_bytes());
        let request = put(key(PREFIX, n as u64 % KEYS), value);
        let (mut kv, failed) = (KvClient::new(channels[n % CONNECTIONS].clone()), Arc::clone(&failed));
        puts.spawn(async move {
            if let Err(status) = kv.put(request).await {
                eprintln!("    a write failed: {status}");
                failed.store(true, Ordering::Relaxed);
            }
        });
        while puts.try_join_next().is_some() {}
    }
    puts.join_all().await;
    ensure!(!failed.load(Ordering::Relaxed), "writes failed, so events are missing");
    Ok(())
}
