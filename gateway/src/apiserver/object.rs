//! Objects as JSON values: the fields that the server owns, and what it does with them.
//!
//! Objects are kept as they came, so that fields of a later version or of vCluster Platform survive a round trip
//! through this one. Typed access is for the rules of each kind.

use hanse_api::Timestamp;
use hanse_api::name;
use hanse_api::ownership::{self, FINALIZER_FOREGROUND, FINALIZER_ORPHAN};
use hanse_api::status::Cause;
use serde_json::{Map, Value, json};

/// Most bytes of all annotations of an object (as in Kubernetes).
const MAX_ANNOTATIONS: usize = 256 * 1024;
/// Most finalizers of an object.
const MAX_FINALIZERS: usize = 64;

/// `metadata`, made if absent or of a wrong type.
pub(crate) fn meta_mut(object: &mut Value) -> &mut Map<String, Value> {
    member_mut(object, "metadata")
}

/// Member `key` as an object, made if absent or of a wrong type.
pub(crate) fn member_mut<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    as_map(as_map(value).entry(key).or_insert_with(|| json!({})))
}

fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        // Made into an object just above.
        _ => unreachable!("the value is an object"),
    }
}

/// A text in `metadata`, empty when absent.
pub(crate) fn meta_text<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"][key].as_str().unwrap_or_default()
}

/// `metadata.name`.
pub(crate) fn name(object: &Value) -> &str {
    meta_text(object, "name")
}

/// Whether deletion was asked for.
pub(crate) fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// `metadata.finalizers`.
pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"]
        .as_array()
        .map(|f| f.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

/// Adds a finalizer unless it is there.
pub(crate) fn add_finalizer(object: &mut Value, finalizer: &str) {
    if !finalizers(object).contains(&finalizer) {
        let list = meta_mut(object).entry("finalizers").or_insert_with(|| json!([]));
        if !list.is_array() {
            *list = json!([]);
        }
        if let Some(list) = list.as_array_mut() {
            list.push(finalizer.into());
        }
    }
}

/// Sets what every new object gets, and removes what a client may not choose.
pub(crate) fn stamp_new(object: &mut Value, uid: String, now: Timestamp) {
    let meta = meta_mut(object);
    for key in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
        "resourceVersion",
    ] {
        meta.remove(key);
    }
    meta.insert("uid".into(), uid.into());
    meta.insert("creationTimestamp".into(), now.to_string().into());
    meta.insert("generation".into(), 1.into());
}

/// Fields of `metadata` that only the server writes.
const SERVER_OWNED: [&str; 7] = [
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

/// The object to store for an update of the main resource: the caller's words where he has a say, the old ones elsewhere.
pub(crate) fn merge_update(old: &Value, mut new: Value) -> Value {
    keep_server_owned(old, &mut new);
    keep(old, &mut new, "status");
    if differs_in_spec(old, &new) {
        bump_generation(&mut new);
    }
    new
}

/// The object to store for an update of `/status`: nothing but the status changes.
pub(crate) fn merge_status(old: &Value, new: &Value) -> Value {
    let mut merged = old.clone();
    keep(new, &mut merged, "status");
    merged
}

fn keep(from: &Value, to: &mut Value, key: &str) {
    let map = as_map(to);
    match from.get(key) {
        Some(value) => {
            map.insert(key.into(), value.clone());
        }
        None => {
            map.remove(key);
        }
    }
}

fn keep_server_owned(old: &Value, new: &mut Value) {
    keep(old, new, "apiVersion");
    keep(old, new, "kind");
    let old_meta = &old["metadata"];
    let meta = meta_mut(new);
    meta.remove("resourceVersion");
    meta.remove("selfLink");
    meta.remove("managedFields");
    for key in SERVER_OWNED {
        match old_meta.get(key) {
            Some(value) => meta.insert(key.into(), value.clone()),
            None => meta.remove(key),
        };
    }
    // An empty map or list says the same as none.
    meta.retain(|key, value| {
        let is_empty = match value {
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Null => true,
            _ => false,
        };
        !(is_empty
            && matches!(
                key.as_str(),
                "labels" | "annotations" | "finalizers" | "ownerReferences"
            ))
    });
}

/// `generation` counts changes of everything but metadata and status.
fn differs_in_spec(old: &Value, new: &Value) -> bool {
    let rest = |object: &Value| {
        let mut map = object.as_object().cloned().unwrap_or_default();
        map.remove("metadata");
        map.remove("status");
        map
    };
    rest(old) != rest(new)
}

/// Adds one to `generation`.
pub(crate) fn bump_generation(object: &mut Value) {
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
    meta_mut(object).insert("generation".into(), (generation + 1).into());
}

/// Faults of `metadata` that no kind allows.
pub(crate) fn meta_faults(object: &Value) -> Vec<Cause> {
    let meta = &object["metadata"];
    let fault = |field: String, message: String| Cause {
        reason: "FieldValueInvalid".into(),
        message,
        field,
    };
    let mut faults = Vec::new();
    for key in ["labels", "annotations"] {
        let map = &meta[key];
        let texts = map.as_object().is_none_or(|m| m.values().all(Value::is_string));
        if !(map.is_null() || map.is_object()) || !texts {
            faults.push(fault(
                format!("metadata.{key}"),
                "Invalid value: must be a map of strings to strings".into(),
            ));
        }
    }
    faults.extend(named_faults(meta));
    let size: usize = meta["annotations"]
        .as_object()
        .map(|m| m.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum())
        .unwrap_or_default();
    if size > MAX_ANNOTATIONS {
        faults.push(Cause {
            reason: "FieldValueTooLong".into(),
            message: format!("Too long: may not be more than {MAX_ANNOTATIONS} bytes"),
            field: "metadata.annotations".into(),
        });
    }
    let list = &meta["finalizers"];
    let good = list.is_null()
        || list
            .as_array()
            .is_some_and(|f| f.len() <= MAX_FINALIZERS && f.iter().all(Value::is_string));
    if !good {
        faults.push(fault(
            "metadata.finalizers".into(),
            format!("Invalid value: must be a list of at most {MAX_FINALIZERS} names"),
        ));
    }
    let has = |finalizer| finalizers(object).contains(&finalizer);
    if has(FINALIZER_ORPHAN) && has(FINALIZER_FOREGROUND) {
        faults.push(fault(
            "metadata.finalizers".into(),
            format!(
                "Invalid value: {list}: finalizer {FINALIZER_ORPHAN} and {FINALIZER_FOREGROUND} cannot be both set"
            ),
        ));
    }
    faults.extend(ownership::faults(&meta["ownerReferences"]));
    faults
}

/// Names in `metadata` that are none: of labels and annotations, of what labels say, of finalizers. In Kubernetes' words.
fn named_faults(meta: &Value) -> Vec<Cause> {
    let of = |field: &str, bad: &str, why: Vec<String>| -> Vec<Cause> {
        let cause = |why| Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {bad:?}: {why}"),
            field: format!("metadata.{field}"),
        };
        why.into_iter().map(cause).collect()
    };
    let mut faults = Vec::new();
    for (key, value) in meta["labels"].as_object().into_iter().flatten() {
        faults.extend(of("labels", key, name::qualified_faults(key)));
        let value = value.as_str().unwrap_or_default();
        faults.extend(of("labels", value, name::label_value_faults(value)));
    }
    for key in meta["annotations"].as_object().into_iter().flat_map(Map::keys) {
        // Here upper case does no harm.
        faults.extend(of("annotations", key, name::qualified_faults(&key.to_lowercase())));
    }
    let finalizers = meta["finalizers"].as_array().into_iter().flatten();
    for finalizer in finalizers.filter_map(Value::as_str).take(MAX_FINALIZERS) {
        faults.extend(of("finalizers", finalizer, name::qualified_faults(finalizer)));
    }
    faults
}

/// Keeps references to owners that are there twice once; gives what the caller is to be warned of, in Kubernetes' words.
pub(crate) fn deduplicate_owners(object: &mut Value) -> Option<String> {
    let references = object.pointer_mut("/metadata/ownerReferences")?.as_array_mut()?;
    let twice = ownership::deduplicate(references);
    (!twice.is_empty()).then(|| {
        format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject \
             such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            twice.join(", ")
        )
    })
}

/// A fault when an object that is being deleted gets a new finalizer.
pub(crate) fn finalizer_faults(old: &Value, new: &Value) -> Vec<Cause> {
    let had = finalizers(old);
    let added: Vec<&str> = finalizers(new).into_iter().filter(|f| !had.contains(f)).collect();
    if is_terminating(old) && !added.is_empty() {
        return vec![Cause {
            reason: "FieldValueForbidden".into(),
            message: format!(
                "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            ),
            field: "metadata.finalizers".into(),
        }];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Value {
        json!({
            "apiVersion": "g/v1", "kind": "K",
            "metadata": { "name": "a", "uid": "u", "generation": 2, "creationTimestamp": "t", "labels": { "x": "1" } },
            "spec": { "size": 1 }, "status": { "phase": "Ready" }
        })
    }

    #[test]
    fn an_update_cannot_touch_what_the_server_owns() {
        let new = json!({
            "apiVersion": "other/v9", "kind": "Other",
            "metadata": { "name": "b", "uid": "x", "generation": 99, "creationTimestamp": "z", "deletionTimestamp": "now",
                          "resourceVersion": "5", "managedFields": [], "labels": {} },
            "spec": { "size": 1 }, "status": { "phase": "Forged" }
        });
        let merged = merge_update(&stored(), new);
        let want = json!({
            "apiVersion": "g/v1", "kind": "K",
            "metadata": { "name": "a", "uid": "u", "generation": 2, "creationTimestamp": "t" },
            "spec": { "size": 1 }, "status": { "phase": "Ready" }
        });
        assert_eq!(merged, want);
    }

    #[test]
    fn generation_counts_changes_of_the_spec_only() {
        let mut labels = stored();
        meta_mut(&mut labels).insert("labels".into(), json!({ "x": "2" }));
        assert_eq!(merge_update(&stored(), labels)["metadata"]["generation"], 2);
        let mut spec = stored();
        spec["spec"]["size"] = 2.into();
        assert_eq!(merge_update(&stored(), spec)["metadata"]["generation"], 3);
        let status =
            json!({ "metadata": { "labels": { "y": "1" } }, "spec": { "size": 9 }, "status": { "phase": "Failed" } });
        let merged = merge_status(&stored(), &status);
        assert_eq!(merged["status"]["phase"], "Failed");
        assert_eq!(
            (&merged["spec"], &merged["metadata"]),
            (&stored()["spec"], &stored()["metadata"])
        );
    }

    #[test]
    fn metadata_of_wrong_types_is_named() {
        let bad = json!({ "metadata": { "labels": { "a": 1 }, "annotations": [], "finalizers": [1] } });
        let fields: Vec<String> = meta_faults(&bad).into_iter().map(|f| f.field).collect();
        assert_eq!(
            fields,
            ["metadata.labels", "metadata.annotations", "metadata.finalizers"]
        );
        assert!(meta_faults(&stored()).is_empty());
    }

    #[test]
    fn names_in_metadata_are_checked_by_the_rules_of_each_place() {
        let fields = |meta: Value| -> Vec<String> {
            let faults = meta_faults(&json!({ "metadata": meta }));
            faults.into_iter().map(|f| f.field).collect()
        };
        let good = json!({
            "labels": { "example.com/a": "", "b": "C" }, "annotations": { "Upper.Example/a": "any text!" },
            "finalizers": ["hold", "example.com/hold"],
        });
        assert!(fields(good).is_empty());
        for (meta, field) in [
            (json!({ "labels": { "a b": "c" } }), "metadata.labels"),
            (json!({ "labels": { "Upper.Example/a": "c" } }), "metadata.labels"),
            (json!({ "labels": { "a": "-" } }), "metadata.labels"),
            (json!({ "annotations": { "a/b/c": "d" } }), "metadata.annotations"),
            (
                json!({ "annotations": { "a": "x".repeat(MAX_ANNOTATIONS) } }),
                "metadata.annotations",
            ),
            (json!({ "finalizers": ["no slash!"] }), "metadata.finalizers"),
            (
                json!({ "finalizers": vec!["a"; MAX_FINALIZERS + 1] }),
                "metadata.finalizers",
            ),
        ] {
            assert_eq!(fields(meta.clone()), [field], "{meta}");
        }
    }

    #[test]
    fn a_dying_object_gets_no_new_finalizer() {
        let old = json!({ "metadata": { "deletionTimestamp": "t", "finalizers": ["a"] } });
        let more = json!({ "metadata": { "finalizers": ["a", "b"] } });
        assert_eq!(finalizer_faults(&old, &more).len(), 1);
        assert!(finalizer_faults(&old, &json!({})).is_empty());
        assert!(finalizer_faults(&stored(), &more).is_empty());
    }
}
