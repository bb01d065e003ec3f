//! Ordinary proxied requests: send, perhaps again, and stream the answer.

use super::Route;
use super::headers::returned;
use super::path::RequestInfo;
use super::retry::{Failure, Next, next};
use super::stream::{End, Guarded, Repeatable};
use crate::Inner;
use crate::body::{Body, Response};
use crate::rights::{Place, Right};
use futures::FutureExt;
use futures::future::BoxFuture;
use hanse_api::status::{Reason, Status};
use hanse_runtime::clock::timeout;
use hanse_tunnel::TunnelError;
use http::header::LOCATION;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;

/// Longest pause before a request is sent again.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn serve(inner: Arc<Inner>, mut route: Route, body: Body) -> Result<Response, Box<Status>> {
    let long = route.info.long_running();
    let place = if long { Some(inner.place()?) } else { None };
    if long {
        route.permit = None;
    }
    let body = Repeatable::new(body);
    let sent = send(&inner, &route, &body);
    let answer = if long {
        sent.await?
    } else {
        let limit = inner.parts.limits.proxy_head;
        match timeout(inner.parts.clock.as_ref(), limit, sent).await {
            Ok(sent) => sent?,
            Err(_) => return Err(late(&route, limit)),
        }
    };
    let (head, answer_body) = answer.into_parts();
    refuse_answer(&route, head.status, &head.headers)?;
    let end = long.then(|| stream_end(&inner, &route.right, &route.info));
    Ok(answered(head.status, &head.headers, answer_body, end, place))
}

/// Sends the request until it was taken or must not be sent again.
async fn send(
    inner: &Inner,
    route: &Route,
    body: &Repeatable,
) -> Result<http::Response<hanse_tunnel::Body>, Box<Status>> {
    let started = inner.parts.clock.mono();
    let safe = matches!(route.head.method, Method::GET | Method::HEAD);
    let mut attempts = 0;
    loop {
        attempts += 1;
        let error = match inner
            .parts
            .hub
            .request(&route.cluster, route.head.clone(), body.attempt())
            .await
        {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let spent = inner.parts.clock.mono().saturating_sub(started);
        tracing::debug!(%error, audit_id = route.head.request_id, attempts, "a proxied request failed");
        match next(class(&error)?, safe, body.intact(), attempts, spent) {
            Next::Again => inner.parts.clock.sleep(PAUSE.mul_f64(inner.parts.rng.unit())).await,
            Next::Unavailable => return Err(unavailable(route, &error)),
            Next::Unknown => return Err(unknown(route)),
        }
    }
}

/// Sorts a failure. Some are answers in themselves.
pub(super) fn class(error: &TunnelError) -> Result<Failure, Box<Status>> {
    match error {
        TunnelError::PolicyDenied { .. } => Err(Box::new(Status::new(
            Reason::Forbidden,
            format!("the agent refused the request: {error}"),
        ))),
        // The caller's own body broke off; he is most likely gone.
        TunnelError::Body(_) => Err(Box::new(Status::new(
            Reason::BadRequest,
            "the body of the request could not be read to its end",
        ))),
        error if error.certainly_not_delivered() => Ok(Failure::NotSent),
        _ => Ok(Failure::MaybeSent),
    }
}

/// 503 with `Retry-After`: the request certainly did not arrive.
pub(super) fn unavailable(route: &Route, error: &TunnelError) -> Box<Status> {
    let message = format!("{} cannot be reached through this server now: {error}", route.what);
    Box::new(Status::new(Reason::ServiceUnavailable, message).retry_after(1))
}

/// 504 without: nobody knows.
pub(super) fn unknown(route: &Route) -> Box<Status> {
    let message = format!(
        "the connection to {} broke before the answer; whether the request was carried out is unknown: look before you try again",
        route.what
    );
    Box::new(Status::new(Reason::Timeout, message))
}

pub(super) fn late(route: &Route, limit: Duration) -> Box<Status> {
    let message = format!("{} did not answer within {} s", route.what, limit.as_secs());
    Box::new(Status::new(Reason::Timeout, message))
}

/// Answers that must not reach the caller.
pub(super) fn refuse_answer(route: &Route, status: StatusCode, headers: &HeaderMap) -> Result<(), Box<Status>> {
    let refuse = |message: String| {
        tracing::warn!(
            audit_id = route.head.request_id,
            code = status.as_u16(),
            "an upstream answer was refused"
        );
        Err(Box::new(Status::new(Reason::BadGateway, message)))
    };
    if status.is_redirection() && headers.contains_key(LOCATION) {
        return refuse(format!(
            "{} answered with a redirect, which is not followed",
            route.what
        ));
    }
    if status.is_informational() {
        return refuse(format!("{} answered {status} to an ordinary request", route.what));
    }
    // The caller's credentials were good: these are the agent's, and nothing that he could renew.
    if status == StatusCode::UNAUTHORIZED && !route.info.is_app_proxy() {
        return refuse(format!("{} does not accept its agent's credentials", route.what));
    }
    Ok(())
}

/// Completes when a stream must end: rights that are gone break it off, a drain ends watches at once and others after a grace.
pub(super) fn stream_end(inner: &Arc<Inner>, right: &Right, info: &RequestInfo) -> BoxFuture<'static, End> {
    let (inner, right) = (Arc::clone(inner), right.clone());
    let watch = info.verb == "watch";
    async move {
        tokio::select! {
            _ending = right.ended(Arc::clone(&inner)) => End::Broken,
            () = inner.drain() => {
                if watch {
                    return End::Clean;
                }
                inner.parts.clock.sleep(inner.parts.limits.drain).await;
                End::Broken
            }
        }
    }
    .boxed()
}

fn answered(
    status: StatusCode,
    headers: &HeaderMap,
    body: hanse_tunnel::Body,
    end: Option<BoxFuture<'static, End>>,
    place: Option<Place>,
) -> Response {
    let body = Guarded {
        body,
        end,
        place,
        over: false,
    };
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    *response.headers_mut() = returned(headers);
    response
}
