//! The one place that decides. `(principal, action, target, roles) -> Decision`, with the reason.

use super::principal::{GROUP_ADMINS, Principal};
use serde::{Deserialize, Serialize};

/// What is asked for, in Kubernetes verbs (`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `use`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action<'a> {
    /// Verb.
    pub verb: &'a str,
}

/// What it is asked on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// An object or collection of the management API.
    Resource {
        /// API group, empty for core.
        group: &'a str,
        /// Plural resource name.
        resource: &'a str,
        /// Subresource, if any.
        subresource: Option<&'a str>,
        /// Namespace, if any.
        namespace: Option<&'a str>,
        /// Object name, if any.
        name: Option<&'a str>,
    },
    /// A path that is no resource, such as `/apis`.
    Path(&'a str),
    /// The API of a tenant cluster.
    Tenant {
        /// Project.
        project: &'a str,
        /// Name of the VirtualClusterInstance.
        name: &'a str,
    },
    /// The API of a connected cluster.
    Cluster {
        /// Name of the Cluster.
        name: &'a str,
    },
}

/// A project membership that counts for a decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles {
    /// Projects in which the principal is a member with full rights.
    pub project_admin: Vec<String>,
}

/// The answer, with the rule that gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Which rule decided, for people.
    pub reason: String,
}

/// Decides by deny-by-default: the first rule that allows wins, and no rule means no.
pub fn decide(principal: &Principal, action: &Action<'_>, target: &Target<'_>, roles: &Roles) -> Decision {
    let allow = |reason: String| Decision { allowed: true, reason };
    if principal.is_in(GROUP_ADMINS) {
        return allow(format!("member of {GROUP_ADMINS}"));
    }
    let admin_of = |project: &str| roles.project_admin.iter().any(|p| p == project);
    match target {
        Target::Path(path) if matches!(action.verb, "get" | "head") && is_discovery(path) => {
            allow("discovery is open to every caller".into())
        }
        Target::Resource {
            group,
            resource,
            subresource: None,
            namespace: None,
            ..
        } if about_himself(group, resource) => {
            allow("questions about the caller himself are open to every caller".into())
        }
        Target::Resource {
            resource: "users",
            subresource: None,
            namespace: None,
            name: Some(name),
            ..
        } if action.verb == "get" && *name == principal.user => allow("every caller may look at himself".into()),
        Target::Tenant { project, .. } if admin_of(project) => allow(format!("admin of project {project}")),
        Target::Resource {
            namespace: Some(namespace),
            ..
        } => match crate::name::project_of_namespace(namespace).filter(|p| admin_of(p)) {
            Some(project) => allow(format!("admin of project {project}")),
            None => deny(principal, action),
        },
        Target::Resource {
            resource: "projects",
            name: Some(name),
            ..
        } if action.verb == "get" && admin_of(name) => allow(format!("admin of project {name}")),
        Target::Path(_) | Target::Tenant { .. } | Target::Resource { .. } | Target::Cluster { .. } => {
            deny(principal, action)
        }
    }
}

/// Roots of the paths that say what an API offers, and nothing about what is in it.
pub(super) const DISCOVERY: &[&str] = &["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz"];

fn is_discovery(path: &str) -> bool {
    let below = |root: &str| {
        path.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    path == "/" || DISCOVERY.iter().any(|root| below(root))
}

/// Resources that only ever show or change what is the caller's own.
pub(super) const ABOUT_HIMSELF: &[(&str, &str)] = &[
    ("management.loft.sh", "selves"),
    ("management.loft.sh", "selfsubjectaccessreviews"),
    ("management.loft.sh", "ownedaccesskeys"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
];

fn about_himself(group: &str, resource: &str) -> bool {
    ABOUT_HIMSELF.contains(&(group, resource))
}

fn deny(principal: &Principal, action: &Action<'_>) -> Decision {
    Decision {
        allowed: false,
        reason: format!("no role of user {:?} allows {}", principal.user, action.verb),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(groups: &[&str]) -> Principal {
        Principal {
            user: "u".into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        let roles = Roles::default();
        let targets = [
            Target::Tenant {
                project: "p",
                name: "t",
            },
            Target::Cluster { name: "c" },
            Target::Resource {
                group: "g",
                resource: "r",
                subresource: None,
                namespace: None,
                name: None,
            },
            Target::Resource {
                group: "g",
                resource: "r",
                subresource: None,
                namespace: Some("p-x"),
                name: None,
            },
        ];
        for target in targets {
            assert!(
                !decide(&user(&[]), &Action { verb: "get" }, &target, &roles).allowed,
                "{target:?}"
            );
        }
    }

    #[test]
    fn project_admins_stay_in_their_project() {
        let roles = Roles {
            project_admin: vec!["x".into()],
        };
        let tenant = |project| Target::Tenant { project, name: "t" };
        assert!(decide(&user(&[]), &Action { verb: "create" }, &tenant("x"), &roles).allowed);
        assert!(!decide(&user(&[]), &Action { verb: "create" }, &tenant("y"), &roles).allowed);
        let vcis = |namespace| Target::Resource {
            group: "management.loft.sh",
            resource: "virtualclusterinstances",
            subresource: None,
            namespace: Some(namespace),
            name: None,
        };
        assert!(decide(&user(&[]), &Action { verb: "list" }, &vcis("p-x"), &roles).allowed);
        assert!(!decide(&user(&[]), &Action { verb: "list" }, &vcis("p-y"), &roles).allowed);
    }

    #[test]
    fn every_caller_may_ask_about_himself_and_what_there_is() {
        let may = |verb, target: &Target<'_>| decide(&user(&[]), &Action { verb }, target, &Roles::default()).allowed;
        for path in ["/", "/api", "/apis/hanse.dev/v1", "/openapi/v3", "/version"] {
            assert!(may("get", &Target::Path(path)), "{path}");
        }
        for path in ["/metrics", "/apisx", "/debug"] {
            assert!(!may("get", &Target::Path(path)), "{path}");
        }
        assert!(!may("post", &Target::Path("/api")));
        let resource = |group, resource, name| Target::Resource {
            group,
            resource,
            subresource: None,
            namespace: None,
            name,
        };
        assert!(may("create", &resource("management.loft.sh", "selves", None)));
        assert!(!may("create", &resource("other", "selves", None)));
        assert!(may("get", &resource("management.loft.sh", "users", Some("u"))));
        assert!(!may("get", &resource("management.loft.sh", "users", Some("v"))));
        assert!(!may("delete", &resource("management.loft.sh", "users", Some("u"))));
        assert!(!may("list", &resource("management.loft.sh", "users", None)));
    }

    #[test]
    fn admins_may() {
        let decision = decide(
            &user(&[GROUP_ADMINS]),
            &Action { verb: "delete" },
            &Target::Cluster { name: "c" },
            &Roles::default(),
        );
        assert!(decision.allowed, "{}", decision.reason);
    }
}
