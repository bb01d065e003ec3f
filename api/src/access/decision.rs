//! The one place that decides. `(principal, action, target, roles) -> Decision`, with the reason.

use super::membership::Membership;
use super::object::{CLUSTER_ADMIN, ObjectAccess};
use super::policy::Role;
use super::principal::{GROUP_ADMINS, Principal};
use crate::kinds::LOFT_GROUP;

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

/// What is known of the caller and of what he asks for. Facts, gathered by whoever asks; leaving one out gives fewer rights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// Roles that hold everywhere.
    pub management: Vec<Role>,
    /// Roles in the project that the target belongs to.
    pub project: Membership,
    /// What is written on the object itself.
    pub object: ObjectAccess,
}

/// The answer, with the rule that gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Which rule decided, for people.
    pub reason: String,
}

/// Decides by deny-by-default: the first rule that allows wins, and no rule means no. The scope of the caller's key is
/// asked first: it only takes away.
pub fn decide(principal: &Principal, action: &Action<'_>, target: &Target<'_>, roles: &Roles) -> Decision {
    let verb = action.verb;
    if !principal.scope.allows(verb, target) {
        let reason = format!("the scope of the access key of {:?} does not hold it", principal.user);
        return Decision { allowed: false, reason };
    }
    let why = everywhere(principal, verb, target, roles)
        .or_else(|| roles.project.allows(verb, target))
        .or_else(|| {
            let is_named = !matches!(target, Target::Resource { name: None, .. });
            let why = roles.object.allows(principal, verb, target).filter(|_| is_named);
            why.map(str::to_owned)
        });
    match why {
        Some(reason) => Decision { allowed: true, reason },
        None => Decision {
            allowed: false,
            reason: format!("no role of user {:?} allows {verb}", principal.user),
        },
    }
}

/// Why it is allowed by what holds for the caller anywhere.
fn everywhere(principal: &Principal, verb: &str, target: &Target<'_>, roles: &Roles) -> Option<String> {
    if principal.is_in(GROUP_ADMINS) {
        return Some(format!("member of {GROUP_ADMINS}"));
    }
    let himself = || match *target {
        Target::Path(path) if matches!(verb, "get" | "head") && is_discovery(path) => {
            Some("discovery is open to every caller")
        }
        Target::Resource {
            group,
            resource,
            subresource: None,
            namespace: None,
            ..
        } if ABOUT_HIMSELF.contains(&(group, resource)) => {
            Some("questions about the caller himself are open to every caller")
        }
        Target::Resource {
            group: LOFT_GROUP,
            resource,
            subresource: None,
            namespace: None,
            name: Some(name),
        } if verb == "get" => {
            let his = match resource {
                "users" => name == principal.user,
                "teams" => principal.teams().any(|t| t == name),
                _ => false,
            };
            his.then_some("every caller may look at himself and his teams")
        }
        _ => None,
    };
    himself().map(str::to_owned).or_else(|| {
        let role = roles.management.iter().find(|r| r.allows(verb, target))?;
        Some(format!("management role {}", role.name))
    })
}

/// Cluster roles that the caller has inside a tenant cluster, which he may enter.
pub fn tenant_roles(principal: &Principal, target: &Target<'_>, roles: &Roles) -> Vec<String> {
    if everywhere(principal, "use", target, roles).is_some() || roles.project.is_admin() {
        return vec![CLUSTER_ADMIN.to_owned()];
    }
    roles.object.tenant_roles(principal)
}

/// Roots of the paths that say what an API offers, and nothing about what is in it.
pub(super) const DISCOVERY: &[&str] = &["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz"];

pub(super) fn is_discovery(path: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{PolicyRule, ProjectRole};
    use crate::resources::ProjectSpec;
    use serde_json::json;

    fn in_project(project: &str, roles: &[ProjectRole]) -> Roles {
        Roles {
            project: Membership {
                project: project.into(),
                roles: roles.to_vec(),
                free: false,
            },
            ..Roles::default()
        }
    }

    fn vcis<'a>(namespace: &'a str, name: Option<&'a str>) -> Target<'a> {
        Target::Resource {
            group: "management.loft.sh",
            resource: "virtualclusterinstances",
            subresource: None,
            namespace: Some(namespace),
            name,
        }
    }

    fn may(principal: &Principal, verb: &str, target: &Target<'_>, roles: &Roles) -> bool {
        decide(principal, &Action { verb }, target, roles).allowed
    }

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
        let roles = in_project("x", &[ProjectRole::Admin]);
        let tenant = |project| Target::Tenant { project, name: "t" };
        assert!(may(&user(&[]), "create", &tenant("x"), &roles));
        assert!(!may(&user(&[]), "create", &tenant("y"), &roles));
        assert!(may(&user(&[]), "list", &vcis("p-x", None), &roles));
        assert!(!may(&user(&[]), "list", &vcis("p-y", None), &roles));
    }

    #[test]
    fn users_make_tenants_and_see_their_own_viewers_see_what_is_shared() {
        let project = |name| Target::Resource {
            group: "management.loft.sh",
            resource: "projects",
            subresource: None,
            namespace: None,
            name: Some(name),
        };
        let bob = user(&[]);
        let mut roles = in_project("x", &[ProjectRole::User]);
        for (verb, target, want) in [
            ("create", vcis("p-x", None), true),
            ("create", vcis("p-y", None), false),
            ("list", vcis("p-x", None), false),
            ("get", vcis("p-x", Some("others")), false),
            ("get", project("x"), true),
            ("update", project("x"), false),
            ("get", project("y"), false),
        ] {
            assert_eq!(may(&bob, verb, &target, &roles), want, "{verb} {target:?}");
        }
        roles.object = ObjectAccess::of(&json!({ "owner": { "user": "u" } }));
        for verb in ["get", "delete", "patch", "use"] {
            assert!(may(&bob, verb, &vcis("p-x", Some("his")), &roles), "{verb}");
        }
        assert!(
            !may(&bob, "list", &vcis("p-x", None), &roles),
            "an owner owns one object"
        );
        let viewer = in_project("x", &[ProjectRole::Viewer]);
        assert!(!may(&bob, "create", &vcis("p-x", None), &viewer));
        assert!(may(&bob, "get", &project("x"), &viewer));
        let free = Membership::of(
            &bob,
            "x",
            &serde_json::from_value::<ProjectSpec>(json!({
                "members": [{ "kind": "Team", "name": "t", "clusterRole": "loft-management-project-user" }],
                "requireTemplate": { "disabled": true },
            }))
            .unwrap(),
            &|_| None,
        );
        assert!(free.free && !free.is_some(), "he is in no team");
    }

    #[test]
    fn what_is_written_on_an_object_counts_for_that_object() {
        let spec = json!({
            "owner": { "team": "devs" },
            "access": [{ "verbs": ["get", "update"], "subresources": ["log"], "users": ["u"] }],
            "extraAccessRules": [{ "teams": ["ops"], "clusterRole": "view" }],
        });
        let roles = Roles {
            object: ObjectAccess::of(&spec),
            ..Roles::default()
        };
        let tenant = Target::Tenant {
            project: "x",
            name: "t",
        };
        let one = vcis("p-x", Some("t"));
        let log = Target::Resource {
            group: "management.loft.sh",
            resource: "virtualclusterinstances",
            subresource: Some("log"),
            namespace: Some("p-x"),
            name: Some("t"),
        };
        let (named, dev, ops, other) = (
            user(&[]),
            Principal {
                user: "v".into(),
                groups: vec!["loft:team:devs".into()],
                ..Principal::default()
            },
            Principal {
                user: "w".into(),
                groups: vec!["loft:team:ops".into()],
                ..Principal::default()
            },
            Principal {
                user: "x".into(),
                ..Principal::default()
            },
        );
        for (who, verb, target, want) in [
            (&named, "update", &one, true),
            (&named, "delete", &one, false),
            (&named, "get", &log, true),
            (&named, "get", &tenant, false),
            (&dev, "delete", &one, true),
            (&dev, "create", &tenant, true),
            (&ops, "get", &one, true),
            (&ops, "update", &one, false),
            (&ops, "get", &log, false),
            (&ops, "create", &tenant, true),
            (&other, "get", &one, false),
            (&other, "get", &tenant, false),
        ] {
            assert_eq!(may(who, verb, target, &roles), want, "{} {verb} {target:?}", who.user);
        }
        assert_eq!(tenant_roles(&dev, &tenant, &roles), ["cluster-admin"]);
        assert_eq!(tenant_roles(&ops, &tenant, &roles), ["view"]);
        assert_eq!(tenant_roles(&user(&[GROUP_ADMINS]), &tenant, &roles), ["cluster-admin"]);
        let defaulted = Roles {
            object: ObjectAccess::of(
                &json!({ "owner": { "user": "u" }, "template": { "access": { "defaultClusterRole": "edit" } } }),
            ),
            ..Roles::default()
        };
        assert_eq!(tenant_roles(&user(&[]), &tenant, &defaulted), ["edit"]);
        assert_eq!(
            tenant_roles(&user(&[]), &tenant, &in_project("x", &[ProjectRole::Admin])),
            ["cluster-admin"]
        );
    }

    #[test]
    fn management_roles_hold_everywhere_and_scopes_only_take_away() {
        let auditor = Role {
            name: "auditor".into(),
            rules: vec![PolicyRule::on(&["get", "list", "watch"], &["*"], &["*"])],
        };
        let roles = Roles {
            management: vec![auditor],
            ..Roles::default()
        };
        let mut bob = user(&[]);
        assert!(may(&bob, "list", &vcis("p-x", None), &roles));
        assert!(!may(&bob, "delete", &vcis("p-x", Some("a")), &roles));
        let tenant = Target::Tenant {
            project: "x",
            name: "t",
        };
        assert!(!may(&bob, "get", &tenant, &roles), "looking at it is not entering it");
        bob.groups.push(GROUP_ADMINS.into());
        bob.scope = serde_json::from_value(json!({ "projects": [{ "project": "y" }] })).unwrap();
        assert!(!may(&bob, "list", &vcis("p-x", None), &roles));
        assert!(may(&bob, "list", &vcis("p-y", None), &roles));
        let why = decide(&bob, &Action { verb: "get" }, &tenant, &roles).reason;
        assert!(why.contains("scope"), "{why}");
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
