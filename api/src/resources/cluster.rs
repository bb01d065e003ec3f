//! `management.loft.sh/v1` Cluster: a place where tenant control planes run, with one agent.

use super::invalid;
use crate::kinds::ANNOTATION_REGION;
use crate::meta::{Condition, Object, keep};
use crate::name;
use crate::status::Cause;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A connected cluster. Its region is in the annotation [`crate::kinds::ANNOTATION_REGION`].
pub type Cluster = Object<ClusterSpec, ClusterStatus>;

/// What is wanted of a connected cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = kept_in_spec)]
pub struct ClusterSpec {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    /// Connected through an agent that dials out.
    pub network_peer: bool,
    /// No new tenants are placed here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unusable: bool,
    /// The rest, as it came.
    #[serde(flatten)]
    #[schemars(skip)]
    pub other: BTreeMap<String, Value>,
}

/// What is observed of a connected cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterStatus {
    /// Empty (no agent yet), `Initialized` or `Failed`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// One word for programs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// A sentence for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Whether the coordinator of its region sees its agent.
    pub online: bool,
    /// Observations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Every fault of a connected cluster at once.
pub fn validate(cluster: &Cluster) -> Vec<Cause> {
    let mut faults = Vec::new();
    if let Err(why) = name::check_label(&cluster.metadata.name) {
        faults.push(invalid(
            "metadata.name",
            format!("Invalid value: {:?}: {why}", cluster.metadata.name),
        ));
    }
    if let Some(region) = cluster.metadata.annotations.get(ANNOTATION_REGION)
        && let Err(why) = name::check_label(region)
    {
        let field = format!("metadata.annotations[{ANNOTATION_REGION}]");
        faults.push(invalid(&field, format!("Invalid value: {region:?}: {why}")));
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
            ("config", "Credentials of a cluster without agent."),
            ("local", "Whether it is the cluster of the control plane."),
            ("managementNamespace", "Namespace of its agent."),
            ("metrics", "Metrics settings."),
            ("opencost", "Cost settings."),
            ("argoCD", "Integration with Argo CD."),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_regions_are_labels() {
        let mut cluster = Cluster::default();
        cluster.metadata.name = "eu-1".into();
        assert!(validate(&cluster).is_empty());
        cluster.metadata.name = "EU".into();
        cluster
            .metadata
            .annotations
            .insert(ANNOTATION_REGION.into(), "not a region".into());
        let fields: Vec<String> = validate(&cluster).into_iter().map(|f| f.field).collect();
        assert_eq!(fields, ["metadata.name", "metadata.annotations[hanse.dev/region]"]);
    }
}
