//! The asking end of an exchange.

use crate::api::{Body, TunnelIo, Upgraded, empty_body};
use crate::code::Code;
use crate::error::TunnelError;
use crate::exchange::reader::{FrameReader, IncomingBody, RawReader};
use crate::exchange::writer::{FrameWriter, Sent};
use crate::frame::Grammar;
use crate::stream::{RecvHalf, SendHalf};
use bytes::BytesMut;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use http_body_util::BodyExt;
use tokio_util::sync::CancellationToken;

/// Sends `head` (a whole frame) and `body`, and answers with what comes back. The body may still be on its way when the
/// head of the answer is there; then a task goes on sending it for as long as somebody holds the answer.
pub(crate) async fn call<S: SendHalf, R: RecvHalf>(
    (send, recv): (S, R),
    peer: &str,
    head: BytesMut,
    body: Body,
    supervisor: &Supervisor,
) -> Result<http::Response<Body>, TunnelError> {
    let mut reader = FrameReader::new(recv, Grammar::Exchange, peer, Code::Cancelled);
    let mut writer = FrameWriter::new(send, peer);
    *writer.buffer() = head;
    let mut upload = Box::pin(async move { writer.send_body(body).await });
    let (response, uploading) = tokio::select! {
        biased;
        sent = &mut upload => (after_upload(sent, &mut reader).await?, false),
        response = reader.response() => (response?, true),
    };
    let guard = uploading.then(|| {
        let given_up = CancellationToken::new();
        let guard = given_up.clone().drop_guard();
        supervisor.spawn(TaskKind::Session, "tunnel upload", async move {
            tokio::select! {
                biased;
                () = given_up.cancelled() => {}
                sent = upload => {
                    if let Err(error) = sent {
                        // The other end sees the break as well and fails the answer, which somebody is reading.
                        tracing::debug!(%error, "an upload through the tunnel ended early");
                    }
                }
            }
            Ok(())
        });
        guard
    });
    Ok(response.map(|()| IncomingBody::new(reader, guard).boxed_unsync()))
}

/// The upload is over: an answer may come even when it was refused, as servers answer early.
async fn after_upload<R: RecvHalf>(
    sent: Result<Sent, TunnelError>,
    reader: &mut FrameReader<R>,
) -> Result<http::Response<()>, TunnelError> {
    match sent {
        Ok(_sent) => reader.response().await,
        Err(error @ (TunnelError::Body(_) | TunnelError::TooLarge { .. } | TunnelError::Lost { .. })) => Err(error),
        Err(_stopped) => reader.response().await,
    }
}

/// Asks to switch protocols. Nothing but the head is sent before the answer.
pub(crate) async fn upgrade<S: SendHalf, R: RecvHalf>(
    (send, recv): (S, R),
    peer: &str,
    head: BytesMut,
) -> Result<Upgraded, TunnelError> {
    let mut reader = FrameReader::new(recv, Grammar::Exchange, peer, Code::Cancelled);
    let mut writer = FrameWriter::new(send, peer);
    *writer.buffer() = head;
    writer.flush().await?;
    let response = reader.response().await?;
    if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        let io = TunnelIo::new(tokio::io::join(RawReader::new(reader), writer.into_inner()));
        return Ok(Upgraded::Switched { response, io });
    }
    if let Err(error) = writer.send_body(empty_body()).await {
        // The answer is there; that the other end no longer listens takes nothing from it.
        tracing::debug!(%error, "the end of a request that was not switched was not taken");
    }
    Ok(Upgraded::Answered(
        response.map(|()| IncomingBody::new(reader, None).boxed_unsync()),
    ))
}
