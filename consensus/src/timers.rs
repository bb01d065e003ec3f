//! What happens by time. At the leader: leases that ran out are revoked through the log. At every member: versions that
//! nobody can read any more are removed, and idle watches hear how far the store is.
//!
//! Members' clocks are never compared: applied time is what leaders stamped, and it never runs backwards. A new leader first
//! gives every lease its whole time again, because nobody could have kept them alive while there was no leader.

use crate::group::Group;
use bytes::Bytes;
use hanse_runtime::BoxError;
use hanse_state::machine::Machine;
use hanse_state::pb::command::command::Op;
use hanse_state::pb::command::{ExpireLeases, ExtendLeases};
use hanse_state::{KeySpace, StoreError};
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often due leases are looked for; a lease may live longer than its time by so much.
const LEASE_TICK: Duration = Duration::from_millis(500);
/// Leases revoked by one command.
const LEASES: u32 = 256;
/// Wait after a failed proposal.
const RETRY: Duration = Duration::from_millis(500);
/// How often members look for versions to remove.
const UPKEEP_TICK: Duration = Duration::from_secs(1);
/// Watches are told every so many ticks.
const TICKS_PER_PROGRESS: u64 = 5;
/// Keys looked at in one step of removal.
const KEYS_PER_STEP: usize = 512;
/// Between two steps, so that removal leaves room for everything else.
const STEP_PAUSE: Duration = Duration::from_millis(2);

impl Group {
    /// A command about the whole group; the leader stamps its time.
    fn timer_command(op: Op) -> Bytes {
        Machine::command(0, &KeySpace::Registry, None, op)
            .encode_to_vec()
            .into()
    }

    async fn lead_leases(&self) -> Result<(), StoreError> {
        self.propose(Self::timer_command(Op::ExtendLeases(ExtendLeases {})))
            .await?;
        while self.leadership.borrow().here {
            self.clock().sleep(LEASE_TICK).await;
            let now = self.clock().wall().as_millis();
            let due = self.machine.next_deadline().is_some_and(|deadline| deadline <= now);
            if due && self.leadership.borrow().here {
                self.propose(Self::timer_command(Op::ExpireLeases(ExpireLeases { limit: LEASES })))
                    .await?;
            }
        }
        Ok(())
    }
}

/// Revokes leases whenever this server leads, until `stop`.
pub async fn expire_leases(group: Arc<Group>, stop: CancellationToken) -> Result<(), BoxError> {
    let mut leadership = group.leadership.subscribe();
    loop {
        let lead = async {
            if leadership.wait_for(|now| now.here).await.is_err() {
                return false;
            }
            if let Err(error) = group.lead_leases().await {
                tracing::warn!(group = %group.id, %error, "the lease timers of this leader start anew");
                group.clock().sleep(RETRY).await;
            }
            true
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            go_on = lead => if !go_on { return Ok(()) },
        }
    }
}

/// Keeps this member's state tidy, until `stop`.
pub async fn keep_house(group: Arc<Group>, stop: CancellationToken) -> Result<(), BoxError> {
    let mut tick = 0;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = group.clock().sleep(UPKEEP_TICK) => {}
        }
        tick += 1;
        if tick % TICKS_PER_PROGRESS == 0 {
            group.machine.tick();
        }
        while group.machine.prune(KEYS_PER_STEP)? && !stop.is_cancelled() {
            group.clock().sleep(STEP_PAUSE).await;
        }
    }
}
