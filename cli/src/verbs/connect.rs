//! `connect` and `disconnect`: contexts in the user's kubeconfig.

use super::tenant;
use crate::app::App;
use crate::client::Management;
use crate::error::{Error, Kind, Result};
use crate::kubeconfig::edit;
use crate::kubeconfig::store::Store;
use crate::kubeconfig::{Access, Changes, Names, entries};
use crate::logins::Login;
use crate::output::progress::Step;
use hanse_api::kinds::SERVERS;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// How `connect` is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options<'a> {
    pub(crate) kubeconfig: Option<&'a Path>,
    /// Makes the new context the current one.
    pub(crate) switch: bool,
    /// Prints a kubeconfig of its own instead of changing the user's.
    pub(crate) print: bool,
    /// For the tenant to become ready.
    pub(crate) limit: Duration,
}

/// `connect NAME` and `connect --management`.
pub(crate) async fn connect(app: &App, names: &Names, options: Options<'_>) -> Result<()> {
    let login = app.login()?;
    let management = Management::new(app.http(&login)?);
    if let Names::Tenant { project, name } = names {
        let vci = tenant::require(&management, project, name).await?;
        if tenant::phase(&vci) != "Ready" {
            let mut step = Step::start(app.output, &app.clock, &format!("tenant cluster {name}"));
            tenant::wait_ready(&management, project, name, &mut step, options.limit).await?;
            step.done("ready");
        }
    }
    let access = access(app, &login, &management).await?;
    if options.print {
        let config = json!({});
        let text = edit::apply("", &entries::connect(&config, &access, names, true)).map_err(Error::failed)?;
        return app.output.print(&text);
    }
    let store = Store::find(options.kubeconfig, &app.clock)?;
    store
        .change(|config| entries::connect(config, &access, names, options.switch))
        .await?;
    let context = names.context();
    let file = store.main().display();
    if options.switch {
        app.output.note(&format!(
            "kubectl now uses context {context} ({file}); `hanse disconnect` goes back"
        ));
    } else {
        app.output.note(&format!("added context {context} ({file})"));
    }
    let regions: Vec<String> = access
        .regions
        .iter()
        .map(|(region, _)| names.in_region(region))
        .collect();
    if !regions.is_empty() {
        app.output
            .note(&format!("contexts through one region: {}", regions.join(", ")));
    }
    Ok(())
}

/// How the installation is reached, its regions included.
async fn access(app: &App, login: &Login, management: &Management) -> Result<Access> {
    let servers = match management.list::<Value>(&SERVERS, None).await {
        Ok(servers) => servers,
        Err(error) if error.kind() == Kind::Denied => {
            app.output
                .note("you may not list servers, so there are no contexts through single regions");
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    Ok(Access {
        server: login.server.clone(),
        ca: login.ca.clone(),
        insecure: login.insecure,
        token: login.access_key.clone(),
        regions: regions(&servers),
    })
}

/// One gateway per region: that of the server with the lowest id.
fn regions(servers: &[Value]) -> Vec<(String, String)> {
    let mut sorted: Vec<&Value> = servers.iter().collect();
    sorted.sort_by_key(|s| s.pointer("/spec/id").and_then(Value::as_u64).unwrap_or(u64::MAX));
    let mut regions: Vec<(String, String)> = Vec::new();
    for server in sorted {
        let (region, gateway) = (
            tenant::text(server, "/spec/region"),
            tenant::text(server, "/spec/gateway"),
        );
        let known = regions.iter().any(|(name, _)| name == region);
        if !known && !region.is_empty() && crate::client::BaseUrl::parse(gateway).is_ok() {
            regions.push((region.to_owned(), gateway.trim_end_matches('/').to_owned()));
        }
    }
    regions
}

/// `disconnect`.
pub(crate) async fn disconnect(app: &App, kubeconfig: Option<&Path>) -> Result<()> {
    let store = Store::find(kubeconfig, &app.clock)?;
    let changes = store
        .change(|config| Changes {
            current: entries::disconnect_target(config),
            ..Changes::default()
        })
        .await?;
    match changes.current.as_deref() {
        None => {
            let config = store.load()?;
            let current = edit::current(&config).unwrap_or("none");
            app.output.note(&format!(
                "nothing to do: the current context is {current}, not one of hanse"
            ));
        }
        Some("") => app
            .output
            .note("disconnected; there is no context to go back to, so none is set now"),
        Some(context) => app.output.note(&format!("back to context {context}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_gateway_per_region() {
        let server =
            |id: u64, region: &str, gateway: &str| json!({"spec": {"id": id, "region": region, "gateway": gateway}});
        let servers = [
            server(4, "eu", "https://127.0.1.2:8443"),
            server(1, "eu", "https://127.0.1.1:8443"),
            server(2, "us", "https://127.0.2.1:8443/"),
            server(3, "ap", ""),
            server(5, "", "https://x"),
        ];
        let expected = [("eu", "https://127.0.1.1:8443"), ("us", "https://127.0.2.1:8443")];
        assert_eq!(regions(&servers), expected.map(|(r, g)| (r.to_owned(), g.to_owned())));
    }
}
