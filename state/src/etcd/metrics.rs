//! etcd's own metrics under their own names, so that dashboards and alerts written for etcd go on working: those of them that
//! mean something here. Prometheus' text format, version 0.0.4.

use super::{Service, VERSION};
use crate::store::{Access, Role};
use std::fmt::Write;

struct Text(String);

impl Text {
    fn sample(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.labelled(name, kind, help, "", value);
    }

    fn labelled(&mut self, name: &str, kind: &str, help: &str, labels: &str, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        write!(
            self.0,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}\n"
        )
        .ok();
    }
}

/// All metrics of a member and of the space that the door opens.
pub(super) fn text(service: &Service, access: &Access) -> String {
    let status = service.store.status();
    let usage = service.store.machine().usage(access).unwrap_or_default();
    let alarms = service.store.machine().alarms(access).unwrap_or_default();
    let flag = |is: bool| i32::from(is);
    let mut text = Text(String::new());
    let (gauge, counter) = ("gauge", "counter");
    let mut sample = |name: &str, kind: &str, help: &str, value: i128| text.sample(name, kind, help, value);
    sample(
        "etcd_server_has_leader",
        gauge,
        "Whether this member hears of a leader.",
        flag(status.leader.is_some()).into(),
    );
    sample(
        "etcd_server_is_leader",
        gauge,
        "Whether this member leads.",
        flag(status.role == Role::Leader).into(),
    );
    sample(
        "etcd_server_is_learner",
        gauge,
        "Whether this member follows without a vote.",
        flag(status.role == Role::Learner).into(),
    );
    sample(
        "etcd_server_proposals_committed_total",
        gauge,
        "Last index in this member's log.",
        status.last_index.into(),
    );
    sample(
        "etcd_server_proposals_applied_total",
        gauge,
        "Last index that is applied here.",
        status.applied_index.into(),
    );
    sample(
        "etcd_server_quota_backend_bytes",
        gauge,
        "Bytes that the keys and their history may take; 0: no limit.",
        service.settings.quota.unwrap_or_default().into(),
    );
    sample(
        "etcd_mvcc_db_total_size_in_bytes",
        gauge,
        "Bytes that the engine takes on disk and in its memtables, the log included.",
        status.db_size.max(usage.bytes).into(),
    );
    sample(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        gauge,
        "Bytes of the keys and their history before compression.",
        usage.bytes.into(),
    );
    sample(
        "etcd_debugging_mvcc_keys_total",
        gauge,
        "Keys, deleted ones included until they are compacted.",
        usage.keys as i128,
    );
    sample(
        "etcd_debugging_mvcc_current_revision",
        gauge,
        "Present revision.",
        status.revision.into(),
    );
    sample(
        "etcd_debugging_mvcc_compact_revision",
        gauge,
        "Oldest readable revision; -1 before the first compaction.",
        usage.floor.into(),
    );
    sample("hanse_store_raft_term", counter, "Raft term.", status.term.into());
    sample(
        "hanse_store_alarms",
        gauge,
        "Alarms that are raised.",
        alarms.len() as i128,
    );
    let labels = format!("{{server_id=\"{:x}\"}}", status.member_id);
    text.labelled("etcd_server_id", gauge, "This member.", &labels, 1);
    let labels = format!("{{server_version=\"{VERSION}\"}}");
    text.labelled("etcd_server_version", gauge, "Version that clients see.", &labels, 1);
    text.0
}
