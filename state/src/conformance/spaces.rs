//! Key spaces: apart from each other, fenced, dropped.

use super::helpers::{Tenant, all_from, delete_op, put_op, range, soon, txn};
use crate::error::StoreError;
use crate::pb;
use crate::pb::command::restore_space::Part;
use crate::pb::command::{RestoreBegin, RestoreEnd, RestoreRows, RestoreSpace};
use crate::store::{Access, WatchItem};
use hanse_api::resources::StoreLimits;
use hanse_runtime::clock::{Clock, SystemClock};
use std::time::Duration;

pub(super) async fn spaces_are_apart(a: &Tenant, b: &Tenant) {
    let mut events = b.watch(all_from("\0", 0)).await;
    let first = a.put("same", "of a").await;
    let second = b.put("same", "of b").await;
    assert!(second > first, "spaces of a group share its revisions");
    assert_eq!(a.get("same").await.unwrap().value, "of a");
    assert_eq!(b.get("same").await.unwrap().value, "of b");
    assert_eq!(a.range(range("\0", "\0")).await.count, 1);
    assert_eq!(events.take(1).await, ["same=of b"]);
    // Each has its own floor, leases and compact_rev_key.
    a.put("same", "2").await;
    let floor = a.put("compact_rev_key", "1").await;
    a.compact(floor).await.unwrap();
    let past = pb::RangeRequest {
        revision: second,
        ..range("same", "")
    };
    assert!(matches!(
        a.try_range(past.clone()).await,
        Err(StoreError::Compacted { .. })
    ));
    assert_eq!(b.range(past).await.kvs[0].value, "of b");
    assert_eq!(b.get("compact_rev_key").await, None);
    a.store.lease_grant(&a.access, 5, 600).await.unwrap();
    b.store.lease_grant(&b.access, 5, 600).await.unwrap();
    a.store.lease_revoke(&a.access, 5).await.unwrap();
    assert_eq!(b.store.leases(&b.access).await.unwrap(), [5]);
    let registry = a.store.range(&Access::registry(), range("a", "")).await;
    assert!(matches!(registry, Err(StoreError::WrongGroup { .. })));
    let nameless = a.store.range(&Access::tenant(""), range("a", "")).await;
    assert!(matches!(nameless, Err(StoreError::InvalidTenant(_))));
}

pub(super) async fn fence(t: &Tenant) {
    let id = t.access.space.tenant().to_owned();
    let write = |epoch: u64| {
        let access = t.access.clone().with_epoch(epoch);
        async move {
            t.store
                .txn(&access, txn(vec![], vec![put_op("a", &epoch.to_string())], vec![]))
                .await
        }
    };
    assert!(write(1).await.is_ok());
    soon("fence", t.store.set_fence(&id, 3)).await.unwrap();
    assert_eq!(
        write(2).await,
        Err(StoreError::Fenced {
            tenant: id.clone(),
            epoch: 2,
            fence: 3
        })
    );
    assert!(write(3).await.is_ok());
    soon("fence", t.store.set_fence(&id, 2)).await.unwrap();
    assert!(write(2).await.is_err(), "a fence only grows");
    let stale = t.access.clone().with_epoch(2);
    assert!(matches!(
        t.store.range(&stale, range("a", "")).await,
        Err(StoreError::Fenced { .. })
    ));
    assert!(matches!(
        t.store.compact(&stale, 1).await,
        Err(StoreError::Fenced { .. })
    ));
    assert!(matches!(
        t.store.lease_grant(&stale, 0, 60).await,
        Err(StoreError::Fenced { .. })
    ));
    assert_eq!(
        t.get("a").await.unwrap().value,
        "3",
        "the control plane itself has no epoch"
    );
}

pub(super) async fn dropped(t: &Tenant) {
    t.put("a", "1").await;
    t.store.lease_grant(&t.access, 8, 600).await.unwrap();
    let mut events = t.watch(all_from("\0", 0)).await;
    soon("drop", t.store.drop_space(t.access.space.tenant())).await.unwrap();
    assert!(matches!(events.item().await, Some(WatchItem::Compacted { .. })));
    let after = t.try_txn(txn(vec![], vec![put_op("a", "2")], vec![])).await;
    assert!(
        matches!(after, Err(StoreError::Fenced { fence: u64::MAX, .. })),
        "{after:?}"
    );
    assert!(matches!(
        t.try_range(range("a", "")).await,
        Err(StoreError::Fenced { .. })
    ));
    let host = t.access.clone().with_epoch(u64::MAX - 1);
    let late = t.store.txn(&host, txn(vec![], vec![put_op("a", "3")], vec![])).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })));
    soon("drop", t.store.drop_space(t.access.space.tenant()))
        .await
        .expect("dropping twice is no error");
}

/// Does one step of a restore; while the members do not all know it yet, it is tried again.
async fn restore(t: &Tenant, step: u64, part: Part) -> Result<i64, StoreError> {
    let clock = SystemClock::new();
    let part = Some(part);
    let command = RestoreSpace { id: 7, step, part };
    let tried = async {
        loop {
            match t.store.restore(t.access.space.tenant(), command.clone()).await {
                Err(StoreError::LevelTooLow { .. }) => clock.sleep(Duration::from_millis(50)).await,
                done => return done,
            }
        }
    };
    soon("a step of a restore", tried).await
}

pub(super) async fn restored(t: &Tenant, other: &Tenant) {
    t.put("old", "1").await;
    let seen = t.put("kept", "1").await;
    let mut events = t.watch(all_from("\0", 0)).await;
    restore(t, 0, Part::Begin(RestoreBegin {})).await.unwrap();
    let closed = Some(StoreError::Restoring(t.access.space.tenant().to_owned()));
    assert_eq!(t.try_range(range("kept", "")).await.err(), closed);
    assert_eq!(
        t.try_txn(txn(vec![], vec![put_op("a", "2")], vec![])).await.err(),
        closed
    );
    assert_eq!(t.store.watch(&t.access, all_from("\0", 0)).await.err(), closed);
    other.put("meanwhile", "1").await;
    let kv = pb::KeyValue {
        key: "kept".into(),
        create_revision: seen,
        mod_revision: seen,
        version: 3,
        value: "back".into(),
        lease: 0,
    };
    let rows = RestoreRows {
        keys: vec![kv],
        leases: vec![],
    };
    let revision = restore(t, 1, Part::Rows(rows)).await.unwrap();
    let opened = restore(t, 2, Part::End(RestoreEnd { keys: 1 })).await.unwrap();
    assert!(opened > revision && revision > seen, "{opened} > {revision} > {seen}");
    let all = t.range(range("\0", "\0")).await;
    assert_eq!(all.kvs.len(), 1);
    let back = &all.kvs[0];
    assert_eq!((back.value.as_ref(), back.version), (b"back".as_slice(), 3));
    assert_eq!((back.mod_revision, back.create_revision), (revision, seen));
    assert!(matches!(events.item().await, Some(WatchItem::Compacted { .. })));
    let mut late = t.watch(all_from("\0", seen + 1)).await;
    assert_eq!(late.item().await, Some(WatchItem::Compacted { revision: opened }));
    let next = t.put("kept", "next").await;
    assert!(next > opened);
    assert_eq!(other.get("meanwhile").await.unwrap().value, "1");
}

pub(super) async fn hashes(a: &Tenant, b: &Tenant) {
    let empty = soon("hash", a.store.hash(&a.access)).await.unwrap();
    a.put("k", "v").await;
    let one = soon("hash", a.store.hash(&a.access)).await.unwrap();
    assert_ne!(empty.hash, one.hash);
    assert_eq!(soon("hash", a.store.hash(&a.access)).await.unwrap().hash, one.hash);
    // Another space does not matter.
    b.put("k", "v").await;
    assert_eq!(soon("hash", a.store.hash(&a.access)).await.unwrap().hash, one.hash);
    a.put("k", "w").await;
    assert_ne!(soon("hash", a.store.hash(&a.access)).await.unwrap().hash, one.hash);
}

pub(super) async fn alarms(a: &Tenant, b: &Tenant) {
    use pb::AlarmType::{None as All, Nospace};
    let set = async |member, kind: pb::AlarmType, raised| {
        let change = a.store.set_alarm(&a.access, member, kind.into(), raised);
        soon("alarm", change).await.unwrap();
    };
    a.put("k", "v").await;
    set(1, Nospace, true).await;
    set(2, Nospace, true).await;
    let put = async || a.try_txn(txn(vec![], vec![put_op("k", "v2")], vec![])).await;
    assert_eq!(put().await, Err(StoreError::NoSpace));
    // Another space of the same group knows nothing of it.
    b.put("k", "v").await;
    assert_eq!(b.store.machine().alarms(&b.access), Ok(vec![]));
    set(1, Nospace, false).await;
    assert_eq!(put().await, Err(StoreError::NoSpace));
    set(2, All, false).await;
    a.put("k", "v3").await;
    assert_eq!(a.store.machine().alarms(&a.access), Ok(vec![]));
}

pub(super) async fn limits(a: &Tenant, b: &Tenant) {
    let set = async |bytes, keys| {
        let limits = StoreLimits {
            bytes,
            keys,
            writes_per_second: 0,
        };
        // A store that was just formed has to find out first that all its members know of limits.
        while let Err(error) = soon("limits", a.store.set_limits(a.access.space.tenant(), limits)).await {
            assert!(matches!(error, StoreError::LevelTooLow { .. }), "{error}");
            SystemClock::new().sleep(Duration::from_millis(50)).await;
        }
    };
    let put = async |key: &str, value: &str| {
        a.try_txn(txn(vec![], vec![put_op(key, value)], vec![]))
            .await
            .map(|_| ())
    };
    soon("level", set(0, 2)).await;
    assert_eq!(put("a", "1").await, Ok(()));
    assert_eq!(put("b", "1").await, Ok(()));
    assert_eq!(put("c", "1").await, Err(StoreError::NoSpace));
    b.put("c", "of another space").await;
    // What exists can be changed, and what goes makes room at once, without a compaction or an alarm.
    assert_eq!(put("a", "a longer one").await, Ok(()));
    assert_eq!(a.store.machine().alarms(&a.access), Ok(vec![]));
    a.try_txn(txn(vec![], vec![delete_op("a", "")], vec![])).await.unwrap();
    assert_eq!(put("c", "1").await, Ok(()));
    for id in [1, 2] {
        a.store.lease_grant(&a.access, id, 600).await.unwrap();
    }
    let third = a.store.lease_grant(&a.access, 3, 600).await;
    assert_eq!(third, Err(StoreError::NoSpace));
    // Bytes: what grows beyond is refused, what shrinks is not.
    let used = a.store.machine().usage(&a.access).unwrap().live_bytes;
    set(used + 10, 0).await;
    assert_eq!(put("c", "10 more bytes!!!").await, Err(StoreError::NoSpace));
    assert_eq!(put("c", "12345678901").await, Ok(()));
    assert_eq!(put("b", "12").await, Err(StoreError::NoSpace));
    set(1, 0).await;
    assert_eq!(put("c", "12345678900").await, Ok(()), "no larger than before");
    assert_eq!(put("c", "123456789001").await, Err(StoreError::NoSpace));
    let usage = a.store.machine().usage(&a.access).unwrap();
    assert_eq!(
        (usage.live_keys, usage.live_bytes, usage.limits.bytes),
        (2, used + 10, 1)
    );
    set(0, 0).await;
    assert_eq!(put("d", &"x".repeat(100_000)).await, Ok(()));
}
