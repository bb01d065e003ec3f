//! Who manages which fields: `metadata.managedFields`, what a write does to it, and server-side apply.
//!
//! A plain write takes the fields that it changes away from everybody else. An apply says all that its manager wants: what
//! he no longer names goes unless others manage it too, and what others manage with another value is a conflict.

use super::set::{Element, Set};
use super::typed::{compare, fields_of, merge, remove, with_containers};
use crate::apiserver::schema::Node;
use hanse_api::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// Most managers that made plain writes; the oldest beyond are put together (as in Kubernetes).
const MAX_UPDATERS: usize = 10;
/// Name of those that were put together.
const ANCIENT: &str = "ancient-changes";
/// Manager of what an object held before its fields had managers.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// How a manager writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    /// Server-side apply.
    Apply,
    /// Everything else.
    Update,
}

/// Somebody who writes objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manager {
    pub(crate) operation: Operation,
    pub(crate) name: String,
    /// Group and version that he writes in.
    pub(crate) version: String,
    /// `status`, or empty.
    pub(crate) subresource: String,
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        match self.operation {
            Operation::Apply => Ok(()),
            Operation::Update => write!(f, " using {}", self.version),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Fields {
    set: Set,
    /// When it last changed, as on the wire; empty when nobody said.
    time: String,
}

/// The managers of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Managed(BTreeMap<Manager, Fields>);

/// A field that another manager holds with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) manager: Manager,
    pub(crate) path: String,
}

/// What a write is made under.
#[derive(Clone, Debug)]
pub(crate) struct Rules<'a> {
    /// Schema of the object.
    pub(crate) node: &'a Node,
    /// Fields that the endpoint does not write.
    pub(crate) ignored: Set,
    pub(crate) now: Timestamp,
}

/// What nobody manages.
fn unmanaged() -> Set {
    let meta = |name| ["metadata", name];
    let names = [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
    ];
    // Their container is nobody's either, but what else is in it may be somebody's.
    let mut set = Set::of(&[&["apiVersion"], &["kind"]]);
    for name in names {
        set = set.union(&Set::of(&[&meta(name)]));
    }
    set
}

/// A set without what nobody manages.
fn managed_of(set: &Set) -> Set {
    let mut managed = set.outside(&unmanaged());
    managed.members.remove(&Element::field("metadata"));
    managed
}

impl Managed {
    /// From `metadata.managedFields`; nothing when it cannot be read.
    pub(crate) fn decode(entries: &Value) -> Option<Self> {
        let mut managed = Self::default();
        for entry in entries.as_array()? {
            let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            let operation = match entry["operation"].as_str()? {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            let manager = Manager {
                operation,
                name: text("manager"),
                version: text("apiVersion"),
                subresource: text("subresource"),
            };
            let fields = Fields {
                set: Set::decode(&entry["fieldsV1"])?,
                time: text("time"),
            };
            managed.0.insert(manager, fields);
        }
        Some(managed)
    }

    /// As `metadata.managedFields`, in Kubernetes' order.
    pub(crate) fn encode(&self) -> Value {
        let mut entries: Vec<(&Manager, &Fields)> = self.0.iter().collect();
        entries.sort_by_key(|(m, f)| (m.operation, &f.time, &m.name, &m.version, &m.subresource));
        let entry = |(manager, fields): (&Manager, &Fields)| {
            let mut entry = json!({
                "manager": manager.name,
                "operation": format!("{:?}", manager.operation),
                "apiVersion": manager.version,
                "fieldsType": "FieldsV1",
                "fieldsV1": fields.set.encode(),
            });
            if !fields.time.is_empty() {
                entry["time"] = fields.time.as_str().into();
            }
            if !manager.subresource.is_empty() {
                entry["subresource"] = manager.subresource.as_str().into();
            }
            entry
        };
        Value::Array(entries.into_iter().map(entry).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether both say the same, whenever it was said.
    pub(crate) fn same_fields(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self
                .0
                .iter()
                .all(|(manager, fields)| other.0.get(manager).is_some_and(|f| f.set == fields.set))
    }

    fn forget(&mut self, manager: &Manager, gone: &Set) {
        if let Some(fields) = self.0.get_mut(manager) {
            fields.set = fields.set.difference(gone);
        }
    }

    fn drop_empty(&mut self) {
        self.0.retain(|_, fields| !fields.set.is_empty());
    }

    /// Those who hold fields of `written`, with them.
    fn holders(&self, written: &Set, but: Option<&Manager>) -> Vec<(Manager, Set)> {
        let held = |(manager, fields): (&Manager, &Fields)| {
            let set = fields.set.intersection(written);
            (Some(manager) != but && !set.is_empty()).then(|| (manager.clone(), set))
        };
        self.0.iter().filter_map(held).collect()
    }

    fn lose(&mut self, conflicts: &[(Manager, Set)], removed: &Set) {
        for (manager, set) in conflicts {
            self.forget(manager, set);
        }
        for fields in self.0.values_mut() {
            fields.set = fields.set.difference(removed);
        }
    }

    /// After a plain write by `manager` that made `new` of `live`. Both without `managedFields`.
    pub(crate) fn updated(mut self, rules: &Rules<'_>, live: &Value, new: &Value, manager: &Manager) -> Self {
        let difference = compare(rules.node, live, new);
        let written = difference.written().outside(&rules.ignored);
        let conflicts = self.holders(&written, None);
        self.lose(&conflicts, &difference.removed.outside(&rules.ignored));
        let own = managed_of(&written);
        if !own.is_empty() {
            let fields = self.0.entry(manager.clone()).or_default();
            fields.set = std::mem::take(&mut fields.set).union(&own);
            fields.time = rules.now.to_string();
        }
        self.drop_empty();
        self.cap();
        self
    }

    /// After an apply of `config` by `manager` on `live`, with the object that comes of it; none when nothing of it
    /// changes. Both without `managedFields`.
    pub(crate) fn applied(
        mut self,
        rules: &Rules<'_>,
        live: &Value,
        config: &Value,
        manager: &Manager,
        force: bool,
    ) -> Result<(Option<Value>, Self), Vec<Conflict>> {
        if self.is_empty() && live.get("metadata").is_some() {
            let before = Manager {
                operation: Operation::Update,
                name: BEFORE_FIRST_APPLY.into(),
                ..manager.clone()
            };
            self = self.updated(rules, &json!({}), live, &before);
        }
        let merged = merge(rules.node, live, config);
        // With the name and what else nobody manages until it is known what goes: what this manager says stays.
        let set = fields_of(rules.node, config).outside(&rules.ignored);
        let last = self.0.insert(
            manager.clone(),
            Fields {
                set,
                time: String::new(),
            },
        );
        if let (Some(last), Some(mine)) = (&last, self.0.get_mut(manager)) {
            mine.time.clone_from(&last.time);
        }
        let new = match &last {
            Some(last) => self.pruned(rules.node, &merged, &last.set),
            None => merged,
        };
        if let Some(mine) = self.0.get_mut(manager) {
            mine.set = managed_of(&mine.set);
        }
        let difference = compare(rules.node, live, &new);
        let written = difference.written().outside(&rules.ignored);
        let conflicts = self.holders(&written, Some(manager));
        if !force && !conflicts.is_empty() {
            let all = |(manager, set): (Manager, Set)| {
                let conflict = move |path| Conflict {
                    manager: manager.clone(),
                    path,
                };
                set.paths().into_iter().map(conflict)
            };
            return Err(conflicts.into_iter().flat_map(all).collect());
        }
        self.lose(&conflicts, &difference.removed.outside(&rules.ignored));
        self.drop_empty();
        if difference.is_empty() {
            return Ok((None, self));
        }
        if let Some(mine) = self.0.get_mut(manager) {
            mine.time = rules.now.to_string();
        }
        Ok((Some(new), self))
    }

    /// Takes away what the manager named the last time, does not name now, and nobody else holds.
    fn pruned(&self, node: &Node, merged: &Value, last: &Set) -> Value {
        let nothing = || json!({});
        let of = |value: &Value| with_containers(node, &fields_of(node, value));
        let last = with_containers(node, last);
        let held = self
            .0
            .values()
            .fold(Set::default(), |all, fields| all.union(&fields.set));
        let held = with_containers(node, &held);
        let all = of(merged);
        let first = remove(node, merged, &last).unwrap_or_else(nothing);
        let unheld = all.difference(&of(&first).union(&held));
        let second = remove(node, merged, &unheld).unwrap_or_else(nothing);
        let gone = all.difference(&of(&second)).intersection(&last);
        remove(node, merged, &gone).unwrap_or_else(nothing)
    }

    /// Puts the oldest plain writers together.
    fn cap(&mut self) {
        let mut updaters: Vec<(String, Manager)> = self
            .0
            .iter()
            .filter(|(m, _)| m.operation == Operation::Update && m.subresource.is_empty())
            .map(|(m, f)| (f.time.clone(), m.clone()))
            .collect();
        if updaters.len() <= MAX_UPDATERS {
            return;
        }
        updaters.sort();
        let surplus = updaters.len() - MAX_UPDATERS + 1;
        let mut ancient = Fields::default();
        for (_, manager) in updaters.iter().take(surplus) {
            if let Some(fields) = self.0.remove(manager) {
                ancient.set = ancient.set.union(&fields.set);
                ancient.time = fields.time;
            }
        }
        if let Some((_, last)) = updaters.get(surplus - 1) {
            let manager = Manager {
                name: ANCIENT.into(),
                ..last.clone()
            };
            self.0.insert(manager, ancient);
        }
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::schema::{self, compile};
    use crate::kinds::find;

    fn rules(node: &Node, second: i64) -> Rules<'_> {
        Rules {
            node,
            ignored: Set::default(),
            now: Timestamp::from_millis(second * 1000),
        }
    }

    fn who(operation: Operation, name: &str) -> Manager {
        Manager {
            operation,
            name: name.into(),
            version: "g/v1".into(),
            subresource: String::new(),
        }
    }

    fn project() -> &'static Node {
        &schema::of(find("management.loft.sh", "v1", "projects").unwrap()).root
    }

    fn object(spec: Value, labels: Value) -> Value {
        json!({ "metadata": { "name": "a", "labels": labels }, "spec": spec })
    }

    #[test]
    fn two_managers_share_an_object() {
        let (node, ann, bob) = (project(), who(Operation::Apply, "ann"), who(Operation::Apply, "bob"));
        let first = object(json!({ "displayName": "A" }), json!({ "x": "1" }));
        let (live, managed) = Managed::default()
            .applied(&rules(node, 1), &json!({}), &first, &ann, false)
            .unwrap();
        let live = live.unwrap();
        // The same value is shared, another is a conflict.
        let same = object(json!({ "displayName": "A" }), json!({ "y": "2" }));
        let (live, managed) = managed.applied(&rules(node, 2), &live, &same, &bob, false).unwrap();
        let live = live.unwrap();
        let other = object(json!({ "displayName": "B" }), json!({ "y": "2" }));
        let conflicts = managed
            .clone()
            .applied(&rules(node, 3), &live, &other, &bob, false)
            .unwrap_err();
        assert_eq!(conflicts.len(), 1);
        assert_eq!(
            (conflicts[0].manager.name.as_str(), conflicts[0].path.as_str()),
            ("ann", ".spec.displayName")
        );
        let (forced, managed) = managed.applied(&rules(node, 4), &live, &other, &bob, true).unwrap();
        let forced = forced.unwrap();
        assert_eq!(forced["spec"]["displayName"], "B");
        // Ann no longer holds the name: when she leaves it out it stays, her label goes.
        let less = object(json!({}), json!({}));
        let (left, managed) = managed.applied(&rules(node, 5), &forced, &less, &ann, false).unwrap();
        let left = left.unwrap();
        assert_eq!(left["spec"]["displayName"], "B");
        assert_eq!(left["metadata"]["labels"], json!({ "y": "2" }));
        // An apply that changes nothing says so.
        let (again, _) = managed.applied(&rules(node, 6), &left, &other, &bob, false).unwrap();
        assert_eq!(again, None);
    }

    /// The metadata that goes with the label holds the name.
    #[test]
    fn an_object_keeps_its_name_when_the_only_manager_of_metadata_lets_go() {
        let (node, ann) = (project(), who(Operation::Apply, "ann"));
        let spec = json!({ "displayName": "A" });
        let labelled = object(spec.clone(), json!({ "x": "1" }));
        let (live, managed) = Managed::default()
            .applied(&rules(node, 1), &json!({}), &labelled, &ann, false)
            .unwrap();
        let mut live = live.unwrap();
        live["metadata"]["uid"] = "u".into();
        let bare = json!({ "metadata": { "name": "a" }, "spec": spec });
        let (left, managed) = managed.applied(&rules(node, 2), &live, &bare, &ann, true).unwrap();
        assert_eq!(left.unwrap()["metadata"]["name"], "a");
        let entries = managed.encode();
        assert_eq!(entries[0]["fieldsV1"], json!({ "f:spec": { "f:displayName": {} } }));
    }

    #[test]
    fn plain_writes_take_what_they_change() {
        let (node, ann, cli) = (project(), who(Operation::Apply, "ann"), who(Operation::Update, "cli"));
        let first = object(json!({ "displayName": "A" }), json!({}));
        let (live, managed) = Managed::default()
            .applied(&rules(node, 1), &json!({}), &first, &ann, false)
            .unwrap();
        let live = live.unwrap();
        let changed = object(json!({ "displayName": "B" }), json!({}));
        let managed = managed.updated(&rules(node, 2), &live, &changed, &cli);
        let entries = managed.encode();
        assert_eq!(entries[1]["fieldsV1"], json!({ "f:spec": { "f:displayName": {} } }));
        assert_eq!(entries[1]["time"], "1970-01-01T00:00:02Z");
        let conflicts = managed
            .applied(&rules(node, 3), &changed, &first, &ann, false)
            .unwrap_err();
        assert_eq!(conflicts[0].manager.to_string(), "\"cli\" using g/v1");
    }

    #[test]
    fn what_was_there_before_has_a_manager_too() {
        let live = object(json!({ "displayName": "A" }), json!({}));
        let ann = who(Operation::Apply, "ann");
        let other = object(json!({ "displayName": "B" }), json!({}));
        let conflicts = Managed::default()
            .applied(&rules(project(), 1), &live, &other, &ann, false)
            .unwrap_err();
        assert_eq!(conflicts[0].manager.name, BEFORE_FIRST_APPLY);
    }

    #[test]
    fn many_writers_are_put_together() {
        let node = compile(&json!({ "type": "object", "additionalProperties": { "type": "string" } }));
        let mut managed = Managed::default();
        for i in 0..15 {
            let new = json!({ format!("k{i}"): "v" });
            managed = managed.updated(
                &rules(&node, i),
                &json!({}),
                &new,
                &who(Operation::Update, &format!("m{i}")),
            );
        }
        let entries = managed.encode();
        assert_eq!(entries.as_array().unwrap().len(), MAX_UPDATERS);
        assert_eq!(entries[0]["manager"], ANCIENT);
        assert!(entries[0]["fieldsV1"].get("f:k0").is_some());
        assert_eq!(Managed::decode(&entries), Some(managed));
    }
}
