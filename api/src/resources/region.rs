//! `hanse.dev/v1` Region: a place with its own failure domain.

use super::invalid;
use crate::meta::{Condition, Object};
use crate::name;
use crate::status::Cause;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A region.
pub type Region = Object<RegionSpec, RegionStatus>;

/// What is wanted of a region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RegionSpec {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub display_name: String,
}

/// What is observed of a region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RegionStatus {
    /// Server that runs the region's controllers now.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub coordinator: String,
    /// Fencing token of that server's lease.
    pub coordinator_epoch: i64,
    /// Observations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Every fault of a region at once.
pub fn validate(region: &Region) -> Vec<Cause> {
    match name::check_label(&region.metadata.name) {
        Ok(()) => Vec::new(),
        Err(why) => vec![invalid(
            "metadata.name",
            format!("Invalid value: {:?}: {why}", region.metadata.name),
        )],
    }
}
