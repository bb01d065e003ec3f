//! Between Raft's types and the protobuf records on disk and on the wire. Pure.
//!
//! openraft says that its own serde form is no stable format, so nothing of it is ever written.

use crate::error::CodecError;
use crate::roster::{Change, Refusal};
use crate::types::{
    Entry, LogId, Member, Membership, NodeId, Proposal, ProposalId, Seat, StoredMembership, TypeConfig, Vote,
};
use bytes::Bytes;
use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::type_config::alias::CommittedLeaderIdOf;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// Messages and records as generated from `proto/consensus.proto`.
#[expect(missing_docs, clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod pb {
    tonic::include_proto!("hanse.consensus.v1");
}

/// Format of every stored record this version writes.
pub const FORMAT: u32 = 1;

/// Refuses a record that a newer version wrote.
fn check_format(what: &'static str, format: u32) -> Result<(), CodecError> {
    if format == FORMAT {
        Ok(())
    } else {
        Err(CodecError::Format { what, format })
    }
}

fn missing(what: &'static str) -> CodecError {
    CodecError::Missing { what }
}

/// Decodes a protobuf message.
pub fn decode<M: Message + Default>(what: &'static str, bytes: Bytes) -> Result<M, CodecError> {
    M::decode(bytes).map_err(|source| CodecError::Malformed { what, source })
}

/// A log id as a record.
pub fn log_id_to_pb(id: &LogId) -> pb::LogId {
    pb::LogId {
        term: id.leader_id.term,
        index: id.index,
    }
}

/// A log id from a record.
pub fn log_id_from_pb(id: pb::LogId) -> LogId {
    LogId::new(CommittedLeaderIdOf::<TypeConfig>::new(id.term), id.index)
}

/// A vote as a record.
pub fn vote_to_pb(vote: &Vote) -> pb::Vote {
    pb::Vote {
        term: vote.leader_id.term,
        node: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}

/// A vote from a record.
pub fn vote_from_pb(vote: pb::Vote) -> Vote {
    if vote.committed {
        Vote::new_committed(vote.term, vote.node)
    } else {
        Vote::new(vote.term, vote.node)
    }
}

/// A vote that must be there.
pub fn required_vote(vote: Option<pb::Vote>) -> Result<Vote, CodecError> {
    vote.map(vote_from_pb).ok_or_else(|| missing("vote"))
}

/// A seat as a record.
pub fn seat_to_pb(seat: &Seat) -> pb::Member {
    pb::Member {
        name: seat.member.name.clone(),
        address: seat.member.address.clone(),
        held: seat.held,
        moved: seat.moved,
        awaits_vote: seat.awaits_vote,
        replaces: seat.replaces,
    }
}

/// A seat from a record.
pub fn seat_from_pb(record: pb::Member) -> Seat {
    Seat {
        member: Member {
            name: record.name,
            address: record.address,
        },
        held: record.held,
        moved: record.moved,
        awaits_vote: record.awaits_vote,
        replaces: record.replaces,
    }
}

/// A membership as a record.
pub fn membership_to_pb(membership: &Membership) -> pb::Membership {
    let voters = |ids: &BTreeSet<u64>| pb::membership::Voters {
        ids: ids.iter().copied().collect(),
    };
    pb::Membership {
        configs: membership.get_joint_config().iter().map(voters).collect(),
        members: membership.nodes().map(|(id, seat)| (*id, seat_to_pb(seat))).collect(),
    }
}

/// A membership from a record.
pub fn membership_from_pb(record: pb::Membership) -> Result<Membership, CodecError> {
    let configs: Vec<BTreeSet<u64>> = record
        .configs
        .into_iter()
        .map(|c| c.ids.into_iter().collect())
        .collect();
    let members: BTreeMap<u64, Seat> = record
        .members
        .into_iter()
        .map(|(id, m)| (id, seat_from_pb(m)))
        .collect();
    if configs.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, members).map_err(|fault| CodecError::Invalid {
        what: "membership",
        fault: fault.to_string(),
    })
}

/// A stored membership as a record.
pub fn stored_membership_to_pb(stored: &StoredMembership) -> pb::StoredMembership {
    pb::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_pb),
        membership: Some(membership_to_pb(stored.membership())),
    }
}

/// A stored membership from a record.
pub fn stored_membership_from_pb(record: Option<pb::StoredMembership>) -> Result<StoredMembership, CodecError> {
    let Some(record) = record else {
        return Ok(StoredMembership::default());
    };
    let membership = record
        .membership
        .map(membership_from_pb)
        .transpose()?
        .unwrap_or_default();
    Ok(StoredMembership::new(record.log_id.map(log_id_from_pb), membership))
}

/// A proposal as a message. The command's bytes are shared, not copied.
pub fn proposal_to_pb(proposal: &Proposal) -> pb::Proposal {
    pb::Proposal {
        origin: proposal.id.origin,
        sequence: proposal.id.sequence,
        command: proposal.command.clone(),
    }
}

/// A proposal from a message.
pub fn proposal_from_pb(record: pb::Proposal) -> Proposal {
    let id = ProposalId {
        origin: record.origin,
        sequence: record.sequence,
    };
    Proposal {
        id,
        command: record.command,
    }
}

/// An entry as a record.
pub fn entry_to_pb(entry: &Entry) -> pb::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => pb::entry::Payload::Blank(pb::Blank {}),
        EntryPayload::Normal(proposal) => pb::entry::Payload::Proposal(proposal_to_pb(proposal)),
        EntryPayload::Membership(membership) => pb::entry::Payload::Membership(membership_to_pb(membership)),
    };
    let id = &entry.log_id;
    pb::Entry {
        format: FORMAT,
        term: id.leader_id.term,
        index: id.index,
        payload: Some(payload),
    }
}

/// An entry from a record.
pub fn entry_from_pb(record: pb::Entry) -> Result<Entry, CodecError> {
    check_format("log entry", record.format)?;
    let payload = match record.payload.ok_or_else(|| missing("payload of a log entry"))? {
        pb::entry::Payload::Blank(pb::Blank {}) => EntryPayload::Blank,
        pb::entry::Payload::Proposal(proposal) => EntryPayload::Normal(proposal_from_pb(proposal)),
        pb::entry::Payload::Membership(membership) => EntryPayload::Membership(membership_from_pb(membership)?),
    };
    Ok(Entry {
        log_id: log_id_from_pb(pb::LogId {
            term: record.term,
            index: record.index,
        }),
        payload,
    })
}

/// An entry from stored bytes.
pub fn entry_from_bytes(bytes: Bytes) -> Result<Entry, CodecError> {
    entry_from_pb(decode("log entry", bytes)?)
}

/// How far a state machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The last applied entry.
    pub last: Option<LogId>,
    /// The newest applied membership.
    pub membership: StoredMembership,
    /// Servers that were members and are not any more: their ids are used up. Follows from the log alone.
    pub removed: BTreeSet<NodeId>,
}

impl Applied {
    /// As a stored record.
    pub fn encode(&self) -> Bytes {
        let record = pb::AppliedRecord {
            format: FORMAT,
            last: self.last.as_ref().map(log_id_to_pb),
            membership: Some(stored_membership_to_pb(&self.membership)),
            removed: self.removed.iter().copied().collect(),
        };
        record.encode_to_vec().into()
    }

    /// From a stored record; nothing stored means nothing applied.
    pub fn decode(bytes: Option<Bytes>) -> Result<Self, CodecError> {
        let Some(bytes) = bytes else { return Ok(Self::default()) };
        let record: pb::AppliedRecord = decode("applied record", bytes)?;
        check_format("applied record", record.format)?;
        Ok(Self {
            last: record.last.map(log_id_from_pb),
            membership: stored_membership_from_pb(record.membership)?,
            removed: record.removed.into_iter().collect(),
        })
    }

    /// Notes a membership that was applied.
    pub fn change_membership(&mut self, membership: StoredMembership) {
        let left = self.membership.nodes().map(|(id, _)| *id);
        let left = left.filter(|id| membership.membership().get_node(id).is_none());
        self.removed.extend(left.collect::<Vec<_>>());
        self.membership = membership;
    }
}

/// A vote as a stored record.
pub fn vote_record(vote: &Vote) -> Bytes {
    pb::VoteRecord {
        format: FORMAT,
        vote: Some(vote_to_pb(vote)),
    }
    .encode_to_vec()
    .into()
}

/// A vote from a stored record.
pub fn vote_from_record(bytes: Bytes) -> Result<Vote, CodecError> {
    let record: pb::VoteRecord = decode("vote", bytes)?;
    check_format("vote", record.format)?;
    required_vote(record.vote)
}

/// The newest purged log id as a stored record.
pub fn purged_record(id: &LogId) -> Bytes {
    pb::PurgedRecord {
        format: FORMAT,
        log_id: Some(log_id_to_pb(id)),
    }
    .encode_to_vec()
    .into()
}

/// The newest purged log id from a stored record.
pub fn purged_from_record(bytes: Bytes) -> Result<LogId, CodecError> {
    let record: pb::PurgedRecord = decode("purged record", bytes)?;
    check_format("purged record", record.format)?;
    record
        .log_id
        .map(log_id_from_pb)
        .ok_or_else(|| missing("purged log id"))
}

/// An append request as a message.
pub fn append_to_pb(group: u32, request: &AppendEntriesRequest<TypeConfig>) -> pb::AppendRequest {
    pb::AppendRequest {
        group,
        vote: Some(vote_to_pb(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_to_pb),
        entries: request.entries.iter().map(entry_to_pb).collect(),
        committed: request.leader_commit.as_ref().map(log_id_to_pb),
    }
}

/// An append request from a message.
pub fn append_from_pb(message: pb::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, CodecError> {
    Ok(AppendEntriesRequest {
        vote: required_vote(message.vote)?,
        prev_log_id: message.previous.map(log_id_from_pb),
        entries: message
            .entries
            .into_iter()
            .map(entry_from_pb)
            .collect::<Result<_, _>>()?,
        leader_commit: message.committed.map(log_id_from_pb),
    })
}

/// A vote request as a message.
pub fn vote_request_to_pb(group: u32, request: &VoteRequest<TypeConfig>) -> pb::VoteRequest {
    pb::VoteRequest {
        group,
        vote: Some(vote_to_pb(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id_to_pb),
        leadership_transfer: request.leadership_transfer,
    }
}

/// A vote request from a message.
pub fn vote_request_from_pb(message: pb::VoteRequest) -> Result<VoteRequest<TypeConfig>, CodecError> {
    Ok(VoteRequest {
        vote: required_vote(message.vote)?,
        last_log_id: message.last.map(log_id_from_pb),
        leadership_transfer: message.leadership_transfer,
    })
}

/// A vote answer as a message.
pub fn vote_reply_to_pb(reply: &VoteResponse<TypeConfig>) -> pb::VoteReply {
    pb::VoteReply {
        vote: Some(vote_to_pb(&reply.vote)),
        granted: reply.vote_granted,
        last: reply.last_log_id.as_ref().map(log_id_to_pb),
    }
}

/// A vote answer from a message.
pub fn vote_reply_from_pb(message: pb::VoteReply) -> Result<VoteResponse<TypeConfig>, CodecError> {
    let last = message.last.map(log_id_from_pb);
    Ok(VoteResponse::new(required_vote(message.vote)?, last, message.granted))
}

/// A transfer request as a message.
pub fn transfer_to_pb(group: u32, request: &TransferLeaderRequest<TypeConfig>) -> pb::TransferRequest {
    pb::TransferRequest {
        group,
        from: Some(vote_to_pb(request.from_leader())),
        to: *request.to_node_id(),
        last: request.last_log_id().map(log_id_to_pb),
    }
}

/// A transfer request from a message.
pub fn transfer_from_pb(message: pb::TransferRequest) -> Result<TransferLeaderRequest<TypeConfig>, CodecError> {
    let last = message.last.map(log_id_from_pb);
    Ok(TransferLeaderRequest::new(
        required_vote(message.from)?,
        message.to,
        last,
    ))
}

/// A change of the members as a message.
pub fn change_to_pb(change: &Change, again: bool) -> pb::ChangeRequest {
    use pb::change_request::{Add, Change as C, Update};
    let change = match change.clone() {
        Change::Add { id, member, learner } => C::Add(Add {
            id,
            member: Some(seat_to_pb(&Seat::of(member))),
            learner,
        }),
        Change::Promote(id) => C::Promote(id),
        Change::Remove(id) => C::Remove(id),
        Change::Update { id, address } => C::Update(Update { id, address }),
    };
    pb::ChangeRequest {
        change: Some(change),
        again,
    }
}

/// A change of the members from a message, and whether it may have been carried out.
pub fn change_from_pb(message: pb::ChangeRequest) -> Result<(Change, bool), CodecError> {
    use pb::change_request::{Add, Change as C, Update};
    let change = match message.change.ok_or_else(|| missing("change of the members"))? {
        C::Add(Add { id, member, learner }) => Change::Add {
            id,
            member: seat_from_pb(member.ok_or_else(|| missing("new member"))?).member,
            learner,
        },
        C::Promote(id) => Change::Promote(id),
        C::Remove(id) => Change::Remove(id),
        C::Update(Update { id, address }) => Change::Update { id, address },
    };
    Ok((change, message.again))
}

fn number(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// A refusal as a message.
pub fn refusal_to_pb(refusal: &Refusal) -> pb::change_reply::Refused {
    use pb::change_reply::{Refused, refused::Why};
    let plain = |why: Why, id: NodeId| Refused {
        why: why.into(),
        id,
        ..Refused::default()
    };
    let counted = |why: Why, voters: usize, present: usize, needed: usize| Refused {
        voters: number(voters),
        present: number(present),
        needed: number(needed),
        ..plain(why, 0)
    };
    match refusal {
        Refusal::NoSuchMember { id } => plain(Why::NoSuchMember, *id),
        Refusal::IdUsed { id } => plain(Why::IdUsed, *id),
        Refusal::NotLearner { id } => plain(Why::NotLearner, *id),
        Refusal::TooManyLearners => plain(Why::TooManyLearners, 0),
        Refusal::Gone { id } => plain(Why::Gone, *id),
        Refusal::Alive { id } => plain(Why::Alive, *id),
        Refusal::Foreign { id } => plain(Why::Foreign, *id),
        Refusal::AddressTaken { address } => Refused {
            address: address.clone(),
            ..plain(Why::AddressTaken, 0)
        },
        Refusal::Behind { id, behind } => Refused {
            behind: *behind,
            ..plain(Why::Behind, *id)
        },
        Refusal::Unstarted {
            voters,
            present,
            needed,
        } => counted(Why::Unstarted, *voters, *present, *needed),
        Refusal::Unreachable {
            voters,
            present,
            needed,
        } => counted(Why::Unreachable, *voters, *present, *needed),
    }
}

/// A refusal from a message. Of one that a newer version invented only the refusal is left: that the change is not possible now.
pub fn refusal_from_pb(message: pb::change_reply::Refused) -> Refusal {
    use pb::change_reply::refused::Why;
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let (id, why) = (message.id, message.why());
    let (voters, present, needed) = (count(message.voters), count(message.present), count(message.needed));
    match why {
        Why::NoSuchMember => Refusal::NoSuchMember { id },
        Why::IdUsed => Refusal::IdUsed { id },
        Why::NotLearner => Refusal::NotLearner { id },
        Why::TooManyLearners => Refusal::TooManyLearners,
        Why::Gone => Refusal::Gone { id },
        Why::Alive => Refusal::Alive { id },
        Why::Foreign => Refusal::Foreign { id },
        Why::AddressTaken => Refusal::AddressTaken {
            address: message.address,
        },
        Why::Behind => Refusal::Behind {
            id,
            behind: message.behind,
        },
        Why::Unstarted => Refusal::Unstarted {
            voters,
            present,
            needed,
        },
        Why::Unreachable | Why::Unknown => Refusal::Unreachable {
            voters,
            present,
            needed,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log_id(term: u64, index: u64) -> LogId {
        log_id_from_pb(pb::LogId { term, index })
    }

    fn membership(configs: &[&[u64]]) -> Membership {
        let configs: Vec<BTreeSet<u64>> = configs.iter().map(|c| c.iter().copied().collect()).collect();
        let seat = |id: &u64| Seat {
            member: Member {
                name: format!("n{id}"),
                address: format!("127.0.0.{id}:1"),
            },
            held: *id == 2,
            moved: *id == 3,
            awaits_vote: *id == 4,
            replaces: if *id == 5 { 2 } else { 0 },
        };
        let seats: BTreeMap<u64, Seat> = configs.iter().flatten().map(|id| (*id, seat(id))).collect();
        Membership::new(configs, seats).unwrap()
    }

    #[test]
    fn entries_of_every_kind_come_back() {
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(Proposal {
                id: ProposalId {
                    origin: u64::MAX,
                    sequence: 9,
                },
                command: Bytes::from_static(b"command"),
            }),
            EntryPayload::Membership(membership(&[&[1, 2, 3], &[2, 3, 4]])),
            EntryPayload::Membership(Membership::default()),
        ];
        for payload in payloads {
            let entry = Entry {
                log_id: log_id(3, 7),
                payload,
            };
            let back = entry_from_bytes(entry_to_pb(&entry).encode_to_vec().into()).unwrap();
            assert_eq!(back.log_id, entry.log_id);
            assert_eq!(back.payload, entry.payload);
        }
    }

    #[test]
    fn newer_formats_are_refused_by_name() {
        let mut record = entry_to_pb(&Entry {
            log_id: log_id(1, 1),
            payload: EntryPayload::Blank,
        });
        record.format = 2;
        let error = entry_from_bytes(record.encode_to_vec().into()).unwrap_err();
        assert!(error.to_string().contains("format 2"), "{error}");
        assert!(vote_from_record(Bytes::from_static(b"\x08\x07")).is_err());
        assert!(matches!(
            entry_from_bytes(Bytes::from_static(b"\xff\xff")),
            Err(CodecError::Malformed { .. })
        ));
    }

    #[test]
    fn stored_records_come_back() {
        for vote in [Vote::new(4, 2), Vote::new_committed(9, 3)] {
            assert_eq!(vote_from_record(vote_record(&vote)).unwrap(), vote);
        }
        assert_eq!(purged_from_record(purged_record(&log_id(2, 8))).unwrap(), log_id(2, 8));
        assert_eq!(Applied::decode(None).unwrap(), Applied::default());
        let applied = Applied {
            last: Some(log_id(5, 50)),
            membership: StoredMembership::new(Some(log_id(1, 2)), membership(&[&[1, 2]])),
            removed: BTreeSet::from([7, u64::MAX]),
        };
        assert_eq!(Applied::decode(Some(applied.encode())).unwrap(), applied);
    }

    #[test]
    fn changes_and_refusals_come_back() {
        let member = Member {
            name: "n".into(),
            address: "h:1".into(),
        };
        let changes = [
            Change::Add {
                id: u64::MAX,
                member,
                learner: true,
            },
            Change::Promote(1),
            Change::Remove(2),
            Change::Update {
                id: 3,
                address: "h:2".into(),
            },
        ];
        for change in changes {
            assert_eq!(change_from_pb(change_to_pb(&change, true)).unwrap(), (change, true));
        }
        assert!(change_from_pb(pb::ChangeRequest::default()).is_err());
        let (voters, present, needed) = (5, 2, 3);
        let refusals = [
            Refusal::NoSuchMember { id: 1 },
            Refusal::IdUsed { id: 2 },
            Refusal::AddressTaken { address: "h:1".into() },
            Refusal::NotLearner { id: 3 },
            Refusal::Behind { id: 4, behind: Some(0) },
            Refusal::Behind { id: 4, behind: None },
            Refusal::TooManyLearners,
            Refusal::Unstarted {
                voters,
                present,
                needed,
            },
            Refusal::Unreachable {
                voters,
                present,
                needed,
            },
        ];
        for refusal in refusals {
            assert_eq!(refusal_from_pb(refusal_to_pb(&refusal)), refusal);
        }
    }

    #[test]
    fn who_is_not_among_the_members_any_more_was_removed_for_good() {
        let mut applied = Applied::default();
        let mut apply = |index, configs: &[&[u64]]| {
            applied.change_membership(StoredMembership::new(Some(log_id(1, index)), membership(configs)));
            applied.removed.iter().copied().collect::<Vec<_>>()
        };
        assert!(apply(1, &[&[1, 2, 3]]).is_empty());
        assert!(
            apply(2, &[&[1, 2, 3], &[1, 2]]).is_empty(),
            "still there while both sets count"
        );
        assert_eq!(apply(3, &[&[1, 2]]), [3]);
        assert_eq!(apply(4, &[&[1]]), [2, 3]);
        assert_eq!(apply(5, &[&[1, 4]]), [2, 3]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let _entry = entry_from_bytes(bytes.clone()).is_ok();
            let _applied = Applied::decode(Some(bytes)).is_ok();
        }

        #[test]
        fn messages_come_back(term in 0u64..9, index in 0u64..9, node in any::<u64>(), committed in any::<bool>()) {
            let vote = if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) };
            let request = VoteRequest { vote, last_log_id: Some(log_id(term, index)), leadership_transfer: committed };
            prop_assert_eq!(&vote_request_from_pb(vote_request_to_pb(1, &request)).unwrap(), &request);
            let reply = VoteResponse::<TypeConfig>::new(vote, None, committed);
            prop_assert_eq!(&vote_reply_from_pb(vote_reply_to_pb(&reply)).unwrap(), &reply);
        }
    }
}
