//! Whose writes go into the log next.
//!
//! Every write of a group that this member proposes takes a turn first. A thousand are under way at a time; the others wait here,
//! each key space in a line of its own, and the lines are served by deficit round robin: each in its turn by so many bytes, so
//! that a space with a thousand writers gets no more of a busy log than one with a single writer. While several spaces write, none
//! may have more than a share of the turns (`share.rs`): what is already in the log cannot be overtaken, so whoever writes
//! little would wait behind whoever writes much. A line that is full refuses, which its own space hears and no other. A write whose caller has gone
//! away keeps its turn until its fate is known: it is in the log's hands all the same.
//!
//! A rate that a space is limited to is kept here as well: a bucket of one second, and who comes later than that is refused.

use crate::share::Share;
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::meter::{Family, Histogram, Stopwatch};
use hanse_state::StoreError;
use hanse_state::meters::Count;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Bytes that a line is served by in its turn.
const QUANTUM: usize = 1024;
/// What a write counts for besides its bytes: an entry costs something however small it is.
const ENTRY: usize = 256;
/// A space that wrote less long ago than that still counts as one that writes.
const RECENT: Duration = Duration::from_secs(10);
/// Spaces that are remembered before those without anything under way are forgotten.
const REMEMBERED: usize = 1024;
/// How long a write waits for its space's rate at most.
const RATE_WAIT: Duration = Duration::from_secs(1);

/// Bounds of the turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Writes under way.
    pub window: usize,
    /// Writes of one space under way while another writes as well, before it is known how long one takes.
    pub share: usize,
    /// Whether that follows the time that writes take.
    pub adapts: bool,
    /// Writes of one space that wait.
    pub line: usize,
    /// Bytes of them; a single larger write waits alone.
    pub line_bytes: usize,
    /// Bytes of all that wait: beyond them a space has one write in its line.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window: 1024,
            share: 64,
            adapts: true,
            line: 8192,
            line_bytes: 16 << 20,
            bytes: 256 << 20,
        }
    }
}

/// One space.
#[derive(Debug)]
struct Flow<T> {
    line: VecDeque<(usize, T)>,
    /// What the line costs.
    bytes: usize,
    deficit: usize,
    /// Whether what it was given in this turn is not used up yet.
    in_turn: bool,
    under_way: usize,
    /// When its next write fits its rate.
    next: Duration,
}

/// The lines and who is next. Pure: time is an argument, and a ticket is whatever the caller hands out.
#[derive(Debug)]
pub(crate) struct Lines<K, T> {
    limits: Limits,
    flows: HashMap<K, Flow<T>>,
    /// Spaces with a line, in the order in which they are served.
    round: VecDeque<K>,
    under_way: usize,
    /// What all lines cost.
    bytes: usize,
    /// Spaces that last wanted something, newest first and different.
    recent: [Option<(K, Duration)>; 2],
    share: Share,
}

/// When a write went on, and how many were under way then, itself included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Went {
    at: Duration,
    company: usize,
}

/// The rate was used up for longer than a write waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooFast;

impl<K: Clone + Eq + Hash, T> Lines<K, T> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            share: Share::new(limits.share, limits.window),
            limits,
            flows: HashMap::new(),
            round: VecDeque::new(),
            under_way: 0,
            bytes: 0,
            recent: [None, None],
        }
    }

    fn note(&mut self, now: Duration, key: &K) -> &mut Flow<T> {
        if self.recent[0].as_ref().is_none_or(|(newest, _)| newest != key) {
            self.recent.swap(0, 1);
        }
        self.recent[0] = Some((key.clone(), now));
        if self.flows.len() >= REMEMBERED && !self.flows.contains_key(key) {
            let used = |flow: &Flow<T>| flow.under_way > 0 || !flow.line.is_empty() || flow.next > now;
            self.flows.retain(|_, flow| used(flow));
        }
        self.flows.entry(key.clone()).or_insert_with(|| Flow {
            line: VecDeque::new(),
            bytes: 0,
            deficit: 0,
            in_turn: false,
            under_way: 0,
            next: Duration::ZERO,
        })
    }

    /// How long a write must wait for its space's rate; it counts from now on.
    pub(crate) fn pace(&mut self, now: Duration, key: &K, per_second: u32) -> Result<Duration, TooFast> {
        let Some(each) = Duration::from_secs(1).checked_div(per_second) else {
            return Ok(Duration::ZERO);
        };
        let flow = self.note(now, key);
        // What was not used is saved for a second, no longer.
        let next = flow.next.max(now.saturating_sub(RATE_WAIT));
        let wait = next.saturating_sub(now);
        if wait > RATE_WAIT {
            return Err(TooFast);
        }
        flow.next = next + each;
        Ok(wait)
    }

    /// Takes a write in. What comes back may go on; a write that cannot even wait comes back as an error.
    pub(crate) fn enter(&mut self, now: Duration, key: &K, bytes: usize, ticket: T) -> Result<Vec<(K, T)>, T> {
        let (limits, all) = (self.limits, self.bytes);
        let cost = bytes.saturating_add(ENTRY);
        let flow = self.note(now, key);
        let full = flow.line.len() >= limits.line
            || flow.bytes.saturating_add(cost) > limits.line_bytes
            || all.saturating_add(cost) > limits.bytes;
        if full && !flow.line.is_empty() {
            return Err(ticket);
        }
        flow.line.push_back((cost, ticket));
        flow.bytes += cost;
        if flow.line.len() == 1 {
            self.round.push_back(key.clone());
        }
        self.bytes += cost;
        Ok(self.serve(now))
    }

    /// A write of `key` that went on then has ended, for whatever reason. What comes back may go on.
    pub(crate) fn end(&mut self, now: Duration, key: &K, went: Went) -> Vec<(K, T)> {
        if self.limits.adapts && self.shared(now, key) {
            self.share.took(now.saturating_sub(went.at), went.company);
        }
        self.leave(now, key)
    }

    /// A write of `key` that went on does nothing, or nothing more. What comes back may go on.
    pub(crate) fn leave(&mut self, now: Duration, key: &K) -> Vec<(K, T)> {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.under_way = flow.under_way.saturating_sub(1);
            self.under_way = self.under_way.saturating_sub(1);
        }
        self.serve(now)
    }

    /// Whether another space than `key` writes.
    fn shared(&self, now: Duration, key: &K) -> bool {
        // Each space is in the round once, so this looks at two of them at most.
        let waits = self.round.iter().any(|other| other != key);
        let recent = |(other, at): &(K, Duration)| other != key && now.saturating_sub(*at) < RECENT;
        waits || self.recent.iter().flatten().any(recent)
    }

    fn serve(&mut self, now: Duration) -> Vec<(K, T)> {
        let mut served = Vec::new();
        let mut passed_over = 0;
        while self.under_way < self.limits.window && passed_over < self.round.len() {
            let Some(key) = self.round.pop_front() else { break };
            let most = if self.shared(now, &key) {
                self.share.limit()
            } else {
                self.limits.window
            };
            let Some(flow) = self.flows.get_mut(&key) else { continue };
            if flow.under_way >= most {
                passed_over += 1;
                self.round.push_back(key);
                continue;
            }
            passed_over = 0;
            if !std::mem::replace(&mut flow.in_turn, true) {
                flow.deficit += QUANTUM;
            }
            while self.under_way < self.limits.window && flow.under_way < most {
                let Some((cost, ticket)) = flow.line.pop_front_if(|(cost, _)| *cost <= flow.deficit) else {
                    break;
                };
                flow.deficit -= cost;
                flow.bytes -= cost;
                flow.under_way += 1;
                self.bytes -= cost;
                self.under_way += 1;
                served.push((key.clone(), ticket));
            }
            match flow.line.front() {
                // Who has no use for its turn saves nothing for later.
                None => {
                    flow.deficit = 0;
                    flow.in_turn = false;
                }
                Some((cost, _)) if *cost > flow.deficit => {
                    flow.in_turn = false;
                    self.round.push_back(key);
                }
                // Its turn goes on when there is room.
                Some(_) if self.under_way >= self.limits.window => self.round.push_front(key),
                Some(_) => self.round.push_back(key),
            }
        }
        served
    }

    /// What goes on now goes on in this company.
    pub(crate) fn went(&self, now: Duration) -> Went {
        let company = self.under_way;
        Went { at: now, company }
    }

    fn waiting(&self) -> usize {
        self.flows.values().map(|flow| flow.line.len()).sum()
    }
}

struct Inner<K: Clone + Eq + Hash> {
    lines: Mutex<Lines<K, oneshot::Sender<Turn<K>>>>,
    /// How long a write waits in its line at most.
    patience: Duration,
    clock: SharedClock,
    stopwatch: Stopwatch,
    waited: Histogram,
    refused: Count,
}

/// Turns of one group on this member.
pub struct Turns<K: Clone + Eq + Hash> {
    inner: Arc<Inner<K>>,
}

impl<K: Clone + Eq + Hash> std::fmt::Debug for Turns<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Turns(..)")
    }
}

/// A write that may go on; the next one may when this is dropped.
pub struct Turn<K: Clone + Eq + Hash> {
    key: Option<K>,
    went: Went,
    inner: Arc<Inner<K>>,
}

impl<K: Clone + Eq + Hash> std::fmt::Debug for Turn<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Turn(..)")
    }
}

impl<K: Clone + Eq + Hash> Inner<K> {
    /// Hands turns to who waits for them. One who is gone gives his back at once.
    fn hand_out(self: &Arc<Self>, served: Vec<(K, oneshot::Sender<Turn<K>>)>, went: Went) {
        let mut served = VecDeque::from(served);
        while let Some((key, ticket)) = served.pop_front() {
            let turn = Turn {
                key: Some(key),
                went,
                inner: Arc::clone(self),
            };
            if let Err(mut unwanted) = ticket.send(turn)
                && let Some(key) = unwanted.key.take()
            {
                let now = self.clock.mono();
                served.extend(self.lines.lock().leave(now, &key));
            }
        }
    }
}

impl<K: Clone + Eq + Hash> Drop for Turn<K> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let now = self.inner.clock.mono();
            let (served, went) = {
                let mut lines = self.inner.lines.lock();
                (lines.end(now, &key, self.went), lines.went(now))
            };
            self.inner.hand_out(served, went);
        }
    }
}

impl<K: Clone + Eq + Hash> Turns<K> {
    /// Nobody waits yet. Nobody will wait in a line for longer than `patience`.
    pub fn new(limits: Limits, patience: Duration, clock: SharedClock) -> Self {
        Self {
            inner: Arc::new(Inner {
                lines: Mutex::new(Lines::new(limits)),
                patience,
                clock,
                stopwatch: Stopwatch::default(),
                waited: Histogram::of_requests(),
                refused: Count::default(),
            }),
        }
    }

    /// Waits for a turn for a write of so many bytes, and for its space's rate; 0: no rate.
    pub async fn take(&self, key: &K, bytes: usize, per_second: u32) -> Result<Turn<K>, StoreError> {
        let Inner {
            stopwatch,
            waited,
            refused,
            ..
        } = self.inner.as_ref();
        let taken = stopwatch.time_async(waited, self.wait(key, bytes, per_second)).await;
        taken.inspect_err(|_| refused.add(1))
    }

    async fn wait(&self, key: &K, bytes: usize, per_second: u32) -> Result<Turn<K>, StoreError> {
        let Inner {
            lines, clock, patience, ..
        } = self.inner.as_ref();
        if per_second > 0 {
            let pace = lines.lock().pace(clock.mono(), key, per_second);
            match pace {
                Ok(Duration::ZERO) => {}
                Ok(pause) => clock.sleep(pause).await,
                Err(TooFast) => return Err(StoreError::Overloaded),
            }
        }
        let (ticket, turn) = oneshot::channel();
        let (served, went) = {
            let (mut lines, now) = (lines.lock(), clock.mono());
            (lines.enter(now, key, bytes, ticket), lines.went(now))
        };
        self.inner.hand_out(served.map_err(|_| StoreError::Overloaded)?, went);
        // Nothing was proposed yet, so this is a refusal and not a write of unknown fate.
        let turn = timeout(clock.as_ref(), *patience, turn).await;
        turn.map_err(|_| StoreError::Overloaded)?
            .map_err(|_| StoreError::Stopped)
    }

    /// As they are shown.
    pub(crate) fn families(&self) -> [Family; 5] {
        let (under_way, waiting, share) = {
            let lines = self.inner.lines.lock();
            (
                lines.under_way as u64,
                lines.waiting() as u64,
                lines.share.limit() as u64,
            )
        };
        [
            Family::gauge(
                "hanse_store_writes_under_way",
                "Writes of this member in the log's hands.",
                under_way,
            ),
            Family::gauge(
                "hanse_store_writes_waiting",
                "Writes of this member that wait for their turn.",
                waiting,
            ),
            Family::gauge(
                "hanse_store_writes_share",
                "Writes of one space that may be under way while others write.",
                share,
            ),
            Family::counter(
                "hanse_store_writes_refused_total",
                "Writes that were refused because their space has too many.",
                self.inner.refused.get(),
            ),
            Family::histogram(
                "hanse_store_turn_duration_seconds",
                "Time that a write waited for its turn.",
                Vec::new(),
                &self.inner.waited,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::clock::SystemClock;
    use hanse_runtime::clock::testing::ManualClock;
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_secs(100);
    const PATIENCE: Duration = Duration::from_secs(60);

    fn limits(window: usize, share: usize, line: usize) -> Limits {
        Limits {
            window,
            share,
            line,
            ..Limits::default()
        }
    }

    #[test]
    fn alone_a_space_has_the_whole_window_and_beside_another_its_share() {
        let mut lines = Lines::new(limits(10, 3, 100));
        let went: usize = (0..20).map(|n| lines.enter(NOW, &'a', 10, n).unwrap().len()).sum();
        assert_eq!(went, 10);
        let mut lines = Lines::new(limits(10, 3, 100));
        assert_eq!(lines.enter(NOW, &'b', 10, 0).unwrap(), [('b', 0)]);
        assert!(lines.leave(NOW, &'b').is_empty());
        let went: usize = (1..20).map(|n| lines.enter(NOW, &'a', 10, n).unwrap().len()).sum();
        assert_eq!(went, 3, "another wrote a moment ago");
        let later = NOW + RECENT;
        assert_eq!(lines.enter(later, &'a', 10, 99).unwrap().len(), 7, "it has stopped");
    }

    #[test]
    fn a_full_line_refuses_its_own_space_only() {
        let mut lines = Lines::new(limits(1, 1, 2));
        assert_eq!(lines.enter(NOW, &'a', 10, 0).unwrap(), [('a', 0)]);
        for n in 1..3 {
            assert!(lines.enter(NOW, &'a', 10, n).unwrap().is_empty());
        }
        assert_eq!(lines.enter(NOW, &'a', 10, 3), Err(3));
        assert_eq!(lines.enter(NOW, &'b', 10, 4), Ok(vec![]));
        let next: Vec<_> = (0..3).flat_map(|_| lines.leave(NOW, &'a')).collect();
        assert_eq!(next, [('a', 1), ('a', 2), ('b', 4)]);
    }

    #[test]
    fn lines_are_bounded_in_bytes_and_an_empty_one_takes_a_write_nevertheless() {
        let mut lines = Lines::new(Limits {
            line_bytes: 3000,
            bytes: 4000,
            ..limits(1, 1, 100)
        });
        let mut enter = |key: char, bytes: usize| lines.enter(NOW, &key, bytes, ()).map(|served| served.len());
        assert_eq!(enter('a', 1000), Ok(1));
        assert_eq!(enter('a', 9000), Ok(0), "larger than a line, but alone");
        assert_eq!(enter('a', 0), Err(()));
        assert_eq!(enter('b', 1000), Ok(0), "all lines are full, but this one is empty");
        assert_eq!(enter('b', 0), Err(()));
        // They go on, so there is room: in a line, and in all of them.
        let mut last = 'a';
        while lines.waiting() > 0 {
            let served = lines.leave(NOW, &last);
            assert_eq!(served.len(), 1);
            last = served[0].0;
        }
        let mut enter = |key: char, bytes: usize| lines.enter(NOW, &key, bytes, ()).map(|served| served.len());
        assert_eq!((enter('a', 1000), enter('a', 1000)), (Ok(0), Ok(0)));
        assert_eq!(enter('a', 1000), Err(()), "its line is full");
        assert_eq!(enter('b', 1000), Ok(0));
        assert_eq!(enter('b', 0), Err(()), "all lines are full");
    }

    #[test]
    fn a_rate_saves_a_second_and_lets_wait_a_second() {
        let mut lines: Lines<char, ()> = Lines::new(Limits::default());
        let mut waits = Vec::new();
        while let Ok(wait) = lines.pace(NOW, &'a', 10) {
            waits.push(wait);
            assert!(waits.len() < 100);
        }
        assert_eq!(
            waits.iter().filter(|wait| wait.is_zero()).count(),
            11,
            "a second's worth and the first"
        );
        assert_eq!(waits.len(), 21);
        assert_eq!(waits.last(), Some(&Duration::from_secs(1)));
        assert_eq!(lines.pace(NOW, &'b', 10), Ok(Duration::ZERO), "another space");
        assert_eq!(
            lines.pace(NOW + Duration::from_millis(100), &'a', 10),
            Ok(Duration::from_secs(1))
        );
        assert_eq!(lines.pace(NOW, &'c', 0), Ok(Duration::ZERO));
    }

    #[test]
    fn spaces_that_are_gone_are_forgotten() {
        let mut lines = Lines::new(Limits::default());
        for n in 0..10 * REMEMBERED {
            assert_eq!(lines.enter(NOW, &n, 1, ()).unwrap().len(), 1);
            lines.leave(NOW, &n);
        }
        assert!(lines.flows.len() <= REMEMBERED);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter(u8, usize),
        /// The one that went on so many ago ends.
        Leave(usize),
        Later(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..4_u8, 0..20_000_usize).prop_map(|(key, bytes)| Step::Enter(key, bytes)),
            3 => (0..20_usize).prop_map(Step::Leave),
            1 => (0..2_000_u64).prop_map(Step::Later),
        ]
    }

    proptest! {
        /// Nothing is lost or doubled, each line keeps its order, the bounds hold, and nobody waits while there is room.
        #[test]
        fn every_ticket_goes_on_once(steps in prop::collection::vec(step(), 1..300)) {
            let bounds = limits(6, 3, 8);
            let mut lines = Lines::new(bounds);
            let (mut now, mut number) = (NOW, 0);
            let (mut under_way, mut waiting): (Vec<u8>, Vec<VecDeque<usize>>) = (Vec::new(), vec![VecDeque::new(); 4]);
            let drain = (0..2_000).map(|_| Step::Leave(0));
            for step in steps.into_iter().chain(drain) {
                let served = match step {
                    Step::Enter(key, bytes) => {
                        number += 1;
                        match lines.enter(now, &key, bytes, number) {
                            Ok(served) => {
                                waiting[usize::from(key)].push_back(number);
                                served
                            }
                            Err(ticket) => {
                                prop_assert_eq!(ticket, number);
                                prop_assert_eq!(waiting[usize::from(key)].len(), bounds.line);
                                Vec::new()
                            }
                        }
                    }
                    Step::Leave(_) if under_way.is_empty() => Vec::new(),
                    Step::Leave(at) => {
                        let key = under_way.remove(at % under_way.len());
                        lines.leave(now, &key)
                    }
                    Step::Later(millis) => {
                        now += Duration::from_millis(millis);
                        Vec::new()
                    }
                };
                for (key, ticket) in served {
                    prop_assert_eq!(waiting[usize::from(key)].pop_front(), Some(ticket));
                    under_way.push(key);
                }
                prop_assert!(under_way.len() <= bounds.window);
                prop_assert_eq!(lines.under_way, under_way.len());
                prop_assert_eq!(lines.waiting(), waiting.iter().map(VecDeque::len).sum::<usize>());
                prop_assert_eq!(lines.bytes, lines.flows.values().map(|flow| flow.bytes).sum::<usize>());
                prop_assert_eq!(lines.bytes == 0, lines.waiting() == 0);
                let idle = |key: &u8| under_way.iter().filter(|one| *one == key).count() < bounds.share;
                let blocked = (0..4_u8).any(|key| !waiting[usize::from(key)].is_empty() && idle(&key));
                prop_assert!(!blocked || under_way.len() == bounds.window, "one waits although there is room");
            }
            prop_assert!(under_way.is_empty() && waiting.iter().all(VecDeque::is_empty));
        }

        /// Two spaces that always have something to write get the same bytes, whatever their sizes and numbers.
        #[test]
        fn bytes_are_shared_evenly(small in 1..200_usize, large in 200..12_000_usize, window in 1..20_usize) {
            let mut lines = Lines::new(limits(window, window, 1_000));
            let mut under_way: VecDeque<(char, usize)> = VecDeque::new();
            for _ in 0..500 {
                for (key, bytes) in [('s', small), ('l', large)] {
                    under_way.extend(lines.enter(NOW, &key, bytes, bytes).unwrap());
                }
            }
            // Until then one of them was alone with the window.
            let alone = under_way.len();
            let mut got = HashMap::from([('s', 0), ('l', 0)]);
            for _ in 0..(alone + 150) {
                let Some((key, _)) = under_way.pop_front() else { break };
                for (key, bytes) in lines.leave(NOW, &key) {
                    *got.get_mut(&key).unwrap() += bytes + ENTRY;
                    under_way.push_back((key, bytes));
                }
            }
            let (s, l): (usize, usize) = (got[&'s'], got[&'l']);
            let slack = 2 * (large + ENTRY).max(QUANTUM) + QUANTUM;
            prop_assert!(s.abs_diff(l) <= slack, "{} and {} bytes, {} apart at most", s, l, slack);
        }
    }

    #[tokio::test]
    async fn who_gives_up_waiting_holds_nobody_up() {
        let turns = Turns::new(limits(1, 1, 10), PATIENCE, SystemClock::shared());
        let first = turns.take(&'a', 1, 0).await.unwrap();
        for _ in 0..5 {
            let waits = turns.take(&'a', 1, 0);
            assert!(futures::FutureExt::now_or_never(waits).is_none());
        }
        let last = turns.take(&'b', 1, 0);
        let (turn, ()) = tokio::join!(last, async { drop(first) });
        drop(turn.unwrap());
        assert_eq!(turns.inner.lines.lock().under_way, 0);
        drop(turns.take(&'a', 1, 0).await.unwrap());
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let clock = ManualClock::default();
        let turns = Turns::new(limits(1, 1, 10), PATIENCE, Arc::new(clock.clone()));
        let first = turns.take(&'a', 1, 0).await.unwrap();
        let mut second = std::pin::pin!(turns.take(&'b', 1, 0));
        assert!(futures::poll!(second.as_mut()).is_pending());
        clock.advance(PATIENCE);
        assert_eq!(second.await.unwrap_err(), StoreError::Overloaded);
        drop(first);
        drop(turns.take(&'c', 1, 0).await.unwrap());
        assert_eq!(turns.inner.lines.lock().under_way, 0);
    }

    #[tokio::test]
    async fn a_full_line_is_too_many_requests() {
        let turns = Turns::new(limits(1, 1, 1), PATIENCE, SystemClock::shared());
        let _first = turns.take(&'a', 1, 0).await.unwrap();
        let mut second = std::pin::pin!(turns.take(&'a', 1, 0));
        assert!(futures::poll!(second.as_mut()).is_pending());
        let third = turns.take(&'a', 1, 0).await.unwrap_err();
        assert_eq!(third, StoreError::Overloaded);
        assert_eq!(third.status().message(), "etcdserver: too many requests");
        assert!(
            futures::poll!(std::pin::pin!(turns.take(&'b', 1, 0))).is_pending(),
            "another space may wait"
        );
    }
}
