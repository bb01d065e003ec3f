//! A watch, as its reader sees it: a stream of [`WatchItem`] that can be asked how far it is.

use crate::store::WatchItem;
use futures::Stream;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

/// What stands behind a [`Watch`].
pub trait WatchSource: Stream<Item = WatchItem> + Send + Unpin {
    /// The revision up to which the reader was given every event; none while some are still to come.
    fn progress(&self) -> Option<i64>;
}

/// A stream of changes in revision order. It ends after [`WatchItem::Compacted`] or [`WatchItem::Lagged`], or when
/// the store stops.
pub struct Watch {
    created: i64,
    source: Box<dyn WatchSource>,
}

impl Watch {
    /// A watch made when the store was at revision `created`.
    pub fn new(created: i64, source: Box<dyn WatchSource>) -> Self {
        Self { created, source }
    }

    /// Revision of the store when the watch was made.
    pub fn created(&self) -> i64 {
        self.created
    }

    /// The revision up to which this reader was given every event; none while some are still to come. Two watches
    /// that answer one number here were both given all events up to it.
    pub fn progress(&self) -> Option<i64> {
        self.source.progress()
    }

    /// The next item; none at the end. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<WatchItem> {
        futures::StreamExt::next(&mut self.source).await
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("created", &self.created)
            .finish_non_exhaustive()
    }
}

impl Stream for Watch {
    type Item = WatchItem;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<WatchItem>> {
        Pin::new(&mut self.source).poll_next(context)
    }
}
