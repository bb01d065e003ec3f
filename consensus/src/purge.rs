//! How much of a group's log stays.
//!
//! A member keeps some entries and bytes that its state has in it already, so that another one that was away for a moment replays
//! instead of taking a snapshot. A leader keeps more while a follower or a learner is behind, because a snapshot costs far more,
//! but not without end: one that never comes back must not fill the others' disks. Each member looks every second.

use crate::config::Settings;
use crate::error::ConsensusError;
use crate::group::Group;
use crate::log_size::LogSize;
use crate::log_store::LogStore;
use crate::types::{LogId, TypeConfig};
use hanse_runtime::BoxError;
use openraft::async_runtime::WatchReceiver;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks.
const TICK: Duration = Duration::from_secs(1);
/// So many times the usual entries stay for a member that is behind. What openraft purges by itself is beyond them.
pub(crate) const HOLD: u64 = 4;

/// Where a log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    /// Last entry that is applied here.
    applied: u64,
    /// Last entry that was purged; 0: none.
    purged: u64,
    /// What the member furthest behind has; none: nobody needs entries from here.
    slowest: Option<u64>,
}

/// Up to where to purge, if there is enough to purge. Pure.
fn upto(settings: &Settings, log: &LogSize, place: Place) -> Option<u64> {
    let Place {
        applied,
        purged,
        slowest,
    } = place;
    let by_bytes = |keep: u64| log.beyond(keep).unwrap_or(0);
    let usual = applied
        .saturating_sub(settings.keep_entries)
        .max(by_bytes(settings.keep_bytes));
    let held = slowest.map_or(usual, |slowest| usual.min(slowest));
    let last_resort = applied
        .saturating_sub(settings.keep_entries.saturating_mul(HOLD))
        .max(by_bytes(settings.hold_bytes));
    let upto = held.max(last_resort).min(applied);
    // Bytes may be many in few entries, so a purge for them is never too small.
    let worth_it = upto >= purged.saturating_add(settings.purge_stride) || log.bytes() > settings.keep_bytes;
    (upto > purged && worth_it).then_some(upto)
}

async fn look(group: &Group, log: &LogStore) -> Result<(), ConsensusError> {
    let (place, snapshot) = {
        let metrics = group.raft.metrics();
        let seen = metrics.borrow_watched();
        let matched = |matched: &Option<LogId>| matched.as_ref().map_or(0, |id| id.index);
        let others = seen.replication.iter().flatten().filter(|(id, _)| **id != group.me);
        let place = Place {
            applied: seen.last_applied.as_ref().map_or(0, |id| id.index),
            purged: seen.purged.as_ref().map_or(0, |id| id.index),
            slowest: others.map(|(_, id)| matched(id)).min(),
        };
        (place, seen.snapshot.as_ref().map_or(0, |id| id.index))
    };
    let Some(upto) = log.with_size(|size| upto(group.settings(), size, place)) else {
        return Ok(());
    };
    let fault = |error: openraft::errors::Fatal<TypeConfig>| ConsensusError::Raft {
        group: group.id,
        what: "purge its log",
        fault: error.to_string(),
    };
    // What is purged must be in a snapshot, which costs nothing here: the state on disk is one.
    if snapshot < upto {
        return group.raft.trigger().snapshot().await.map_err(fault);
    }
    tracing::debug!(group = %group.id, upto, "purging the log");
    group.raft.trigger().purge_log(upto).await.map_err(fault)
}

/// Keeps the log short, until `stop`.
pub(crate) async fn keep_short(group: Arc<Group>, log: LogStore, stop: CancellationToken) -> Result<(), BoxError> {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = group.clock().sleep(TICK) => {}
        }
        if let Err(error) = look(&group, &log).await {
            // Raft has stopped; whoever waits for that says why.
            tracing::debug!(group = %group.id, %error, "the log is not looked at any more");
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A hundred entries of a mebibyte.
    fn hundred() -> LogSize {
        let mut log = LogSize::default();
        (1..=100).for_each(|index| log.append(index, MIB));
        log
    }

    fn settings(keep_entries: u64, keep_mib: u64, hold_mib: u64) -> Settings {
        Settings {
            keep_entries,
            keep_bytes: keep_mib * MIB,
            hold_bytes: hold_mib * MIB,
            purge_stride: 10,
            ..Settings::default()
        }
    }

    fn at(applied: u64, slowest: Option<u64>) -> Place {
        Place {
            applied,
            purged: 0,
            slowest,
        }
    }

    #[test]
    fn entries_and_bytes_bound_the_log_and_the_slowest_member_holds_it_for_a_while() {
        let log = hundred();
        let purge = |settings: Settings, place| upto(&settings, &log, place);
        assert_eq!(purge(settings(30, 1000, 2000), at(100, None)), Some(70), "by entries");
        assert_eq!(purge(settings(1000, 20, 2000), at(100, None)), Some(80), "by bytes");
        assert_eq!(
            purge(settings(1000, 20, 2000), at(100, Some(95))),
            Some(80),
            "nobody is behind"
        );
        assert_eq!(
            purge(settings(1000, 20, 2000), at(100, Some(40))),
            Some(40),
            "held by one"
        );
        assert_eq!(
            purge(settings(1000, 20, 50), at(100, Some(40))),
            Some(50),
            "not for ever: bytes"
        );
        assert_eq!(
            purge(settings(15, 1000, 2000), at(100, Some(0))),
            Some(40),
            "not for ever: entries"
        );
        assert_eq!(
            purge(settings(1000, 20, 2000), at(100, Some(0))),
            None,
            "a learner that has nothing yet"
        );
        assert_eq!(
            purge(settings(1000, 20, 2000), at(60, None)),
            Some(60),
            "never what is not applied"
        );
        assert_eq!(purge(settings(1000, 1000, 2000), at(100, None)), None, "short enough");
    }

    #[test]
    fn a_little_is_not_worth_a_purge() {
        let log = hundred();
        let place = Place {
            purged: 65,
            ..at(100, None)
        };
        assert_eq!(upto(&settings(30, 1000, 2000), &log, place), None);
        let place = Place {
            purged: 60,
            ..at(100, None)
        };
        assert_eq!(upto(&settings(30, 1000, 2000), &log, place), Some(70));
    }
}
