//! The two sides: kube-apiserver on etcd, which serves our kind as a custom resource, and `hanse server`.

use super::Programs;
use super::client::{Call, Connection, Target};
use crate::api_server::{self, ApiServer, definitions, make};
use crate::hanse_servers::{self, HanseServers};
use crate::store_cluster::{self, Cluster};
use anyhow::{Context as _, Result, ensure};
use kube::api::DynamicObject;
use serde_json::{Value, json};

/// Before the paths of the management API.
const MANAGEMENT: &str = "/kubernetes/management";
/// Where both serve the kind.
pub(super) const PROJECTS: &str = "/apis/management.loft.sh/v1/projects";

/// Whose servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// kube-apiserver and etcd.
    Kubernetes,
    /// `hanse server`.
    Hanse,
}

impl Peer {
    /// What tables call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kube-apiserver",
            Self::Hanse => "hanse server",
        }
    }
}

/// What runs; it ends with this. API servers go before their store.
enum Running {
    Kubernetes { servers: Vec<ApiServer>, store: Cluster },
    Hanse(HanseServers),
}

/// One side, which serves.
pub(super) struct Side {
    running: Running,
}

impl Side {
    /// Starts `nodes` servers of `peer`. Kubernetes gets the schema of the kind.
    pub(super) async fn start(peer: Peer, programs: &Programs, nodes: usize, schema: &Value) -> Result<Self> {
        let running = match peer {
            Peer::Hanse => Running::Hanse(hanse(programs, nodes).await?),
            Peer::Kubernetes => {
                let stores = store_cluster::Programs {
                    etcd: programs.etcd.clone(),
                    hanse: programs.hanse.clone(),
                    data: programs.data.clone(),
                };
                let store = Cluster::start(store_cluster::Peer::Etcd, &stores, nodes).await?;
                let mut servers = Vec::new();
                for _ in 0..nodes {
                    let mut server = ApiServer::start(&programs.kube_apiserver, &store, &[])?;
                    define(&mut server, schema).await?;
                    servers.push(server);
                }
                Running::Kubernetes { servers, store }
            }
        };
        let side = Self { running };
        for target in side.targets() {
            let mut connection = Connection::open(&target).await?;
            connection
                .send(Call::get(format!("{PROJECTS}?limit=1")))
                .await
                .context("the first list")?;
        }
        Ok(side)
    }

    /// Its servers, for clients.
    pub(super) fn targets(&self) -> Vec<Target> {
        match &self.running {
            Running::Hanse(servers) => targets(servers),
            Running::Kubernetes { servers, .. } => servers
                .iter()
                .map(|server| Target {
                    address: server.address,
                    ca_pem: server.ca_pem.clone(),
                    token: api_server::TOKEN.to_owned(),
                    prefix: "",
                })
                .collect(),
        }
    }

    /// Numbers of all its processes, those of the store as well.
    pub(super) fn processes(&self) -> Vec<u32> {
        match &self.running {
            Running::Hanse(servers) => servers.processes(),
            Running::Kubernetes { servers, store } => {
                let servers = servers.iter().map(ApiServer::process);
                servers.chain(store.processes()).collect()
            }
        }
    }
}

fn targets(servers: &HanseServers) -> Vec<Target> {
    let addresses = servers.addresses().into_iter();
    addresses
        .map(|address| Target {
            address,
            ca_pem: servers.ca_pem.clone(),
            token: hanse_servers::TOKEN.to_owned(),
            prefix: MANAGEMENT,
        })
        .collect()
}

async fn hanse(programs: &Programs, nodes: usize) -> Result<HanseServers> {
    let mut servers = HanseServers::start(&programs.hanse, &programs.data, nodes)?;
    let targets = targets(&servers);
    let ready = async |address| {
        let target = targets.iter().find(|target| target.address == address);
        let mut connection = Connection::open(target.context("a server of ours")?).await?;
        connection.send(Call::get(format!("{PROJECTS}?limit=1"))).await?;
        Ok(())
    };
    servers.settle(ready).await?;
    Ok(servers)
}

/// The schema of projects as our server publishes it, as a custom resource wants it.
pub(super) async fn schema(programs: &Programs) -> Result<Value> {
    let servers = hanse(programs, 1).await?;
    let targets = targets(&servers);
    let mut connection = Connection::open(targets.first().context("a server")?).await?;
    let path = "/openapi/v3/apis/management.loft.sh/v1".to_owned();
    let document = connection.send(Call::get(path)).await.context("read the schemas")?;
    let document: Value = serde_json::from_slice(&document).context("read the schemas")?;
    let mut schema = document["components"]["schemas"]["sh.loft.management.v1.Project"].clone();
    ensure!(
        schema["properties"]["spec"].is_object(),
        "there is no schema of projects"
    );
    schema["properties"]["metadata"] = json!({ "type": "object" });
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("x-kubernetes-group-version-kind");
    }
    Ok(schema)
}

async fn define(server: &mut ApiServer, schema: &Value) -> Result<()> {
    let kind = DynamicObject::new("projects.management.loft.sh", &definitions()).data(json!({ "spec": {
        "group": "management.loft.sh", "scope": "Cluster",
        "names": { "plural": "projects", "singular": "project", "kind": "Project", "listKind": "ProjectList" },
        "versions": [{ "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                       "schema": { "openAPIV3Schema": schema } }],
    } }));
    server
        .settle(async |client| {
            make(client, &definitions(), &kind).await?;
            let list = http::Request::get(PROJECTS).body(Vec::new())?;
            client.request_text(list).await?;
            Ok(())
        })
        .await
}
