//! Users and access keys as the control plane keeps them.

use crate::meta::Object;
use crate::time::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A user.
pub type User = Object<UserSpec, ()>;

/// Who a user is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UserSpec {
    /// Login name.
    pub username: String,
    /// Groups beside those that the system adds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Refused when set.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
}

/// An access key. The object's name is the key's public id; the secret itself is never stored.
pub type AccessKey = Object<AccessKeySpec, ()>;

/// What an access key stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessKeySpec {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    /// Name of the user it speaks for.
    pub user: String,
    /// SHA-256 of the secret, in lower-case hex. The secret has 256 random bits, so a plain hash is enough.
    pub secret_sha256: String,
    /// Refused after this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Refused when set.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
}
