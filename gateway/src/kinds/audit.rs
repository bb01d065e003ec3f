//! Events of the audit trail, where its chain begins and ends, and how far its sinks are. They are written by changes and
//! requests, never by clients; without a role that says so only administrators see them.

use super::read_only::ReadOnly;
use super::{cell, column, wide};
use hanse_api::kinds::{AUDIT_CHAINS, AUDIT_EVENTS, AUDIT_SINKS};
use serde_json::Value;

pub(super) static EVENTS: ReadOnly = ReadOnly {
    names: &AUDIT_EVENTS,
    singular: "event",
    short_names: &[],
    about: "An event of the audit trail: who did what, and how it was answered.",
    columns: &[
        column("User", "Who it was"),
        column("Verb", "What he did"),
        column("Resource", "To which kind of objects"),
        column("Object", "Namespace and name of the object"),
        column("Code", "How it was answered"),
        wide("Source", "Where the request came from"),
        wide("Target", "Whose API it was"),
    ],
    cells: event_cells,
};

pub(super) static CHAINS: ReadOnly = ReadOnly {
    names: &AUDIT_CHAINS,
    singular: "auditchain",
    short_names: &[],
    about: "Where the hash chain of the audit trail begins and ends.",
    columns: &[
        column("Sequence", "Number of the event"),
        column("Hash", "Hash of the event"),
    ],
    cells: |object| vec![cell(object, "/spec/sequence"), cell(object, "/spec/hash")],
};

pub(super) static SINKS: ReadOnly = ReadOnly {
    names: &AUDIT_SINKS,
    singular: "auditsink",
    short_names: &[],
    about: "How far a sink of the audit trail has come.",
    columns: &[column("Sequence", "Number of the last event that it was given")],
    cells: |object| vec![cell(object, "/spec/sequence")],
};

fn event_cells(object: &Value) -> Vec<Value> {
    let event = &object["status"];
    let part = |name: &str| event["objectRef"][name].as_str().unwrap_or_default();
    let joined = |first: &str, second: &str| match (first, second) {
        ("", text) | (text, "") => text.to_owned(),
        (first, second) => format!("{first}/{second}"),
    };
    vec![
        cell(event, "/user/username"),
        cell(event, "/verb"),
        joined(part("resource"), part("subresource")).into(),
        joined(part("namespace"), part("name")).into(),
        cell(event, "/responseStatus/code"),
        cell(event, "/sourceIPs/0"),
        cell(event, "/annotations/hanse.dev~1target"),
    ]
}
