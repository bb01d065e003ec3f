//! Proxied protocol upgrades: a fresh stream each, spliced only after an exact 101, never used for anything else.

use super::Route;
use super::exchange::{class, late, refuse_answer, stream_end, unavailable, unknown};
use super::headers::returned;
use super::retry::{Next, next};
use super::stream::End;
use super::upgrade::{Protocol, granted};
use crate::Inner;
use crate::body::{self, Response};
use crate::rights::Place;
use futures::future::BoxFuture;
use hanse_api::status::{Reason, Status};
use hanse_runtime::clock::timeout;
use hanse_runtime::supervisor::TaskKind;
use hanse_tunnel::{TunnelIo, Upgraded, splice};
use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;

/// Largest body of an answer that is no 101. client-go reads 64 KiB of it.
const MAX_REFUSAL: usize = 256 * 1024;
/// Time for such a body.
const REFUSAL_TIME: Duration = Duration::from_secs(10);

/// Headers of a 101 that a client needs.
const SWITCH_HEADERS: [HeaderName; 4] = [
    header::SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_EXTENSIONS,
    HeaderName::from_static("x-stream-protocol-version"),
];

pub(super) async fn serve(
    inner: Arc<Inner>,
    mut route: Route,
    protocol: Protocol,
    client: OnUpgrade,
) -> Result<Response, Box<Status>> {
    let place = inner.place()?;
    route.permit = None;
    let limit = inner.parts.limits.proxy_head;
    let asked = timeout(inner.parts.clock.as_ref(), limit, ask(&inner, &route)).await;
    match asked.unwrap_or_else(|_| Err(late(&route, limit)))? {
        Upgraded::Switched { response, io } => {
            if !granted(response.status(), response.headers(), protocol) {
                // Dropping the stream ends it: bytes behind such an answer are nobody's.
                let message = format!("{} switched to something that was not asked for", route.what);
                return Err(Box::new(Status::new(Reason::BadGateway, message)));
            }
            let end = stream_end(&inner, &route.right, &route.info);
            splice_later(&inner, client, io, end, place);
            Ok(switched(response.headers(), protocol))
        }
        Upgraded::Answered(answer) => refused(&inner, &route, answer).await,
    }
}

/// Asks the agent; again only when it certainly was not asked.
async fn ask(inner: &Inner, route: &Route) -> Result<Upgraded, Box<Status>> {
    let started = inner.parts.clock.mono();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let error = match inner.parts.hub.upgrade(&route.cluster, route.head.clone()).await {
            Ok(upgraded) => return Ok(upgraded),
            Err(error) => error,
        };
        let spent = inner.parts.clock.mono().saturating_sub(started);
        // A shell may have been started: an upgrade is never safe, whatever its method.
        match next(class(&error)?, false, true, attempts, spent) {
            Next::Again => {}
            Next::Unavailable => return Err(unavailable(route, &error)),
            Next::Unknown => return Err(unknown(route)),
        }
    }
}

fn switched(upstream: &HeaderMap, protocol: Protocol) -> Response {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    for name in SWITCH_HEADERS {
        for value in upstream.get_all(&name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol.token()));
    response
}

/// Any answer but a 101 is an ordinary answer, whole and short, and the connection ends with it.
async fn refused(
    inner: &Inner,
    route: &Route,
    answer: http::Response<hanse_tunnel::Body>,
) -> Result<Response, Box<Status>> {
    let (head, body) = answer.into_parts();
    refuse_answer(route, head.status, &head.headers)?;
    let read = Limited::new(body, MAX_REFUSAL).collect();
    let bytes = match timeout(inner.parts.clock.as_ref(), REFUSAL_TIME, read).await {
        Ok(Ok(whole)) => whole.to_bytes(),
        Ok(Err(_)) | Err(_) => {
            let message = format!(
                "{} refused the upgrade with {} and an answer that cannot be read",
                route.what, head.status
            );
            return Err(Box::new(Status::new(Reason::BadGateway, message)));
        }
    };
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = head.status;
    *response.headers_mut() = returned(&head.headers);
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(response)
}

fn splice_later(inner: &Arc<Inner>, client: OnUpgrade, io: TunnelIo, end: BoxFuture<'static, End>, place: Place) {
    let task_inner = Arc::clone(inner);
    inner
        .parts
        .supervisor
        .spawn(TaskKind::Request, "upgraded connection", async move {
            let _place = place;
            // Comes after the 101 is on its way to the client, and with it the bytes that he sent meanwhile.
            let client = match client.await {
                Ok(client) => client,
                Err(error) => {
                    tracing::debug!(%error, "a client went away while his connection was switched");
                    return Ok(());
                }
            };
            tokio::select! {
                copied = splice(TunnelIo::new(TokioIo::new(client)), io, task_inner.parts.clock.as_ref()) => {
                    if let Err(error) = copied {
                        tracing::debug!(%error, "an upgraded connection broke off");
                    }
                }
                why = end => tracing::debug!(?why, "an upgraded connection was ended"),
            }
            Ok(())
        });
}
