//! The quota: who would exceed it is refused, and an alarm makes all members refuse what grows until an operator has made room
//! and disarmed it.
//!
//! etcd measures the file of its database, which never shrinks without defragmentation. Here the bytes of the keys and their
//! history count, so compaction alone makes room.
//!
//! A space with limits of its own needs nobody: what exists is counted where commands are applied, and its history is compacted
//! here when there is too much of it. It must not be left to the tenant, whose kube-apiserver writes a key before it compacts.

use super::{Service, refused};
use crate::error::StoreError;
use crate::machine::limits::HISTORY;
use crate::pb::AlarmType;
use crate::store::{Access, SpaceUsage};
use tonic::Status;

/// Bytes that a lease counts for; etcd's.
pub(super) const LEASE_BYTES: u64 = 64;

impl Service {
    /// Refuses what would exceed the quota.
    pub(super) async fn check_room(&self, access: &Access, growth: u64) -> Result<(), Status> {
        if growth == 0 {
            return Ok(());
        }
        let machine = self.store.machine();
        let usage = machine.usage(access).map_err(refused)?;
        if usage.limits.bytes > 0 {
            self.bound_history(access, &usage, growth).await?;
        }
        let Some(quota) = self.settings.quota else {
            return Ok(());
        };
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

    /// Compacts a space that has much history, and refuses growth while there is too much of it because members are still busy
    /// removing it.
    async fn bound_history(&self, access: &Access, usage: &SpaceUsage, growth: u64) -> Result<(), Status> {
        let history = usage.bytes.saturating_sub(usage.live_bytes);
        let most = usage.limits.bytes.saturating_mul(HISTORY);
        if history > most / 2 {
            self.compact_history(access).await;
        }
        if history.saturating_add(growth) > most {
            return Err(refused(StoreError::NoSpace));
        }
        Ok(())
    }

    /// One compaction after the other: while one is not through, another would not help.
    async fn compact_history(&self, access: &Access) {
        let Ok(_only) = self.compacting.try_lock() else { return };
        let machine = self.store.machine();
        if !machine.is_pruned(access).unwrap_or(false) {
            return;
        }
        let revision = machine.revision();
        match self.store.compact(access, revision).await {
            Ok(_) => tracing::info!(
                space = access.space.tenant(),
                revision,
                "compacted: it had much history"
            ),
            // Whoever writes next tries again.
            Err(error) => tracing::debug!(space = access.space.tenant(), %error, "not compacted"),
        }
    }
}
