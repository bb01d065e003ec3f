//! Access keys as the control plane keeps them.

use crate::access::Scope;
use crate::meta::{Object, keep};
use crate::time::Timestamp;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

/// An access key. The object's name is the key's public id; the secret itself is never stored.
pub type AccessKey = Object<AccessKeySpec, ()>;

/// What an access key stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = shown_once)]
pub struct AccessKeySpec {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    /// Name of the user it speaks for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Name of the team it speaks for, when it is no user's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub team: String,
    /// `User`, `Login` for one that a login made, or empty.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// SHA-256 of the secret, in lower-case hex. The secret has 256 random bits, so a plain hash is enough. Never shown.
    #[schemars(skip)]
    pub secret_sha256: String,
    /// What it is narrowed to.
    #[serde(skip_serializing_if = "Scope::is_everything")]
    pub scope: Scope,
    /// Refused after this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Refused when set.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
}

/// What only requests and their answers carry.
fn shown_once(schema: &mut Schema) {
    keep(
        schema,
        &[
            ("key", "The key itself, in the answer to its creation only."),
            ("ttl", "Seconds until it expires, when it is made."),
        ],
    );
}
