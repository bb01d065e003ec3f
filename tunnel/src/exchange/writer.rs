//! The sending direction: messages and bodies.

use crate::api::Body;
use crate::code::Code;
use crate::error::TunnelError;
use crate::frame::{self, DATA_MAX, Kind};
use crate::stream::{SendHalf, StreamFault, classify, is_not_needed};
use crate::wire;
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use std::io;
use tokio::io::AsyncWriteExt;

/// Data up to this size is copied behind its frame header, so that both go out in one write.
const COPY_MAX: usize = 4 << 10;

/// Writes frames. Dropping it before [`FrameWriter::finish`] breaks the direction off.
pub(crate) struct FrameWriter<S: SendHalf> {
    send: S,
    buffer: BytesMut,
    peer: String,
}

/// How sending a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// All of it.
    All,
    /// The other end did not need the rest.
    Enough,
}

impl<S: SendHalf> FrameWriter<S> {
    /// A writer at the start of a stream to `peer`.
    pub(crate) fn new(send: S, peer: &str) -> Self {
        Self {
            send,
            buffer: BytesMut::new(),
            peer: peer.to_owned(),
        }
    }

    /// Where to put frames before [`FrameWriter::flush`].
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Sends what is in the buffer.
    pub(crate) async fn flush(&mut self) -> Result<(), TunnelError> {
        self.flush_io().await.map_err(|error| classify(error, &self.peer))
    }

    async fn flush_io(&mut self) -> io::Result<()> {
        while self.buffer.has_remaining() {
            self.send.write_buf(&mut self.buffer).await?;
        }
        self.send.flush().await
    }

    /// Ends the direction cleanly.
    pub(crate) async fn finish(&mut self) -> Result<(), TunnelError> {
        self.finish_io().await.map_err(|error| classify(error, &self.peer))
    }

    async fn finish_io(&mut self) -> io::Result<()> {
        self.flush_io().await?;
        self.send.shutdown().await
    }

    /// Breaks the direction off.
    pub(crate) fn reset(&mut self, code: Code) {
        self.send.reset(code);
    }

    /// The stream itself, for raw use. The buffer must have been flushed.
    pub(crate) fn into_inner(self) -> S {
        self.send
    }

    /// What `SendHalf::stopped` says.
    pub(crate) fn stopped(&self) -> futures::future::BoxFuture<'static, StreamFault> {
        self.send.stopped()
    }

    /// Sends `body` and its end. The direction is over afterwards, one way or the other.
    pub(crate) async fn send_body(&mut self, mut body: Body) -> Result<Sent, TunnelError> {
        match self.pump(&mut body).await {
            Ok(()) => Ok(Sent::All),
            Err(Fault::Stream(error)) if is_not_needed(&error) => {
                self.reset(Code::None);
                Ok(Sent::Enough)
            }
            Err(Fault::Stream(error)) => {
                self.reset(Code::Cancelled);
                Err(classify(error, &self.peer))
            }
            Err(Fault::Source(error)) => {
                self.reset(error.code());
                Err(error)
            }
        }
    }

    async fn pump(&mut self, body: &mut Body) -> Result<(), Fault> {
        // Without waiting for the other end's word where the whole body is at hand, as it is for most calls.
        let mut stopped = None;
        while !http_body::Body::is_end_stream(body) {
            let frame = match futures::FutureExt::now_or_never(body.frame()) {
                Some(frame) => frame,
                None => {
                    self.flush_io().await.map_err(Fault::Stream)?;
                    let stopped = stopped.get_or_insert_with(|| self.send.stopped());
                    tokio::select! {
                        biased;
                        frame = body.frame() => frame,
                        fault = stopped => return Err(Fault::Stream(fault.into())),
                    }
                }
            };
            let Some(frame) = frame else { break };
            match frame.map_err(Fault::Source)?.into_data() {
                Ok(data) => self.data(data).await?,
                Err(other) => {
                    let trailers = other.into_trailers().unwrap_or_default();
                    return self.end(&trailers).await;
                }
            }
        }
        self.end(&HeaderMap::new()).await
    }

    async fn data(&mut self, mut data: Bytes) -> Result<(), Fault> {
        while data.has_remaining() {
            let piece = data.split_to(data.len().min(DATA_MAX));
            if piece.len() <= COPY_MAX {
                frame::put(Kind::Data, &piece, &mut self.buffer).map_err(Fault::Source)?;
                if self.buffer.len() > COPY_MAX {
                    self.flush_io().await.map_err(Fault::Stream)?;
                }
                continue;
            }
            frame::put_header(Kind::Data, piece.len(), &mut self.buffer).map_err(Fault::Source)?;
            self.flush_io().await.map_err(Fault::Stream)?;
            self.send.write_all(&piece).await.map_err(Fault::Stream)?;
        }
        Ok(())
    }

    async fn end(&mut self, trailers: &HeaderMap) -> Result<(), Fault> {
        wire::put_trailers(trailers, &mut self.buffer).map_err(Fault::Source)?;
        self.finish_io().await.map_err(Fault::Stream)
    }
}

enum Fault {
    Stream(io::Error),
    Source(TunnelError),
}
