//! Any patch: JSON patches do what a naive interpreter does, merge patches what RFC 7386 says, and both keep to their bounds.

use super::*;
use crate::fuzzing::cases;
use proptest::prelude::*;
use serde_json::json;

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3_i32).prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let key = prop::sample::select(&["a", "b", "c", "0", "~", "/", "~1", ""][..]).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn any_object() -> impl Strategy<Value = Value> {
    (any_json(), any_json(), any_json()).prop_map(|(a, b, list)| json!({ "a": a, "b": b, "c": [list, {}, 1] }))
}

fn pointer() -> impl Strategy<Value = String> {
    let token = prop::sample::select(&["a", "b", "c", "0", "1", "2", "-", "01", "+1", "~0", "~1", "~01", ""][..]);
    let below = prop::collection::vec(token, 0..3).prop_map(|t| t.iter().map(|t| format!("/{t}")).collect::<String>());
    let top = prop::sample::select(&["/a", "/b", "/c", "/c/0", "", "a"][..]);
    (top, below).prop_map(|(top, below)| format!("{top}{below}"))
}

fn operation() -> impl Strategy<Value = Value> {
    let two =
        |op: &'static str| (pointer(), pointer()).prop_map(move |(f, p)| json!({ "op": op, "from": f, "path": p }));
    let valued =
        |op: &'static str| (pointer(), any_json()).prop_map(move |(p, v)| json!({ "op": op, "path": p, "value": v }));
    prop_oneof![
        valued("add"),
        valued("replace"),
        valued("test"),
        pointer().prop_map(|p| json!({ "op": "remove", "path": p })),
        two("move"),
        two("copy"),
    ]
}

/// The tokens of a pointer, unescaped letter by letter.
fn tokens(pointer: &str) -> Option<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    let mut letters = pointer.chars().peekable();
    while let Some(c) = letters.next() {
        if c == '/' {
            all.push(String::new());
            continue;
        }
        let escaped = letters.next_if(|next| c == '~' && matches!(next, '0' | '1'));
        all.last_mut()?.push(match escaped {
            Some('1') => '/',
            _ => c,
        });
    }
    Some(all)
}

fn place(token: &str, most: usize) -> Option<usize> {
    (0..=most).find(|at| at.to_string() == token)
}

fn get<'a>(doc: &'a Value, path: &[String]) -> Option<&'a Value> {
    let Some((first, rest)) = path.split_first() else {
        return Some(doc);
    };
    let inner = match doc {
        Value::Object(map) => map.get(first)?,
        Value::Array(list) => list.get(place(first, list.len())?)?,
        _ => return None,
    };
    get(inner, rest)
}

/// What is done at the end of a path.
enum Act<'a> {
    Add(&'a Value),
    Remove,
    Replace(&'a Value),
}

/// A new document: nothing when the act has no place in it.
fn edit(doc: &Value, path: &[String], act: &Act<'_>) -> Option<Value> {
    let Some((first, rest)) = path.split_first() else {
        return match act {
            Act::Add(value) | Act::Replace(value) => Some((*value).clone()),
            Act::Remove => None,
        };
    };
    let mut doc = doc.clone();
    let last = rest.is_empty();
    match (&mut doc, act) {
        (Value::Object(map), Act::Add(value) | Act::Replace(value)) if last => {
            map.insert(first.clone(), (*value).clone());
        }
        (Value::Object(map), Act::Remove) if last => {
            map.remove(first)?;
        }
        (Value::Object(map), _) => {
            let new = edit(map.get(first)?, rest, act)?;
            map.insert(first.clone(), new);
        }
        (Value::Array(list), Act::Add(value)) if last => {
            let at = if first == "-" {
                list.len()
            } else {
                place(first, list.len())?
            };
            let tail = list.split_off(at);
            list.push((*value).clone());
            list.extend(tail);
        }
        (Value::Array(list), Act::Remove) if last => {
            let at = place(first, list.len()).filter(|at| *at < list.len())?;
            list.remove(at);
        }
        (Value::Array(list), _) => {
            let at = place(first, list.len())?;
            let new = edit(list.get(at)?, rest, act)?;
            list[at] = new;
        }
        _ => return None,
    }
    Some(doc)
}

/// RFC 6902 by whole copies; a missing value counts as null in a test, and a missing member can be replaced, as in Kubernetes.
fn naive(doc: &Value, operation: &Value) -> Option<Value> {
    let path = tokens(operation["path"].as_str()?);
    let value = &operation["value"];
    let from = || tokens(operation["from"].as_str().unwrap());
    match operation["op"].as_str()? {
        "add" => edit(doc, &path?, &Act::Add(value)),
        "replace" => edit(doc, &path?, &Act::Replace(value)),
        "remove" => edit(doc, &path?, &Act::Remove),
        "test" => {
            let have = path.and_then(|path| get(doc, &path).cloned()).unwrap_or_default();
            (have == *value).then(|| doc.clone())
        }
        "copy" => edit(doc, &path?, &Act::Add(get(doc, &from()?)?)),
        "move" => {
            let (from, path) = (from()?, path?);
            if path.len() > from.len() && path.starts_with(&from) {
                return None;
            }
            let moved = get(doc, &from)?;
            edit(&edit(doc, &from, &Act::Remove)?, &path, &Act::Add(moved))
        }
        _ => None,
    }
}

/// `MergePatch` of RFC 7386, section 2.
fn merge_patch(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut target = match target {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            let old = target.remove(name).unwrap_or_default();
            target.insert(name.clone(), merge_patch(old, value));
        }
    }
    Value::Object(target)
}

fn patched(media: &str, target: &Value, patch: &Value) -> Result<Value, Box<Status>> {
    Patch::read(media, patch.to_string().as_bytes())?.apply(target)
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn json_patches_do_what_the_naive_interpreter_does(
        doc in any_object(),
        operations in prop::collection::vec(operation(), 1..5),
    ) {
        // Each operation by itself as well, so that most sequences get far.
        let mut now = doc.clone();
        let mut done = Vec::new();
        for operation in operations {
            let wanted = naive(&now, &operation).filter(Value::is_object);
            let got = patched(JSON, &now, &json!([operation]));
            prop_assert_eq!(got.as_ref().ok(), wanted.as_ref(), "{} on {}", operation, now);
            if let Err(status) = got {
                prop_assert!(matches!(status.code, 400 | 422), "{status:?}");
            }
            if let Some(wanted) = wanted {
                done.push(operation);
                now = wanted;
            }
        }
        prop_assert_eq!(patched(JSON, &doc, &json!(done)).unwrap(), now);
    }

    #[test]
    fn what_is_added_anew_and_removed_was_never_there(doc in any_object(), path in pointer(), value in any_json()) {
        let new = !path.is_empty() && doc.pointer(&path).is_none() && !path.ends_with('-');
        if let (true, Ok(more)) = (new, patched(JSON, &doc, &json!([{ "op": "add", "path": path, "value": value }]))) {
            prop_assert_eq!(more.pointer(&path), Some(&value));
            prop_assert_eq!(patched(JSON, &more, &json!([{ "op": "remove", "path": path }])).unwrap(), doc);
        }
    }

    #[test]
    fn merge_patches_do_what_the_rfc_says(target in any_object(), patch in any_json()) {
        let mut merged = target.clone();
        merge(&mut merged, &patch, 0).unwrap();
        prop_assert_eq!(&merged, &merge_patch(target.clone(), &patch));
        let again = merged.clone();
        merge(&mut merged, &patch, 0).unwrap();
        prop_assert_eq!(&merged, &again);
        prop_assert_eq!(patched(MERGE, &target, &patch).ok(), patch.is_object().then_some(merged));
    }

    #[test]
    fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..80), text in r#"[\[{\]}",:a0~/opvathlue -]{0,80}"#) {
        for media in [JSON, MERGE] {
            for body in [&body[..], text.as_bytes()] {
                if let Ok(patch) = Patch::read(media, body) {
                    let _ = (patch.resource_version().is_some(), patch.apply(&json!({})).is_ok());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(20))]

    /// Patches that wrap and double the document as often as they can.
    #[test]
    fn nothing_grows_beyond_its_bounds(
        steps in prop::collection::vec(0..5_u8, 0..60),
        rounds in 1..30_usize,
    ) {
        let one = |(at, step): (usize, &u8)| match step {
            0 => json!({ "op": "copy", "from": "", "path": "/a" }),
            1 => json!({ "op": "copy", "from": "/a", "path": format!("/x{at}") }),
            2 => json!({ "op": "add", "path": "/b", "value": [{}] }),
            3 => json!({ "op": "move", "from": "/a", "path": "/b/0/n" }),
            _ => json!({ "op": "move", "from": "/b", "path": "/a" }),
        };
        let mut operations = vec![json!({ "op": "add", "path": "/b", "value": [{}] })];
        for _ in 0..rounds {
            operations.extend(steps.iter().enumerate().map(one));
        }
        let patch = json!(operations);
        match patched(JSON, &json!({ "a": { "b": "c" } }), &patch) {
            Ok(new) => {
                prop_assert!(measure(&new).0 <= MAX_DEPTH);
                prop_assert!(new.to_string().len() <= patch.to_string().len() + MAX_COPIED + 1024);
            }
            Err(status) => prop_assert!(matches!(status.code, 413 | 422), "{status:?}"),
        }
    }
}
