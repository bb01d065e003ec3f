//! The answering end of an exchange.

use crate::api::{Body, TunnelIo, Upgraded, take_refusal};
use crate::code::Code;
use crate::error::TunnelError;
use crate::exchange::reader::{FrameReader, IncomingBody, RawReader};
use crate::exchange::splice::splice;
use crate::exchange::writer::FrameWriter;
use crate::frame::{Grammar, Kind};
use crate::stream::{RecvHalf, SendHalf};
use crate::wire::{self, RequestHead, StoreHead};
use hanse_runtime::clock::Clock;
use http_body_util::BodyExt;

/// A head that came in.
#[derive(Debug)]
pub(crate) enum Head {
    /// A Kubernetes API request.
    Request(RequestHead),
    /// A call to a tenant's store.
    Store(StoreHead),
}

/// An exchange whose head has come in.
pub(crate) struct Exchange<S: SendHalf, R: RecvHalf> {
    writer: FrameWriter<S>,
    reader: FrameReader<R>,
}

/// Reads the head. On failure both directions are broken off with the fitting code.
pub(crate) async fn accept<S: SendHalf, R: RecvHalf>(
    (send, recv): (S, R),
    peer: &str,
) -> Result<(Head, Exchange<S, R>), TunnelError> {
    // The rest of a request body is simply not needed once the answer is out.
    let mut reader = FrameReader::new(recv, Grammar::Exchange, peer, Code::None);
    let mut writer = FrameWriter::new(send, peer);
    let head = match reader.message(&[Kind::RequestHead, Kind::StoreHead]).await {
        Ok((Kind::RequestHead, bytes)) => RequestHead::read(bytes).map(Head::Request),
        Ok((_, bytes)) => StoreHead::read(bytes).map(Head::Store),
        Err(error) => Err(error),
    };
    match head {
        Ok(head) => Ok((head, Exchange { writer, reader })),
        Err(error) => {
            writer.reset(error.code());
            reader.stop(error.code());
            Err(error)
        }
    }
}

/// Turns a stream away unread.
pub(crate) fn turn_away<S: SendHalf, R: RecvHalf>((mut send, mut recv): (S, R), code: Code) {
    send.reset(code);
    recv.stop(code);
}

impl<S: SendHalf, R: RecvHalf> Exchange<S, R> {
    /// Answers with what `handler` makes of the body. When the asking end gives up, `handler` is dropped.
    pub(crate) async fn answer<F, A>(self, handler: F) -> Result<(), TunnelError>
    where
        F: FnOnce(Body) -> A,
        A: Future<Output = http::Response<Body>>,
    {
        let Self { mut writer, reader } = self;
        let gone = writer.stopped();
        let body = IncomingBody::new(reader, None).boxed_unsync();
        let response = tokio::select! {
            biased;
            response = handler(body) => response,
            fault = gone => {
                writer.reset(Code::Cancelled);
                return Err(fault.into_error("the caller"));
            }
        };
        respond(&mut writer, response).await
    }

    /// Answers a request to switch protocols, and copies both ways for as long as it lasts.
    pub(crate) async fn answer_upgrade<A>(self, clock: &dyn Clock, handler: A) -> Result<(), TunnelError>
    where
        A: Future<Output = Upgraded>,
    {
        let Self { mut writer, reader } = self;
        let gone = writer.stopped();
        let upgraded = tokio::select! {
            biased;
            upgraded = handler => upgraded,
            fault = gone => {
                writer.reset(Code::Cancelled);
                return Err(fault.into_error("the caller"));
            }
        };
        let (response, upstream) = match upgraded {
            Upgraded::Answered(response) => return respond(&mut writer, response).await,
            Upgraded::Switched { response, io } => (response, io),
        };
        if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
            writer.reset(Code::UpstreamReset);
            return Err(TunnelError::malformed("upgrade", "switched without a 101"));
        }
        let put = wire::put_response(response.status(), response.headers(), writer.buffer());
        if let Err(error) = put {
            writer.reset(error.code());
            return Err(error);
        }
        writer.flush().await?;
        let stream = TunnelIo::new(tokio::io::join(RawReader::new(reader), writer.into_inner()));
        splice(stream, upstream, clock).await
    }
}

async fn respond<S: SendHalf>(
    writer: &mut FrameWriter<S>,
    mut response: http::Response<Body>,
) -> Result<(), TunnelError> {
    let refused = take_refusal(&mut response);
    let switched = response.status() == http::StatusCode::SWITCHING_PROTOCOLS;
    let (parts, body) = response.into_parts();
    let head = match refused {
        Some(error) => Err(error),
        None if switched => Err(TunnelError::malformed("response", "a 101 that was not asked for")),
        None => wire::put_response(parts.status, &parts.headers, writer.buffer()),
    };
    if let Err(error) = head {
        writer.reset(error.code());
        return Err(error);
    }
    writer.send_body(body).await.map(|_sent| ())
}
