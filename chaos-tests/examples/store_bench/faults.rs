//! `kill -9` of the leader of three, and a restart with many keys.

use crate::works::{fill, put};
use anyhow::{Context as _, Result, ensure};
use hanse_chaos_tests::bench::Figures;
use hanse_chaos_tests::bench::usage::{Used, memory_mib};
use hanse_chaos_tests::store_cluster::{Cluster, Peer, Programs};
use hanse_state::pb::kv_client::KvClient;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Between two tries of a client that writes during a fault.
const EVERY: Duration = Duration::from_millis(10);
/// For one try.
const TRY: Duration = Duration::from_secs(1);
/// For writes to resume.
const PATIENCE: Duration = Duration::from_secs(60);

/// From the death of the leader until a surviving member acknowledges a write, `kills` times.
pub async fn leader_kills(peer: Peer, programs: &Programs, kills: usize) -> Result<Figures> {
    let mut cluster = Cluster::start(peer, programs, 3).await?;
    let mut times = Vec::new();
    for _ in 0..kills {
        let leader = cluster.leader().await?;
        let survivors: Vec<usize> = (0..cluster.nodes()).filter(|n| *n != leader).collect();
        let begun = Instant::now();
        cluster.kill(leader)?;
        let writes = survivors.iter().map(|n| Box::pin(resumes(&cluster, *n)));
        let (first, _, _) = futures::future::select_all(writes).await;
        first?;
        times.push(begun.elapsed());
        cluster.launch(leader)?;
        cluster.answers().await?;
    }
    Ok(Figures::of(times, Duration::from_secs(1), 0, Used::default()))
}

async fn resumes(cluster: &Cluster, member: usize) -> Result<()> {
    let (channel, begun) = (cluster.channel(member)?, Instant::now());
    let tries = futures::stream::FuturesUnordered::new();
    // A try that hangs must not keep the next one from being made: one is sent every 10 ms, as many clients would.
    let mut ticks = tokio::time::interval(EVERY);
    let mut tries = std::pin::pin!(tries);
    loop {
        ensure!(begun.elapsed() < PATIENCE, "no write for {PATIENCE:?}");
        tokio::select! {
            _ = ticks.tick() => {
                let mut kv = KvClient::new(channel.clone());
                tries.push(async move {
                    let put = put("/fault/probe".to_owned(), b"x".to_vec());
                    tokio::time::timeout(TRY, kv.put(put)).await.is_ok_and(|put| put.is_ok())
                });
            }
            Some(done) = futures::StreamExt::next(&mut tries), if !tries.is_empty() => if done {
                return Ok(());
            },
        }
    }
}

/// Memory with many keys, and how long a member takes to answer again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bulk {
    pub keys: u64,
    pub memory_mib: u64,
    pub restart_seconds: f64,
}

/// Fills one node, looks at its memory, kills it and starts it again.
pub async fn bulk(peer: Peer, programs: &Programs, keys: u64) -> Result<Bulk> {
    let mut cluster = Cluster::start(peer, programs, 1).await?;
    fill(&cluster, "/bulk/", keys).await?;
    let memory_mib = memory_mib(&cluster.processes());
    cluster.kill(0)?;
    let begun = Instant::now();
    cluster.launch(0)?;
    cluster.answers().await.context("after the restart")?;
    Ok(Bulk {
        keys,
        memory_mib,
        restart_seconds: begun.elapsed().as_secs_f64(),
    })
}
