//! `metav1` shapes that every stored object carries.

use crate::time::Timestamp;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;

/// `metav1.ObjectMeta`. `resource_version` is the decimal store revision of the last change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    /// Unique within kind and namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Prefix from which the server makes a name when `name` is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generate_name: Option<String>,
    /// Absent for cluster-scoped kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Never reused, also not by a later object of the same name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Decimal store revision.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Counts changes of `spec`.
    #[serde(skip_serializing_if = "is_zero")]
    pub generation: i64,
    /// Set by the server at create.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// Set by the server when deletion was asked for and finalizers hold the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<Timestamp>,
    /// Seconds of grace, always 0 here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_grace_period_seconds: Option<i64>,
    /// Names of those who must act before the object goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
    /// For selection.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// For people and tools.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Fields that this version does not interpret (ownerReferences, managedFields) are kept.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// `metav1.Condition`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["type"]))]
pub struct Condition {
    /// What is observed, in CamelCase.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Generation of `spec` that the observation is of.
    pub observed_generation: i64,
    /// When `status` last changed.
    pub last_transition_time: Timestamp,
    /// One CamelCase word for programs.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

impl Condition {
    /// Whether this condition holds.
    pub fn is_true(&self) -> bool {
        self.status == "True"
    }
}

/// Sets or replaces the condition of `kind`; the transition time moves only when the status changes.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|c| c.kind == new.kind) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time;
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// An object of a kind with typed spec and status, as stored and as on the wire.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Object<Spec, Stat> {
    /// Group and version, such as `hanse.dev/v1`.
    #[serde(default)]
    pub api_version: String,
    /// Kind, such as `Region`.
    #[serde(default)]
    pub kind: String,
    /// Names, versions, labels.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(default)]
    pub spec: Spec,
    /// What is observed.
    #[serde(default)]
    pub status: Stat,
}

/// Adds fields to a schema that are kept as they come and not looked at, each with a word on what it is.
pub(crate) fn keep(schema: &mut Schema, fields: &[(&str, &str)]) {
    let properties = schema.ensure_object().entry("properties").or_insert_with(|| json!({}));
    let Some(properties) = properties.as_object_mut() else {
        return;
    };
    for (name, about) in fields {
        let open = json!({ "description": about, "x-kubernetes-preserve-unknown-fields": true });
        properties.entry(*name).or_insert(open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let at = |ms, status: &str| Condition {
            kind: "Ready".into(),
            status: status.into(),
            last_transition_time: Timestamp::from_millis(ms),
            ..Default::default()
        };
        let mut conditions = Vec::new();
        set_condition(&mut conditions, at(1000, "False"));
        set_condition(&mut conditions, at(2000, "False"));
        assert_eq!(conditions[0].last_transition_time.as_millis(), 1000);
        set_condition(&mut conditions, at(3000, "True"));
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].last_transition_time.as_millis(), 3000);
    }

    #[test]
    fn unknown_metadata_survives_a_round_trip() {
        let text = r#"{"name":"a","ownerReferences":[{"uid":"1"}]}"#;
        let meta: ObjectMeta = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&meta).unwrap(), text);
    }
}
