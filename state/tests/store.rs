//! The conformance suites against every engine, and what only a store in one process can show: restarts.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{Fixture, put, range};
use hanse_runtime::clock::{Clock, SystemClock, timeout};
use hanse_state::conformance::{registry_suite, store_suite};
use hanse_state::engine::suite::engine_suite;
use hanse_state::engine::{MemoryEngine, RocksEngine, RocksOptions, SharedEngine};
use hanse_state::{Access, GroupId, Store, StoreError, WatchItem, WatchRequest};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn engines() {
    engine_suite(&MemoryEngine::new());
    let dir = tempfile::tempdir().unwrap();
    engine_suite(&RocksEngine::open(dir.path(), &RocksOptions::default()).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite_in_memory() {
    let fixture = Fixture::memory();
    store_suite(fixture.store.clone(), "suite").await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite_of_the_registry() {
    let engine: SharedEngine = Arc::new(MemoryEngine::new());
    for prefix in ["first", "after-a-restart"] {
        let fixture = Fixture::of(GroupId::COUNCIL, Arc::clone(&engine));
        registry_suite(fixture.store.clone(), prefix).await;
        fixture.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite_on_rocks() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::rocks(dir.path());
    store_suite(fixture.store.clone(), "first").await;
    let before = fixture.store.revision();
    let hash = fixture.store.hash(&Access::tenant("first-kv-large")).await.unwrap();
    fixture.stop().await;
    // Everything is back after a restart, and the store goes on.
    let fixture = Fixture::rocks(dir.path());
    assert_eq!(fixture.store.revision(), before);
    let again = fixture.store.hash(&Access::tenant("first-kv-large")).await.unwrap();
    assert_eq!((again.hash, again.floor), (hash.hash, hash.floor));
    store_suite(fixture.store.clone(), "second").await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_floors_fences_leases_and_past_events() {
    let dir = tempfile::tempdir().unwrap();
    let access = Access::tenant("t");
    let fixture = Fixture::rocks(dir.path());
    let store = fixture.store.clone();
    let first = put(&store, &access, "a", "1").await;
    let second = put(&store, &access, "a", "2").await;
    let third = put(&store, &access, "a", "3").await;
    store.compact(&access, second).await.unwrap();
    store.set_fence("t", 5).await.unwrap();
    store.lease_grant(&access, 42, 600).await.unwrap();
    store.drop_space("gone").await.unwrap();
    drop(store);
    fixture.stop().await;

    let fixture = Fixture::rocks(dir.path());
    let store = fixture.store.clone();
    assert_eq!(store.revision(), third);
    let stale = access.clone().with_epoch(4);
    assert!(matches!(
        store.range(&stale, range("a")).await,
        Err(StoreError::Fenced { fence: 5, .. })
    ));
    assert!(matches!(
        store.range(&Access::tenant("gone"), range("a")).await,
        Err(StoreError::Fenced { .. })
    ));
    let mut past = range("a");
    past.revision = first;
    assert_eq!(
        store.range(&access, past).await,
        Err(StoreError::Compacted { floor: second })
    );
    assert_eq!(store.leases(&access).await.unwrap(), [42]);
    let left = store.lease_time_to_live(&access, 42, true).await.unwrap();
    assert!(
        (590..=600).contains(&left.ttl),
        "a lease gets its whole time again: {left:?}"
    );
    let req = WatchRequest {
        key: "a".into(),
        start_revision: second,
        prev_kv: true,
        ..Default::default()
    };
    let mut watch = store.watch(&access, req).await.unwrap();
    for (revision, value, before) in [(second, "2", "1"), (third, "3", "2")] {
        let Some(WatchItem::Events { revision: at, events }) = watch.next().await else {
            panic!()
        };
        assert_eq!(at, revision);
        assert_eq!(events[0].kv.as_ref().unwrap().value, value);
        assert_eq!(events[0].prev_kv.as_ref().unwrap().value, before);
    }
    assert_eq!(put(&store, &access, "a", "4").await, third + 1);
    drop((store, watch));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compacted_versions_leave_the_engine() {
    let fixture = Fixture::memory();
    let access = Access::tenant("t");
    let store: Arc<dyn Store> = fixture.store.clone();
    for i in 0..300 {
        put(&store, &access, &format!("k{}", i % 3), &"x".repeat(1000)).await;
    }
    let full = store.status().db_size;
    let revision = store.revision();
    store.compact(&access, revision).await.unwrap();
    let clock = SystemClock::new();
    let pruned = async {
        while store.status().db_size > full / 20 {
            clock.sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(&clock, Duration::from_secs(10), pruned).await.expect("pruned");
    // What is left is what can still be read or watched, with the values before.
    let req = WatchRequest {
        key: "k".into(),
        range_end: "l".into(),
        start_revision: revision,
        prev_kv: true,
        ..Default::default()
    };
    let mut watch = store.watch(&access, req).await.unwrap();
    let Some(WatchItem::Events { events, .. }) = watch.next().await else {
        panic!()
    };
    assert!(events[0].prev_kv.is_some());
    drop((store, watch));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_end_when_the_store_stops() {
    let fixture = Fixture::memory();
    let access = Access::tenant("t");
    let req = WatchRequest {
        key: "a".into(),
        ..Default::default()
    };
    let mut watch = fixture.store.watch(&access, req).await.unwrap();
    fixture.supervisor.shut_down(Duration::from_secs(5)).await;
    assert_eq!(watch.next().await, Some(WatchItem::Lagged));
    assert_eq!(watch.next().await, None);
    let txn = hanse_state::pb::TxnRequest {
        success: vec![common::put_op("a", "1")],
        ..Default::default()
    };
    assert_eq!(fixture.store.txn(&access, txn).await, Err(StoreError::Stopped));
}
