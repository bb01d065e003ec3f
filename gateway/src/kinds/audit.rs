//! Events of the audit trail, and where its chain begins and ends. They are written by changes and requests, never by clients;
//! without a role that says so only administrators see them.

use super::{Column, Kind, READ_VERBS, cell, column, wide};
use hanse_api::kinds::{AUDIT_CHAINS, AUDIT_EVENTS, KindName};
use hanse_api::status::Cause;
use serde_json::Value;

pub(super) struct AuditEvents;

impl Kind for AuditEvents {
    fn names(&self) -> &'static KindName {
        &AUDIT_EVENTS
    }

    fn singular(&self) -> &'static str {
        "event"
    }

    fn verbs(&self) -> &'static [&'static str] {
        READ_VERBS
    }

    fn has_status(&self) -> bool {
        false
    }

    fn open(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            column("User", "Who it was"),
            column("Verb", "What he did"),
            column("Resource", "To which kind of objects"),
            column("Object", "Namespace and name of the object"),
            column("Code", "How it was answered"),
            wide("Source", "Where the request came from"),
            wide("Target", "Whose API it was"),
        ];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
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

    fn validate(&self, _object: &Value) -> Vec<Cause> {
        Vec::new()
    }
}

pub(super) struct AuditChains;

impl Kind for AuditChains {
    fn names(&self) -> &'static KindName {
        &AUDIT_CHAINS
    }

    fn singular(&self) -> &'static str {
        "auditchain"
    }

    fn verbs(&self) -> &'static [&'static str] {
        READ_VERBS
    }

    fn has_status(&self) -> bool {
        false
    }

    fn open(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            column("Sequence", "Number of the event"),
            column("Hash", "Hash of the event"),
        ];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![cell(object, "/spec/sequence"), cell(object, "/spec/hash")]
    }

    fn validate(&self, _object: &Value) -> Vec<Cause> {
        Vec::new()
    }
}
