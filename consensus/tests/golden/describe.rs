//! A server on one data directory, and everything that can be asked of its stores, as text. Shared by the program that makes the
//! golden directory and the test that opens it, so that both mean the same.

use hanse_consensus::{GROUPS, GroupId, Member, Node, NodeConfig, NodeParts, ReplicatedStore, Settings, TlsPem, Trust};
use hanse_runtime::clock::{Clock, SystemClock, timeout};
use hanse_runtime::rng::SystemRng;
use hanse_runtime::supervisor::Supervisor;
use hanse_state::engine::{LogWriter, RocksEngine, RocksOptions, WriterOptions};
use hanse_state::pb;
use hanse_state::{Access, Store, StoreError, WatchItem, WatchRequest};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// For whatever should happen soon.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A server, alone.
pub(crate) struct Server {
    pub(crate) node: Node,
    writer: LogWriter,
    supervisor: Supervisor,
}

impl Server {
    /// Opens a data directory, forms a cluster of one in it if it is empty, and waits until it can write.
    pub(crate) async fn start(dir: &Path) -> Self {
        let raft = dir.join("raft");
        std::fs::create_dir_all(&raft).unwrap();
        // Small memtables, so that the files are small.
        let options = RocksOptions {
            memtable: 1 << 20,
            ..RocksOptions::default()
        };
        let engine = RocksEngine::open(&dir.join("store"), &options).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let member = Member {
            name: "golden".to_owned(),
            address: "127.0.0.1:1".to_owned(),
        };
        let config = NodeConfig {
            id: 7,
            name: member.name.clone(),
            listen: member.address.clone(),
            data_dir: raft,
            tls: TlsPem {
                ca: String::new(),
                cert: String::new(),
                key: String::new(),
            },
            members: BTreeMap::from([(7, member)]),
            addresses: BTreeMap::new(),
            settings: Settings {
                trust: Trust::Open,
                ..Settings::default()
            },
            version: "golden".to_owned(),
        };
        let (supervisor, writer) = (
            Supervisor::default(),
            LogWriter::start(Arc::new(engine), WriterOptions::default()).unwrap(),
        );
        let parts = NodeParts {
            writer: writer.clone(),
            supervisor: supervisor.clone(),
            clock: SystemClock::shared(),
            rng: SystemRng::shared(),
            listener: Some(listener),
        };
        let node = Node::start(config, parts).await.unwrap();
        node.initialize(SOON).await.unwrap();
        node.wait_for_leaders(SOON).await.unwrap();
        Self {
            node,
            writer,
            supervisor,
        }
    }

    /// Ends it, so that nothing of it is open any more.
    pub(crate) async fn stop(self) {
        let Self {
            node,
            writer,
            supervisor,
        } = self;
        supervisor.shut_down(Duration::from_secs(10)).await;
        drop(node);
        let engine = Arc::downgrade(writer.engine());
        drop(writer);
        until("the engine is closed", || engine.strong_count() == 0).await;
    }
}

/// Waits for something that must come true soon.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let clock = SystemClock::new();
    let wait = async {
        while !holds() {
            clock.sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(&clock, SOON, wait).await.is_ok(), "{what}: not within {SOON:?}");
}

/// The spaces of the golden directory.
pub(crate) fn spaces() -> [Access; 4] {
    [
        Access::registry(),
        Access::tenant("gold"),
        Access::tenant("silver"),
        Access::tenant("gone"),
    ]
}

/// Spaces that were put back from a backup, wholly and in part; those of feature level 2 have none.
pub(crate) fn restored() -> [Access; 2] {
    [Access::tenant("again"), Access::tenant("closed")]
}

/// All that can be asked of a server without changing it.
pub(crate) async fn describe(node: &Node) -> String {
    let mut text = String::new();
    for group in GROUPS {
        let store = node.store(group).unwrap();
        writeln!(
            text,
            "group {group} revision {} level {}",
            store.revision(),
            store.machine().level()
        )
        .unwrap();
    }
    for member in node.roster().voters {
        writeln!(text, "voter {member}").unwrap();
    }
    for access in spaces() {
        let group = access.space.group();
        let store = node.store(group).unwrap();
        space(&mut text, &store, &access).await;
    }
    for access in restored() {
        let store = node.tenants();
        let machine = store.machine();
        let keys = machine.usage(&access).unwrap().live_keys;
        match machine.check_open(&access) {
            Ok(()) if keys == 0 => {}
            Ok(()) => space(&mut text, &store, &access).await,
            Err(StoreError::Restoring(_)) => writeln!(text, "\nspace closed with {keys} keys").unwrap(),
            Err(error) => panic!("{error}"),
        }
    }
    text
}

async fn space(text: &mut String, store: &ReplicatedStore, access: &Access) {
    let name = if access.space.group() == GroupId::COUNCIL {
        "registry"
    } else {
        access.space.tenant()
    };
    let hash = match store.hash(access).await {
        Ok(hash) => hash,
        Err(StoreError::Fenced { .. }) => {
            writeln!(text, "\nspace {name}: dropped").unwrap();
            return;
        }
        Err(error) => panic!("{name}: {error}"),
    };
    let usage = store.machine().usage(access).unwrap();
    writeln!(text, "\nspace {name} hash {:016x} floor {}", hash.hash, hash.floor).unwrap();
    writeln!(text, "live keys {} bytes {}", usage.live_keys, usage.live_bytes).unwrap();
    let limits = usage.limits;
    if !limits.is_none() {
        writeln!(
            text,
            "limits {} {} {}",
            limits.bytes, limits.keys, limits.writes_per_second
        )
        .unwrap();
    }
    for alarm in store.machine().alarms(access).unwrap() {
        writeln!(text, "alarm {} of {}", alarm.alarm, alarm.member_id).unwrap();
    }
    for id in store.leases(access).await.unwrap() {
        let lease = store.lease_time_to_live(access, id, true).await.unwrap();
        writeln!(text, "lease {id} of {} s: {:?}", lease.granted_ttl, lease.keys).unwrap();
    }
    let all = pb::RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        ..Default::default()
    };
    keys(text, "now", &store.range(access, all.clone()).await.unwrap().kvs);
    let oldest = hash.floor.max(2);
    let then = pb::RangeRequest {
        revision: oldest,
        ..all
    };
    keys(text, "at the floor", &store.range(access, then).await.unwrap().kvs);
    history(text, store, access, oldest).await;
}

fn keys(text: &mut String, when: &str, keys: &[pb::KeyValue]) {
    writeln!(text, "keys {when}:").unwrap();
    for kv in keys {
        let pb::KeyValue {
            key,
            create_revision,
            mod_revision,
            version,
            lease,
            value,
        } = kv;
        writeln!(
            text,
            "  {key:?} {create_revision} {mod_revision} {version} {lease} {}",
            short(value)
        )
        .unwrap();
    }
}

fn short(value: &[u8]) -> String {
    if value.len() <= 40 {
        return format!("{:?}", bytes::Bytes::copy_from_slice(value));
    }
    // FNV-1a, written out: what compares versions must not change with a library.
    let sum = value.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{} bytes {sum:016x}", value.len())
}

async fn history(text: &mut String, store: &ReplicatedStore, access: &Access, from: i64) {
    let request = WatchRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: from,
        prev_kv: true,
        ..WatchRequest::default()
    };
    let mut watch = store.watch(access, request).await.unwrap();
    let clock = SystemClock::new();
    writeln!(text, "events:").unwrap();
    // A watch that says how far it is has said everything before.
    while watch.progress().is_none() {
        // It may have nothing to say although it is not done: then it is asked again.
        let Ok(item) = timeout(&clock, Duration::from_millis(200), watch.next()).await else {
            continue;
        };
        match item.unwrap() {
            WatchItem::Events { revision, events } => {
                for event in events {
                    let key = event.kv.map(|kv| kv.key).unwrap_or_default();
                    let before = event.prev_kv.map(|kv| kv.mod_revision);
                    writeln!(text, "  {revision} {} {key:?} {before:?}", event.r#type).unwrap();
                }
            }
            WatchItem::Progress { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}
