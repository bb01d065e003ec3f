//! Leases.

use super::helpers::{Tenant, all_from, op, put, put_op, soon, txn};
use crate::error::StoreError;
use crate::machine::{MAX_LEASE_TTL, MIN_LEASE_TTL};
use crate::pb::{self, request_op::Request};

async fn put_with_lease(t: &Tenant, key: &str, lease: i64) -> i64 {
    t.one(op(Request::RequestPut(pb::PutRequest { lease, ..put(key, "v") })))
        .await
        .1
}

pub(super) async fn life_of_a_lease(t: &Tenant) {
    let granted = t.store.lease_grant(&t.access, 0, 600).await.unwrap();
    assert!(granted.id > 0 && granted.ttl == 600);
    let id = granted.id;
    assert_eq!(
        t.store.lease_grant(&t.access, id, 600).await,
        Err(StoreError::LeaseExists)
    );
    assert_eq!(
        t.store.lease_grant(&t.access, 9, MAX_LEASE_TTL + 1).await,
        Err(StoreError::LeaseTtlTooLarge)
    );
    let other = t.store.lease_grant(&t.access, 77, 1).await.unwrap();
    assert_eq!((other.id, other.ttl), (77, MIN_LEASE_TTL));
    assert!(t.store.leases(&t.access).await.unwrap().contains(&id));
    for key in ["b", "a", "c", "d"] {
        put_with_lease(t, key, id).await;
    }
    // A put without a lease takes the key off it; ignore_lease keeps it on.
    t.put("c", "free").await;
    t.one(op(Request::RequestPut(pb::PutRequest {
        ignore_lease: true,
        ..put("b", "kept")
    })))
    .await;
    t.delete("d", "").await;
    let left = t.store.lease_time_to_live(&t.access, id, true).await.unwrap();
    assert_eq!(
        (left.granted_ttl, left.keys.concat().as_slice()),
        (600, b"ab".as_slice())
    );
    assert!((590..=600).contains(&left.ttl), "{left:?}");
    assert_eq!(t.get("b").await.unwrap().lease, id);
    assert_eq!(t.store.lease_keep_alive(&t.access, id).await.unwrap().ttl, 600);
    let mut events = t.watch(all_from("\0", 0)).await;
    let revision = t.store.lease_revoke(&t.access, id).await.unwrap();
    assert_eq!(
        events.next().await,
        (revision, vec!["-a<v".to_owned(), "-b<kept".to_owned()])
    );
    assert!(t.get("a").await.is_none() && t.get("c").await.is_some());
    assert_eq!(
        t.store.lease_revoke(&t.access, id).await,
        Err(StoreError::LeaseNotFound)
    );
    assert_eq!(t.store.lease_keep_alive(&t.access, id).await.unwrap().ttl, 0);
    assert_eq!(t.store.lease_time_to_live(&t.access, id, false).await.unwrap().ttl, -1);
    assert!(!t.store.leases(&t.access).await.unwrap().contains(&id));
}

pub(super) async fn expiry(t: &Tenant) {
    let id = t.store.lease_grant(&t.access, 0, MIN_LEASE_TTL).await.unwrap().id;
    let mut events = t.watch(all_from("\0", 0)).await;
    put_with_lease(t, "short", id).await;
    t.txn(txn(vec![], vec![put_op("stays", "v")], vec![])).await;
    assert_eq!(events.take(3).await, ["short=v", "stays=v", "-short<v"]);
    assert!(t.get("stays").await.is_some());
    let gone = soon("lease", t.store.lease_time_to_live(&t.access, id, false))
        .await
        .unwrap();
    assert_eq!(gone.ttl, -1);
}
