//! Data directories of earlier versions open and hold what they held: keys, history, leases, limits, alarms, fences and hashes.
//! They were made by `examples/golden.rs`, one for each feature level, and are never made again.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "test code")]

#[path = "golden/describe.rs"]
mod describe;

use describe::{Server, describe, until};
use hanse_consensus::GROUPS;
use hanse_state::machine::level::LEVEL;
use hanse_state::pb::{self, request_op::Request};
use hanse_state::{Access, Store, StoreError};
use std::fs;
use std::path::{Path, PathBuf};

fn golden() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// What was described, but for the level of the groups, which rises as soon as the server leads.
fn without_level(text: &str) -> String {
    let keep = |line: &str| match line.split_once(" level ") {
        Some((group, _)) if line.starts_with("group ") => group.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(keep).collect::<Vec<_>>().join("\n")
}

async fn put(server: &Server, access: &Access, key: &str) -> Result<i64, StoreError> {
    let put = pb::PutRequest {
        key: key.to_owned().into(),
        value: "new".into(),
        ..Default::default()
    };
    let op = pb::RequestOp {
        request: Some(Request::RequestPut(put)),
    };
    let txn = pb::TxnRequest {
        success: vec![op],
        ..Default::default()
    };
    let store = server.node.store(access.space.group()).unwrap();
    Ok(store.txn(access, txn).await?.header.unwrap().revision)
}

#[tokio::test]
async fn data_of_every_earlier_version_opens_with_equal_content_and_hashes() {
    let all = golden();
    assert_eq!(
        all.len(),
        LEVEL as usize - 1,
        "each feature level since the second has its directory"
    );
    for dir in all {
        let work = tempfile::tempdir().unwrap();
        copy(&dir.join("data"), work.path());
        let expected = fs::read_to_string(dir.join("expected.txt")).unwrap();
        let server = Server::start(work.path()).await;
        let found = describe(&server.node).await;
        assert_eq!(without_level(&found), without_level(&expected), "{}", dir.display());
        if expected.contains("space closed with") {
            let closed = put(&server, &Access::tenant("closed"), "k").await;
            assert_eq!(closed, Err(StoreError::Restoring("closed".to_owned())));
        }
        // Its rules hold on: an alarm, a fence, a space that was dropped. And it goes on.
        let refused = put(&server, &Access::tenant("silver"), "k").await;
        assert_eq!(refused, Err(StoreError::NoSpace));
        let old_host = Access::tenant("gold").with_epoch(2);
        assert!(matches!(
            put(&server, &old_host, "k").await,
            Err(StoreError::Fenced { fence: 3, .. })
        ));
        let gone = put(&server, &Access::tenant("gone"), "k").await;
        assert!(matches!(gone, Err(StoreError::Fenced { fence: u64::MAX, .. })));
        for group in GROUPS {
            let store = server.node.store(group).unwrap();
            until("the feature level", || store.machine().level() == LEVEL).await;
        }
        let gold = Access::tenant("gold").with_epoch(3);
        let before = server.node.tenants().revision();
        assert_eq!(put(&server, &gold, "k").await, Ok(before + 1));
        let now = describe(&server.node).await;
        assert_ne!(now, expected);
        server.stop().await;
        let again = Server::start(work.path()).await;
        assert_eq!(describe(&again.node).await, now);
        again.stop().await;
    }
}
