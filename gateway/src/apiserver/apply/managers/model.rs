//! Sequences of applies and plain writes by several managers, beside a naive model: an object there is a flat map from
//! paths to values, and each manager holds a set of paths.

use super::*;
use crate::apiserver::schema::compile;
use crate::fuzzing::cases;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn node() -> Node {
    let text = || json!({ "type": "string" });
    compile(&json!({ "type": "object", "properties": {
        "text": text(),
        "more": { "type": "object", "properties": { "deep": text() } },
        "labels": { "type": "object", "additionalProperties": text() },
        "whole": { "type": "array", "items": text(), "x-kubernetes-list-type": "atomic" },
        "names": { "type": "array", "items": text(), "x-kubernetes-list-type": "set" },
        "open": { "x-kubernetes-preserve-unknown-fields": true },
        "parts": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
                   "items": { "type": "object", "properties": { "type": text(), "status": text() } } },
    } }))
}

/// Objects without empty containers, which are nobody's in the model.
fn object() -> impl Strategy<Value = Value> {
    let few = |values: &'static str| prop::option::of(values);
    let map = || prop::collection::btree_map("[xy]", "[12]", 0..3);
    let names = prop::collection::btree_set("[nm]", 0..3);
    let parts = prop::collection::btree_map("[AB]", prop::option::of("[12]"), 0..3);
    (few("[ab]"), few("[ab]"), map(), few("[pq]"), names, map(), parts).prop_map(
        |(text, deep, labels, whole, names, open, parts)| {
            let part = |(key, status): (String, Option<String>)| match status {
                Some(status) => json!({ "type": key, "status": status }),
                None => json!({ "type": key }),
            };
            let all = json!({ "text": text, "more": deep.map(|d| json!({ "deep": d })), "labels": labels,
                              "whole": whole.map(|w| [w]), "names": names, "open": open,
                              "parts": parts.into_iter().map(part).collect::<Vec<_>>() });
            let empty = |v: &Value| {
                v.is_null() || v.as_array().is_some_and(Vec::is_empty) || v.as_object().is_some_and(|m| m.is_empty())
            };
            let kept = all.as_object().unwrap().iter().filter(|(_, v)| !empty(v));
            Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect())
        },
    )
}

/// What counts by itself in an object, as paths are printed.
fn flat(object: &Value) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for (key, value) in object.as_object().unwrap() {
        match (key.as_str(), value) {
            ("names", Value::Array(names)) => all.extend(names.iter().map(|n| (format!(".names[={n}]"), json!(0)))),
            ("parts", Value::Array(parts)) => {
                for part in parts {
                    let item = format!(".parts[type={}]", part["type"]);
                    let fields = part.as_object().unwrap();
                    all.extend(fields.iter().map(|(k, v)| (format!("{item}.{k}"), v.clone())));
                    all.insert(item, json!(0));
                }
            }
            (_, Value::Object(map)) => all.extend(map.iter().map(|(k, v)| (format!(".{key}.{k}"), v.clone()))),
            _ => {
                all.insert(format!(".{key}"), value.clone());
            }
        }
    }
    all
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    live: BTreeMap<String, Value>,
    held: BTreeMap<Manager, BTreeSet<String>>,
}

impl Model {
    fn become_(&mut self, new: BTreeMap<String, Value>, writer: &Manager) {
        let changed = |path: &String| self.live.get(path) != new.get(path);
        let all: BTreeSet<String> = self.live.keys().chain(new.keys()).cloned().collect();
        let lost: BTreeSet<String> = all.into_iter().filter(changed).collect();
        for (manager, paths) in &mut self.held {
            paths.retain(|p| !lost.contains(p) || (manager == writer && new.contains_key(p)));
        }
        if writer.operation == Operation::Update {
            let written = lost.into_iter().filter(|p| new.contains_key(p));
            self.held.entry(writer.clone()).or_default().extend(written);
        }
        self.held.retain(|_, paths| !paths.is_empty());
        self.live = new;
    }

    /// Paths at which an apply meets somebody else.
    fn apply(&mut self, config: &BTreeMap<String, Value>, who: &Manager, force: bool) -> Result<(), BTreeSet<String>> {
        let others = |path: &String| self.held.iter().any(|(m, paths)| m != who && paths.contains(path));
        let differs = |path: &&String| self.live.get(*path) != config.get(*path);
        let met: BTreeSet<String> = config.keys().filter(differs).filter(|p| others(p)).cloned().collect();
        if !force && !met.is_empty() {
            return Err(met);
        }
        let dropped = self.held.get(who).into_iter().flatten();
        let gone: Vec<String> = dropped
            .filter(|p| !config.contains_key(*p) && !others(p))
            .cloned()
            .collect();
        let mut new = self.live.clone();
        new.extend(config.clone());
        // An item goes with all that is in it.
        new.retain(|path, _| {
            !gone
                .iter()
                .any(|g| path == g || (g.ends_with(']') && path.starts_with(&format!("{g}."))))
        });
        self.held.insert(who.clone(), config.keys().cloned().collect());
        self.become_(new, who);
        Ok(())
    }
}

/// Who holds what, without containers.
fn held(managed: &Managed) -> BTreeMap<Manager, BTreeSet<String>> {
    const CONTAINERS: [&str; 5] = [".more", ".labels", ".names", ".open", ".parts"];
    let paths = |set: &Set| -> BTreeSet<String> {
        set.paths()
            .into_iter()
            .filter(|p| !CONTAINERS.contains(&p.as_str()))
            .collect()
    };
    let all = managed.0.iter().map(|(m, f)| (m.clone(), paths(&f.set)));
    all.filter(|(_, paths)| !paths.is_empty()).collect()
}

#[derive(Clone, Debug)]
struct Write {
    object: Value,
    name: &'static str,
    /// Nothing for a plain write.
    force: Option<bool>,
}

fn write() -> impl Strategy<Value = Write> {
    let name = prop::sample::select(&["ann", "bob", "eve"][..]);
    let force = prop_oneof![1 => Just(None), 2 => Just(Some(false)), 2 => Just(Some(true))];
    (object(), name, force).prop_map(|(object, name, force)| Write { object, name, force })
}

fn check(writes: &[Write]) -> Result<(), TestCaseError> {
    let node = node();
    let (mut model, mut managed, mut live) = (Model::default(), Managed::default(), json!({}));
    for (at, write) in writes.iter().enumerate() {
        let rules = Rules {
            node: &node,
            ignored: Set::default(),
            now: Timestamp::from_millis(i64::try_from(at).unwrap() * 1000),
        };
        let operation = if write.force.is_some() {
            Operation::Apply
        } else {
            Operation::Update
        };
        let who = Manager {
            operation,
            name: write.name.into(),
            version: "g/v1".into(),
            subresource: String::new(),
        };
        let Some(force) = write.force else {
            managed = managed.updated(&rules, &live, &write.object, &who);
            live = write.object.clone();
            model.become_(flat(&live), &who);
            prop_assert_eq!(&held(&managed), &model.held, "after {:?}", write);
            continue;
        };
        let wanted = model.apply(&flat(&write.object), &who, force);
        match managed.clone().applied(&rules, &live, &write.object, &who, force) {
            Err(conflicts) => {
                let met: BTreeSet<String> = conflicts.into_iter().map(|c| c.path).collect();
                prop_assert_eq!(wanted, Err(met), "{:?} on {}", write, live);
            }
            Ok((new, after)) => {
                prop_assert_eq!(wanted, Ok(()), "{:?} on {}", write, live);
                (live, managed) = (new.unwrap_or(live), after);
                // Once more changes nothing, whoever else is there.
                let (again, same) = managed
                    .clone()
                    .applied(&rules, &live, &write.object, &who, false)
                    .unwrap();
                prop_assert_eq!(again, None, "{:?} again", write);
                prop_assert_eq!(same.encode(), managed.encode());
            }
        }
        prop_assert_eq!(flat(&live), model.live.clone(), "after {:?}", write);
        prop_assert_eq!(&held(&managed), &model.held, "after {:?}", write);
        prop_assert_eq!(Managed::decode(&managed.encode()), Some(managed.clone()));
    }
    Ok(())
}

/// Anything at all in the place of `managedFields`.
fn any_entries() -> impl Strategy<Value = Value> {
    let key = "(f:|k:|v:|i:)?[a{}\":1.]{0,5}|f:a|\\.|k:\\{\"a\":1\\}";
    let leaf = prop_oneof![Just(json!({})), Just(Value::Null), any::<i32>().prop_map(Value::from)];
    let fields = leaf.prop_recursive(4, 16, 3, move |inner| {
        prop::collection::btree_map(key, inner, 0..3).prop_map(|m| Value::Object(m.into_iter().collect()))
    });
    let entry = (fields, "(Apply|Update|x)", "[a-c]?").prop_map(|(fields, operation, name)| {
        json!({ "manager": name, "operation": operation, "fieldsType": "FieldsV1", "fieldsV1": fields })
    });
    prop::collection::vec(entry, 0..4).prop_map(Value::from)
}

proptest! {
    #![proptest_config(cases(120))]

    #[test]
    fn managers_share_an_object_as_in_the_model(writes in prop::collection::vec(write(), 1..8)) {
        check(&writes)?;
    }

    /// Authors may send any entries: those that can be read are written so that they read the same, and nothing breaks.
    #[test]
    fn entries_that_can_be_read_stay_the_same(entries in any_entries(), live in object(), config in object()) {
        if let Some(managed) = Managed::decode(&entries) {
            prop_assert_eq!(Managed::decode(&managed.encode()), Some(managed.clone()));
            let node = node();
            let rules = Rules { node: &node, ignored: Set::default(), now: Timestamp::from_millis(0) };
            let ann = Manager { operation: Operation::Apply, name: "ann".into(), version: "g/v1".into(),
                                subresource: String::new() };
            let (new, managed) = managed.applied(&rules, &live, &config, &ann, true).unwrap();
            let new = flat(&new.unwrap_or(live));
            for (path, value) in flat(&config) {
                prop_assert_eq!(new.get(&path), Some(&value), "{}", path);
            }
            prop_assert_eq!(Managed::decode(&managed.encode()), Some(managed));
        }
    }
}
