//! The machine against a naive model that keeps a whole map per revision, and against itself: however commands are cut
//! into batches, whether memory was rebuilt in between, and whether compacted versions were removed or not, the same
//! commands give the same answers and the same content.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use hanse_state::engine::{Cf, MemoryEngine, SharedEngine};
use hanse_state::machine::Machine;
use hanse_state::machine::level::{self, LEVEL};
use hanse_state::pb::command::{self, command::Op, outcome::Answer, restore_space::Part};
use hanse_state::pb::{self, Command, Outcome, compare, request_op::Request, response_op::Response};
use hanse_state::{Access, GroupId, KeySpace, StoreError};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

fn machine(engine: &SharedEngine) -> Machine {
    Machine::open(GroupId::TENANTS, engine.clone()).unwrap()
}

fn memory() -> SharedEngine {
    Arc::new(MemoryEngine::new())
}

fn space(tenant: u8) -> KeySpace {
    KeySpace::Tenant(format!("t{tenant}"))
}

fn key_name(key: u8) -> bytes::Bytes {
    vec![b'k', key].into()
}

fn put_op(key: u8, value: u8, lease: i64) -> pb::RequestOp {
    let put = pb::PutRequest {
        key: key_name(key),
        value: vec![value].into(),
        lease,
        prev_kv: true,
        ..Default::default()
    };
    pb::RequestOp {
        request: Some(Request::RequestPut(put)),
    }
}

fn delete_op(from: u8, to: u8) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest {
        key: key_name(from),
        range_end: key_name(to),
        prev_kv: true,
    };
    pb::RequestOp {
        request: Some(Request::RequestDeleteRange(delete)),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8, u8),
    /// Puts both if the key has this version, else reads it.
    Swap {
        key: u8,
        version: i64,
        value: u8,
        other: u8,
    },
    Compact(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0u8..6, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        2 => (0u8..6, 0u8..7).prop_map(|(from, to)| Step::Delete(from, to)),
        3 => (0u8..6, 0i64..3, any::<u8>(), 6u8..8)
            .prop_map(|(key, version, value, other)| Step::Swap { key, version, value, other }),
        1 => (0i64..6).prop_map(Step::Compact),
    ]
}

/// A whole map for each revision.
#[derive(Default)]
struct Model {
    maps: BTreeMap<i64, BTreeMap<u8, pb::KeyValue>>,
    revision: i64,
    floor: i64,
}

impl Model {
    fn new() -> Self {
        Self {
            maps: BTreeMap::from([(1, BTreeMap::new())]),
            revision: 1,
            floor: -1,
        }
    }

    fn at(&self, revision: i64) -> &BTreeMap<u8, pb::KeyValue> {
        self.maps.range(..=revision).next_back().unwrap().1
    }

    fn change(&mut self, change: impl FnOnce(&mut BTreeMap<u8, pb::KeyValue>, i64)) {
        let mut map = self.at(self.revision).clone();
        let next = self.revision + 1;
        change(&mut map, next);
        if map != *self.at(self.revision) {
            self.revision = next;
            self.maps.insert(next, map);
        }
    }

    fn put(map: &mut BTreeMap<u8, pb::KeyValue>, revision: i64, key: u8, value: u8) {
        let old = map.get(&key);
        let kv = pb::KeyValue {
            key: key_name(key),
            create_revision: old.map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: old.map_or(1, |kv| kv.version + 1),
            value: vec![value].into(),
            lease: 0,
        };
        map.insert(key, kv);
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Put(key, value) => self.change(|map, revision| Self::put(map, revision, key, value)),
            Step::Delete(from, to) => self.change(|map, _| map.retain(|key, _| !(from..to).contains(key))),
            Step::Swap {
                key,
                version,
                value,
                other,
            } => {
                if self.at(self.revision).get(&key).map_or(0, |kv| kv.version) == version {
                    self.change(|map, revision| {
                        Self::put(map, revision, key, value);
                        Self::put(map, revision, other, value);
                    });
                }
            }
            Step::Compact(back) => {
                let to = self.revision - back;
                if to > self.floor {
                    self.floor = to;
                }
            }
        }
    }
}

fn command_of(step: &Step, revision: i64) -> Command {
    let txn = match *step {
        Step::Put(key, value) => pb::TxnRequest {
            success: vec![put_op(key, value, 0)],
            ..Default::default()
        },
        Step::Delete(from, to) => pb::TxnRequest {
            success: vec![delete_op(from, to)],
            ..Default::default()
        },
        Step::Swap {
            key,
            version,
            value,
            other,
        } => {
            let compare = pb::Compare {
                key: key_name(key),
                target_union: Some(compare::TargetUnion::Version(version)),
                ..Default::default()
            };
            let range = pb::RangeRequest {
                key: key_name(key),
                ..Default::default()
            };
            pb::TxnRequest {
                compare: vec![compare],
                success: vec![put_op(key, value, 0), put_op(other, value, 0)],
                failure: vec![pb::RequestOp {
                    request: Some(Request::RequestRange(range)),
                }],
            }
        }
        Step::Compact(back) => {
            let op = Op::Compact(command::Compact {
                revision: revision - back,
            });
            return Machine::command(0, &space(0), None, op);
        }
    };
    Machine::command(0, &space(0), None, Op::Txn(txn))
}

fn read(machine: &Machine, revision: i64) -> Result<Vec<pb::KeyValue>, StoreError> {
    let range = pb::RangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        revision,
        ..Default::default()
    };
    let op = pb::RequestOp {
        request: Some(Request::RequestRange(range)),
    };
    let txn = pb::TxnRequest {
        success: vec![op],
        ..Default::default()
    };
    let access = Access {
        space: space(0),
        epoch: None,
    };
    match machine.read_txn(&access, &txn)?.responses.remove(0).response {
        Some(Response::ResponseRange(range)) => {
            assert_eq!(range.count, i64::try_from(range.kvs.len()).unwrap());
            Ok(range.kvs)
        }
        other => panic!("{other:?}"),
    }
}

fn check_against(model: &Model, machine: &Machine) {
    assert_eq!(machine.revision(), model.revision);
    for revision in 1..=model.revision {
        match read(machine, revision) {
            Ok(kvs) => {
                assert!(revision >= model.floor);
                let want: Vec<_> = model.at(revision).values().cloned().collect();
                assert_eq!(kvs, want, "at {revision}");
            }
            Err(error) => {
                assert_eq!(error, StoreError::Compacted { floor: model.floor });
                assert!(revision < model.floor);
            }
        }
    }
    let future = read(machine, model.revision + 1);
    assert_eq!(
        future,
        Err(StoreError::FutureRevision {
            current: model.revision
        })
    );
}

fn prune(machine: &Machine) {
    while machine.prune(2).unwrap() {}
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_revision_reads_as_the_model_says(steps in proptest::collection::vec(step(), 1..60), pruned: bool) {
        let engine = memory();
        let machine = machine(&engine);
        let mut model = Model::new();
        for step in &steps {
            let command = command_of(step, model.revision);
            model.run(step);
            machine.apply(vec![command], None).unwrap();
            if pruned {
                prune(&machine);
            }
        }
        check_against(&model, &machine);
        check_against(&model, &Machine::open(GroupId::TENANTS, engine).unwrap());
    }
}

/// Any command, in any order, of several tenants.
fn any_command() -> impl Strategy<Value = Command> {
    let op = prop_oneof![
        8 => (0u8..6, any::<u8>(), 0i64..4).prop_map(|(key, value, lease)| {
            Op::Txn(pb::TxnRequest { success: vec![put_op(key, value, lease)], ..Default::default() })
        }),
        3 => (0u8..6, 0u8..6, any::<u8>(), 6u8..9).prop_map(|(from, to, value, key)| {
            Op::Txn(pb::TxnRequest { success: vec![delete_op(from, to), put_op(key, value, 0)], ..Default::default() })
        }),
        2 => (1i64..4, 1i64..20).prop_map(|(id, ttl_seconds)| Op::LeaseGrant(command::LeaseGrant { id, ttl_seconds })),
        1 => (1i64..4).prop_map(|id| Op::LeaseRevoke(command::LeaseRevoke { id })),
        1 => (1i64..4).prop_map(|id| Op::LeaseKeepAlive(command::LeaseKeepAlive { id })),
        1 => (0u32..4).prop_map(|limit| Op::ExpireLeases(command::ExpireLeases { limit })),
        1 => Just(Op::ExtendLeases(command::ExtendLeases {})),
        1 => (1i64..40).prop_map(|revision| Op::Compact(command::Compact { revision })),
        1 => (0u64..4).prop_map(|epoch| Op::SetFence(command::SetFence { epoch })),
        1 => (0u64..3, 0i32..3, any::<bool>())
            .prop_map(|(member, kind, raised)| Op::SetAlarm(command::SetAlarm { member, kind, raised })),
        3 => (0u64..500, 0u64..4).prop_map(|(bytes, keys)| {
            Op::SetLimits(command::SetLimits { bytes, keys, writes_per_second: 7 })
        }),
        3 => Just(level::raise()),
    ];
    let op = prop_oneof![60 => op, 1 => Just(Op::DropSpace(command::DropSpace {}))];
    (0u8..3, 0i64..60_000, proptest::option::of(0u64..5), op)
        .prop_map(|(tenant, at, epoch, op)| Machine::command(at, &space(tenant), epoch, op))
}

/// The steps of a restore, perhaps not all of them.
fn a_restore() -> impl Strategy<Value = Vec<Command>> {
    let keys = proptest::collection::btree_map(0u8..6, (any::<u8>(), any::<bool>()), 0..4);
    (0u8..3, 1u64..4, 0i64..60_000, keys, 1i64..4, 1usize..=5).prop_map(|(tenant, id, at, keys, lease, steps)| {
        let row = |(key, (value, leased)): (&u8, &(u8, bool))| pb::KeyValue {
            key: key_name(*key),
            create_revision: 1,
            mod_revision: 1,
            version: 2,
            value: vec![*value].into(),
            lease: if *leased { lease } else { 0 },
        };
        let rows = |keys, leases| Part::Rows(command::RestoreRows { keys, leases });
        let granted = command::LeaseGrant {
            id: lease,
            ttl_seconds: 10,
        };
        let parts = [
            Part::Begin(command::RestoreBegin {}),
            rows(Vec::new(), vec![granted]),
            rows(keys.iter().map(row).collect(), Vec::new()),
            Part::End(command::RestoreEnd {
                keys: keys.len() as u64,
            }),
        ];
        let step = |(step, part)| {
            Op::RestoreSpace(command::RestoreSpace {
                id,
                step,
                part: Some(part),
            })
        };
        let ops = std::iter::once(level::raise()).chain((0u64..).zip(parts).map(step));
        ops.take(steps)
            .map(|op| Machine::command(at, &space(tenant), None, op))
            .collect()
    })
}

/// Commands, restores among them, whose steps lie among those of others.
fn any_commands() -> impl Strategy<Value = Vec<Command>> {
    let some = prop_oneof![12 => any_command().prop_map(|command| vec![command]), 1 => a_restore()];
    let place = (some, 0usize..4);
    proptest::collection::vec(place, 1..70).prop_map(|all| {
        let mut out: Vec<Command> = Vec::new();
        for (some, before) in all {
            // The first of them before what came last, the others behind.
            let at = if some.len() > 1 {
                out.len().saturating_sub(before)
            } else {
                out.len()
            };
            let mut some = some.into_iter();
            out.splice(at..at, some.next());
            out.extend(some);
        }
        out
    })
}

fn content(engine: &SharedEngine) -> Vec<Vec<(bytes::Bytes, bytes::Bytes)>> {
    Cf::ALL
        .iter()
        .map(|cf| engine.scan(*cf, b"", b"", usize::MAX).unwrap())
        .collect()
}

fn hashes(machine: &Machine) -> Vec<Result<(u64, i64), StoreError>> {
    let hash = |tenant| {
        machine
            .hash(&Access {
                space: space(tenant),
                epoch: None,
            })
            .map(|h| (h.hash, h.floor))
    };
    (0..3).map(hash).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn batches_restarts_and_pruning_do_not_matter(
        commands in any_commands(),
        cuts in proptest::collection::vec(1usize..12, 360),
    ) {
        let one = memory();
        let at_once = machine(&one);
        let outcomes = at_once.apply(commands.clone(), Some("end".into())).unwrap();

        let cut = memory();
        let mut in_parts = machine(&cut);
        let pruned = memory();
        let pruning = machine(&pruned);
        let mut answers: Vec<Outcome> = Vec::new();
        let mut rest = commands.as_slice();
        for (index, size) in cuts.into_iter().enumerate() {
            let (part, after) = rest.split_at(size.min(rest.len()));
            rest = after;
            let marker = if rest.is_empty() { "end".to_owned() } else { index.to_string() };
            let outcomes = in_parts.apply(part.to_vec(), Some(marker.clone().into())).unwrap();
            prop_assert_eq!(&pruning.apply(part.to_vec(), Some(marker.into())).unwrap(), &outcomes);
            answers.extend(outcomes);
            prune(&pruning);
            if index % 3 == 2 {
                in_parts = machine(&cut);
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(answers, outcomes);
        prop_assert_eq!(in_parts.revision(), at_once.revision());
        prop_assert_eq!(in_parts.marker().unwrap().unwrap(), "end");
        prop_assert_eq!(in_parts.next_deadline(), at_once.next_deadline());
        prop_assert_eq!(content(&cut), content(&one));
        prop_assert_eq!(hashes(&in_parts), hashes(&at_once));
        prop_assert_eq!(hashes(&pruning), hashes(&at_once));
        prop_assert_eq!(hashes(&machine(&pruned)), hashes(&at_once));
    }
}

#[test]
fn a_snapshot_takes_the_contents_place() {
    let (from, to) = (memory(), memory());
    let (source, target) = (machine(&from), machine(&to));
    for value in 0..20 {
        let txn = pb::TxnRequest {
            success: vec![put_op(value % 3, value, 0)],
            ..Default::default()
        };
        source
            .apply(
                vec![Machine::command(0, &space(0), None, Op::Txn(txn))],
                Some("m".into()),
            )
            .unwrap();
    }
    let stale = pb::TxnRequest {
        success: vec![put_op(9, 9, 0)],
        ..Default::default()
    };
    target
        .apply(vec![Machine::command(0, &space(1), None, Op::Txn(stale))], None)
        .unwrap();
    let result = target.replace(&mut || {
        let mut batch = hanse_state::engine::WriteBatch::new();
        for cf in [Cf::Rev, Cf::Key, Cf::Lease, Cf::Meta] {
            batch.delete_range(cf, bytes::Bytes::new(), vec![0xff].as_slice().to_vec());
        }
        for cf in [Cf::Rev, Cf::Key, Cf::Lease, Cf::Meta] {
            for (key, value) in from.scan(cf, b"", b"", usize::MAX)? {
                batch.put(cf, key, value);
            }
        }
        to.write(batch, true)
    });
    result.unwrap();
    assert_eq!(target.revision(), source.revision());
    assert_eq!(hashes(&target), hashes(&source));
    assert_eq!(target.marker().unwrap().unwrap(), "m");
    let next = pb::TxnRequest {
        success: vec![put_op(0, 99, 0)],
        ..Default::default()
    };
    let command = Machine::command(0, &space(0), None, Op::Txn(next));
    assert_eq!(
        target.apply(vec![command.clone()], None).unwrap(),
        source.apply(vec![command], None).unwrap()
    );
}

/// More keys than go into memory at once, so that they are read in one thread and entered in another.
#[test]
fn many_keys_of_several_spaces_are_there_after_a_restart() {
    const KEYS: u32 = 9_500;
    let engine = memory();
    let before = machine(&engine);
    let grant = Op::LeaseGrant(command::LeaseGrant {
        id: 7,
        ttl_seconds: 3600,
    });
    before
        .apply(vec![Machine::command(0, &space(0), None, grant)], None)
        .unwrap();
    let put = |key: u32, value: u8, lease: i64| {
        let name = [b"k".as_slice(), &key.to_be_bytes()].concat();
        pb::RequestOp {
            request: Some(Request::RequestPut(pb::PutRequest {
                key: name.into(),
                value: vec![value].into(),
                lease,
                ..Default::default()
            })),
        }
    };
    for (tenant, value, every) in [(0, 1, 1), (1, 2, 1), (0, 3, 3), (0, 4, 17)] {
        let lease = if value == 4 { 7 } else { 0 };
        let puts: Vec<_> = (0..KEYS).step_by(every).map(|key| put(key, value, lease)).collect();
        let txn = |success: &[pb::RequestOp]| {
            let success = success.to_vec();
            Machine::command(
                0,
                &space(tenant),
                None,
                Op::Txn(pb::TxnRequest {
                    success,
                    ..Default::default()
                }),
            )
        };
        before.apply(puts.chunks(100).map(txn).collect(), None).unwrap();
    }
    let after = machine(&engine);
    assert_eq!(hashes(&after), hashes(&before));
    for revision in [2, 50, 100, 200, before.revision()] {
        assert_eq!(read(&after, revision), read(&before, revision), "at {revision}");
    }
    // What the lease holds is known again: it goes with it.
    let revoke = Machine::command(0, &space(0), None, Op::LeaseRevoke(command::LeaseRevoke { id: 7 }));
    assert_eq!(
        after.apply(vec![revoke.clone()], None),
        before.apply(vec![revoke], None)
    );
    let left = read(&after, after.revision()).unwrap().len();
    assert_eq!(left as u32, KEYS - KEYS.div_ceil(17));
}

#[test]
fn a_command_of_a_newer_format_stops_the_machine() {
    let engine = memory();
    let machine = machine(&engine);
    let mut command = command_of(&Step::Put(1, 1), 1);
    command.version = LEVEL + 1;
    assert!(matches!(
        machine.apply(vec![command], None),
        Err(StoreError::Corrupt(_))
    ));
    let after = machine.apply(vec![command_of(&Step::Put(1, 1), 1)], None);
    assert!(
        matches!(after, Err(StoreError::Corrupt(_))),
        "nothing is applied after what could not be"
    );
    assert_eq!(machine.revision(), 1);
}

#[test]
fn time_never_runs_backwards() {
    let engine = memory();
    let machine = machine(&engine);
    let run = |at: i64, op: Op| {
        machine
            .apply(vec![Machine::command(at, &space(0), None, op)], None)
            .unwrap()
            .remove(0)
    };
    run(100_000, Op::LeaseGrant(command::LeaseGrant { id: 1, ttl_seconds: 10 }));
    // A proposer whose clock is behind gives a lease no earlier end than one that came before.
    run(1_000, Op::LeaseGrant(command::LeaseGrant { id: 2, ttl_seconds: 10 }));
    assert_eq!(machine.next_deadline(), Some(110_000));
    let expired = run(109_999, Op::ExpireLeases(command::ExpireLeases { limit: 10 }));
    assert!(matches!(
        expired.answer,
        Some(Answer::Expired(command::Expired { leases: 0, .. }))
    ));
    let expired = run(110_000, Op::ExpireLeases(command::ExpireLeases { limit: 10 }));
    assert!(matches!(
        expired.answer,
        Some(Answer::Expired(command::Expired { leases: 2, .. }))
    ));
}
