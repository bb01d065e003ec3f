//! The table of a kind's fields.

use super::{cell, prepared};
use crate::apiserver::schema;
use crate::kinds::Kind;
use serde_json::{Value, json};

/// Stand for what differs from request to request.
const NAME: &str = "<name>";
const CALLER: &str = "<caller>";
const OPEN: &str = "x-kubernetes-preserve-unknown-fields";

/// All fields of `spec` and `status`, with what a client must say and what is filled in.
pub(super) fn table(kind: &dyn Kind) -> String {
    let mut walk = Walk {
        kind,
        filled: prepared(kind, json!({ "metadata": { "name": NAME } }), CALLER),
        rows: String::new(),
    };
    let schema = &schema::of(kind).json;
    for part in ["spec", "status"] {
        walk.below(part, &schema["properties"][part]);
    }
    if walk.rows.is_empty() {
        return "\nNo schema: what is in it is as the table of `kubectl get` shows it.\n".to_owned();
    }
    let head = "\n| field | type | required | default | what it says |\n|---|---|---|---|---|\n";
    head.to_owned() + &walk.rows
}

struct Walk<'a> {
    kind: &'a dyn Kind,
    /// What the server makes of an object that says nothing.
    filled: Value,
    rows: String,
}

impl Walk<'_> {
    /// What is inside of the field at `path`.
    fn below(&mut self, path: &str, schema: &Value) {
        if let Some(fields) = schema["properties"].as_object() {
            for (name, field) in fields {
                self.field(&format!("{path}.{name}"), field);
            }
        } else if let Some(items) = schema.get("items") {
            self.below(&format!("{path}[]"), items);
        } else if let Some(values) = schema.get("additionalProperties") {
            self.field(&format!("{path}.<key>"), values);
        }
    }

    fn field(&mut self, path: &str, schema: &Value) {
        let required = if self.is_required(path) { "yes" } else { "" };
        let default = self.default_of(path, schema);
        let mut about = schema["description"].as_str().unwrap_or_default().to_owned();
        if let Some(allowed) = schema["enum"].as_array() {
            let allowed: Vec<String> = allowed
                .iter()
                .filter_map(Value::as_str)
                .map(|v| format!("`{v}`"))
                .collect();
            about = format!("{about} One of {}.", allowed.join(", "));
        }
        if let Some(keys) = schema["x-kubernetes-list-map-keys"].as_array() {
            let keys: Vec<&str> = keys.iter().filter_map(Value::as_str).collect();
            about = format!("{about} Items are told apart by `{}`.", keys.join("`, `"));
        }
        let of = type_of(schema);
        self.rows += &format!("| `{path}` | {of} | {required} | {default} | {} |\n", cell(&about));
        self.below(path, schema);
    }

    /// Whether the server refuses the example without it.
    fn is_required(&self, path: &str) -> bool {
        let mut object = self.kind.example();
        if !take_out(&mut object, path) {
            return false;
        }
        !self.kind.validate(&prepared(self.kind, object, CALLER)).is_empty()
    }

    fn default_of(&self, path: &str, schema: &Value) -> String {
        if schema["properties"].is_object() || path.contains('[') {
            return String::new();
        }
        let value = self.filled.pointer(&format!("/{}", path.replace('.', "/")));
        match value {
            Some(Value::String(text)) => format!("`{}`", cell(text)),
            Some(value) if !value.is_null() => format!("`{}`", cell(&value.to_string())),
            _ => String::new(),
        }
    }
}

/// Takes the field at `path` out of an object; false when it is not there. Of a list, out of its first item.
fn take_out(object: &mut Value, path: &str) -> bool {
    let Some((parent, field)) = path.rsplit_once('.') else {
        return false;
    };
    let pointer = format!("/{}", parent.replace("[]", "/0").replace('.', "/"));
    object
        .pointer_mut(&pointer)
        .and_then(Value::as_object_mut)
        .is_some_and(|fields| fields.remove(field).is_some())
}

fn type_of(schema: &Value) -> String {
    if schema[OPEN] == true {
        return "any".to_owned();
    }
    match schema["type"].as_str() {
        Some("array") => format!("list of {}", type_of(&schema["items"])),
        Some("object") if schema["properties"].is_null() => match schema.get("additionalProperties") {
            Some(values) => format!("map to {}", type_of(values)),
            None => "any".to_owned(),
        },
        Some(of) => match schema["format"].as_str() {
            Some(format) => format!("{of} ({format})"),
            None => of.to_owned(),
        },
        None => "any".to_owned(),
    }
}
