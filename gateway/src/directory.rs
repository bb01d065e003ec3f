//! Teams and roles, read whole and kept until one changes: every request of every caller needs them.

use crate::apiserver::backend::failed;
use crate::authn::revocation::Generation;
use hanse_api::access::{PolicyRule, Role};
use hanse_api::kinds::{CLUSTER_ROLE_TEMPLATES, KindName, TEAMS};
use hanse_api::resources::{ClusterRoleTemplate, EntityInfo, Team, TeamSpec};
use hanse_api::status::{Reason, Status};
use hanse_state::objects::{Objects, Page};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Objects read from the store at once.
const PAGE: i64 = 500;
/// Most teams or roles. More are an error rather than a silent loss of rights.
const MAX: usize = 20_000;
/// Label of roles that may be given in projects.
const PROJECT_ROLE: &str = "loft.sh/project-role";

/// Teams and roles at one time.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    teams: BTreeMap<String, TeamSpec>,
    roles: BTreeMap<String, Vec<PolicyRule>>,
    project_roles: Vec<String>,
}

impl Snapshot {
    /// Names of the teams that a user with these groups is in.
    pub(crate) fn teams_of(&self, user: &str, groups: &[String]) -> Vec<&str> {
        let his = |(_, team): &(&String, &TeamSpec)| team.has(user, groups);
        self.teams.iter().filter(his).map(|(name, _)| name.as_str()).collect()
    }

    /// A team.
    pub(crate) fn team(&self, name: &str) -> Option<&TeamSpec> {
        self.teams.get(name)
    }

    /// A team as others show it.
    pub(crate) fn entity(&self, name: &str) -> EntityInfo {
        let team = self.teams.get(name);
        EntityInfo {
            name: name.to_owned(),
            display_name: team.map(|t| t.display_name.clone()).unwrap_or_default(),
            username: team.map(|t| t.username.clone()).unwrap_or_default(),
        }
    }

    /// A management role.
    pub(crate) fn role(&self, name: &str) -> Option<Role> {
        self.roles.get(name).map(|rules| Role {
            name: name.to_owned(),
            rules: rules.clone(),
        })
    }

    /// A role that may be given in projects.
    pub(crate) fn project_role(&self, name: &str) -> Option<Role> {
        self.role(name).filter(|_| self.project_roles.iter().any(|r| r == name))
    }
}

/// Gives the present teams and roles.
#[derive(Clone)]
pub(crate) struct Directory {
    objects: Objects,
    generation: Generation,
    kept: Arc<RwLock<Kept>>,
}

/// The last snapshot, and the generation that it is of.
type Kept = Option<(u64, Arc<Snapshot>)>;

impl Directory {
    pub(crate) fn new(objects: Objects, generation: Generation) -> Self {
        Self {
            objects,
            generation,
            kept: Arc::default(),
        }
    }

    /// As this server has applied them.
    pub(crate) async fn snapshot(&self) -> Result<Arc<Snapshot>, Box<Status>> {
        // Read before the lists: a change in between makes the next caller read again.
        let now = self.generation.now();
        if let (Some(now), Some((of, kept))) = (now, self.kept.read().as_ref())
            && now == *of
        {
            return Ok(Arc::clone(kept));
        }
        let read = Arc::new(self.read().await?);
        if let Some(now) = now {
            *self.kept.write() = Some((now, Arc::clone(&read)));
        }
        Ok(read)
    }

    async fn read(&self) -> Result<Snapshot, Box<Status>> {
        let mut snapshot = Snapshot::default();
        for team in self.all::<Team>(&TEAMS).await? {
            if team.metadata.deletion_timestamp.is_none() {
                snapshot.teams.insert(team.metadata.name, team.spec);
            }
        }
        for role in self.all::<ClusterRoleTemplate>(&CLUSTER_ROLE_TEMPLATES).await? {
            if !role.spec.management || role.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let name = role.metadata.name;
            if role.metadata.labels.get(PROJECT_ROLE).is_some_and(|v| v == "true") {
                snapshot.project_roles.push(name.clone());
            }
            snapshot.roles.insert(name, role.spec.cluster_role_template.rules);
        }
        Ok(snapshot)
    }

    async fn all<T: DeserializeOwned>(&self, kind: &KindName) -> Result<Vec<T>, Box<Status>> {
        let mut found = Vec::new();
        let mut page = Page {
            limit: PAGE,
            local: true,
            ..Page::default()
        };
        loop {
            let list = self
                .objects
                .list(kind, None, page.clone())
                .await
                .map_err(|e| failed(&e))?;
            for stored in &list.items {
                match serde_json::from_slice(&stored.value) {
                    Ok(object) => found.push(object),
                    // It gives no rights.
                    Err(error) => tracing::error!(%error, kind = kind.kind, name = stored.name, "cannot be read"),
                }
            }
            if found.len() > MAX {
                let message = format!("there are more than {MAX} {}", kind.plural);
                return Err(Box::new(Status::new(Reason::InternalError, message)));
            }
            let Some(next) = list.next_page(page) else {
                return Ok(found);
            };
            page = next;
        }
    }
}
