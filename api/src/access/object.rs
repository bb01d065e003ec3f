//! What is written on an object itself about who may do what with it: its owner, its access list, and for tenant clusters
//! the roles inside.

use super::decision::Target;
use super::principal::Principal;
use serde::Deserialize;
use serde_json::Value;

/// Role inside a tenant cluster that may do everything.
pub const CLUSTER_ADMIN: &str = "cluster-admin";
/// The role that the `vcluster` CLI shares with when it is told none; tenant clusters know it as `admin`.
const SPACE_ADMIN: &str = "loft-cluster-space-admin";
/// The other roles that every tenant cluster binds for the gateway's groups.
pub const TENANT_ROLES: &[&str] = &["admin", "edit", "view"];

/// A user or a team.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Owner {
    /// User name.
    pub user: String,
    /// Team name.
    pub team: String,
}

impl Owner {
    /// Whether the principal is this user or in this team.
    pub fn is(&self, principal: &Principal) -> bool {
        (!self.user.is_empty() && self.user == principal.user)
            || (!self.team.is_empty() && principal.teams().any(|t| t == self.team))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Entry {
    verbs: Vec<String>,
    subresources: Vec<String>,
    users: Vec<String>,
    teams: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RoleRule {
    users: Vec<String>,
    teams: Vec<String>,
    cluster_role: String,
}

/// Who may do what with one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectAccess {
    /// To whom it belongs.
    pub owner: Owner,
    entries: Vec<Entry>,
    rules: Vec<RoleRule>,
    default_role: String,
}

/// Whether lists of users and teams name the principal; `*` is every user.
pub(super) fn names_him(users: &[String], teams: &[String], principal: &Principal) -> bool {
    users.iter().any(|u| u == "*" || *u == principal.user) || principal.teams().any(|t| teams.iter().any(|x| x == t))
}

/// Reads what can be read: a part of a wrong form gives no rights.
fn read<T: Default + for<'a> Deserialize<'a>>(value: Option<&Value>) -> T {
    value.and_then(|v| T::deserialize(v).ok()).unwrap_or_default()
}

fn read_all<T: for<'a> Deserialize<'a>>(value: Option<&Value>) -> Vec<T> {
    let items = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|v| T::deserialize(v).ok()).collect()
}

impl ObjectAccess {
    /// From an object's `spec`.
    pub fn of(spec: &Value) -> Self {
        let mut rules: Vec<RoleRule> = read_all(spec.get("extraAccessRules"));
        rules.extend(read_all::<RoleRule>(spec.pointer("/template/access/rules")));
        Self {
            owner: read(spec.get("owner")),
            entries: read_all(spec.get("access")),
            rules,
            default_role: read(spec.pointer("/template/access/defaultClusterRole")),
        }
    }

    /// Users and teams whom an `access` list names.
    pub fn named(access: Option<&Value>) -> (Vec<String>, Vec<String>) {
        let entries: Vec<Entry> = read_all(access);
        let (users, teams): (Vec<_>, Vec<_>) = entries.into_iter().map(|e| (e.users, e.teams)).unzip();
        (users.concat(), teams.concat())
    }

    /// An `owner` by itself.
    pub(super) fn owner_of(value: &Value) -> Owner {
        read(Some(value))
    }

    /// Roles inside the tenant cluster that rules give to the principal.
    fn matched(&self, principal: &Principal) -> impl Iterator<Item = &str> {
        let his = |rule: &&RoleRule| names_him(&rule.users, &rule.teams, principal);
        self.rules.iter().filter(his).map(|r| r.cluster_role.as_str())
    }

    /// Why the principal may do `verb` on this object, if he may.
    pub(super) fn allows(&self, principal: &Principal, verb: &str, target: &Target<'_>) -> Option<&'static str> {
        if self.owner.is(principal) {
            return Some("it belongs to the caller");
        }
        let (verb, subresource) = match target {
            Target::Resource { subresource, .. } => (verb, *subresource),
            Target::Tenant { .. } | Target::Cluster { .. } => ("use", None),
            Target::Path(_) => return None,
        };
        let has = |list: &[String], wanted: &str| list.iter().any(|x| x == "*" || x == wanted);
        let entry = |e: &&Entry| {
            names_him(&e.users, &e.teams, principal)
                && has(&e.verbs, verb)
                && subresource.is_none_or(|s| has(&e.subresources, s))
        };
        if self.entries.iter().any(|e| entry(&e)) {
            return Some("its access list names the caller");
        }
        let sees = matches!(verb, "get" | "use") && subresource.is_none();
        (sees && self.matched(principal).next().is_some()).then_some("its access rules name the caller")
    }

    /// Roles inside the tenant cluster of one who may use it. A rule that names him replaces the default, but not for the
    /// owner: sharing with everybody must not take away what was his.
    pub(super) fn tenant_roles(&self, principal: &Principal) -> Vec<String> {
        let mut roles: Vec<String> = self.matched(principal).map(known_as).collect();
        if roles.is_empty() || self.owner.is(principal) {
            roles.push(known_as(match self.default_role.as_str() {
                "" => CLUSTER_ADMIN,
                role => role,
            }));
        }
        roles.sort();
        roles.dedup();
        roles
    }
}

fn known_as(role: &str) -> String {
    if role == SPACE_ADMIN { "admin" } else { role }.to_owned()
}

/// Parts of a tenant cluster's `spec` that say who may do what.
const GRANTS: &[&str] = &["/owner", "/access", "/extraAccessRules", "/template/access"];

/// Whether a change of `spec` changes who may do what.
pub fn changes_grants(old: &Value, new: &Value) -> bool {
    let part = |spec: &Value, pointer: &str| spec.pointer(pointer).cloned().unwrap_or(Value::Null);
    GRANTS.iter().any(|p| part(old, p) != part(new, p))
}
