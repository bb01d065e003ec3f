//! What is asked of the stores, and what Hanse aims at beside etcd.

use crate::foreign::{self, Deed};
use crate::load::{Client, closed_loop};
use crate::watch;
use anyhow::{Context as _, Result, ensure};
use hanse_chaos_tests::bench::{Aim, Ask, Figures, Window};
use hanse_chaos_tests::store_cluster::Cluster;
use hanse_state::pb;
use hanse_state::pb::kv_client::KvClient;
use hanse_state::pb::request_op::Request;
use rand::Rng as _;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use tonic::Status;

/// Bytes of a value.
pub const VALUE: usize = 256;
/// Keys that puts, updates and reads choose from.
const KEYS: u64 = 100_000;
/// Keys that a list finds.
const LISTED: u64 = 10_000;
/// Puts in a transaction that fills; etcd's default bound is 128.
const BATCH: u64 = 100;
/// Transactions at once while filling.
const FILLERS: u64 = 8;

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    pub title: &'static str,
    pub nodes: usize,
    pub kind: Kind,
    pub clients: usize,
    pub aim: Aim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Put,
    /// The transaction by which kube-apiserver updates an object.
    Update,
    /// One key, linearizable.
    Range,
    /// 10,000 keys in one answer.
    List,
    /// Watchers of one prefix; events per second are given.
    Watch(u32),
    /// By etcd's own load.
    Foreign(Deed),
}

const fn aim(throughput: Option<f64>, p99: Option<f64>, cpu: Option<f64>) -> Aim {
    Aim {
        throughput,
        p99,
        cpu,
        memory: None,
    }
}

const fn work(title: &'static str, nodes: usize, kind: Kind, clients: usize, aim: Aim) -> Work {
    Work {
        title,
        nodes,
        kind,
        clients,
        aim,
    }
}

const NO_AIM: Aim = aim(None, None, None);
const NO_WORSE: Aim = aim(None, Some(1.0), None);

/// All of them, by number of members.
pub const WORKS: &[Work] = &[
    work("put, 1 client", 1, Kind::Put, 1, NO_AIM),
    work("put, 64 clients", 1, Kind::Put, 64, NO_AIM),
    work("put, 256 clients", 1, Kind::Put, 256, aim(Some(1.5), Some(1.0), None)),
    work("update, 256 clients", 1, Kind::Update, 256, NO_AIM),
    work("read, 64 clients", 1, Kind::Range, 64, NO_AIM),
    work(
        "list of 10,000, 4 clients",
        1,
        Kind::List,
        4,
        aim(Some(1.0), Some(1.0), None),
    ),
    work("100 watchers, 1,000/s", 1, Kind::Watch(1000), 100, NO_WORSE),
    work("1,000 watchers, 100/s", 1, Kind::Watch(100), 1000, NO_WORSE),
    work("benchmark put, 256 clients", 1, Kind::Foreign(Deed::Put), 256, NO_AIM),
    work(
        "benchmark txn-put, 256 clients",
        1,
        Kind::Foreign(Deed::TxnPut),
        256,
        NO_AIM,
    ),
    work("benchmark range, 64 clients", 1, Kind::Foreign(Deed::Range), 64, NO_AIM),
    work("put, 1 client", 3, Kind::Put, 1, NO_AIM),
    work(
        "put, 64 clients",
        3,
        Kind::Put,
        64,
        aim(Some(1.4), Some(0.5), Some(0.6)),
    ),
    work("put, 256 clients", 3, Kind::Put, 256, aim(Some(1.4), None, Some(0.6))),
    work("update, 256 clients", 3, Kind::Update, 256, aim(Some(1.5), None, None)),
    work("read, 64 clients", 3, Kind::Range, 64, aim(Some(1.5), None, None)),
    work(
        "list of 10,000, 4 clients",
        3,
        Kind::List,
        4,
        aim(Some(1.0), Some(1.0), None),
    ),
    work("100 watchers, 1,000/s", 3, Kind::Watch(1000), 100, NO_WORSE),
    work("1,000 watchers, 100/s", 3, Kind::Watch(100), 1000, NO_WORSE),
    work("benchmark put, 256 clients", 3, Kind::Foreign(Deed::Put), 256, NO_AIM),
    work(
        "benchmark txn-put, 256 clients",
        3,
        Kind::Foreign(Deed::TxnPut),
        256,
        NO_AIM,
    ),
    work("benchmark range, 64 clients", 3, Kind::Foreign(Deed::Range), 64, NO_AIM),
];

impl Work {
    /// `benchmark` is the program of etcd's own load.
    pub async fn run(&self, cluster: &Cluster, benchmark: &Path, window: Window) -> Result<Figures> {
        match self.kind {
            Kind::Foreign(deed) => foreign::run(benchmark, cluster, deed, self.clients, window.counted).await,
            Kind::Put => closed_loop(cluster, self.clients, window, Puts).await,
            Kind::Range => closed_loop(cluster, self.clients, window, Ranges).await,
            Kind::List => {
                fill(cluster, "/list/", LISTED).await?;
                closed_loop(cluster, self.clients, window, Lists).await
            }
            Kind::Update => {
                let updates = Updates {
                    share: KEYS / self.clients as u64,
                    seen: (0..self.clients).map(|_| Mutex::default()).collect(),
                };
                closed_loop(cluster, self.clients, window, updates).await
            }
            Kind::Watch(rate) => watch::run(cluster, self.clients, rate, window).await,
        }
    }
}

pub fn key(prefix: &str, number: u64) -> String {
    format!("{prefix}ns-{:04}/name-{number:010}", number % 1000)
}

pub fn value(rng: &mut impl rand::RngCore) -> Vec<u8> {
    let mut value = vec![0; VALUE];
    rng.fill_bytes(&mut value);
    value
}

pub fn put(key: String, value: Vec<u8>) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.to_owned().into(),
        ..Default::default()
    }
}

pub struct Puts;

impl Ask<Client> for Puts {
    type Error = Status;

    async fn ask(&self, client: &mut Client) -> Result<(), Status> {
        let key = key("/put/", client.rng.random_range(0..KEYS));
        let request = put(key, value(&mut client.rng));
        KvClient::new(client.channel.clone()).put(request).await.map(|_| ())
    }
}

struct Ranges;

impl Ask<Client> for Ranges {
    type Error = Status;

    async fn ask(&self, client: &mut Client) -> Result<(), Status> {
        let request = get(&key("/put/", client.rng.random_range(0..KEYS)));
        KvClient::new(client.channel.clone()).range(request).await.map(|_| ())
    }
}

struct Lists;

impl Ask<Client> for Lists {
    type Error = Status;

    async fn ask(&self, client: &mut Client) -> Result<(), Status> {
        let request = pb::RangeRequest {
            range_end: "/list0".into(),
            ..get("/list/")
        };
        let mut kv = KvClient::new(client.channel.clone()).max_decoding_message_size(usize::MAX);
        let found = kv.range(request).await?.into_inner().kvs.len();
        if found as u64 == LISTED {
            Ok(())
        } else {
            Err(Status::data_loss(format!("{found} keys instead of {LISTED}")))
        }
    }
}

/// Each client owns a share of the keys and remembers their revisions, as a controller's cache does.
struct Updates {
    share: u64,
    seen: Vec<Mutex<BTreeMap<u64, i64>>>,
}

impl Updates {
    fn remembered(&self, client: &Client, number: u64) -> Option<i64> {
        let seen = self.seen[client.number].lock();
        seen.unwrap_or_else(std::sync::PoisonError::into_inner)
            .get(&number)
            .copied()
    }

    fn remember(&self, client: &Client, number: u64, revision: i64) {
        let seen = self.seen[client.number].lock();
        seen.unwrap_or_else(std::sync::PoisonError::into_inner)
            .insert(number, revision);
    }
}

impl Ask<Client> for Updates {
    type Error = Status;

    async fn ask(&self, client: &mut Client) -> Result<(), Status> {
        let number = client.number as u64 * self.share + client.rng.random_range(0..self.share);
        let key = key("/put/", number);
        let mut kv = KvClient::new(client.channel.clone());
        let revision = match self.remembered(client, number) {
            Some(revision) => revision,
            None => {
                let found = kv.range(get(&key)).await?.into_inner();
                found.kvs.first().map_or(0, |kv| kv.mod_revision)
            }
        };
        let request = update(&key, revision, value(&mut client.rng));
        let reply = kv.txn(request).await?.into_inner();
        if !reply.succeeded {
            return Err(Status::aborted("the key changed although it has one owner"));
        }
        self.remember(client, number, reply.header.map_or(0, |header| header.revision));
        Ok(())
    }
}

/// Put if unchanged since `revision`, else get.
fn update(key: &str, revision: i64, value: Vec<u8>) -> pb::TxnRequest {
    let unchanged = pb::Compare {
        result: pb::compare::CompareResult::Equal as i32,
        target: pb::compare::CompareTarget::Mod as i32,
        key: key.to_owned().into(),
        target_union: Some(pb::compare::TargetUnion::ModRevision(revision)),
        ..Default::default()
    };
    let op = |request| vec![pb::RequestOp { request: Some(request) }];
    pb::TxnRequest {
        compare: vec![unchanged],
        success: op(Request::RequestPut(put(key.to_owned(), value))),
        failure: op(Request::RequestRange(get(key))),
    }
}

/// Writes `count` keys below `prefix`.
pub async fn fill(cluster: &Cluster, prefix: &'static str, count: u64) -> Result<()> {
    let fillers = (0..FILLERS).map(|filler| {
        let channel = cluster.any_channel(filler as usize);
        async move {
            let mut kv = KvClient::new(channel?);
            let mut rng: rand::rngs::SmallRng = rand::SeedableRng::seed_from_u64(filler);
            for first in (filler * BATCH..count).step_by((FILLERS * BATCH) as usize) {
                let numbers = first..count.min(first + BATCH);
                let puts = numbers.map(|n| pb::RequestOp {
                    request: Some(Request::RequestPut(put(key(prefix, n), value(&mut rng)))),
                });
                let request = pb::TxnRequest {
                    success: puts.collect(),
                    ..Default::default()
                };
                let reply = kv.txn(request).await.context("fill")?.into_inner();
                ensure!(reply.succeeded, "a transaction without conditions did not succeed");
            }
            Ok(())
        }
    });
    futures::future::try_join_all(fillers).await.map(|_| ())
}
