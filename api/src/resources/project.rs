//! `management.loft.sh/v1` Project: the policy boundary of tenants.

use super::invalid;
use crate::meta::{Condition, Object, keep};
use crate::name;
use crate::status::Cause;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A project.
pub type Project = Object<ProjectSpec, ProjectStatus>;

/// A user or team that belongs to a project.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = kept_in_member)]
pub struct Member {
    /// `User` or `Team`.
    pub kind: String,
    /// Name, or `*` for all users.
    pub name: String,
    /// Role in the project.
    pub cluster_role: String,
}

/// A cluster that tenants of the project may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AllowedCluster {
    /// Name, or `*` for every cluster.
    pub name: String,
}

/// What is wanted of a project. Fields of vCluster Platform that this version does not act on are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = kept_in_spec)]
pub struct ProjectSpec {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    /// Who belongs to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member>,
    /// Where its tenants may run; empty means nowhere, `*` everywhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_clusters: Vec<AllowedCluster>,
    /// The rest, as it came.
    #[serde(flatten)]
    #[schemars(skip)]
    pub other: BTreeMap<String, Value>,
}

/// What is observed of a project.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = kept_in_status)]
pub struct ProjectStatus {
    /// Observations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl ProjectSpec {
    /// Whether tenants of this project may run in `cluster`.
    pub fn allows_cluster(&self, cluster: &str) -> bool {
        self.allowed_clusters.iter().any(|c| c.name == "*" || c.name == cluster)
    }
}

/// Every fault of a project at once. The namespace `p-<name>` must be a label, so names are at most 61 long.
pub fn validate(project: &Project) -> Vec<Cause> {
    let mut faults = Vec::new();
    if let Err(why) = name::check_label(&name::project_namespace(&project.metadata.name)) {
        faults.push(invalid(
            "metadata.name",
            format!("Invalid value: {:?}: {why}", project.metadata.name),
        ));
    }
    for (i, member) in project.spec.members.iter().enumerate() {
        if !matches!(member.kind.as_str(), "User" | "Team") {
            faults.push(Cause {
                reason: "FieldValueNotSupported".into(),
                message: format!(
                    "Unsupported value: {:?}: supported values: \"User\", \"Team\"",
                    member.kind
                ),
                field: format!("spec.members[{i}].kind"),
            });
        }
    }
    faults
}

/// Fields of vCluster Platform that this version keeps and does not act on.
fn kept_in_spec(schema: &mut Schema) {
    keep(
        schema,
        &[
            ("description", "Text for people."),
            ("owner", "User or team that it belongs to."),
            ("access", "Who may do what with it."),
            ("quotas", "Limits of the project and of each user."),
            ("allowedRunners", "Runners that it may use."),
            ("allowedTemplates", "Templates that it may use."),
            ("allowedNodeTypes", "Node types that it may use."),
            ("allowedNodeProfiles", "Node profiles that it may use."),
            ("defaultNodeProfile", "Node profile of tenants that name none."),
            ("requireTemplate", "Whether tenants must come from a template."),
            ("requirePreset", "Whether tenants must come from a preset."),
            ("namespaceTemplate", "Labels and annotations of its namespace."),
            ("namespacePattern", "Names of namespaces on the host."),
            ("argoCD", "Integration with Argo CD."),
            ("vault", "Integration with Vault."),
        ],
    );
}

/// Fields of vCluster Platform that this version keeps and does not act on.
fn kept_in_status(schema: &mut Schema) {
    keep(schema, &[("quotas", "Use of the quotas.")]);
}

/// Fields of vCluster Platform that this version keeps and does not act on.
fn kept_in_member(schema: &mut Schema) {
    keep(schema, &[("group", "API group of the member's kind.")]);
}
