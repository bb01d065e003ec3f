//! Reads, writes, transactions, compaction.

use super::helpers::{Tenant, bytes, delete_op, keys, mod_is, op, put, put_op, range, range_op, soon, txn};
use crate::error::StoreError;
use crate::machine::{MAX_REQUEST_BYTES, MAX_TXN_OPS};
use crate::pb::{self, compare, range_request, request_op::Request, response_op::Response};
use bytes::Bytes;

pub(super) async fn revisions_and_versions(t: &Tenant) {
    assert!(t.store.revision() >= 1, "an empty store is at revision 1");
    let first = t.put("a", "1").await;
    let second = t.put("a", "2").await;
    assert!(second > first);
    let kv = t.get("a").await.unwrap();
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version, kv.lease),
        (first, second, 2, 0)
    );
    let nothing = t.delete("missing", "").await;
    let read = t.one(range_op("a", "")).await.1;
    let failed = t.txn(txn(vec![mod_is("a", 0)], vec![put_op("a", "x")], vec![])).await;
    assert!(!failed.succeeded && failed.responses.is_empty());
    assert_eq!(t.get("a").await.unwrap().mod_revision, second, "{nothing} {read}");
    t.delete("a", "").await;
    assert_eq!(t.get("a").await, None);
    let again = t.put("a", "3").await;
    let kv = t.get("a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (again, again, 1));
    // One revision for all that a transaction changes.
    let both = t
        .txn(txn(vec![], vec![put_op("b", "1"), put_op("c", "1")], vec![]))
        .await;
    let revision = both.header.unwrap().revision;
    for key in ["b", "c"] {
        assert_eq!(t.get(key).await.unwrap().mod_revision, revision);
    }
}

pub(super) async fn ranges(t: &Tenant) {
    let mut revisions = Vec::new();
    for (key, value) in [("b", "2"), ("a", "9"), ("d", "1"), ("c", "5"), ("c", "6")] {
        revisions.push(t.put(key, value).await);
    }
    let all = t.range(range("a", "e")).await;
    assert_eq!(keys(&all.kvs), ["a", "b", "c", "d"]);
    assert_eq!((all.count, all.more), (4, false));
    for (key, end, want) in [
        ("b", "d", "bc"),
        ("b", "\0", "bcd"),
        ("c", "", "c"),
        ("d", "a", ""),
        ("\0", "\0", "abcd"),
    ] {
        assert_eq!(
            keys(&t.range(range(key, end)).await.kvs).concat(),
            want,
            "{key:?} {end:?}"
        );
    }
    shapes(t).await;
    sorted_and_filtered(t, &revisions).await;
    let past = t
        .range(pb::RangeRequest {
            revision: revisions[3],
            ..range("c", "")
        })
        .await;
    assert_eq!(past.kvs[0].value, "5");
    assert!(
        past.header.unwrap().revision >= revisions[4],
        "the header has the present revision"
    );
    let past = t
        .range(pb::RangeRequest {
            revision: revisions[1],
            ..range("a", "e")
        })
        .await;
    assert_eq!((keys(&past.kvs).concat().as_str(), past.count), ("ab", 2));
}

/// The keys `a` to `d` exist.
async fn shapes(t: &Tenant) {
    let page = t
        .range(pb::RangeRequest {
            limit: 2,
            ..range("a", "e")
        })
        .await;
    assert_eq!(
        (keys(&page.kvs).concat().as_str(), page.count, page.more),
        ("ab", 4, true)
    );
    let page = t
        .range(pb::RangeRequest {
            limit: 4,
            ..range("a", "e")
        })
        .await;
    assert_eq!((page.kvs.len(), page.count, page.more), (4, 4, false));
    let counted = t
        .range(pb::RangeRequest {
            count_only: true,
            ..range("a", "e")
        })
        .await;
    assert_eq!((counted.kvs.len(), counted.count, counted.more), (0, 4, false));
    let bare = t
        .range(pb::RangeRequest {
            keys_only: true,
            ..range("a", "e")
        })
        .await;
    assert!(bare.kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision > 0) && bare.kvs.len() == 4);
}

async fn sorted_and_filtered(t: &Tenant, revisions: &[i64]) {
    let sorted = |target: range_request::SortTarget, order: range_request::SortOrder| pb::RangeRequest {
        sort_target: target.into(),
        sort_order: order.into(),
        limit: 3,
        ..range("a", "e")
    };
    use range_request::{SortOrder as O, SortTarget as T};
    let cases = [
        (T::Key, O::Descend, "dcb"),
        (T::Value, O::Ascend, "dbc"),
        (T::Value, O::Descend, "acb"),
        (T::Create, O::Ascend, "bad"),
        (T::Mod, O::Descend, "cda"),
    ];
    for (target, order, want) in cases {
        let found = t.range(sorted(target, order)).await;
        assert_eq!(keys(&found.kvs).concat(), want, "{target:?} {order:?}");
        assert_eq!((found.count, found.more), (4, true));
    }
    let filtered = pb::RangeRequest {
        min_mod_revision: revisions[2],
        max_create_revision: revisions[3],
        ..range("a", "e")
    };
    let found = t.range(filtered).await;
    assert_eq!((keys(&found.kvs).concat().as_str(), found.count), ("cd", 4));
}

pub(super) async fn large_ranges(t: &Tenant) {
    let value = "v".repeat(300);
    for from in (0..600).step_by(100) {
        let puts = (from..from + 100)
            .map(|i| put_op(&format!("k{i:04}"), &format!("{i}{value}")))
            .collect();
        t.txn(txn(vec![], puts, vec![])).await;
    }
    // Several versions of some keys lie between the ones that are wanted.
    let mut pinned = 0;
    for round in 0..10 {
        for i in (0..600).step_by(50) {
            pinned = t.put(&format!("k{i:04}"), &format!("{i} {round}")).await;
        }
    }
    t.delete("k0100", "k0110").await;
    let all = t.range(range("k", "l")).await;
    assert_eq!((all.kvs.len(), all.count), (590, 590));
    assert!(all.kvs.is_sorted_by(|a, b| a.key < b.key));
    for kv in &all.kvs {
        let number: usize = String::from_utf8_lossy(&kv.key)[1..].parse().unwrap();
        let want = if number.is_multiple_of(50) {
            format!("{number} 9")
        } else {
            format!("{number}{value}")
        };
        assert_eq!(kv.value, want);
    }
    let mut after = bytes("k");
    let mut seen = 0;
    loop {
        let page = pb::RangeRequest {
            key: after,
            range_end: bytes("l"),
            limit: 97,
            revision: pinned,
            ..Default::default()
        };
        let page = t.range(page).await;
        assert_eq!(page.count, 600 - seen);
        seen += i64::try_from(page.kvs.len()).unwrap();
        if !page.more {
            break;
        }
        after = [page.kvs.last().unwrap().key.as_ref(), &[0]].concat().into();
    }
    assert_eq!(seen, 600);
}

pub(super) async fn transactions(t: &Tenant) {
    t.put("a", "1").await;
    let before = t.get("a").await.unwrap();
    // What is read sees what was written before it, and what is compared is the state before all of it.
    let nested = txn(
        vec![mod_is("b", 0)],
        vec![put_op("b", "inner")],
        vec![put_op("b", "no")],
    );
    let ops = vec![
        put_op("a", "2"),
        range_op("a", ""),
        op(Request::RequestTxn(nested)),
        range_op("a", "c"),
        delete_op("x", "y"),
        op(Request::RequestPut(pb::PutRequest {
            prev_kv: true,
            ..put("c", "3")
        })),
    ];
    let answer = t.txn(txn(vec![mod_is("a", before.mod_revision)], ops, vec![])).await;
    assert!(answer.succeeded);
    let revision = answer.header.unwrap().revision;
    let at = |index: usize| answer.responses[index].response.clone().unwrap();
    let (Response::ResponseRange(inside), Response::ResponseTxn(nested)) = (at(1), at(2)) else {
        panic!("{answer:?}");
    };
    assert_eq!(inside.kvs[0].value, "2");
    assert_eq!(inside.kvs[0].mod_revision, revision);
    assert!(nested.succeeded);
    let Response::ResponseRange(both) = at(3) else {
        panic!("{answer:?}")
    };
    assert_eq!((keys(&both.kvs).concat().as_str(), both.count), ("ab", 2));
    let Response::ResponseDeleteRange(none) = at(4) else {
        panic!("{answer:?}")
    };
    assert_eq!((none.deleted, none.prev_kvs.len()), (0, 0));
    compares(t, revision).await;
    let before = t.get("a").await.unwrap();
    let kept = pb::PutRequest {
        ignore_value: true,
        prev_kv: true,
        ..put("a", "")
    };
    let (Response::ResponsePut(answer), _) = t.one(op(Request::RequestPut(kept))).await else {
        panic!()
    };
    assert_eq!(answer.prev_kv.unwrap(), before);
    let after = t.get("a").await.unwrap();
    assert_eq!(
        (after.value.as_ref(), after.version),
        (b"2".as_slice(), before.version + 1)
    );
    let (Response::ResponseDeleteRange(deleted), _) = t.one(delete_op("a", "c")).await else {
        panic!()
    };
    assert_eq!((deleted.deleted, keys(&deleted.prev_kvs).concat().as_str()), (2, "ab"));
}

/// `a`, `b` and `c` were changed at `revision`, `a` for the second time.
async fn compares(t: &Tenant, revision: i64) {
    let compare =
        |target: compare::CompareTarget, result: compare::CompareResult, union: compare::TargetUnion, key: &str| {
            let (target, result, key) = (target.into(), result.into(), bytes(key));
            pb::Compare {
                result,
                target,
                key,
                target_union: Some(union),
                range_end: Bytes::new(),
            }
        };
    use compare::{CompareResult as R, CompareTarget as T, TargetUnion as U};
    let cases = [
        (compare(T::Value, R::Equal, U::Value(bytes("2")), "a"), true),
        (compare(T::Value, R::Less, U::Value(bytes("1")), "a"), false),
        (compare(T::Value, R::Equal, U::Value(Bytes::new()), "missing"), false),
        (compare(T::Value, R::NotEqual, U::Value(bytes("z")), "missing"), false),
        (compare(T::Version, R::Greater, U::Version(1), "a"), true),
        (compare(T::Version, R::Equal, U::Version(0), "missing"), true),
        (compare(T::Create, R::Less, U::CreateRevision(revision), "a"), true),
        (compare(T::Mod, R::NotEqual, U::ModRevision(revision), "a"), false),
        (compare(T::Lease, R::Equal, U::Lease(0), "a"), true),
        (
            pb::Compare {
                range_end: bytes("d"),
                ..compare(T::Mod, R::Equal, U::ModRevision(revision), "a")
            },
            true,
        ),
        (
            pb::Compare {
                range_end: bytes("d"),
                ..compare(T::Version, R::Equal, U::Version(2), "a")
            },
            false,
        ),
    ];
    for (compare, want) in cases {
        assert_eq!(
            t.txn(txn(vec![compare.clone()], vec![], vec![])).await.succeeded,
            want,
            "{compare:?}"
        );
    }
}

/// The forms that kube-apiserver sends.
pub(super) async fn kubernetes_forms(t: &Tenant) {
    let key = "/registry/pods/default/web";
    let empty = t
        .range(pb::RangeRequest {
            limit: 1,
            ..range("/registry/pods", "")
        })
        .await;
    assert!(empty.kvs.is_empty() && empty.header.unwrap().revision > 0);
    let create = || txn(vec![mod_is(key, 0)], vec![put_op(key, "1")], vec![]);
    assert!(t.txn(create()).await.succeeded);
    let again = t.txn(create()).await;
    assert!(!again.succeeded && again.responses.is_empty());
    let at = t.get(key).await.unwrap().mod_revision;
    let update = |at: i64, value: &str| txn(vec![mod_is(key, at)], vec![put_op(key, value)], vec![range_op(key, "")]);
    assert!(t.txn(update(at, "2")).await.succeeded);
    let stale = t.txn(update(at, "3")).await;
    let Some(Response::ResponseRange(found)) = stale.responses[0].response.clone() else {
        panic!("{stale:?}")
    };
    assert_eq!((stale.succeeded, found.kvs[0].value.as_ref()), (false, b"2".as_slice()));
    let at = found.kvs[0].mod_revision;
    let delete = txn(vec![mod_is(key, at)], vec![delete_op(key, "")], vec![range_op(key, "")]);
    assert!(t.txn(delete).await.succeeded);
    assert_eq!(t.get(key).await, None);
    // The lock on compaction; an else branch must not be empty.
    let version_is = |version: i64| pb::Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Version.into(),
        key: bytes("compact_rev_key"),
        target_union: Some(compare::TargetUnion::Version(version)),
        range_end: Bytes::new(),
    };
    let lock = |version: i64| {
        txn(
            vec![version_is(version)],
            vec![put_op("compact_rev_key", "7")],
            vec![range_op("compact_rev_key", "")],
        )
    };
    assert!(t.txn(lock(0)).await.succeeded);
    let lost = t.txn(lock(0)).await;
    let Some(Response::ResponseRange(found)) = lost.responses[0].response.clone() else {
        panic!("{lost:?}")
    };
    assert_eq!((lost.succeeded, found.kvs[0].version), (false, 1));
}

pub(super) async fn refusals(t: &Tenant) {
    let revision = t.put("a", "1").await;
    let future = pb::RangeRequest {
        revision: revision + 1_000_000,
        ..range("a", "")
    };
    assert!(matches!(
        t.try_range(future.clone()).await,
        Err(StoreError::FutureRevision { .. })
    ));
    let inside = txn(
        vec![],
        vec![put_op("b", "1"), op(Request::RequestRange(future))],
        vec![],
    );
    assert!(matches!(
        t.try_txn(inside).await,
        Err(StoreError::FutureRevision { .. })
    ));
    assert_eq!(t.get("b").await, None, "a refused transaction changes nothing");
    assert_eq!(t.try_range(range("", "")).await, Err(StoreError::EmptyKey));
    assert_eq!(
        t.try_range(pb::RangeRequest {
            sort_order: 9,
            ..range("a", "")
        })
        .await,
        Err(StoreError::InvalidSort)
    );
    refused_transactions(t).await;
}

async fn refused_transactions(t: &Tenant) {
    let many = |count: usize| (0..count).map(|i| put_op(&format!("k{i}"), "")).collect::<Vec<_>>();
    let too_large = txn(vec![], vec![put_op("a", &"x".repeat(MAX_REQUEST_BYTES))], vec![]);
    let put_with = |put: pb::PutRequest| txn(vec![], vec![op(Request::RequestPut(put))], vec![]);
    let cases = [
        (txn(vec![], many(MAX_TXN_OPS + 1), vec![]), StoreError::TooManyOps),
        (
            txn(vec![], vec![put_op("k", ""), put_op("k", "")], vec![]),
            StoreError::DuplicateKey,
        ),
        (
            txn(vec![], vec![put_op("k", ""), delete_op("a", "z")], vec![]),
            StoreError::DuplicateKey,
        ),
        (txn(vec![], vec![put_op("", "")], vec![]), StoreError::EmptyKey),
        (too_large, StoreError::TooLarge),
        (
            put_with(pb::PutRequest {
                lease: 4711,
                ..put("k", "")
            }),
            StoreError::LeaseNotFound,
        ),
        // Of two faults etcd names the lease.
        (
            put_with(pb::PutRequest {
                lease: 4711,
                ignore_value: true,
                ..put("missing", "")
            }),
            StoreError::LeaseNotFound,
        ),
        (
            put_with(pb::PutRequest {
                ignore_value: true,
                ..put("missing", "")
            }),
            StoreError::KeyNotFound,
        ),
        (
            put_with(pb::PutRequest {
                ignore_lease: true,
                ..put("missing", "")
            }),
            StoreError::KeyNotFound,
        ),
        (
            put_with(pb::PutRequest {
                ignore_value: true,
                ..put("a", "x")
            }),
            StoreError::ValueProvided,
        ),
        (
            put_with(pb::PutRequest {
                ignore_lease: true,
                lease: 1,
                ..put("a", "")
            }),
            StoreError::LeaseProvided,
        ),
    ];
    for (req, want) in cases {
        assert_eq!(t.try_txn(req).await, Err(want));
    }
    t.txn(txn(vec![], many(MAX_TXN_OPS), vec![])).await;
}

pub(super) async fn compaction(t: &Tenant) {
    let mut revisions = Vec::new();
    for value in ["1", "2", "3"] {
        revisions.push(t.put("a", value).await);
    }
    let gone = t.put("gone", "1").await;
    let deleted = t.delete("gone", "").await;
    t.put("b", "1").await;
    assert!(matches!(
        t.compact(t.store.revision() + 1_000_000).await,
        Err(StoreError::FutureRevision { .. })
    ));
    t.compact(revisions[1]).await.unwrap();
    assert_eq!(
        t.compact(revisions[1]).await,
        Err(StoreError::Compacted { floor: revisions[1] })
    );
    let at = |revision: i64, key: &str| pb::RangeRequest {
        revision,
        ..range(key, "")
    };
    assert_eq!(
        t.try_range(at(revisions[0], "a")).await,
        Err(StoreError::Compacted { floor: revisions[1] })
    );
    assert_eq!(t.range(at(revisions[1], "a")).await.kvs[0].value, "2");
    assert_eq!(t.range(at(gone, "gone")).await.count, 1);
    // At the floor a tombstone still says that the key is absent.
    t.compact(deleted).await.unwrap();
    assert_eq!(t.range(at(deleted, "gone")).await.count, 0);
    assert_eq!(t.range(at(deleted, "a")).await.kvs[0].value, "3");
    assert_eq!(t.get("a").await.unwrap().value, "3");
    let inside = txn(
        vec![],
        vec![op(Request::RequestRange(at(gone, "a"))), put_op("c", "1")],
        vec![],
    );
    assert!(matches!(t.try_txn(inside).await, Err(StoreError::Compacted { .. })));
    assert_eq!(t.get("c").await, None);
    // A negative revision is none by itself, but in a transaction it is one that was compacted: etcd's way.
    assert_eq!(t.range(at(-1, "a")).await.kvs[0].value, "3");
    let negative = txn(vec![], vec![op(Request::RequestRange(at(-1, "a")))], vec![]);
    assert!(matches!(t.try_txn(negative).await, Err(StoreError::Compacted { .. })));
}

/// Counters that many tasks raise by comparing and setting lose no increment.
pub(super) async fn concurrent_writers(t: &Tenant) {
    const WRITERS: usize = 8;
    const ROUNDS: usize = 25;
    t.put("counter", "0").await;
    let write = |writer: usize| async move {
        for round in 0..ROUNDS {
            loop {
                let now = t.get("counter").await.unwrap();
                let value: usize = String::from_utf8_lossy(&now.value).parse().unwrap();
                let ops = vec![
                    put_op("counter", &(value + 1).to_string()),
                    put_op(&format!("w{writer}"), &round.to_string()),
                ];
                if t.txn(txn(vec![mod_is("counter", now.mod_revision)], ops, vec![]))
                    .await
                    .succeeded
                {
                    break;
                }
            }
        }
    };
    soon("concurrent writers", futures::future::join_all((0..WRITERS).map(write))).await;
    let counter = t.get("counter").await.unwrap();
    assert_eq!(counter.value, (WRITERS * ROUNDS).to_string());
    assert_eq!(counter.version, i64::try_from(WRITERS * ROUNDS + 1).unwrap());
}
