//! A line of waiting clients in the store, as etcd's clients make it: each has a key of its own below a prefix, attached to
//! its lease, and it is the turn of who came first. Locks and elections are both this, so that clients that call these services
//! and clients that do it by themselves stand in one line.

use super::{Service, refused};
use crate::error::StoreError;
use crate::pb::{self, compare, range_request, request_op::Request, response_op::Response};
use crate::store::{Access, WatchItem, WatchRequest};
use bytes::Bytes;
use tonic::Status;

/// Time to live in seconds of a lease that is made for a caller who has none; etcd's.
const SESSION_TTL: i64 = 60;

/// A place in a line.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) prefix: Bytes,
    pub(super) key: Bytes,
    pub(super) lease: i64,
    /// Revision that created the key.
    pub(super) revision: i64,
    /// The value there, if the place was taken before.
    pub(super) value: Option<Bytes>,
}

/// What the keys of a line start with.
pub(super) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

/// Whether a key was created at a revision; 0: does not exist.
fn created_at(key: &Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Create.into(),
        key: key.clone(),
        target_union: Some(compare::TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

fn get(key: &Bytes) -> pb::RequestOp {
    op(Request::RequestRange(pb::RangeRequest {
        key: key.clone(),
        ..Default::default()
    }))
}

fn first_kv(answer: &pb::TxnResponse) -> Option<&pb::KeyValue> {
    match answer.responses.first()?.response.as_ref()? {
        Response::ResponseRange(range) => range.kvs.first(),
        Response::ResponsePut(_) | Response::ResponseDeleteRange(_) | Response::ResponseTxn(_) => None,
    }
}

fn revision(header: Option<&pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

impl Service {
    /// The lease of a caller, or a new one.
    pub(super) async fn session(&self, access: &Access, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let granted = self.store.lease_grant(access, 0, SESSION_TTL).await;
        Ok(granted.map_err(refused)?.id)
    }

    /// Gets in line; whoever is in it by this lease keeps the place.
    pub(super) async fn join(&self, access: &Access, prefix: Bytes, lease: i64, value: Bytes) -> Result<Place, Status> {
        let key: Bytes = [prefix.as_ref(), format!("{lease:x}").as_bytes()].concat().into();
        let put = pb::PutRequest {
            key: key.clone(),
            value,
            lease,
            ..Default::default()
        };
        let txn = pb::TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![op(Request::RequestPut(put))],
            failure: vec![get(&key)],
        };
        self.check_room(access, crate::machine::growth(&txn)).await?;
        let answer = self.store.txn(access, txn).await.map_err(refused)?;
        let before = first_kv(&answer);
        let revision = before.map_or(revision(answer.header.as_ref()), |kv| kv.create_revision);
        let value = before.map(|kv| kv.value.clone());
        Ok(Place {
            prefix,
            key,
            lease,
            revision,
            value,
        })
    }

    /// Waits until nobody is in line before the place. Answers the place's key as it is then, none if its lease ended.
    ///
    /// A caller who goes away keeps the place until the lease ends, and finds it again by the same lease.
    pub(super) async fn turn(&self, access: &Access, place: &Place) -> Result<Option<pb::RangeResponse>, Status> {
        let before = pb::RangeRequest {
            key: place.prefix.clone(),
            range_end: crate::keys::prefix_end(&place.prefix).into(),
            limit: 1,
            keys_only: true,
            max_create_revision: place.revision - 1,
            sort_order: range_request::SortOrder::Descend.into(),
            sort_target: range_request::SortTarget::Create.into(),
            ..Default::default()
        };
        loop {
            let answer = self.store.range(access, before.clone()).await.map_err(refused)?;
            let Some(ahead) = answer.kvs.into_iter().next() else {
                break;
            };
            let from = revision(answer.header.as_ref()) + 1;
            self.deleted(access, ahead.key, from).await?;
        }
        let own = pb::RangeRequest {
            key: place.key.clone(),
            ..Default::default()
        };
        let own = self.store.range(access, own).await.map_err(refused)?;
        Ok(Some(own).filter(|own| own.kvs.first().is_some_and(|kv| kv.create_revision == place.revision)))
    }

    /// Waits until a key is deleted at a revision or later.
    async fn deleted(&self, access: &Access, key: Bytes, from: i64) -> Result<(), Status> {
        let request = WatchRequest {
            key,
            start_revision: from,
            no_put: true,
            ..Default::default()
        };
        let mut watch = self.store.watch(access, request).await.map_err(refused)?;
        loop {
            match watch.next().await {
                Some(WatchItem::Events { .. }) => return Ok(()),
                Some(WatchItem::Progress { .. }) => {}
                // The caller looks at the line anew.
                Some(WatchItem::Compacted { .. }) => return Ok(()),
                Some(WatchItem::Lagged) | None => return Err(refused(StoreError::Stopped)),
            }
        }
    }

    /// Who is first in a line, with the revision at which that was so.
    pub(super) async fn first(&self, access: &Access, prefix: &Bytes) -> Result<pb::RangeResponse, Status> {
        let request = pb::RangeRequest {
            key: prefix.clone(),
            range_end: crate::keys::prefix_end(prefix).into(),
            limit: 1,
            sort_order: range_request::SortOrder::Ascend.into(),
            sort_target: range_request::SortTarget::Create.into(),
            ..Default::default()
        };
        let mut answer = self.store.range(access, request).await.map_err(refused)?;
        self.complete(&mut answer.header);
        Ok(answer)
    }

    /// Does something with the key of a place, if it is still that place's. Answers the header, none if it is not.
    pub(super) async fn if_held(
        &self,
        access: &Access,
        key: &Bytes,
        revision: i64,
        request: Request,
    ) -> Result<Option<pb::ResponseHeader>, Status> {
        let txn = pb::TxnRequest {
            compare: vec![created_at(key, revision)],
            success: vec![op(request)],
            failure: Vec::new(),
        };
        self.check_room(access, crate::machine::growth(&txn)).await?;
        let mut answer = self.store.txn(access, txn).await.map_err(refused)?;
        self.complete(&mut answer.header);
        Ok(answer.header.filter(|_| answer.succeeded))
    }

    /// Leaves a line. Answers the header of the deletion.
    pub(super) async fn leave(&self, access: &Access, key: Bytes) -> Result<Option<pb::ResponseHeader>, Status> {
        let delete = pb::DeleteRangeRequest {
            key,
            ..Default::default()
        };
        let txn = pb::TxnRequest {
            success: vec![op(Request::RequestDeleteRange(delete))],
            ..Default::default()
        };
        let mut answer = self.store.txn(access, txn).await.map_err(refused)?;
        self.complete(&mut answer.header);
        Ok(answer.header)
    }
}
