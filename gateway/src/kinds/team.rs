//! Teams.

use super::user::{added, bound_roles};
use super::{Column, Kind, cell, check, column, wide};
use crate::apiserver::object;
use crate::apiserver::schema::Parts;
use crate::authz::Asker;
use async_trait::async_trait;
use hanse_api::kinds::{KindName, TEAMS};
use hanse_api::resources::{TeamSpec, user};
use hanse_api::status::{Cause, Status};
use serde_json::{Value, json};

pub(super) struct Teams;

#[async_trait]
impl Kind for Teams {
    fn names(&self) -> &'static KindName {
        &TEAMS
    }

    fn singular(&self) -> &'static str {
        "team"
    }

    fn about(&self) -> &'static str {
        "A team: its members have the group `loft:team:NAME`, its roles and its keys."
    }

    fn example(&self) -> Value {
        json!({ "metadata": { "name": "web" }, "spec": { "displayName": "Web", "users": ["ann"] } })
    }

    fn has_status(&self) -> bool {
        false
    }

    fn schemas(&self) -> Parts {
        Parts::of::<TeamSpec, ()>()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            column("Users", "How many are named"),
            wide("Display Name", "Name for people"),
        ];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        let users = object["spec"]["users"].as_array().map_or(0, Vec::len);
        vec![users.to_string().into(), cell(object, "/spec/displayName")]
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        check(object, user::validate_team)
    }

    /// Whoever puts somebody into a team gives him what the team has: that needs membership, or the right to bind the team.
    async fn admit_change(&self, asker: Asker<'_>, old: Option<&Value>, new: &Value) -> Result<(), Box<Status>> {
        let name = object::name(new);
        let grows = !added(old, new, "users").is_empty() || !added(old, new, "groups").is_empty();
        // A team that is new has nothing to give but its roles.
        if old.is_some() && grows && !asker.principal.teams().any(|t| t == name) {
            asker.require("bind", &TEAMS, None, ("", Some(name))).await?;
        }
        bound_roles(asker, old, new).await
    }
}
