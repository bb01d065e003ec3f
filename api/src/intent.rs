//! What a coordinator wants of an agent, and what an agent reports back. Travels as JSON on the control stream.

use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Desired state of one connected cluster at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// Connected cluster.
    pub cluster: String,
    /// Fencing token of the coordinator; an agent ignores an intent of a lower one.
    pub epoch: i64,
    /// Store revision of the intent; with the same epoch an agent ignores a lower or equal one.
    pub revision: i64,
    /// Tenant clusters to run. A tenant that is not named is stopped and its files removed.
    pub tenants: Vec<TenantIntent>,
}

/// One tenant cluster to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TenantIntent {
    /// Id of the tenant's key space.
    pub tenant: String,
    /// Project.
    pub project: String,
    /// Name of the VirtualClusterInstance.
    pub name: String,
    /// Host epoch, sent with each store call.
    pub epoch: u64,
    /// Simulated nodes.
    pub simulated_nodes: u32,
    /// GPUs per simulated node.
    pub simulated_gpus: u32,
    /// Keys and certificates. Filled in when the intent is sent, never stored in clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pki: Option<TenantPki>,
}

/// A certificate and its private key, PEM.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    /// Certificate (chain), PEM.
    pub cert: String,
    /// Private key, PKCS#8 PEM.
    pub key: String,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(..)")
    }
}

/// Everything secret that a tenant's control plane needs; the same on every host that may run it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantPki {
    /// Root of the tenant.
    pub ca: KeyPair,
    /// Client certificate of the agent's API proxy, allowed to impersonate (O=system:masters).
    pub admin: KeyPair,
    /// Client certificate of kube-controller-manager (CN=system:kube-controller-manager).
    pub controller_manager: KeyPair,
    /// Client certificate of kube-scheduler (CN=system:kube-scheduler).
    pub scheduler: KeyPair,
    /// Client certificate of kube-apiserver towards kubelets.
    pub kubelet_client: KeyPair,
    /// Signs service account tokens (PKCS#8 PEM private key in `key`, PEM public key in `cert`).
    pub service_account: KeyPair,
}

/// What an agent observes, whole, sent when it changes and at least every few seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentReport {
    /// Connected cluster. The server trusts the certificate, not this field.
    pub cluster: String,
    /// Version of the agent's program.
    pub version: String,
    /// Epoch and revision of the intent that the agent works on.
    pub intent_epoch: i64,
    /// See `intent_epoch`.
    pub intent_revision: i64,
    /// When it was observed, by the agent's clock.
    pub observed_at: Timestamp,
    /// One entry per tenant on the host.
    pub tenants: Vec<TenantReport>,
}

/// How far a tenant's control plane is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TenantState {
    /// Processes are being started.
    #[default]
    Starting,
    /// The API server answered `/readyz` and the built-in objects are in place.
    Ready,
    /// Processes run but the API server does not answer.
    Unhealthy,
    /// Being stopped.
    Stopping,
    /// Cannot run; the message says why.
    Failed,
}

/// What an agent observes of one tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TenantReport {
    /// Id of the tenant's key space.
    pub tenant: String,
    /// Host epoch that it runs by.
    pub epoch: u64,
    /// How far it is.
    pub state: TenantState,
    /// What it waits for or what failed, for people.
    pub message: String,
    /// Version that its API server reports.
    pub kubernetes_version: String,
    /// Restarts of its processes since the agent took them over.
    pub restarts: u32,
}
