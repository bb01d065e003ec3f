//! What a store counts of itself, and the families that it is shown as: etcd's names where etcd has one.

use crate::pb::command::{command::Op, outcome::Answer};
use crate::pb::{Command, Outcome, TxnRequest, request_op::Request};
use hanse_runtime::meter::{Family, Histogram, Kind, Stopwatch};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Something that is counted.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Counts so many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Something that is under way as long as its guard lives.
#[derive(Debug, Default)]
pub struct InFlight(Arc<AtomicU64>);

/// See [`InFlight`].
#[derive(Debug)]
pub struct Under(Arc<AtomicU64>);

impl InFlight {
    /// Counts until the guard is dropped.
    pub fn begin(&self) -> Under {
        self.0.fetch_add(1, Ordering::Relaxed);
        Under(Arc::clone(&self.0))
    }

    /// How many are under way.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Of the log writer.
#[derive(Debug)]
pub struct WriterMeters {
    pub(crate) stopwatch: Stopwatch,
    /// How long each sync took.
    pub(crate) sync: Histogram,
    /// Requests that were made durable; with the number of syncs, how many share one.
    pub(crate) requests: Count,
}

impl Default for WriterMeters {
    fn default() -> Self {
        Self {
            stopwatch: Stopwatch::default(),
            sync: Histogram::of_disk(),
            requests: Count::default(),
        }
    }
}

impl WriterMeters {
    /// As they are shown.
    pub fn families(&self) -> Vec<Family> {
        vec![
            Family::histogram(
                "etcd_disk_wal_fsync_duration_seconds",
                "Time of a sync of the log.",
                Vec::new(),
                &self.sync,
            ),
            Family::counter(
                "hanse_store_log_requests_total",
                "Requests that were made durable; many share one sync.",
                self.requests.get(),
            ),
        ]
    }
}

/// Of a machine: what was applied on this member since its start.
#[derive(Debug)]
pub(crate) struct MachineMeters {
    pub(crate) stopwatch: Stopwatch,
    /// How long it took to write a batch of applied changes to the engine.
    pub(crate) commit: Histogram,
    /// How long it took to apply a batch, its commit included.
    pub(crate) apply: Histogram,
    pub(crate) commands: Count,
    pub(crate) refused: Count,
    pub(crate) puts: Count,
    pub(crate) deletes: Count,
    pub(crate) txns: Count,
    pub(crate) ranges: Count,
    pub(crate) leases: Leases,
}

/// What became of leases.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    pub(crate) granted: Count,
    pub(crate) revoked: Count,
    pub(crate) renewed: Count,
    pub(crate) expired: Count,
}

impl Default for MachineMeters {
    fn default() -> Self {
        Self {
            stopwatch: Stopwatch::default(),
            commit: Histogram::of_disk(),
            apply: Histogram::of_requests(),
            commands: Count::default(),
            refused: Count::default(),
            puts: Count::default(),
            deletes: Count::default(),
            txns: Count::default(),
            ranges: Count::default(),
            leases: Leases::default(),
        }
    }
}

/// What a command is for, taken before it is consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    Put,
    Delete,
    Txn,
    Grant,
    Revoke,
    KeepAlive,
    Expire,
    Other,
}

impl Sort {
    pub(crate) fn of(command: &Command) -> Self {
        match &command.op {
            Some(Op::Txn(txn)) => Self::of_txn(txn),
            Some(Op::AuditedTxn(_)) => Self::Txn,
            Some(Op::LeaseGrant(_)) => Self::Grant,
            Some(Op::LeaseRevoke(_)) => Self::Revoke,
            Some(Op::LeaseKeepAlive(_)) => Self::KeepAlive,
            Some(Op::ExpireLeases(_)) => Self::Expire,
            _ => Self::Other,
        }
    }

    /// A lone put or deletion goes through the log as a transaction of one operation.
    fn of_txn(txn: &TxnRequest) -> Self {
        match (&txn.success[..], txn.compare.is_empty() && txn.failure.is_empty()) {
            ([one], true) => match one.request {
                Some(Request::RequestPut(_)) => Self::Put,
                Some(Request::RequestDeleteRange(_)) => Self::Delete,
                _ => Self::Txn,
            },
            _ => Self::Txn,
        }
    }
}

impl MachineMeters {
    /// Counts a command and what it was answered.
    pub(crate) fn applied(&self, sort: Sort, outcome: &Outcome) {
        self.commands.add(1);
        let expired = match &outcome.answer {
            Some(Answer::Refusal(_)) | None => return self.refused.add(1),
            Some(Answer::Expired(expired)) => u64::from(expired.leases),
            Some(_) => 0,
        };
        match sort {
            Sort::Put => self.puts.add(1),
            Sort::Delete => self.deletes.add(1),
            Sort::Txn => self.txns.add(1),
            Sort::Grant => self.leases.granted.add(1),
            Sort::Revoke => self.leases.revoked.add(1),
            Sort::KeepAlive => self.leases.renewed.add(1),
            Sort::Expire => self.leases.expired.add(expired),
            Sort::Other => {}
        }
    }

    /// As they are shown.
    pub(crate) fn families(&self) -> Vec<Family> {
        let applied = |op: &str| {
            vec![
                ("version", "v3".to_owned()),
                ("op", op.to_owned()),
                ("success", "true".to_owned()),
            ]
        };
        let mut families = vec![
            Family::histogram(
                "etcd_disk_backend_commit_duration_seconds",
                "Time of writing a batch of applied changes to the engine.",
                Vec::new(),
                &self.commit,
            ),
            Family::histogram(
                "etcd_server_apply_duration_seconds",
                "Time of applying a batch of log entries, its commit included.",
                applied("Batch"),
                &self.apply,
            ),
        ];
        let counters = [
            ("etcd_mvcc_put_total", "Puts that were applied.", &self.puts),
            ("etcd_mvcc_delete_total", "Deletions that were applied.", &self.deletes),
            ("etcd_mvcc_txn_total", "Transactions that were applied.", &self.txns),
            ("etcd_mvcc_range_total", "Ranges that were read.", &self.ranges),
            (
                "etcd_debugging_lease_granted_total",
                "Leases that were granted.",
                &self.leases.granted,
            ),
            (
                "etcd_debugging_lease_revoked_total",
                "Leases that were revoked.",
                &self.leases.revoked,
            ),
            (
                "etcd_debugging_lease_renewed_total",
                "Times that a lease was renewed.",
                &self.leases.renewed,
            ),
            (
                "etcd_debugging_server_lease_expired_total",
                "Leases that ran out.",
                &self.leases.expired,
            ),
            (
                "hanse_store_commands_applied_total",
                "Commands that were applied.",
                &self.commands,
            ),
            (
                "hanse_store_commands_refused_total",
                "Commands that every member refuses.",
                &self.refused,
            ),
        ];
        families.extend(counters.map(|(name, help, count)| Family::counter(name, help, count.get())));
        families
    }
}

/// Spaces that are shown by their names; the others are one sample.
pub(crate) const SPACES_SHOWN: usize = 100;

/// How much each space holds, the largest by name and the rest together, so that a store of ten thousand tenants does not
/// drown its scraper.
pub(crate) fn of_spaces(mut spaces: Vec<(String, crate::store::SpaceUsage)>) -> Vec<Family> {
    spaces.retain(|(_, usage)| usage.keys > 0);
    spaces.sort_by(|(a, x), (b, y)| y.bytes.cmp(&x.bytes).then_with(|| a.cmp(b)));
    let mut bytes = Family::new(
        "hanse_store_space_bytes",
        "Bytes of keys and history of a key space; the smallest spaces are added up.",
        Kind::Gauge,
    );
    let mut keys = Family::new(
        "hanse_store_space_keys",
        "Keys of a key space, deleted ones included until they are removed.",
        Kind::Gauge,
    );
    let count = spaces.len() as u64;
    let rest = spaces.split_off(spaces.len().min(SPACES_SHOWN));
    for (name, usage) in spaces {
        let name = if name.is_empty() {
            "registry".to_owned()
        } else {
            format!("tenant/{name}")
        };
        bytes = bytes.and(vec![("space", name.clone())], usage.bytes);
        keys = keys.and(vec![("space", name)], usage.keys as u64);
    }
    if !rest.is_empty() {
        let sum = |of: fn(&crate::store::SpaceUsage) -> u64| rest.iter().map(|(_, usage)| of(usage)).sum();
        let name = vec![("space", "others".to_owned())];
        bytes = bytes.and(name.clone(), sum(|usage| usage.bytes));
        keys = keys.and(name, sum(|usage| usage.keys as u64));
    }
    let spaces = Family::gauge("hanse_store_spaces", "Key spaces that hold something.", count);
    vec![spaces, bytes, keys]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SpaceUsage;
    use hanse_runtime::meter;

    #[test]
    fn ten_thousand_spaces_are_a_hundred_samples_and_one() {
        let usage = |n: u64| SpaceUsage {
            bytes: n,
            keys: 1,
            floor: -1,
            ..SpaceUsage::default()
        };
        let spaces = (0..10_000).map(|n| (format!("t{n}"), usage(n))).collect();
        let families = of_spaces(spaces);
        assert!(families.iter().all(|family| family.samples.len() <= SPACES_SHOWN + 1));
        let text = meter::text(&families);
        assert!(text.contains("hanse_store_spaces 10000\n"), "{text}");
        assert!(
            text.contains("hanse_store_space_bytes{space=\"tenant/t9999\"} 9999\n"),
            "{text}"
        );
        assert!(
            text.contains("hanse_store_space_keys{space=\"others\"} 9900\n"),
            "{text}"
        );
        let rest: u64 = (0..9_900).sum();
        assert!(text.contains(&format!("hanse_store_space_bytes{{space=\"others\"}} {rest}\n")));
    }

    #[test]
    fn what_is_under_way_is_counted_until_its_guard_goes() {
        let under_way = InFlight::default();
        let (first, second) = (under_way.begin(), under_way.begin());
        assert_eq!(under_way.get(), 2);
        drop(first);
        assert_eq!(under_way.get(), 1);
        drop(second);
        assert_eq!(under_way.get(), 0);
    }
}
