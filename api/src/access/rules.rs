//! The rules by which a caller may do something, for people and tools that ask for all of them at once. What holds is
//! what [`super::decide`] says; a test keeps both together.

use super::principal::{GROUP_ADMINS, Principal};
use super::{Roles, decision};
use crate::name::project_of_namespace;

/// One thing that a caller may do. `*` stands for everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Verbs.
    pub verbs: Vec<String>,
    /// What they are allowed on.
    pub on: RuleTarget,
}

/// What a [`Rule`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleTarget {
    /// Resources of API groups; without names every object.
    Resources {
        /// API groups.
        groups: Vec<String>,
        /// Plural names.
        resources: Vec<String>,
        /// Names of single objects; empty: all.
        names: Vec<String>,
    },
    /// Paths that are no resources; `*` at the end stands for whatever is below.
    Paths(Vec<String>),
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|t| (*t).to_owned()).collect()
}

fn resources(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Rule {
    Rule {
        verbs: texts(verbs),
        on: RuleTarget::Resources {
            groups: texts(groups),
            resources: texts(resources),
            names: texts(names),
        },
    }
}

/// What `principal` may do in `namespace` and on what has no namespace.
pub fn rules(principal: &Principal, namespace: &str, roles: &Roles) -> Vec<Rule> {
    if principal.is_in(GROUP_ADMINS) {
        let everywhere = Rule {
            verbs: texts(&["*"]),
            on: RuleTarget::Paths(texts(&["*"])),
        };
        return vec![resources(&["*"], &["*"], &["*"], &[]), everywhere];
    }
    let mut rules: Vec<Rule> = decision::ABOUT_HIMSELF
        .iter()
        .map(|(group, resource)| resources(&["*"], &[group], &[resource], &[]))
        .collect();
    rules.push(resources(
        &["get"],
        &["management.loft.sh"],
        &["users"],
        &[&principal.user],
    ));
    if project_of_namespace(namespace).is_some_and(|p| roles.project_admin.iter().any(|a| a == p)) {
        rules.push(resources(&["*"], &["*"], &["*"], &[]));
    }
    for project in &roles.project_admin {
        rules.push(resources(&["get"], &["management.loft.sh"], &["projects"], &[project]));
    }
    let paths = decision::DISCOVERY
        .iter()
        .flat_map(|root| [(*root).to_owned(), format!("{root}/*")]);
    rules.push(Rule {
        verbs: texts(&["get"]),
        on: RuleTarget::Paths(paths.collect()),
    });
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Action, Target, decide};

    fn user(groups: &[&str]) -> Principal {
        Principal {
            user: "u".into(),
            groups: texts(groups),
            ..Default::default()
        }
    }

    /// Every rule is asked about at the place that decides.
    #[test]
    fn every_rule_holds() {
        let roles = Roles {
            project_admin: vec!["x".into()],
        };
        let caller = user(&[]);
        for rule in rules(&caller, "p-x", &roles) {
            let verb = rule.verbs[0].replace('*', "create");
            let action = Action { verb: &verb };
            match &rule.on {
                RuleTarget::Paths(paths) => {
                    for path in paths {
                        let path = path.replace('*', "x");
                        assert!(decide(&caller, &action, &Target::Path(&path), &roles).allowed, "{path}");
                    }
                }
                RuleTarget::Resources {
                    groups,
                    resources,
                    names,
                } => {
                    let target = Target::Resource {
                        group: &groups[0],
                        resource: &resources[0],
                        subresource: None,
                        namespace: Some("p-x").filter(|_| resources[0] == "*"),
                        name: names.first().map(String::as_str),
                    };
                    assert!(decide(&caller, &action, &target, &roles).allowed, "{rule:?}");
                }
            }
        }
    }

    #[test]
    fn rights_in_a_project_show_only_there() {
        let roles = Roles {
            project_admin: vec!["x".into()],
        };
        let all = resources(&["*"], &["*"], &["*"], &[]);
        assert!(rules(&user(&[]), "p-x", &roles).contains(&all));
        assert!(!rules(&user(&[]), "p-y", &roles).contains(&all));
        assert!(rules(&user(&[GROUP_ADMINS]), "", &Roles::default()).contains(&all));
    }
}
