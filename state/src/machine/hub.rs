//! Hands every published change to the watches of its space.
//!
//! A watch has a bounded queue. While its reader keeps up, it is fed from memory; one that falls behind loses its queue
//! and replays from the engine, so a slow reader costs neither memory nor anybody else's time, and misses nothing. It
//! is cut only when what it has not seen yet was compacted.
//!
//! The revision that readers see is published under the lock of the hub, together with the events: whoever holds the
//! lock and finds a queue empty knows that its watch has everything up to the published revision.

use crate::machine::Shared;
use crate::machine::index::{KeyRange, Version};
use crate::machine::replay::{self, Chunk};
use crate::machine::space::Space;
use crate::pb;
use crate::store::{WatchItem, WatchRequest};
use crate::watch::WatchSource;
use futures::Stream;
use hanse_runtime::meter::Family;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use tokio::task::JoinHandle;

/// Revisions that wait for one watch.
const QUEUE_COMMITS: usize = 1024;
/// Bytes that wait for one watch; they are shared with other watches of the same change.
const QUEUE_BYTES: usize = 8 << 20;
/// Revisions that a reader takes out of its queue at a time.
const TAKE: usize = 64;

/// One change of one key.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) kv: pb::KeyValue,
    pub(crate) deleted: bool,
    /// The version before.
    pub(crate) previous: Option<Version>,
    /// The version before with its value, read when the first watch wants it.
    loaded: OnceLock<pb::KeyValue>,
}

impl Change {
    pub(crate) fn new(kv: pb::KeyValue, deleted: bool, previous: Option<Version>) -> Self {
        Self {
            kv,
            deleted,
            previous,
            loaded: OnceLock::new(),
        }
    }

    /// With the value before at hand.
    pub(crate) fn with_previous(self, kv: Option<pb::KeyValue>) -> Self {
        if let Some(kv) = kv {
            // A fresh cell is empty, so this cannot fail.
            self.loaded.set(kv).ok();
        }
        self
    }
}

/// All changes of one revision.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) revision: i64,
    pub(crate) changes: Vec<Change>,
}

impl Commit {
    fn bytes(&self) -> usize {
        self.changes
            .iter()
            .map(|change| change.kv.key.len() + change.kv.value.len() + 64)
            .sum()
    }
}

#[derive(Debug)]
enum Queued {
    Commit(Arc<Commit>),
    Progress(i64),
}

#[derive(Debug, Default)]
struct Inbox {
    queue: VecDeque<Queued>,
    bytes: usize,
    /// The queue was full or the state was replaced: the reader must replay.
    behind: bool,
    /// The reader reads from the engine what it missed.
    replaying: bool,
    closed: Option<WatchItem>,
    /// Something was queued since the last tick.
    active: bool,
    waker: Option<Waker>,
}

impl Inbox {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn fall_behind(&mut self) {
        self.queue.clear();
        self.bytes = 0;
        self.behind = true;
        self.wake();
    }

    fn push(&mut self, commit: &Arc<Commit>, bytes: usize) {
        self.active = true;
        if self.behind || self.closed.is_some() {
            return;
        }
        if self.queue.len() >= QUEUE_COMMITS || self.bytes + bytes > QUEUE_BYTES && !self.queue.is_empty() {
            self.fall_behind();
            return;
        }
        self.bytes += bytes;
        self.queue.push_back(Queued::Commit(commit.clone()));
        self.wake();
    }
}

#[derive(Debug)]
struct Watcher {
    id: u64,
    progress: bool,
    inbox: Arc<Mutex<Inbox>>,
}

/// How watches are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) watches: u64,
    /// Those that do not keep up, or have not yet caught up.
    pub(crate) slow: u64,
    /// What waits for their readers.
    pub(crate) waiting: u64,
    /// What was handed to them since the start.
    pub(crate) events: u64,
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            watches: sum.watches + one.watches,
            slow: sum.slow + one.slow,
            waiting: sum.waiting + one.waiting,
            events: sum.events + one.events,
        })
    }
}

/// As they are shown.
pub(crate) fn families(counts: Counts) -> [Family; 4] {
    [
        Family::gauge("etcd_debugging_mvcc_watcher_total", "Watches.", counts.watches),
        Family::gauge(
            "etcd_debugging_mvcc_slow_watcher_total",
            "Watches that do not keep up and read from the engine.",
            counts.slow,
        ),
        Family::gauge(
            "etcd_debugging_mvcc_pending_events_total",
            "Revisions that wait for the readers of watches.",
            counts.waiting,
        ),
        Family::counter(
            "etcd_debugging_mvcc_events_total",
            "Changes that were handed to watches.",
            counts.events,
        ),
    ]
}

/// The watches of one space, by range: those that watch the same range are matched once.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    watchers: Mutex<Watchers>,
}

#[derive(Debug, Default)]
struct Watchers {
    ranges: HashMap<KeyRange, Vec<Watcher>>,
    next_id: u64,
    /// Changes that were handed to a watch since the start, once for each watch.
    events: u64,
}

impl Watchers {
    fn all(&self) -> impl Iterator<Item = &Watcher> {
        self.ranges.values().flatten()
    }
}

impl Hub {
    /// Makes a revision visible by `publish` and queues its changes, as one step for every watch.
    pub(crate) fn dispatch(&self, commit: &Arc<Commit>, publish: impl FnOnce()) {
        let mut watchers = self.watchers.lock();
        publish();
        if watchers.ranges.is_empty() {
            return;
        }
        let bytes = commit.bytes();
        let Watchers { ranges, events, .. } = &mut *watchers;
        for (range, members) in ranges {
            let wanted = commit.changes.iter().filter(|change| range.contains(&change.kv.key));
            let wanted = wanted.count();
            if wanted > 0 {
                *events += (wanted * members.len()) as u64;
                for watcher in members {
                    watcher.inbox.lock().push(commit, bytes);
                }
            }
        }
    }

    /// Tells idle watches that asked for it how far the store is.
    pub(crate) fn tick(&self, shared: &Shared) {
        let watchers = self.watchers.lock();
        let revision = shared.revision();
        for watcher in watchers.all().filter(|watcher| watcher.progress) {
            let mut inbox = watcher.inbox.lock();
            if !inbox.active && !inbox.behind && inbox.closed.is_none() && inbox.queue.is_empty() {
                inbox.queue.push_back(Queued::Progress(revision));
                inbox.wake();
            }
            inbox.active = false;
        }
    }

    /// Lets every watch replay: what was queued may not be what is stored.
    pub(crate) fn replay_all(&self) {
        for watcher in self.watchers.lock().all() {
            watcher.inbox.lock().fall_behind();
        }
    }

    /// Ends every watch.
    pub(crate) fn close(&self, last: &WatchItem) {
        for watcher in self.watchers.lock().all() {
            let mut inbox = watcher.inbox.lock();
            inbox.closed = Some(last.clone());
            inbox.wake();
        }
    }

    fn join(&self, range: &KeyRange, progress: bool, shared: &Shared) -> (u64, Arc<Mutex<Inbox>>, i64) {
        let mut watchers = self.watchers.lock();
        let id = watchers.next_id;
        watchers.next_id += 1;
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let watcher = Watcher {
            id,
            progress,
            inbox: inbox.clone(),
        };
        watchers.ranges.entry(range.clone()).or_default().push(watcher);
        (id, inbox, shared.revision())
    }

    /// Starts queueing again for a watch that fell behind; answers up to where it must replay.
    fn rejoin(&self, inbox: &Mutex<Inbox>, shared: &Shared) -> i64 {
        let _watchers = self.watchers.lock();
        let mut inbox = inbox.lock();
        inbox.queue.clear();
        inbox.bytes = 0;
        inbox.behind = false;
        shared.revision()
    }

    /// How its watches are doing.
    pub(crate) fn counts(&self) -> Counts {
        let watchers = self.watchers.lock();
        let one = |watcher: &Watcher| {
            let inbox = watcher.inbox.lock();
            Counts {
                watches: 1,
                slow: u64::from(inbox.behind || inbox.replaying),
                waiting: inbox.queue.len() as u64,
                events: 0,
            }
        };
        let counts: Counts = watchers.all().map(one).sum();
        Counts {
            events: watchers.events,
            ..counts
        }
    }

    /// Number of watches.
    pub(crate) fn len(&self) -> usize {
        self.watchers.lock().all().count()
    }

    fn leave(&self, range: &KeyRange, id: u64) {
        let mut watchers = self.watchers.lock();
        if let Some(members) = watchers.ranges.get_mut(range) {
            members.retain(|watcher| watcher.id != id);
            if members.is_empty() {
                watchers.ranges.remove(range);
            }
        }
    }
}

/// The reader's end of a watch.
pub(crate) struct Subscription {
    shared: Arc<Shared>,
    space: Arc<Space>,
    range: KeyRange,
    request: WatchRequest,
    id: u64,
    inbox: Arc<Mutex<Inbox>>,
    /// First revision that is not yet yielded or in `ready`.
    next: i64,
    ready: VecDeque<WatchItem>,
    /// Up to where is being replayed, and the work.
    replay: Option<(i64, JoinHandle<Chunk>)>,
    ended: bool,
}

impl Subscription {
    /// Joins the space's watches. Answers the revision at which it did.
    pub(crate) fn new(shared: Arc<Shared>, space: Arc<Space>, request: WatchRequest) -> (i64, Self) {
        let range = KeyRange::new(&request.key, &request.range_end);
        let (id, inbox, created) = space.hub.join(&range, request.progress, &shared);
        let next = if request.start_revision > 0 {
            request.start_revision
        } else {
            created + 1
        };
        let (ready, replay, ended) = (VecDeque::new(), None, false);
        let mut this = Self {
            shared,
            space,
            range,
            request,
            id,
            inbox,
            next,
            ready,
            replay,
            ended,
        };
        this.replay_to(created);
        (created, this)
    }

    fn replay_to(&mut self, revision: i64) {
        if self.next < self.space.floor() {
            self.end(WatchItem::Compacted {
                revision: self.space.floor(),
            });
        } else if self.next <= revision {
            let (shared, space) = (self.shared.clone(), self.space.clone());
            let (range, request, from) = (self.range.clone(), self.request.clone(), self.next);
            let work = move || replay::chunk(&shared, &space, &range, &request, from, revision);
            self.inbox.lock().replaying = true;
            self.replay = Some((revision, tokio::task::spawn_blocking(work)));
        }
    }

    fn end(&mut self, last: WatchItem) {
        self.ready.push_back(last);
        self.ended = true;
        self.replay = None;
    }

    fn replayed(&mut self, upto: i64, chunk: Option<Chunk>) {
        self.inbox.lock().replaying = false;
        match chunk {
            Some(Chunk::Items { items, next }) => {
                self.ready.extend(items);
                self.next = next;
                self.replay_to(upto);
            }
            Some(Chunk::Compacted { floor }) => self.end(WatchItem::Compacted { revision: floor }),
            // Failed or cancelled at the end of the process: another member can go on.
            Some(Chunk::Failed) | None => self.end(WatchItem::Lagged),
        }
    }

    /// Takes from the inbox. False: there is nothing, and the waker is kept.
    fn take(&mut self, context: &Context<'_>) -> bool {
        let mut inbox = self.inbox.lock();
        if let Some(last) = inbox.closed.take() {
            drop(inbox);
            self.end(last);
            return true;
        }
        if inbox.behind {
            drop(inbox);
            let upto = self.space.hub.rejoin(&self.inbox, &self.shared);
            self.replay_to(upto);
            return true;
        }
        if inbox.queue.is_empty() {
            inbox.waker = Some(context.waker().clone());
            return false;
        }
        let count = inbox.queue.len().min(TAKE);
        let taken: Vec<_> = inbox.queue.drain(..count).collect();
        let commits = taken.iter().filter_map(|queued| match queued {
            Queued::Commit(commit) => Some(commit.bytes()),
            Queued::Progress(_) => None,
        });
        inbox.bytes = inbox.bytes.saturating_sub(commits.sum());
        drop(inbox);
        for queued in taken {
            self.deliver(queued);
        }
        true
    }

    fn deliver(&mut self, queued: Queued) {
        match queued {
            _ if self.ended => {}
            Queued::Progress(revision) => {
                if revision + 1 >= self.next && revision + 1 >= self.request.start_revision {
                    self.next = revision + 1;
                    self.ready.push_back(WatchItem::Progress { revision });
                }
            }
            Queued::Commit(commit) if commit.revision < self.next => {}
            Queued::Commit(commit) => {
                let revision = commit.revision;
                match self.events(&commit) {
                    Some(events) if events.is_empty() => {}
                    Some(events) => self.ready.push_back(WatchItem::Events { revision, events }),
                    None => self.end(WatchItem::Compacted {
                        revision: self.space.floor(),
                    }),
                }
                self.next = revision + 1;
            }
        }
    }

    /// The events that this watch wants; none if a value before was compacted away meanwhile.
    fn events(&self, commit: &Commit) -> Option<Vec<pb::Event>> {
        let mut events = Vec::new();
        for change in &commit.changes {
            if wanted(&self.request, &self.range, &change.kv.key, change.deleted) {
                let prev_kv = if self.request.prev_kv {
                    self.previous(change)?
                } else {
                    None
                };
                events.push(event(change.kv.clone(), change.deleted, prev_kv));
            }
        }
        Some(events)
    }

    /// None: it should exist but is gone. Some(None): there was none.
    fn previous(&self, change: &Change) -> Option<Option<pb::KeyValue>> {
        let Some(version) = change.previous.filter(|version| !version.is_tombstone()) else {
            return Some(None);
        };
        if let Some(kv) = change.loaded.get() {
            return Some(Some(kv.clone()));
        }
        match replay::load(&self.shared, &self.space, &change.kv.key, &version) {
            Ok(Some(kv)) => Some(Some(change.loaded.get_or_init(|| kv).clone())),
            Ok(None) => None,
            Err(error) => {
                tracing::error!(%error, "a watch could not read the value before a change");
                None
            }
        }
    }
}

/// Whether a watch wants a change.
pub(crate) fn wanted(request: &WatchRequest, range: &KeyRange, key: &[u8], deleted: bool) -> bool {
    let filtered = if deleted { request.no_delete } else { request.no_put };
    !filtered && range.contains(key)
}

/// An event in the form of the API.
pub(crate) fn event(kv: pb::KeyValue, deleted: bool, prev_kv: Option<pb::KeyValue>) -> pb::Event {
    let kind = if deleted {
        pb::event::EventType::Delete
    } else {
        pb::event::EventType::Put
    };
    pb::Event {
        r#type: kind.into(),
        kv: Some(kv),
        prev_kv,
    }
}

impl Stream for Subscription {
    type Item = WatchItem;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<WatchItem>> {
        let this = self.get_mut();
        loop {
            if let Some(item) = this.ready.pop_front() {
                return Poll::Ready(Some(item));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            if let Some((upto, work)) = &mut this.replay {
                let upto = *upto;
                match Pin::new(work).poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(chunk) => {
                        this.replay = None;
                        this.replayed(upto, chunk.ok());
                    }
                }
            } else if !this.take(context) {
                return Poll::Pending;
            }
        }
    }
}

impl WatchSource for Subscription {
    fn progress(&self) -> Option<i64> {
        if !self.ready.is_empty() || self.replay.is_some() || self.ended {
            return None;
        }
        let _watchers = self.space.hub.watchers.lock();
        let inbox = self.inbox.lock();
        if inbox.behind || inbox.closed.is_some() || !inbox.queue.is_empty() {
            return None;
        }
        let revision = self.shared.revision();
        // A watch from the future says nothing until its start is reached.
        (revision + 1 >= self.request.start_revision).then_some(revision)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.space.hub.leave(&self.range, self.id);
    }
}
