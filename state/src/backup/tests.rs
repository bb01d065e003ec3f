//! What goes into a backup comes out of it, and nothing else is taken for one.

use super::*;
use crate::engine::{MemoryEngine, SharedEngine};
use crate::machine::Machine;
use crate::machine::level::LEVEL;
use crate::machine::limits::limits_command;
use crate::pb::command::command::Op;
use crate::pb::command::{Compact, DropSpace, LeaseGrant, SetFence, SetLevel};
use crate::pb::{PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request};
use crate::store::Access;
use bytes::Bytes;
use hanse_api::resources::StoreLimits;
use hanse_runtime::rng::SeededRng;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::sync::Arc;
use zeroize::Zeroizing;

const GROUPS: [GroupId; 2] = [GroupId::COUNCIL, GroupId::TENANTS];

fn tenant(name: &str) -> KeySpace {
    KeySpace::Tenant(name.to_owned())
}

fn access(space: &KeySpace) -> Access {
    Access {
        space: space.clone(),
        epoch: None,
    }
}

fn change(requests: Vec<Request>) -> Op {
    let op = |request| RequestOp { request: Some(request) };
    Op::Txn(TxnRequest {
        compare: Vec::new(),
        success: requests.into_iter().map(op).collect(),
        failure: Vec::new(),
    })
}

fn put(key: &str, value: &[u8], lease: i64) -> Request {
    Request::RequestPut(PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value),
        lease,
        ..Default::default()
    })
}

fn delete(key: &str) -> Request {
    Request::RequestDeleteRange(crate::pb::DeleteRangeRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        ..Default::default()
    })
}

fn run(machine: &Machine, at: i64, space: &KeySpace, op: Op) {
    let command = Machine::command(at, space, None, op);
    let marker = Bytes::from(format!("marker-{at}"));
    let outcomes = machine.apply(vec![command], Some(marker)).unwrap();
    let refused = matches!(
        outcomes[0].answer,
        Some(crate::pb::command::outcome::Answer::Refusal(_))
    );
    assert!(!refused, "{outcomes:?}");
}

const LIMITS: StoreLimits = StoreLimits {
    bytes: 1 << 20,
    keys: 1000,
    writes_per_second: 10,
};

/// An engine with everything in it that a backup must carry or leave out.
fn filled() -> SharedEngine {
    let engine: SharedEngine = Arc::new(MemoryEngine::new());
    let council = Machine::open(GroupId::COUNCIL, Arc::clone(&engine)).unwrap();
    for n in 0..20 {
        run(
            &council,
            n,
            &KeySpace::Registry,
            change(vec![put(&format!("/r/{n}"), b"{}", 0)]),
        );
    }
    let tenants = Machine::open(GroupId::TENANTS, Arc::clone(&engine)).unwrap();
    let (a, b, gone) = (tenant("a"), tenant("b"), tenant("gone"));
    run(&tenants, 1, &a, Op::LeaseGrant(LeaseGrant { id: 7, ttl_seconds: 60 }));
    for n in 0..300 {
        // More than one piece, written more than once, some under a lease, some deleted.
        let value = vec![u8::try_from(n % 251).unwrap(); 2000];
        let key = format!("k\0{:03}", n % 200);
        run(
            &tenants,
            10 + n,
            &a,
            change(vec![put(&key, &value, if n % 3 == 0 { 7 } else { 0 })]),
        );
    }
    run(
        &tenants,
        400,
        &a,
        change(vec![delete("k\x00005"), put("two", b"in one", 0)]),
    );
    run(&tenants, 401, &a, Op::Compact(Compact { revision: 100 }));
    run(&tenants, 402, &a, Op::SetFence(SetFence { epoch: 3 }));
    run(&tenants, 403, &b, change(vec![put("k", b"v", 0)]));
    run(&tenants, 403, &b, Op::SetLevel(SetLevel { level: LEVEL }));
    run(&tenants, 403, &b, Op::SetLimits(limits_command(LIMITS)));
    run(&tenants, 404, &gone, change(vec![put("k", b"v", 0)]));
    run(&tenants, 405, &gone, Op::DropSpace(DropSpace {}));
    engine
}

fn backup(engine: &SharedEngine, scope: &Scope) -> Vec<u8> {
    let mut out = Vec::new();
    let head = Head {
        program: "test".to_owned(),
        taken_at_millis: 5,
        ..Head::default()
    };
    let mut emit = |bytes: Bytes| {
        out.extend_from_slice(&bytes);
        Ok(())
    };
    take(engine.snapshot().as_ref(), head, scope, &mut emit).unwrap();
    out
}

fn everything(engine: &SharedEngine) -> Vec<u8> {
    backup(engine, &Scope::Groups(GROUPS.to_vec()))
}

async fn read(machine: &Machine, space: &KeySpace, revision: i64) -> Result<crate::pb::RangeResponse, StoreError> {
    let request = RangeRequest {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        revision,
        ..Default::default()
    };
    machine.range(&access(space), request).await
}

#[tokio::test]
async fn a_restored_store_holds_the_same_under_a_higher_revision_without_history() {
    let engine = filled();
    let file = everything(&engine);
    let summary = verify(file.as_slice()).unwrap();
    let names: Vec<_> = summary
        .spaces
        .iter()
        .map(|s| (s.space.tenant(), s.keys, s.leases))
        .collect();
    assert_eq!(names, [("", 20, 0), ("a", 200, 1), ("b", 1, 0), ("gone", 0, 0)]);
    let before = Machine::open(GroupId::TENANTS, Arc::clone(&engine)).unwrap();
    for space in summary
        .spaces
        .iter()
        .filter(|s| s.space.group() == GroupId::TENANTS && !s.dropped)
    {
        let found = before.hash_at(&access(&space.space), 0).unwrap();
        assert_eq!(
            found.hash, space.hash,
            "the backup's hash is that on which members agree"
        );
    }

    let fresh: SharedEngine = Arc::new(MemoryEngine::new());
    let restored = fill(&fresh, file.as_slice()).unwrap();
    assert_eq!(restored.summary, summary);
    assert_eq!(restored.markers[&GroupId::TENANTS], "marker-405");
    let after = Machine::open(GroupId::TENANTS, Arc::clone(&fresh)).unwrap();
    assert_eq!(after.revision(), before.revision() + fill::REVISION_GAP);
    let (old, new) = (
        read(&before, &tenant("a"), 0).await.unwrap(),
        read(&after, &tenant("a"), 0).await.unwrap(),
    );
    assert_eq!(old.kvs, new.kvs, "revisions and versions of keys stay");
    let stale = read(&after, &tenant("a"), before.revision()).await.unwrap_err();
    assert!(matches!(stale, StoreError::Compacted { .. }), "{stale}");
    // Limits, a fence and the end of a tenant survive.
    assert_eq!(after.limits(&access(&tenant("b"))), Ok(LIMITS));
    assert_eq!(after.level(), LEVEL);
    for (space, epoch) in [("a", 2), ("gone", 99)] {
        let access = access(&tenant(space)).with_epoch(epoch);
        let request = RangeRequest {
            key: Bytes::from_static(b"k"),
            ..Default::default()
        };
        let refused = after.range(&access, request).await.unwrap_err();
        assert!(matches!(refused, StoreError::Fenced { .. }), "{refused}");
    }
    run(&after, 500, &tenant("a"), change(vec![put("k\x00001", b"new", 0)]));
    let kept = verify(everything(&fresh).as_slice()).unwrap();
    assert_eq!(kept.spaces[2..], summary.spaces[2..]);
    assert_ne!(kept.hash(), summary.hash(), "a change shows in the hash");
}

#[test]
fn one_space_can_be_backed_up_alone_but_is_no_system() {
    let engine = filled();
    let file = backup(&engine, &Scope::Space(tenant("a")));
    let (part, whole) = (
        verify(file.as_slice()).unwrap(),
        verify(everything(&engine).as_slice()).unwrap(),
    );
    assert_eq!(part.spaces[0], whole.spaces[1]);
    assert_eq!((part.spaces.len(), part.head.tenant.as_str()), (1, "a"));
    let refused = fill(&(Arc::new(MemoryEngine::new()) as SharedEngine), file.as_slice()).unwrap_err();
    assert!(refused.to_string().contains("tenant a"), "{refused}");
}

fn small() -> Vec<u8> {
    let engine: SharedEngine = Arc::new(MemoryEngine::new());
    let machine = Machine::open(GroupId::TENANTS, Arc::clone(&engine)).unwrap();
    run(
        &machine,
        1,
        &tenant("t"),
        Op::LeaseGrant(LeaseGrant { id: 1, ttl_seconds: 60 }),
    );
    run(
        &machine,
        2,
        &tenant("t"),
        change(vec![put("key", b"value", 1), put("other", b"", 0)]),
    );
    everything(&engine)
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let file = small();
    verify(file.as_slice()).unwrap();
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut bad = file.clone();
            bad[at] ^= 1 << bit;
            assert!(verify(bad.as_slice()).is_err(), "bit {bit} of byte {at}");
        }
        let cut = verify(&file[..at]).unwrap_err();
        let expected = if at < file::MAGIC.len() {
            "no backup"
        } else {
            "cut short"
        };
        assert!(cut.to_string().contains(expected), "cut at {at}: {cut}");
    }
    let longer = [file.as_slice(), b"x"].concat();
    assert!(verify(longer.as_slice()).is_err());
}

fn phrase(text: &str) -> Passphrase {
    Passphrase::new(Zeroizing::new(text.to_owned()))
}

fn sealed(plain: &[u8]) -> Vec<u8> {
    let mut writer = SealedWriter::new(Vec::new(), &phrase("correct horse battery\n"), &SeededRng::new(1)).unwrap();
    writer.write_all(plain).unwrap();
    writer.finish().unwrap()
}

#[test]
fn an_encrypted_backup_opens_only_with_its_passphrase_and_undamaged() {
    let file = sealed(&small());
    let good = phrase("correct horse battery");
    verify(open(file.as_slice(), Some(&good)).unwrap()).unwrap();
    assert!(
        !file.windows(5).any(|bytes| bytes == b"value"),
        "nothing of it is in the clear"
    );
    let wrong = open(file.as_slice(), Some(&phrase("correct horse batterx")))
        .err()
        .unwrap();
    assert!(matches!(wrong, BackupError::WrongPassphrase), "{wrong}");
    let none = open(file.as_slice(), None).err().unwrap();
    assert!(matches!(none, BackupError::NeedsPassphrase), "{none}");
    let judge = |bytes: &[u8]| open(bytes, Some(&good)).and_then(verify);
    // Each derivation of a key takes its time: a sample of places, all of the first part among them.
    for at in (8..45).step_by(12).chain((45..file.len()).step_by(71)) {
        let mut bad = file.clone();
        bad[at] ^= 0x10;
        assert!(judge(&bad).is_err(), "byte {at}");
        assert!(judge(&file[..at]).is_err(), "cut at {at}");
    }
    let short = SealedWriter::new(Vec::new(), &phrase("short"), &SeededRng::new(1))
        .err()
        .unwrap();
    assert!(matches!(short, BackupError::ShortPassphrase), "{short}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn segments_of_any_length_come_back(blocks in 0usize..3, more in -2i64..=2, step in 1usize..100_000) {
        let length = usize::try_from(i64::try_from(blocks * 64 * 1024).unwrap() + more).unwrap_or(0);
        let plain: Vec<u8> = (0..length).map(|n| u8::try_from(n % 253).unwrap()).collect();
        let mut writer = SealedWriter::new(Vec::new(), &phrase("correct horse battery"), &SeededRng::new(2)).unwrap();
        writer.write_all(&[]).unwrap();
        for piece in [file::MAGIC.as_slice(), &plain].concat().chunks(step) {
            writer.write_all(piece).unwrap();
        }
        let sealed = writer.finish().unwrap();
        let mut back = Vec::new();
        let good = phrase("correct horse battery");
        open(sealed.as_slice(), Some(&good)).unwrap().read_to_end(&mut back).unwrap();
        prop_assert_eq!(&back[..8], file::MAGIC);
        prop_assert_eq!(&back[8..], plain.as_slice());
        // A whole segment less is an end that was never sealed as one.
        if sealed.len() > 64 * 1024 + 16 + 45 {
            let cut = &sealed[..45 + 64 * 1024 + 16];
            let mut sink = Vec::new();
            prop_assert!(open(cut, Some(&good)).unwrap().read_to_end(&mut sink).is_err());
        }
    }
}
