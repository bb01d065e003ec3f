//! Objects that the control plane keeps for itself and never serves.

use crate::intent::TenantIntent;
use crate::meta::Object;
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Host and secrets of one tenant cluster; same namespace and name as its VirtualClusterInstance.
pub type TenantStore = Object<TenantStoreSpec, ()>;

/// Where a tenant's control plane runs now and by which epoch. Host and epoch change together, in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TenantStoreSpec {
    /// Id of the tenant's key space, never reused (the uid of its VirtualClusterInstance).
    pub tenant: String,
    /// Connected cluster that hosts it.
    pub cluster: String,
    /// Host epoch: grows with each change of host; the store refuses writes of an older one.
    pub epoch: u64,
    /// What its key space may hold, as the store was last told.
    #[serde(skip_serializing_if = "StoreLimits::is_none")]
    pub limits: StoreLimits,
    /// PKI of the tenant ([`crate::intent::TenantPki`] as JSON), sealed, in base64.
    pub sealed_pki: String,
}

/// What one key space may hold and how fast it may write; 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StoreLimits {
    /// Bytes that keys that exist and their newest values take in the store.
    pub bytes: u64,
    /// Keys that exist; as many leases.
    pub keys: u64,
    /// Commands that each server takes in.
    pub writes_per_second: u32,
}

impl StoreLimits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What one connected cluster's agent shall run; the object's name is the cluster's.
pub type IntentObject = Object<IntentSpec, ()>;

/// The compiled intent without secrets; those are added when it is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IntentSpec {
    /// Fencing token of the coordinator that wrote it.
    pub epoch: i64,
    /// Tenant clusters to run.
    pub tenants: Vec<TenantIntent>,
}

/// A one-time token with which an agent gets its certificate; the object's name is the token's public id.
pub type EnrolmentToken = Object<EnrolmentTokenSpec, ()>;

/// What an enrolment token is good for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnrolmentTokenSpec {
    /// Connected cluster whose agent may use it.
    pub cluster: String,
    /// SHA-256 of the secret, in lower-case hex.
    pub secret_sha256: String,
    /// Refused after this time.
    pub expires: Timestamp,
    /// Set when it was used; a second use is refused, except by the same key (a lost answer is asked for again).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_by_key_sha256: Option<String>,
}

/// A one-time token by which a new server joins; the object's name is the token's public id.
pub type JoinToken = Object<JoinTokenSpec, ()>;

/// What a join token is good for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JoinTokenSpec {
    /// Region of the server that may use it.
    pub region: String,
    /// SHA-256 of the secret, in lower-case hex.
    pub secret_sha256: String,
    /// Refused after this time.
    pub expires: Timestamp,
    /// Set when it was used; a second use is refused, except by the same key for the same server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<JoinTokenUse>,
}

/// Who used a join token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JoinTokenUse {
    /// SHA-256 of the server's public key, in lower-case hex.
    pub key_sha256: String,
    /// Name of the server.
    pub name: String,
    /// The id that it was given.
    pub id: u64,
}

/// The key of a server that was removed; the object's name is the SHA-256 of the public key, in lower-case hex.
pub type RevokedKey = Object<RevokedKeySpec, ()>;

/// Whose key it was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RevokedKeySpec {
    /// Name of the server.
    pub server: String,
    /// Its id.
    pub id: u64,
}

/// The lease under which one server runs the controllers of a region; the object's name is the region's.
pub type RegionLease = Object<RegionLeaseSpec, ()>;

/// Holder of a region's lease. Written only when the holder changes: the revision of that write is the fencing token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegionLeaseSpec {
    /// Name of the server that holds it.
    pub holder: String,
}
