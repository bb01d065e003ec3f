//! Alarms of a key space: part of the replicated state, so that every member refuses the same writes from the same log
//! entry on.
//!
//! As with etcd: no space left refuses what grows and lets reads, deletions and compactions go on, so that space can be
//! made; a corrupt member refuses every change that a client asks for.

use crate::error::StoreError;
use crate::machine::index::stored_bytes;
use crate::machine::record::Alarm;
use crate::machine::space::Space;
use crate::machine::{Machine, growth, restore};
use crate::pb::command::{SetAlarm, command::Op};
use crate::pb::{self, AlarmType};
use crate::store::{Access, SpaceUsage};

/// Alarms of one space: two for each member of the largest group that makes sense.
const MAX_ALARMS: usize = 64;

/// Whether a client asks for a change, and whether for one that grows.
fn asks(op: &Op) -> (bool, bool) {
    match op {
        Op::Txn(txn) => (true, growth(txn) > 0),
        Op::AuditedTxn(_) => (true, true),
        Op::LeaseGrant(_) => (true, true),
        Op::Compact(_) | Op::LeaseRevoke(_) => (true, false),
        Op::RestoreSpace(restore) => (true, !restore::ends(restore)),
        Op::LeaseKeepAlive(_)
        | Op::ExpireLeases(_)
        | Op::ExtendLeases(_)
        | Op::SetFence(_)
        | Op::DropSpace(_)
        | Op::SetAlarm(_)
        | Op::SetLimits(_)
        | Op::SetLevel(_) => (false, false),
    }
}

/// Whether a command may take more room than there was before.
pub fn grows(op: &Op) -> bool {
    asks(op).1
}

/// Whether an alarm forbids what a client asks for.
pub(crate) fn check(space: &Space, op: &Op) -> Result<(), StoreError> {
    let alarms = space.alarms.lock();
    if alarms.is_empty() {
        return Ok(());
    }
    let raised = |kind: AlarmType| alarms.iter().any(|alarm| alarm.kind == i32::from(kind));
    let (changes, grows) = asks(op);
    if changes && raised(AlarmType::Corrupt) {
        return Err(StoreError::CorruptAlarm);
    }
    if grows && raised(AlarmType::Nospace) {
        return Err(StoreError::NoSpace);
    }
    Ok(())
}

/// Does a change of alarms; false if nothing changed.
pub(crate) fn set(space: &Space, change: &SetAlarm) -> Result<bool, StoreError> {
    let mut alarms = space.alarms.lock();
    let SetAlarm { member, kind, raised } = *change;
    if !raised {
        let before = alarms.len();
        let every = kind == i32::from(AlarmType::None);
        alarms.retain(|alarm| alarm.member != member || !(every || alarm.kind == kind));
        return Ok(alarms.len() != before);
    }
    if alarms.len() >= MAX_ALARMS {
        return Err(StoreError::Overloaded);
    }
    Ok(alarms.insert(Alarm { member, kind }))
}

/// Bytes that a put adds at most.
pub(crate) fn put_bytes(put: &pb::PutRequest) -> u64 {
    stored_bytes(put.key.len(), put.value.len())
}

impl Machine {
    /// The space's alarms, by member.
    pub fn alarms(&self, access: &Access) -> Result<Vec<pb::AlarmMember>, StoreError> {
        let space = self.space_of(access)?;
        let alarms = space.alarms.lock();
        let of = |alarm: &Alarm| pb::AlarmMember {
            member_id: alarm.member,
            alarm: alarm.kind,
        };
        Ok(alarms.iter().map(of).collect())
    }

    /// How much the space holds here. Cheap.
    pub fn usage(&self, access: &Access) -> Result<SpaceUsage, StoreError> {
        Ok(self.space_of(access)?.usage())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeySpace;

    fn raise(space: &Space, member: u64, kind: AlarmType) -> Result<bool, StoreError> {
        let kind = kind.into();
        set(
            space,
            &SetAlarm {
                member,
                kind,
                raised: true,
            },
        )
    }

    fn lower(space: &Space, member: u64, kind: AlarmType) -> bool {
        let kind = kind.into();
        set(
            space,
            &SetAlarm {
                member,
                kind,
                raised: false,
            },
        )
        .unwrap()
    }

    fn txn(op: pb::request_op::Request) -> Op {
        let op = pb::RequestOp { request: Some(op) };
        Op::Txn(pb::TxnRequest {
            success: vec![op],
            ..Default::default()
        })
    }

    #[test]
    fn without_space_what_grows_is_refused_and_nothing_else() {
        use crate::pb::request_op::Request;
        let space = Space::new(KeySpace::Registry, Space::fresh_record());
        let put = txn(Request::RequestPut(pb::PutRequest::default()));
        let nested = txn(Request::RequestTxn(pb::TxnRequest {
            failure: vec![pb::RequestOp {
                request: Some(Request::RequestPut(pb::PutRequest::default())),
            }],
            ..Default::default()
        }));
        let delete = txn(Request::RequestDeleteRange(pb::DeleteRangeRequest::default()));
        let grant = Op::LeaseGrant(pb::command::LeaseGrant::default());
        let compact = Op::Compact(pb::command::Compact::default());
        let all = [&put, &nested, &grant, &delete, &compact];
        assert!(all.iter().all(|op| check(&space, op).is_ok()));
        assert_eq!(raise(&space, 1, AlarmType::Nospace), Ok(true));
        assert_eq!(raise(&space, 1, AlarmType::Nospace), Ok(false));
        for op in &all[..3] {
            assert_eq!(check(&space, op), Err(StoreError::NoSpace));
        }
        assert!(all[3..].iter().all(|op| check(&space, op).is_ok()));
        assert_eq!(raise(&space, 2, AlarmType::Corrupt), Ok(true));
        assert!(all.iter().all(|op| check(&space, op) == Err(StoreError::CorruptAlarm)));
        assert!(!lower(&space, 1, AlarmType::Corrupt), "the other member's alarm");
        assert!(lower(&space, 2, AlarmType::None) && lower(&space, 1, AlarmType::Nospace));
        assert!(all.iter().all(|op| check(&space, op).is_ok()));
    }

    #[test]
    fn alarms_are_bounded() {
        let space = Space::new(KeySpace::Registry, Space::fresh_record());
        for member in 0..MAX_ALARMS as u64 {
            assert_eq!(raise(&space, member, AlarmType::Nospace), Ok(true));
        }
        assert_eq!(raise(&space, 1000, AlarmType::Nospace), Err(StoreError::Overloaded));
    }
}
