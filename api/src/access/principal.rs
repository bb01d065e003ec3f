//! The verified identity behind a request.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Members may do everything in the management API and in every tenant cluster.
pub const GROUP_ADMINS: &str = "system:hanse:admins";
/// Every caller with valid credentials is a member.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// Inside a tenant cluster: bound to `cluster-admin` by one constant ClusterRoleBinding.
pub const GROUP_TENANT_ADMINS: &str = "hanse:tenant-admins";

/// Who asks. Made only by authentication (access key, certificate), never from a request's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// User name.
    pub user: String,
    /// Unique id of the user object.
    #[serde(default)]
    pub uid: String,
    /// Groups that count for decisions.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Further attributes, passed on by impersonation (`Impersonate-Extra-*`).
    #[serde(default)]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Principal {
    /// Whether the caller belongs to `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}
