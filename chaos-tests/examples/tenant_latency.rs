//! What the way through the gateway costs: the same requests to one tenant's API server through a context that
//! `hanse connect` made, and straight to it with the keys that its agent keeps, in turns, in one run.
//!
//! ```text
//! cargo run --release -p hanse-chaos-tests --example tenant_latency -- HOME CONTEXT [REQUESTS]
//! ```
//!
//! HOME is the installation's; the kubeconfig is found as kubectl does. One client on each side, with as many
//! connections as there are requests at once.

#![allow(missing_docs, reason = "a program")]

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Requests of each kind to each side, unless told otherwise.
const REQUESTS: usize = 1000;
/// Requests at once on each side.
const CONCURRENCY: [usize; 2] = [1, 16];
/// Requests of each worker before it counts: connections are made, caches filled.
const WARM_UP: usize = 20;
/// Objects that LIST finds, besides the one that Kubernetes puts into every namespace.
const LISTED: usize = 100;
/// Bytes of each object's data.
const DATA: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Version,
    Get,
    List,
    Update,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Version, Self::Get, Self::List, Self::Update];

    const fn title(self) -> &'static str {
        match self {
            Self::Version => "GET /version, no store",
            Self::Get => "GET one ConfigMap",
            Self::List => "LIST 100 ConfigMaps",
            Self::Update => "PUT one ConfigMap",
        }
    }
}

/// One worker's requests on one side.
struct Side {
    client: Client,
    maps: Api<ConfigMap>,
    own: ConfigMap,
    times: Vec<Duration>,
}

impl Side {
    async fn new(client: &Client, namespace: &str, name: &str) -> Result<Self> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let own = match maps.get_opt(name).await? {
            Some(own) => own,
            None => maps.create(&PostParams::default(), &config_map(name)).await?,
        };
        Ok(Self {
            client: client.clone(),
            maps,
            own,
            times: Vec::new(),
        })
    }

    async fn ask(&mut self, kind: Kind, name: &str) -> Result<()> {
        let begun = Instant::now();
        match kind {
            Kind::Version => drop(self.client.apiserver_version().await?),
            Kind::Get => drop(self.maps.get(name).await?),
            Kind::List => {
                let found = self.maps.list(&ListParams::default()).await?.items.len();
                ensure!(found >= LISTED, "LIST found only {found} objects");
            }
            Kind::Update => {
                let data = self.own.data.get_or_insert_default();
                data.insert("changed".into(), self.times.len().to_string());
                self.own = self.maps.replace(name, &PostParams::default(), &self.own).await?;
            }
        }
        self.times.push(begun.elapsed());
        Ok(())
    }
}

fn config_map(name: &str) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    map.data = Some(BTreeMap::from([("data".to_owned(), "x".repeat(DATA))]));
    map
}

async fn client(kubeconfig: Kubeconfig, context: Option<&str>) -> Result<Client> {
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..Default::default()
    };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    Client::try_from(config.context("use the kubeconfig")?).context("make a client")
}

async fn cluster_id(client: &Client) -> Result<String> {
    let all: Api<Namespace> = Api::all(client.clone());
    let uid = all
        .get("kube-system")
        .await
        .context("ask who the cluster is")?
        .metadata
        .uid;
    uid.context("the namespace kube-system has no uid")
}

/// The client of the same cluster with keys from an agent's folder: those that its simulated nodes use.
async fn direct(home: &Path, wanted: &str) -> Result<Client> {
    for region in std::fs::read_dir(home.join("regions")).context("read HOME/regions")? {
        let Ok(tenants) = std::fs::read_dir(region?.path().join("agent/tenants")) else {
            continue;
        };
        for tenant in tenants {
            let path = tenant?.path().join("conf/kwok.kubeconfig");
            let Ok(kubeconfig) = Kubeconfig::read_from(&path) else {
                continue;
            };
            let client = client(kubeconfig, None).await?;
            // One that does not run is not the one.
            if cluster_id(&client).await.is_ok_and(|id| id == wanted) {
                return Ok(client);
            }
        }
    }
    bail!("no agent of {} runs this tenant with simulated nodes", home.display())
}

fn quantile(times: &[Duration], per_cent: usize) -> f64 {
    let at = (times.len() * per_cent / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// `requests` of `kind` to each side by `workers` at once, in turns; the times of each, sorted.
async fn measure(
    sides: [&Client; 2],
    namespace: &str,
    kind: Kind,
    workers: usize,
    requests: usize,
) -> Result<[Vec<Duration>; 2]> {
    let each = requests.div_ceil(workers);
    let worker = async |number: usize| -> Result<[Vec<Duration>; 2]> {
        // Of its own, so that no two updates are in each other's way.
        let names = ["gateway", "direct"].map(|side| format!("{side}-{number}"));
        let mut sides = [
            Side::new(sides[0], namespace, &names[0]).await?,
            Side::new(sides[1], namespace, &names[1]).await?,
        ];
        for turn in 0..WARM_UP + each {
            if turn == WARM_UP {
                sides.iter_mut().for_each(|side| side.times.clear());
            }
            for which in [turn % 2, (turn + 1) % 2] {
                sides[which].ask(kind, &names[which]).await?;
            }
        }
        Ok(sides.map(|side| side.times))
    };
    let all = try_join_all((0..workers).map(worker)).await?;
    let mut times = [Vec::new(), Vec::new()];
    for [gateway, direct] in all {
        times[0].extend(gateway);
        times[1].extend(direct);
    }
    times.iter_mut().for_each(|times| times.sort_unstable());
    Ok(times)
}

async fn table(gateway: &Client, direct: &Client, namespace: &str, requests: usize) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(direct.clone(), namespace);
    for number in 0..LISTED {
        maps.create(&PostParams::default(), &config_map(&format!("listed-{number}")))
            .await?;
    }
    println!("milliseconds, {requests} requests each\n");
    println!("| request | at once | gateway p50 | p99 | direct p50 | p99 | p50: more | ratio | p99: ratio |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for workers in CONCURRENCY {
        for kind in Kind::ALL {
            let [through, straight] = measure([gateway, direct], namespace, kind, workers, requests).await?;
            let [a50, a99] = [50, 99].map(|q| quantile(&through, q));
            let [b50, b99] = [50, 99].map(|q| quantile(&straight, q));
            let (title, more) = (kind.title(), a50 - b50);
            println!(
                "| {title} | {workers} | {a50:.2} | {a99:.2} | {b50:.2} | {b99:.2} | {more:.2} | {:.2} | {:.2} |",
                a50 / b50,
                a99 / b99,
            );
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: tenant_latency HOME CONTEXT [REQUESTS]";
    let (home, context) = (args.next().context(usage)?, args.next().context(usage)?);
    let requests = args.next().map_or(Ok(REQUESTS), |text| text.parse()).context(usage)?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    ensure!(provider.install_default().is_ok(), "a TLS provider is set already");
    let gateway = client(Kubeconfig::read().context("read the kubeconfig")?, Some(&context)).await?;
    let direct = direct(Path::new(&home), &cluster_id(&gateway).await?).await?;
    let namespaces: Api<Namespace> = Api::all(direct.clone());
    let mut namespace = Namespace::default();
    let name = format!("tenant-latency-{}", std::process::id());
    namespace.metadata.name = Some(name.clone());
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .context("create a namespace")?;
    let outcome = table(&gateway, &direct, &name, requests).await;
    let removed = namespaces.delete(&name, &DeleteParams::background()).await;
    outcome.and(removed.map(|_| ()).context("remove the namespace"))
}
