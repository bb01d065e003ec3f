//! Spec, status and rules of each kind; one file per kind.

pub mod access_key;
pub mod cluster;
pub mod identity;
pub mod internal;
pub mod oidc;
pub mod project;
pub mod region;
pub mod secret;
pub mod server;
pub mod user;
pub mod virtual_cluster_instance;

pub use access_key::{AccessKey, AccessKeySpec};
pub use cluster::{Cluster, ClusterSpec, ClusterStatus};
pub use identity::{Identity, IdentitySpec, LoginGrant, LoginGrantSpec, SpentLogin, SpentLoginSpec};
pub use internal::{
    EnrolmentToken, EnrolmentTokenSpec, IntentObject, JoinToken, JoinTokenSpec, JoinTokenUse, RegionLease,
    RegionLeaseSpec, RevokedKey, RevokedKeySpec, StoreLimits, TenantStore, TenantStoreSpec,
};
pub use oidc::{OidcClient, OidcClientSpec, OidcGrant, OidcGrantSpec, OidcKey, OidcKeySpec};
pub use project::{Project, ProjectSpec, ProjectStatus};
pub use region::{Region, RegionSpec, RegionStatus};
pub use secret::{ProjectSecret, SecretSpec, SharedSecret};
pub use server::{GroupProgress, Seat, Server, ServerSpec, ServerStatus};
pub use user::{
    ClusterRoleTemplate, ClusterRoleTemplateSpec, EntityInfo, RoleName, Team, TeamSpec, User, UserSpec, UserStatus,
};
pub use virtual_cluster_instance::{ClusterRef, Phase, VciSpec, VciStatus, VirtualClusterInstance};

use crate::status::Cause;

pub(crate) fn invalid(field: &str, message: impl Into<String>) -> Cause {
    Cause {
        reason: "FieldValueInvalid".into(),
        message: message.into(),
        field: field.into(),
    }
}
