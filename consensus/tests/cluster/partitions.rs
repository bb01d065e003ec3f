//! Servers that run but cannot reach each other.

use crate::harness::{Cluster, SOON, access, create, put, wait_for};
use hanse_consensus::{GroupId, NodeId, Settings};
use hanse_state::{Store, StoreError};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const TENANTS: GroupId = GroupId::TENANTS;

fn term(cluster: &Cluster, id: NodeId) -> u64 {
    cluster.store(id, TENANTS).status().term
}

#[tokio::test]
async fn a_returning_follower_does_not_depose_the_leader() {
    let cluster = Cluster::start_linked(3, Settings::default()).await;
    let leader = cluster.leader(TENANTS).await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    cluster.put(leader, "before", "v").await.unwrap();
    let before = term(&cluster, leader);
    cluster.isolate(follower, true);
    let store = cluster.store(follower, TENANTS);
    wait_for("the loss of the leader", || (!store.has_leader()).then_some(())).await;
    // Long enough for several elections, if it stood for any.
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.put(leader, "during", "v").await.unwrap();
    assert_eq!(
        term(&cluster, follower),
        before,
        "it must not raise its term while nobody would vote for it"
    );
    cluster.isolate(follower, false);
    wait_for("the leader", || store.has_leader().then_some(())).await;
    assert_eq!(cluster.get(follower, "during").await.unwrap().as_deref(), Some("v"));
    assert_eq!(term(&cluster, leader), before);
    assert_eq!(cluster.leader(TENANTS).await, leader);
    cluster.agree().await;
}

#[tokio::test]
async fn an_isolated_leader_acknowledges_nothing_and_gives_way() {
    let settings = Settings {
        request_timeout: Duration::from_secs(3),
        ..Settings::default()
    };
    let cluster = Cluster::start_linked(3, settings).await;
    let old = cluster.leader(TENANTS).await;
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != old).collect();
    cluster.put(old, "k", "0").await.unwrap();
    cluster.isolate(old, true);
    let start = Instant::now();
    // Retried by its member until the new leader takes it; each key may be written only once.
    let created = {
        let store = cluster.store(others[0], TENANTS);
        cluster.processes[&others[0]].run(|_| async move {
            let start = Instant::now();
            loop {
                match store.txn(&access(), create("once", "v")).await {
                    Err(error) if error.retryable() && !error.outcome_unknown() && start.elapsed() < SOON => {}
                    result => return result,
                }
            }
        })
    };
    let lost = cluster.put(old, "lost", "v");
    let (created, lost) = tokio::join!(created, lost);
    println!(
        "the others went on {:?} after their leader was cut off",
        start.elapsed()
    );
    match created.unwrap() {
        Ok(answer) => assert!(answer.succeeded),
        // The connection to the old leader hung with the request in it: nobody can say more.
        Err(error) => assert!(error.outcome_unknown(), "{error}"),
    }
    assert!(lost.is_err(), "acknowledged without a quorum");
    assert!(matches!(
        cluster.get(old, "k").await,
        Err(StoreError::Timeout | StoreError::NoLeader)
    ));
    let new = wait_for("a new leader", || {
        let here = |id: &&NodeId| cluster.processes[id].node.leadership(TENANTS).unwrap().borrow().here;
        others.iter().find(here).copied()
    })
    .await;
    cluster.put(new, "k", "1").await.unwrap();
    cluster.isolate(old, false);
    wait_for("the old leader to follow", || {
        (term(&cluster, old) == term(&cluster, new)).then_some(())
    })
    .await;
    assert_eq!(cluster.get(old, "k").await.unwrap().as_deref(), Some("1"));
    cluster.agree().await;
}

#[tokio::test]
async fn a_leader_that_is_heard_but_cannot_hear_is_replaced() {
    // Followers get its heartbeats over connections that bring no answers back: openraft's #2080.
    let cluster = Cluster::start_linked(3, Settings::default()).await;
    let old = cluster.leader(TENANTS).await;
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != old).collect();
    // The leader's own connections die; theirs to it live.
    for other in &others {
        cluster.links[&(old, *other)].cut(true);
    }
    let done = wait_for_put(&cluster, others[0]).await;
    assert!(done < SOON);
    for other in &others {
        cluster.links[&(old, *other)].cut(false);
    }
    cluster.put(old, "after", "v").await.unwrap();
    cluster.agree().await;
}

async fn wait_for_put(cluster: &Cluster, id: NodeId) -> Duration {
    let start = Instant::now();
    while cluster.put(id, "k", "v").await.is_err() {
        assert!(start.elapsed() < SOON, "no write within {SOON:?}");
    }
    start.elapsed()
}

#[tokio::test]
async fn reads_are_never_stale_while_leaders_come_and_go() {
    let cluster = Cluster::start_linked(3, Settings::default()).await;
    let (acknowledged, reads) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = Vec::new();
    for id in 1..=3 {
        let store = cluster.store(id, TENANTS);
        let (acknowledged, reads) = (Arc::clone(&acknowledged), Arc::clone(&reads));
        tasks.push(cluster.processes[&id].spawn(async move {
            loop {
                let floor = acknowledged.load(Ordering::SeqCst);
                if let Ok(answer) = store.range(&access(), crate::harness::get("n")).await {
                    let read = answer
                        .kvs
                        .first()
                        .map_or(0, |kv| String::from_utf8_lossy(&kv.value).parse().unwrap());
                    assert!(read >= floor, "member {id} read {read} after {floor} was acknowledged");
                    reads.fetch_add(1, Ordering::SeqCst);
                }
                // Reads that never wait must not keep everything else from running.
                tokio::task::yield_now().await;
            }
        }));
    }
    let mut number = 0;
    for round in 0..3 {
        let leader = cluster.leader(TENANTS).await;
        let writer = (1..=3).find(|id| *id != leader).unwrap();
        for _ in 0..20 {
            number += 1;
            let store = cluster.store(writer, TENANTS);
            let request = put("n", &number.to_string());
            // An unknown outcome only makes the floor lower than it might be.
            if cluster.processes[&writer]
                .run(|_| async move { store.txn(&access(), request).await })
                .await
                .unwrap()
                .is_ok()
            {
                acknowledged.store(number, Ordering::SeqCst);
            }
        }
        let (before, seen) = (acknowledged.load(Ordering::SeqCst), reads.load(Ordering::SeqCst));
        cluster.isolate(leader, true);
        number += 1;
        wait_for_number(&cluster, writer, number).await;
        acknowledged.store(number, Ordering::SeqCst);
        cluster.isolate(leader, false);
        wait_for("more reads", || {
            (reads.load(Ordering::SeqCst) > seen + 20).then_some(())
        })
        .await;
        assert!(before > 0, "round {round}");
    }
    for task in tasks {
        assert!(!task.is_finished(), "{:?}", task.await);
        task.abort();
    }
    cluster.agree().await;
}

async fn wait_for_number(cluster: &Cluster, writer: NodeId, number: i64) {
    let start = Instant::now();
    while cluster.put(writer, "n", &number.to_string()).await.is_err() {
        assert!(start.elapsed() < SOON, "no write within {SOON:?}");
    }
}

#[tokio::test]
async fn a_server_without_a_quorum_stops_at_once() {
    let settings = Settings {
        request_timeout: SOON * 4,
        ..Settings::default()
    };
    let mut cluster = Cluster::start(3, false, settings).await;
    let last = cluster.leader(TENANTS).await;
    for other in (1..=3).filter(|id| *id != last) {
        cluster.kill(other);
    }
    let process = &cluster.processes[&last];
    let (store, supervisor) = (cluster.store(last, TENANTS), process.supervisor.clone());
    let ended = process.run(|_| async move {
        // Its caller gives up; the log still has it.
        let tenant = access();
        let write = store.txn(&tenant, put("k", "v"));
        let given_up = tokio::time::timeout(Duration::from_millis(100), write).await;
        assert!(given_up.is_err(), "acknowledged without a quorum");
        tokio::time::timeout(SOON, supervisor.shut_down(SOON * 2)).await
    });
    assert!(
        ended.await.unwrap().is_ok(),
        "it waited for a write that nobody asks for"
    );
}
