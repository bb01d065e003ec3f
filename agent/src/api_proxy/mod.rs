//! The agent's end of the Kubernetes API proxy.
//!
//! A request comes with a signed assertion of who asks. The agent checks it, applies its own policy, builds a new
//! header map and sends the request, impersonating the caller, to the API server of the one tenant that the head names.
//! It dials nothing but the API servers in its own table, whatever a request says.

mod headers;
mod policy;
mod target;

pub use headers::{ForwardError, request_headers, response_headers, upgrade_protocol};
pub use policy::check as check_policy;
pub use target::{ApiTarget, TargetError, Targets};

use bytes::Bytes;
use hanse_api::access::Principal;
use hanse_api::{Reason, Status};
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_tunnel::assertion::{Expected, Verifier};
use hanse_tunnel::{Body, RequestHead, Target, TunnelError, TunnelIo, Upgraded, empty_body, full_body, refuse};
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Largest body of an answer that refuses to switch protocols.
const REFUSAL_MAX: usize = 1 << 20;
/// How long such an answer may take.
const REFUSAL_TIME: Duration = Duration::from_secs(10);
/// When a client should try again while a tenant is not up.
const RETRY_SECONDS: u32 = 1;

/// The agent's end of the proxy.
pub struct ApiProxy {
    cluster: String,
    verifier: Verifier,
    targets: Arc<Targets>,
    clock: SharedClock,
}

impl fmt::Debug for ApiProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiProxy")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl ApiProxy {
    /// A proxy of `cluster` to the API servers in `targets`.
    pub fn new(cluster: &str, verifier: Verifier, targets: Arc<Targets>, clock: SharedClock) -> Self {
        Self {
            cluster: cluster.to_owned(),
            verifier,
            targets,
            clock,
        }
    }

    /// Passes an ordinary request on.
    pub async fn request(&self, head: RequestHead, body: Body) -> Response<Body> {
        let (principal, target) = match self.admit(&head) {
            Ok(admitted) => admitted,
            Err(status) => return status_response(&status),
        };
        let mut request = match build(&head, &principal, &target) {
            Ok(request) => request,
            Err(status) => return status_response(&status),
        };
        let bodiless = matches!(head.method, Method::GET | Method::HEAD) && !head.headers.contains_key(CONTENT_LENGTH);
        *request.body_mut() = if bodiless { empty_body() } else { body };
        match target.send(request).await {
            Ok(response) => pass_back(response, &target),
            Err(error) => failed(&head, &target, error),
        }
    }

    /// Asks the API server to switch protocols.
    pub async fn upgrade(&self, head: RequestHead) -> Upgraded {
        let admitted = self.admit(&head).and_then(|(principal, target)| {
            let protocol = upgrade_protocol(&head.headers).map_err(|error| bad_request(&error))?;
            let mut request = build(&head, &principal, &target)?;
            request
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            request
                .headers_mut()
                .insert(UPGRADE, HeaderValue::from_static(protocol));
            Ok((target, protocol, request))
        });
        let (target, protocol, request) = match admitted {
            Ok(admitted) => admitted,
            Err(status) => return Upgraded::Answered(status_response(&status)),
        };
        match target.send_alone(request).await {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                self.switch(response, protocol, &target).await
            }
            Ok(response) => Upgraded::Answered(self.refusal(response, &target).await),
            Err(error) => Upgraded::Answered(failed(&head, &target, error)),
        }
    }

    /// Who asks, and which API server is meant; or why the request goes no further.
    fn admit(&self, head: &RequestHead) -> Result<(Principal, Arc<ApiTarget>), Box<Status>> {
        let refused = |fault: String| {
            let text = format!("the agent of cluster {:?} refused the request: {fault}", self.cluster);
            Box::new(Status::new(Reason::Forbidden, text))
        };
        let expected = Expected {
            cluster: &self.cluster,
            target: &head.target,
            request_id: &head.request_id,
        };
        let verified = self.verifier.verify(&head.assertion, expected, self.clock.wall()).map_err(|error| {
            tracing::warn!(request = head.request_id, error = %error, "a request without a good identity was refused");
            refused(error.to_string())
        })?;
        let principal = verified.claims.principal;
        check_policy(&principal).map_err(|fault| {
            tracing::warn!(
                request = head.request_id,
                server = verified.server,
                fault,
                "refused by policy"
            );
            refused(fault)
        })?;
        match &head.target {
            Target::Cluster => {
                let text = format!(
                    "cluster {:?} is a plain host: it runs tenant clusters, but has no Kubernetes API of its own; \
                     connect to one of its tenant clusters",
                    self.cluster
                );
                Err(Box::new(Status::new(Reason::NotFound, text)))
            }
            Target::Tenant { id } => {
                let target = self
                    .targets
                    .get(id)
                    .ok_or_else(|| unavailable(id, "it does not run on this host yet"))?;
                if !target.is_open() {
                    return Err(unavailable(id, "its API server is being started"));
                }
                Ok((principal, target))
            }
        }
    }

    async fn switch(&self, mut response: Response<Incoming>, protocol: &str, target: &ApiTarget) -> Upgraded {
        let same = response
            .headers()
            .get(UPGRADE)
            .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(protocol.as_bytes()));
        if !same {
            return Upgraded::Answered(status_response(&Status::new(
                Reason::BadGateway,
                format!(
                    "the API server of {:?} switched to another protocol than was asked for",
                    target.tenant()
                ),
            )));
        }
        match hyper::upgrade::on(&mut response).await {
            Ok(io) => {
                let mut head = Response::new(());
                *head.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                *head.headers_mut() = response_headers(response.headers());
                head.headers_mut()
                    .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
                if let Some(protocol) = response.headers().get(UPGRADE) {
                    head.headers_mut().insert(UPGRADE, protocol.clone());
                }
                Upgraded::Switched {
                    response: head,
                    io: TunnelIo::new(TokioIo::new(io)),
                }
            }
            Err(error) => Upgraded::Answered(refuse(TunnelError::Body(error.into()))),
        }
    }

    /// An answer to a request to switch that does not: read whole, so that nothing of the connection is passed on.
    async fn refusal(&self, response: Response<Incoming>, target: &ApiTarget) -> Response<Body> {
        let (parts, body) = response.into_parts();
        let read = timeout(&*self.clock, REFUSAL_TIME, Limited::new(body, REFUSAL_MAX).collect()).await;
        let (text, what) = match read {
            Ok(Ok(body)) => (Some(body.to_bytes()), String::new()),
            Ok(Err(error)) => (None, error.to_string()),
            Err(elapsed) => (None, elapsed.to_string()),
        };
        match text {
            Some(text) => checked(Response::from_parts(parts, full_body(text)), target),
            None => status_response(&Status::new(
                Reason::BadGateway,
                format!(
                    "the answer of the API server of {:?} could not be read: {what}",
                    target.tenant()
                ),
            )),
        }
    }
}

fn build(head: &RequestHead, principal: &Principal, target: &ApiTarget) -> Result<Request<Body>, Box<Status>> {
    let path = head.path_and_query.as_str();
    if !path.starts_with('/') {
        let text = "the path of the request does not start with /";
        return Err(Box::new(Status::new(Reason::BadRequest, text)));
    }
    let mut request = Request::new(empty_body());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = http::Uri::from(head.path_and_query.clone());
    *request.headers_mut() = request_headers(&head.headers, principal).map_err(|error| bad_request(&error))?;
    request.headers_mut().insert(http::header::HOST, target.host().clone());
    Ok(request)
}

fn bad_request(error: &ForwardError) -> Box<Status> {
    Box::new(Status::new(Reason::BadRequest, error.to_string()))
}

fn unavailable(tenant: &str, why: &str) -> Box<Status> {
    let status = Status::new(
        Reason::ServiceUnavailable,
        format!("tenant cluster {tenant:?} cannot be reached: {why}"),
    )
    .retry_after(RETRY_SECONDS);
    Box::new(status)
}

fn failed(head: &RequestHead, target: &ApiTarget, error: TargetError) -> Response<Body> {
    tracing::debug!(tenant = target.tenant(), request = head.request_id, error = %error, "a request failed");
    if error.certainly_not_sent() {
        // Nothing was sent, so the client may repeat any request.
        return status_response(&unavailable(target.tenant(), &error.to_string()));
    }
    // The gateway knows best what the caller may be told: it depends on the method.
    refuse(TunnelError::UpstreamReset {
        peer: format!("API server of {}", target.tenant()),
    })
}

fn pass_back(response: Response<Incoming>, target: &ApiTarget) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let peer = format!("API server of {}", target.tenant());
    let body = body
        .map_err(move |error| TunnelError::Lost {
            peer: peer.clone(),
            fault: error.to_string(),
        })
        .boxed_unsync();
    checked(Response::from_parts(parts, body), target)
}

fn checked(response: Response<Body>, target: &ApiTarget) -> Response<Body> {
    if response.status().is_redirection() && response.headers().contains_key(LOCATION) {
        let text = format!(
            "the API server of {:?} answered with a redirect, which is not followed",
            target.tenant()
        );
        return status_response(&Status::new(Reason::BadGateway, text));
    }
    let (parts, body) = response.into_parts();
    let mut passed = Response::new(body);
    *passed.status_mut() = parts.status;
    *passed.headers_mut() = response_headers(&parts.headers);
    passed
}

/// A failure in Kubernetes' own form.
fn status_response(status: &Status) -> Response<Body> {
    let text = serde_json::to_vec(status).unwrap_or_else(|_never| b"{}".to_vec());
    let mut response = Response::new(full_body(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = status.details.as_ref().and_then(|details| details.retry_after_seconds) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
