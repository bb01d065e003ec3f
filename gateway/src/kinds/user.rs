//! Users. Every caller may look at himself; the `vcluster` CLI does so when it logs in.

use super::{Caller, Column, Kind, cell, check, column};
use crate::apiserver::backend::Backend;
use crate::apiserver::object;
use crate::apiserver::schema::Parts;
use crate::authz::Asker;
use async_trait::async_trait;
use hanse_api::kinds::{CLUSTER_ROLE_TEMPLATES, KindName, USERS};
use hanse_api::resources::user::MANAGEMENT_ADMIN;
use hanse_api::resources::{UserSpec, UserStatus, user};
use hanse_api::status::{Cause, Reason, Status};
use serde_json::{Value, json};

pub(super) struct Users;

#[async_trait]
impl Kind for Users {
    fn names(&self) -> &'static KindName {
        &USERS
    }

    fn singular(&self) -> &'static str {
        "user"
    }

    fn about(&self) -> &'static str {
        "Somebody who may log in, or has access keys. Every caller may look at himself."
    }

    fn example(&self) -> Value {
        json!({ "metadata": { "name": "ann" }, "spec": { "displayName": "Ann", "email": "ann@example.com" } })
    }

    /// All but the deletion of many: nobody means to lock out everybody at once.
    fn verbs(&self) -> &'static [&'static str] {
        &["create", "delete", "get", "list", "patch", "update", "watch"]
    }

    fn has_status(&self) -> bool {
        false
    }

    fn schemas(&self) -> Parts {
        Parts::of::<UserSpec, UserStatus>()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[column("Username", "Login name"), column("Email", "Address")];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![cell(object, "/spec/username"), cell(object, "/spec/email")]
    }

    fn prepare(&self, object: &mut Value, _caller: &hanse_api::access::Principal) {
        let name = object::name(object).to_owned();
        let spec = object::member_mut(object, "spec");
        if spec.get("username").is_none_or(|n| n == "") {
            spec.insert("username".into(), name.into());
        }
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        check(object, user::validate_user)
    }

    /// Nobody puts anybody into a group that he is not in himself, or gives a role that he may not bind.
    async fn admit_change(&self, asker: Asker<'_>, old: Option<&Value>, new: &Value) -> Result<(), Box<Status>> {
        let groups = added(old, new, "groups").into_iter();
        for group in groups.chain(added(old, new, "ssoGroups")) {
            if !asker.is_admin() && !asker.principal.is_in(group) {
                let message = format!(
                    "User {:?} cannot give the group {group:?}: he is not in it",
                    asker.principal.user
                );
                return Err(Box::new(Status::new(Reason::Forbidden, message)));
            }
        }
        bound_roles(asker, old, new).await
    }

    async fn decorate(&self, backend: &Backend, _caller: Caller<'_>, objects: &mut [Value]) {
        let Ok(directory) = backend.directory.snapshot().await else {
            return;
        };
        for object in objects {
            let spec: UserSpec = serde_json::from_value(object["spec"].clone()).unwrap_or_default();
            let groups = spec.own_groups();
            let teams = directory.teams_of(object::name(object), &groups);
            object["status"] = json!({ "teams": teams });
        }
    }
}

/// Items of a list of names in `spec` that were not there before; an item is the name, or has one.
pub(super) fn added<'a>(old: Option<&'a Value>, new: &'a Value, list: &str) -> Vec<&'a str> {
    let items = |object: &'a Value| -> Vec<&'a str> {
        let items = object["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default();
        items
            .iter()
            .filter_map(|v| v.as_str().or_else(|| v["name"].as_str()))
            .collect()
    };
    let had = old.map(items).unwrap_or_default();
    items(new).into_iter().filter(|item| !had.contains(item)).collect()
}

/// New `clusterRoles` need the right to bind them.
pub(super) async fn bound_roles(asker: Asker<'_>, old: Option<&Value>, new: &Value) -> Result<(), Box<Status>> {
    for role in added(old, new, "clusterRoles") {
        if role == MANAGEMENT_ADMIN && !asker.is_admin() {
            let message = format!(
                "User {:?} cannot give the role {role:?}: it has every right",
                asker.principal.user
            );
            return Err(Box::new(Status::new(Reason::Forbidden, message)));
        }
        asker
            .require("bind", &CLUSTER_ROLE_TEMPLATES, None, ("", Some(role)))
            .await?;
    }
    Ok(())
}
