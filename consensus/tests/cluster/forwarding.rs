//! Writes that a follower forwards to the leader.

use crate::TENANTS;
use crate::harness::*;
use hanse_consensus::Settings;
use hanse_state::Store as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Enough for the bounds that HTTP/2 libraries set on streams that are reset before their answer has come.
const WRITES: usize = 6_000;
const LANES: usize = 64;

/// A forwarded write is often seen applied here before the leader's answer arrives. Its call must not be cut off then: that
/// resets a stream, and a connection with too many resets is given up, with all other writes on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_forwarded_writes_keep_their_connection() {
    let cluster = Cluster::start_linked(3, Settings::default()).await;
    let leader = cluster.leader(TENANTS).await;
    let follower = cluster.processes.keys().copied().find(|id| *id != leader).unwrap();
    cluster.put(follower, "first", "").await.unwrap();
    let made = || cluster.links[&(follower, leader)].connections.load(Ordering::SeqCst);
    let before = made();
    let next = Arc::new(AtomicUsize::new(0));
    let lanes = (0..LANES).map(|_| {
        let (store, next) = (cluster.store(follower, TENANTS), Arc::clone(&next));
        cluster.processes[&follower].spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= WRITES {
                    return;
                }
                store.txn(&access(), put(&format!("k{n}"), "v")).await.unwrap();
            }
        })
    });
    for lane in futures::future::join_all(lanes).await {
        lane.unwrap();
    }
    assert_eq!(made(), before, "the follower had to connect to the leader again");
    cluster.agree().await;
}
