//! What an access key is narrowed to. A scope gives nothing: it is asked before everything else and can only say no.

use super::decision::{ABOUT_HIMSELF, Target, is_discovery};
use crate::kinds::LOFT_GROUP;
use crate::name::project_of_namespace;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Narrows an access key. Empty: to nothing less than its owner's rights.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Scope {
    /// Roles for programs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<ScopeRole>,
    /// Whole projects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub projects: Vec<ScopeProject>,
    /// Single tenant clusters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub virtual_clusters: Vec<ScopeVirtualCluster>,
    /// Connected clusters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<ScopeCluster>,
}

/// A role for programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ScopeRole {
    /// `vcluster`: what a tenant cluster may ask about itself.
    pub role: String,
}

/// A project of a scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ScopeProject {
    /// Name, or `*`.
    pub project: String,
}

/// A tenant cluster of a scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ScopeVirtualCluster {
    /// Project, or `*`.
    pub project: String,
    /// Name, or `*`.
    pub virtual_cluster: String,
}

/// A connected cluster of a scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ScopeCluster {
    /// Name, or `*`.
    pub cluster: String,
}

/// Roles that a scope may name.
pub const SCOPE_ROLES: &[&str] = &["vcluster"];

fn fits(pattern: &str, name: &str) -> bool {
    pattern == "*" || pattern == name
}

impl Scope {
    /// Whether it narrows nothing.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    fn project(&self, project: &str) -> bool {
        self.projects.iter().any(|p| fits(&p.project, project))
    }

    fn tenant(&self, project: &str, name: &str) -> bool {
        let named = |v: &ScopeVirtualCluster| fits(&v.project, project) && fits(&v.virtual_cluster, name);
        self.project(project) || self.virtual_clusters.iter().any(named)
    }

    /// Whether it lets `verb` on `target` through to the decision. New keys are never made or ended under a scope: they
    /// would not have it.
    pub fn allows(&self, verb: &str, target: &Target<'_>) -> bool {
        if self.is_everything() {
            return true;
        }
        match *target {
            Target::Path(path) => is_discovery(path),
            Target::Tenant { project, name } => self.tenant(project, name),
            Target::Cluster { name } => self.clusters.iter().any(|c| fits(&c.cluster, name)),
            Target::Resource {
                group,
                resource,
                subresource,
                namespace,
                name,
            } => self.resource(verb, (group, resource, subresource), namespace, name),
        }
    }

    fn resource(
        &self,
        verb: &str,
        (group, resource, subresource): (&str, &str, Option<&str>),
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> bool {
        if ABOUT_HIMSELF.contains(&(group, resource)) {
            return resource != "ownedaccesskeys";
        }
        if let Some(namespace) = namespace {
            let Some(project) = project_of_namespace(namespace) else {
                return false;
            };
            let one = (group, resource, subresource, verb) == (LOFT_GROUP, "virtualclusterinstances", None, "get");
            return self.project(project) || (one && name.is_some_and(|n| self.tenant(project, n)));
        }
        match (group, resource, name) {
            (LOFT_GROUP, "users" | "teams", Some(_)) => verb == "get",
            (LOFT_GROUP, "projects", Some(name)) => {
                let holds_a_part = self.virtual_clusters.iter().any(|v| fits(&v.project, name));
                self.project(name) || (verb == "get" && holds_a_part)
            }
            (LOFT_GROUP, "clusters", Some(name)) => {
                verb == "get" && subresource.is_none() && self.clusters.iter().any(|c| fits(&c.cluster, name))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: serde_json::Value) -> Scope {
        serde_json::from_value(value).unwrap()
    }

    fn resource<'a>(resource: &'a str, namespace: Option<&'a str>, name: Option<&'a str>) -> Target<'a> {
        Target::Resource {
            group: LOFT_GROUP,
            resource,
            subresource: None,
            namespace,
            name,
        }
    }

    fn tenant<'a>(project: &'a str, name: &'a str) -> Target<'a> {
        Target::Tenant { project, name }
    }

    #[test]
    fn a_scope_takes_away_all_but_what_it_names() {
        let one = of(serde_json::json!({ "virtualClusters": [{ "project": "x", "virtualCluster": "a" }] }));
        let vcis = "virtualclusterinstances";
        for (verb, target, want) in [
            ("create", tenant("x", "a"), true),
            ("get", tenant("x", "b"), false),
            ("get", tenant("y", "a"), false),
            ("get", resource(vcis, Some("p-x"), Some("a")), true),
            ("delete", resource(vcis, Some("p-x"), Some("a")), false),
            ("list", resource(vcis, Some("p-x"), None), false),
            ("get", resource("projects", None, Some("x")), true),
            ("update", resource("projects", None, Some("x")), false),
            ("get", resource("projects", None, Some("y")), false),
            ("create", resource("selves", None, None), true),
            ("create", resource("ownedaccesskeys", None, None), false),
            ("list", resource("users", None, None), false),
            ("get", Target::Path("/version"), true),
            ("get", Target::Path("/metrics"), false),
            ("get", Target::Cluster { name: "eu" }, false),
        ] {
            assert_eq!(one.allows(verb, &target), want, "{verb} {target:?}");
        }
        let project = of(serde_json::json!({ "projects": [{ "project": "x" }], "clusters": [{ "cluster": "eu" }] }));
        assert!(project.allows("create", &resource(vcis, Some("p-x"), None)));
        assert!(!project.allows("create", &resource(vcis, Some("p-y"), None)));
        assert!(!project.allows("get", &resource(vcis, Some("kube-system"), Some("a"))));
        assert!(project.allows("get", &Target::Cluster { name: "eu" }));
        assert!(!project.allows("get", &Target::Cluster { name: "us" }));
        assert!(Scope::default().allows("delete", &resource("users", None, Some("x"))));
        let role = of(serde_json::json!({ "roles": [{ "role": "vcluster" }] }));
        assert!(role.allows("create", &resource("selves", None, None)));
        assert!(!role.allows("get", &tenant("x", "a")));
    }
}
