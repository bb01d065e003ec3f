//! Simulated nodes of a tenant.

use super::health::create;
use super::render::SIMULATED_LABEL;
use futures::stream::{self, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Most simulated nodes of one tenant.
pub const NODES_MAX: u32 = 1000;
/// How many nodes are changed at once.
const CONCURRENCY: usize = 8;
/// Resource of GPUs.
const GPU: &str = "nvidia.com/gpu";

/// What nodes a tenant should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// How many.
    pub count: u32,
    /// GPUs of each.
    pub gpus: u32,
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
enum Change {
    Create(String),
    Resize(String),
    Delete(String),
}

/// Makes the simulated nodes of a tenant those that are wanted.
pub async fn converge(client: &Client, wanted: &Wanted) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let selector = ListParams::default().labels(&format!("{SIMULATED_LABEL}=true"));
    let present: BTreeMap<String, u32> = api
        .list(&selector)
        .await?
        .items
        .iter()
        .map(|node| (node.name_any(), gpus(node)))
        .collect();
    stream::iter(changes(wanted, &present).into_iter().map(Ok))
        .try_for_each_concurrent(CONCURRENCY, |change| apply(&api, change, wanted.gpus))
        .await
}

fn gpus(node: &Node) -> u32 {
    let capacity = node.status.as_ref().and_then(|status| status.capacity.as_ref());
    capacity
        .and_then(|capacity| capacity.get(GPU))
        .and_then(|quantity| quantity.0.parse().ok())
        .unwrap_or(0)
}

fn changes(wanted: &Wanted, present: &BTreeMap<String, u32>) -> Vec<Change> {
    let names: BTreeSet<String> = (1..=wanted.count.min(NODES_MAX)).map(|n| format!("sim-{n}")).collect();
    let mut changes = Vec::new();
    for name in &names {
        match present.get(name) {
            None => changes.push(Change::Create(name.clone())),
            Some(gpus) if *gpus != wanted.gpus => changes.push(Change::Resize(name.clone())),
            Some(_) => {}
        }
    }
    changes.extend(
        present
            .keys()
            .filter(|name| !names.contains(*name))
            .cloned()
            .map(Change::Delete),
    );
    changes
}

async fn apply(api: &Api<Node>, change: Change, gpus: u32) -> Result<(), kube::Error> {
    match change {
        Change::Create(name) => create(api, &node(&name, gpus)).await,
        Change::Resize(name) => {
            let resources = resources(gpus);
            let patch = json!({ "status": { "capacity": resources, "allocatable": resources } });
            api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .map(|_node| ())
        }
        Change::Delete(name) => match api.delete(&name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            deleted => deleted.map(|_node| ()),
        },
    }
}

/// A value of nothing in a merge patch removes the key, so zero GPUs are written as such.
fn resources(gpus: u32) -> BTreeMap<String, Quantity> {
    let mut resources: BTreeMap<String, Quantity> = [
        ("cpu", "32"),
        ("memory", "256Gi"),
        ("ephemeral-storage", "1Ti"),
        ("pods", "110"),
    ]
    .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
    .into();
    resources.insert(GPU.to_owned(), Quantity(gpus.to_string()));
    resources
}

fn node(name: &str, gpus: u32) -> Node {
    let mut resources = resources(gpus);
    if gpus == 0 {
        resources.remove(GPU);
    }
    let mut labels: BTreeMap<String, String> = [
        (SIMULATED_LABEL, "true"),
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", "amd64"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    if gpus > 0 {
        labels.insert("nvidia.com/gpu.present".into(), "true".into());
    }
    Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        status: Some(NodeStatus {
            capacity: Some(resources.clone()),
            allocatable: Some(resources),
            ..NodeStatus::default()
        }),
        ..Node::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_are_changed() {
        let present = |nodes: &[(&str, u32)]| nodes.iter().map(|(name, gpus)| ((*name).to_owned(), *gpus)).collect();
        let two = Wanted { count: 2, gpus: 4 };
        assert_eq!(changes(&two, &present(&[("sim-1", 4), ("sim-2", 4)])), []);
        assert_eq!(
            changes(&two, &present(&[("sim-1", 0), ("sim-3", 4)])),
            [
                Change::Resize("sim-1".into()),
                Change::Create("sim-2".into()),
                Change::Delete("sim-3".into())
            ]
        );
        assert_eq!(
            changes(&Wanted::default(), &present(&[("sim-1", 0)])),
            [Change::Delete("sim-1".into())]
        );
        let many = Wanted {
            count: u32::MAX,
            gpus: 0,
        };
        assert_eq!(changes(&many, &present(&[])).len(), NODES_MAX as usize);
    }

    #[test]
    fn gpus_are_capacity() {
        assert_eq!(gpus(&node("a", 8)), 8);
        assert_eq!(gpus(&node("a", 0)), 0);
        assert!(!node("a", 0).status.unwrap().capacity.unwrap().contains_key(GPU));
    }
}
