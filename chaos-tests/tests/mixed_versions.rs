//! Members of two builds in one cluster: replaced one by one under load, no put through the others fails, and in the end
//! each member has every key whose put was acknowledged.
//!
//! `HANSE_OLD_BINARY` names the older program; without it there is nothing to compare with, and the test says so.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Context as _, Result, ensure};
use hanse_chaos_tests::programs::binary;
use hanse_chaos_tests::standstill::Standstills;
use hanse_chaos_tests::store_cluster::{Cluster, Peer, Programs};
use hanse_state::pb;
use hanse_state::pb::kv_client::KvClient;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

const MEMBERS: usize = 3;
const LANES: usize = 6;
/// Nobody is away.
const NOBODY: usize = MEMBERS;
/// For a put; more would be a hang.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Shared {
    /// The member that clients keep away from.
    away: AtomicUsize,
    stop: AtomicBool,
    done: [AtomicUsize; LANES],
}

fn folder(lane: usize) -> String {
    format!("/mixed/{lane}/")
}

/// Puts one key after the other through the members that serve; gives the keys, or the first failure.
async fn lane(lane: usize, channels: Vec<Channel>, shared: Arc<Shared>) -> Result<Vec<String>> {
    let standstills = Standstills::watch();
    let (mut number, mut keys) = (0, Vec::new());
    while !shared.stop.load(Ordering::SeqCst) {
        let member = (number + lane) % MEMBERS;
        if member != shared.away.load(Ordering::SeqCst) {
            let key = format!("{}{number}", folder(lane));
            let put = pb::PutRequest {
                key: key.clone().into(),
                value: "x".into(),
                ..Default::default()
            };
            let asked = tokio::time::timeout(PATIENCE, KvClient::new(channels[member].clone()).put(put)).await;
            match asked {
                Ok(Ok(_)) => keys.push(key),
                // Sent again: what was acknowledged is read in the end.
                _ if standstills.excuse(Instant::now(), PATIENCE) => continue,
                failed => anyhow::bail!("put {number} of lane {lane} through member {member}: {failed:?}"),
            }
        }
        number += 1;
        shared.done[lane].fetch_add(1, Ordering::SeqCst);
    }
    Ok(keys)
}

/// Waits until each lane has finished what it began before.
async fn all_on(shared: &Shared) -> Result<()> {
    let begun = Instant::now();
    for done in &shared.done {
        let before = done.load(Ordering::SeqCst);
        while done.load(Ordering::SeqCst) < before + 2 {
            ensure!(begun.elapsed() < PATIENCE * 4, "the load does not go on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(())
}

/// Reads what a lane put, from what one member holds itself.
async fn read_back(cluster: &Cluster, member: usize, lane: usize, keys: &[String]) -> Result<()> {
    let mut range_end = folder(lane).into_bytes();
    *range_end.last_mut().context("no folder")? += 1;
    let range = pb::RangeRequest {
        key: folder(lane).into(),
        range_end: range_end.into(),
        keys_only: true,
        serializable: true,
        ..Default::default()
    };
    let reply = KvClient::new(cluster.channel(member)?).range(range).await;
    let reply = reply
        .with_context(|| format!("read from member {member}"))?
        .into_inner();
    let there: HashSet<&[u8]> = reply.kvs.iter().map(|kv| kv.key.as_ref()).collect();
    let lost: Vec<&String> = keys.iter().filter(|key| !there.contains(key.as_bytes())).collect();
    ensure!(lost.is_empty(), "acknowledged, but not on member {member}: {lost:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_replaced_by_a_newer_build_without_a_failed_put() -> Result<()> {
    let Some(old) = std::env::var_os("HANSE_OLD_BINARY").filter(|path| !path.is_empty()) else {
        println!("skipped: HANSE_OLD_BINARY names no older program");
        return Ok(());
    };
    let new = binary()?;
    let programs = Programs {
        etcd: PathBuf::new(),
        hanse: old.into(),
        data: std::env::temp_dir(),
    };
    let mut cluster = Cluster::start(Peer::Hanse, &programs, MEMBERS).await?;
    let channels: Vec<Channel> = (0..MEMBERS).map(|n| cluster.channel(n)).collect::<Result<_>>()?;
    let shared = Arc::new(Shared::default());
    shared.away.store(NOBODY, Ordering::SeqCst);
    let lanes: Vec<_> = (0..LANES)
        .map(|n| tokio::spawn(lane(n, channels.clone(), shared.clone())))
        .collect();
    let first = cluster.leader().await?;
    // The leader last: until then it speaks with newer followers.
    for n in [(first + 1) % MEMBERS, (first + 2) % MEMBERS, first] {
        shared.away.store(n, Ordering::SeqCst);
        all_on(&shared).await?;
        cluster.stop(n).await?;
        cluster.use_program(n, new.clone());
        cluster.launch(n)?;
        cluster.answers_at(n).await?;
        shared.away.store(NOBODY, Ordering::SeqCst);
        all_on(&shared).await?;
        let hashes = cluster.hashes().await?;
        ensure!(
            hashes.windows(2).all(|pair| pair[0] == pair[1]),
            "contents differ: {hashes:?}"
        );
        println!("member {n} runs the newer build; content hash {:08x} on all", hashes[0]);
    }
    shared.stop.store(true, Ordering::SeqCst);
    let lanes = futures::future::try_join_all(lanes).await?;
    // Each member answers once for what was put last: then it has all before it.
    cluster.hashes().await?;
    for (number, keys) in lanes.into_iter().enumerate() {
        let keys = keys.context("a put failed")?;
        ensure!(!keys.is_empty(), "lane {number} put nothing");
        for member in 0..MEMBERS {
            read_back(&cluster, member, number, &keys).await?;
        }
        println!("{} puts of one client: none failed, all are on each member", keys.len());
    }
    Ok(())
}
