//! Sets of fields of an object: who manages what is told in these. On the wire they are Kubernetes' `FieldsV1`.
//!
//! A set is a tree: at each step an element names a field, or an item of a list by its keys or its value.

use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Deepest set that is read from a body.
const MAX_DEPTH: usize = 64;

/// One step into an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Element {
    /// A field, or a key of a map.
    Field(String),
    /// The item of a list whose keys have these values (canonical JSON of an object).
    Keys(String),
    /// The item of a list that has this value (canonical JSON).
    Item(String),
}

impl Element {
    /// A field.
    pub(crate) fn field(name: &str) -> Self {
        Self::Field(name.to_owned())
    }

    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Keys(keys) => format!("k:{keys}"),
            Self::Item(value) => format!("v:{value}"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        // Written anew, so that equal items are equal texts.
        let canonical = |json: &str| serde_json::from_str::<Value>(json).ok().map(|v| v.to_string());
        match text.split_once(':')? {
            ("f", name) => Some(Self::Field(name.to_owned())),
            ("k", keys) => canonical(keys).map(Self::Keys),
            ("v", value) => canonical(value).map(Self::Item),
            _ => None,
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Item(value) => write!(f, "[={value}]"),
            Self::Keys(keys) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let pairs: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "[{}]", pairs.join(","))
            }
        }
    }
}

/// A set of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set {
    /// Fields that belong to the set themselves.
    pub(crate) members: BTreeSet<Element>,
    /// What belongs to it below a field. Never empty sets.
    pub(crate) below: BTreeMap<Element, Set>,
}

impl Set {
    /// The set of these paths of plain fields.
    pub(crate) fn of(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            set.insert(&path.iter().map(|p| Element::field(p)).collect::<Vec<_>>());
        }
        set
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.below.is_empty()
    }

    /// Adds a path.
    pub(crate) fn insert(&mut self, path: &[Element]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.below.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// What is in either.
    pub(crate) fn union(mut self, other: &Self) -> Self {
        self.members.extend(other.members.iter().cloned());
        for (element, theirs) in &other.below {
            let ours = self.below.remove(element).unwrap_or_default();
            self.below.insert(element.clone(), ours.union(theirs));
        }
        self
    }

    /// What is in both.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let both = |(element, ours): (&Element, &Self)| {
            let kept = ours.intersection(other.below.get(element)?);
            (!kept.is_empty()).then(|| (element.clone(), kept))
        };
        Self {
            members: self.members.intersection(&other.members).cloned().collect(),
            below: self.below.iter().filter_map(both).collect(),
        }
    }

    /// What is in this one only.
    pub(crate) fn difference(&self, other: &Self) -> Self {
        let rest = |(element, ours): (&Element, &Self)| {
            let kept = match other.below.get(element) {
                Some(theirs) => ours.difference(theirs),
                None => ours.clone(),
            };
            (!kept.is_empty()).then(|| (element.clone(), kept))
        };
        Self {
            members: self.members.difference(&other.members).cloned().collect(),
            below: self.below.iter().filter_map(rest).collect(),
        }
    }

    /// What is neither in `other` nor below one of its members.
    pub(crate) fn outside(&self, other: &Self) -> Self {
        let rest = |(element, ours): (&Element, &Self)| {
            if other.members.contains(element) {
                return None;
            }
            let kept = match other.below.get(element) {
                Some(theirs) => ours.outside(theirs),
                None => ours.clone(),
            };
            (!kept.is_empty()).then(|| (element.clone(), kept))
        };
        Self {
            members: self.members.difference(&other.members).cloned().collect(),
            below: self.below.iter().filter_map(rest).collect(),
        }
    }

    /// Every path as people read it, in order.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut all = Vec::new();
        self.walk("", &mut all);
        all
    }

    fn walk(&self, above: &str, all: &mut Vec<String>) {
        all.extend(self.members.iter().map(|m| format!("{above}{m}")));
        for (element, below) in &self.below {
            below.walk(&format!("{above}{element}"), all);
        }
    }

    /// As `FieldsV1`.
    pub(crate) fn encode(&self) -> Value {
        let mut map = Map::new();
        for member in &self.members {
            map.insert(member.encode(), Value::Object(Map::new()));
        }
        for (element, below) in &self.below {
            let mut inner = below.encode();
            if self.members.contains(element)
                && let Some(inner) = inner.as_object_mut()
            {
                inner.insert(".".into(), Value::Object(Map::new()));
            }
            map.insert(element.encode(), inner);
        }
        Value::Object(map)
    }

    /// From `FieldsV1`; nothing when it is none.
    pub(crate) fn decode(fields: &Value) -> Option<Self> {
        Self::read(fields, 0)
    }

    fn read(fields: &Value, depth: usize) -> Option<Self> {
        let mut set = Self::default();
        for (key, inner) in fields.as_object().filter(|_| depth < MAX_DEPTH)? {
            if key == "." {
                continue;
            }
            let element = Element::decode(key)?;
            let map = inner.as_object()?;
            if map.is_empty() || map.contains_key(".") {
                set.members.insert(element.clone());
            }
            let below = Self::read(inner, depth + 1)?;
            if !below.is_empty() {
                set.below.insert(element, below);
            }
        }
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn set(value: Value) -> Set {
        Set::decode(&value).unwrap()
    }

    #[test]
    fn wire_form() {
        let text = json!({ "f:metadata": { "f:labels": { ".": {}, "f:a": {} } },
                           "f:status": { "f:conditions": { "k:{\"type\":\"Ready\"}": { ".": {}, "f:status": {} } } },
                           "f:finalizers": { "v:\"x\"": {} } });
        let read = set(text.clone());
        assert_eq!(read.encode(), text);
        assert_eq!(
            read.paths(),
            [
                ".finalizers[=\"x\"]",
                ".metadata.labels",
                ".metadata.labels.a",
                ".status.conditions[type=\"Ready\"]",
                ".status.conditions[type=\"Ready\"].status",
            ]
        );
        for bad in [
            json!(1),
            json!({ "x:a": {} }),
            json!({ "f:a": 1 }),
            json!({ "k:{": {} }),
        ] {
            assert_eq!(Set::decode(&bad), None, "{bad}");
        }
    }

    #[test]
    fn outside_leaves_out_what_is_below() {
        let all = set(json!({ "f:status": { "f:a": {} }, "f:spec": { "f:a": {}, "f:b": {} } }));
        let rest = all.outside(&Set::of(&[&["status"], &["spec", "a"]]));
        assert_eq!(rest.paths(), [".spec.b"]);
    }

    fn any_set() -> impl Strategy<Value = Set> {
        prop::collection::vec(prop::collection::vec("[a-c]", 1..4), 0..8).prop_map(|paths| {
            let mut set = Set::default();
            for path in paths {
                set.insert(&path.into_iter().map(Element::Field).collect::<Vec<_>>());
            }
            set
        })
    }

    proptest! {
        #[test]
        fn algebra(a in any_set(), b in any_set()) {
            let (both, only) = (a.intersection(&b), a.difference(&b));
            prop_assert_eq!(both.clone().union(&only), a.clone());
            prop_assert!(only.intersection(&b).is_empty());
            prop_assert_eq!(&a.clone().union(&b), &b.clone().union(&a));
            prop_assert_eq!(Set::decode(&a.encode()), Some(a));
        }
    }
}
