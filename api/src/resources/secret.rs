//! `management.loft.sh/v1` ProjectSecret and SharedSecret: named values, of one project or of the whole installation.

use super::invalid;
use crate::meta::{Object, keep};
use crate::status::Cause;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A secret of a project.
pub type ProjectSecret = Object<SecretSpec, ()>;
/// A secret of the installation.
pub type SharedSecret = Object<SecretSpec, ()>;

/// Most bytes of all values together, as in Kubernetes.
pub const SECRET_BYTES_MAX: usize = 1024 * 1024;
/// Longest name of a value, as in Kubernetes.
const KEY_MAX: usize = 253;

/// What is wanted of a secret.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = kept_in_spec)]
pub struct SecretSpec {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    /// Text for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The values by name, each in base64. They are stored sealed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
    /// The rest, as it came (owner, access).
    #[serde(flatten)]
    #[schemars(skip)]
    pub other: BTreeMap<String, Value>,
}

/// Every fault of the values: names as Kubernetes wants them of a Secret, base64, and not too much of it.
pub fn validate(spec: &SecretSpec) -> Vec<Cause> {
    let mut faults = Vec::new();
    let mut bytes = 0;
    for (key, value) in &spec.data {
        let field = format!("spec.data[{key}]");
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if key.is_empty() || key.len() > KEY_MAX || !key.chars().all(known) || matches!(key.as_str(), "." | "..") {
            let why = format!(
                "Invalid value: {key:?}: a name is at most {KEY_MAX} letters, digits, '-', '_' or '.', and not '.' or '..'"
            );
            faults.push(invalid(&field, why));
        }
        // The value itself is nobody's business, not even in an error.
        match STANDARD.decode(value) {
            Ok(plain) => bytes += plain.len(),
            Err(_) => faults.push(invalid(&field, "Invalid value: must be base64 (RFC 4648, section 4)")),
        }
    }
    if bytes > SECRET_BYTES_MAX {
        let message = format!("Too long: may not be more than {SECRET_BYTES_MAX} bytes");
        faults.push(Cause {
            reason: "FieldValueTooLong".into(),
            message,
            field: "spec.data".into(),
        });
    }
    faults
}

/// Fields that are looked at where it is decided who may do what.
fn kept_in_spec(schema: &mut Schema) {
    let fields = [
        ("owner", "User or team that it belongs to."),
        ("access", "Who may do what with it."),
    ];
    keep(schema, &fields);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(data: &[(&str, &str)]) -> Vec<String> {
        let data = data.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let spec = SecretSpec {
            data,
            ..Default::default()
        };
        validate(&spec).into_iter().map(|f| f.field).collect()
    }

    #[test]
    fn faults_name_the_value_and_never_show_it() {
        assert!(fields(&[("tls.crt", "YQ=="), ("a_b-c", "")]).is_empty());
        let bad = [("a/b", "YQ=="), ("", "YQ=="), ("..", "YQ=="), ("x", "not base64")];
        assert_eq!(
            fields(&bad),
            ["spec.data[]", "spec.data[..]", "spec.data[a/b]", "spec.data[x]"]
        );
        let spec = SecretSpec {
            data: BTreeMap::from([("x".to_owned(), "not base64".to_owned())]),
            ..Default::default()
        };
        assert!(!format!("{:?}", validate(&spec)).contains("not base64"));
    }

    #[test]
    fn as_much_as_kubernetes_takes_and_not_more() {
        let most = STANDARD.encode(vec![7; SECRET_BYTES_MAX]);
        assert!(fields(&[("a", &most)]).is_empty());
        assert_eq!(fields(&[("a", &most), ("b", "YQ==")]), ["spec.data"]);
    }
}
