//! Projects. One that still has tenant clusters cannot be deleted, also not by a race: whoever deletes first puts up a
//! guard object, every creation of a tenant requires in its transaction that there is none, and only then is counted.

use super::{Column, Kind, Subresource, cell, check, wide};
use crate::apiserver::backend::{Backend, failed};
use crate::apiserver::object;
use crate::apiserver::schema::Parts;
use crate::authz::Asker;
use async_trait::async_trait;
use hanse_api::Timestamp;
use hanse_api::kinds::{HANSE_GROUP, KindName, PROJECTS, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::name::project_namespace;
use hanse_api::resources::project;
use hanse_api::status::{Cause, Reason, Status};
use hanse_state::objects::{ObjectKey, Op, Page, Stored};
use serde_json::{Value, json};
use std::time::Duration;

/// Marks a project whose deletion is being decided. Never served.
const PROJECT_GUARDS: KindName = KindName {
    group: HANSE_GROUP,
    version: "v1",
    kind: "ProjectGuard",
    plural: "projectguards",
    namespaced: false,
};

/// A guard of this age was left behind by a server that died while it decided.
const GUARD_EXPIRES: Duration = Duration::from_secs(30);
/// Fields that come with the right to update a project.
const FREE: &[&str] = &["displayName", "description", "members"];
/// Most tenants named in the refusal.
const NAMED_TENANTS: i64 = 5;

pub(super) struct Projects;

#[async_trait]
impl Kind for Projects {
    fn names(&self) -> &'static KindName {
        &PROJECTS
    }

    fn singular(&self) -> &'static str {
        "project"
    }

    fn subresources(&self) -> &'static [Subresource] {
        &[
            Subresource {
                name: "clusters",
                kind: "ProjectClusters",
                verbs: &["get"],
            },
            Subresource {
                name: "templates",
                kind: "ProjectTemplates",
                verbs: &["get"],
            },
            Subresource {
                name: "members",
                kind: "ProjectMembers",
                verbs: &["get"],
            },
        ]
    }

    fn project<'a>(&self, _namespace: &'a str, name: &'a str) -> Option<&'a str> {
        Some(name)
    }

    fn schemas(&self) -> Parts {
        Parts::of::<hanse_api::resources::ProjectSpec, hanse_api::resources::ProjectStatus>()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[wide("Display Name", "Name for people")];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![cell(object, "/spec/displayName")]
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        check(object, project::validate)
    }

    /// A project's own administrators change its members and what it is called; the rest, such as where its tenants may run,
    /// is for those who may update `projects/<field>`.
    async fn admit_change(&self, asker: Asker<'_>, old: Option<&Value>, new: &Value) -> Result<(), Box<Status>> {
        let Some(old) = old else { return Ok(()) };
        let fields = |object: &Value| object["spec"].as_object().cloned().unwrap_or_default();
        let (was, is) = (fields(old), fields(new));
        let changed = was.keys().chain(is.keys()).filter(|f| was.get(*f) != is.get(*f));
        for field in changed.filter(|f| !FREE.contains(&f.as_str())) {
            asker
                .require("update", &PROJECTS, Some(field), ("", Some(object::name(new))))
                .await?;
        }
        Ok(())
    }

    async fn admit_delete(&self, backend: &Backend, old: &Stored, _object: &Value) -> Result<Vec<Op>, Box<Status>> {
        let guard = raise_guard(backend, &old.name).await?;
        let page = Page {
            limit: NAMED_TENANTS,
            ..Page::default()
        };
        let tenants = backend
            .objects
            .list(&VIRTUAL_CLUSTER_INSTANCES, Some(&project_namespace(&old.name)), page)
            .await;
        let tenants = match tenants {
            Ok(list) if list.items.is_empty() => return Ok(vec![guard]),
            Ok(list) => list.items,
            Err(error) => {
                lower_guard(backend, guard).await;
                return Err(failed(&error));
            }
        };
        lower_guard(backend, guard).await;
        let names: Vec<&str> = tenants.iter().map(|t| t.name.as_str()).collect();
        let message = format!(
            "project {:?} still has tenant clusters ({}); delete them first",
            old.name,
            names.join(", ")
        );
        Err(Box::new(Status::new(Reason::Conflict, message)))
    }
}

fn guard_key(project: &str) -> ObjectKey {
    ObjectKey {
        kind: PROJECT_GUARDS,
        namespace: String::new(),
        name: project.to_owned(),
    }
}

/// Puts the guard up, or takes over one that is there; answers the operation that takes it down.
async fn raise_guard(backend: &Backend, project: &str) -> Result<Op, Box<Status>> {
    let key = guard_key(project);
    let value = json!({ "at": backend.clock.wall().as_millis() }).to_string().into();
    let there = backend.objects.get(&key).await.map_err(|e| failed(&e))?;
    let op = match there {
        None => Op::Create {
            key: key.clone(),
            value,
        },
        Some(old) => Op::Update {
            key: key.clone(),
            value,
            expected: old.revision,
        },
    };
    let revision = backend.objects.commit(vec![op]).await.map_err(|e| failed(&e))?;
    Ok(Op::Delete {
        key,
        expected: revision,
    })
}

async fn lower_guard(backend: &Backend, guard: Op) {
    if let Err(error) = backend.objects.commit(vec![guard]).await {
        // It expires by itself, and the next deletion takes it over.
        tracing::debug!(%error, "a project's guard could not be taken down");
    }
}

/// For the creation of a tenant in `project`: what its transaction must require, or `None` while the project's deletion
/// is being decided.
pub(crate) async fn project_is_being_deleted(backend: &Backend, project: &str) -> Result<Option<Op>, Box<Status>> {
    let key = guard_key(project);
    let Some(guard) = backend.objects.get(&key).await.map_err(|e| failed(&e))? else {
        return Ok(Some(Op::Require { key, revision: 0 }));
    };
    let at = serde_json::from_slice::<Value>(&guard.value)
        .ok()
        .and_then(|v| v["at"].as_i64())
        .unwrap_or(0);
    if backend.clock.wall().since(Timestamp::from_millis(at)) < GUARD_EXPIRES {
        return Ok(None);
    }
    // Whoever put it up fails now, as his transaction takes down exactly the guard that he knows.
    Ok(Some(Op::Delete {
        key,
        expected: guard.revision,
    }))
}
