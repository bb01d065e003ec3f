//! The work queue of a controller, as a value: which key is due when, which runs, which failed how often.
//!
//! Rules: a key is queued once, and the earliest time wins; a key never runs twice at the same time, a wake while it
//! runs makes it run once more; at most `limit` keys run at once; among due keys the one that is due longest goes
//! first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Debug, Default)]
struct Entry {
    due: Option<Duration>,
    running: bool,
    again: bool,
    failures: u32,
    unsettled: u32,
}

/// A key that needed steps this often in a row writes without end (two writers disagree, say): it is slowed down, and
/// the changes that it makes itself no longer wake it early.
pub const STORM: u32 = 6;

/// The queue. Times are monotonic.
#[derive(Debug)]
pub struct Queue<K> {
    entries: BTreeMap<K, Entry>,
    order: BTreeSet<(Duration, K)>,
    running: usize,
    limit: usize,
}

impl<K: Ord + Clone> Queue<K> {
    /// A queue that lets `limit` keys run at once.
    pub fn new(limit: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            order: BTreeSet::new(),
            running: 0,
            limit: limit.max(1),
        }
    }

    /// `key` shall run at `at` or earlier.
    pub fn wake(&mut self, key: K, at: Duration) {
        let entry = self.entries.entry(key.clone()).or_default();
        if entry.running {
            entry.again = true;
            return;
        }
        if let Some(due) = entry.due {
            if due <= at || entry.unsettled >= STORM {
                return;
            }
            self.order.remove(&(due, key.clone()));
        }
        entry.due = Some(at);
        self.order.insert((at, key));
    }

    /// The next key that may run now.
    pub fn take(&mut self, now: Duration) -> Option<K> {
        if self.running >= self.limit {
            return None;
        }
        let (due, _) = self.order.first()?;
        if *due > now {
            return None;
        }
        let (_, key) = self.order.pop_first()?;
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.due = None;
            entry.running = true;
        }
        self.running += 1;
        Some(key)
    }

    /// When the next key is due, if one could run then.
    pub fn next_due(&self) -> Option<Duration> {
        if self.running >= self.limit {
            return None;
        }
        self.order.first().map(|(due, _)| *due)
    }

    /// `key` needed nothing; look again at `next`, if given.
    pub fn settled(&mut self, key: &K, next: Option<Duration>, now: Duration) {
        self.end(key, next, now, |entry| {
            entry.failures = 0;
            entry.unsettled = 0;
        });
    }

    /// Steps of `key` were done; it runs again at `next`. Returns how often in a row it needed steps.
    pub fn stepped(&mut self, key: &K, next: Duration, now: Duration) {
        self.end(key, Some(next), now, |entry| {
            entry.failures = 0;
            entry.unsettled = entry.unsettled.saturating_add(1);
        });
    }

    /// `key` failed; it runs again at `next`.
    pub fn failed(&mut self, key: &K, next: Duration, now: Duration) {
        self.end(key, Some(next), now, |entry| {
            entry.failures = entry.failures.saturating_add(1)
        });
    }

    fn end(&mut self, key: &K, next: Option<Duration>, now: Duration, note: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if !entry.running {
            return;
        }
        entry.running = false;
        self.running -= 1;
        note(entry);
        // A wake while a key that keeps failing or stepping ran must not cut its backoff short, else it would spin.
        let again = std::mem::take(&mut entry.again);
        let hurried = again && entry.failures == 0 && entry.unsettled == 0;
        let next = if hurried || (again && next.is_none()) {
            Some(now)
        } else {
            next
        };
        let idle = entry.failures == 0 && entry.unsettled == 0;
        match next {
            Some(at) => self.wake(key.clone(), at),
            None if idle => {
                self.entries.remove(key);
            }
            None => {}
        }
    }

    /// Failures of `key` in a row.
    pub fn failures(&self, key: &K) -> u32 {
        self.entries.get(key).map_or(0, |e| e.failures)
    }

    /// How often in a row `key` needed steps.
    pub fn unsettled(&self, key: &K) -> u32 {
        self.entries.get(key).map_or(0, |e| e.unsettled)
    }

    /// Keys that wait.
    pub fn waiting(&self) -> usize {
        self.order.len()
    }

    /// Keys that wait and are due at `now`.
    pub fn due(&self, now: Duration) -> usize {
        self.order.iter().take_while(|(due, _)| *due <= now).count()
    }

    /// Keys that run.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Keys whose last run failed.
    pub fn failing(&self) -> usize {
        self.entries.values().filter(|e| e.failures > 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_key_is_queued_once_and_the_earliest_time_wins() {
        let mut queue = Queue::new(8);
        queue.wake("a", s(9));
        queue.wake("a", s(3));
        queue.wake("a", s(5));
        assert_eq!((queue.waiting(), queue.next_due()), (1, Some(s(3))));
        assert_eq!(queue.take(s(2)), None);
        assert_eq!(queue.take(s(3)), Some("a"));
        assert_eq!(queue.take(s(99)), None);
    }

    #[test]
    fn a_key_never_runs_twice_at_once_and_a_wake_meanwhile_makes_it_run_again() {
        let mut queue = Queue::new(8);
        queue.wake("a", s(0));
        assert_eq!(queue.take(s(0)), Some("a"));
        queue.wake("a", s(0));
        assert_eq!(queue.take(s(0)), None);
        queue.settled(&"a", None, s(1));
        assert_eq!(queue.take(s(1)), Some("a"));
        queue.settled(&"a", None, s(2));
        assert_eq!((queue.take(s(99)), queue.waiting()), (None, 0));
    }

    #[test]
    fn concurrency_is_bounded_and_the_longest_due_goes_first() {
        let mut queue = Queue::new(2);
        for (key, due) in [("c", 1), ("a", 2), ("b", 3)] {
            queue.wake(key, s(due));
        }
        assert_eq!(
            (queue.take(s(5)), queue.take(s(5)), queue.take(s(5))),
            (Some("c"), Some("a"), None)
        );
        assert_eq!(queue.next_due(), None, "no use waking up while all places are taken");
        queue.settled(&"c", None, s(5));
        assert_eq!(queue.take(s(5)), Some("b"));
    }

    #[test]
    fn a_key_that_writes_without_end_is_slowed_down() {
        let mut queue = Queue::new(1);
        queue.wake("a", s(0));
        for _ in 0..STORM {
            assert_eq!(queue.take(s(0)), Some("a"));
            queue.stepped(&"a", s(0), s(0));
        }
        assert_eq!(queue.take(s(0)), Some("a"));
        queue.stepped(&"a", s(30), s(0));
        queue.wake("a", s(0));
        assert_eq!((queue.take(s(29)), queue.take(s(30))), (None, Some("a")));
    }

    #[test]
    fn backoff_is_not_cut_short_by_wakes_of_the_failing_run_itself() {
        let mut queue = Queue::new(1);
        queue.wake("a", s(0));
        assert_eq!(queue.take(s(0)), Some("a"));
        queue.wake("a", s(0));
        queue.failed(&"a", s(10), s(0));
        assert_eq!((queue.take(s(9)), queue.failures(&"a")), (None, 1));
        assert_eq!(queue.take(s(10)), Some("a"));
        queue.settled(&"a", None, s(10));
        assert_eq!((queue.failures(&"a"), queue.failing()), (0, 0));
    }
}
