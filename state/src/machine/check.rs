//! What is wrong with a request, whatever the state: etcd's checks, in etcd's order.

use super::{MAX_REQUEST_BYTES, MAX_TXN_OPS};
use crate::error::StoreError;
use crate::machine::alarm::put_bytes;
use crate::machine::index::KeyRange;
use crate::pb::{self, range_request, request_op::Request};
use bytes::Bytes;
use prost::Message;
use std::collections::HashSet;

/// Checks a range request.
pub fn check_range(req: &pb::RangeRequest) -> Result<(), StoreError> {
    if req.key.is_empty() {
        return Err(StoreError::EmptyKey);
    }
    let order = range_request::SortOrder::try_from(req.sort_order);
    let target = range_request::SortTarget::try_from(req.sort_target);
    if order.is_err() || target.is_err() {
        return Err(StoreError::InvalidSort);
    }
    Ok(())
}

/// Checks a put request.
pub fn check_put(req: &pb::PutRequest) -> Result<(), StoreError> {
    if req.key.is_empty() {
        return Err(StoreError::EmptyKey);
    }
    if req.ignore_value && !req.value.is_empty() {
        return Err(StoreError::ValueProvided);
    }
    if req.ignore_lease && req.lease != 0 {
        return Err(StoreError::LeaseProvided);
    }
    Ok(())
}

/// Checks a delete request.
pub fn check_delete(req: &pb::DeleteRangeRequest) -> Result<(), StoreError> {
    if req.key.is_empty() {
        Err(StoreError::EmptyKey)
    } else {
        Ok(())
    }
}

/// Checks a transaction.
pub fn check_txn(req: &pb::TxnRequest) -> Result<(), StoreError> {
    if req.encoded_len() > MAX_REQUEST_BYTES {
        return Err(StoreError::TooLarge);
    }
    check_ops(req, MAX_TXN_OPS)?;
    changed_keys(&req.success)?;
    changed_keys(&req.failure)?;
    Ok(())
}

/// Whether a transaction can change nothing, whichever way its compares turn out.
pub fn is_read_only(req: &pb::TxnRequest) -> bool {
    let reads = |op: &pb::RequestOp| match &op.request {
        Some(Request::RequestRange(_)) | None => true,
        Some(Request::RequestTxn(txn)) => is_read_only(txn),
        Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) => false,
    };
    req.success.iter().chain(&req.failure).all(reads)
}

/// Bytes that a transaction adds at most, whichever way its compares turn out; 0 only if it has no put at all.
pub fn growth(req: &pb::TxnRequest) -> u64 {
    let of = |op: &pb::RequestOp| match &op.request {
        Some(Request::RequestPut(put)) => put_bytes(put),
        Some(Request::RequestTxn(txn)) => growth(txn),
        Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => 0,
    };
    let branch = |ops: &[pb::RequestOp]| ops.iter().map(of).sum::<u64>();
    branch(&req.success).max(branch(&req.failure))
}

fn check_ops(req: &pb::TxnRequest, left: usize) -> Result<(), StoreError> {
    let most = req.compare.len().max(req.success.len()).max(req.failure.len());
    let left = left.checked_sub(most).ok_or(StoreError::TooManyOps)?;
    if req.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(StoreError::EmptyKey);
    }
    for op in req.success.iter().chain(&req.failure) {
        match &op.request {
            Some(Request::RequestRange(range)) => check_range(range)?,
            Some(Request::RequestPut(put)) => check_put(put)?,
            Some(Request::RequestDeleteRange(delete)) => check_delete(delete)?,
            Some(Request::RequestTxn(txn)) => check_ops(txn, left)?,
            // etcd answers so to an operation without content.
            None => return Err(StoreError::KeyNotFound),
        }
    }
    Ok(())
}

#[derive(Default)]
struct Changed {
    puts: HashSet<Bytes>,
    deletes: Vec<KeyRange>,
}

impl Changed {
    fn put(&mut self, key: &Bytes) -> Result<(), StoreError> {
        if self.deleted(key) || !self.puts.insert(key.clone()) {
            return Err(StoreError::DuplicateKey);
        }
        Ok(())
    }

    fn deleted(&self, key: &[u8]) -> bool {
        self.deletes.iter().any(|range| range.contains(key))
    }
}

/// Refuses a list of operations that puts a key twice or puts and deletes it. The branches of one nested transaction
/// may do what excludes each other, because only one of them runs.
fn changed_keys(ops: &[pb::RequestOp]) -> Result<Changed, StoreError> {
    let mut all = Changed::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            all.deletes.push(KeyRange::new(&delete.key, &delete.range_end));
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(txn)) = &op.request else {
            continue;
        };
        let then = changed_keys(&txn.success)?;
        let otherwise = changed_keys(&txn.failure)?;
        for key in &then.puts {
            all.put(key)?;
        }
        for key in &otherwise.puts {
            if all.deleted(key) || (!all.puts.insert(key.clone()) && !then.puts.contains(key)) {
                return Err(StoreError::DuplicateKey);
            }
        }
        all.deletes.extend(then.deletes);
        all.deletes.extend(otherwise.deletes);
    }
    for op in ops {
        if let Some(Request::RequestPut(put)) = &op.request {
            all.put(&put.key)?;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn put(key: &'static str) -> pb::RequestOp {
        op(Request::RequestPut(pb::PutRequest {
            key: key.into(),
            ..Default::default()
        }))
    }

    fn delete(key: &'static str, end: &'static str) -> pb::RequestOp {
        op(Request::RequestDeleteRange(pb::DeleteRangeRequest {
            key: key.into(),
            range_end: end.into(),
            ..Default::default()
        }))
    }

    fn nested(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
        op(Request::RequestTxn(pb::TxnRequest {
            compare: vec![],
            success,
            failure,
        }))
    }

    fn check(success: Vec<pb::RequestOp>) -> Result<(), StoreError> {
        check_txn(&pb::TxnRequest {
            compare: vec![],
            success,
            failure: vec![],
        })
    }

    #[test]
    fn no_key_changes_twice() {
        assert_eq!(check(vec![put("a"), put("b")]), Ok(()));
        assert_eq!(check(vec![put("a"), put("a")]), Err(StoreError::DuplicateKey));
        assert_eq!(check(vec![put("b"), delete("a", "c")]), Err(StoreError::DuplicateKey));
        assert_eq!(check(vec![delete("a", "c"), delete("b", "d")]), Ok(()));
        assert_eq!(check(vec![nested(vec![put("a")], vec![put("a")])]), Ok(()));
        assert_eq!(
            check(vec![put("a"), nested(vec![], vec![put("a")])]),
            Err(StoreError::DuplicateKey)
        );
        assert_eq!(
            check(vec![delete("a", ""), nested(vec![put("a")], vec![])]),
            Err(StoreError::DuplicateKey)
        );
    }

    #[test]
    fn operations_are_bounded() {
        let puts = |n: usize| (0..n).map(|_| delete("a", "")).collect::<Vec<_>>();
        assert_eq!(check(puts(MAX_TXN_OPS)), Ok(()));
        assert_eq!(check(puts(MAX_TXN_OPS + 1)), Err(StoreError::TooManyOps));
        assert_eq!(
            check(vec![nested(puts(MAX_TXN_OPS), vec![])]),
            Err(StoreError::TooManyOps)
        );
        assert_eq!(check(vec![put("")]), Err(StoreError::EmptyKey));
    }
}
