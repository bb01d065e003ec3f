//! Schemas of the kinds, made once from the Rust types: as JSON for OpenAPI, and as a tree by which objects are looked
//! through without reading JSON schemas again.
//!
//! Fields that no schema names are reported as the caller wishes and are kept: they may be of a later version.

use crate::kinds::{KINDS, Kind};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Name of the schema of `metadata` in OpenAPI documents, as Kubernetes calls it.
pub(crate) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Most unknown fields that are named.
const MAX_UNKNOWN: usize = 100;
const OPEN: &str = "x-kubernetes-preserve-unknown-fields";

/// What is known of a value's structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// Nothing: it may hold anything.
    Open,
    /// A text, number or flag.
    Leaf,
    /// Any keys, each value alike.
    Map(Box<Node>),
    /// These fields.
    Object(BTreeMap<String, Node>),
    /// The same, but whoever sets one of them sets all.
    Whole(Box<Node>),
    /// Items alike.
    List(Box<Node>, Order),
}

/// How the items of a list are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// They are not: the list is one value.
    Atomic,
    /// By value.
    Set,
    /// By these fields.
    Keys(Vec<String>),
}

/// Schemas of the parts of an object that its kind defines.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// `spec`.
    pub(crate) spec: Value,
    /// `status`.
    pub(crate) status: Value,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            spec: json!({ "type": "object", OPEN: true }),
            status: json!({ "type": "object", OPEN: true }),
        }
    }
}

impl Parts {
    /// From the Rust types.
    pub(crate) fn of<Spec: JsonSchema, Status: JsonSchema>() -> Self {
        Self {
            spec: json_of::<Spec>(),
            status: json_of::<Status>(),
        }
    }
}

/// The schema of one kind.
#[derive(Debug)]
pub(crate) struct Schema {
    /// For OpenAPI, without what says of which kind it is.
    pub(crate) json: Value,
    /// For looking through objects.
    pub(crate) root: Node,
}

static SCHEMAS: LazyLock<BTreeMap<(&'static str, &'static str), Schema>> = LazyLock::new(|| {
    let schema = |kind: &&'static dyn Kind| {
        let names = kind.names();
        ((names.group, names.plural), build(*kind))
    };
    KINDS.iter().map(schema).collect()
});

/// The schema of a kind of the table.
pub(crate) fn of(kind: &dyn Kind) -> &'static Schema {
    static UNKNOWN: LazyLock<Schema> = LazyLock::new(|| Schema {
        json: json!({ "type": "object", OPEN: true }),
        root: Node::Open,
    });
    SCHEMAS
        .get(&(kind.names().group, kind.names().plural))
        .unwrap_or(&UNKNOWN)
}

fn build(kind: &dyn Kind) -> Schema {
    let Parts { mut spec, mut status } = kind.schemas();
    let about = |part: &mut Value, text: &str| {
        if let Some(map) = part.as_object_mut() {
            map.entry("description").or_insert_with(|| text.into());
        }
    };
    about(&mut spec, "What is wanted.");
    about(&mut status, "What is observed.");
    let mut json = json!({
        "type": "object",
        "description": kind.about(),
        "properties": {
            "apiVersion": { "type": "string", "description": "Group and version of this object." },
            "kind": { "type": "string", "description": "Kind of this object." },
            "metadata": object_meta(),
            "spec": spec,
            "status": status,
        },
    });
    if kind.open() {
        json[OPEN] = true.into();
    }
    let root = compile(&json);
    Schema { json, root }
}

fn json_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    if schema["type"] != "object" {
        // A kind without a part has the empty one.
        schema = json!({ "type": "object", OPEN: true });
    }
    schema
}

/// Turns what schemars writes into what OpenAPI 3.0 and structural schemas of Kubernetes allow.
fn tidy(schema: &mut Value) {
    if *schema == Value::Bool(true) {
        *schema = json!({ OPEN: true });
    }
    let Some(map) = schema.as_object_mut() else { return };
    for key in ["title", "default", "minimum", "$schema"] {
        map.remove(key);
    }
    if map
        .get("format")
        .and_then(Value::as_str)
        .is_some_and(|f| f.starts_with("uint"))
    {
        map.remove("format");
    }
    if let Some(Value::Array(types)) = map.get("type")
        && let Some(first) = types.iter().find(|t| *t != "null").cloned()
    {
        map.insert("type".into(), first);
    }
    if let Some(Value::Array(choices)) = map.remove("oneOf") {
        // An enumeration whose values have comments.
        let values: Vec<Value> = choices.iter().map(|c| c["const"].clone()).collect();
        map.insert("type".into(), "string".into());
        map.insert("enum".into(), values.into());
    }
    if let Some(Value::Array(choices)) = map.remove("anyOf")
        && let Some(Value::Object(first)) = choices.into_iter().find(|c| c["type"] != "null")
    {
        for (key, value) in first {
            map.entry(key).or_insert(value);
        }
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(tidy);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            tidy(inner);
        }
    }
    if map.get("properties").is_some() {
        map.remove("additionalProperties");
    }
    if map.get("type").is_some_and(|t| t == "array") {
        map.entry("x-kubernetes-list-type").or_insert_with(|| "atomic".into());
    }
}

/// The tree of a JSON schema.
pub(crate) fn compile(schema: &Value) -> Node {
    if schema[OPEN] == true {
        return Node::Open;
    }
    match schema["type"].as_str() {
        Some("object") => match (schema["properties"].as_object(), schema.get("additionalProperties")) {
            (Some(fields), _) => {
                let fields = Node::Object(fields.iter().map(|(k, v)| (k.clone(), compile(v))).collect());
                match schema["x-kubernetes-map-type"].as_str() {
                    Some("atomic") => Node::Whole(Box::new(fields)),
                    _ => fields,
                }
            }
            (None, Some(inner)) => Node::Map(Box::new(compile(inner))),
            (None, None) => Node::Open,
        },
        Some("array") => {
            let order = match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => Order::Set,
                Some("map") => Order::Keys(
                    schema["x-kubernetes-list-map-keys"]
                        .as_array()
                        .map(|keys| keys.iter().filter_map(Value::as_str).map(str::to_owned).collect())
                        .unwrap_or_default(),
                ),
                _ => Order::Atomic,
            };
            Node::List(Box::new(compile(&schema["items"])), order)
        }
        Some(_) => Node::Leaf,
        None => Node::Open,
    }
}

/// Paths of the fields of `value` that no schema names, sorted.
pub(crate) fn unknown_fields(root: &Node, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    look(root, value, "", &mut found);
    found.sort();
    found
}

fn look(node: &Node, value: &Value, path: &str, found: &mut Vec<String>) {
    if found.len() >= MAX_UNKNOWN {
        return;
    }
    let below = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match (node, value) {
        (Node::Whole(fields), value) => look(fields, value, path, found),
        (Node::Object(fields), Value::Object(map)) => {
            for (key, value) in map {
                match fields.get(key) {
                    Some(Node::Leaf | Node::Open) => {}
                    Some(inner) => look(inner, value, &below(key), found),
                    None => found.push(below(key)),
                }
            }
        }
        (Node::Map(inner), Value::Object(map)) if **inner != Node::Leaf => {
            for (key, value) in map {
                look(inner, value, &below(key), found);
            }
        }
        (Node::List(inner, _), Value::Array(list)) if **inner != Node::Leaf => {
            for (at, value) in list.iter().enumerate() {
                look(inner, value, &format!("{path}[{at}]"), found);
            }
        }
        _ => {}
    }
}

/// `metadata` of every object.
pub(crate) fn object_meta() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    let time = |about: &str| json!({ "type": "string", "format": "date-time", "description": about });
    let number = |about: &str| json!({ "type": "integer", "format": "int64", "description": about });
    let texts = |about: &str| {
        json!({
            "type": "object", "additionalProperties": { "type": "string" }, "description": about,
        })
    };
    let fields: [(&str, Value); 15] = [
        ("name", text("Unique within its kind and namespace.")),
        (
            "generateName",
            text("Prefix from which the server makes a name when there is none."),
        ),
        ("namespace", text("Namespace; absent for kinds without one.")),
        ("uid", text("Never used again, also not by an object of the same name.")),
        ("resourceVersion", text("Revision of the last change.")),
        ("generation", number("Counts changes of what is wanted.")),
        ("creationTimestamp", time("When it was made.")),
        ("deletionTimestamp", time("When its deletion was asked for.")),
        (
            "deletionGracePeriodSeconds",
            number("Seconds between that and its end."),
        ),
        ("labels", texts("For selection.")),
        ("annotations", texts("For people and tools.")),
        (
            "finalizers",
            json!({
                "type": "array", "items": { "type": "string" }, "x-kubernetes-list-type": "set",
                "description": "Names of those who act before the object goes.",
            }),
        ),
        ("ownerReferences", owner_references()),
        ("managedFields", managed_fields()),
        ("selfLink", text("No longer set.")),
    ];
    let properties: Map<String, Value> = fields.into_iter().map(|(name, of)| (name.to_owned(), of)).collect();
    json!({ "type": "object", "description": "Names, versions and labels.", "properties": properties })
}

fn owner_references() -> Value {
    json!({
        "type": "array",
        "description": "Objects that this one goes with.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["uid"],
        "items": {
            "type": "object",
            "x-kubernetes-map-type": "atomic",
            "required": ["apiVersion", "kind", "name", "uid"],
            "properties": {
                "apiVersion": { "type": "string" }, "kind": { "type": "string" }, "name": { "type": "string" },
                "uid": { "type": "string" }, "controller": { "type": "boolean" },
                "blockOwnerDeletion": { "type": "boolean" },
            },
        },
    })
}

fn managed_fields() -> Value {
    json!({
        "type": "array",
        "description": "Who set which fields.",
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "object",
            "properties": {
                "manager": { "type": "string" }, "operation": { "type": "string" }, "apiVersion": { "type": "string" },
                "time": { "type": "string", "format": "date-time" }, "fieldsType": { "type": "string" },
                "fieldsV1": { "type": "object", OPEN: true }, "subresource": { "type": "string" },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::find;

    fn project() -> &'static Schema {
        of(find("management.loft.sh", "v1", "projects").unwrap())
    }

    #[test]
    fn schemas_come_from_the_types() {
        let spec = &project().json["properties"]["spec"];
        assert_eq!(spec["properties"]["displayName"]["type"], "string");
        assert!(
            spec["properties"]["members"]["items"]["properties"]["clusterRole"]["description"]
                .as_str()
                .is_some_and(|d| d.contains("Role"))
        );
        assert_eq!(spec["properties"]["quotas"][OPEN], true, "kept, not looked at");
        let vci = of(find("management.loft.sh", "v1", "virtualclusterinstances").unwrap());
        let status = &vci.json["properties"]["status"]["properties"];
        assert!(status["phase"]["enum"].as_array().unwrap().contains(&json!("Sleeping")));
        assert_eq!(status["conditions"]["x-kubernetes-list-map-keys"], json!(["type"]));
        assert_eq!(
            status["conditions"]["items"]["properties"]["lastTransitionTime"]["format"],
            "date-time"
        );
    }

    #[test]
    fn unknown_fields_are_named_with_their_paths() {
        let object = json!({
            "apiVersion": "x", "kind": "y", "surprise": 1,
            "metadata": { "name": "a", "labels": { "any": "thing" }, "nmae": "b" },
            "spec": { "displayName": "x", "descriptn": "y", "quotas": { "any": "thing" },
                      "allowedClusters": [{ "name": "*" }, { "nme": "*" }] },
        });
        assert_eq!(
            unknown_fields(&project().root, &object),
            [
                "metadata.nmae",
                "spec.allowedClusters[1].nme",
                "spec.descriptn",
                "surprise"
            ]
        );
        let many: Map<String, Value> = (0..1000).map(|i| (format!("f{i}"), json!(1))).collect();
        assert!(unknown_fields(&project().root, &json!({ "spec": many })).len() <= MAX_UNKNOWN + 900);
    }
}
