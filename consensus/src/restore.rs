//! Where Raft begins in a system whose content was restored from a backup.
//!
//! The restored state counts as applied and its log as purged, at a position above every one that the lost system's servers
//! can have reached: one of them that comes back with its old data is behind, and gets the restored state as a snapshot
//! instead of voting for its own past. Every server that is restored from the same backup begins at the same position, so
//! that a majority of them elects a leader at once.

use crate::codec::{self, Applied};
use crate::error::ConsensusError;
use crate::log_store::{PURGED, VOTE};
use crate::state_machine::SNAPSHOT;
use crate::types::{GroupId, LogId, Member, Membership, NodeId, Seat, StoredMembership, TypeConfig, Vote};
use bytes::Bytes;
use hanse_state::engine::{Cf, WriteBatch};
use hanse_state::keys::{META_MARKER, meta_key};
use openraft::type_config::alias::CommittedLeaderIdOf;
use std::collections::{BTreeMap, BTreeSet};

/// More terms and entries than a system has between two backups.
const GAP: u64 = 1_000_000_000;

/// The records that let `group` begin with `members` on content that was backed up with `marker`. To be written into the
/// engine that holds the content.
pub fn begin(group: GroupId, marker: Bytes, members: &BTreeMap<NodeId, Member>) -> Result<WriteBatch, ConsensusError> {
    let marker = Some(marker).filter(|marker| !marker.is_empty());
    let before = Applied::decode(marker)?;
    let (term, index) = before.last.map_or((0, 0), |last| (last.leader_id.term, last.index));
    let (term, index) = (term.saturating_add(GAP), index.saturating_add(GAP));
    let last = LogId::new(CommittedLeaderIdOf::<TypeConfig>::new(term), index);
    let voters: BTreeSet<NodeId> = members.keys().copied().collect();
    let seats: BTreeMap<NodeId, Seat> = members.iter().map(|(id, m)| (*id, Seat::of(m.clone()))).collect();
    let membership = Membership::new(vec![voters], seats).map_err(|fault| ConsensusError::Raft {
        group,
        what: "begin with these members",
        fault: fault.to_string(),
    })?;
    let mut applied = before;
    applied.change_membership(StoredMembership::new(Some(last), membership));
    applied.last = Some(last);
    // Members of the restored system count as new: whether they have data is seen when they start.
    applied.removed.retain(|id| !members.contains_key(id));
    let mut batch = WriteBatch::new();
    batch.put(Cf::Meta, meta_key(group, META_MARKER), applied.encode());
    batch.put(Cf::Meta, meta_key(group, PURGED), codec::purged_record(&last));
    // Nobody's vote: no server has the id 0.
    batch.put(Cf::Meta, meta_key(group, VOTE), codec::vote_record(&Vote::new(term, 0)));
    // Others that are empty need a snapshot.
    batch.put(Cf::Meta, meta_key(group, SNAPSHOT), Bytes::from_static(b"1"));
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_state::engine::{BatchOp, Reader as _};

    fn members(ids: &[NodeId]) -> BTreeMap<NodeId, Member> {
        let member = |id: &NodeId| Member {
            name: format!("s-{id}"),
            address: format!("h:{id}"),
        };
        ids.iter().map(|id| (*id, member(id))).collect()
    }

    #[test]
    fn a_restored_group_begins_above_every_old_position_with_the_new_members() {
        let group = GroupId::TENANTS;
        let mut old = Applied {
            last: Some(LogId::new(CommittedLeaderIdOf::<TypeConfig>::new(7), 90)),
            removed: [2, 9].into(),
            ..Applied::default()
        };
        let voters = BTreeSet::from([1, 5]);
        let seats = members(&[1, 5])
            .into_iter()
            .map(|(id, m)| (id, Seat::of(m)))
            .collect::<BTreeMap<_, _>>();
        old.change_membership(StoredMembership::new(
            None,
            Membership::new(vec![voters], seats).unwrap(),
        ));
        let batch = begin(group, old.encode(), &members(&[1, 2])).unwrap();
        assert!(batch.ops().iter().all(|op| matches!(op, BatchOp::Put(Cf::Meta, ..))));
        let engine = hanse_state::engine::MemoryEngine::new();
        hanse_state::engine::Engine::write(&engine, batch, true).unwrap();
        let get = |name| engine.get(Cf::Meta, &meta_key(group, name)).unwrap();
        let applied = Applied::decode(get(META_MARKER)).unwrap();
        let last = applied.last.unwrap();
        assert!(last.index > GAP && last.leader_id.term > GAP);
        assert_eq!(codec::purged_from_record(get(PURGED).unwrap()).unwrap(), last);
        assert_eq!(applied.membership.membership().voter_ids().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(
            applied.removed,
            [5, 9].into(),
            "ids that are used up stay so, but those of members"
        );
    }

    #[test]
    fn a_group_that_never_wrote_can_be_restored() {
        assert!(begin(GroupId::COUNCIL, Bytes::new(), &members(&[3])).is_ok());
        assert!(begin(GroupId::COUNCIL, Bytes::from_static(b"x"), &members(&[3])).is_err());
    }
}
