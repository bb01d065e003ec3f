//! May he? The decision itself is [`hanse_api::access::decide`]; here its inputs are gathered.

use crate::apiserver::backend::Backend;
use hanse_api::access::{
    Action, Decision, GROUP_ADMINS, GROUP_TEAM_PREFIX, Membership, ObjectAccess, PolicyRule, Principal, Role, Roles,
    Target, decide,
};
use hanse_api::kinds::{
    KindName, PLATFORM_NAMESPACE, PROJECT_SECRETS, PROJECTS, SHARED_SECRETS, USERS, VIRTUAL_CLUSTER_INSTANCES,
};
use hanse_api::name::{check_label, project_namespace, project_of_namespace};
use hanse_api::resources::{Project, ProjectSpec, User};
use hanse_api::status::{Reason, Status};
use hanse_state::objects::ObjectKey;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::HashMap;

/// What is known of one principal, each part read once.
pub(crate) struct RoleCache<'a> {
    backend: &'a Backend,
    principal: &'a Principal,
    management: Option<Vec<Role>>,
    projects: HashMap<String, Membership>,
}

impl<'a> RoleCache<'a> {
    pub(crate) fn new(backend: &'a Backend, principal: &'a Principal) -> Self {
        Self {
            backend,
            principal,
            management: None,
            projects: HashMap::new(),
        }
    }

    /// What counts for an object of `project`; `spec` is the object's.
    pub(crate) async fn of(&mut self, project: Option<&str>, spec: Option<&Value>) -> Roles {
        // Administrators need no roles, and a scope asks for none.
        if self.principal.is_in(GROUP_ADMINS) {
            return Roles::default();
        }
        let project = match project.filter(|p| check_label(p).is_ok()) {
            Some(project) => self.membership(project).await,
            None => Membership::default(),
        };
        Roles {
            management: self.management().await,
            project,
            object: spec.map(ObjectAccess::of).unwrap_or_default(),
        }
    }

    /// Roles that hold everywhere: the user's own and those of his teams.
    pub(crate) async fn management(&mut self) -> Vec<Role> {
        if let Some(known) = &self.management {
            return known.clone();
        }
        let roles = management_roles(self.backend, self.principal).await;
        self.management = Some(roles.clone());
        roles
    }

    /// Roles in one project.
    pub(crate) async fn membership(&mut self, project: &str) -> Membership {
        if let Some(known) = self.projects.get(project) {
            return known.clone();
        }
        let found: Option<Project> = local(self.backend, &ObjectKey::new(&PROJECTS, "", project)).await;
        let membership = match found {
            Some(found) => membership(self.backend, self.principal, project, &found.spec).await,
            None => Membership::default(),
        };
        self.projects.insert(project.to_owned(), membership.clone());
        membership
    }
}

/// The roles that a project gives.
pub(crate) async fn membership(
    backend: &Backend,
    principal: &Principal,
    project: &str,
    spec: &ProjectSpec,
) -> Membership {
    let directory = backend.directory.snapshot().await.unwrap_or_default();
    Membership::of(principal, project, spec, &|name| directory.project_role(name))
}

async fn management_roles(backend: &Backend, principal: &Principal) -> Vec<Role> {
    let directory = backend.directory.snapshot().await.unwrap_or_default();
    let mut names: Vec<String> = Vec::new();
    if !principal.user.starts_with(GROUP_TEAM_PREFIX)
        && let Some(user) = local::<User>(backend, &ObjectKey::new(&USERS, "", &principal.user)).await
    {
        names.extend(user.spec.cluster_roles.into_iter().map(|r| r.name));
    }
    for team in principal.teams().filter_map(|t| directory.team(t)) {
        names.extend(team.cluster_roles.iter().map(|r| r.name.clone()));
    }
    names.sort();
    names.dedup();
    names.iter().filter_map(|name| directory.role(name)).collect()
}

/// This server's own copy: decisions go on while it is cut off from the quorum. What cannot be read gives no rights.
async fn local<T: DeserializeOwned>(backend: &Backend, key: &ObjectKey) -> Option<T> {
    let stored = match backend.objects.get_local(key).await {
        Ok(stored) => stored?,
        Err(error) => {
            tracing::warn!(%error, kind = key.kind.kind, name = key.name, "cannot be read; it gives no rights");
            return None;
        }
    };
    match serde_json::from_slice(&stored.value) {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::warn!(%error, kind = key.kind.kind, name = key.name, "cannot be read; it gives no rights");
            None
        }
    }
}

/// Kinds on whose objects it is written who may do what with them.
const GRANTING: [&KindName; 3] = [&VIRTUAL_CLUSTER_INSTANCES, &PROJECT_SECRETS, &SHARED_SECRETS];

/// `spec` of the object that a target names, when on it is written who may do what with it. One that was made elsewhere a
/// moment ago is asked for at the leader.
async fn spec_of(backend: &Backend, target: &Target<'_>) -> Option<Value> {
    let key = match *target {
        Target::Tenant { project, name } => {
            ObjectKey::new(&VIRTUAL_CLUSTER_INSTANCES, project_namespace(project), name)
        }
        Target::Resource {
            group,
            resource,
            namespace: Some(namespace),
            name: Some(name),
            ..
        } => {
            let kind = GRANTING
                .into_iter()
                .find(|k| (k.group, k.plural) == (group, resource))?;
            ObjectKey::new(kind, namespace, name)
        }
        Target::Resource { .. } | Target::Path(_) | Target::Cluster { .. } => return None,
    };
    let placed = match project_of_namespace(&key.namespace) {
        Some(project) => check_label(project).is_ok(),
        None => key.namespace == PLATFORM_NAMESPACE,
    };
    if !placed || hanse_api::name::check_subdomain(&key.name).is_err() {
        return None;
    }
    if let Some(mut object) = local::<Value>(backend, &key).await {
        return Some(object["spec"].take());
    }
    let stored = backend.objects.get(&key).await.ok()??;
    let mut object: Value = serde_json::from_slice(&stored.value).ok()?;
    Some(object["spec"].take())
}

fn project_of<'a>(target: &Target<'a>) -> Option<&'a str> {
    match *target {
        Target::Tenant { project, .. } => Some(project),
        Target::Resource {
            namespace: Some(namespace),
            ..
        } => project_of_namespace(namespace),
        Target::Resource {
            resource: "projects",
            name,
            ..
        } => name,
        Target::Resource { .. } | Target::Path(_) | Target::Cluster { .. } => None,
    }
}

/// Everything that counts for a decision about `target`.
pub(crate) async fn facts(backend: &Backend, principal: &Principal, target: &Target<'_>) -> Roles {
    if principal.is_in(GROUP_ADMINS) {
        return Roles::default();
    }
    let mut roles = RoleCache::new(backend, principal).of(project_of(target), None).await;
    if let Some(spec) = spec_of(backend, target).await {
        roles.object = ObjectAccess::of(&spec);
    }
    roles
}

/// Roles that count in `namespace`.
pub(crate) async fn roles_in(backend: &Backend, principal: &Principal, namespace: &str) -> Roles {
    RoleCache::new(backend, principal)
        .of(project_of_namespace(namespace), None)
        .await
}

/// Refuses with 403 unless `principal` may do every one of `verbs` on `target`.
pub(crate) async fn authorize(
    backend: &Backend,
    principal: &Principal,
    verbs: &[&str],
    target: &Target<'_>,
) -> Result<(), Box<Status>> {
    for verb in verbs {
        let decision = decision(backend, principal, &Action { verb }, target).await;
        if !decision.allowed {
            tracing::info!(user = principal.user, verb, ?target, reason = decision.reason, "denied");
            return Err(forbidden(principal, verb, target));
        }
    }
    Ok(())
}

/// The decision about one action, with its reason.
pub(crate) async fn decision(
    backend: &Backend,
    principal: &Principal,
    action: &Action<'_>,
    target: &Target<'_>,
) -> Decision {
    decide(principal, action, target, &facts(backend, principal, target).await)
}

/// Who asks for a change, and what he may beside it.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) backend: &'a Backend,
    pub(crate) principal: &'a Principal,
}

impl Asker<'_> {
    /// Refuses with 403 unless he may do `verb` on an object of `kind`, or on the part `part` of it.
    pub(crate) async fn require(
        &self,
        verb: &str,
        kind: &KindName,
        part: Option<&str>,
        (namespace, name): (&str, Option<&str>),
    ) -> Result<(), Box<Status>> {
        let target = Target::Resource {
            group: kind.group,
            resource: kind.plural,
            subresource: part,
            namespace: Some(namespace).filter(|n| !n.is_empty()),
            name,
        };
        authorize(self.backend, self.principal, &[verb], &target).await
    }

    /// Whether his management roles hold all of a rule.
    pub(crate) async fn holds(&self, rule: &PolicyRule) -> bool {
        if !self.principal.scope.is_everything() {
            return false;
        }
        let roles = management_roles(self.backend, self.principal).await;
        let may = |verb: &str, target: &Target<'_>| roles.iter().any(|r| r.allows(verb, target));
        let names: Vec<Option<&str>> = match rule.resource_names.as_slice() {
            [] => vec![None],
            names => names.iter().map(|n| Some(n.as_str())).collect(),
        };
        rule.verbs.iter().all(|verb| {
            let on_resources = rule.api_groups.iter().all(|group| {
                rule.resources.iter().all(|resource| {
                    let (resource, subresource) = resource
                        .split_once('/')
                        .map_or((resource.as_str(), None), |(r, s)| (r, Some(s)));
                    names.iter().all(|name| {
                        let target = Target::Resource {
                            group,
                            resource,
                            subresource,
                            namespace: None,
                            name: *name,
                        };
                        may(verb, &target)
                    })
                })
            });
            on_resources && rule.non_resource_urls.iter().all(|url| may(verb, &Target::Path(url)))
        })
    }

    /// Whether he may do everything.
    pub(crate) fn is_admin(&self) -> bool {
        self.principal.is_in(GROUP_ADMINS) && self.principal.scope.is_everything()
    }
}

pub(crate) fn forbidden(principal: &Principal, verb: &str, target: &Target<'_>) -> Box<Status> {
    let user = &principal.user;
    let message = match target {
        Target::Resource {
            group,
            resource,
            subresource,
            namespace,
            name,
        } => {
            let resource = subresource.map_or_else(|| (*resource).to_owned(), |sub| format!("{resource}/{sub}"));
            let scope = namespace.map_or_else(
                || "at the cluster scope".to_owned(),
                |n| format!("in the namespace {n:?}"),
            );
            let about = name.map_or_else(String::new, |n| format!("{resource}.{group} {n:?} is forbidden: "));
            format!("{about}User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {scope}")
        }
        Target::Path(path) => format!("User {user:?} cannot {verb} path {path:?}"),
        Target::Tenant { project, name } => {
            format!("User {user:?} cannot {verb} in tenant cluster {name:?} of project {project:?}")
        }
        Target::Cluster { name } => format!("User {user:?} cannot {verb} in connected cluster {name:?}"),
    };
    Box::new(Status::new(Reason::Forbidden, message))
}
