//! `auth`: what somebody may do, and by which rule.

use super::{print_document, tenant};
use crate::access_args::{AuthCommand, QuestionArgs};
use crate::app::App;
use crate::client::Management;
use crate::error::{Error, Kind, Result};
use crate::output::table::Table;
use hanse_api::kinds::{
    CLUSTER_ROLE_TEMPLATES, CLUSTERS, KindName, PROJECTS, REGIONS, SERVERS, STORAGE_ACCESS_KEYS, TEAMS, USERS,
    VIRTUAL_CLUSTER_INSTANCES,
};
use hanse_api::name::project_namespace;
use serde_json::{Value, json};

/// Kinds that can be asked about, each with a short name.
const KINDS: &[(&str, &KindName)] = &[
    ("tenant", &VIRTUAL_CLUSTER_INSTANCES),
    ("project", &PROJECTS),
    ("cluster", &CLUSTERS),
    ("user", &USERS),
    ("team", &TEAMS),
    ("role", &CLUSTER_ROLE_TEMPLATES),
    ("key", &STORAGE_ACCESS_KEYS),
    ("region", &REGIONS),
    ("server", &SERVERS),
];

const REVIEWS: &str = "/kubernetes/management/apis/authorization.k8s.io/v1";

/// `auth ...`.
pub(crate) async fn auth(app: &App, command: &AuthCommand) -> Result<()> {
    let management = app.management()?;
    match command {
        AuthCommand::CanI(question) => can_i(app, &management, question).await,
        AuthCommand::Why { question, user } => why(app, &management, question, user.as_deref()).await,
        AuthCommand::WhoCan(question) => who_can(app, &management, question).await,
    }
}

/// `resourceAttributes` of a review.
fn attributes(question: &QuestionArgs) -> Result<Value> {
    let (kind, name) = question.what.split_once('/').unwrap_or((question.what.as_str(), ""));
    let wanted = kind.to_ascii_lowercase();
    let is_it = |(short, kind): &&(&str, &KindName)| {
        wanted == *short
            || wanted == format!("{short}s")
            || wanted == kind.plural
            || wanted == kind.kind.to_ascii_lowercase()
    };
    let Some((_, kind)) = KINDS.iter().find(is_it) else {
        let known: Vec<&str> = KINDS.iter().map(|(short, _)| *short).collect();
        return Err(
            Error::usage(format!("there is no kind {kind:?}")).hint(format!("the kinds are: {}", known.join(", ")))
        );
    };
    let mut attributes = json!({
        "verb": question.verb, "group": kind.group, "version": kind.version, "resource": kind.plural, "name": name,
    });
    if kind.namespaced {
        attributes["namespace"] = project_namespace(&question.project).into();
    }
    if let Some(part) = &question.subresource {
        attributes["subresource"] = part.as_str().into();
    }
    Ok(attributes)
}

async fn ask(management: &Management, attributes: &Value, user: Option<(&str, &[String])>) -> Result<Value> {
    let mut spec = json!({ "resourceAttributes": attributes });
    let resource = match user {
        None => "selfsubjectaccessreviews",
        Some((user, groups)) => {
            spec["user"] = user.into();
            spec["groups"] = json!(groups);
            "subjectaccessreviews"
        }
    };
    let reply = management
        .post(format!("{REVIEWS}/{resource}"), &json!({ "spec": spec }))
        .await?;
    let review: Value = management.parse(&reply)?;
    Ok(review["status"].clone())
}

fn allowed(status: &Value) -> bool {
    status["allowed"] == true
}

async fn can_i(app: &App, management: &Management, question: &QuestionArgs) -> Result<()> {
    let status = ask(management, &attributes(question)?, None).await?;
    if !print_document(&app.output, question.output.output, &status)? {
        app.output.line(if allowed(&status) { "yes" } else { "no" })?;
    }
    if allowed(&status) {
        return Ok(());
    }
    Err(Error::new(Kind::Denied, tenant::text(&status, "/reason").to_owned()))
}

async fn why(app: &App, management: &Management, question: &QuestionArgs, user: Option<&str>) -> Result<()> {
    let status = ask(management, &attributes(question)?, user.map(|u| (u, &[][..]))).await?;
    if print_document(&app.output, question.output.output, &status)? {
        return Ok(());
    }
    let answer = if allowed(&status) { "yes" } else { "no" };
    app.output
        .line(&format!("{answer}: {}", tenant::text(&status, "/reason")))
}

/// Asks about each user and each team. It costs a request for each.
async fn who_can(app: &App, management: &Management, question: &QuestionArgs) -> Result<()> {
    let attributes = attributes(question)?;
    let users: Vec<Value> = management.list(&USERS, None).await?;
    let teams: Vec<Value> = management.list(&TEAMS, None).await?;
    let mut found = Vec::new();
    let named = |kind: &'static str, list: &[Value]| -> Vec<(&'static str, String)> {
        list.iter().map(|o| (kind, tenant::name(o).to_owned())).collect()
    };
    for (kind, name) in named("Team", &teams).into_iter().chain(named("User", &users)) {
        let status = match kind {
            "User" => ask(management, &attributes, Some((&name, &[]))).await?,
            _ => {
                let group = format!("loft:team:{name}");
                ask(management, &attributes, Some((&group, std::slice::from_ref(&group)))).await?
            }
        };
        if allowed(&status) {
            found.push(json!({ "kind": kind, "name": name, "reason": status["reason"] }));
        }
    }
    if print_document(&app.output, question.output.output, &found)? {
        return Ok(());
    }
    if found.is_empty() {
        app.output.note("nobody may");
        return Ok(());
    }
    let mut table = Table::new(&["KIND", "NAME", "REASON"]);
    for one in &found {
        table.row(
            ["/kind", "/name", "/reason"]
                .map(|p| tenant::text(one, p).to_owned())
                .into(),
        );
    }
    app.output.print(&table.render(app.output.out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_args::AuthCommand;
    use crate::args::{Cli, Command};
    use clap::Parser as _;

    fn question(args: &[&str]) -> Result<Value> {
        let cli = Cli::try_parse_from([&["hanse", "auth", "can-i"], args].concat()).unwrap();
        match cli.command {
            Command::Auth {
                command: AuthCommand::CanI(question),
            } => attributes(&question),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn kinds_have_short_names_and_their_own_place() {
        let tenant = question(&["use", "tenant/demo", "--project", "x"]).unwrap();
        assert_eq!(tenant["resource"], "virtualclusterinstances");
        assert_eq!((&tenant["namespace"], &tenant["name"]), (&json!("p-x"), &json!("demo")));
        let users = question(&["list", "users"]).unwrap();
        assert_eq!(users["resource"], "users");
        assert!(users.get("namespace").is_none());
        assert!(
            question(&["get", "pods"])
                .unwrap_err()
                .remedy()
                .unwrap()
                .contains("tenant")
        );
    }
}
