//! A disk fills up, and logs stay short.

use crate::TENANTS;
use crate::harness::*;
use hanse_consensus::{Disk, GroupId, NodeId, Settings};
use hanse_state::pb::{self, request_op::Request};
use hanse_state::{Store as _, StoreError};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Free space as a test says.
#[derive(Clone)]
struct Meter(Arc<AtomicU64>);

impl Disk for Meter {
    fn free(&self) -> io::Result<u64> {
        Ok(self.0.load(Ordering::SeqCst))
    }
}

const LIMIT: u64 = 1000;

async fn watch_disk(cluster: &Cluster, id: NodeId) -> Meter {
    let meter = Meter(Arc::new(AtomicU64::new(10 * LIMIT)));
    let (process, disk) = (&cluster.processes[&id], meter.clone());
    let supervisor = process.supervisor.clone();
    let watched = process.run(|node| async move { node.watch_disk(disk, LIMIT, &supervisor) });
    watched.await.unwrap();
    meter
}

/// Writes again and again until it goes as it should.
async fn until(cluster: &Cluster, id: NodeId, wanted: Result<(), StoreError>) {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let got = cluster.put(id, "k", "v").await.map(|_| ());
        if got == wanted {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "server {id}: {got:?}, not {wanted:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn before_one_servers_disk_is_full_all_refuse_growth_and_reads_go_on() {
    let cluster = Cluster::start(3, false, Settings::default()).await;
    let mut meters = Vec::new();
    for id in 1..=3 {
        meters.push(watch_disk(&cluster, id).await);
        cluster.put(id, "k", "v").await.unwrap();
    }
    meters[1].0.store(LIMIT - 1, Ordering::SeqCst);
    for id in 1..=3 {
        until(&cluster, id, Err(StoreError::NoSpace)).await;
        assert_eq!(cluster.get(id, "k").await.unwrap().as_deref(), Some("v"));
    }
    // What makes room is let in, and so is the control plane while there is some.
    let delete = pb::DeleteRangeRequest {
        key: "k".into(),
        ..Default::default()
    };
    let delete = pb::TxnRequest {
        success: vec![pb::RequestOp {
            request: Some(Request::RequestDeleteRange(delete)),
        }],
        ..Default::default()
    };
    cluster.store(1, TENANTS).txn(&access(), delete).await.unwrap();
    let council = cluster.store(1, GroupId::COUNCIL);
    council
        .txn(&hanse_state::Access::registry(), put("k", "v"))
        .await
        .unwrap();
    meters[1].0.store(2 * LIMIT, Ordering::SeqCst);
    for id in 1..=3 {
        until(&cluster, id, Ok(())).await;
    }
}

/// Without the bound in bytes nothing of this would be purged: there are few entries.
#[tokio::test]
async fn a_log_of_few_large_entries_is_purged_by_its_bytes() {
    const LARGE: usize = 256 << 10;
    let settings = Settings {
        keep_bytes: 4 << 20,
        hold_bytes: 8 << 20,
        ..Settings::default()
    };
    let mut cluster = Cluster::start(3, true, settings).await;
    let leader = cluster.leader(TENANTS).await;
    let behind = (1..=3).find(|id| *id != leader).unwrap();
    let value = "x".repeat(LARGE);
    let figure = |cluster: &Cluster, id: NodeId, name: &str| {
        let text = hanse_runtime::meter::text(&cluster.store(id, TENANTS).families());
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse::<f64>().unwrap()
    };
    let purged = |cluster: &Cluster| figure(cluster, leader, "hanse_store_log_bytes ") < 9.0 * f64::from(1 << 20);
    for n in 0..40 {
        cluster.put(leader, &format!("k{n}"), &value).await.unwrap();
    }
    wait_for("a purge", || purged(&cluster).then_some(())).await;
    // One that is away holds it, but not beyond the limit; it comes back by a snapshot.
    cluster.kill(behind);
    for n in 0..60 {
        cluster.put(leader, &format!("l{n}"), &value).await.unwrap();
    }
    wait_for("a purge", || purged(&cluster).then_some(())).await;
    cluster.boot(behind).await;
    cluster.ready().await;
    wait_for("the state", || {
        (cluster.store(behind, TENANTS).revision() >= 101).then_some(())
    })
    .await;
    assert!(figure(&cluster, behind, "hanse_store_snapshots_installed_total ") >= 1.0);
    assert_eq!(
        cluster.get(behind, "l59").await.unwrap().map(|value| value.len()),
        Some(LARGE)
    );
    cluster.agree().await;
}
