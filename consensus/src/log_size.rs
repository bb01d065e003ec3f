//! How many bytes of a log lie where, in segments of about a megabyte: enough to say up to where it may be purged so that no more
//! than so many bytes stay. Pure.

use std::collections::VecDeque;

/// Bytes after which a segment ends.
const SEGMENT: u64 = 1 << 20;

/// A gapless part of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Segment {
    last: u64,
    bytes: u64,
}

/// Sizes of a log's segments, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogSize {
    full: VecDeque<Segment>,
    /// The one that grows.
    open: Segment,
    /// Of all of them.
    bytes: u64,
}

impl LogSize {
    /// An entry was appended.
    pub(crate) fn append(&mut self, index: u64, bytes: u64) {
        self.open.last = index;
        self.open.bytes += bytes;
        self.bytes += bytes;
        if self.open.bytes >= SEGMENT {
            self.full.push_back(std::mem::take(&mut self.open));
        }
    }

    /// The log was cut: entries from `end` on are gone. A segment that lost some of its entries is forgotten as a whole: what is
    /// cut is little and new.
    pub(crate) fn cut(&mut self, end: u64) {
        if self.open.last >= end {
            self.bytes -= std::mem::take(&mut self.open).bytes;
        }
        while let Some(segment) = self.full.pop_back_if(|segment| segment.last >= end) {
            self.bytes -= segment.bytes;
        }
    }

    /// The log was purged: entries before `start` are gone.
    pub(crate) fn purge(&mut self, start: u64) {
        while let Some(segment) = self.full.pop_front_if(|segment| segment.last < start) {
            self.bytes -= segment.bytes;
        }
        if self.open.last < start {
            self.bytes -= std::mem::take(&mut self.open).bytes;
        }
    }

    /// Bytes of all entries, but for the part of the oldest segment that is purged already.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Up to where the log must be purged, so that no more than `keep` bytes stay; none: there are no more.
    pub(crate) fn beyond(&self, keep: u64) -> Option<u64> {
        let mut bytes = self.open.bytes;
        for segment in self.full.iter().rev() {
            bytes += segment.bytes;
            if bytes > keep {
                return Some(segment.last);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Append(u64),
        Cut(u64),
        Purge(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (0..2 * SEGMENT).prop_map(Step::Append),
            1 => (0..5_u64).prop_map(Step::Cut),
            1 => (0..20_u64).prop_map(Step::Purge),
        ]
    }

    proptest! {
        /// Purged as it says, a log keeps no more than it may, and not much less.
        #[test]
        fn what_stays_is_bounded(steps in prop::collection::vec(step(), 1..200), keep in 0..40 * SEGMENT) {
            let (mut size, mut log) = (LogSize::default(), Vec::<(u64, u64)>::new());
            let mut next = 1;
            let mut lost = 0;
            for step in steps {
                match step {
                    Step::Append(bytes) => {
                        size.append(next, bytes);
                        log.push((next, bytes));
                        next += 1;
                    }
                    Step::Cut(count) => {
                        let first = log.first().map_or(next, |(index, _)| *index);
                        next = next.saturating_sub(count).max(first);
                        size.cut(next);
                        log.retain(|(index, _)| *index < next);
                        // At most one segment whose entries are partly kept.
                        lost += 3 * SEGMENT;
                    }
                    Step::Purge(count) => {
                        let start = log.first().map_or(next, |(index, _)| *index) + count;
                        size.purge(start);
                        log.retain(|(index, _)| *index >= start);
                        next = next.max(start);
                    }
                }
                let real: u64 = log.iter().map(|(_, bytes)| bytes).sum();
                prop_assert_eq!(size.bytes(), size.full.iter().map(|segment| segment.bytes).sum::<u64>() + size.open.bytes);
                prop_assert!(size.bytes() <= real + 3 * SEGMENT && real <= size.bytes() + lost);
                let upto = size.beyond(keep).unwrap_or(0);
                let stays: u64 = log.iter().filter(|(index, _)| *index > upto).map(|(_, bytes)| bytes).sum();
                prop_assert!(stays <= keep + SEGMENT + lost, "{stays} stay of {keep}");
                if upto > 0 && lost == 0 {
                    prop_assert!(stays + 3 * SEGMENT > keep, "only {stays} stay of {keep}");
                }
            }
        }
    }
}
