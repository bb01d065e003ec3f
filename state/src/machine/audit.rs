//! Bounds of audited transactions. How events are chained is said in [`hanse_api::audit`]; where, in
//! [`crate::machine::txn`]: when the command is applied, because only there the order is known, and so that writers need
//! not agree on an end of the chain before.

use crate::error::StoreError;
use crate::keys::KeySpace;
use crate::machine::{MAX_REQUEST_BYTES, check_txn};
use crate::pb;
use crate::pb::command::AuditedTxn;
use prost::Message as _;

/// Events of one transaction.
pub const MAX_EVENTS: usize = 64;
/// Bytes of one event.
pub const MAX_EVENT_BYTES: usize = 16 * 1024;

/// Checks and puts together an audited transaction, before it is proposed.
pub fn check_audited(txn: pb::TxnRequest, events: Vec<String>) -> Result<AuditedTxn, StoreError> {
    let audited = AuditedTxn { txn: Some(txn), events };
    check(&KeySpace::Registry, &audited)?;
    Ok(audited)
}

/// Refuses what is too large, or not of the registry: tenants' writes are audited by their own API servers.
pub(crate) fn check(space: &KeySpace, audited: &AuditedTxn) -> Result<(), StoreError> {
    if *space != KeySpace::Registry {
        return Err(StoreError::InvalidTenant(space.tenant().to_owned()));
    }
    let AuditedTxn { txn, events } = audited;
    if events.len() > MAX_EVENTS {
        return Err(StoreError::TooManyOps);
    }
    let large = events.iter().any(|event| event.len() > MAX_EVENT_BYTES);
    if large || audited.encoded_len() > MAX_REQUEST_BYTES + MAX_EVENT_BYTES {
        return Err(StoreError::TooLarge);
    }
    txn.as_ref().map_or(Ok(()), check_txn)
}
