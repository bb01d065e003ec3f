//! The quota: who would exceed it is refused, and an alarm makes all members refuse what grows until an operator has made room
//! and disarmed it.
//!
//! etcd measures the file of its database, which never shrinks without defragmentation. Here the bytes of the keys and their
//! history count, so compaction alone makes room.

use super::{Service, refused};
use crate::error::StoreError;
use crate::pb::AlarmType;
use crate::store::Access;
use tonic::Status;

/// Bytes that a lease counts for; etcd's.
pub(super) const LEASE_BYTES: u64 = 64;

impl Service {
    /// Refuses what would exceed the quota.
    pub(super) async fn check_room(&self, access: &Access, growth: u64) -> Result<(), Status> {
        let Some(quota) = self.settings.quota.filter(|_| growth > 0) else {
            return Ok(());
        };
        let machine = self.store.machine();
        let usage = machine.usage(access).map_err(refused)?;
        if usage.bytes.saturating_add(growth) <= quota {
            return Ok(());
        }
        let member = self.store.header().member_id;
        let kind = AlarmType::Nospace.into();
        let raised = machine.alarms(access).map_err(refused)?;
        if !raised
            .iter()
            .any(|alarm| alarm.member_id == member && alarm.alarm == kind)
        {
            tracing::warn!(used = usage.bytes, quota, "the quota is used up: raising the alarm");
            if let Err(error) = self.store.set_alarm(access, member, kind, true).await {
                // The write is refused all the same, and the next one raises it.
                tracing::warn!(%error, "the alarm could not be raised");
            }
        }
        Err(refused(StoreError::NoSpace))
    }
}
