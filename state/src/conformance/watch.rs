//! Watches: ordered, unique, atomic, complete, and honest about how far they are.

use super::helpers::{Tenant, all_from, bytes, delete_op, put_op, soon, txn};
use crate::store::{WatchItem, WatchRequest};
use std::collections::BTreeMap;

pub(super) async fn past_and_present(t: &Tenant) {
    let first = t.put("a", "1").await;
    t.put("a", "2").await;
    let third = t.delete("a", "").await;
    t.put("a", "3").await;
    let all = ["a=1", "a=2<1", "-a<2", "a=3"];
    let mut from_first = t.watch(all_from("\0", first)).await;
    assert_eq!(from_first.take(4).await, all);
    let mut from_third = t.watch(all_from("\0", third)).await;
    assert_eq!(from_third.take(2).await, all[2..]);
    let mut now = t.watch(all_from("\0", 0)).await;
    let mut single = t
        .watch(WatchRequest {
            key: bytes("b"),
            ..Default::default()
        })
        .await;
    t.put("a", "4").await;
    t.put("b", "1").await;
    for watch in [&mut from_first, &mut from_third, &mut now] {
        assert_eq!(watch.take(2).await, ["a=4<3", "b=1"]);
    }
    assert_eq!(single.take(1).await, ["b=1"]);
    // Without prev_kv the key before is left out.
    t.put("b", "2").await;
    assert_eq!(single.take(1).await, ["b=2"]);
}

pub(super) async fn atomic_and_filtered(t: &Tenant) {
    t.put("m3", "old").await;
    let mut watch = t
        .watch(WatchRequest {
            key: bytes("m"),
            range_end: bytes("n"),
            ..all_from("m", 0)
        })
        .await;
    let filtered = |no_put: bool, no_delete: bool| WatchRequest {
        no_put,
        no_delete,
        ..all_from("\0", 0)
    };
    let mut puts = t.watch(filtered(false, true)).await;
    let mut deletes = t.watch(filtered(true, false)).await;
    let ops = vec![
        put_op("m2", "1"),
        put_op("x", "1"),
        delete_op("m3", ""),
        put_op("m1", "1"),
    ];
    let revision = t.txn(txn(vec![], ops, vec![])).await.header.unwrap().revision;
    let of = |events: &[&str]| (revision, events.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(watch.next().await, of(&["m2=1", "-m3<old", "m1=1"]));
    assert_eq!(puts.next().await, of(&["m2=1", "x=1", "m1=1"]));
    assert_eq!(deletes.next().await, of(&["-m3<old"]));
    let mut replayed = t.watch(all_from("\0", revision)).await;
    assert_eq!(replayed.next().await, of(&["m2=1", "x=1", "-m3<old", "m1=1"]));
}

pub(super) async fn compacted(t: &Tenant) {
    let first = t.put("a", "1").await;
    let second = t.put("a", "2").await;
    t.put("a", "3").await;
    let mut before = t.watch(all_from("\0", second)).await;
    t.compact(second).await.unwrap();
    let mut late = t.watch(all_from("\0", first)).await;
    assert_eq!(late.item().await, Some(WatchItem::Compacted { revision: second }));
    assert_eq!(late.item().await, None);
    // From the floor itself one can watch, and what was before is still known there.
    let mut at_floor = t.watch(all_from("\0", second)).await;
    assert_eq!(at_floor.take(2).await, ["a=2<1", "a=3<2"]);
    assert_eq!(before.take(2).await, ["a=2<1", "a=3<2"]);
    // Watches that are up to date do not notice a compaction.
    let revision = t.put("b", "1").await;
    t.compact(revision).await.unwrap();
    t.delete("b", "").await;
    for watch in [&mut at_floor, &mut before] {
        assert_eq!(watch.take(2).await, ["b=1", "-b<1"]);
    }
}

pub(super) async fn future(t: &Tenant) {
    let now = t.put("a", "1").await;
    let mut ahead = t.watch(all_from("\0", now + 3)).await;
    assert_eq!(
        ahead.watch.progress(),
        None,
        "a watch from the future says nothing before its start"
    );
    let mut last = now;
    // Other tenants of the group may take revisions meanwhile.
    while last < now + 3 {
        last = t.put("a", &format!("at {}", last + 1)).await;
    }
    let (revision, events) = ahead.next().await;
    assert!(revision >= now + 3 && events.len() == 1, "{revision} {events:?}");
}

pub(super) async fn progress(t: &Tenant) {
    let mut watch = t.watch(all_from("\0", 0)).await;
    let mut elsewhere = t
        .watch(WatchRequest {
            key: bytes("elsewhere"),
            ..Default::default()
        })
        .await;
    let before = watch.watch.progress().expect("a fresh watch is up to date");
    let revision = t.put("a", "1").await;
    assert!(revision > before);
    // The event is not taken yet, so the watch is behind; the other one has nothing to take.
    soon("progress of an idle watch", async {
        while elsewhere.watch.progress().is_none_or(|progress| progress < revision) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(watch.watch.progress(), None);
    assert_eq!(watch.take(1).await, ["a=1"]);
    assert!(watch.watch.progress().is_some_and(|progress| progress >= revision));
    // Asked for, progress comes by itself.
    let mut idle = t
        .watch(WatchRequest {
            progress: true,
            ..all_from("quiet", 0)
        })
        .await;
    match idle.item().await {
        Some(WatchItem::Progress { revision: at }) => assert!(at >= revision),
        other => panic!("{other:?} instead of progress"),
    }
    t.put("quiet", "1").await;
    assert_eq!(idle.take(1).await, ["quiet=1"]);
    assert!(futures::FutureExt::now_or_never(elsewhere.item()).is_none());
}

/// A reader that falls far behind gets everything all the same.
pub(super) async fn slow_reader(t: &Tenant) {
    const REVISIONS: usize = 2500;
    let mut slow = t.watch(all_from("\0", 0)).await;
    let batch = |from: usize| async move {
        for i in from..from + REVISIONS / 10 {
            t.put(&format!("k{:02}", i % 50), &format!("{i:05}")).await;
        }
    };
    soon(
        "writes",
        futures::future::join_all((0..10).map(|i| batch(i * REVISIONS / 10))),
    )
    .await;
    let mut last: BTreeMap<String, String> = BTreeMap::new();
    let mut seen = 0;
    while seen < REVISIONS {
        for event in slow.next().await.1 {
            seen += 1;
            let (change, before) = event.split_once('<').unwrap_or((&event, ""));
            let (key, value) = change.split_once('=').unwrap();
            let known = last.insert(key.to_owned(), value.to_owned()).unwrap_or_default();
            assert_eq!(known, before, "the key before {event} is not the one seen before");
        }
    }
}

/// Watches that start at any revision, while writes go on, all see the same.
pub(super) async fn many_watches_under_load(t: &Tenant) {
    const WRITES: usize = 300;
    let start = t.put("k0", "first").await;
    let write = async {
        let mut revisions = vec![start];
        for i in 0..WRITES {
            revisions.push(t.put(&format!("k{}", i % 7), &i.to_string()).await);
        }
        revisions
    };
    let read = |offset: usize| async move {
        let mut watch = t.watch(all_from("k", start)).await;
        let mut seen = Vec::new();
        while seen.len() < WRITES + 1 {
            seen.push(watch.next().await.0);
            if seen.len() % (offset + 2) == 0 {
                // Others get ahead of this one.
                tokio::task::yield_now().await;
            }
            if seen.len() % 50 == offset {
                // Goes on where it was, by a new watch.
                watch = t.watch(all_from("k", seen.last().unwrap() + 1)).await;
            }
        }
        seen
    };
    let readers = futures::future::join_all((0..6).map(read));
    let (written, seen) = soon("watches under load", futures::future::join(write, readers)).await;
    for seen in seen {
        assert_eq!(seen, written);
    }
}
