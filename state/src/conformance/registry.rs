//! What only the registry has: transactions with audit events, both or neither.

use super::helpers::{all_from, bytes, mod_is, put_op, range, soon, txn};
use crate::error::StoreError;
use crate::keys::{audit_chain_key, kind_prefix, prefix_end};
use crate::machine::{MAX_EVENT_BYTES, MAX_EVENTS};
use crate::pb;
use crate::store::{Access, Store, WatchItem};
use futures::future::join_all;
use hanse_api::audit::{HEAD, Head};
use hanse_api::kinds::AUDIT_EVENTS;
use std::sync::Arc;

fn event(id: &str) -> String {
    format!(r#"{{"auditID":"{id}"}}"#)
}

/// Puts a key that must not be there yet, and says so.
async fn create(store: &Arc<dyn Store>, key: &str, events: &[&str]) -> Result<pb::TxnResponse, StoreError> {
    let req = txn(vec![mod_is(key, 0)], vec![put_op(key, "{}")], vec![]);
    let events = events.iter().copied().map(event).collect();
    soon("an audited write", store.txn_audited(req, events)).await
}

async fn list(store: &Arc<dyn Store>, from: &str) -> Vec<pb::KeyValue> {
    let end = String::from_utf8(prefix_end(from.as_bytes())).unwrap();
    let found = soon("a list", store.range(&Access::registry(), range(from, &end))).await;
    found.unwrap().kvs
}

async fn trail(store: &Arc<dyn Store>) -> Vec<pb::KeyValue> {
    list(store, &kind_prefix(&AUDIT_EVENTS)).await
}

/// Revisions of the events with this id.
async fn known(store: &Arc<dyn Store>, id: &str) -> Vec<i64> {
    let (all, wanted) = (trail(store).await, event(id));
    let says = |kv: &&pb::KeyValue| String::from_utf8_lossy(&kv.value).contains(&wanted[1..wanted.len() - 1]);
    all.iter().filter(says).map(|kv| kv.mod_revision).collect()
}

/// Where the chain ends, and at which revision that was written.
async fn head(store: &Arc<dyn Store>) -> Option<(u64, i64)> {
    let stored = list(store, &audit_chain_key(HEAD)).await;
    let kv = stored.first()?;
    Some((Head::of_object(&kv.value).unwrap().sequence, kv.mod_revision))
}

pub(super) async fn both_or_neither(store: &Arc<dyn Store>, prefix: &str) {
    let (key, one, two) = (format!("{prefix}-a"), format!("{prefix}-1"), format!("{prefix}-2"));
    let before = head(store).await.map_or(0, |(sequence, _)| sequence);
    let mut watch = store.watch(&Access::registry(), all_from("\0", 0)).await.unwrap();
    let done = create(store, &key, &[&one, &two]).await.unwrap();
    let revision = done.header.unwrap().revision;
    assert!(done.succeeded);
    assert_eq!(
        known(store, &one).await,
        [revision],
        "the event has the revision of its change"
    );
    assert_eq!(known(store, &two).await, [revision]);
    assert_eq!(head(store).await, Some((before + 2, revision)));
    // A watch gets change, events and the chain's end as one.
    match soon("the change", watch.next()).await {
        Some(WatchItem::Events { revision: at, events }) => assert_eq!((at, events.len()), (revision, 4)),
        other => panic!("{other:?}"),
    }
    // Where the compares do not hold nothing is written, whatever the other branch does.
    let again = create(store, &key, &[&format!("{prefix}-3")]).await.unwrap();
    assert!(!again.succeeded);
    let otherwise = txn(
        vec![mod_is(&key, 0)],
        vec![],
        vec![put_op(&format!("{prefix}-else"), "{}")],
    );
    let events = vec![event(&format!("{prefix}-4"))];
    let other = soon("a write", store.txn_audited(otherwise, events)).await.unwrap();
    assert!(!other.succeeded && other.header.unwrap().revision > revision);
    assert!(known(store, &format!("{prefix}-3")).await.is_empty());
    assert!(known(store, &format!("{prefix}-4")).await.is_empty());
    assert_eq!(head(store).await, Some((before + 2, revision)));
    refused_when_too_much(store, prefix).await;
}

async fn refused_when_too_much(store: &Arc<dyn Store>, prefix: &str) {
    let key = format!("{prefix}-refused");
    let many = vec!["x"; MAX_EVENTS + 1];
    assert_eq!(create(store, &key, &many).await.err(), Some(StoreError::TooManyOps));
    let large = "x".repeat(MAX_EVENT_BYTES);
    assert_eq!(create(store, &key, &[&large]).await.err(), Some(StoreError::TooLarge));
    assert_eq!(list(store, &key).await, [], "and the change is not made either");
    let most = vec!["most"; MAX_EVENTS];
    assert!(create(store, &key, &most).await.unwrap().succeeded);
}

pub(super) async fn writers_share_one_chain(store: &Arc<dyn Store>, prefix: &str) {
    const WRITERS: usize = 8;
    const EACH: usize = 5;
    let before = head(store).await.map_or(0, |(sequence, _)| sequence);
    let writer = async |writer: usize| {
        for n in 0..EACH {
            let key = format!("{prefix}-w{writer}-{n}");
            assert!(create(store, &key, &[&key]).await.unwrap().succeeded);
        }
    };
    join_all((0..WRITERS).map(writer)).await;
    let last = before + u64::try_from(WRITERS * EACH).unwrap();
    assert_eq!(head(store).await.map(|(sequence, _)| sequence), Some(last));
    // In the order of their names their revisions grow: no two events took the same place.
    let all = trail(store).await;
    assert_eq!(u64::try_from(all.len()).unwrap(), last);
    assert!(all.is_sorted_by_key(|kv| kv.mod_revision));
    let first = bytes(&kind_prefix(&AUDIT_EVENTS));
    assert!(all.iter().all(|kv| kv.version == 1 && kv.key.starts_with(&first)));
}
