//! Streams in memory, for tests of exchanges without a network.

use crate::code::Code;
use crate::stream::{RecvHalf, SendHalf, StreamFault};
use futures::future::BoxFuture;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::watch;

/// Bytes in flight per direction.
const CAPACITY: usize = 16 << 10;

#[derive(Default)]
struct Shared {
    reset: watch::Sender<Option<Code>>,
    stopped: watch::Sender<Option<Code>>,
}

pub(crate) struct MemorySend {
    pipe: DuplexStream,
    shared: Arc<Shared>,
    over: bool,
}

pub(crate) struct MemoryRecv {
    pipe: DuplexStream,
    shared: Arc<Shared>,
}

fn direction() -> (MemorySend, MemoryRecv) {
    let (one, other) = tokio::io::duplex(CAPACITY);
    let shared = Arc::new(Shared::default());
    let recv = MemoryRecv {
        pipe: other,
        shared: Arc::clone(&shared),
    };
    (
        MemorySend {
            pipe: one,
            shared,
            over: false,
        },
        recv,
    )
}

/// Both ends of a bidirectional stream.
pub(crate) fn streams() -> ((MemorySend, MemoryRecv), (MemorySend, MemoryRecv)) {
    let (send, recv) = direction();
    let (send_back, recv_back) = direction();
    ((send, recv_back), (send_back, recv))
}

impl AsyncWrite for MemorySend {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(code) = *self.shared.stopped.borrow() {
            return Poll::Ready(Err(StreamFault::Stopped(code).into()));
        }
        let wrote = ready!(Pin::new(&mut self.pipe).poll_write(cx, buf));
        let stopped = *self.shared.stopped.borrow();
        Poll::Ready(wrote.map_err(|error| stopped.map_or(error, |code| StreamFault::Stopped(code).into())))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.over = true;
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

impl SendHalf for MemorySend {
    fn reset(&mut self, code: Code) {
        if !self.over {
            self.over = true;
            self.shared.reset.send_replace(Some(code));
        }
    }

    fn stopped(&self) -> BoxFuture<'static, StreamFault> {
        let mut stopped = self.shared.stopped.subscribe();
        Box::pin(async move {
            let code = stopped.wait_for(Option::is_some).await.map_or(None, |code| *code);
            StreamFault::Stopped(code.unwrap_or(Code::None))
        })
    }
}

impl Drop for MemorySend {
    fn drop(&mut self) {
        self.reset(Code::Cancelled);
    }
}

impl AsyncRead for MemoryRecv {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(cx, buf))?;
        let reset = *self.shared.reset.borrow();
        match reset.filter(|_code| buf.filled().len() == before) {
            Some(code) => Poll::Ready(Err(StreamFault::Reset(code).into())),
            None => Poll::Ready(Ok(())),
        }
    }
}

impl RecvHalf for MemoryRecv {
    fn stop(&mut self, code: Code) {
        self.shared.stopped.send_replace(Some(code));
    }
}

impl Drop for MemoryRecv {
    fn drop(&mut self) {
        if self.shared.stopped.borrow().is_none() {
            self.stop(Code::None);
        }
    }
}
