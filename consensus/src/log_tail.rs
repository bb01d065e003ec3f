//! The newest entries of a log, in memory. Every entry is read at least once on each member right after it was appended (to be
//! applied), and on the leader once more for each follower; none of these readers should decode it again from the engine.
//! Pure: the engine stays the truth, and whoever asks for older entries reads them there.

use crate::types::Entry;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use std::collections::VecDeque;

/// What an entry takes besides its command.
const OVERHEAD: usize = 128;

/// A gapless run of entries that ends where the log ends.
pub(crate) struct Tail {
    entries: VecDeque<Entry>,
    bytes: usize,
    limit: usize,
}

fn size(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => OVERHEAD + proposal.command.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => OVERHEAD,
    }
}

impl Tail {
    /// Holds about `limit` bytes, and always the newest entry.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            limit,
        }
    }

    /// First index held, and the one after the last.
    fn span(&self) -> Option<(u64, u64)> {
        let (first, last) = (self.entries.front()?, self.entries.back()?);
        Some((first.index(), last.index() + 1))
    }

    /// Takes what was appended to the log. Older entries go first.
    pub(crate) fn append(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            if self.span().is_some_and(|(_, next)| next != entry.index()) {
                self.clear();
            }
            self.bytes += size(&entry);
            self.entries.push_back(entry);
            while self.bytes > self.limit && self.entries.len() > 1 {
                self.drop_first();
            }
        }
    }

    fn drop_first(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= size(&entry);
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    /// The log was cut: entries from `end` on are gone.
    pub(crate) fn cut(&mut self, end: u64) {
        while let Some(entry) = self.entries.pop_back_if(|entry| entry.index() >= end) {
            self.bytes -= size(&entry);
        }
    }

    /// The log was purged: entries before `start` are gone.
    pub(crate) fn purge(&mut self, start: u64) {
        while self.entries.front().is_some_and(|entry| entry.index() < start) {
            self.drop_first();
        }
    }

    /// Entries of `[start, end)`, of which only the first may exceed `most` bytes; none if the one at `start` is not held.
    pub(crate) fn read(&self, start: u64, end: u64, most: usize) -> Option<Vec<Entry>> {
        let (first, next) = self.span().filter(|(first, next)| (*first..*next).contains(&start))?;
        let (from, to) = (start - first, end.clamp(start, next) - first);
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let lone = bytes == 0;
            bytes += size(entry);
            lone || bytes <= most
        };
        let entries = self
            .entries
            .range(usize::try_from(from).ok()?..usize::try_from(to).ok()?);
        Some(entries.take_while(fits).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LogId, Proposal, ProposalId, TypeConfig};
    use openraft::type_config::alias::CommittedLeaderIdOf;
    use proptest::prelude::*;

    fn entry(index: u64, length: usize) -> Entry {
        let id = ProposalId {
            origin: 1,
            sequence: index,
        };
        let command = vec![0; length].into();
        Entry {
            log_id: LogId::new(CommittedLeaderIdOf::<TypeConfig>::new(1), index),
            payload: EntryPayload::Normal(Proposal { id, command }),
        }
    }

    fn indexes(entries: Option<Vec<Entry>>) -> Option<Vec<u64>> {
        entries.map(|all| all.iter().map(RaftEntry::index).collect())
    }

    #[test]
    fn the_first_entry_comes_whatever_its_size() {
        let mut tail = Tail::new(1 << 20);
        tail.append((1..=3).map(|index| entry(index, 1000)));
        assert_eq!(indexes(tail.read(1, 9, 10)), Some(vec![1]));
        assert_eq!(indexes(tail.read(2, 9, 2 * (1000 + OVERHEAD))), Some(vec![2, 3]));
        assert_eq!(
            indexes(tail.read(0, 2, 10)),
            None,
            "an older entry may be in the engine"
        );
        assert_eq!(indexes(tail.read(4, 9, 10)), None, "the engine says where the log ends");
    }

    #[test]
    fn one_entry_beyond_the_limit_is_held_alone() {
        let mut tail = Tail::new(500);
        tail.append([entry(1, 10), entry(2, 10), entry(3, 4000)]);
        assert_eq!(indexes(tail.read(3, 4, 0)), Some(vec![3]));
        assert_eq!(indexes(tail.read(2, 4, 0)), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Append(usize, usize),
        /// So many entries fewer.
        Cut(u64),
        /// So many entries fewer at the front.
        Purge(u64),
        /// A snapshot was installed and the log goes on behind a gap.
        Jump(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..5_usize, 0..300_usize).prop_map(|(count, length)| Step::Append(count, length)),
            1 => (0..6_u64).prop_map(Step::Cut),
            1 => (0..6_u64).prop_map(Step::Purge),
            1 => (1..4_u64).prop_map(Step::Jump),
        ]
    }

    proptest! {
        /// Whatever the tail answers is what a log that holds everything would answer.
        #[test]
        fn answers_as_the_whole_log(steps in prop::collection::vec(step(), 1..40), start in 0..60_u64, length in 0..60_u64) {
            let (mut tail, mut log, mut next) = (Tail::new(2_000), Vec::<u64>::new(), 1);
            for step in steps {
                match step {
                    Step::Append(count, length) => {
                        tail.append((0..count).map(|n| entry(next + n as u64, length)));
                        log.extend(next..next + count as u64);
                        next += count as u64;
                    }
                    Step::Cut(count) => {
                        next = next.saturating_sub(count).max(log.first().copied().unwrap_or(next));
                        tail.cut(next);
                        log.retain(|index| *index < next);
                    }
                    Step::Purge(count) => {
                        let first = log.first().copied().unwrap_or(next) + count;
                        tail.purge(first);
                        log.retain(|index| *index >= first);
                        next = next.max(first);
                    }
                    Step::Jump(count) => {
                        log.clear();
                        next += count;
                        tail.purge(next);
                    }
                }
                if let Some(found) = indexes(tail.read(start, start + length, usize::MAX)) {
                    let whole: Vec<u64> = (start..start + length).filter(|index| log.contains(index)).collect();
                    prop_assert_eq!(found, whole);
                }
                let held: usize = tail.entries.iter().map(size).sum();
                prop_assert_eq!(held, tail.bytes);
                prop_assert!(held <= 2_000 || tail.entries.len() == 1);
            }
        }
    }
}
