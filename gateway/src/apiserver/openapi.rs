//! OpenAPI documents, made once: what the fields of each kind are, that the server validates, and which patches it takes.

use super::discovery::groups;
use super::schema::{self, OBJECT_META};
use crate::answer;
use crate::body::{self, Response};
use crate::kinds::{KINDS, Kind};
use bytes::Bytes;
use hanse_runtime::pki::sha256_hex;
use http::StatusCode;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// A document and the name of its content.
#[derive(Debug)]
struct Document {
    text: Bytes,
    hash: String,
}

impl Document {
    fn new(value: &Value) -> Self {
        let text = value.to_string();
        Self {
            hash: sha256_hex(text.as_bytes()).to_ascii_uppercase(),
            text: text.into(),
        }
    }
}

/// All version 3 documents. They never change while the program runs.
static DOCUMENTS: LazyLock<BTreeMap<String, Document>> = LazyLock::new(|| {
    let document = |key: String| {
        let made = Document::new(&build(&key));
        (key, made)
    };
    keys().into_iter().map(document).collect()
});

/// The index at `/openapi/v3`.
pub(crate) fn index() -> Bytes {
    let url = |(key, document): (&String, &Document)| {
        let url = format!("/openapi/v3/{key}?hash={}", document.hash);
        (key.clone(), json!({ "serverRelativeURL": url }))
    };
    let paths: Map<String, Value> = DOCUMENTS.iter().map(url).collect();
    json!({ "paths": paths }).to_string().into()
}

/// An answer with a document.
pub(crate) fn answer(text: Bytes) -> Response {
    let mut response = answer::with_type(StatusCode::OK, "application/json", String::new());
    *response.body_mut() = body::full(text);
    response
}

fn keys() -> Vec<String> {
    let groups = groups().into_iter().map(|g| format!("apis/{g}/v1"));
    std::iter::once("api/v1".to_owned()).chain(groups).collect()
}

/// The version 3 document of `api/v1` or `apis/<group>/v1`.
pub(crate) fn document(key: &str) -> Option<Bytes> {
    DOCUMENTS.get(key).map(|d| d.text.clone())
}

fn build(key: &str) -> Value {
    let group = key
        .strip_prefix("apis/")
        .and_then(|k| k.split('/').next())
        .unwrap_or_default();
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    schemas.insert(OBJECT_META.to_owned(), schema::object_meta());
    for kind in KINDS.iter().copied().filter(|k| k.names().group == group) {
        schemas.insert(schema_name(kind), with_kind(kind, "#/components/schemas/"));
        let base = base(kind);
        paths.insert(format!("/{key}/{base}"), collection(kind));
        paths.insert(format!("/{key}/{base}/{{name}}"), item(kind));
        if kind.has_status() {
            paths.insert(format!("/{key}/{base}/{{name}}/status"), item(kind));
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Hanse", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

/// The version 2 document at `/openapi/v2`.
pub(crate) fn version_2() -> Bytes {
    static DOCUMENT: LazyLock<Document> = LazyLock::new(|| {
        let mut definitions = Map::new();
        definitions.insert(OBJECT_META.to_owned(), schema::object_meta());
        for kind in KINDS {
            definitions.insert(schema_name(*kind), with_kind(*kind, "#/definitions/"));
        }
        Document::new(&json!({
            "swagger": "2.0",
            "info": { "title": "Hanse", "version": env!("CARGO_PKG_VERSION") },
            "paths": {},
            "definitions": definitions,
        }))
    });
    DOCUMENT.text.clone()
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

/// The schema of a kind, with what says of which kind it is; `root` is where schemas are named.
fn with_kind(kind: &dyn Kind, root: &str) -> Value {
    let mut schema = schema::of(kind).json.clone();
    schema["x-kubernetes-group-version-kind"] = json!([gvk(kind)]);
    schema["properties"]["metadata"] =
        json!({ "description": "Standard object metadata.", "$ref": format!("{root}{OBJECT_META}") });
    schema
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
const PATCHES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
];

fn collection(kind: &dyn Kind) -> Value {
    let mut path = json!({ "get": operation(kind, "list", &[]) });
    if kind.verbs().contains(&"create") {
        path["post"] = operation(kind, "post", OBJECT);
    }
    if kind.verbs().contains(&"deletecollection") {
        path["delete"] = operation(kind, "deletecollection", OBJECT);
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

    fn read(text: Bytes) -> Value {
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn the_index_names_documents_that_exist() {
        let index = read(index());
        let paths = index["paths"].as_object().unwrap();
        assert!(paths.contains_key("apis/management.loft.sh/v1") && paths.contains_key("api/v1"));
        for (key, entry) in paths {
            let hash = sha256_hex(&document(key).unwrap()).to_ascii_uppercase();
            assert!(entry["serverRelativeURL"].as_str().unwrap().ends_with(&hash), "{key}");
        }
        assert!(document("apis/other/v1").is_none());
    }

    #[test]
    fn patches_say_that_the_server_validates_and_takes_no_strategic_merge() {
        let document = read(document("apis/management.loft.sh/v1").unwrap());
        let patch = &document["paths"]["/apis/management.loft.sh/v1/projects/{name}"]["patch"];
        assert!(patch["parameters"].to_string().contains("fieldValidation"));
        assert!(!patch["requestBody"].to_string().contains("strategic"));
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Project");
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        for key in keys() {
            let document = read(document(&key).unwrap());
            let text = document.to_string();
            for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
                let name = reference.split('"').next().unwrap();
                assert!(document["components"]["schemas"].get(name).is_some(), "{key}: {name}");
            }
        }
    }
}
