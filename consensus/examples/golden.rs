//! Makes the golden data directory that `tests/golden.rs` opens for ever after:
//!
//! ```text
//! cargo run -p hanse-consensus --example golden -- consensus/tests/golden/level-3
//! ```
//!
//! To be run once for each feature level, by the version that introduces it; what it made is never made again.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a program for tests"
)]

#[path = "../tests/golden/describe.rs"]
mod describe;

use bytes::Bytes;
use describe::{Server, describe, until};
use hanse_api::resources::StoreLimits;
use hanse_consensus::{GROUPS, Node};
use hanse_state::machine::level::LEVEL;
use hanse_state::pb::command::restore_space::Part;
use hanse_state::pb::command::{LeaseGrant, RestoreBegin, RestoreEnd, RestoreRows, RestoreSpace};
use hanse_state::pb::{self, AlarmType, request_op::Request};
use hanse_state::{Access, Store};
use std::path::{Path, PathBuf};

fn put(key: &str, value: impl Into<Bytes>, lease: i64) -> pb::RequestOp {
    let put = pb::PutRequest {
        key: key.to_owned().into(),
        value: value.into(),
        lease,
        ..Default::default()
    };
    pb::RequestOp {
        request: Some(Request::RequestPut(put)),
    }
}

fn delete(key: &str) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest {
        key: key.to_owned().into(),
        ..Default::default()
    };
    pb::RequestOp {
        request: Some(Request::RequestDeleteRange(delete)),
    }
}

async fn txn(node: &Node, access: &Access, success: Vec<pb::RequestOp>) -> i64 {
    let txn = pb::TxnRequest {
        success,
        ..Default::default()
    };
    let store = node.store(access.space.group()).unwrap();
    store.txn(access, txn).await.unwrap().header.unwrap().revision
}

/// Everything that a store can hold, in one space.
async fn fill(node: &Node, access: &Access) {
    let store = node.store(access.space.group()).unwrap();
    for n in 0..20 {
        txn(
            node,
            access,
            vec![put(&format!("/keys/{:02}", n % 8), format!("value {n}"), 0)],
        )
        .await;
    }
    store.lease_grant(access, 77, 1_000_000_000).await.unwrap();
    txn(
        node,
        access,
        vec![put("/leased/a", "1", 77), put("/leased/b", "2", 77), delete("/keys/03")],
    )
    .await;
    let large = vec![b'L'; 20_000];
    let floor = txn(
        node,
        access,
        vec![put("/large", large, 0), put("/\u{0}odd\u{ff}", vec![0, 255, 10], 0)],
    )
    .await;
    store.compact(access, floor - 6).await.unwrap();
    txn(node, access, vec![put("/keys/01", "after the compaction", 0)]).await;
    txn(node, access, vec![delete("/keys/02"), delete("/leased/b")]).await;
}

/// Puts two keys and a lease into a space, as from a backup; the second space is left in the middle of it.
async fn restore(node: &Node) {
    let tenants = node.tenants();
    for (access, steps) in describe::restored().into_iter().zip([4, 3]) {
        fill(node, &access).await;
        let key = |key: &str, lease| pb::KeyValue {
            key: key.to_owned().into(),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            value: "from a backup".into(),
            lease,
        };
        let rows = |keys, leases| Part::Rows(RestoreRows { keys, leases });
        let lease = LeaseGrant {
            id: 78,
            ttl_seconds: 1_000_000_000,
        };
        let parts = [
            Part::Begin(RestoreBegin {}),
            rows(Vec::new(), vec![lease]),
            rows(vec![key("/a", 78), key("/b", 0)], Vec::new()),
            Part::End(RestoreEnd { keys: 2 }),
        ];
        for (step, part) in (0u64..).zip(parts).take(steps) {
            let part = Some(part);
            let command = RestoreSpace { id: 5, step, part };
            tenants.restore(access.space.tenant(), command).await.unwrap();
        }
    }
}

async fn first_run(dir: &Path) {
    let server = Server::start(dir).await;
    let node = &server.node;
    for group in GROUPS {
        let machine = node.store(group).unwrap();
        until("the feature level", || machine.machine().level() == LEVEL).await;
    }
    let tenants = node.tenants();
    tenants.set_fence("gold", 3).await.unwrap();
    let limits = StoreLimits {
        bytes: 64 << 20,
        keys: 5000,
        writes_per_second: 0,
    };
    tenants.set_limits("gold", limits).await.unwrap();
    for access in describe::spaces() {
        fill(node, &access).await;
    }
    tenants.drop_space("gone").await.unwrap();
    restore(node).await;
    // A handle on a store is one on the engine.
    drop(tenants);
    server.stop().await;
}

/// What the second run writes lies in the log of the engine, what the first one wrote in its tables.
async fn second_run(dir: &Path) -> String {
    let server = Server::start(dir).await;
    let silver = Access::tenant("silver");
    for n in 0..5 {
        txn(&server.node, &silver, vec![put("/second", format!("{n}"), 0)]).await;
    }
    let alarm = AlarmType::Nospace.into();
    server.node.tenants().set_alarm(&silver, 7, alarm, true).await.unwrap();
    let text = describe(&server.node).await;
    server.stop().await;
    text
}

/// What is of this machine or of this moment, and not needed.
fn tidy(dir: &Path) {
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let extra = ["LOG", "OPTIONS-", "LOCK"].iter().any(|start| name.starts_with(start));
        if path.is_dir() {
            tidy(&path);
        } else if extra {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[tokio::main]
async fn main() {
    let dir = PathBuf::from(std::env::args().nth(1).expect("the directory to make"));
    assert!(
        !dir.exists(),
        "{} exists: a golden directory is made once",
        dir.display()
    );
    std::fs::create_dir_all(&dir).unwrap();
    let data = dir.join("data");
    first_run(&data).await;
    let text = second_run(&data).await;
    tidy(&data);
    std::fs::write(dir.join("expected.txt"), &text).unwrap();
    println!("{text}");
}
