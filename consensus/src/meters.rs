//! What a group counts of itself on this member, shown under etcd's names where etcd has one.

use crate::group::Group;
use crate::group::Leadership;
use crate::types::NodeId;
use hanse_runtime::BoxError;
use hanse_runtime::meter::{Family, Histogram, Stopwatch};
use hanse_state::meters::{Count, InFlight};
use openraft::async_runtime::WatchReceiver;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Snapshots of one group, there and back, and its log.
#[derive(Debug, Default)]
pub struct SnapshotMeters {
    pub(crate) sending: InFlight,
    pub(crate) sent_bytes: Count,
    pub(crate) receiving: InFlight,
    pub(crate) received_bytes: Count,
    /// Of the last snapshot that came in, as far as it came.
    pub(crate) held_bytes: AtomicU64,
    /// Transfers from here that went on after a break.
    pub(crate) resumed: Count,
    pub(crate) installing: InFlight,
    pub(crate) installed_bytes: Count,
    pub(crate) installed: Count,
    /// Bytes of the log.
    pub(crate) log_bytes: OnceLock<Arc<AtomicU64>>,
}

/// Linearizable reads of one group at this member.
#[derive(Debug, Default)]
pub struct ReadCounts {
    pub(crate) reads: Count,
    pub(crate) rounds: Count,
}

/// Proposals and leaders of one group.
#[derive(Debug)]
pub struct GroupMeters {
    pub(crate) stopwatch: Stopwatch,
    /// From the proposal of a write at this member to its outcome here.
    pub(crate) commit: Histogram,
    pub(crate) failed: Count,
    leader_changes: Count,
}

impl Default for GroupMeters {
    fn default() -> Self {
        Self {
            stopwatch: Stopwatch::default(),
            commit: Histogram::of_disk(),
            failed: Count::default(),
            leader_changes: Count::default(),
        }
    }
}

impl GroupMeters {
    /// Counts the leaders that this member sees, until `stop`. One that was away and comes back counts once if nobody led
    /// meanwhile, as with etcd.
    pub(crate) async fn count_leaders(
        self: Arc<Self>,
        mut leadership: watch::Receiver<Leadership>,
        stop: CancellationToken,
    ) -> Result<(), BoxError> {
        let mut known: Option<(NodeId, u64)> = None;
        loop {
            let (leader, term) = {
                let now = leadership.borrow_and_update();
                (now.leader, now.term)
            };
            if let Some(leader) = leader
                && known != Some((leader, term))
            {
                known = Some((leader, term));
                self.leader_changes.add(1);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                changed = leadership.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }
}

/// Everything that is counted of a group on this member.
pub(crate) fn families(group: &Group, meters: &GroupMeters) -> Vec<Family> {
    let committed = group
        .raft
        .metrics()
        .borrow_watched()
        .local_committed
        .as_ref()
        .map_or(0, |id| id.index);
    let snapshots = group.arrivals.spool().meters();
    let mut families = group.machine.families();
    families.extend([
        Family::gauge(
            "etcd_server_proposals_committed_total",
            "Last index that this member knows to be on a quorum.",
            committed,
        ),
        Family::gauge(
            "etcd_server_proposals_pending",
            "Writes of this member that wait for their outcome.",
            group.pending.len() as u64,
        ),
        Family::counter(
            "etcd_server_proposals_failed_total",
            "Writes of this member that ended without an outcome.",
            meters.failed.get(),
        ),
        Family::counter(
            "etcd_server_leader_changes_seen_total",
            "Leaders that this member saw take over.",
            meters.leader_changes.get(),
        ),
        Family::counter(
            "hanse_store_linearizable_reads_total",
            "Reads of this member that had to see everything acknowledged before them.",
            group.read_counts.reads.get(),
        ),
        Family::counter(
            "hanse_store_read_rounds_total",
            "Questions to the leader how far such reads must see; reads that come together share one.",
            group.read_counts.rounds.get(),
        ),
        Family::histogram(
            "hanse_store_commit_duration_seconds",
            "Time from the proposal of a write at this member to its outcome.",
            Vec::new(),
            &meters.commit,
        ),
    ]);
    families.extend(of_snapshots(snapshots));
    families
}

fn of_snapshots(meters: &SnapshotMeters) -> [Family; 10] {
    [
        Family::gauge(
            "hanse_store_log_bytes",
            "Bytes of the log on this member.",
            meters.log_bytes.get().map_or(0, |bytes| bytes.load(Ordering::Relaxed)),
        ),
        Family::gauge(
            "etcd_server_snapshot_apply_in_progress_total",
            "Snapshots that are being installed.",
            meters.installing.get(),
        ),
        Family::gauge(
            "hanse_store_snapshots_sending",
            "Snapshots on their way out.",
            meters.sending.get(),
        ),
        Family::gauge(
            "hanse_store_snapshots_receiving",
            "Snapshots on their way in.",
            meters.receiving.get(),
        ),
        Family::counter(
            "hanse_store_snapshot_sent_bytes_total",
            "Bytes of snapshots that were read to be sent.",
            meters.sent_bytes.get(),
        ),
        Family::counter(
            "hanse_store_snapshot_received_bytes_total",
            "Bytes of snapshots that came in.",
            meters.received_bytes.get(),
        ),
        Family::gauge(
            "hanse_store_snapshot_held_bytes",
            "Bytes of the last snapshot that came in, as far as it came.",
            meters.held_bytes.load(Ordering::Relaxed),
        ),
        Family::counter(
            "hanse_store_snapshots_resumed_total",
            "Transfers of snapshots from this member that went on after a break.",
            meters.resumed.get(),
        ),
        Family::counter(
            "hanse_store_snapshot_installed_bytes_total",
            "Bytes of snapshots that were put in place.",
            meters.installed_bytes.get(),
        ),
        Family::counter(
            "hanse_store_snapshots_installed_total",
            "Snapshots that were put in place.",
            meters.installed.get(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::meter;

    #[tokio::test]
    async fn a_leader_counts_when_it_takes_over() {
        let meters = Arc::new(GroupMeters::default());
        let (says, hears) = watch::channel(Leadership::default());
        let stop = CancellationToken::new();
        let counting = Arc::clone(&meters).count_leaders(hears, stop.clone());
        let told = async {
            for (leader, term, wanted) in [
                (Some(1), 1, 1),
                (None, 2, 1),
                (Some(1), 1, 1),
                (Some(1), 3, 2),
                (Some(2), 4, 3),
            ] {
                says.send_replace(Leadership {
                    leader,
                    term,
                    ..Leadership::default()
                });
                while meters.leader_changes.get() != wanted {
                    tokio::task::yield_now().await;
                }
                tokio::task::yield_now().await;
            }
            stop.cancel();
        };
        let (done, ()) = tokio::join!(counting, told);
        done.unwrap();
        assert_eq!(meters.leader_changes.get(), 3);
    }

    #[test]
    fn what_is_under_way_shows() {
        let meters = SnapshotMeters::default();
        let _under_way = meters.installing.begin();
        let text = meter::text(&of_snapshots(&meters));
        assert!(
            text.contains("etcd_server_snapshot_apply_in_progress_total 1\n"),
            "{text}"
        );
    }
}
