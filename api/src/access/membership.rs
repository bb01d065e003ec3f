//! What a member of a project may do in it.

use super::decision::Target;
use super::object::{ObjectAccess, names_him};
use super::policy::{PolicyRule, Role, namespace_of};
use super::principal::Principal;
use crate::kinds::{LOFT_GROUP, PROJECTS};
use crate::name::project_namespace;
use crate::resources::ProjectSpec;
use serde_json::Value;

/// Role that has every right in a project.
pub const PROJECT_ADMIN: &str = "loft-management-project-admin";
/// Role that makes tenant clusters, and sees those that are its own or shared with it.
pub const PROJECT_USER: &str = "loft-management-project-user";
/// Role that sees what is shared with it.
pub const PROJECT_VIEWER: &str = "loft-management-project-viewer";

/// A role in a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProjectRole {
    /// [`PROJECT_ADMIN`], and the owner.
    Admin,
    /// [`PROJECT_USER`].
    User,
    /// [`PROJECT_VIEWER`].
    Viewer,
    /// One that administrators defined.
    Custom(Role),
}

/// The roles of one caller in one project.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The project.
    pub project: String,
    /// Roles; without any he is no member.
    pub roles: Vec<ProjectRole>,
    /// Whether tenant clusters may be made without a template by every member who may make some.
    pub free: bool,
}

const READ: &[&str] = &["get", "list", "watch"];

impl ProjectRole {
    fn name(&self) -> &str {
        match self {
            Self::Admin => PROJECT_ADMIN,
            Self::User => PROJECT_USER,
            Self::Viewer => PROJECT_VIEWER,
            Self::Custom(role) => &role.name,
        }
    }

    /// What it allows in the namespace of the project.
    fn inside(&self, free: bool) -> Vec<PolicyRule> {
        let loft = |verbs: &[&str], resources: &[&str]| PolicyRule::on(verbs, &[LOFT_GROUP], resources);
        match self {
            Self::Admin => vec![PolicyRule::on(&["*"], &["*"], &["*"])],
            Self::User => {
                let mut rules = vec![
                    loft(&["create"], &["virtualclusterinstances"]),
                    loft(&["create", "get", "list", "watch", "use"], &["projectsecrets"]),
                    PolicyRule::on(READ, &[""], &["namespaces", "events"]),
                ];
                if free {
                    rules.push(loft(&["create"], &["virtualclusterinstances/restricted"]));
                }
                rules
            }
            Self::Viewer => vec![PolicyRule::on(READ, &[""], &["namespaces", "events"])],
            Self::Custom(role) => role.rules.clone(),
        }
    }

    /// What it allows on the project itself.
    fn on_project(&self, project: &str) -> Vec<PolicyRule> {
        let on = |verbs: &[&str], resources: &[&str]| PolicyRule::on(verbs, &[LOFT_GROUP], resources).named(project);
        let parts = [
            "projects",
            "projects/clusters",
            "projects/templates",
            "projects/members",
        ];
        let mut rules = vec![on(&["get"], &parts)];
        if matches!(self, Self::Admin) {
            rules.push(on(&["update", "patch"], &["projects", "projects/members"]));
        }
        rules
    }
}

impl Membership {
    /// The roles that `project` gives to `principal`. `custom` looks up roles that administrators defined.
    pub fn of(principal: &Principal, project: &str, spec: &ProjectSpec, custom: &dyn Fn(&str) -> Option<Role>) -> Self {
        let mut roles = Vec::new();
        let owner = spec.other.get("owner").map(ObjectAccess::owner_of).unwrap_or_default();
        if owner.is(principal) {
            roles.push(ProjectRole::Admin);
        }
        for member in &spec.members {
            let is_his = match member.kind.as_str() {
                "User" => names_him(std::slice::from_ref(&member.name), &[], principal),
                _ => names_him(&[], std::slice::from_ref(&member.name), principal),
            };
            if !is_his {
                continue;
            }
            let role = match member.cluster_role.as_str() {
                PROJECT_ADMIN => Some(ProjectRole::Admin),
                PROJECT_USER => Some(ProjectRole::User),
                PROJECT_VIEWER => Some(ProjectRole::Viewer),
                other => custom(other).map(ProjectRole::Custom),
            };
            roles.extend(role.filter(|r| !roles.contains(r)));
        }
        let free = spec.other.get("requireTemplate");
        Self {
            project: project.to_owned(),
            roles,
            free: free
                .and_then(|t| t.get("disabled"))
                .and_then(Value::as_bool)
                .unwrap_or(false),
        }
    }

    /// Whether the caller has a role.
    pub fn is_some(&self) -> bool {
        !self.roles.is_empty()
    }

    /// Whether he has every right in the project.
    pub fn is_admin(&self) -> bool {
        self.roles.contains(&ProjectRole::Admin)
    }

    /// All rules that hold in `namespace` and on what has no namespace.
    pub(super) fn rules(&self, namespace: &str) -> Vec<PolicyRule> {
        let inside = namespace == project_namespace(&self.project);
        let rules = self.roles.iter().flat_map(|role| {
            let mut rules = role.on_project(&self.project);
            if inside {
                rules.extend(role.inside(self.free));
            }
            rules
        });
        rules.collect()
    }

    /// The role that allows it, for a reason.
    pub(super) fn allows(&self, verb: &str, target: &Target<'_>) -> Option<String> {
        let inside = namespace_of(target).is_some_and(|n| n == project_namespace(&self.project));
        let about = matches!(target, Target::Resource { group, resource, namespace: None, .. }
            if (*group, *resource) == (PROJECTS.group, PROJECTS.plural));
        let role = self.roles.iter().find(|role| {
            let rules = match (inside, about) {
                (true, _) => role.inside(self.free),
                (false, true) => role.on_project(&self.project),
                (false, false) => Vec::new(),
            };
            rules.iter().any(|r| r.allows(verb, target))
        });
        role.map(|role| format!("role {} in project {}", role.name(), self.project))
    }
}
