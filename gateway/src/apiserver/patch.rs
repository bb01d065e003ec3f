//! JSON merge patch (RFC 7386) and JSON patch (RFC 6902) on plain values.

use super::negotiation::unsupported;
use hanse_api::status::{Details, Reason, Status};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Most operations of one JSON patch (as in Kubernetes).
const MAX_OPERATIONS: usize = 10_000;
/// Most bytes that the copies of one JSON patch may add.
const MAX_COPIED: usize = 3 * 1024 * 1024;
/// Most values that one JSON patch may look through or shift: moving a large value, or the items behind a place of a long
/// list, costs by their number, and an operation is a few bytes.
const MAX_MOVED: usize = 50_000_000;
/// Deepest nesting of what a patch makes, as deep as a body may be. Deeper values would exhaust the stack of whoever
/// writes or drops them.
const MAX_DEPTH: usize = 128;

/// A patch, read but not yet applied.
#[derive(Clone, Debug)]
pub(crate) enum Patch {
    Merge(Value),
    Json(Vec<Operation>),
}

/// One operation of a JSON patch.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(crate) enum Operation {
    Add { path: String, value: Value },
    Remove { path: String },
    Replace { path: String, value: Value },
    Move { from: String, path: String },
    Copy { from: String, path: String },
    Test { path: String, value: Value },
}

impl Patch {
    /// Reads a patch by its media type.
    pub(crate) fn read(media: &str, body: &[u8]) -> Result<Self, Box<Status>> {
        const KNOWN: &str = "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
        let bad =
            |e: serde_json::Error| Box::new(Status::new(Reason::BadRequest, format!("error decoding patch: {e}")));
        match media {
            "application/merge-patch+json" => {
                let value: Value = serde_json::from_slice(body).map_err(bad)?;
                if !value.is_object() {
                    return Err(Box::new(Status::new(
                        Reason::BadRequest,
                        "error decoding patch: a merge patch must be an object",
                    )));
                }
                Ok(Self::Merge(value))
            }
            "application/json-patch+json" => {
                let operations: Vec<Operation> = serde_json::from_slice(body).map_err(bad)?;
                if operations.len() > MAX_OPERATIONS {
                    let message = format!(
                        "the allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
                        operations.len()
                    );
                    return Err(Box::new(Status::new(Reason::RequestEntityTooLarge, message)));
                }
                Ok(Self::Json(operations))
            }
            other => Err(unsupported(other, KNOWN)),
        }
    }

    /// The `resourceVersion` that the patch insists on, if any.
    pub(crate) fn resource_version(&self) -> Option<&str> {
        match self {
            Self::Merge(value) => value["metadata"]["resourceVersion"].as_str().filter(|v| !v.is_empty()),
            Self::Json(operations) => operations.iter().find_map(|o| match o {
                Operation::Test { path, value }
                | Operation::Replace { path, value }
                | Operation::Add { path, value }
                    if path == "/metadata/resourceVersion" =>
                {
                    value.as_str()
                }
                _ => None,
            }),
        }
    }

    /// What becomes of `target`.
    pub(crate) fn apply(&self, target: &Value) -> Result<Value, Box<Status>> {
        let mut out = target.clone();
        match self {
            Self::Merge(patch) => {
                merge(&mut out, patch, 0).map_err(|e| Box::new(Status::new(Reason::BadRequest, e)))?
            }
            Self::Json(operations) => {
                let mut spent = Spent::default();
                for operation in operations {
                    step(&mut out, operation, &mut spent)?;
                }
            }
        }
        if out.is_object() {
            Ok(out)
        } else {
            Err(Box::new(Status::new(Reason::BadRequest, "the patch leaves no object")))
        }
    }
}

fn merge(target: &mut Value, patch: &Value, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(format!("the patch is nested deeper than {MAX_DEPTH} levels"));
    }
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return Ok(()) };
    for (key, change) in changes {
        if change.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), change, depth + 1)?;
        }
    }
    Ok(())
}

fn failed(message: String) -> Box<Status> {
    let message = format!("the server rejected our request due to an error in our request: {message}");
    Box::new(Status::new(Reason::Invalid, message).with_details(Details::default()))
}

/// What a JSON patch has cost so far.
#[derive(Debug, Default)]
struct Spent {
    copied: usize,
    moved: usize,
}

impl Spent {
    fn moves(&mut self, values: usize) -> Result<(), Box<Status>> {
        self.moved += values;
        if self.moved > MAX_MOVED {
            let message = format!("the operations of the patch move more than {MAX_MOVED} values");
            return Err(Box::new(Status::new(Reason::RequestEntityTooLarge, message)));
        }
        Ok(())
    }

    fn copies(&mut self, bytes: usize) -> Result<(), Box<Status>> {
        self.copied += bytes;
        if self.copied > MAX_COPIED {
            let message = format!("the copies of the patch add more than {MAX_COPIED} bytes");
            return Err(Box::new(Status::new(Reason::RequestEntityTooLarge, message)));
        }
        Ok(())
    }

    /// Refuses what would be too deep at `path`.
    fn fits(&mut self, path: &str, value: &Value) -> Result<(), Box<Status>> {
        let (levels, values) = measure(value);
        self.moves(values)?;
        if path.matches('/').count() + levels > MAX_DEPTH {
            return Err(failed(format!("{path:?} is nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }
}

fn step(doc: &mut Value, operation: &Operation, spent: &mut Spent) -> Result<(), Box<Status>> {
    let missing = |path: &str| failed(format!("path {path:?} does not exist"));
    match operation {
        Operation::Add { path, value } => {
            spent.fits(path, value)?;
            add(doc, path, value.clone(), spent)
        }
        Operation::Remove { path } => remove(doc, path, spent).map(|_| ()),
        Operation::Replace { path, value } => {
            spent.fits(path, value)?;
            replace(doc, path, value.clone())
        }
        Operation::Test { path, value } => {
            let have = doc.pointer(path).unwrap_or(&Value::Null);
            if have == value {
                Ok(())
            } else {
                Err(failed(format!("testing path {path:?} failed")))
            }
        }
        Operation::Copy { from, path } => {
            let value = doc.pointer(from).ok_or_else(|| missing(from))?.clone();
            spent.fits(path, &value)?;
            spent.copies(value.to_string().len())?;
            add(doc, path, value, spent)
        }
        Operation::Move { from, path } => {
            if path.starts_with(&format!("{from}/")) {
                return Err(failed(format!("{from:?} cannot be moved into itself")));
            }
            let value = remove(doc, from, spent)?;
            spent.fits(path, &value)?;
            add(doc, path, value, spent)
        }
    }
}

/// Levels of a value, and how many values it is; what this is asked of is bounded by [`MAX_DEPTH`] or by the parser.
fn measure(value: &Value) -> (usize, usize) {
    let more = |(levels, values): (usize, usize), inner: &Value| {
        let (deep, many) = measure(inner);
        (levels.max(deep + 1), values + many)
    };
    match value {
        Value::Object(map) => map.values().fold((1, 1), more),
        Value::Array(list) => list.iter().fold((1, 1), more),
        _ => (0, 1),
    }
}

/// The container of the last segment, and that segment, unescaped.
fn parent<'a>(doc: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), Box<Status>> {
    let (head, last) = path
        .rsplit_once('/')
        .ok_or_else(|| failed(format!("path {path:?} does not begin with /")))?;
    let parent = doc
        .pointer_mut(head)
        .ok_or_else(|| failed(format!("path {head:?} does not exist")))?;
    Ok((parent, last.replace("~1", "/").replace("~0", "~")))
}

/// Kubernetes' own reading: a member that is not there is made, an item of a list is not.
fn replace(doc: &mut Value, path: &str, value: Value) -> Result<(), Box<Status>> {
    if let Some(place) = doc.pointer_mut(path) {
        *place = value;
        return Ok(());
    }
    match parent(doc, path)? {
        (Value::Object(map), last) => {
            map.insert(last, value);
            Ok(())
        }
        _ => Err(failed(format!("path {path:?} does not exist"))),
    }
}

fn index(text: &str, len: usize) -> Option<usize> {
    let plain = text == "0" || (!text.starts_with('0') && !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    text.parse().ok().filter(|i| plain && *i < len)
}

fn add(doc: &mut Value, path: &str, value: Value, spent: &mut Spent) -> Result<(), Box<Status>> {
    if path.is_empty() {
        *doc = value;
        return Ok(());
    }
    let (parent, last) = parent(doc, path)?;
    match parent {
        Value::Object(map) => {
            map.insert(last, value);
        }
        Value::Array(list) if last == "-" => list.push(value),
        Value::Array(list) => {
            let at = index(&last, list.len() + 1).ok_or_else(|| failed(format!("{path:?} is no place in its list")))?;
            spent.moves(list.len() - at)?;
            list.insert(at, value);
        }
        _ => {
            return Err(failed(format!(
                "path {path:?} leads into something that is neither object nor list"
            )));
        }
    }
    Ok(())
}

fn remove(doc: &mut Value, path: &str, spent: &mut Spent) -> Result<Value, Box<Status>> {
    let missing = || failed(format!("path {path:?} does not exist"));
    let (parent, last) = parent(doc, path)?;
    match parent {
        Value::Object(map) => map.remove(&last).ok_or_else(missing),
        Value::Array(list) => {
            let at = index(&last, list.len()).ok_or_else(missing)?;
            spent.moves(list.len() - at)?;
            Ok(list.remove(at))
        }
        _ => Err(missing()),
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(media: &str, target: Value, patch: &Value) -> Result<Value, Box<Status>> {
        Patch::read(media, patch.to_string().as_bytes())?.apply(&target)
    }

    const MERGE: &str = "application/merge-patch+json";
    const JSON: &str = "application/json-patch+json";

    /// Cases after RFC 7386, appendix A, those with objects on both sides.
    #[test]
    fn merge_patches() {
        let table = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d","c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ];
        for (target, patch, want) in table {
            assert_eq!(patched(MERGE, target, &patch).unwrap(), want, "{patch}");
        }
    }

    #[test]
    fn a_member_that_is_not_there_can_be_replaced() {
        let patch = |path: &str| json!([{ "op": "replace", "path": path, "value": 1 }]);
        let doc = json!({ "a": [], "b": {} });
        let made = patched(JSON, doc.clone(), &patch("/b/c")).unwrap();
        assert_eq!(made, json!({ "a": [], "b": { "c": 1 } }));
        for none in ["/a/0", "/a/-", "/c/d", "/b/c/d"] {
            assert_eq!(
                patched(JSON, doc.clone(), &patch(none)).unwrap_err().code,
                422,
                "{none}"
            );
        }
    }

    #[test]
    fn json_patches() {
        let doc = json!({"a": [1, 2], "m~n": {"x/y": 1}});
        let table = [
            (
                json!([{"op":"add","path":"/a/1","value":9}]),
                json!({"a":[1,9,2],"m~n":{"x/y":1}}),
            ),
            (
                json!([{"op":"add","path":"/a/-","value":9}]),
                json!({"a":[1,2,9],"m~n":{"x/y":1}}),
            ),
            (
                json!([{"op":"remove","path":"/m~0n/x~1y"}]),
                json!({"a":[1,2],"m~n":{}}),
            ),
            (
                json!([{"op":"test","path":"/a/0","value":1},{"op":"replace","path":"/a/0","value":5}]),
                json!({"a":[5,2],"m~n":{"x/y":1}}),
            ),
            (
                json!([{"op":"move","from":"/a","path":"/b"}]),
                json!({"b":[1,2],"m~n":{"x/y":1}}),
            ),
            (
                json!([{"op":"copy","from":"/a","path":"/b"}]),
                json!({"a":[1,2],"b":[1,2],"m~n":{"x/y":1}}),
            ),
        ];
        for (patch, want) in table {
            assert_eq!(patched(JSON, doc.clone(), &patch).unwrap(), want, "{patch}");
        }
        for (patch, code) in [
            (json!([{"op":"test","path":"/a/0","value":2}]), 422),
            (json!([{"op":"remove","path":"/zz"}]), 422),
            (json!([{"op":"add","path":"/a/7","value":1}]), 422),
            (json!([{"op":"add","path":"/a/01","value":1}]), 422),
            (json!([{"op":"replace","path":"/q/w","value":1}]), 422),
            (json!([{"op":"move","from":"/a","path":"/a/b"}]), 422),
            (json!([{"op":"replace","path":"","value":1}]), 400),
            (json!([{"op":"nonsense","path":"/a"}]), 400),
            (json!({"op":"add"}), 400),
        ] {
            assert_eq!(patched(JSON, doc.clone(), &patch).unwrap_err().code, code, "{patch}");
        }
    }

    #[test]
    fn floods_are_refused() {
        let many = vec![json!({"op":"test","path":"/a","value":1}); MAX_OPERATIONS + 1];
        assert_eq!(patched(JSON, json!({"a":1}), &json!(many)).unwrap_err().code, 413);
        // Each copy doubles the document.
        let doubling: Vec<Value> = (0..40)
            .map(|i| json!({"op":"copy","from":"","path":format!("/c{i}")}))
            .collect();
        assert_eq!(
            patched(JSON, json!({"a":"xxxxxxxx"}), &json!(doubling))
                .unwrap_err()
                .code,
            413
        );
    }

    /// A few bytes each, they shift a long list or look through a large value again and again.
    #[test]
    fn operations_that_cost_far_more_than_their_size_are_bounded() {
        let doc = json!({ "a": vec![0; 100_000], "n": 0 });
        let shifting = [
            json!({"op":"remove","path":"/a/0"}),
            json!({"op":"add","path":"/a/0","value":0}),
        ];
        let moving = [
            json!({"op":"move","from":"/a","path":"/b"}),
            json!({"op":"move","from":"/b","path":"/a"}),
        ];
        for pair in [shifting, moving] {
            let many: Vec<Value> = pair.iter().cycle().take(MAX_OPERATIONS).cloned().collect();
            assert_eq!(patched(JSON, doc.clone(), &json!(many)).unwrap_err().code, 413);
            assert_eq!(patched(JSON, doc.clone(), &json!(many[..100])).unwrap(), doc);
        }
    }

    /// Each round wraps the document once more.
    #[test]
    fn what_a_patch_makes_is_not_deeper_than_a_body_may_be() {
        let mut rounds = vec![json!({"op":"add","path":"/a","value":{}})];
        for _ in 0..200 {
            rounds.push(json!({"op":"add","path":"/b","value":{}}));
            rounds.push(json!({"op":"move","from":"/a","path":"/b/x"}));
            rounds.push(json!({"op":"move","from":"/b","path":"/a"}));
        }
        assert_eq!(patched(JSON, json!({}), &json!(rounds)).unwrap_err().code, 422);
        let fine = json!(rounds[..301]);
        assert!(measure(&patched(JSON, json!({}), &fine).unwrap()).0 > 100);
    }

    #[test]
    fn media_types() {
        assert_eq!(
            Patch::read("application/strategic-merge-patch+json", b"{}")
                .unwrap_err()
                .code,
            415
        );
        assert_eq!(Patch::read(MERGE, b"{").unwrap_err().code, 400);
        assert_eq!(Patch::read(MERGE, b"[]").unwrap_err().code, 400);
    }
}
