//! Rules of roles, with the meaning that they have in Kubernetes' RBAC.

use super::decision::Target;
use crate::kinds::{CLUSTERS, KindName, VIRTUAL_CLUSTER_INSTANCES};
use crate::name::project_namespace;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One rule: these verbs on these things. `*` stands for everything; what is empty stands for nothing, but names for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    /// Verbs.
    pub verbs: Vec<String>,
    /// API groups; the core group is "".
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// Resources, `resource` or `resource/subresource`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Names of single objects; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths that are no resources; `*` at the end stands for whatever is below.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

/// A named list of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// Name, for reasons.
    pub name: String,
    /// What it allows.
    pub rules: Vec<PolicyRule>,
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|x| x == "*" || x == wanted)
}

impl PolicyRule {
    /// On resources of groups.
    pub fn on(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Self {
        let texts = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect();
        Self {
            verbs: texts(verbs),
            api_groups: texts(groups),
            resources: texts(resources),
            ..Self::default()
        }
    }

    /// The same on single objects only.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.resource_names = vec![name.to_owned()];
        self
    }

    fn is_about(&self, resource: &str, subresource: Option<&str>) -> bool {
        let Some(sub) = subresource else {
            return has(&self.resources, resource);
        };
        let whole = |wanted: &String| {
            wanted == "*"
                || wanted
                    .split_once('/')
                    .is_some_and(|(r, s)| (r == "*" || r == resource) && (s == "*" || s == sub))
        };
        self.resources.iter().any(whole)
    }

    /// Whether it allows `verb` on `target`. A tenant or connected cluster is entered with the verb `use` on its object,
    /// whatever is then done inside.
    pub fn allows(&self, verb: &str, target: &Target<'_>) -> bool {
        let entered = |kind: &KindName, name: &str| {
            has(&self.verbs, "use")
                && has(&self.api_groups, kind.group)
                && self.is_about(kind.plural, None)
                && (self.resource_names.is_empty() || has(&self.resource_names, name))
        };
        match target {
            Target::Resource {
                group,
                resource,
                subresource,
                name,
                ..
            } => {
                has(&self.verbs, verb)
                    && has(&self.api_groups, group)
                    && self.is_about(resource, *subresource)
                    && (self.resource_names.is_empty() || name.is_some_and(|n| has(&self.resource_names, n)))
            }
            Target::Path(path) => {
                let covers = |url: &String| url.strip_suffix('*').map_or(url == path, |root| path.starts_with(root));
                has(&self.verbs, verb) && self.non_resource_urls.iter().any(covers)
            }
            Target::Tenant { name, .. } => entered(&VIRTUAL_CLUSTER_INSTANCES, name),
            Target::Cluster { name } => entered(&CLUSTERS, name),
        }
    }
}

impl Role {
    /// Whether one of its rules allows it.
    pub fn allows(&self, verb: &str, target: &Target<'_>) -> bool {
        self.rules.iter().any(|r| r.allows(verb, target))
    }
}

/// The namespace of a target, with tenants in that of their project.
pub(super) fn namespace_of(target: &Target<'_>) -> Option<String> {
    match target {
        Target::Resource { namespace, .. } => namespace.map(str::to_owned),
        Target::Tenant { project, .. } => Some(project_namespace(project)),
        Target::Path(_) | Target::Cluster { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource<'a>(resource: &'a str, subresource: Option<&'a str>, name: Option<&'a str>) -> Target<'a> {
        Target::Resource {
            group: "g",
            resource,
            subresource,
            namespace: None,
            name,
        }
    }

    #[test]
    fn rules_mean_what_they_mean_in_kubernetes() {
        let rule = PolicyRule::on(&["get", "list"], &["g"], &["things", "things/log", "*/scale"]);
        for (verb, target, want) in [
            ("get", resource("things", None, Some("a")), true),
            ("list", resource("things", None, None), true),
            ("delete", resource("things", None, Some("a")), false),
            ("get", resource("others", None, Some("a")), false),
            ("get", resource("things", Some("log"), Some("a")), true),
            ("get", resource("things", Some("exec"), Some("a")), false),
            ("get", resource("others", Some("scale"), Some("a")), true),
            ("get", Target::Path("/metrics"), false),
        ] {
            assert_eq!(rule.allows(verb, &target), want, "{verb} {target:?}");
        }
        let one = rule.named("a");
        assert!(one.allows("get", &resource("things", None, Some("a"))));
        assert!(!one.allows("get", &resource("things", None, Some("b"))));
        assert!(
            !one.allows("list", &resource("things", None, None)),
            "a list is about all"
        );
        let all = PolicyRule::on(&["*"], &["*"], &["*"]);
        assert!(all.allows("x", &resource("y", Some("z"), None)));
        assert!(!all.allows("get", &Target::Path("/metrics")));
        let paths = PolicyRule {
            verbs: vec!["get".into()],
            non_resource_urls: vec!["/metrics".into(), "/debug/*".into()],
            ..PolicyRule::default()
        };
        for (path, want) in [
            ("/metrics", true),
            ("/metricsx", false),
            ("/debug/x", true),
            ("/", false),
        ] {
            assert_eq!(paths.allows("get", &Target::Path(path)), want, "{path}");
        }
    }

    #[test]
    fn tenants_are_entered_with_use() {
        let tenant = Target::Tenant {
            project: "p",
            name: "t",
        };
        let rule = |verb: &str| PolicyRule::on(&[verb], &["management.loft.sh"], &["virtualclusterinstances"]);
        assert!(rule("use").allows("delete", &tenant));
        assert!(!rule("get").allows("get", &tenant));
        assert!(!rule("use").named("other").allows("get", &tenant));
    }
}
