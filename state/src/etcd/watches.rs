//! The watches of one stream: polled together, found by id, and dropped while others go on.

use crate::store::WatchItem;
use crate::watch::Watch;
use futures::stream::{SelectAll, StreamExt};
use futures::{FutureExt, Stream};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// An item and the watch that it is of.
pub(crate) struct Tagged {
    pub(crate) id: i64,
    pub(crate) fragment: bool,
    pub(crate) item: WatchItem,
}

#[derive(Default)]
struct Slot {
    watch: Option<Watch>,
    waker: Option<Waker>,
}

struct Member {
    id: i64,
    fragment: bool,
    slot: Arc<Mutex<Slot>>,
}

impl Stream for Member {
    type Item = Tagged;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Tagged>> {
        let mut slot = self.slot.lock();
        let Some(watch) = slot.watch.as_mut() else {
            return Poll::Ready(None);
        };
        match watch.poll_next_unpin(context) {
            Poll::Ready(item) => Poll::Ready(item.map(|item| Tagged {
                id: self.id,
                fragment: self.fragment,
                item,
            })),
            Poll::Pending => {
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The watches.
#[derive(Default)]
pub(crate) struct Watches {
    slots: HashMap<i64, Arc<Mutex<Slot>>>,
    members: SelectAll<Member>,
    next_id: i64,
}

impl Watches {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The id that a new watch gets: the client's if it is free, or with 0 the next free one.
    pub(crate) fn free_id(&mut self, wanted: i64) -> Option<i64> {
        if wanted != 0 {
            return (!self.slots.contains_key(&wanted)).then_some(wanted);
        }
        while self.slots.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    pub(crate) fn insert(&mut self, id: i64, watch: Watch, fragment: bool) {
        let slot = Arc::new(Mutex::new(Slot {
            watch: Some(watch),
            waker: None,
        }));
        self.slots.insert(id, slot.clone());
        self.members.push(Member { id, fragment, slot });
    }

    /// Drops a watch; false if there is none of this id.
    pub(crate) fn remove(&mut self, id: i64) -> bool {
        let Some(slot) = self.slots.remove(&id) else {
            return false;
        };
        let mut slot = slot.lock();
        slot.watch = None;
        // Lets the member be polled once more and so be forgotten.
        if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
        true
    }

    /// The next item of any watch; none when there is no watch.
    pub(crate) async fn next(&mut self) -> Option<Tagged> {
        self.members.next().await
    }

    /// What a watch has at hand without waiting.
    pub(crate) fn ready(&self, id: i64) -> Option<WatchItem> {
        let slot = self.slots.get(&id)?;
        slot.lock().watch.as_mut()?.next().now_or_never().flatten()
    }

    /// The revision up to which every watch has yielded everything; none if one has not, or if there is none.
    pub(crate) fn progress(&self) -> Option<i64> {
        let mut least = None;
        for slot in self.slots.values() {
            let revision = slot.lock().watch.as_ref()?.progress()?;
            least = Some(least.map_or(revision, |least: i64| least.min(revision)));
        }
        least
    }
}
