//! May he? The decision itself is [`hanse_api::access::decide`]; here its inputs are gathered.

use crate::apiserver::backend::Backend;
use hanse_api::access::{Action, Decision, Principal, Roles, Target, decide};
use hanse_api::kinds::PROJECTS;
use hanse_api::name::project_of_namespace;
use hanse_api::resources::Project;
use hanse_api::status::{Reason, Status};
use hanse_state::objects::ObjectKey;
use std::collections::HashMap;

/// Role of a project's member that has every right in it.
pub(crate) const PROJECT_ADMIN: &str = "loft-management-project-admin";

/// Roles of one principal, read once per project.
pub(crate) struct RoleCache<'a> {
    backend: &'a Backend,
    principal: &'a Principal,
    seen: HashMap<String, Roles>,
}

impl<'a> RoleCache<'a> {
    pub(crate) fn new(backend: &'a Backend, principal: &'a Principal) -> Self {
        Self {
            backend,
            principal,
            seen: HashMap::new(),
        }
    }

    /// Roles that count for objects of `project`.
    pub(crate) async fn of_project(&mut self, project: &str) -> Roles {
        if let Some(roles) = self.seen.get(project) {
            return roles.clone();
        }
        let roles = self.read(project).await;
        self.seen.insert(project.to_owned(), roles.clone());
        roles
    }

    async fn read(&self, project: &str) -> Roles {
        let key = ObjectKey::new(&PROJECTS, "", project);
        // This server's own copy: decisions go on while it is cut off from the quorum. A read that fails gives no rights.
        let stored = match self.backend.objects.get_local(&key).await {
            Ok(Some(stored)) => stored,
            Ok(None) => return Roles::default(),
            Err(error) => {
                tracing::warn!(%error, project, "members of a project cannot be read; its roles do not count");
                return Roles::default();
            }
        };
        match serde_json::from_slice::<Project>(&stored.value) {
            Ok(object) if is_admin(&object, self.principal) => Roles {
                project_admin: vec![project.to_owned()],
            },
            Ok(_) => Roles::default(),
            Err(error) => {
                tracing::warn!(%error, project, "a project cannot be read; its roles do not count");
                Roles::default()
            }
        }
    }
}

fn is_admin(project: &Project, principal: &Principal) -> bool {
    let names = |name: &str| name == "*" || name == principal.user;
    project
        .spec
        .members
        .iter()
        .any(|m| m.kind == "User" && m.cluster_role == PROJECT_ADMIN && names(&m.name))
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

/// Roles that count in `namespace`.
pub(crate) async fn roles_in(backend: &Backend, principal: &Principal, namespace: &str) -> Roles {
    match project_of_namespace(namespace).filter(|p| hanse_api::name::check_label(p).is_ok()) {
        Some(project) => RoleCache::new(backend, principal).of_project(project).await,
        None => Roles::default(),
    }
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
    let roles = match project_of(target) {
        Some(project) if hanse_api::name::check_label(project).is_ok() => {
            RoleCache::new(backend, principal).of_project(project).await
        }
        Some(_) | None => Roles::default(),
    };
    decide(principal, action, target, &roles)
}

fn forbidden(principal: &Principal, verb: &str, target: &Target<'_>) -> Box<Status> {
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
