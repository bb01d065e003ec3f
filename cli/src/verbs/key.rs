//! `key`: access keys.

use super::{print_document, tenant};
use crate::access_args::{KeyCommand, KeyCreateArgs};
use crate::app::App;
use crate::error::{Error, Result};
use crate::output::table::Table;
use crate::output::{Format, progress::age};
use hanse_api::Timestamp;
use hanse_api::kinds::{KindName, LOFT_GROUP, STORAGE_ACCESS_KEYS};
use serde_json::{Map, Value, json};

/// A caller's own keys.
const OWNED: KindName = KindName {
    group: LOFT_GROUP,
    version: "v1",
    kind: "OwnedAccessKey",
    plural: "ownedaccesskeys",
    namespaced: false,
};

/// `key ...`.
pub(crate) async fn key(app: &App, command: &KeyCommand) -> Result<()> {
    match command {
        KeyCommand::Create(args) => create(app, args).await,
        KeyCommand::List { all, output } => list(app, *all, output.output).await,
        KeyCommand::Revoke { name } => revoke(app, name).await,
    }
}

fn body(args: &KeyCreateArgs) -> Value {
    let mut spec = Map::new();
    let texts = [
        ("displayName", &args.display_name),
        ("user", &args.user),
        ("team", &args.team),
    ];
    for (field, text) in texts {
        if let Some(text) = text {
            spec.insert(field.to_owned(), text.as_str().into());
        }
    }
    if let Some(life) = args.ttl {
        spec.insert("ttl".to_owned(), life.as_secs().into());
    }
    let projects: Vec<Value> = args.projects.iter().map(|p| json!({ "project": p })).collect();
    let tenants = args.tenants.iter();
    let tenants: Vec<Value> = tenants
        .map(|(p, v)| json!({ "project": p, "virtualCluster": v }))
        .collect();
    if !projects.is_empty() || !tenants.is_empty() {
        spec.insert(
            "scope".to_owned(),
            json!({ "projects": projects, "virtualClusters": tenants }),
        );
    }
    let mut metadata = Map::new();
    if let Some(name) = &args.name {
        metadata.insert("name".to_owned(), name.as_str().into());
    }
    json!({ "metadata": metadata, "spec": spec })
}

/// The key alone goes to standard output, so that it can go on into a file.
async fn create(app: &App, args: &KeyCreateArgs) -> Result<()> {
    let management = app.management()?;
    // Another user's key is for those who administer keys.
    let kind = if args.user.is_some() {
        &STORAGE_ACCESS_KEYS
    } else {
        &OWNED
    };
    let made: Value = management.create(kind, None, &body(args)).await?;
    if print_document(&app.output, args.output.output, &made)? {
        return Ok(());
    }
    let key = tenant::text(&made, "/spec/key");
    app.output.note(&format!(
        "access key {}; it is shown only now, and `hanse key revoke {}` ends it",
        tenant::name(&made),
        tenant::name(&made)
    ));
    app.output.line(key)
}

async fn list(app: &App, all: bool, format: Format) -> Result<()> {
    let management = app.management()?;
    let kind = if all { &STORAGE_ACCESS_KEYS } else { &OWNED };
    let keys: Vec<Value> = management.list(kind, None).await?;
    if print_document(&app.output, format, &keys)? {
        return Ok(());
    }
    app.output.print(&table(&keys, app.clock.wall()).render(app.output.out))
}

fn table(keys: &[Value], now: Timestamp) -> Table {
    let mut table = Table::new(&["NAME", "OWNER", "STATE", "SCOPE", "EXPIRES", "AGE", "DISPLAY NAME"]);
    for key in keys {
        let owner = match tenant::text(key, "/spec/team") {
            "" => tenant::text(key, "/spec/user").to_owned(),
            team => format!("team {team}"),
        };
        let expires: Option<Timestamp> = serde_json::from_value(key["spec"]["expires"].clone()).ok();
        let state = match expires {
            _ if key["spec"]["disabled"] == true => "Disabled",
            Some(end) if end <= now => "Expired",
            Some(_) | None => "Active",
        };
        let left = expires
            .filter(|end| *end > now)
            .map(|end| format!("in {}", age(end.since(now))));
        table.row(vec![
            tenant::name(key).to_owned(),
            owner,
            state.to_owned(),
            scope(&key["spec"]["scope"]),
            left.unwrap_or_default(),
            super::list::object_age(key, now),
            tenant::text(key, "/spec/displayName").to_owned(),
        ]);
    }
    table
}

fn scope(scope: &Value) -> String {
    let all = |list: &str| scope[list].as_array().map(Vec::as_slice).unwrap_or_default().to_vec();
    let mut parts: Vec<String> = Vec::new();
    parts.extend(
        all("projects")
            .iter()
            .map(|p| format!("{}/*", tenant::text(p, "/project"))),
    );
    let tenant_of = |v: &Value| format!("{}/{}", tenant::text(v, "/project"), tenant::text(v, "/virtualCluster"));
    parts.extend(all("virtualClusters").iter().map(tenant_of));
    parts.extend(
        all("clusters")
            .iter()
            .map(|c| format!("cluster {}", tenant::text(c, "/cluster"))),
    );
    parts.extend(
        all("roles")
            .iter()
            .map(|r| format!("role {}", tenant::text(r, "/role"))),
    );
    parts.join(",")
}

async fn revoke(app: &App, name: &str) -> Result<()> {
    let management = app.management()?;
    if hanse_api::name::check_subdomain(name).is_err() {
        return Err(missing(name));
    }
    if management.delete(&OWNED, None, name).await? {
        return app.output.line(&format!("{name} revoked"));
    }
    // It may be somebody else's: that is for those who administer keys.
    match management.delete(&STORAGE_ACCESS_KEYS, None, name).await {
        Ok(true) => app.output.line(&format!("{name} revoked")),
        Ok(false) => Err(missing(name)),
        Err(error) if error.kind() == crate::error::Kind::Denied => Err(missing(name)),
        Err(error) => Err(error),
    }
}

fn missing(name: &str) -> Error {
    Error::not_found(format!("you have no access key {name:?}")).hint("`hanse key list` shows those that you have")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::style::Paint;

    #[test]
    fn keys_with_their_owners_scopes_and_ends() {
        let now = Timestamp::from_millis(1_700_000_060_000);
        let keys = [
            json!({ "metadata": { "name": "a", "creationTimestamp": "2023-11-14T22:13:20Z" }, "spec": { "user": "ann",
                    "expires": "2023-11-14T22:16:20Z", "scope": { "projects": [{ "project": "x" }] } } }),
            json!({ "metadata": { "name": "b" }, "spec": { "team": "ops", "expires": "2020-01-01T00:00:00Z" } }),
            json!({ "metadata": { "name": "c" }, "spec": { "user": "ann", "disabled": true } }),
        ];
        let text = table(&keys, now).render(Paint::new(false));
        let expected = "NAME   OWNER      STATE      SCOPE   EXPIRES   AGE   DISPLAY NAME\n\
                        a      ann        Active     x/*     in 2m     60s   -\n\
                        b      team ops   Expired    -       -         -     -\n\
                        c      ann        Disabled   -       -         -     -\n";
        assert_eq!(text, expected);
    }
}
