//! Core events. None are written yet; `kubectl describe` asks for them and would otherwise complain.

use super::{Column, Kind, READ_VERBS};
use hanse_api::kinds::KindName;
use hanse_api::status::Cause;
use serde_json::Value;

const EVENTS: KindName = KindName {
    group: "",
    version: "v1",
    kind: "Event",
    plural: "events",
    namespaced: true,
};

pub(super) struct Events;

impl Kind for Events {
    fn names(&self) -> &'static KindName {
        &EVENTS
    }

    fn singular(&self) -> &'static str {
        "event"
    }

    fn short_names(&self) -> &'static [&'static str] {
        &["ev"]
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
        &[]
    }

    fn cells(&self, _object: &Value) -> Vec<Value> {
        Vec::new()
    }

    fn validate(&self, _object: &Value) -> Vec<Cause> {
        Vec::new()
    }
}
