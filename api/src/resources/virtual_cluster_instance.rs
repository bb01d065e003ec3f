//! `management.loft.sh/v1` VirtualClusterInstance: a tenant cluster.

use super::StoreLimits;
use super::invalid;
use crate::kinds::{
    ANNOTATION_SIMULATED_GPUS, ANNOTATION_SIMULATED_NODES, ANNOTATION_STORE_BYTES, ANNOTATION_STORE_KEYS,
    ANNOTATION_STORE_WRITES,
};
use crate::meta::{Condition, Object, ObjectMeta, keep};
use crate::name;
use crate::status::Cause;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A tenant cluster.
pub type VirtualClusterInstance = Object<VciSpec, VciStatus>;

/// Where a tenant cluster lives. Immutable once set, by the words of vCluster Platform.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterRef {
    /// Connected cluster.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// Host namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name in the host namespace; the `vcluster` CLI shows it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub virtual_cluster: String,
}

/// What is wanted of a tenant cluster. Fields that this version does not act on are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = kept_in_spec)]
pub struct VciSpec {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    /// Host; empty fields are filled by placement.
    #[serde(skip_serializing_if = "is_default")]
    pub cluster_ref: ClusterRef,
    /// The rest, as it came (template, templateRef, owner, access, parameters, ...).
    #[serde(flatten)]
    #[schemars(skip)]
    pub other: BTreeMap<String, Value>,
}

fn is_default(cluster_ref: &ClusterRef) -> bool {
    *cluster_ref == ClusterRef::default()
}

/// Life cycle as shown to people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Not yet (or no longer) serving; conditions say why.
    #[default]
    Pending,
    /// Serving.
    Ready,
    /// Asleep on purpose.
    Sleeping,
    /// Broken in a way that needs somebody.
    Failed,
}

/// What is observed of a tenant cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = kept_in_status)]
pub struct VciStatus {
    /// Life cycle.
    pub phase: Phase,
    /// Reason of the first failing condition.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Message of the first failing condition.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Generation of `spec` that the status is of.
    pub observed_generation: i64,
    /// Version that the tenant's API server reports.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kubernetes_version: String,
    /// Whether its API answers through its agent.
    pub online: bool,
    /// Observations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Most simulated nodes of one tenant cluster.
pub const SIMULATED_NODES_MAX: u32 = 1000;
/// Simulated nodes when the annotation is absent.
pub const SIMULATED_NODES_DEFAULT: u32 = 3;

/// Number of simulated nodes asked for by `meta`'s annotations.
pub fn simulated_nodes(meta: &ObjectMeta) -> Result<u32, Cause> {
    annotation(
        meta,
        ANNOTATION_SIMULATED_NODES,
        SIMULATED_NODES_DEFAULT,
        SIMULATED_NODES_MAX,
    )
}

/// GPUs per simulated node asked for by `meta`'s annotations.
pub fn simulated_gpus(meta: &ObjectMeta) -> Result<u32, Cause> {
    annotation(meta, ANNOTATION_SIMULATED_GPUS, 0, 64)
}

fn annotation(meta: &ObjectMeta, key: &str, default: u32, max: u32) -> Result<u32, Cause> {
    let Some(text) = meta.annotations.get(key) else {
        return Ok(default);
    };
    match text.parse() {
        Ok(n) if n <= max => Ok(n),
        Ok(_) | Err(_) => Err(invalid(
            &format!("metadata.annotations[{key}]"),
            format!("Invalid value: {text:?}: must be a whole number from 0 to {max}"),
        )),
    }
}

/// Least and most that a tenant cluster's store may be limited to; below the least no control plane comes up.
const STORE_BYTES: (u64, u64) = (16 << 20, 1 << 40);
const STORE_KEYS: (u64, u64) = (1000, 100_000_000);
const STORE_WRITES: (u32, u32) = (20, 1_000_000);

/// What the key space of a tenant cluster is limited to by `meta`'s annotations; 0: no limit.
pub fn store_limits(meta: &ObjectMeta) -> Result<StoreLimits, Vec<Cause>> {
    let bytes = limit(meta, ANNOTATION_STORE_BYTES, STORE_BYTES);
    let keys = limit(meta, ANNOTATION_STORE_KEYS, STORE_KEYS);
    let writes = limit(meta, ANNOTATION_STORE_WRITES, STORE_WRITES);
    match (bytes, keys, writes) {
        (Ok(bytes), Ok(keys), Ok(writes_per_second)) => Ok(StoreLimits {
            bytes,
            keys,
            writes_per_second,
        }),
        (bytes, keys, writes) => Err([bytes.err(), keys.err(), writes.err()].into_iter().flatten().collect()),
    }
}

fn limit<N>(meta: &ObjectMeta, key: &str, (least, most): (N, N)) -> Result<N, Cause>
where
    N: Copy + Default + PartialOrd + std::str::FromStr + std::fmt::Display,
{
    let Some(text) = meta.annotations.get(key) else {
        return Ok(N::default());
    };
    match text.parse() {
        Ok(n) if n == N::default() || (least..=most).contains(&n) => Ok(n),
        Ok(_) | Err(_) => Err(invalid(
            &format!("metadata.annotations[{key}]"),
            format!("Invalid value: {text:?}: must be a whole number from {least} to {most}, or 0 for no limit"),
        )),
    }
}

/// Every fault of a tenant cluster at once.
pub fn validate(vci: &VirtualClusterInstance) -> Vec<Cause> {
    let mut faults = Vec::new();
    if let Err(why) = name::check_label(&vci.metadata.name) {
        faults.push(invalid(
            "metadata.name",
            format!("Invalid value: {:?}: {why}", vci.metadata.name),
        ));
    }
    faults.extend(simulated_nodes(&vci.metadata).err());
    faults.extend(simulated_gpus(&vci.metadata).err());
    faults.extend(store_limits(&vci.metadata).err().into_iter().flatten());
    faults
}

/// Faults of an update: a host that is set stays.
pub fn validate_update(old: &VirtualClusterInstance, new: &VirtualClusterInstance) -> Vec<Cause> {
    let mut faults = validate(new);
    let (was, is) = (&old.spec.cluster_ref, &new.spec.cluster_ref);
    for (field, was, is) in [
        ("spec.clusterRef.cluster", &was.cluster, &is.cluster),
        ("spec.clusterRef.namespace", &was.namespace, &is.namespace),
        (
            "spec.clusterRef.virtualCluster",
            &was.virtual_cluster,
            &is.virtual_cluster,
        ),
    ] {
        if !was.is_empty() && was != is {
            faults.push(invalid(field, format!("Invalid value: {is:?}: field is immutable")));
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
            ("templateRef", "Template that it is made from."),
            ("template", "Definition of its own."),
            ("parameters", "Values of the template's parameters, as YAML."),
            ("extraAccessRules", "Rights inside the tenant cluster."),
            ("networkPeer", "Whether it is reached through a tunnel of its own."),
            ("external", "Whether it is managed elsewhere."),
            ("standalone", "Whether it has no host."),
        ],
    );
}

/// Fields of vCluster Platform that this version keeps and does not act on.
fn kept_in_status(schema: &mut Schema) {
    keep(
        schema,
        &[
            ("serviceUID", "Uid of its service on the host."),
            ("deployHash", "Hash of what was deployed."),
            ("virtualCluster", "Rendered definition."),
            ("virtualClusterObjects", "Objects applied inside it."),
            ("spaceObjects", "Objects applied around it."),
            ("ignoreReconciliation", "Whether it is left alone."),
            ("sleepModeConfig", "Sleep mode, computed on request."),
            ("canUse", "Whether the caller may use it, computed on request."),
            ("canUpdate", "Whether the caller may change it, computed on request."),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_bounded() {
        let with = |text: &str| ObjectMeta {
            name: "a".into(),
            annotations: [(ANNOTATION_SIMULATED_NODES.to_owned(), text.to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(simulated_nodes(&ObjectMeta::default()).unwrap(), 3);
        assert_eq!(simulated_nodes(&with("0")).unwrap(), 0);
        assert_eq!(simulated_nodes(&with("1000")).unwrap(), 1000);
        for bad in ["1001", "-1", "x", "", "1.5"] {
            let fault = simulated_nodes(&with(bad)).unwrap_err();
            assert!(
                fault.field.contains("simulated-nodes") && fault.message.contains("0 to 1000"),
                "{bad}: {fault:?}"
            );
        }
    }

    #[test]
    fn a_store_is_limited_by_annotations() {
        let with = |all: &[(&str, &str)]| VirtualClusterInstance {
            metadata: ObjectMeta {
                name: "a".into(),
                annotations: all
                    .iter()
                    .map(|(key, text)| ((*key).to_owned(), (*text).to_owned()))
                    .collect(),
                ..Default::default()
            },
            ..Default::default()
        };
        assert!(store_limits(&ObjectMeta::default()).unwrap().is_none());
        let all = with(&[
            (ANNOTATION_STORE_BYTES, "67108864"),
            (ANNOTATION_STORE_KEYS, "0"),
            (ANNOTATION_STORE_WRITES, "100"),
        ]);
        let limits = StoreLimits {
            bytes: 64 << 20,
            keys: 0,
            writes_per_second: 100,
        };
        assert_eq!(store_limits(&all.metadata), Ok(limits));
        assert!(validate(&all).is_empty());
        let bad = with(&[
            (ANNOTATION_STORE_BYTES, "64Mi"),
            (ANNOTATION_STORE_KEYS, "999"),
            (ANNOTATION_STORE_WRITES, "-1"),
        ]);
        let faults = validate(&bad);
        assert_eq!(faults.len(), 3);
        assert!(faults[0].field.contains("store-bytes") && faults[0].message.contains("16777216 to 1099511627776"));
    }

    #[test]
    fn a_host_that_is_set_stays() {
        let at = |cluster: &str| VirtualClusterInstance {
            metadata: ObjectMeta {
                name: "a".into(),
                ..Default::default()
            },
            spec: VciSpec {
                cluster_ref: ClusterRef {
                    cluster: cluster.into(),
                    ..Default::default()
                },
                ..Default::default()
            },
            ..Default::default()
        };
        assert!(validate_update(&at(""), &at("eu")).is_empty());
        assert!(validate_update(&at("eu"), &at("eu")).is_empty());
        assert_eq!(
            validate_update(&at("eu"), &at("us"))[0].field,
            "spec.clusterRef.cluster"
        );
    }
}
