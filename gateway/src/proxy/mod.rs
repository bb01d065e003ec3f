//! The impersonating proxy to API servers of tenant clusters and connected clusters.
//!
//! The gateway decides whether the caller may, says who he is in a signed assertion, and hands the request to the agent,
//! which alone holds credentials of the API server. Bodies stream in both directions and are never looked at.

mod exchange;
pub(crate) mod headers;
pub(crate) mod path;
mod retry;
mod stream;
mod switch;
pub(crate) mod upgrade;

pub(crate) use headers::AUDIT_ID;

use crate::apiserver::backend::{Backend, failed};
use crate::audit::{self, Facts};
use crate::authn::Identity;
use crate::authn::impersonate::tenant_groups;
use crate::body::{Body, Response};
use crate::query::Query;
use crate::rights::{OwnedTarget, Right};
use crate::{Inner, authz};
use hanse_api::access::{CLUSTER_ADMIN, GROUP_TENANT_ADMINS, GROUP_TENANT_ROLE_PREFIX, Principal, tenant_roles};
use hanse_api::kinds::{CLUSTERS, TENANT_STORES, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::name::project_namespace;
use hanse_api::resources::TenantStore;
use hanse_api::status::{Reason, Status};
use hanse_state::objects::{ObjectKey, Stored};
use hanse_tunnel::assertion::Claims;
use hanse_tunnel::{RequestHead, Target};
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Version};
use path::RequestInfo;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Life of an assertion: long enough for two attempts and for clocks that differ a little.
const ASSERTION_LIFE: Duration = Duration::from_secs(30);

/// Whose API server is asked.
#[derive(Clone, Debug)]
pub(crate) enum Upstream {
    Tenant { project: String, name: String },
    Cluster { name: String },
}

/// What is known of a request beside itself.
pub(crate) struct Proxied<'a> {
    pub(crate) inner: Arc<Inner>,
    pub(crate) facts: Arc<Facts>,
    pub(crate) identity: Identity,
    /// Who it runs as.
    pub(crate) principal: Principal,
    pub(crate) upstream: Upstream,
    /// Place among the short requests; given back when it turns out to be a long one.
    pub(crate) permit: OwnedSemaphorePermit,
    /// Path below that of the API server, as it came.
    pub(crate) rest: &'a str,
}

/// Where a request goes, and in whose name.
pub(super) struct Route {
    /// Connected cluster whose agent takes it.
    pub(super) cluster: String,
    pub(super) head: RequestHead,
    pub(super) info: RequestInfo,
    /// For messages.
    pub(super) what: String,
    pub(super) right: Right,
    /// Place among the short requests.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

pub(super) fn bad(message: impl Into<String>) -> Box<Status> {
    Box::new(Status::new(Reason::BadRequest, message))
}

/// Whether a request asks for an upgrade; 400 when it does so in a way that could be read in two ways.
pub(crate) fn wants_upgrade(headers: &HeaderMap, version: Version) -> Result<bool, Box<Status>> {
    upgrade::wanted(headers, version).map(|p| p.is_some()).map_err(bad)
}

/// Answers one proxied request.
pub(crate) async fn serve(call: Proxied<'_>, mut request: Request<Body>) -> Result<Response, Box<Status>> {
    let protocol = upgrade::wanted(request.headers(), request.version()).map_err(bad)?;
    let info = info(&call, &request)?;
    let target = target(&call.upstream);
    let verbs = info.verbs();
    authz::authorize(&call.inner.backend, &call.principal, &verbs, &target.borrow()).await?;
    let principal = outgoing_principal(&call, &target.borrow()).await;
    let verbs = verbs.into_iter().map(str::to_owned).collect();
    let (cluster, at) = locate(&call.inner.backend, &call.upstream).await?;
    if audit::is_sensitive(&info) {
        call.inner.begin_audited(&call.facts).await?;
    }
    let facts = headers::Facts {
        audit_id: &call.facts.id,
        client: call.facts.source,
        upgrade: protocol,
        app_proxy: info.is_app_proxy(),
    };
    let outgoing = headers::outgoing(request.headers(), &facts);
    let path_and_query = path_and_query(&info, request.uri().query())?;
    let assertion = call.inner.parts.signer.sign(&Claims {
        principal,
        cluster: cluster.clone(),
        target: at.clone(),
        request_id: call.facts.id.clone(),
        not_after: call.inner.parts.clock.wall().plus(ASSERTION_LIFE),
    });
    let assertion = assertion.map_err(|error| {
        // Without a proven identity nothing is sent.
        tracing::error!(%error, "an identity assertion could not be signed");
        Box::new(Status::new(
            Reason::InternalError,
            "the caller's identity could not be signed",
        ))
    })?;
    let head = RequestHead {
        request_id: call.facts.id.clone(),
        target: at,
        assertion,
        method: request.method().clone(),
        path_and_query,
        headers: outgoing,
        upgrade: protocol.is_some(),
    };
    let impersonated = (call.principal != call.identity.principal).then(|| call.principal.clone());
    let right = Right {
        identity: call.identity.clone(),
        impersonated,
        verbs,
        target,
        partial: false,
    };
    let route = Route {
        cluster,
        head,
        what: describe(&call.upstream),
        info,
        right,
        permit: Some(call.permit),
    };
    match protocol {
        Some(protocol) if route.info.may_upgrade() => {
            let client = hyper::upgrade::on(&mut request);
            switch::serve(call.inner, route, protocol, client).await
        }
        Some(_) => Err(bad(format!("no protocol upgrade is possible at {:?}", route.info.path))),
        None => exchange::serve(call.inner, route, request.into_body()).await,
    }
}

fn info(call: &Proxied<'_>, request: &Request<Body>) -> Result<RequestInfo, Box<Status>> {
    let parse = |query: &Query| path::parse(call.rest, request.method(), query).map_err(|e| bad(e.0));
    match Query::parse(request.uri().query().unwrap_or_default()) {
        Ok(query) => parse(&query),
        // An application behind the API server may have a query language of its own.
        Err(why) => match parse(&Query::default()) {
            Ok(info) if info.is_app_proxy() => Ok(info),
            Ok(_) => Err(bad(why)),
            Err(other) => Err(other),
        },
    }
}

fn path_and_query(info: &RequestInfo, query: Option<&str>) -> Result<PathAndQuery, Box<Status>> {
    let text = query.map_or_else(|| info.path.clone(), |query| format!("{}?{query}", info.path));
    text.parse()
        .map_err(|e| bad(format!("the path cannot be sent on: {e}")))
}

fn target(upstream: &Upstream) -> OwnedTarget {
    match upstream {
        Upstream::Tenant { project, name } => OwnedTarget::Tenant {
            project: project.clone(),
            name: name.clone(),
        },
        Upstream::Cluster { name } => OwnedTarget::Cluster { name: name.clone() },
    }
}

fn describe(upstream: &Upstream) -> String {
    match upstream {
        Upstream::Tenant { project, name } => format!("tenant cluster {name:?} of project {project:?}"),
        Upstream::Cluster { name } => format!("connected cluster {name:?}"),
    }
}

/// Who the API server sees. A caller that comes as himself has the roles that the tenant cluster's rules give him; one who
/// impersonates is exactly who he wants to be.
async fn outgoing_principal(call: &Proxied<'_>, target: &hanse_api::access::Target<'_>) -> Principal {
    let mut principal = call.principal.clone();
    let himself = call.principal == call.identity.principal;
    if let (Upstream::Tenant { .. }, true) = (&call.upstream, himself) {
        let roles = authz::facts(&call.inner.backend, &principal, target).await;
        let inside = tenant_roles(&principal, target, &roles);
        principal.groups = tenant_groups(&principal);
        principal
            .groups
            .extend(inside.into_iter().map(|role| match role.as_str() {
                CLUSTER_ADMIN => GROUP_TENANT_ADMINS.to_owned(),
                role => format!("{GROUP_TENANT_ROLE_PREFIX}{role}"),
            }));
    }
    principal
}

/// The connected cluster whose agent has the API server, and its name there.
async fn locate(backend: &Backend, upstream: &Upstream) -> Result<(String, Target), Box<Status>> {
    match upstream {
        Upstream::Cluster { name } => {
            let key = ObjectKey::new(&CLUSTERS, "", name);
            local_first(backend, &key)
                .await?
                .map(|_| (name.clone(), Target::Cluster))
                .ok_or_else(|| Box::new(Status::not_found(CLUSTERS.group, CLUSTERS.plural, name)))
        }
        Upstream::Tenant { project, name } => {
            let namespace = project_namespace(project);
            let key = ObjectKey::new(&TENANT_STORES, &namespace, name);
            let stored = backend.objects.get_local(&key).await.map_err(|e| failed(&e))?;
            if let Some(host) = stored.as_ref().map(host).transpose()?.flatten() {
                return Ok(host);
            }
            unplaced(backend, &namespace, name).await
        }
    }
}

fn host(stored: &Stored) -> Result<Option<(String, Target)>, Box<Status>> {
    let store: TenantStore = serde_json::from_slice(&stored.value).map_err(|error| {
        tracing::error!(%error, name = stored.name, "a stored TenantStore cannot be read");
        Box::new(Status::new(
            Reason::InternalError,
            "where the tenant cluster runs cannot be read",
        ))
    })?;
    let spec = store.spec;
    Ok(if spec.cluster.is_empty() {
        None
    } else {
        Some((spec.cluster, Target::Tenant { id: spec.tenant }))
    })
}

/// Why a tenant cluster has no host here: it does not exist, is not placed yet, or this server has not heard of it.
async fn unplaced(backend: &Backend, namespace: &str, name: &str) -> Result<(String, Target), Box<Status>> {
    let kind = VIRTUAL_CLUSTER_INSTANCES;
    let key = ObjectKey::new(&kind, namespace, name);
    if backend.objects.get(&key).await.map_err(|e| failed(&e))?.is_none() {
        return Err(Box::new(Status::not_found(kind.group, kind.plural, name)));
    }
    let key = ObjectKey::new(&TENANT_STORES, namespace, name);
    let stored = backend.objects.get(&key).await.map_err(|e| failed(&e))?;
    stored.as_ref().map(host).transpose()?.flatten().ok_or_else(|| {
        let message = format!("tenant cluster {name:?} has no host yet; try again");
        Box::new(Status::new(Reason::ServiceUnavailable, message).retry_after(1))
    })
}

async fn local_first(backend: &Backend, key: &ObjectKey) -> Result<Option<Stored>, Box<Status>> {
    match backend.objects.get_local(key).await.map_err(|e| failed(&e))? {
        Some(stored) => Ok(Some(stored)),
        None => backend.objects.get(key).await.map_err(|e| failed(&e)),
    }
}
