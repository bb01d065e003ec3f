//! What every request goes through, in this order:
//!
//! 1. An id of its own (`Audit-Id`), made here whatever the caller sends, so that logs of gateway and API servers meet.
//! 2. The panic guard: a fault in one request is that request's 500 and nobody else's.
//! 3. Metrics, around all that follows.
//! 4. Probes and the version are answered: they must work when nothing else does.
//! 5. A place among the requests in flight, before anything is looked up for a caller that nobody knows yet.
//! 6. Steps of logins are answered, where there are identity providers: they are how one gets credentials.
//! 7. Authentication. Everything behind it, also "no such path", needs credentials.
//! 8. Impersonation: who the request runs as.
//! 9. The route, with its own authorization; short requests with a deadline.

use crate::apiserver::backend::Backend;
use crate::apiserver::{self, ApiRequest, EndOf};
use crate::audit::{self, Facts};
use crate::authn::{Authenticator, Identity, impersonate};
use crate::body::{self, Body, Response};
use crate::meters::Counted;
use crate::oidc::{self, Oidc, Place};
use crate::proxy::path::RequestInfo;
use crate::proxy::{self, Proxied, Upstream};
use crate::query::Query;
use crate::rights::{Ending, OwnedTarget, Right};
use crate::router::{Probe, Route, route};
use crate::throttle::TooMany;
use crate::{GatewayParts, Inner, answer, authz, backup, ops, restore};
use futures::FutureExt;
use hanse_api::access::{Principal, Target};
use hanse_api::status::{Reason, Status};
use hanse_runtime::clock::timeout;
use http::header::{CONNECTION, HeaderValue};
use http::{HeaderMap, Method, Request, Version};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// Answers one request. Never fails: what goes wrong is an answer.
pub(crate) async fn handle(inner: Arc<Inner>, request: Request<Body>, client: IpAddr) -> Response {
    let id = inner.parts.rng.uuid();
    let version = request.version();
    let facts = Arc::new(Facts::new(id, &request, client, inner.parts.clock.wall()));
    let route = route(request.uri().path());
    let label = route.label();
    let (started, _counted) = (inner.parts.clock.mono(), Counted::new(&inner.meters.in_flight));
    let public = route.is_public();
    let login = matches!(route, Route::Login(_));
    let work = admit(Arc::clone(&inner), request, route, Arc::clone(&facts));
    let outcome = AssertUnwindSafe(work).catch_unwind().await;
    let response = match outcome {
        Ok(Ok(response)) => {
            // A refused login is a page for people.
            if login && matches!(response.status().as_u16(), 401 | 403) {
                denied(&inner, &facts, response.status().as_u16(), "the login was refused");
            }
            response
        }
        Ok(Err(status)) => {
            if let Some((code, why)) = audit::refusal(&status) {
                denied(&inner, &facts, code, why);
            }
            answer::failure(&status)
        }
        Err(panic) => {
            inner.meters.panics.inc();
            let text = panic.downcast_ref::<&str>().copied().unwrap_or("no message");
            tracing::error!(audit_id = facts.id, panic = text, "a request ended in a panic");
            answer::failure(&Status::new(
                Reason::InternalError,
                "the server failed; the fault is in its log",
            ))
        }
    };
    let mut response = if public {
        response
    } else {
        answered(&inner, &facts, response).await
    };
    if let Ok(value) = HeaderValue::from_str(&facts.id) {
        response.headers_mut().insert(proxy::AUDIT_ID, value);
    }
    // A server that goes away tells its clients so; HTTP/2 has GOAWAY for that.
    if inner.draining() && version < Version::HTTP_2 && response.status() != 101 {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let took = inner.parts.clock.mono().saturating_sub(started);
    let (method, code) = (&facts.method, response.status().as_u16());
    inner.meters.answered(label, method, code, took);
    tracing::debug!(audit_id = facts.id, route = label, %method, code, ?took, "answered");
    response
}

fn denied(inner: &Inner, facts: &Facts, code: u16, why: &str) {
    if let Some(denial) = facts.denied(&inner.parts.audit_policy, code, why, inner.parts.clock.wall()) {
        inner.recorder.denied(denial);
    }
}

/// What somebody is told whose credentials do not hold: of too many such, that they are too many. Those leave no event of their
/// own; the next one that does says how many there were.
fn failed_login(inner: &Inner, headers: &HeaderMap, facts: &Facts, status: Box<Status>) -> Box<Status> {
    let account = Authenticator::shown(headers).filter(|_| status.code == 401);
    match account.map(|account| count_failure(inner, facts, account.as_deref())) {
        Some(Err(too_many)) => too_many,
        Some(Ok(())) | None => status,
    }
}

fn count_failure(inner: &Inner, facts: &Facts, account: Option<&str>) -> Result<(), Box<Status>> {
    inner.meters.login_failed();
    let now = inner.parts.clock.mono();
    let counted = inner.throttle.lock().failed(facts.source, account, now);
    counted
        .map(|times| facts.failed(times))
        .map_err(|too_many| throttled(inner, too_many))
}

fn throttled(inner: &Inner, too_many: TooMany) -> Box<Status> {
    inner.meters.throttled(too_many.of);
    let message = match too_many.of {
        "steps" => "too many steps of logins from this address; wait a little",
        _ => "too many logins have failed; check the credentials, and wait before you try others",
    };
    // Up, so that who waits that long is let in.
    let seconds = u32::try_from(too_many.wait.as_secs())
        .unwrap_or(u32::MAX)
        .saturating_add(1);
    Box::new(Status::new(Reason::TooManyRequests, message).retry_after(seconds))
}

/// Brings into the trail that a request was answered, where a rule wants that. Denials are there already.
async fn answered(inner: &Inner, facts: &Facts, response: Response) -> Response {
    let (policy, code) = (&inner.parts.audit_policy, response.status().as_u16());
    if policy.is_empty() || matches!(code, 401 | 403) {
        return response;
    }
    let Some(event) = facts.answered(policy, code, inner.parts.clock.wall()) else {
        return response;
    };
    if !matches!(facts.method, Method::GET | Method::HEAD) {
        // What it did is done: that must not look like a failure.
        inner.recorder.record_or_log(event).await;
        return response;
    }
    match inner.recorder.record(event).await {
        Ok(()) => response,
        Err(status) => answer::failure(&status),
    }
}

async fn admit(
    inner: Arc<Inner>,
    request: Request<Body>,
    route: Route,
    facts: Arc<Facts>,
) -> Result<Response, Box<Status>> {
    if route.is_public() {
        return public(&inner, &request, &route);
    }
    let permit = Arc::clone(&inner.requests)
        .try_acquire_owned()
        .map_err(|_| inner.too_many())?;
    let route = match (route, inner.parts.oidc.clone()) {
        // Boxed: a login is rare, and its state would be part of that of every request.
        (Route::Login(place), Some(oidc)) => {
            let served = login(Arc::clone(&inner), oidc, request, place, Arc::clone(&facts))
                .boxed()
                .await;
            return counted(&inner, &facts, served);
        }
        (route, _) => route,
    };
    let identity = match inner.authenticator.authenticate(request.headers()).await {
        Ok(identity) => identity,
        Err(status) => return Err(failed_login(&inner, request.headers(), &facts, status)),
    };
    let principal = impersonate::effective(&identity.principal, request.headers())
        .inspect_err(|_| facts.known(&identity, &identity.principal))?;
    facts.known(&identity, &principal);
    let (upstream, rest) = match route {
        Route::Health(_) | Route::Version => return public(&inner, &request, &route),
        Route::Metrics => return metrics(&inner, request.method(), &principal).await,
        Route::Backup => return backup::serve(inner, &request.into_parts().0, identity, principal, &facts).await,
        Route::Restore => return restore::serve(inner, request, identity, principal, facts).boxed().await,
        Route::Management { rest } => return management(inner, request, &rest, identity, principal, facts).await,
        Route::Unknown | Route::Login(_) => return Err(apiserver::unknown()),
        Route::Tenant { project, name, rest } => (Upstream::Tenant { project, name }, rest),
        Route::Cluster { name, rest } => (Upstream::Cluster { name }, rest),
    };
    let proxied = Proxied {
        inner,
        facts,
        identity,
        principal,
        upstream,
        permit,
        rest: &rest,
    };
    proxy::serve(proxied, request).await
}

fn public(inner: &Inner, request: &Request<Body>, route: &Route) -> Result<Response, Box<Status>> {
    if !matches!(request.method().as_str(), "GET" | "HEAD") {
        return Err(apiserver::not_allowed());
    }
    let query = Query::parse(request.uri().query().unwrap_or_default()).unwrap_or_default();
    Ok(match route {
        Route::Version => answer::json(http::StatusCode::OK, &ops::version()),
        Route::Health(probe) => ops::health(*probe, &inner.backend, inner.draining(), &query),
        _ => ops::health(Probe::Live, &inner.backend, inner.draining(), &query),
    })
}

/// The registry for one request that may change something.
fn audited(inner: &Inner, facts: Arc<Facts>) -> Backend {
    let GatewayParts {
        clock, audit_policy, ..
    } = &inner.parts;
    let writer = audit::Writer::new(facts, clock.clone(), audit_policy.clone());
    inner.backend.by(writer)
}

/// A step of a login, for somebody who has no credentials yet. It holds a place among the requests, as others do.
async fn login(
    inner: Arc<Inner>,
    oidc: Arc<Oidc>,
    request: Request<Body>,
    place: Place,
    facts: Arc<Facts>,
) -> Result<Response, Box<Status>> {
    if place.makes_work() {
        let now = inner.parts.clock.mono();
        let counted = inner.throttle.lock().step(facts.source, now);
        if let Err(too_many) = counted {
            return oidc::refused(&place, throttled(&inner, too_many));
        }
    }
    let limit = inner.parts.limits.request;
    let audited = audited(&inner, facts);
    let served = timeout(
        inner.parts.clock.as_ref(),
        limit,
        oidc::serve(&audited, &oidc, request, place),
    );
    served.await.unwrap_or_else(|_| {
        let message = format!("the login was not done within {} s; begin again", limit.as_secs());
        Err(Box::new(Status::new(Reason::Timeout, message)))
    })
}

/// Counts a login that was refused; what it is told stays, but when it is one too many.
fn counted(inner: &Inner, facts: &Facts, served: Result<Response, Box<Status>>) -> Result<Response, Box<Status>> {
    let code = served
        .as_ref()
        .map_or_else(|status| status.code, |page| page.status().as_u16());
    if matches!(code, 401 | 403) {
        count_failure(inner, facts, None)?;
    }
    served
}

async fn metrics(inner: &Inner, method: &Method, principal: &Principal) -> Result<Response, Box<Status>> {
    authz::authorize(&inner.backend, principal, &["get"], &Target::Path("/metrics")).await?;
    if method != Method::GET {
        return Err(apiserver::not_allowed());
    }
    Ok(ops::metrics(&inner.parts.metrics))
}

async fn management(
    inner: Arc<Inner>,
    request: Request<Body>,
    path: &str,
    identity: Identity,
    principal: Principal,
    facts: Arc<Facts>,
) -> Result<Response, Box<Status>> {
    let (head, body) = request.into_parts();
    if proxy::wants_upgrade(&head.headers, head.version)? {
        return Err(Box::new(Status::new(
            Reason::BadRequest,
            "the management API takes no protocol upgrade",
        )));
    }
    let query =
        Query::parse(head.uri.query().unwrap_or_default()).map_err(|e| Box::new(Status::new(Reason::BadRequest, e)))?;
    let info = apiserver::info(&head.method, path, &query)?;
    let end = watch_end(&inner, &info, &identity, &principal)?;
    let changing;
    let reads = matches!(head.method, Method::GET | Method::HEAD);
    let backend = if reads && !apiserver::makes_credentials(&info) {
        &inner.backend
    } else {
        changing = audited(&inner, Arc::clone(&facts));
        &changing
    };
    let work = async {
        let body = sent(&inner, &facts, &head.headers, body).await?;
        let request = ApiRequest {
            method: &head.method,
            path,
            query: &query,
            headers: &head.headers,
            uri: &head.uri,
            body,
            body_limit: inner.parts.limits.body,
            identity: &identity,
            principal: &principal,
            end,
        };
        apiserver::serve(backend, request).await
    };
    let limit = inner.parts.limits.request;
    let served = timeout(inner.parts.clock.as_ref(), limit, work).await;
    let response = served.unwrap_or_else(|_| {
        let message = format!(
            "the request was not done within {} s; look before you try again",
            limit.as_secs()
        );
        Err(Box::new(Status::new(Reason::Timeout, message)))
    })?;
    if audit::is_sensitive(&info) {
        // He may, and nothing of it was sent yet.
        inner.begin_audited(&facts).await?;
    }
    Ok(response)
}

/// The body of a request; kept for its audit event where a rule wants it to be shown.
async fn sent(inner: &Inner, facts: &Facts, headers: &HeaderMap, body: Body) -> Result<Body, Box<Status>> {
    let Some(most) = facts.wants_body(&inner.parts.audit_policy) else {
        return Ok(body);
    };
    let bytes = body::read(headers, body, inner.parts.limits.body).await?;
    if !bytes.is_empty() {
        facts.sent(apiserver::shown(headers, &bytes, most), most);
    }
    Ok(body::full(bytes))
}

/// What completes when a watch must end early. It holds the watch's place among the long-running requests.
fn watch_end(
    inner: &Arc<Inner>,
    info: &RequestInfo,
    identity: &Identity,
    principal: &Principal,
) -> Result<EndOf, Box<Status>> {
    if !info.is_resource || info.verb != "watch" {
        return Ok(Box::new(|_partial| futures::future::pending().boxed()));
    }
    let target = OwnedTarget::Resource {
        group: info.group.clone(),
        resource: info.resource.clone(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
    };
    let impersonated = (*principal != identity.principal).then(|| principal.clone());
    let right = Right {
        identity: identity.clone(),
        impersonated,
        verbs: vec![info.verb.clone()],
        target,
        partial: false,
    };
    let (place, inner) = (inner.place()?, Arc::clone(inner));
    let end = move |partial: bool| {
        let right = Right { partial, ..right };
        let end = async move {
            let _place = place;
            tokio::select! {
                ending = right.ended(Arc::clone(&inner)) => ending,
                () = inner.drain() => Ending::Over,
            }
        };
        end.boxed()
    };
    Ok(Box::new(end))
}
