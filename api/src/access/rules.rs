//! The rules by which a caller may do something, for people and tools that ask for all of them at once. What holds is
//! what [`super::decide`] says; a test keeps both together.

use super::policy::PolicyRule;
use super::principal::{GROUP_ADMINS, Principal};
use super::{Roles, decision};
use crate::kinds::LOFT_GROUP;

/// What `principal` may do in `namespace` and on what has no namespace, without the rights that single objects give. Under
/// a scoped key it is at most this.
pub fn rules(principal: &Principal, namespace: &str, roles: &Roles) -> Vec<PolicyRule> {
    let paths = |verbs: &[&str], urls: Vec<String>| PolicyRule {
        non_resource_urls: urls,
        ..PolicyRule::on(verbs, &[], &[])
    };
    if principal.is_in(GROUP_ADMINS) {
        return vec![
            PolicyRule::on(&["*"], &["*"], &["*"]),
            paths(&["*"], vec!["*".to_owned()]),
        ];
    }
    let mut rules: Vec<PolicyRule> = decision::ABOUT_HIMSELF
        .iter()
        .map(|(group, resource)| PolicyRule::on(&["*"], &[group], &[resource]))
        .collect();
    rules.push(PolicyRule::on(&["get"], &[LOFT_GROUP], &["users"]).named(&principal.user));
    let teams = principal.teams();
    rules.extend(teams.map(|team| PolicyRule::on(&["get"], &[LOFT_GROUP], &["teams"]).named(team)));
    rules.extend(roles.management.iter().flat_map(|role| role.rules.iter().cloned()));
    rules.extend(roles.project.rules(namespace));
    let below = decision::DISCOVERY
        .iter()
        .flat_map(|root| [(*root).to_owned(), format!("{root}/*")]);
    rules.push(paths(&["get"], below.collect()));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Action, Membership, ProjectRole, Role, Target, decide};

    fn user(groups: &[&str]) -> Principal {
        Principal {
            user: "u".into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn roles(of: ProjectRole) -> Roles {
        Roles {
            management: vec![Role {
                name: "auditor".into(),
                rules: vec![PolicyRule::on(&["list"], &["hanse.dev"], &["regions"])],
            }],
            project: Membership {
                project: "x".into(),
                roles: vec![of],
                free: true,
            },
            ..Roles::default()
        }
    }

    /// Every rule is asked about at the place that decides.
    #[test]
    fn every_rule_holds() {
        let caller = user(&["loft:team:devs"]);
        for of in [ProjectRole::Admin, ProjectRole::User, ProjectRole::Viewer] {
            let roles = roles(of);
            for rule in rules(&caller, "p-x", &roles) {
                let verb = rule.verbs[0].replace('*', "create");
                let action = Action { verb: &verb };
                for path in &rule.non_resource_urls {
                    let path = path.replace('*', "x");
                    assert!(decide(&caller, &action, &Target::Path(&path), &roles).allowed, "{path}");
                }
                for resource in &rule.resources {
                    let (resource, subresource) = resource
                        .split_once('/')
                        .map_or((resource.as_str(), None), |(r, s)| (r, Some(s)));
                    let outside = ["projects", "users", "teams", "regions"].contains(&resource)
                        || rule.api_groups[0].contains("k8s.io")
                        || decision::ABOUT_HIMSELF.iter().any(|(_, r)| *r == resource);
                    let target = Target::Resource {
                        group: &rule.api_groups[0],
                        resource,
                        subresource,
                        namespace: Some("p-x").filter(|_| !outside),
                        name: rule.resource_names.first().map(String::as_str),
                    };
                    assert!(decide(&caller, &action, &target, &roles).allowed, "{rule:?}");
                }
            }
        }
    }

    #[test]
    fn rights_in_a_project_show_only_there() {
        let all = PolicyRule::on(&["*"], &["*"], &["*"]);
        let admin = roles(ProjectRole::Admin);
        assert!(rules(&user(&[]), "p-x", &admin).contains(&all));
        assert!(!rules(&user(&[]), "p-y", &admin).contains(&all));
        assert!(rules(&user(&[GROUP_ADMINS]), "", &Roles::default()).contains(&all));
    }
}
