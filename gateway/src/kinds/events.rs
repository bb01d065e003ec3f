//! Core events. None are written yet; `kubectl describe` asks for them and would otherwise complain.

use super::read_only::ReadOnly;
use hanse_api::kinds::KindName;

pub(super) static EVENTS: ReadOnly = ReadOnly {
    names: &KindName {
        group: "",
        version: "v1",
        kind: "Event",
        plural: "events",
        namespaced: true,
    },
    singular: "event",
    short_names: &["ev"],
    about: "Events about objects. None are written yet.",
    columns: &[],
    cells: |_object| Vec::new(),
};
