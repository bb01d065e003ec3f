//! One key space is put back from a backup while the store serves others: what comes back, what nobody sees meanwhile, and what
//! is refused before anything is lost.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{Fixture, put, range};
use hanse_api::resources::StoreLimits;
use hanse_runtime::clock::{Clock, SystemClock, timeout};
use hanse_state::backup::{BackupError, Checked, Head, KeySpace, Replaced, Scope, extract, take};
use hanse_state::engine::{MemoryEngine, SharedEngine};
use hanse_state::machine::level::LEVEL;
use hanse_state::pb::command::restore_space::Part;
use hanse_state::pb::command::{RestoreBegin, RestoreEnd, RestoreRows, RestoreSpace};
use hanse_state::pb::{self, request_op::Request};
use hanse_state::{Access, GroupId, LocalStore, Store, StoreError, WatchItem, WatchRequest};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    fixture: Fixture,
    engine: SharedEngine,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let engine: SharedEngine = Arc::new(MemoryEngine::new());
        let fixture = Fixture::on(Arc::clone(&engine));
        let clock = SystemClock::new();
        let risen = async {
            while fixture.store.machine().level() < LEVEL {
                clock.sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(&clock, PATIENCE, risen).await.expect("the feature level rises");
        let dir = tempfile::tempdir().unwrap();
        Self { fixture, engine, dir }
    }

    fn store(&self) -> &Arc<LocalStore> {
        &self.fixture.store
    }

    /// A backup of the scope, with one tenant's space cut out of it if that is named.
    fn backup(&self, scope: &Scope, cut: Option<&str>) -> Vec<u8> {
        let mut whole = Vec::new();
        take(self.engine.snapshot().as_ref(), Head::default(), scope, &mut |piece| {
            whole.extend_from_slice(&piece);
            Ok(())
        })
        .unwrap();
        let Some(tenant) = cut else { return whole };
        let mut part = Vec::new();
        extract(whole.as_slice(), &KeySpace::Tenant(tenant.to_owned()), &mut |piece| {
            part.extend_from_slice(&piece);
            Ok(())
        })
        .unwrap();
        part
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    async fn restore(&self, path: &Path, tenant: &str, id: u64) -> Result<Replaced, BackupError> {
        let checked = Checked::new(path.to_owned(), tenant)?;
        let clock = SystemClock::new();
        checked.replace(self.fixture.store.as_ref(), &clock, id, &|_| {}).await
    }

    async fn all(&self, access: &Access) -> pb::RangeResponse {
        self.fixture.store.range(access, everything()).await.unwrap()
    }
}

fn everything() -> pb::RangeRequest {
    pb::RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        ..Default::default()
    }
}

fn only(tenant: &str) -> Scope {
    Scope::Space(KeySpace::Tenant(tenant.to_owned()))
}

async fn put_leased(store: &Arc<impl Store>, access: &Access, key: &str, lease: i64) {
    let put = pb::PutRequest {
        key: key.to_owned().into(),
        value: vec![7; 3000].into(),
        lease,
        ..Default::default()
    };
    let op = pb::RequestOp {
        request: Some(Request::RequestPut(put)),
    };
    let txn = pb::TxnRequest {
        success: vec![op],
        ..Default::default()
    };
    store.txn(access, txn).await.unwrap();
}

async fn delete_all(store: &Arc<impl Store>, access: &Access) {
    let delete = pb::DeleteRangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        ..Default::default()
    };
    let op = pb::RequestOp {
        request: Some(Request::RequestDeleteRange(delete)),
    };
    let txn = pb::TxnRequest {
        success: vec![op],
        ..Default::default()
    };
    store.txn(access, txn).await.unwrap();
}

fn watch_all(start_revision: i64) -> WatchRequest {
    WatchRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision,
        ..Default::default()
    }
}

/// Values and counts, without what a restore changes.
fn held(all: &pb::RangeResponse) -> Vec<(bytes::Bytes, bytes::Bytes, i64, i64, i64)> {
    let of = |kv: &pb::KeyValue| {
        (
            kv.key.clone(),
            kv.value.clone(),
            kv.version,
            kv.create_revision,
            kv.lease,
        )
    };
    all.kvs.iter().map(of).collect()
}

/// A tenant with more than one piece of keys, some under a lease.
async fn fill(world: &World, access: &Access) {
    let store = world.store();
    store.lease_grant(access, 42, 600).await.unwrap();
    for n in 0..250 {
        put_leased(
            store,
            access,
            &format!("k{:03}", n % 200),
            if n % 3 == 0 { 42 } else { 0 },
        )
        .await;
    }
    put(store, access, "a", "first").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_comes_back_under_new_revisions_and_its_watches_end() {
    let world = World::new().await;
    let (store, a, b) = (world.store(), Access::tenant("a"), Access::tenant("b"));
    fill(&world, &a).await;
    put(store, &b, "k", "kept").await;
    let before = world.all(&a).await;
    let file = world.file(
        "a.backup",
        &world.backup(&Scope::Groups(vec![GroupId::TENANTS]), Some("a")),
    );
    delete_all(store, &a).await;
    put(store, &a, "later", "lost").await;
    store.lease_revoke(&a, 42).await.unwrap();
    store.lease_grant(&a, 43, 600).await.unwrap();
    let seen = store.revision();
    let mut watch = store.watch(&a, watch_all(0)).await.unwrap();
    let mut other = store.watch(&b, watch_all(0)).await.unwrap();
    let done = world.restore(&file, "a", 1).await.unwrap();

    let after = world.all(&a).await;
    assert_eq!(held(&after), held(&before));
    assert_eq!((done.keys, done.leases), (201, 1));
    assert!(
        after.kvs.iter().all(|kv| kv.mod_revision > seen),
        "no revision comes twice"
    );
    let hash = store.machine().hash_at(&a, 0).unwrap();
    assert_eq!(hash.hash, done.hash);
    let floor = WatchItem::Compacted {
        revision: done.revision,
    };
    let item = timeout(&SystemClock::new(), PATIENCE, watch.next()).await.unwrap();
    assert!(matches!(item, Some(WatchItem::Compacted { .. })), "{item:?}");
    // Whoever has seen everything before lists anew all the same.
    let mut late = store.watch(&a, watch_all(seen + 1)).await.unwrap();
    assert_eq!(
        timeout(&SystemClock::new(), PATIENCE, late.next()).await.unwrap(),
        Some(floor)
    );
    let mut old = everything();
    old.revision = seen;
    let refused = store.range(&a, old).await;
    assert_eq!(refused, Err(StoreError::Compacted { floor: done.revision }));
    // Leases: those of the backup with their keys, and the present ones, for whoever holds their ids.
    assert_eq!(store.leases(&a).await.unwrap(), [42, 43]);
    let left = store.lease_time_to_live(&a, 42, true).await.unwrap();
    assert!(left.ttl > 590 && left.keys.len() > 60, "{left:?}");
    assert!(store.lease_keep_alive(&a, 42).await.unwrap().ttl > 590);
    put_leased(store, &a, "new", 43).await;
    store.lease_revoke(&a, 42).await.unwrap();
    assert_eq!(world.all(&a).await.kvs.len(), 201 + 1 - left.keys.len());
    // Nobody else noticed.
    put(store, &b, "k", "again").await;
    let item = timeout(&SystemClock::new(), PATIENCE, other.next()).await.unwrap();
    assert!(
        matches!(&item, Some(WatchItem::Events { events, .. }) if events.len() == 1),
        "{item:?}"
    );
    world.fixture.stop().await;
}

fn step(id: u64, step: u64, part: Part) -> RestoreSpace {
    let part = Some(part);
    RestoreSpace { id, step, part }
}

fn begin(id: u64) -> RestoreSpace {
    step(id, 0, Part::Begin(RestoreBegin {}))
}

fn row(id: u64, number: u64, key: &str) -> RestoreSpace {
    let kv = pb::KeyValue {
        key: key.to_owned().into(),
        create_revision: 1,
        mod_revision: 1,
        version: 1,
        value: "v".into(),
        lease: 0,
    };
    let rows = RestoreRows {
        keys: vec![kv],
        leases: Vec::new(),
    };
    step(id, number, Part::Rows(rows))
}

fn end(id: u64, number: u64, keys: u64) -> RestoreSpace {
    step(id, number, Part::End(RestoreEnd { keys }))
}

/// Everything that a tenant can ask for is refused, in a way that lets him try again.
async fn closed(store: &Arc<impl Store>, access: &Access) {
    let restoring = StoreError::Restoring("t".to_owned());
    assert_eq!(store.range(access, range("a")).await, Err(restoring.clone()));
    let read = pb::TxnRequest {
        success: vec![pb::RequestOp {
            request: Some(Request::RequestRange(range("a"))),
        }],
        ..Default::default()
    };
    assert_eq!(store.txn(access, read).await, Err(restoring.clone()));
    let write = pb::TxnRequest {
        success: vec![common::put_op("a", "b")],
        ..Default::default()
    };
    assert_eq!(store.txn(access, write).await, Err(restoring.clone()));
    assert_eq!(store.watch(access, watch_all(0)).await.err(), Some(restoring.clone()));
    assert_eq!(store.lease_grant(access, 9, 60).await, Err(restoring.clone()));
    assert_eq!(store.leases(access).await, Err(restoring.clone()));
    assert_eq!(store.compact(access, 2).await, Err(restoring.clone()));
    assert!(restoring.retryable());
    assert_eq!(restoring.status().code(), tonic::Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_is_closed_from_the_first_step_to_the_last_and_across_a_restart() {
    let world = World::new().await;
    let t = Access::tenant("t");
    put(world.store(), &t, "a", "old").await;
    world.store().restore("t", begin(1)).await.unwrap();
    closed(world.store(), &t).await;
    let first = world.store().restore("t", row(1, 1, "k1")).await.unwrap();
    assert_eq!(
        world.store().restore("t", row(1, 1, "k1")).await,
        Ok(first),
        "asked again, answered again"
    );
    let refused = |result| assert!(matches!(result, Err(StoreError::RestoreRefused(_))), "{result:?}");
    refused(world.store().restore("t", row(1, 3, "k2")).await);
    refused(world.store().restore("t", row(2, 2, "k2")).await);
    refused(world.store().restore("t", row(1, 2, "k1")).await);
    refused(world.store().restore("t", end(1, 2, 7)).await);
    // A backup that is taken now must not pass for whole.
    let part = world.file("part", &world.backup(&Scope::Groups(vec![GroupId::TENANTS]), None));
    assert!(matches!(Checked::new(part, "t"), Err(BackupError::Part(_))));
    let World { fixture, engine, dir } = world;
    fixture.stop().await;

    let fixture = Fixture::on(Arc::clone(&engine));
    let world = World { fixture, engine, dir };
    closed(world.store(), &t).await;
    world.store().restore("t", row(1, 2, "k2")).await.unwrap();
    // Another one takes its place, and the first can do nothing any more.
    world.store().restore("t", begin(2)).await.unwrap();
    refused(world.store().restore("t", end(1, 3, 2)).await);
    world.store().restore("t", row(2, 1, "only")).await.unwrap();
    closed(world.store(), &t).await;
    let opened = world.store().restore("t", end(2, 2, 1)).await.unwrap();
    assert_eq!(world.store().restore("t", end(2, 2, 1)).await, Ok(opened));
    let all = world.all(&t).await;
    assert_eq!(all.kvs.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>(), ["only"]);
    put(world.store(), &t, "only", "more").await;
    world.store().restore("t", begin(3)).await.unwrap();
    world.store().drop_space("t").await.unwrap();
    let gone = world.store().range(&t, range("a")).await;
    assert!(matches!(gone, Err(StoreError::Fenced { .. })), "{gone:?}");
    world.fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_refused_before_anything_is_lost() {
    let world = World::new().await;
    let (store, a) = (world.store(), Access::tenant("a"));
    fill(&world, &a).await;
    put(store, &Access::tenant("b"), "k", "v").await;
    store.drop_space("gone").await.unwrap();
    let file = world.backup(&only("a"), None);
    let before = world.all(&a).await;
    let refused = async |bytes: &[u8], tenant: &str, says: &str| {
        let path = world.file("refused", bytes);
        let error = world.restore(&path, tenant, 1).await.unwrap_err();
        let said = error.to_string();
        assert!(said.contains(says), "{says:?} is not in {said:?}");
        assert_eq!(world.all(&a).await.kvs, before.kvs);
    };
    let mut flipped = file.clone();
    flipped[file.len() / 2] ^= 1;
    refused(&flipped, "a", "damaged").await;
    refused(&file[..file.len() - 1], "a", "cut short").await;
    refused(b"something else", "a", "no backup").await;
    refused(
        &file,
        "x",
        "does not hold the key space of tenant x; it holds those of a",
    )
    .await;
    let whole = world.backup(&Scope::Groups(vec![GroupId::TENANTS]), None);
    refused(&whole, "a", "those of a, b, gone").await;
    refused(&world.backup(&only("gone"), None), "gone", "deleted for good").await;
    let limits = StoreLimits {
        keys: 200,
        ..StoreLimits::default()
    };
    store.set_limits("a", limits).await.unwrap();
    refused(&file, "a", "more than the tenant's limits").await;
    store.set_limits("a", StoreLimits::default()).await.unwrap();
    let other = World::new().await;
    let path = other.file("a.backup", &file);
    let error = other.restore(&path, "a", 1).await.unwrap_err();
    assert!(matches!(error, BackupError::Ahead { store: 1, .. }), "{error}");
    for world in [world, other] {
        world.fixture.stop().await;
    }
}
