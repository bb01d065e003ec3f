//! The disk fills up: writes that grow are refused before it is full, reads and deletions go on.
//!
//! Every server looks at its own disk and asks the others for theirs, as a member that cannot write any more stops, and with it its
//! part of every group. Nothing of this is in the log: it needs no operator to end it, there is only to be room again. The
//! tenants' writes are refused first; the control plane's own have as much again in reserve, because its leases are what room is
//! made with.

use crate::network::Peers;
use crate::status::ask_all;
use crate::types::{GroupId, Member, NodeId};
use hanse_runtime::BoxError;
use hanse_runtime::meter::Family;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks.
const TICK: Duration = Duration::from_secs(2);
/// A number that says that nobody has looked yet.
const UNKNOWN: u64 = u64::MAX;

/// Where a server's data lies.
pub trait Disk: Send + Sync + 'static {
    /// Bytes that are free.
    fn free(&self) -> io::Result<u64>;
}

/// What is known of the disks.
pub struct Disks {
    /// The one that is watched, and the bytes that must be free on each.
    watched: OnceLock<(Box<dyn Disk>, u64)>,
    own: AtomicU64,
    /// The least that any server has.
    least: AtomicU64,
    /// What refuses now: bytes that must be free, more than when it began, so that it does not begin and end all the time.
    needed: AtomicU64,
}

impl fmt::Debug for Disks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disks")
            .field("least", &self.least)
            .finish_non_exhaustive()
    }
}

impl Default for Disks {
    fn default() -> Self {
        Self {
            watched: OnceLock::new(),
            own: AtomicU64::new(UNKNOWN),
            least: AtomicU64::new(UNKNOWN),
            needed: AtomicU64::new(0),
        }
    }
}

/// Bytes that must be free, by those that must be free at first: while they are not, a quarter more. Pure.
fn needed(limit: u64, before: u64, least: u64) -> u64 {
    let more = limit.saturating_add(limit / 4);
    if least < limit || before > limit && least < more {
        more
    } else {
        limit
    }
}

impl Disks {
    /// From now on this server's disk counts. The first call counts.
    pub(crate) fn watch(&self, disk: Box<dyn Disk>, limit: u64) {
        let (_, limit) = self.watched.get_or_init(|| (disk, limit));
        self.needed.store(*limit, Ordering::Relaxed);
        self.look(std::iter::empty());
    }

    /// What this server tells the others; 0: it does not know.
    pub(crate) fn told(&self) -> u64 {
        match self.own.load(Ordering::Relaxed) {
            UNKNOWN => 0,
            free => free.max(1),
        }
    }

    /// Whether what grows is refused in a group.
    pub(crate) fn refuses(&self, group: GroupId) -> bool {
        let needed = self.needed.load(Ordering::Relaxed);
        let needed = if group == GroupId::COUNCIL { needed / 2 } else { needed };
        self.least.load(Ordering::Relaxed) < needed
    }

    /// Looks at this server's disk; the others' are as they told.
    fn look(&self, others: impl Iterator<Item = u64>) {
        let Some((disk, limit)) = self.watched.get() else {
            return;
        };
        match disk.free() {
            Ok(free) => self.own.store(free, Ordering::Relaxed),
            Err(error) => tracing::warn!(%error, "the free space of the data directory's disk is not known"),
        }
        let own = self.own.load(Ordering::Relaxed);
        let least = others.filter(|told| *told > 0).fold(own, u64::min);
        let before = self.needed.load(Ordering::Relaxed);
        let now = needed(*limit, before, least);
        self.least.store(least, Ordering::Relaxed);
        self.needed.store(now, Ordering::Relaxed);
        if now > before {
            let (free_mib, own_mib) = (least >> 20, own >> 20);
            tracing::error!(
                free_mib,
                own_mib,
                "a server's disk is nearly full: what grows is refused until there is room on it"
            );
        } else if now < before {
            tracing::info!(free_mib = least >> 20, "there is room on all disks again");
        }
    }

    /// As they are shown.
    pub(crate) fn families(&self) -> Vec<Family> {
        let own = self.own.load(Ordering::Relaxed);
        if own == UNKNOWN {
            return Vec::new();
        }
        let refuses = u64::from(self.refuses(GroupId::TENANTS));
        vec![
            Family::gauge(
                "hanse_store_disk_free_bytes",
                "Bytes that are free where this server's data lies.",
                own,
            ),
            Family::gauge(
                "hanse_store_disk_refuses",
                "Whether tenants' writes are refused because a server's disk is nearly full.",
                refuses,
            ),
        ]
    }

    /// Looks again and again, until `stop`.
    pub(crate) async fn keep_looking(
        &self,
        peers: &Peers,
        members: impl Fn() -> BTreeMap<NodeId, Member>,
        stop: CancellationToken,
    ) -> Result<(), BoxError> {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = peers.clock().sleep(TICK) => {}
            }
            let answers = ask_all(peers, &members()).await;
            self.look(
                answers
                    .iter()
                    .flat_map(|(_, reply)| reply)
                    .map(|reply| reply.free_bytes),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    struct Given(Arc<AtomicU64>);

    impl Disk for Given {
        fn free(&self) -> io::Result<u64> {
            Ok(self.0.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn writes_are_refused_before_a_disk_is_full_and_taken_when_there_is_room() {
        let (free, disks) = (Arc::new(AtomicU64::new(1000)), Disks::default());
        assert!(!disks.refuses(GroupId::TENANTS), "nothing is known");
        assert_eq!(disks.told(), 0);
        disks.watch(Box::new(Given(Arc::clone(&free))), 400);
        let refuses = |own: u64, others: &[u64]| {
            free.store(own, Ordering::Relaxed);
            disks.look(others.iter().copied());
            (disks.refuses(GroupId::TENANTS), disks.refuses(GroupId::COUNCIL))
        };
        assert_eq!(refuses(400, &[0, 500]), (false, false), "0 is no answer");
        assert_eq!(refuses(399, &[]), (true, false));
        assert_eq!(disks.told(), 399);
        assert_eq!(refuses(450, &[]), (true, false), "a little is not room");
        assert_eq!(refuses(500, &[]), (false, false));
        assert_eq!(refuses(450, &[]), (false, false));
        assert_eq!(refuses(900, &[100, 800]), (true, true), "another server's");
        assert_eq!(refuses(0, &[]), (true, true));
        assert_eq!(disks.told(), 1);
    }
}
