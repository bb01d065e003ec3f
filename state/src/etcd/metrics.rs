//! etcd's own metrics under their own names, so that dashboards and alerts written for etcd go on working: those of them that
//! mean something here. What is counted where it happens comes from the store ([`Store::families`]).
//!
//! [`Store::families`]: crate::Store::families

use super::{Service, VERSION};
use crate::store::{Access, Role, SpaceUsage, StoreStatus};
use hanse_runtime::meter::{self, Family, Kind, Sample, Value};

/// All metrics of a member and of the space that the door opens, in Prometheus' text format.
pub(super) fn text(service: &Service, access: &Access) -> String {
    let (status, machine) = (service.store.status(), service.store.machine());
    let usage = machine.usage(access).unwrap_or_default();
    let mut families: Vec<Family> = of_the_member(&status).into();
    families.extend(of_the_space(&status, &usage));
    families.extend(service.store.families());
    families.extend(service.calls.families());
    families.push(Family::gauge(
        "etcd_server_quota_backend_bytes",
        "Bytes that keys and history may take; 0: no limit.",
        service.settings.quota.unwrap_or_default(),
    ));
    let alarms = machine.alarms(access).unwrap_or_default().len() as u64;
    families.push(Family::gauge("hanse_store_alarms", "Alarms that are raised.", alarms));
    families.extend(meter::process());
    meter::text(&families)
}

/// What a member's status says.
fn of_the_member(status: &StoreStatus) -> [Family; 7] {
    let labelled = |name, help, label| Family::new(name, help, Kind::Gauge).and(vec![label], 1);
    [
        Family::gauge(
            "etcd_server_has_leader",
            "Whether this member hears of a leader.",
            u64::from(status.leader.is_some()),
        ),
        Family::gauge(
            "etcd_server_is_leader",
            "Whether this member leads.",
            u64::from(status.role == Role::Leader),
        ),
        Family::gauge(
            "etcd_server_is_learner",
            "Whether this member follows without a vote.",
            u64::from(status.role == Role::Learner),
        ),
        Family::gauge(
            "etcd_server_proposals_applied_total",
            "Last index that is applied here.",
            status.applied_index,
        ),
        Family::gauge("hanse_store_raft_term", "Raft term.", status.term),
        labelled(
            "etcd_server_id",
            "This member.",
            ("server_id", format!("{:x}", status.member_id)),
        ),
        labelled(
            "etcd_server_version",
            "Version that clients see.",
            ("server_version", VERSION.to_owned()),
        ),
    ]
}

#[expect(
    clippy::cast_precision_loss,
    reason = "figures for people; beyond 2^53 the last digits do not matter"
)]
fn signed(name: &'static str, help: &'static str, value: i64) -> Family {
    let value = Value::Number(value as f64);
    let labels = Vec::new();
    let mut family = Family::new(name, help, Kind::Gauge);
    family.samples.push(Sample { labels, value });
    family
}

fn of_the_space(status: &StoreStatus, usage: &SpaceUsage) -> [Family; 5] {
    [
        Family::gauge(
            "etcd_mvcc_db_total_size_in_bytes",
            "Bytes that the engine takes on disk and in its memtables, the log included.",
            status.db_size.max(usage.bytes),
        ),
        Family::gauge(
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Bytes of keys and history before compression.",
            usage.bytes,
        ),
        Family::gauge(
            "etcd_debugging_mvcc_keys_total",
            "Keys, deleted ones included until they are compacted.",
            usage.keys as u64,
        ),
        signed(
            "etcd_debugging_mvcc_current_revision",
            "Present revision.",
            status.revision,
        ),
        signed(
            "etcd_debugging_mvcc_compact_revision",
            "Oldest readable revision; -1 before the first compaction.",
            usage.floor,
        ),
    ]
}
