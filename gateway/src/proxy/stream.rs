//! Bodies of proxied exchanges: one that can be sent again while nobody touched it, and one that ends when it must.

use crate::body::Body;
use crate::rights::Place;
use bytes::Bytes;
use futures::future::BoxFuture;
use hanse_runtime::BoxError;
use hanse_tunnel::TunnelError;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

struct Slot {
    body: Body,
    touched: bool,
    attempt: u32,
}

/// A request body that goes with several attempts, as long as none has read from it.
#[derive(Clone)]
pub(super) struct Repeatable(Arc<Mutex<Slot>>);

impl Repeatable {
    pub(super) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Slot {
            body,
            touched: false,
            attempt: 0,
        })))
    }

    /// The body for the next attempt. Those of earlier attempts fail from now on.
    pub(super) fn attempt(&self) -> hanse_tunnel::Body {
        let mut slot = self.0.lock();
        slot.attempt += 1;
        let attempt = Attempt {
            slot: Arc::clone(&self.0),
            number: slot.attempt,
        };
        drop(slot);
        http_body_util::BodyExt::boxed_unsync(attempt)
    }

    /// Whether the next attempt would send all of it.
    pub(super) fn intact(&self) -> bool {
        !self.0.lock().touched
    }
}

struct Attempt {
    slot: Arc<Mutex<Slot>>,
    number: u32,
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = TunnelError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TunnelError>>> {
        let mut slot = self.slot.lock();
        if slot.attempt != self.number {
            return Poll::Ready(Some(Err(TunnelError::Body(
                "the request is being sent another way".into(),
            ))));
        }
        // Looking at the end of an empty body leaves it as it was.
        if !slot.body.is_end_stream() {
            slot.touched = true;
        }
        Pin::new(&mut slot.body).poll_frame(cx).map_err(TunnelError::Body)
    }

    fn is_end_stream(&self) -> bool {
        self.slot.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.slot.lock().body.size_hint()
    }
}

/// How a stream ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// As if the source had ended: clients go on with a new request.
    Clean,
    /// Broken off, so that nobody takes what came for all there was.
    Broken,
}

/// An answer's body that ends when `end` says so, and holds a place among the long-running ones.
pub(super) struct Guarded {
    pub(super) body: hanse_tunnel::Body,
    pub(super) end: Option<BoxFuture<'static, End>>,
    pub(super) place: Option<Place>,
    pub(super) over: bool,
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(end) = &mut self.end
            && let Poll::Ready(end) = end.as_mut().poll(cx)
        {
            self.over = true;
            self.end = None;
            self.place = None;
            return Poll::Ready(match end {
                End::Clean => None,
                End::Broken => Some(Err("the gateway ended the stream".into())),
            });
        }
        Pin::new(&mut self.body)
            .poll_frame(cx)
            .map_err(|e| -> BoxError { e.into() })
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body;
    use futures::FutureExt;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn an_untouched_body_can_be_sent_again_and_only_once() {
        let body = Repeatable::new(body::full("hello"));
        let first = body.attempt();
        assert!(body.intact());
        let second = body.attempt();
        assert!(first.collect().await.is_err(), "the first attempt is over");
        assert!(body.intact());
        assert_eq!(second.collect().await.unwrap().to_bytes(), "hello");
        assert!(!body.intact());
    }

    #[tokio::test]
    async fn an_empty_body_stays_intact() {
        let body = Repeatable::new(body::empty());
        assert_eq!(body.attempt().collect().await.unwrap().to_bytes(), "");
        assert!(body.intact());
    }

    fn guarded(end: End) -> Guarded {
        let body = hanse_tunnel::full_body("x");
        Guarded {
            body,
            end: Some(futures::future::ready(end).boxed()),
            place: None,
            over: false,
        }
    }

    #[tokio::test]
    async fn streams_end_as_they_are_told() {
        assert_eq!(guarded(End::Clean).collect().await.unwrap().to_bytes(), "");
        assert!(guarded(End::Broken).collect().await.is_err());
        let free = Guarded {
            end: None,
            ..guarded(End::Clean)
        };
        assert_eq!(free.collect().await.unwrap().to_bytes(), "x");
    }
}
