//! Projects. One that still has tenant clusters or secrets cannot be deleted, also not by a race: whoever deletes first puts
//! up a guard object, every creation of one requires in its transaction that there is none, and only then is counted.

use super::{Column, Kind, Subresource, cell, check, wide};
use crate::apiserver::backend::{Backend, failed};
use crate::apiserver::object;
use crate::apiserver::schema::Parts;
use crate::authz::Asker;
use async_trait::async_trait;
use hanse_api::Timestamp;
use hanse_api::kinds::{HANSE_GROUP, KindName, PROJECT_SECRETS, PROJECTS, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::name::{project_namespace, project_of_namespace};
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
/// Most objects named in a refusal.
const NAMED: i64 = 5;

pub(super) struct Projects;

#[async_trait]
impl Kind for Projects {
    fn names(&self) -> &'static KindName {
        &PROJECTS
    }

    fn singular(&self) -> &'static str {
        "project"
    }

    fn about(&self) -> &'static str {
        "A project: whose members make tenant clusters in it, and on which connected clusters these may run. Its objects are in the namespace `p-NAME`; it goes when none are left."
    }

    fn example(&self) -> Value {
        json!({
            "metadata": { "name": "shop" },
            "spec": {
                "displayName": "Shop",
                "members": [{ "kind": "User", "name": "*", "clusterRole": "loft-management-project-viewer" }],
                "allowedClusters": [{ "name": "*" }],
            },
        })
    }

    fn subresources(&self) -> &'static [Subresource] {
        &[
            Subresource {
                name: "clusters",
                kind: "ProjectClusters",
                verbs: &["get"],
                about: "Connected clusters that its tenant clusters may run on.",
            },
            Subresource {
                name: "templates",
                kind: "ProjectTemplates",
                verbs: &["get"],
                about: "Templates that its tenant clusters may be made from.",
            },
            Subresource {
                name: "members",
                kind: "ProjectMembers",
                verbs: &["get"],
                about: "Users and teams that belong to it, by name.",
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
        let held = match holds(backend, &old.name).await {
            Ok(None) => return Ok(vec![guard]),
            Ok(Some(held)) => held,
            Err(error) => {
                lower_guard(backend, guard).await;
                return Err(error);
            }
        };
        lower_guard(backend, guard).await;
        let message = format!("project {:?} still has {held}; delete them first", old.name);
        Err(Box::new(Status::new(Reason::Conflict, message)))
    }
}

/// What keeps a project from going, with some of the names.
async fn holds(backend: &Backend, project: &str) -> Result<Option<String>, Box<Status>> {
    let namespace = project_namespace(project);
    for (kind, what) in [
        (&VIRTUAL_CLUSTER_INSTANCES, "tenant clusters"),
        (&PROJECT_SECRETS, "secrets"),
    ] {
        let page = Page {
            limit: NAMED,
            ..Page::default()
        };
        let list = backend.objects.list(kind, Some(&namespace), page).await;
        let list = list.map_err(|e| failed(&e))?;
        let names: Vec<&str> = list.items.iter().map(|t| t.name.as_str()).collect();
        if !names.is_empty() {
            return Ok(Some(format!("{what} ({})", names.join(", "))));
        }
    }
    Ok(None)
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

/// For the creation of something in the namespace of a project: what its transaction must require for the project to be
/// there, and to stay.
pub(super) async fn inside_project(backend: &Backend, object: &Value) -> Result<Vec<Op>, Box<Status>> {
    let namespace = object::meta_text(object, "namespace");
    let Some(project) = project_of_namespace(namespace) else {
        return Err(Box::new(Status::not_found("", "namespaces", namespace)));
    };
    let key = ObjectKey::new(&PROJECTS, "", project);
    let Some(stored) = backend.objects.get(&key).await.map_err(|e| failed(&e))? else {
        return Err(Box::new(Status::not_found(PROJECTS.group, PROJECTS.plural, project)));
    };
    let dying = || {
        let message = format!("project {project:?} is being deleted; nothing can be made in it");
        Box::new(Status::new(Reason::Conflict, message))
    };
    if object::is_terminating(&Backend::parse(&stored)?) {
        return Err(dying());
    }
    let guard = undecided(backend, project).await?.ok_or_else(dying)?;
    let revision = stored.revision;
    Ok(vec![Op::Require { key, revision }, guard])
}

/// What a transaction must require for no deletion of `project` to be under way, or `None` while one is being decided.
async fn undecided(backend: &Backend, project: &str) -> Result<Option<Op>, Box<Status>> {
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
