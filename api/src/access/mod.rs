//! Who asks, for what, and whether he may: the decision is one pure function.

mod decision;
mod principal;
mod rules;

pub use decision::{Action, Decision, Roles, Target, decide};
pub use principal::{GROUP_ADMINS, GROUP_AUTHENTICATED, GROUP_TENANT_ADMINS, Principal};
pub use rules::{Rule, RuleTarget, rules};
