//! `server list`, `token`, `join`, `move` and `remove`: who the servers are, and how they come and go (docs/design/0009-membership.md).

use super::{list, print_document, tenant};
use crate::app::App;
use crate::client::Management;
use crate::client::management::path as api_path;
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::output::Format;
use crate::output::progress::{Step, seconds};
use crate::output::secret;
use crate::output::table::Table;
use crate::server_args::{JoinArgs, RemoveArgs, ServerCommand, TokenCommand};
use hanse_api::Timestamp;
use hanse_api::kinds::{REGIONS, SERVERS};
use hanse_api::name::check_label;
use hanse_runtime::pki;
use hanse_runtime::supervisor::chain;
use hanse_server::config::TlsConfig;
use hanse_server::joining::{self, About, Joined};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two tries of a removal that is waited for.
const POLL: Duration = Duration::from_millis(500);
/// Port of tunnel endpoints, where none is named.
const TUNNEL_PORT: u16 = 8445;
/// Files of a server that joined, in its folder.
const FILES: [&str; 4] = ["ca.pem", "server.pem", "server-key.pem", "server.toml"];

/// The verbs. Gives the configuration by which this process is to go on as a server, if so.
pub(crate) async fn server(app: &App, command: &ServerCommand) -> Result<Option<PathBuf>> {
    match command {
        ServerCommand::List(output) => show(app, output.output).await.map(|()| None),
        ServerCommand::Token {
            command: TokenCommand::Create { region, ttl, output },
        } => token(app, region, *ttl, output.output).await.map(|()| None),
        ServerCommand::Join(args) => join(app, args).await,
        ServerCommand::Move { which, raft } => relocate(app, which, raft).await.map(|()| None),
        ServerCommand::Remove(args) => remove(app, args).await.map(|()| None),
    }
}

async fn show(app: &App, format: Format) -> Result<()> {
    let servers: Vec<Value> = app.management()?.list(&SERVERS, None).await?;
    if print_document(&app.output, format, &servers)? {
        return Ok(());
    }
    app.output
        .print(&table(&servers, app.clock.wall()).render(app.output.out))
}

fn table(servers: &[Value], now: Timestamp) -> Table {
    let heads = &[
        "NAME", "ID", "REGION", "SEAT", "STATE", "LEADS", "ADDRESS", "APPLIED", "LAG", "AGE",
    ];
    let mut table = Table::new(heads);
    for server in servers {
        let groups = server["status"]["groups"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let numbers = |field: &str| {
            let all: Vec<String> = groups.iter().map(|g| shown(&g[field])).collect();
            all.join("/")
        };
        let online = server["status"]["online"] == true;
        table.row(vec![
            tenant::name(server).to_owned(),
            shown(&server["spec"]["id"]),
            tenant::text(server, "/spec/region").to_owned(),
            tenant::text(server, "/status/seat").to_owned(),
            if online { "Online" } else { "Offline" }.to_owned(),
            leads(groups),
            match tenant::text(server, "/status/address") {
                "" => tenant::text(server, "/spec/raft").to_owned(),
                address => address.to_owned(),
            },
            numbers("appliedIndex"),
            numbers("lag"),
            list::object_age(server, now),
        ]);
    }
    table
}

fn shown(value: &Value) -> String {
    value.as_u64().map(|n| n.to_string()).unwrap_or_default()
}

/// Groups that a server leads, by their names.
fn leads(groups: &[Value]) -> String {
    let led = groups.iter().filter(|group| group["role"] == "Leader");
    let name = |group: &Value| match group["group"].as_u64() {
        Some(0) => "council".to_owned(),
        Some(1) => "tenants".to_owned(),
        other => format!("group-{}", other.unwrap_or_default()),
    };
    led.map(name).collect::<Vec<_>>().join(",")
}

/// The token alone goes to standard output, so that it can go on into a file.
async fn token(app: &App, region: &str, ttl: Option<Duration>, format: Format) -> Result<()> {
    check_label(region).map_err(|why| Error::usage(format!("region {region:?}: {why}")))?;
    let management = app.management()?;
    let mut body = json!({ "spec": {} });
    if let Some(life) = ttl {
        body["spec"]["ttlSeconds"] = life.as_secs().into();
    }
    let path = format!("{}/jointoken", api_path(&REGIONS, None, Some(region)));
    let made: Value = management.parse(&management.post(path, &body).await?)?;
    if print_document(&app.output, format, &made)? {
        return Ok(());
    }
    app.output.note(&format!(
        "a token for one server of region {region}, until {}; it is shown only now: keep it in a file of mode 0600",
        tenant::text(&made, "/status/expires")
    ));
    app.output.line(tenant::text(&made, "/status/token"))
}

/// Where the newcomer keeps what.
struct Folder<'a>(&'a Path);

impl Folder<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The server's key: the one of an earlier try, or a new one. It is written before anybody is asked, and never leaves.
    fn key(&self) -> Result<String> {
        let path = self.file(FILES[2]);
        if let Some(key) = files::read(&path)? {
            return Ok(key);
        }
        let made = pki::generate_key_pair().map_err(|e| Error::failed(format!("cannot make a key: {e}")))?;
        files::write(&path, made.key.as_bytes(), files::PRIVATE)?;
        Ok(made.key)
    }

    /// Writes what makes this a server; the configuration last.
    fn write(&self, args: &JoinArgs, joined: &Joined) -> Result<()> {
        let [ca, cert, key, config] = FILES.map(|name| self.file(name));
        files::write(&ca, joined.ca_pem.as_bytes(), files::PUBLIC)?;
        files::write(&cert, joined.cert_pem.as_bytes(), files::PUBLIC)?;
        let tls = TlsConfig {
            ca,
            cert,
            key,
            ca_key: absolute(&args.ca_key)?,
            seal_key: absolute(&args.seal_key)?,
        };
        let everywhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let listen = args.listen.or_else(|| args.address.parse().ok()).unwrap_or(everywhere);
        let made = joining::config(joined, tls, &self.file("data"), listen);
        let made = made.map_err(|e| Error::failed(chain(&e)))?;
        let text = toml::to_string(&made).map_err(|e| Error::failed(format!("cannot write the configuration: {e}")))?;
        let text = format!("# Written by `hanse server join`. Check it with `hanse config check FILE`.\n{text}");
        files::write(&config, text.as_bytes(), files::PUBLIC)
    }
}

fn about(args: &JoinArgs) -> About {
    let host = match args.address.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]"),
        Err(_) => args.address.clone(),
    };
    About {
        name: args.name.clone(),
        gateway: format!("https://{host}:{}", args.gateway_port),
        raft: format!("{host}:{}", args.raft_port),
        tunnel: format!("{host}:{}", args.tunnel_port),
        version: String::new(),
    }
}

/// `host:port` of a tunnel endpoint.
fn endpoint(at: &str) -> String {
    if let Ok(ip) = at.parse::<Ipv6Addr>() {
        return format!("[{ip}]:{TUNNEL_PORT}");
    }
    let has_port = at.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if has_port && !at.ends_with(']') {
        at.to_owned()
    } else {
        format!("{at}:{TUNNEL_PORT}")
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("find", path, &e))
}

async fn join(app: &App, args: &JoinArgs) -> Result<Option<PathBuf>> {
    check_label(&args.name).map_err(|why| Error::usage(format!("name {:?}: {why}", args.name)))?;
    let dir = absolute(&args.dir)?;
    let folder = Folder(&dir);
    let config_file = folder.file(FILES[3]);
    if config_file.exists() {
        let message = format!("{} is there: this server has joined already", config_file.display());
        let hint = format!("start it: `hanse server --config {}`", config_file.display());
        return Err(Error::new(Kind::Conflict, message).hint(hint));
    }
    let ca_key = secret::from_file("the CA key", &args.ca_key)?;
    // Its content is read once the system has said what belongs to it.
    secret::check_file("the seal key", &args.seal_key)?;
    let token = if args.token_file == Path::new("-") {
        secret::from_stdin("the token")?
    } else {
        secret::from_file("the token", &args.token_file)?
    };
    files::create_dir(&dir, true)?;
    let key = folder.key()?;
    let mut step = Step::start(app.output, &app.clock, &format!("join as {}", args.name));
    let at = endpoint(&args.at);
    step.say(&format!("asking {at}"));
    let asked = joining::ask(&at, token.trim(), &key, about(args), &app.clock).await;
    let again = "the same command with the same folder may be tried again as long as the token holds";
    let joined = asked.map_err(|e| Error::failed(chain(&e)).hint(again))?;
    joining::check_keys(&joined, &ca_key, &args.seal_key).map_err(|e| Error::failed(chain(&e)).hint(again))?;
    folder.write(args, &joined)?;
    let place = &joined.place;
    step.done(&format!(
        "id {}, region {}, {} members; it votes once it has the data",
        place.id,
        place.region,
        place.members.len()
    ));
    if !place.oidc.is_empty() {
        app.output.note(&format!(
            "the other servers let people log in by {}: copy their [[oidc]] sections into {}",
            place.oidc.join(", "),
            config_file.display()
        ));
    }
    if args.start {
        return Ok(Some(config_file));
    }
    app.output.note(&format!(
        "start it: `hanse server --config {}`; `hanse server list` shows how far it is",
        config_file.display()
    ));
    Ok(None)
}

/// The server that is called so, or has this id.
async fn find(management: &Management, wanted: &str) -> Result<Value> {
    let servers: Vec<Value> = management.list(&SERVERS, None).await?;
    let by_name = servers.iter().find(|server| tenant::name(server) == wanted);
    let by_id = || servers.iter().find(|server| shown(&server["spec"]["id"]) == wanted);
    by_name.or_else(by_id).cloned().ok_or_else(|| {
        let names: Vec<&str> = servers.iter().map(tenant::name).collect();
        Error::not_found(format!("there is no server {wanted:?}")).hint(format!("there are: {}", names.join(", ")))
    })
}

async fn relocate(app: &App, which: &str, raft: &str) -> Result<()> {
    let management = app.management()?;
    let name = tenant::name(&find(&management, which).await?).to_owned();
    let path = format!("{}/move", api_path(&SERVERS, None, Some(&name)));
    management.post(path, &json!({ "spec": { "raft": raft } })).await?;
    app.output.note(&format!(
        "the others now reach {name} at {raft}; let its configuration say so too ([raft] listen and its own [[member]]), and start it again"
    ));
    app.output.line(&format!("{name} moved"))
}

async fn remove(app: &App, args: &RemoveArgs) -> Result<()> {
    let management = app.management()?;
    let name = tenant::name(&find(&management, &args.which).await?).to_owned();
    let mut step = Step::start(app.output, &app.clock, &format!("remove {name}"));
    let end = app.clock.mono() + args.timeout.timeout;
    loop {
        let outcome = management.delete(&SERVERS, None, &name).await;
        let passing = |error: &Error| error.kind().retryable();
        match outcome {
            // One that is gone when it is asked again went by the try before.
            Ok(_) => break,
            Err(error) if !args.wait || !passing(&error) => return Err(error),
            Err(error) if app.clock.mono() >= end => {
                let message = format!(
                    "{name} is still a member after {}: {error}",
                    seconds(args.timeout.timeout)
                );
                return Err(Error::new(Kind::TimedOut, message));
            }
            Err(error) => step.say(&error.to_string()),
        }
        app.clock.sleep(POLL).await;
    }
    step.done("no member any more; its process stops by itself");
    app.output.line(&format!("{name} removed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::style::Paint;

    #[test]
    fn servers_with_seats_leads_and_lags() {
        let now = Timestamp::from_millis(1_700_000_060_000);
        let servers = [
            json!({
                "metadata": { "name": "eu-1", "creationTimestamp": "2023-11-14T22:13:20Z" },
                "spec": { "id": 1, "region": "eu", "raft": "old:1" },
                "status": { "online": true, "seat": "Voter", "address": "h:8444", "groups": [
                    { "group": 0, "role": "Leader", "appliedIndex": 70, "lag": 0 },
                    { "group": 1, "role": "Leader", "appliedIndex": 9, "lag": 0 }] },
            }),
            json!({
                "metadata": { "name": "us-1" },
                "spec": { "id": 4, "region": "us", "raft": "u:8444" },
                "status": { "online": false, "seat": "AwaitingVote" },
            }),
        ];
        let text = table(&servers, now).render(Paint::new(false));
        let expected = "NAME   ID   REGION   SEAT           STATE     LEADS             ADDRESS   APPLIED   LAG   AGE\n\
                        eu-1   1    eu       Voter          Online    council,tenants   h:8444    70/9      0/0   60s\n\
                        us-1   4    us       AwaitingVote   Offline   -                 u:8444    -         -     -\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn endpoints() {
        for (at, expected) in [
            ("eu.example.com", "eu.example.com:8445"),
            ("127.0.1.1:9", "127.0.1.1:9"),
            ("::1", "[::1]:8445"),
            ("[::1]:7", "[::1]:7"),
            ("[::1]", "[::1]:8445"),
        ] {
            assert_eq!(endpoint(at), expected);
        }
    }
}
