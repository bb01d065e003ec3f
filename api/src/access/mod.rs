//! Who asks, for what, and whether he may: the decision is one pure function.

mod decision;
mod membership;
mod object;
mod policy;
mod principal;
mod rules;
mod scope;

pub use decision::{Action, Decision, Roles, Target, decide, tenant_roles};
pub use membership::{Membership, PROJECT_ADMIN, PROJECT_USER, PROJECT_VIEWER, ProjectRole};
pub use object::{CLUSTER_ADMIN, ObjectAccess, Owner, TENANT_ROLES, changes_grants};
pub use policy::{PolicyRule, Role};
pub use principal::{
    GROUP_ADMINS, GROUP_AUTHENTICATED, GROUP_TEAM_PREFIX, GROUP_TENANT_ADMINS, GROUP_TENANT_ROLE_PREFIX,
    GROUP_USER_PREFIX, Principal,
};
pub use rules::rules;
pub use scope::{SCOPE_ROLES, Scope, ScopeCluster, ScopeProject, ScopeRole, ScopeVirtualCluster};
