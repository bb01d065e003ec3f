//! Kinds that the system writes by itself and that clients may only look at.

use super::{Column, Kind, READ_VERBS};
use hanse_api::kinds::KindName;
use hanse_api::status::Cause;
use serde_json::Value;

/// What tells one of them from the others.
pub(super) struct ReadOnly {
    pub(super) names: &'static KindName,
    pub(super) singular: &'static str,
    pub(super) short_names: &'static [&'static str],
    pub(super) about: &'static str,
    pub(super) columns: &'static [Column],
    pub(super) cells: fn(&Value) -> Vec<Value>,
}

impl Kind for ReadOnly {
    fn names(&self) -> &'static KindName {
        self.names
    }

    fn singular(&self) -> &'static str {
        self.singular
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn short_names(&self) -> &'static [&'static str] {
        self.short_names
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
        self.columns
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        (self.cells)(object)
    }

    fn validate(&self, _object: &Value) -> Vec<Cause> {
        Vec::new()
    }
}
