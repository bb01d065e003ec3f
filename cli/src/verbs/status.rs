//! `status`: regions, servers, agents and tenants at one glance.

use super::{list, print_document, tenant};
use crate::app::App;
use crate::error::{Kind, Result};
use crate::local::installation::Installation;
use crate::local::service::Service;
use crate::output::Format;
use crate::output::style::Paint;
use crate::output::table::Table;
use hanse_api::Timestamp;
use hanse_api::kinds::{ANNOTATION_REGION, CLUSTERS, REGIONS, SERVERS, VIRTUAL_CLUSTER_INSTANCES};
use serde::Serialize;
use serde_json::Value;

/// What is shown; with `-o json|yaml` as it is.
#[derive(Debug, Default, Serialize)]
struct Status {
    server: String,
    regions: Vec<Value>,
    servers: Vec<Value>,
    clusters: Vec<Value>,
    tenants: Vec<Value>,
}

/// `status`.
pub(crate) async fn status(app: &App, format: Format) -> Result<()> {
    let management = app.management()?;
    let gathered = futures::try_join!(
        management.list(&REGIONS, None),
        management.list(&SERVERS, None),
        management.list(&CLUSTERS, None),
        management.list(&VIRTUAL_CLUSTER_INSTANCES, None),
    );
    let (regions, servers, clusters, tenants) = match gathered {
        Ok(lists) => lists,
        Err(error) if error.kind() == Kind::Unreachable => {
            let local = local(app);
            return Err(if local.is_empty() { error } else { error.hint(local) });
        }
        Err(error) => return Err(error),
    };
    let server = management.http().base().to_string();
    let status = Status {
        server,
        regions,
        servers,
        clusters,
        tenants,
    };
    if print_document(&app.output, format, &status)? {
        return Ok(());
    }
    app.output.print(&render(
        &status,
        app.clock.wall(),
        format == Format::Wide,
        app.output.out,
    ))
}

/// What runs of this machine's installation, as a remedy where no gateway answers.
fn local(app: &App) -> String {
    let Ok(layout) = app.layout() else { return String::new() };
    let Ok(Some(installation)) = Installation::load(&layout) else {
        return String::new();
    };
    let services = Service::all(&layout, &installation.plan);
    let running: Vec<String> = services
        .iter()
        .filter(|s| s.running().is_some())
        .map(Service::title)
        .collect();
    if running.is_empty() {
        return "nothing of this machine's installation runs: `hanse up` starts it".to_owned();
    }
    format!(
        "of this machine's installation run: {}; `hanse up` starts the rest",
        running.join(", ")
    )
}

fn render(status: &Status, now: Timestamp, wide: bool, paint: Paint) -> String {
    let mut out = String::new();
    let mut section = |title: &str, table: Option<Table>, none: &str| {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!("{}\n", paint.bold(title)));
        match table {
            Some(table) => out.push_str(&table.render(paint)),
            None => out.push_str(&format!("{none}\n")),
        }
    };
    let some = |list: &[Value], table: Table| (!list.is_empty()).then_some(table);
    section("Regions", some(&status.regions, regions(&status.regions)), "none yet");
    section(
        "Servers",
        some(&status.servers, servers(&status.servers, wide)),
        "none yet",
    );
    section("Agents", some(&status.clusters, agents(status, wide)), "none yet");
    let tenants = list::table(&status.tenants, now, wide);
    section(
        "Tenants",
        some(&status.tenants, tenants),
        "none; `hanse create NAME` makes one",
    );
    out
}

fn regions(regions: &[Value]) -> Table {
    let mut table = Table::new(&["NAME", "COORDINATOR", "EPOCH"]);
    for region in regions {
        table.row(vec![
            tenant::name(region).to_owned(),
            tenant::text(region, "/status/coordinator").to_owned(),
            number(region, "/status/coordinatorEpoch"),
        ]);
    }
    table
}

/// One row per server and Raft group.
fn servers(servers: &[Value], wide: bool) -> Table {
    let mut heads = vec!["NAME", "REGION", "ONLINE", "GROUP", "ROLE", "TERM", "APPLIED", "LAG"];
    if wide {
        heads.extend(["LEADER", "REVISION", "VERSION", "GATEWAY"]);
    }
    let mut table = Table::new(&heads);
    for server in servers {
        let groups = server
            .pointer("/status/groups")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let groups = if groups.is_empty() { vec![Value::Null] } else { groups };
        for group in &groups {
            let mut row = vec![
                tenant::name(server).to_owned(),
                tenant::text(server, "/spec/region").to_owned(),
                yes_no(server, "/status/online"),
                group_name(group),
                tenant::text(group, "/role").to_owned(),
                number(group, "/term"),
                number(group, "/appliedIndex"),
                number(group, "/lag"),
            ];
            if wide {
                row.push(tenant::text(group, "/leader").to_owned());
                row.push(number(group, "/revision"));
                row.push(tenant::text(server, "/status/version").to_owned());
                row.push(tenant::text(server, "/spec/gateway").to_owned());
            }
            table.row(row);
        }
    }
    table
}

fn group_name(group: &Value) -> String {
    match group.get("group").and_then(Value::as_u64) {
        Some(0) => "council".to_owned(),
        Some(1) => "tenants".to_owned(),
        Some(n) => format!("group {n}"),
        None => String::new(),
    }
}

/// Servers that the cluster's agent is connected to, as they tell it. Sooner than the cluster's own status, which changes
/// only after a period of grace.
fn sessions<'a>(servers: &'a [Value], cluster: &str) -> Vec<&'a str> {
    let holds = |server: &&Value| {
        let agents = server.pointer("/status/agents").and_then(Value::as_array);
        agents.is_some_and(|agents| agents.iter().any(|agent| agent == cluster))
    };
    servers.iter().filter(holds).map(tenant::name).collect()
}

fn agents(status: &Status, wide: bool) -> Table {
    let mut heads = vec!["CLUSTER", "REGION", "ONLINE", "SESSIONS", "PHASE", "TENANTS"];
    if wide {
        heads.push("MESSAGE");
    }
    let mut table = Table::new(&heads);
    for cluster in &status.clusters {
        let name = tenant::name(cluster);
        let hosted = status
            .tenants
            .iter()
            .filter(|t| tenant::text(t, "/spec/clusterRef/cluster") == name)
            .count();
        let region = cluster["metadata"]["annotations"][ANNOTATION_REGION]
            .as_str()
            .unwrap_or_default();
        let sessions = sessions(&status.servers, name);
        let mut row = vec![
            name.to_owned(),
            region.to_owned(),
            if sessions.is_empty() { "no" } else { "yes" }.to_owned(),
            sessions.join(","),
            tenant::text(cluster, "/status/phase").to_owned(),
            hosted.to_string(),
        ];
        if wide {
            row.push(tenant::text(cluster, "/status/message").to_owned());
        }
        table.row(row);
    }
    table
}

fn number(object: &Value, pointer: &str) -> String {
    object
        .pointer(pointer)
        .filter(|v| v.is_number())
        .map(Value::to_string)
        .unwrap_or_default()
}

fn yes_no(object: &Value, pointer: &str) -> String {
    let on = object.pointer(pointer).and_then(Value::as_bool).unwrap_or(false);
    if on { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_glance() {
        let status = Status {
            server: "https://a".into(),
            regions: vec![
                json!({"metadata": {"name": "eu"}, "status": {"coordinator": "eu-1", "coordinatorEpoch": 7}}),
            ],
            servers: vec![
                json!({
                    "metadata": {"name": "eu-1"},
                    "spec": {"region": "eu"},
                    "status": {"online": true, "agents": ["eu"], "groups": [
                        {"group": 0, "role": "Leader", "term": 3, "appliedIndex": 90, "lag": 0},
                        {"group": 1, "role": "Follower", "term": 2, "appliedIndex": 1200, "lag": 4},
                    ]},
                }),
                json!({"metadata": {"name": "us-1"}, "spec": {"region": "us"}, "status": {"online": false}}),
            ],
            clusters: vec![
                json!({"metadata": {"name": "eu", "annotations": {ANNOTATION_REGION: "eu"}},
                                  "status": {"online": true, "phase": "Initialized"}}),
                json!({"metadata": {"name": "us", "annotations": {ANNOTATION_REGION: "us"}},
                                  "status": {"online": true, "phase": "Initialized"}}),
            ],
            tenants: vec![],
        };
        let text = render(&status, Timestamp::from_millis(0), false, Paint::new(false));
        let expected = "\
Regions
NAME   COORDINATOR   EPOCH
eu     eu-1          7

Servers
NAME   REGION   ONLINE   GROUP     ROLE       TERM   APPLIED   LAG
eu-1   eu       yes      council   Leader     3      90        0
eu-1   eu       yes      tenants   Follower   2      1200      4
us-1   us       no       -         -          -      -         -

Agents
CLUSTER   REGION   ONLINE   SESSIONS   PHASE         TENANTS
eu        eu       yes      eu-1       Initialized   0
us        us       no       -          Initialized   0

Tenants
none; `hanse create NAME` makes one
";
        assert_eq!(text, expected);
    }
}
