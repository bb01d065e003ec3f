//! The audit's chain in the machine: in the transaction or not at all, the same on every member, and telling when somebody
//! laid hands on what is stored.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use hanse_api::audit::{Fault, HEAD, Head, Verifier, name};
use hanse_api::kinds::{AUDIT_CHAINS, AUDIT_EVENTS, PROJECTS};
use hanse_runtime::pki::sha256_hex;
use hanse_state::engine::{Cf, MemoryEngine, SharedEngine, WriteBatch};
use hanse_state::keys::{kind_prefix, object_key, prefix_end};
use hanse_state::machine::{MAX_EVENT_BYTES, MAX_EVENTS, Machine, check_audited};
use hanse_state::pb::command::{AuditedTxn, command::Op, outcome::Answer};
use hanse_state::pb::{self, Command, compare, request_op::Request};
use hanse_state::{Access, GroupId, KeySpace, StoreError};
use proptest::prelude::*;
use serde_json::Value;
use std::sync::Arc;

fn memory() -> SharedEngine {
    Arc::new(MemoryEngine::new())
}

fn open(engine: &SharedEngine) -> Machine {
    Machine::open(GroupId::COUNCIL, engine.clone()).unwrap()
}

fn project(name: &str) -> Bytes {
    object_key(&PROJECTS, "", name).into()
}

fn event(text: &str) -> String {
    serde_json::json!({ "auditID": text, "verb": "create" }).to_string()
}

/// Creates a project, unless it is there, and says so.
fn create(name: &str, at: i64, events: &[&str]) -> Command {
    let txn = pb::TxnRequest {
        compare: vec![pb::Compare {
            result: compare::CompareResult::Equal.into(),
            target: compare::CompareTarget::Mod.into(),
            key: project(name),
            target_union: Some(compare::TargetUnion::ModRevision(0)),
            range_end: Bytes::new(),
        }],
        success: vec![pb::RequestOp {
            request: Some(Request::RequestPut(pb::PutRequest {
                key: project(name),
                value: "{}".into(),
                ..Default::default()
            })),
        }],
        failure: Vec::new(),
    };
    let audited = AuditedTxn {
        txn: Some(txn),
        events: events.iter().copied().map(event).collect(),
    };
    Machine::command(at, &KeySpace::Registry, None, Op::AuditedTxn(audited))
}

fn range(machine: &Machine, prefix: &str) -> Vec<pb::KeyValue> {
    let req = pb::RangeRequest {
        key: prefix.to_owned().into(),
        range_end: prefix_end(prefix.as_bytes()).into(),
        serializable: true,
        ..Default::default()
    };
    futures::executor::block_on(machine.range(&Access::registry(), req))
        .unwrap()
        .kvs
}

fn events(machine: &Machine) -> Vec<Value> {
    let parse = |kv: pb::KeyValue| {
        let mut object: Value = serde_json::from_slice(&kv.value).unwrap();
        object["metadata"]["resourceVersion"] = kv.mod_revision.to_string().into();
        object
    };
    range(machine, &kind_prefix(&AUDIT_EVENTS))
        .into_iter()
        .map(parse)
        .collect()
}

fn head(machine: &Machine) -> Head {
    let stored = range(machine, &object_key(&AUDIT_CHAINS, "", HEAD));
    stored
        .first()
        .map_or(Head::start(0), |kv| Head::of_object(&kv.value).unwrap())
}

fn verify(machine: &Machine) -> Result<u64, Fault> {
    let mut verifier = Verifier::new(Some(Head::start(0)), sha256_hex);
    for object in events(machine) {
        verifier.object(&object)?;
    }
    verifier.finish(&head(machine)).map(|()| verifier.count())
}

#[test]
fn an_event_is_written_with_its_change_or_not_at_all() {
    let machine = open(&memory());
    let outcomes = machine
        .apply(vec![create("a", 5, &["one"]), create("a", 6, &["two"])], None)
        .unwrap();
    let succeeded = |n: usize| match &outcomes[n].answer {
        Some(Answer::Txn(txn)) => txn.succeeded,
        other => panic!("{other:?}"),
    };
    assert!(succeeded(0) && !succeeded(1));
    let all = events(&machine);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["status"]["auditID"], "one");
    assert_eq!(all[0]["spec"]["at"], 5);
    let made = range(&machine, &object_key(&PROJECTS, "", "a"));
    assert_eq!(all[0]["metadata"]["resourceVersion"], made[0].mod_revision.to_string());
    assert_eq!(verify(&machine), Ok(1));
}

#[test]
fn what_cannot_be_chained_is_refused() {
    let machine = open(&memory());
    let large = vec!["x".repeat(MAX_EVENT_BYTES + 1)];
    assert_eq!(
        check_audited(pb::TxnRequest::default(), large),
        Err(StoreError::TooLarge)
    );
    let many = vec![event("x"); MAX_EVENTS + 1];
    assert_eq!(
        check_audited(pb::TxnRequest::default(), many),
        Err(StoreError::TooManyOps)
    );
    let mut foreign = create("a", 1, &["one"]);
    foreign.tenant = "t1".to_owned();
    let outcomes = machine.apply(vec![foreign], None).unwrap();
    assert!(matches!(outcomes[0].answer, Some(Answer::Refusal(_))), "{outcomes:?}");
    assert_eq!(verify(&machine), Ok(0));
}

/// The record of a key's newest version in the engine.
fn stored(engine: &SharedEngine, part: &str) -> (Vec<u8>, Vec<u8>) {
    let mut cursor = engine.cursor(Cf::Key, &[0], &[u8::MAX]).unwrap();
    while let Some((key, value)) = cursor.current() {
        if key.windows(part.len()).any(|window| window == part.as_bytes()) {
            return (key.to_vec(), value.to_vec());
        }
        cursor.advance().unwrap();
    }
    panic!("nothing is stored under {part}");
}

#[test]
fn stored_events_that_were_changed_or_taken_out_are_found() {
    let engine = memory();
    let machine = open(&engine);
    let commands = ["a", "b", "c", "d"].map(|name| create(name, 1, &[name]));
    machine.apply(commands.to_vec(), None).unwrap();
    assert_eq!(verify(&machine), Ok(4));
    let (key, value) = stored(&engine, &name(2));
    let text = String::from_utf8_lossy(&value).replace(r#""verb":"create""#, r#""verb":"delete""#);
    assert_ne!(text.as_bytes(), value.as_slice());
    let mut batch = WriteBatch::new();
    batch.put(Cf::Key, key.clone(), text.into_bytes());
    engine.write(batch, false).unwrap();
    assert_eq!(verify(&open(&engine)), Err(Fault::Changed(2)));
    let without = |name: String| {
        let mut batch = WriteBatch::new();
        batch.delete(Cf::Key, stored(&engine, &name).0);
        engine.write(batch, false).unwrap();
        verify(&open(&engine))
    };
    assert_eq!(without(name(2)), Err(Fault::Missing { from: 2, to: 2 }));
    assert_eq!(without(name(1)), Err(Fault::Missing { from: 1, to: 2 }));
    assert_eq!(without(name(4)), Err(Fault::Missing { from: 1, to: 2 }));
}

#[test]
fn the_newest_event_cannot_go_without_a_trace() {
    let engine = memory();
    open(&engine)
        .apply(vec![create("a", 1, &["one", "two"])], None)
        .unwrap();
    let mut batch = WriteBatch::new();
    batch.delete(Cf::Key, stored(&engine, &name(2)).0);
    engine.write(batch, false).unwrap();
    assert_eq!(verify(&open(&engine)), Err(Fault::Missing { from: 2, to: 2 }));
}

proptest! {
    #[test]
    fn the_chain_is_the_same_however_commands_are_cut_into_batches(
        steps in proptest::collection::vec((0u8..8, 0i64..100, 0usize..3), 1..24),
        cuts in proptest::collection::vec(1usize..5, 1..24),
        reopen in any::<bool>(),
    ) {
        let commands: Vec<Command> = steps
            .iter()
            .enumerate()
            .map(|(n, (key, at, count))| {
                let ids: Vec<String> = (0..*count).map(|k| format!("{n}-{k}")).collect();
                create(&format!("p{key}"), *at, &ids.iter().map(String::as_str).collect::<Vec<_>>())
            })
            .collect();
        let whole = open(&memory());
        whole.apply(commands.clone(), None).unwrap();
        let engine = memory();
        let mut cut = open(&engine);
        let mut rest = commands.as_slice();
        for size in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (batch, after) = rest.split_at((*size).min(rest.len()));
            cut.apply(batch.to_vec(), None).unwrap();
            rest = after;
            if reopen {
                cut = open(&engine);
            }
        }
        prop_assert_eq!(events(&whole), events(&cut));
        prop_assert_eq!(head(&whole), head(&cut));
        prop_assert!(verify(&whole).is_ok());
    }
}
