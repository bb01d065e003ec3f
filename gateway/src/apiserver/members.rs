//! Who belongs to a project, and who may come to a connected cluster through one.

use super::backend::{Backend, failed};
use super::special::typed;
use hanse_api::access::ObjectAccess;
use hanse_api::kinds::{CLUSTERS, PROJECTS, USERS};
use hanse_api::resources::{Cluster, EntityInfo, Project, User};
use hanse_api::status::Status;
use hanse_state::objects::Page;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Projects read from the store at once.
const SCAN_PAGE: i64 = 500;

/// Names of users and teams.
#[derive(Debug, Default, PartialEq, Eq)]
struct Members {
    users: BTreeSet<String>,
    teams: BTreeSet<String>,
}

impl Members {
    fn owner(&mut self, owner: Option<&Value>) {
        let name = |kind: &str| owner.and_then(|o| o[kind].as_str()).filter(|n| !n.is_empty());
        self.users.extend(name("user").map(str::to_owned));
        self.teams.extend(name("team").map(str::to_owned));
    }

    /// Those whom a project names, and its owner.
    fn project(&mut self, project: &Project) {
        for member in &project.spec.members {
            let names = match member.kind.as_str() {
                "User" => &mut self.users,
                _ => &mut self.teams,
            };
            names.insert(member.name.clone());
        }
        self.owner(project.spec.other.get("owner"));
    }

    /// As clients see them.
    async fn shown(&self, backend: &Backend, kind: &str, name: &str) -> Result<Value, Box<Status>> {
        let directory = backend.directory.snapshot().await?;
        let mut users = Vec::with_capacity(self.users.len());
        for user in &self.users {
            let found = typed::<User>(backend, &USERS, user).await;
            let spec = found.map(|u| u.spec).unwrap_or_default();
            let info = EntityInfo {
                name: user.clone(),
                display_name: spec.display_name,
                username: spec.username,
            };
            users.push(json!({ "info": info }));
        }
        let team = |team: &String| json!({ "info": directory.entity(team) });
        let teams: Vec<Value> = self.teams.iter().map(team).collect();
        Ok(json!({
            "kind": kind, "apiVersion": "management.loft.sh/v1", "metadata": { "name": name },
            "users": users, "teams": teams,
        }))
    }
}

/// Members as a project names them, and its owner; administrators of the whole are not among them.
pub(super) async fn of_project(backend: &Backend, name: &str) -> Result<Value, Box<Status>> {
    let mut members = Members::default();
    members.project(&typed(backend, &PROJECTS, name).await?);
    members.shown(backend, "ProjectMembers", name).await
}

/// Owner and access list of a connected cluster, and the members of every project whose tenant clusters may run there.
pub(super) async fn of_cluster(backend: &Backend, name: &str) -> Result<Value, Box<Status>> {
    let cluster: Cluster = typed(backend, &CLUSTERS, name).await?;
    let mut members = Members::default();
    members.owner(cluster.spec.other.get("owner"));
    let (users, teams) = ObjectAccess::named(cluster.spec.other.get("access"));
    members.users.extend(users);
    members.teams.extend(teams);
    let mut page = Page {
        limit: SCAN_PAGE,
        ..Page::default()
    };
    loop {
        let list = backend.objects.list(&PROJECTS, None, page.clone()).await;
        let list = list.map_err(|e| failed(&e))?;
        for stored in &list.items {
            match serde_json::from_slice::<Project>(&stored.value) {
                Ok(project) if project.spec.allows_cluster(name) => members.project(&project),
                Ok(_) => {}
                Err(error) => tracing::error!(%error, name = stored.name, "a stored project cannot be read"),
            }
        }
        match list.next_page(page) {
            Some(next) => page = next,
            None => return members.shown(backend, "ClusterMembers", name).await,
        }
    }
}
