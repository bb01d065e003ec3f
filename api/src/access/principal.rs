//! The verified identity behind a request.

use super::scope::Scope;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Members may do everything in the management API and in every tenant cluster.
pub const GROUP_ADMINS: &str = "system:hanse:admins";
/// Every caller with valid credentials is a member.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// Inside a tenant cluster: bound to `cluster-admin` by one constant ClusterRoleBinding.
pub const GROUP_TENANT_ADMINS: &str = "hanse:tenant-admins";
/// Inside a tenant cluster: with a role's name behind it, bound to that ClusterRole.
pub const GROUP_TENANT_ROLE_PREFIX: &str = "hanse:tenant-role:";
/// With a user's name behind it, the group of that user alone.
pub const GROUP_USER_PREFIX: &str = "loft:user:";
/// With a team's name behind it, the group of its members.
pub const GROUP_TEAM_PREFIX: &str = "loft:team:";

/// Who asks. Made only by authentication (access key, certificate), never from a request's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// User name. One who comes with the key of a team has the name of the team's group.
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
    /// What his access key is narrowed to. It counts at the gateway only.
    #[serde(skip)]
    pub scope: Scope,
}

impl Principal {
    /// Whether the caller belongs to `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Teams that the caller belongs to.
    pub fn teams(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().filter_map(|g| g.strip_prefix(GROUP_TEAM_PREFIX))
    }
}
