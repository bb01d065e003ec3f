//! What one tenant's writes cost another: three servers in one process, real Raft over TLS on loopback, RocksDB on disk. A quiet
//! tenant writes now and then, first alone, then beside one that writes as fast as it is let.
//!
//! ```text
//! cargo run --release -p hanse-consensus --example noisy_neighbour -- [SECONDS] [NOISY_WRITERS] [WINDOW] [SHARE]
//! ```
//!
//! A SHARE that is given stays as it is. A huge WINDOW and SHARE show what it was like without turns.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a program that measures"
)]

use hanse_api::Timestamp;
use hanse_consensus::{GroupId, Member, Node, NodeConfig, NodeId, NodeParts, ReplicatedStore, Settings, TlsPem, fair};
use hanse_runtime::clock::{Clock, SystemClock};
use hanse_runtime::pki::{Ca, LeafSpec};
use hanse_runtime::rng::SystemRng;
use hanse_runtime::supervisor::Supervisor;
use hanse_state::engine::{LogWriter, RocksEngine, RocksOptions, WriterOptions};
use hanse_state::pb::{self, request_op::Request};
use hanse_state::{Access, Store};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

/// Between two writes of the quiet tenant.
const PAUSE: Duration = Duration::from_millis(10);
const VALUE: usize = 256;
const LIMIT: Duration = Duration::from_secs(30);
const WARM_UP: Duration = Duration::from_secs(2);

fn certificate(ca: &Ca, name: &str, now: Timestamp) -> TlsPem {
    let spec = LeafSpec {
        common_name: name.to_owned(),
        uris: vec![format!("hanse://server/{name}")],
        ips: vec![Ipv4Addr::LOCALHOST.into()],
        client: true,
        server: true,
        days: 1,
        ..Default::default()
    };
    let pair = ca.issue(&spec, now).unwrap();
    TlsPem {
        ca: ca.cert_pem().to_owned(),
        cert: pair.cert,
        key: pair.key,
    }
}

/// Three servers.
async fn servers(dir: &Path, settings: Settings, supervisor: &Supervisor) -> Vec<Node> {
    let now = SystemClock::new().wall();
    let ca = Ca::generate("noisy-neighbour", 1, now).unwrap();
    let mut listeners = Vec::new();
    let mut members: BTreeMap<NodeId, Member> = BTreeMap::new();
    for id in 1..=3 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let name = format!("s{id}");
        members.insert(id, Member { name, address });
        listeners.push(listener);
    }
    let mut nodes = Vec::new();
    for ((id, member), listener) in members.clone().into_iter().zip(listeners) {
        let data_dir = dir.join(&member.name);
        std::fs::create_dir(&data_dir).unwrap();
        let engine = RocksEngine::open(&data_dir.join("db"), &RocksOptions::default()).unwrap();
        let config = NodeConfig {
            id,
            tls: certificate(&ca, &member.name, now),
            name: member.name,
            listen: member.address,
            data_dir,
            members: members.clone(),
            addresses: BTreeMap::new(),
            settings: settings.clone(),
            version: "measured".to_owned(),
        };
        let parts = NodeParts {
            writer: LogWriter::start(Arc::new(engine), WriterOptions::default()).unwrap(),
            supervisor: supervisor.clone(),
            clock: SystemClock::shared(),
            rng: SystemRng::shared(),
            listener: Some(listener),
        };
        nodes.push(Node::start(config, parts).await.unwrap());
    }
    for formed in futures::future::join_all(nodes.iter().map(|node| node.initialize(LIMIT))).await {
        formed.unwrap();
    }
    for node in &nodes {
        node.wait_for_leaders(LIMIT).await.unwrap();
    }
    nodes
}

async fn put(store: &ReplicatedStore, access: &Access, key: String) {
    let put = pb::PutRequest {
        key: key.into(),
        value: vec![b'v'; VALUE].into(),
        ..Default::default()
    };
    let op = pb::RequestOp {
        request: Some(Request::RequestPut(put)),
    };
    let txn = pb::TxnRequest {
        success: vec![op],
        ..Default::default()
    };
    store.txn(access, txn).await.unwrap();
}

/// Times of the quiet tenant's writes, sorted.
async fn quiet(store: &ReplicatedStore, clock: &dyn Clock, length: Duration) -> Vec<Duration> {
    let access = Access::tenant("quiet");
    let end = clock.mono() + length;
    let mut times = Vec::new();
    while clock.mono() < end {
        let start = clock.mono();
        put(store, &access, format!("k{}", times.len() % 100)).await;
        times.push(clock.mono().saturating_sub(start));
        clock.sleep(PAUSE).await;
    }
    times.sort();
    times
}

/// The time, in milliseconds, that so many of a hundred were faster than.
fn at(times: &[Duration], percent: usize) -> f64 {
    let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

fn show(name: &str, times: &[Duration]) {
    let (p50, p90, p99) = (at(times, 50), at(times, 90), at(times, 99));
    let count = times.len();
    println!("quiet tenant {name:7} {count:6} writes  p50 {p50:7.2} ms  p90 {p90:7.2} ms  p99 {p99:7.2} ms");
}

struct Noise {
    stop: AtomicBool,
    count: AtomicU64,
}

async fn noise(store: &ReplicatedStore, noise: &Noise, writers: usize) {
    let writers = (0..writers).map(|writer| async move {
        let access = Access::tenant("noisy");
        while !noise.stop.load(Ordering::Relaxed) {
            let n = noise.count.fetch_add(1, Ordering::Relaxed);
            put(store, &access, format!("k{writer}-{}", n % 1000)).await;
        }
    });
    futures::future::join_all(writers).await;
}

#[tokio::main]
async fn main() {
    let given: Vec<usize> = std::env::args().skip(1).map(|word| word.parse().unwrap()).collect();
    let or = |index: usize, default: usize| given.get(index).copied().unwrap_or(default);
    let (seconds, writers) = (or(0, 10), or(1, 256));
    let usual = fair::Limits::default();
    let turns = fair::Limits {
        window: or(2, usual.window),
        share: or(3, usual.share),
        adapts: given.len() < 4,
        ..usual
    };
    let settings = Settings {
        turns,
        ..Settings::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let (supervisor, clock) = (Supervisor::default(), SystemClock::shared());
    let nodes = servers(dir.path(), settings, &supervisor).await;
    // Both talk to the leader, where they meet.
    let leads = |node: &&Node| node.leadership(GroupId::TENANTS).is_some_and(|seen| seen.borrow().here);
    let store = nodes.iter().find(leads).unwrap().tenants();
    let length = Duration::from_secs(seconds as u64);
    quiet(&store, clock.as_ref(), WARM_UP).await;
    let alone = quiet(&store, clock.as_ref(), length).await;
    let loud = Noise {
        stop: AtomicBool::new(false),
        count: AtomicU64::new(0),
    };
    let measured = async {
        quiet(&store, clock.as_ref(), WARM_UP).await;
        let before = loud.count.load(Ordering::Relaxed);
        let beside = quiet(&store, clock.as_ref(), length).await;
        let writes = loud.count.load(Ordering::Relaxed) - before;
        loud.stop.store(true, Ordering::Relaxed);
        (beside, writes as f64 / length.as_secs_f64())
    };
    let ((), (beside, rate)) = tokio::join!(noise(&store, &loud, writers), measured);
    let adapts = if turns.adapts { " at first" } else { "" };
    println!(
        "window {} share {}{adapts} noisy writers {writers}",
        turns.window, turns.share
    );
    show("alone", &alone);
    show("beside", &beside);
    let (half, most) = (at(&beside, 50) / at(&alone, 50), at(&beside, 99) / at(&alone, 99));
    println!("noisy tenant {rate:.0} writes/s; the quiet one's p50 {half:.1} and p99 {most:.1} times its quiet value");
    supervisor.shut_down(Duration::from_secs(5)).await;
}
