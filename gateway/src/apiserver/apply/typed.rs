//! What the algebra of fields does to values: which fields a value sets, what differs between two, one laid over another,
//! and one without some fields. All by the schema's tree; where that knows nothing, maps count by key and lists as one.

use super::set::{Element, Set};
use crate::apiserver::schema::{Node, Order};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

const OPEN: &Node = &Node::Open;

/// The schema of a field of a map, and whether the schema names it.
fn field<'a>(node: &'a Node, key: &str) -> (&'a Node, bool) {
    match node {
        Node::Object(fields) => fields.get(key).map_or((OPEN, false), |n| (n, true)),
        Node::Map(inner) => (inner, false),
        Node::Open | Node::Leaf | Node::List(..) | Node::Whole(_) => (OPEN, false),
    }
}

/// The items of a list that counts by item, with what tells them apart; nothing for one that counts as a whole.
fn items<'a, 'v>(node: &'a Node, list: &'v [Value]) -> Option<(&'a Node, Vec<(Element, &'v Value)>)> {
    let Node::List(inner, order) = node else { return None };
    let element = |item: &Value| match order {
        Order::Atomic => None,
        Order::Set => Some(Element::Item(item.to_string())),
        Order::Keys(keys) => {
            let part = |key: &String| item.get(key).map(|v| (key.clone(), v.clone()));
            let keys: Map<String, Value> = keys.iter().filter_map(part).collect();
            Some(Element::Keys(Value::Object(keys).to_string()))
        }
    };
    if *order == Order::Atomic {
        return None;
    }
    let found = list.iter().filter_map(|item| Some((element(item)?, item))).collect();
    Some((inner, found))
}

/// A fault when a list that counts by item holds one twice.
pub(super) fn duplicate_item(node: &Node, value: &Value) -> Option<String> {
    match value {
        Value::Object(map) => map
            .iter()
            .find_map(|(key, inner)| Some(format!(".{key}{}", duplicate_item(field(node, key).0, inner)?))),
        Value::Array(list) => {
            let (inner, found) = items(node, list)?;
            let mut seen = std::collections::BTreeSet::new();
            found.into_iter().find_map(|(element, item)| {
                let text = element.to_string();
                if seen.insert(element) {
                    duplicate_item(inner, item).map(|below| format!("{text}{below}"))
                } else {
                    Some(text)
                }
            })
        }
        _ => None,
    }
}

/// The fields that `value` sets.
pub(super) fn fields_of(node: &Node, value: &Value) -> Set {
    let mut set = Set::default();
    match value {
        _ if is_leaf(node, value) => {}
        Value::Object(map) => {
            for (key, inner) in map {
                let (below, named) = field(node, key);
                let element = Element::field(key);
                let nothing = inner.is_null() || inner.as_object().is_some_and(Map::is_empty);
                if nothing || !named || is_leaf(below, inner) {
                    set.members.insert(element.clone());
                }
                put(&mut set, element, fields_of(below, inner));
            }
        }
        Value::Array(list) => {
            let (inner, all) = items(node, list).unwrap_or((OPEN, Vec::new()));
            for (element, item) in all {
                set.members.insert(element.clone());
                put(&mut set, element, fields_of(inner, item));
            }
        }
        _ => {}
    }
    set
}

fn put(set: &mut Set, element: Element, below: Set) {
    if !below.is_empty() {
        set.below.insert(element, below);
    }
}

/// Whether a value has nothing below it that counts by itself.
fn is_leaf(node: &Node, value: &Value) -> bool {
    match value {
        Value::Object(_) => matches!(node, Node::Whole(_)),
        Value::Array(list) => items(node, list).is_none(),
        _ => true,
    }
}

/// What differs between two values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) added: Set,
    pub(super) modified: Set,
    pub(super) removed: Set,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    /// Fields that have a new value.
    pub(super) fn written(&self) -> Set {
        self.modified.clone().union(&self.added)
    }

    fn put(&mut self, element: &Element, below: Self) {
        put(&mut self.added, element.clone(), below.added);
        put(&mut self.modified, element.clone(), below.modified);
        put(&mut self.removed, element.clone(), below.removed);
    }
}

/// What differs between `old` and `new`.
pub(super) fn compare(node: &Node, old: &Value, new: &Value) -> Difference {
    let nothing = Map::new();
    let map = |value: &Value| value.as_object().map(Map::len);
    let mut found = Difference::default();
    let (was, is) = (old.as_object().unwrap_or(&nothing), new.as_object().unwrap_or(&nothing));
    if map(old).is_some() || map(new).is_some() {
        let mut keys: Vec<&String> = was.keys().chain(is.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            step(
                field(node, key).0,
                &Element::field(key),
                was.get(key),
                is.get(key),
                &mut found,
            );
        }
        return found;
    }
    let list = |value: &Value| {
        let items = value.as_array().and_then(|l| items(node, l));
        items.map(|(_, all)| all.into_iter().map(|(e, v)| (e, v.clone())).collect::<BTreeMap<_, _>>())
    };
    let (was, is) = (list(old).unwrap_or_default(), list(new).unwrap_or_default());
    let inner = match node {
        Node::List(inner, _) => inner,
        _ => OPEN,
    };
    for element in was.keys().chain(is.keys().filter(|e| !was.contains_key(*e))) {
        step(inner, element, was.get(element), is.get(element), &mut found);
    }
    found
}

/// Compares what is at one element of two containers.
fn step(node: &Node, element: &Element, old: Option<&Value>, new: Option<&Value>, found: &mut Difference) {
    let empty = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty() && items(node, list).is_some(),
        Some(_) => false,
    };
    let leaf = |value: Option<&Value>| value.is_some_and(|v| is_leaf(node, v));
    let whole = leaf(old) || leaf(new) || (empty(old) && empty(new));
    match (old, new) {
        (Some(old), Some(new)) if whole && old != new => {
            found.modified.members.insert(element.clone());
        }
        (None, Some(_)) => {
            found.added.members.insert(element.clone());
        }
        (Some(_), None) => {
            found.removed.members.insert(element.clone());
        }
        _ => {}
    }
    if !whole {
        let below = compare(node, old.unwrap_or(&Value::Null), new.unwrap_or(&Value::Null));
        found.put(element, below);
    }
}

/// `over` laid over `live`: its values win, and what it does not speak of stays.
pub(super) fn merge(node: &Node, live: &Value, over: &Value) -> Value {
    match (live, over) {
        _ if matches!(node, Node::Whole(_)) => over.clone(),
        (Value::Object(live), Value::Object(over)) => {
            let mut merged = live.clone();
            for (key, value) in over {
                let new = match live.get(key) {
                    Some(old) => merge(field(node, key).0, old, value),
                    None => value.clone(),
                };
                merged.insert(key.clone(), new);
            }
            Value::Object(merged)
        }
        (Value::Array(live), Value::Array(over)) => match (items(node, live), items(node, over)) {
            (Some((inner, old)), Some((_, new))) => Value::Array(merge_items(inner, &old, &new)),
            _ => Value::Array(over.clone()),
        },
        (_, over) => over.clone(),
    }
}

/// Items in the order of `new`, those of `old` alone where they stood between them.
fn merge_items(node: &Node, old: &[(Element, &Value)], new: &[(Element, &Value)]) -> Vec<Value> {
    let in_old: BTreeMap<&Element, &Value> = old.iter().map(|(e, v)| (e, *v)).collect();
    let in_new: BTreeMap<&Element, &Value> = new.iter().map(|(e, v)| (e, *v)).collect();
    let mut shared = new.iter().map(|(e, _)| e).filter(|e| in_old.contains_key(e)).peekable();
    let (mut left, mut right) = (old.iter().peekable(), new.iter().peekable());
    let mut merged = Vec::new();
    loop {
        if let Some((element, value)) = left.peek() {
            if !in_new.contains_key(element) {
                merged.push((*value).clone());
                left.next();
                continue;
            }
            // One that stands elsewhere in the new order is taken from there.
            if right.peek().is_some_and(|(e, _)| e != element) && shared.peek().is_some_and(|s| *s != element) {
                left.next();
                continue;
            }
        }
        let Some((element, value)) = right.next() else { break };
        match in_old.get(element) {
            Some(was) => merged.push(merge(node, was, value)),
            None => merged.push((*value).clone()),
        }
        if left.peek().is_some_and(|(e, _)| e == element) {
            left.next();
        }
        if shared.peek() == Some(&element) {
            shared.next();
        }
    }
    merged
}

/// `value` without the fields in `gone`; nothing when nothing of a container is left.
pub(super) fn remove(node: &Node, value: &Value, gone: &Set) -> Option<Value> {
    match value {
        Value::Object(map) => {
            let mut kept = Map::new();
            for (key, inner) in map {
                let element = Element::field(key);
                if gone.members.contains(&element) {
                    continue;
                }
                let left = match gone.below.get(&element) {
                    Some(below) => remove(field(node, key).0, inner, below),
                    None => Some(inner.clone()),
                };
                if let Some(left) = left {
                    kept.insert(key.clone(), left);
                }
            }
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        Value::Array(list) => {
            let Some((inner, all)) = items(node, list) else {
                return Some(value.clone());
            };
            let kept: Vec<Value> = all
                .into_iter()
                .filter(|(element, _)| !gone.members.contains(element))
                .filter_map(|(element, item)| match gone.below.get(&element) {
                    Some(below) => remove(inner, item, below),
                    None => Some(item.clone()),
                })
                .collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        _ => Some(value.clone()),
    }
}

/// The set with every named field that it reaches into as a member: a container is there where something in it is.
pub(super) fn with_containers(node: &Node, set: &Set) -> Set {
    let mut out = Set {
        members: set.members.clone(),
        below: BTreeMap::new(),
    };
    for (element, below) in &set.below {
        let inner = match (element, node) {
            (Element::Field(name), _) => {
                let (inner, named) = field(node, name);
                if named {
                    out.members.insert(element.clone());
                }
                inner
            }
            (_, Node::List(inner, _)) => inner,
            _ => OPEN,
        };
        out.below.insert(element.clone(), with_containers(inner, below));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::schema::compile;
    use serde_json::json;

    fn node() -> Node {
        compile(&json!({ "type": "object", "properties": {
            "text": { "type": "string" },
            "labels": { "type": "object", "additionalProperties": { "type": "string" } },
            "whole": { "type": "array", "items": { "type": "string" }, "x-kubernetes-list-type": "atomic" },
            "names": { "type": "array", "items": { "type": "string" }, "x-kubernetes-list-type": "set" },
            "open": { "x-kubernetes-preserve-unknown-fields": true },
            "parts": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
                       "items": { "type": "object", "properties": {
                           "type": { "type": "string" }, "status": { "type": "string" } } } },
        } }))
    }

    fn sample() -> Value {
        json!({ "text": "a", "labels": { "x": "1" }, "whole": ["p"], "names": ["n"], "open": { "deep": [1] },
                "parts": [{ "type": "A", "status": "1" }] })
    }

    #[test]
    fn fields() {
        assert_eq!(
            fields_of(&node(), &sample()).encode(),
            json!({
                "f:text": {}, "f:labels": { "f:x": {} }, "f:whole": {}, "f:names": { "v:\"n\"": {} },
                "f:open": { "f:deep": {} },
                "f:parts": { "k:{\"type\":\"A\"}": { ".": {}, "f:type": {}, "f:status": {} } },
            })
        );
        let empty = json!({ "labels": {}, "names": [] });
        assert_eq!(fields_of(&node(), &empty).encode(), json!({ "f:labels": {} }));
    }

    #[test]
    fn differences() {
        let found = compare(&node(), &json!({ "text": "a" }), &sample());
        assert!(found.modified.is_empty() && found.removed.is_empty());
        assert_eq!(found.added.encode()["f:labels"], json!({ ".": {}, "f:x": {} }));
        let mut new = sample();
        new["parts"] = json!([{ "type": "A", "status": "2" }, { "type": "B" }]);
        new["whole"] = json!(["p", "q"]);
        let found = compare(&node(), &sample(), &new);
        assert_eq!(found.modified.paths(), [".whole", ".parts[type=\"A\"].status"]);
        assert_eq!(found.added.paths(), [".parts[type=\"B\"]", ".parts[type=\"B\"].type"]);
        assert!(compare(&node(), &sample(), &sample()).is_empty());
        assert_eq!(
            compare(&node(), &sample(), &json!({ "text": "a" })).removed.encode()["f:names"],
            json!({ ".": {}, "v:\"n\"": {} })
        );
    }

    #[test]
    fn merging_keeps_what_is_not_spoken_of() {
        let over = json!({ "labels": { "y": "2" }, "whole": ["z"], "names": ["m"],
                           "parts": [{ "type": "B" }, { "type": "A", "status": "9" }] });
        let merged = merge(&node(), &sample(), &over);
        assert_eq!(merged["labels"], json!({ "x": "1", "y": "2" }));
        assert_eq!((&merged["whole"], &merged["text"]), (&json!(["z"]), &json!("a")));
        assert_eq!(merged["names"], json!(["n", "m"]));
        assert_eq!(
            merged["parts"],
            json!([{ "type": "B" }, { "type": "A", "status": "9" }])
        );
    }

    /// As with references to owners.
    #[test]
    fn whoever_sets_a_part_of_a_whole_sets_all_of_it() {
        let node = compile(
            &json!({ "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
            "items": { "type": "object", "x-kubernetes-map-type": "atomic", "properties": {
                "id": { "type": "string" }, "size": { "type": "string" } } } }),
        );
        let (old, new) = (
            json!([{ "id": "a", "size": "1", "more": "x" }]),
            json!([{ "id": "a", "size": "2" }]),
        );
        assert_eq!(fields_of(&node, &old).encode(), json!({ "k:{\"id\":\"a\"}": {} }));
        assert_eq!(merge(&node, &old, &new), new);
        let found = compare(&node, &old, &new);
        assert_eq!(found.modified.encode(), json!({ "k:{\"id\":\"a\"}": {} }));
        assert!(found.added.is_empty() && found.removed.is_empty());
    }

    #[test]
    fn removal() {
        let gone =
            Set::decode(&json!({ "f:labels": { "f:x": {} }, "f:names": { "v:\"n\"": {} }, "f:text": {} })).unwrap();
        let left = remove(&node(), &sample(), &gone).unwrap();
        assert_eq!(
            left.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["open", "parts", "whole"]
        );
        assert!(
            with_containers(&node(), &gone)
                .members
                .contains(&Element::field("labels"))
        );
    }

    #[test]
    fn items_given_twice_are_found() {
        assert_eq!(duplicate_item(&node(), &sample()), None);
        let twice = json!({ "parts": [{ "type": "A" }, { "type": "A" }] });
        assert_eq!(duplicate_item(&node(), &twice).unwrap(), ".parts[type=\"A\"]");
    }
}
