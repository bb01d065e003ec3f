//! `user`, `team` and `members`.

use super::{print_document, tenant};
use crate::access_args::{MemberArgs, MembersCommand, TeamCommand, UserCommand};
use crate::app::App;
use crate::client::Management;
use crate::error::{Error, Kind, Result};
use crate::output::Format;
use crate::output::table::Table;
use hanse_api::kinds::{CLUSTER_ROLE_TEMPLATES, KindName, PROJECTS, TEAMS, USERS};
use serde_json::{Value, json};

/// Tries of a change while others change the object too.
const TRIES: usize = 5;
/// What built-in project roles begin with.
const ROLE_PREFIX: &str = "loft-management-project-";

/// `user ...`.
pub(crate) async fn user(app: &App, command: UserCommand) -> Result<()> {
    let management = app.management()?;
    match command {
        UserCommand::List(output) => {
            let heads = &["NAME", "USERNAME", "EMAIL", "STATE", "TEAMS", "ROLES"];
            let row = |user: &Value| {
                let state = if user["spec"]["disabled"] == true {
                    "Locked"
                } else {
                    "Active"
                };
                vec![
                    tenant::name(user).to_owned(),
                    tenant::text(user, "/spec/username").to_owned(),
                    tenant::text(user, "/spec/email").to_owned(),
                    state.to_owned(),
                    names(&user["status"]["teams"]),
                    names(&user["spec"]["clusterRoles"]),
                ]
            };
            show(app, &management.list(&USERS, None).await?, output.output, heads, row)
        }
        UserCommand::Create {
            name,
            display_name,
            email,
            roles,
        } => {
            let roles: Vec<Value> = roles.iter().map(|r| json!({ "name": r })).collect();
            let mut spec = json!({ "username": name });
            put(&mut spec, "displayName", display_name);
            put(&mut spec, "email", email);
            if !roles.is_empty() {
                spec["clusterRoles"] = roles.into();
            }
            create(&management, &USERS, &name, spec).await?;
            app.output.line(&format!("{name} created"))?;
            app.output
                .note(&format!("`hanse key create --user {name}` makes a key for him"));
            Ok(())
        }
        UserCommand::Lock { name } => locked(app, &management, &name, true).await,
        UserCommand::Unlock { name } => locked(app, &management, &name, false).await,
        UserCommand::Delete { name } => delete(app, &management, &USERS, "user", &name).await,
    }
}

async fn locked(app: &App, management: &Management, name: &str, lock: bool) -> Result<()> {
    change(management, &USERS, "user", name, |user| {
        user["spec"]["disabled"] = lock.into();
        Ok(())
    })
    .await?;
    app.output
        .line(&format!("{name} {}", if lock { "locked" } else { "unlocked" }))
}

/// `team ...`.
pub(crate) async fn team(app: &App, command: TeamCommand) -> Result<()> {
    let management = app.management()?;
    match command {
        TeamCommand::List(output) => {
            let row = |team: &Value| {
                vec![
                    tenant::name(team).to_owned(),
                    tenant::text(team, "/spec/displayName").to_owned(),
                    names(&team["spec"]["users"]),
                    names(&team["spec"]["groups"]),
                    names(&team["spec"]["clusterRoles"]),
                ]
            };
            let heads = &["NAME", "DISPLAY NAME", "USERS", "GROUPS", "ROLES"];
            show(app, &management.list(&TEAMS, None).await?, output.output, heads, row)
        }
        TeamCommand::Create {
            name,
            display_name,
            users,
        } => {
            let mut spec = json!({ "users": users });
            put(&mut spec, "displayName", display_name);
            create(&management, &TEAMS, &name, spec).await?;
            app.output.line(&format!("{name} created"))
        }
        TeamCommand::Add { team, user } => {
            in_team(&management, &team, &user, true).await?;
            app.output.line(&format!("{user} is in {team}"))
        }
        TeamCommand::Remove { team, user } => {
            in_team(&management, &team, &user, false).await?;
            app.output.line(&format!("{user} is no longer in {team}"))
        }
        TeamCommand::Delete { name } => delete(app, &management, &TEAMS, "team", &name).await,
    }
}

async fn in_team(management: &Management, team: &str, user: &str, inside: bool) -> Result<()> {
    change(management, &TEAMS, "team", team, |object| {
        let users = list_mut(object, "users")?;
        users.retain(|u| u != user);
        if inside {
            users.push(user.into());
        }
        Ok(())
    })
    .await
}

/// `members ...`.
pub(crate) async fn members(app: &App, command: MembersCommand) -> Result<()> {
    let management = app.management()?;
    match command {
        MembersCommand::List { project, output } => {
            tenant::require_project(&management, &project.project).await?;
            let found: Option<Value> = management.get(&PROJECTS, None, &project.project).await?;
            let found = found.unwrap_or_default();
            let members = found["spec"]["members"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            let row = |member: &Value| {
                let role = tenant::text(member, "/clusterRole");
                vec![
                    tenant::text(member, "/kind").to_owned(),
                    tenant::text(member, "/name").to_owned(),
                    role.strip_prefix(ROLE_PREFIX).unwrap_or(role).to_owned(),
                ]
            };
            show(app, members, output.output, &["KIND", "NAME", "ROLE"], row)
        }
        MembersCommand::Add { member, role } => {
            let role = match role.as_str() {
                "admin" | "user" | "viewer" => format!("{ROLE_PREFIX}{role}"),
                _ => {
                    require_named(&management, &CLUSTER_ROLE_TEMPLATES, "role", &role).await?;
                    role
                }
            };
            membership(app, &management, &member, Some(&role)).await
        }
        MembersCommand::Remove { member } => membership(app, &management, &member, None).await,
    }
}

/// An error with those that there are, if there is none of this name. Nothing if this caller may not look: the server knows.
async fn require_named(management: &Management, kind: &KindName, what: &str, name: &str) -> Result<()> {
    match management.get::<Value>(kind, None, name).await {
        Ok(Some(_)) => return Ok(()),
        Ok(None) => {}
        Err(error) if error.kind() == Kind::Denied => return Ok(()),
        Err(error) => return Err(error),
    }
    let error = Error::not_found(format!("there is no {what} {name:?}"));
    let all: Vec<Value> = management.list(kind, None).await.unwrap_or_default();
    Err(match tenant::listed(&all) {
        known if known.is_empty() => error,
        known => error.hint(format!("the {what}s are: {known}")),
    })
}

async fn membership(app: &App, management: &Management, member: &MemberArgs, role: Option<&str>) -> Result<()> {
    let project = &member.project.project;
    tenant::require_project(management, project).await?;
    let (kind, name) = match (&member.user, &member.team) {
        (Some(user), _) => ("User", user),
        (None, Some(team)) => ("Team", team),
        (None, None) => return Err(Error::usage("a user or a team is needed")),
    };
    if role.is_some() {
        let names = if kind == "User" { &USERS } else { &TEAMS };
        require_named(management, names, &kind.to_ascii_lowercase(), name).await?;
    }
    change(management, &PROJECTS, "project", project, |object| {
        let members = list_mut(object, "members")?;
        members.retain(|m| m["kind"] != kind || m["name"] != name.as_str());
        if let Some(role) = role {
            members.push(json!({ "kind": kind, "name": name, "clusterRole": role }));
        }
        Ok(())
    })
    .await?;
    let is = if role.is_some() { "is" } else { "is no longer" };
    app.output.line(&format!(
        "{} {name} {is} a member of {project}",
        kind.to_ascii_lowercase()
    ))
}

/// Shows objects as a document or as rows.
fn show(
    app: &App,
    objects: &[Value],
    format: Format,
    heads: &[&'static str],
    row: impl Fn(&Value) -> Vec<String>,
) -> Result<()> {
    if print_document(&app.output, format, &objects)? {
        return Ok(());
    }
    let mut table = Table::new(heads);
    objects.iter().for_each(|object| table.row(row(object)));
    app.output.print(&table.render(app.output.out))
}

/// Items of a list, by name.
fn names(list: &Value) -> String {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = items
        .iter()
        .filter_map(|v| v.as_str().or_else(|| v["name"].as_str()))
        .collect();
    names.join(",")
}

fn put(spec: &mut Value, field: &str, text: Option<String>) {
    if let Some(text) = text {
        spec[field] = text.into();
    }
}

/// A list in `spec`, made when it is not there.
fn list_mut<'a>(object: &'a mut Value, field: &str) -> Result<&'a mut Vec<Value>> {
    let list = &mut object["spec"][field];
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut()
        .ok_or_else(|| Error::failed(format!("the server's object has no list at spec.{field}")))
}

async fn create(management: &Management, kind: &KindName, name: &str, spec: Value) -> Result<()> {
    let body = json!({
        "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": { "name": name }, "spec": spec,
    });
    management.create::<Value>(kind, None, &body).await.map(|_| ())
}

/// Reads an object, changes it and writes it back, again when somebody else was faster.
async fn change(
    management: &Management,
    kind: &KindName,
    what: &str,
    name: &str,
    edit: impl Fn(&mut Value) -> Result<()>,
) -> Result<()> {
    let missing = || Error::not_found(format!("there is no {what} {name:?}"));
    if hanse_api::name::check_subdomain(name).is_err() {
        return Err(missing());
    }
    let mut tries = 0;
    loop {
        tries += 1;
        let mut object: Value = management.get(kind, None, name).await?.ok_or_else(missing)?;
        edit(&mut object)?;
        match management.replace(kind, None, name, &object).await {
            Err(error) if error.kind() == Kind::Conflict && tries < TRIES => {}
            done => return done,
        }
    }
}

async fn delete(app: &App, management: &Management, kind: &KindName, what: &str, name: &str) -> Result<()> {
    let there = hanse_api::name::check_subdomain(name).is_ok() && management.delete(kind, None, name).await?;
    if there {
        app.output.line(&format!("{name} deleted"))
    } else {
        Err(Error::not_found(format!("there is no {what} {name:?}")))
    }
}
