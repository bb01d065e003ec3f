//! OpenAPI documents: just enough for kubectl to know that the server validates, and which patches it takes.
//!
//! Schemas keep unknown fields. `kubectl explain` is therefore poor for now.

use super::discovery::groups;
use crate::kinds::{KINDS, Kind};
use hanse_runtime::pki::sha256_hex;
use serde_json::{Map, Value, json};

/// The index at `/openapi/v3`.
pub(crate) fn index() -> Value {
    let mut paths = Map::new();
    for key in keys() {
        let hash = document(&key).map(|d| hash(&d)).unwrap_or_default();
        paths.insert(
            key.clone(),
            json!({ "serverRelativeURL": format!("/openapi/v3/{key}?hash={hash}") }),
        );
    }
    json!({ "paths": paths })
}

fn keys() -> Vec<String> {
    let groups = groups().into_iter().map(|g| format!("apis/{g}/v1"));
    std::iter::once("api/v1".to_owned()).chain(groups).collect()
}

/// Name of a document's content.
pub(crate) fn hash(document: &Value) -> String {
    sha256_hex(document.to_string().as_bytes()).to_ascii_uppercase()
}

/// The version 3 document of `api/v1` or `apis/<group>/v1`.
pub(crate) fn document(key: &str) -> Option<Value> {
    if !keys().iter().any(|k| k == key) {
        return None;
    }
    let group = key
        .strip_prefix("apis/")
        .and_then(|k| k.split('/').next())
        .unwrap_or_default();
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for kind in KINDS.iter().copied().filter(|k| k.names().group == group) {
        schemas.insert(schema_name(kind), schema(kind));
        let base = base(kind);
        paths.insert(format!("/{key}/{base}"), collection(kind));
        paths.insert(format!("/{key}/{base}/{{name}}"), item(kind));
        if kind.has_status() {
            paths.insert(format!("/{key}/{base}/{{name}}/status"), item(kind));
        }
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": { "title": "Hanse", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": { "schemas": schemas },
    }))
}

/// The version 2 document at `/openapi/v2`.
pub(crate) fn version_2() -> Value {
    let mut definitions = Map::new();
    for kind in KINDS {
        definitions.insert(schema_name(*kind), schema(*kind));
    }
    json!({
        "swagger": "2.0",
        "info": { "title": "Hanse", "version": env!("CARGO_PKG_VERSION") },
        "paths": {},
        "definitions": definitions,
    })
}

fn base(kind: &dyn Kind) -> String {
    let names = kind.names();
    if names.namespaced {
        format!("namespaces/{{namespace}}/{}", names.plural)
    } else {
        names.plural.to_owned()
    }
}

fn schema_name(kind: &dyn Kind) -> String {
    let names = kind.names();
    let mut group: Vec<&str> = if names.group.is_empty() {
        vec!["api", "k8s", "io"]
    } else {
        names.group.split('.').collect()
    };
    group.reverse();
    format!("{}.{}.{}", group.join("."), names.version, names.kind)
}

fn gvk(kind: &dyn Kind) -> Value {
    let names = kind.names();
    json!({ "group": names.group, "version": names.version, "kind": names.kind })
}

fn schema(kind: &dyn Kind) -> Value {
    let open =
        |about: &str| json!({ "type": "object", "description": about, "x-kubernetes-preserve-unknown-fields": true });
    json!({
        "type": "object",
        "description": format!("A {} of the management API.", kind.singular()),
        "properties": {
            "apiVersion": { "type": "string", "description": "Group and version of this object." },
            "kind": { "type": "string", "description": "Kind of this object." },
            "metadata": open("Standard metadata."),
            "spec": open("What is wanted."),
            "status": open("What is observed."),
        },
        "x-kubernetes-group-version-kind": [gvk(kind)],
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

fn parameters() -> Value {
    let query = |name: &str, about: &str| json!({ "name": name, "in": "query", "description": about, "schema": { "type": "string", "uniqueItems": true } });
    json!([
        query("dryRun", "\"All\": do everything but the change itself."),
        query("fieldManager", "Name of who makes the change."),
        query(
            "fieldValidation",
            "What to do about unknown fields: Ignore, Warn or Strict."
        ),
    ])
}

fn operation(kind: &dyn Kind, action: &str, bodies: &[&str]) -> Value {
    let reference = json!({ "schema": { "$ref": format!("#/components/schemas/{}", schema_name(kind)) } });
    let mut operation = json!({
        "operationId": format!("{action}{}", kind.names().kind),
        "responses": { "200": { "description": "OK", "content": { "application/json": reference } } },
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(kind),
    });
    if !bodies.is_empty() {
        let content: Map<String, Value> = bodies.iter().map(|b| ((*b).to_owned(), reference.clone())).collect();
        operation["requestBody"] = json!({ "required": true, "content": content });
        operation["parameters"] = parameters();
    }
    operation
}

const OBJECT: &[&str] = &["application/json", "application/yaml"];
const PATCHES: &[&str] = &["application/json-patch+json", "application/merge-patch+json"];

fn collection(kind: &dyn Kind) -> Value {
    let mut path = json!({ "get": operation(kind, "list", &[]) });
    if kind.verbs().contains(&"create") {
        path["post"] = operation(kind, "post", OBJECT);
    }
    path
}

fn item(kind: &dyn Kind) -> Value {
    let mut path = json!({ "get": operation(kind, "get", &[]) });
    if kind.verbs().contains(&"update") {
        path["put"] = operation(kind, "put", OBJECT);
        path["patch"] = operation(kind, "patch", PATCHES);
    }
    if kind.verbs().contains(&"delete") {
        path["delete"] = operation(kind, "delete", OBJECT);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_names_documents_that_exist() {
        let index = index();
        let paths = index["paths"].as_object().unwrap();
        assert!(paths.contains_key("apis/management.loft.sh/v1") && paths.contains_key("api/v1"));
        for (key, entry) in paths {
            let document = document(key).unwrap();
            assert!(
                entry["serverRelativeURL"].as_str().unwrap().ends_with(&hash(&document)),
                "{key}"
            );
        }
        assert!(document("apis/other/v1").is_none());
    }

    #[test]
    fn patches_say_that_the_server_validates_and_takes_no_strategic_merge() {
        let document = document("apis/management.loft.sh/v1").unwrap();
        let patch = &document["paths"]["/apis/management.loft.sh/v1/projects/{name}"]["patch"];
        assert!(patch["parameters"].to_string().contains("fieldValidation"));
        assert!(!patch["requestBody"].to_string().contains("strategic"));
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Project");
    }
}
