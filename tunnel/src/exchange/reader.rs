//! The receiving direction: messages, bodies, and what is left when a stream turns raw.

use crate::code::Code;
use crate::error::TunnelError;
use crate::frame::{Decoder, Grammar, Item, Kind};
use crate::stream::{RecvHalf, classify};
use crate::wire;
use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::ReadBuf;
use tokio_util::sync::DropGuard;

/// Least free space to read into.
const READ_MIN: usize = 8 << 10;
/// Space to read into while a body flows.
const READ_BULK: usize = 64 << 10;

/// Reads frames. Dropping it before the end tells the other end to stop sending.
pub(crate) struct FrameReader<R: RecvHalf> {
    // `None` once the stream was taken out or came to its end.
    recv: Option<R>,
    buffer: BytesMut,
    decoder: Decoder,
    bulk: bool,
    peer: String,
    on_drop: Code,
}

impl<R: RecvHalf> FrameReader<R> {
    /// A reader at the start of a stream from `peer`.
    pub(crate) fn new(recv: R, grammar: Grammar, peer: &str, on_drop: Code) -> Self {
        let decoder = Decoder::new(grammar);
        Self {
            recv: Some(recv),
            buffer: BytesMut::new(),
            decoder,
            bulk: false,
            peer: peer.to_owned(),
            on_drop,
        }
    }

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Item>, TunnelError>> {
        loop {
            match self.decoder.next(&mut self.buffer) {
                Ok(Some(item)) => return Poll::Ready(Ok(Some(item))),
                Ok(None) => {}
                Err(error) => {
                    self.stop(error.code());
                    return Poll::Ready(Err(error));
                }
            }
            let Some(recv) = &mut self.recv else {
                return Poll::Ready(Ok(None));
            };
            // A body that fills the buffer gets larger reads; an idle stream keeps little memory.
            self.buffer.reserve(if self.bulk { READ_BULK } else { READ_MIN });
            match ready!(tokio_util::io::poll_read_buf(Pin::new(recv), cx, &mut self.buffer)) {
                Ok(0) => {
                    self.recv = None;
                    if !self.decoder.at_boundary(&self.buffer) {
                        return Poll::Ready(Err(TunnelError::Truncated));
                    }
                }
                Ok(len) => self.bulk = len >= READ_MIN,
                Err(error) => {
                    self.recv = None;
                    return Poll::Ready(Err(classify(error, &self.peer)));
                }
            }
        }
    }

    /// The next item; `None` at the clean end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Item>, TunnelError> {
        std::future::poll_fn(|cx| self.poll_item(cx)).await
    }

    /// The next item, which must be a message of one of `kinds`.
    pub(crate) async fn message(&mut self, kinds: &[Kind]) -> Result<(Kind, Bytes), TunnelError> {
        match self.next().await? {
            Some(Item::Message(kind, bytes)) if kinds.contains(&kind) => Ok((kind, bytes)),
            Some(Item::Message(kind, _)) => Err(self.unexpected(kind)),
            Some(Item::Data(_)) => Err(self.unexpected(Kind::Data)),
            None => Err(TunnelError::Truncated),
        }
    }

    /// The head of a response.
    pub(crate) async fn response(&mut self) -> Result<http::Response<()>, TunnelError> {
        let (_, bytes) = self.message(&[Kind::ResponseHead]).await?;
        wire::read_response(bytes).inspect_err(|error| self.stop(error.code()))
    }

    fn unexpected(&mut self, kind: Kind) -> TunnelError {
        self.stop(Code::Malformed);
        TunnelError::malformed("stream", format!("a {} came where none may", kind.name()))
    }

    /// Tells the other end that nothing more is read.
    pub(crate) fn stop(&mut self, code: Code) {
        if let Some(mut recv) = self.recv.take() {
            recv.stop(code);
        }
    }

    /// The stream itself with what was read ahead, for raw use. `None` when it has ended.
    pub(crate) fn into_raw(mut self) -> (Option<R>, Bytes) {
        (self.recv.take(), std::mem::take(&mut self.buffer).freeze())
    }
}

impl<R: RecvHalf> Drop for FrameReader<R> {
    fn drop(&mut self) {
        self.stop(self.on_drop);
    }
}

/// The body of a message that is being received.
pub(crate) struct IncomingBody<R: RecvHalf> {
    reader: FrameReader<R>,
    done: bool,
    // Cancels the upload that belongs to the exchange when the response is dropped or over.
    _upload: Option<DropGuard>,
}

impl<R: RecvHalf> IncomingBody<R> {
    /// The body that follows a head.
    pub(crate) fn new(reader: FrameReader<R>, upload: Option<DropGuard>) -> Self {
        Self {
            reader,
            done: false,
            _upload: upload,
        }
    }

    fn end(&mut self, cx: &mut Context<'_>, bytes: Bytes) -> Option<Result<Frame<Bytes>, TunnelError>> {
        self.done = true;
        self.reader.on_drop = Code::None;
        // The end of the stream mostly came with the trailers. Seeing it now saves telling the other end to stop.
        if let Poll::Ready(Ok(Some(_))) = self.reader.poll_item(cx) {
            return Some(Err(TunnelError::malformed("body", "something follows its trailers")));
        }
        match wire::read_trailers(bytes) {
            Ok(trailers) if trailers.is_empty() => None,
            Ok(trailers) => Some(Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(error)),
        }
    }
}

impl<R: RecvHalf> HttpBody for IncomingBody<R> {
    type Data = Bytes;
    type Error = TunnelError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TunnelError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let failed = match ready!(self.reader.poll_item(cx)) {
            Ok(Some(Item::Data(bytes))) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Ok(Some(Item::Message(Kind::Trailers, bytes))) => return Poll::Ready(self.end(cx, bytes)),
            Ok(Some(Item::Message(kind, _))) => self.reader.unexpected(kind),
            Ok(None) => TunnelError::Truncated,
            Err(error) => error,
        };
        self.done = true;
        Poll::Ready(Some(Err(failed)))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }
}

/// Reads what was read ahead, then the stream.
pub(crate) struct RawReader<R: RecvHalf> {
    ahead: Bytes,
    recv: Option<R>,
    ended: bool,
}

impl<R: RecvHalf> RawReader<R> {
    /// The raw rest of a stream.
    pub(crate) fn new(reader: FrameReader<R>) -> Self {
        let (recv, ahead) = reader.into_raw();
        Self {
            ahead,
            recv,
            ended: false,
        }
    }
}

impl<R: RecvHalf> tokio::io::AsyncRead for RawReader<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if !self.ahead.is_empty() {
            let len = buf.remaining().min(self.ahead.len());
            buf.put_slice(&self.ahead.split_to(len));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let Some(recv) = &mut self.recv else {
            return Poll::Ready(Ok(()));
        };
        let outcome = ready!(Pin::new(recv).poll_read(cx, buf));
        self.ended = outcome.is_err() || (buf.filled().len() == before && buf.remaining() > 0);
        Poll::Ready(outcome)
    }
}

impl<R: RecvHalf> Drop for RawReader<R> {
    fn drop(&mut self) {
        if let (false, Some(recv)) = (self.ended, &mut self.recv) {
            recv.stop(Code::Cancelled);
        }
    }
}
