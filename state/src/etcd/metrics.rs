//! etcd's own metrics under their own names, so that dashboards and alerts written for etcd go on working: those of them that
//! mean something here. Prometheus' text format, version 0.0.4.

use super::{Service, VERSION};
use crate::store::{Access, Role, SpaceUsage, StoreStatus};
use std::fmt::{Display, Write};

fn sample(text: &mut String, name: &str, help: &str, labels: &str, value: impl Display) {
    // Writing to a string cannot fail.
    write!(
        text,
        "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{labels} {value}\n"
    )
    .ok();
}

/// All metrics of a member and of the space that the door opens.
pub(super) fn text(service: &Service, access: &Access) -> String {
    let (status, machine) = (service.store.status(), service.store.machine());
    let usage = machine.usage(access).unwrap_or_default();
    let mut text = String::new();
    for (name, help, value) in of_the_member(&status) {
        sample(&mut text, name, help, "", value);
    }
    for (name, help, value) in of_the_space(&status, &usage) {
        sample(&mut text, name, help, "", value);
    }
    let quota = service.settings.quota.unwrap_or_default();
    let watchers = machine.watchers(access).unwrap_or_default();
    let alarms = machine.alarms(access).unwrap_or_default().len();
    let (name, help) = (
        "etcd_server_quota_backend_bytes",
        "Bytes that keys and history may take; 0: no limit.",
    );
    sample(&mut text, name, help, "", quota);
    sample(&mut text, "etcd_debugging_mvcc_watcher_total", "Watches.", "", watchers);
    sample(&mut text, "hanse_store_alarms", "Alarms that are raised.", "", alarms);
    let labels = format!("{{server_id=\"{:x}\"}}", status.member_id);
    sample(&mut text, "etcd_server_id", "This member.", &labels, 1);
    let labels = format!("{{server_version=\"{VERSION}\"}}");
    sample(
        &mut text,
        "etcd_server_version",
        "Version that clients see.",
        &labels,
        1,
    );
    text
}

type Row = (&'static str, &'static str, u64);

fn of_the_member(status: &StoreStatus) -> [Row; 6] {
    [
        (
            "etcd_server_has_leader",
            "Whether this member hears of a leader.",
            u64::from(status.leader.is_some()),
        ),
        (
            "etcd_server_is_leader",
            "Whether this member leads.",
            u64::from(status.role == Role::Leader),
        ),
        (
            "etcd_server_is_learner",
            "Whether this member follows without a vote.",
            u64::from(status.role == Role::Learner),
        ),
        (
            "etcd_server_proposals_committed_total",
            "Last index in this member's log.",
            status.last_index,
        ),
        (
            "etcd_server_proposals_applied_total",
            "Last index that is applied here.",
            status.applied_index,
        ),
        ("hanse_store_raft_term", "Raft term.", status.term),
    ]
}

fn of_the_space(status: &StoreStatus, usage: &SpaceUsage) -> [(&'static str, &'static str, i128); 5] {
    [
        (
            "etcd_mvcc_db_total_size_in_bytes",
            "Bytes that the engine takes on disk and in its memtables, the log included.",
            status.db_size.max(usage.bytes).into(),
        ),
        (
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "Bytes of keys and history before compression.",
            usage.bytes.into(),
        ),
        (
            "etcd_debugging_mvcc_keys_total",
            "Keys, deleted ones included until they are compacted.",
            usage.keys as i128,
        ),
        (
            "etcd_debugging_mvcc_current_revision",
            "Present revision.",
            status.revision.into(),
        ),
        (
            "etcd_debugging_mvcc_compact_revision",
            "Oldest readable revision; -1 before the first compaction.",
            usage.floor.into(),
        ),
    ]
}
