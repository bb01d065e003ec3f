//! `management.loft.sh/v1` Cluster: a place where tenant control planes run, with one agent.

use crate::meta::{Condition, Object};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A connected cluster. Its region is in the annotation [`crate::kinds::ANNOTATION_REGION`].
pub type Cluster = Object<ClusterSpec, ClusterStatus>;

/// What is wanted of a connected cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
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
    pub other: BTreeMap<String, Value>,
}

/// What is observed of a connected cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    pub conditions: Vec<Condition>,
}
