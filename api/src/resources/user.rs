//! Users and teams.

use super::invalid;
use crate::access::PolicyRule;
use crate::meta::{Object, keep};
use crate::name;
use crate::status::Cause;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A user.
pub type User = Object<UserSpec, ()>;
/// A team.
pub type Team = Object<TeamSpec, ()>;
/// A role that administrators define.
pub type ClusterRoleTemplate = Object<ClusterRoleTemplateSpec, ()>;

/// Management role whose holders may do everything.
pub const MANAGEMENT_ADMIN: &str = "loft-management-admin";

/// A role by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RoleName {
    /// Name of a ClusterRoleTemplate with `management: true`, or `loft-management-admin`.
    pub name: String,
}

/// Who a user is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = kept_in_user)]
pub struct UserSpec {
    /// Login name.
    pub username: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    /// Address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub email: String,
    /// Groups beside those that the system adds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Groups that identity providers put him into. Each login replaces those of its provider.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sso_groups: Vec<String>,
    /// Roles in the management API.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cluster_roles: Vec<RoleName>,
    /// Refused when set.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
    /// The rest, as it came.
    #[serde(flatten)]
    #[schemars(skip)]
    pub other: BTreeMap<String, Value>,
}

/// A team as others show it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EntityInfo {
    /// Name of the object.
    pub name: String,
    /// For people.
    pub display_name: String,
    /// Login name.
    pub username: String,
}

/// What is known of a user; made up when it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UserStatus {
    /// Names of the teams that he belongs to.
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub teams: Vec<String>,
}

impl UserSpec {
    /// His own groups: those that are written down and those of identity providers, without any that only the system gives.
    pub fn own_groups(&self) -> Vec<String> {
        let sso = self.sso_groups.iter().filter(|g| !g.starts_with("system:"));
        let all = self.groups.iter().chain(sso).filter(|g| !is_given_group(g));
        all.cloned().collect()
    }
}

/// Who is in a team, and what its members may do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = kept_in_team)]
pub struct TeamSpec {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    /// Short name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Names of users who are in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
    /// Groups whose members are in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Roles in the management API.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cluster_roles: Vec<RoleName>,
    /// The rest, as it came.
    #[serde(flatten)]
    #[schemars(skip)]
    pub other: BTreeMap<String, Value>,
}

impl TeamSpec {
    /// Whether a user with these groups is in it.
    pub fn has(&self, user: &str, groups: &[String]) -> bool {
        self.users.iter().any(|u| u == user) || self.groups.iter().any(|g| groups.contains(g))
    }
}

/// Rules under a name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = kept_in_template)]
pub struct ClusterRoleTemplateSpec {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    /// Whether it is a role of the management API. With the label `loft.sh/project-role: "true"` it may be given in projects.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub management: bool,
    /// The role.
    pub cluster_role_template: ClusterRoleRules,
    /// The rest, as it came.
    #[serde(flatten)]
    #[schemars(skip)]
    pub other: BTreeMap<String, Value>,
}

/// The rules of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(transform = kept_in_rules)]
pub struct ClusterRoleRules {
    /// What it allows.
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub rules: Vec<PolicyRule>,
}

/// Faults of a user.
pub fn validate_user(user: &User) -> Vec<Cause> {
    let mut faults = Vec::new();
    // A name that begins like Kubernetes' own identities cannot be had: a colon is no part of a subdomain.
    if let Err(why) = name::check_subdomain(&user.metadata.name) {
        faults.push(invalid(
            "metadata.name",
            format!("Invalid value: {:?}: {why}", user.metadata.name),
        ));
    }
    faults.extend(group_faults("spec.groups", &user.spec.groups));
    faults.extend(group_faults("spec.ssoGroups", &user.spec.sso_groups));
    for (i, group) in user.spec.sso_groups.iter().enumerate() {
        if group.starts_with("system:") {
            let text = format!("Invalid value: {group:?}: no identity provider puts anybody into groups of the system");
            faults.push(invalid(&format!("spec.ssoGroups[{i}]"), text));
        }
    }
    faults
}

/// Faults of a team.
pub fn validate_team(team: &Team) -> Vec<Cause> {
    let mut faults = Vec::new();
    if let Err(why) = name::check_subdomain(&team.metadata.name) {
        faults.push(invalid(
            "metadata.name",
            format!("Invalid value: {:?}: {why}", team.metadata.name),
        ));
    }
    faults.extend(group_faults("spec.groups", &team.spec.groups));
    faults
}

/// Groups that the system gives, and that nobody is put into by writing them down.
pub fn is_given_group(group: &str) -> bool {
    group.starts_with("loft:") || group.starts_with("hanse:") || group == "system:authenticated"
}

fn group_faults(field: &str, groups: &[String]) -> Vec<Cause> {
    let fault = |(i, group): (usize, &String)| {
        let text = format!("Invalid value: {group:?}: this group is given by the system only");
        (group.is_empty() || is_given_group(group)).then(|| invalid(&format!("{field}[{i}]"), text))
    };
    groups.iter().enumerate().filter_map(fault).collect()
}

/// Fields of vCluster Platform that this version keeps and does not act on.
fn kept_in_user(schema: &mut Schema) {
    keep(
        schema,
        &[
            ("description", "Text for people."),
            ("owner", "User or team that it belongs to."),
            ("access", "Who may do what with it."),
            ("icon", "Picture."),
            ("subject", "Name at an identity provider."),
            ("imagePullSecrets", "Secrets with credentials of registries."),
        ],
    );
}

/// Fields of vCluster Platform that this version keeps and does not act on.
fn kept_in_team(schema: &mut Schema) {
    keep(
        schema,
        &[
            ("description", "Text for people."),
            ("owner", "User or team that it belongs to."),
            ("access", "Who may do what with it."),
            ("imagePullSecrets", "Secrets with credentials of registries."),
        ],
    );
}

/// Fields of vCluster Platform that this version keeps and does not act on.
fn kept_in_template(schema: &mut Schema) {
    keep(
        schema,
        &[
            ("description", "Text for people."),
            ("owner", "User or team that it belongs to."),
            ("access", "Who may do what with it."),
            ("clusters", "Connected clusters that get the role."),
        ],
    );
}

/// Fields of vCluster Platform that this version keeps and does not act on.
fn kept_in_rules(schema: &mut Schema) {
    keep(
        schema,
        &[
            ("metadata", "Labels and annotations of the role."),
            ("aggregationRule", "Roles that it is put together from."),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_writes_himself_into_the_systems_groups() {
        let mut user = User::default();
        user.metadata.name = "ann".into();
        user.spec.groups = vec!["devs".into(), "system:hanse:admins".into()];
        assert!(
            validate_user(&user).is_empty(),
            "who may write which is the gateway's to say"
        );
        user.spec.groups = ["loft:team:x", "hanse:tenant-admins", "", "system:authenticated"]
            .map(str::to_owned)
            .into();
        assert_eq!(validate_user(&user).len(), 4);
        user.spec.groups.clear();
        user.spec.sso_groups = ["corp:devs", "system:hanse:admins", "loft:team:x"]
            .map(str::to_owned)
            .into();
        assert_eq!(validate_user(&user).len(), 2);
        assert_eq!(
            user.spec.own_groups(),
            ["corp:devs"],
            "what is stored all the same does not count"
        );
        user.spec.sso_groups.clear();
        user.metadata.name = "system:admin".into();
        assert_eq!(validate_user(&user)[0].field, "metadata.name");
    }

    #[test]
    fn teams_have_members_by_name_and_by_group() {
        let team = TeamSpec {
            users: vec!["ann".into()],
            groups: vec!["devs".into()],
            ..TeamSpec::default()
        };
        assert!(team.has("ann", &[]) && team.has("bob", &["devs".into()]));
        assert!(!team.has("bob", &["ops".into()]));
    }
}
