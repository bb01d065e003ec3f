//! Whom the agent never impersonates, whatever a server says: identities that no person has and that own a cluster.

use hanse_api::access::Principal;

/// Groups that are refused by name.
const GROUPS: [&str; 3] = ["system:masters", "system:nodes", "system:node-proxier"];
/// Groups and users that are refused by the start of their name.
const PREFIXES: [&str; 3] = ["system:kube-", "system:node:", "system:bootstrap"];
/// Users that are refused by name.
const USERS: [&str; 3] = ["system:apiserver", "system:masters", "system:admin"];
/// Most groups of one caller.
const GROUPS_MAX: usize = 1000;

/// Says why `principal` must not be impersonated, if it must not.
pub fn check(principal: &Principal) -> Result<(), String> {
    let user = principal.user.as_str();
    if user.trim().is_empty() {
        return Err("it names no user".into());
    }
    if USERS.contains(&user) || reserved(user) {
        return Err(format!("user {user:?} is reserved"));
    }
    if principal.groups.len() > GROUPS_MAX {
        return Err(format!("user {user:?} has more than {GROUPS_MAX} groups"));
    }
    for group in &principal.groups {
        if group.trim().is_empty() {
            return Err(format!("user {user:?} has a group without a name"));
        }
        if GROUPS.contains(&group.as_str()) || reserved(group) {
            return Err(format!("group {group:?} of user {user:?} is reserved"));
        }
    }
    Ok(())
}

fn reserved(name: &str) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_service_accounts_pass_owners_of_the_cluster_do_not() {
        let cases = [
            ("ann", &["system:authenticated", "hanse:tenant-admins"][..], true),
            ("system:serviceaccount:a:b", &["system:serviceaccounts"], true),
            ("ann", &[], true),
            ("", &["system:authenticated"], false),
            (" ", &[], false),
            ("ann", &[""], false),
            ("ann", &["a", "system:masters"], false),
            ("ann", &["system:nodes"], false),
            ("ann", &["system:kube-anything"], false),
            ("ann", &["system:bootstrappers:x"], false),
            ("system:kube-controller-manager", &[], false),
            ("system:node:n1", &[], false),
            ("system:apiserver", &[], false),
        ];
        for (user, groups, allowed) in cases {
            let groups = groups.iter().map(|group| (*group).to_owned()).collect();
            let principal = Principal {
                user: user.into(),
                groups,
                ..Principal::default()
            };
            assert_eq!(check(&principal).is_ok(), allowed, "{principal:?}");
        }
    }
}
