//! The management API in Kubernetes' style: generic machinery around the table of kinds.

mod apply;
pub(crate) mod backend;
mod create;
mod credentials;
pub(crate) mod delete;
pub(crate) mod discovery;
mod fields;
pub(crate) mod keys;
mod list;
mod members;
mod negotiation;
pub(crate) mod object;
mod openapi;
mod options;
pub(crate) mod owners;
mod patch;
mod protobuf;
pub(crate) mod schema;
mod sealed;
mod selector;
pub(crate) mod servers;
pub(crate) mod special;
mod table;
mod update;
mod watch;

use crate::authn::Identity;
use crate::authz::Asker;
use crate::body::{self, Body, Response};
use crate::kinds::{self, Caller, Kind};
use crate::proxy::path::{self, RequestInfo};
use crate::query::Query;
use crate::rights::Ending;
use crate::router::Probe;
use crate::{answer, authz, ops};
use backend::Backend;
use fields::Validation;
use futures::future::BoxFuture;
use hanse_api::access::{Principal, Target};
use hanse_api::status::{Reason, Status};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode, Uri};
use options::WriteOptions;
use serde_json::Value;
pub(crate) use special::makes_credentials;
use table::{Include, Shaper};

/// A request to the management API, after authentication.
pub(crate) struct ApiRequest<'a> {
    pub(crate) method: &'a Method,
    /// Path below `/kubernetes/management`, as it came.
    pub(crate) path: &'a str,
    pub(crate) query: &'a Query,
    pub(crate) headers: &'a HeaderMap,
    /// As it came, with the authority that HTTP/2 has in it.
    pub(crate) uri: &'a Uri,
    pub(crate) body: Body,
    /// Most bytes of the body.
    pub(crate) body_limit: usize,
    /// Whose credentials they are.
    pub(crate) identity: &'a Identity,
    /// Who the request runs as; differs when the caller impersonates.
    pub(crate) principal: &'a Principal,
    /// Makes what completes when a long answer must end early.
    pub(crate) end: EndOf,
}

/// Told whether the answer shows only a part of what there is.
pub(crate) type EndOf = Box<dyn FnOnce(bool) -> BoxFuture<'static, Ending> + Send>;

/// A request for objects of one kind.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) kind: &'static dyn Kind,
    pub(crate) info: &'a RequestInfo,
    pub(crate) query: &'a Query,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) principal: &'a Principal,
    pub(crate) dry_run: bool,
    pub(crate) validation: Validation,
    /// Whether a list shows only what the caller may get by himself.
    pub(crate) own_only: bool,
}

impl Call<'_> {
    pub(crate) fn name(&self) -> &str {
        &self.info.name
    }

    /// The namespace of the URL, empty for a kind that has none.
    pub(crate) fn namespace(&self) -> &str {
        if self.kind.names().namespaced {
            &self.info.namespace
        } else {
            ""
        }
    }

    fn namespace_filter(&self) -> Option<&str> {
        Some(self.namespace()).filter(|n| !n.is_empty())
    }

    fn status(&self) -> bool {
        self.info.subresource == "status"
    }

    fn asker<'a>(&'a self, backend: &'a Backend) -> Asker<'a> {
        Asker {
            backend,
            principal: self.principal,
        }
    }

    fn caller(&self) -> Caller<'_> {
        Caller {
            principal: self.principal,
            extended: self.query.flag("extended"),
        }
    }

    fn shaper(&self) -> Result<Shaper, Box<Status>> {
        let form = negotiation::form(self.headers, false)?;
        Ok(Shaper {
            kind: self.kind,
            form,
            include: Include::read(self.query.first("includeObject")),
        })
    }
}

/// Reads what a request asks for; the same rules as for proxied ones.
pub(crate) fn info(method: &Method, path: &str, query: &Query) -> Result<RequestInfo, Box<Status>> {
    path::parse(path, method, query).map_err(|bad| Box::new(Status::new(Reason::BadRequest, bad.0)))
}

/// Answers a request.
pub(crate) async fn serve(backend: &Backend, request: ApiRequest<'_>) -> Result<Response, Box<Status>> {
    let info = info(request.method, request.path, request.query)?;
    if !info.is_resource {
        authz::authorize(
            backend,
            request.principal,
            &[info.verb.as_str()],
            &Target::Path(&info.path),
        )
        .await?;
        return documents(backend, &info.path, &request);
    }
    if info.deeper || (info.verb == "watch" && !request.query.flag("watch")) {
        return Err(unknown());
    }
    if special::is_special(&info) {
        return special::serve(backend, &info, request).await;
    }
    let kind = kinds::find(&info.group, &info.version, &info.resource).ok_or_else(unknown)?;
    resource(backend, kind, &info, request).await
}

async fn resource(
    backend: &Backend,
    kind: &'static dyn Kind,
    info: &RequestInfo,
    request: ApiRequest<'_>,
) -> Result<Response, Box<Status>> {
    let names = kind.names();
    let is_namespace = names.group.is_empty() && names.plural == "namespaces";
    let misplaced = !names.namespaced && !info.namespace.is_empty() && !is_namespace;
    let one = !matches!(info.verb.as_str(), "list" | "watch" | "deletecollection" | "create");
    let bound = one || matches!(info.verb.as_str(), "create" | "deletecollection");
    let nowhere = names.namespaced && info.namespace.is_empty() && bound;
    if misplaced || nowhere {
        return Err(unknown());
    }
    let may = authz::authorize(backend, request.principal, &[info.verb.as_str()], &target(info)).await;
    let own_only = match may {
        Ok(()) => false,
        // Whoever may not see all sees what is his.
        Err(status) if status.reason == Reason::Forbidden => match part(backend, request.principal, kind, info).await {
            Part::His => true,
            Part::Hidden => return Err(no_such(kind, &info.name)),
            Part::None => return Err(status),
        },
        Err(status) => return Err(status),
    };
    let status = info.subresource == "status" && kind.has_status();
    if !info.subresource.is_empty() && !status {
        return Err(unknown());
    }
    if !kind.verbs().contains(&info.verb.as_str())
        || (status && !matches!(info.verb.as_str(), "get" | "update" | "patch"))
    {
        return Err(not_allowed());
    }
    let is_apply = negotiation::content_type(request.headers) == apply::MEDIA;
    let options = WriteOptions::read(request.query, &info.verb, is_apply)?;
    let call = Call {
        kind,
        info,
        query: request.query,
        headers: request.headers,
        principal: request.principal,
        dry_run: options.dry_run,
        validation: options.validation,
        own_only,
    };
    let read = body::read(request.headers, request.body, request.body_limit);
    match info.verb.as_str() {
        "get" => list::get(backend, &call).await,
        "list" => list::list(backend, &call).await,
        "watch" => watch::watch(backend, &call, request.end).await,
        "create" if info.name.is_empty() => create::create(backend, &call, &read.await?).await,
        "update" => update::update(backend, &call, &read.await?).await,
        "patch" => update::patch(backend, &call, &read.await?).await,
        "delete" => delete::delete(backend, &call, &read.await?).await,
        "deletecollection" => delete::collection(backend, &call, &read.await?).await,
        _ => Err(not_allowed()),
    }
}

/// What becomes of a request for what the caller may not see as a whole.
enum Part {
    /// He is shown what he may get by himself.
    His,
    /// A member of the project is told that there is no such object: whether others have one of that name is not his to know.
    Hidden,
    /// Nothing.
    None,
}

async fn part(backend: &Backend, principal: &Principal, kind: &dyn Kind, info: &RequestInfo) -> Part {
    if !info.subresource.is_empty() || kind.project("p-x", "x").is_none() {
        return Part::None;
    }
    let many = info.name.is_empty() && matches!(info.verb.as_str(), "list" | "watch");
    if info.namespace.is_empty() {
        return if many { Part::His } else { Part::None };
    }
    let roles = authz::roles_in(backend, principal, &info.namespace).await;
    match (many, info.verb.as_str()) {
        _ if !roles.project.is_some() => Part::None,
        (true, _) => Part::His,
        (false, "get") => Part::Hidden,
        (false, _) => Part::None,
    }
}

/// What a request is about, for the authorizer.
pub(crate) fn target(info: &RequestInfo) -> Target<'_> {
    Target::Resource {
        group: &info.group,
        resource: &info.resource,
        subresource: Some(info.subresource.as_str()).filter(|s| !s.is_empty()),
        namespace: Some(info.namespace.as_str()).filter(|s| !s.is_empty()),
        name: Some(info.name.as_str()).filter(|s| !s.is_empty()),
    }
}

fn documents(backend: &Backend, path: &str, request: &ApiRequest<'_>) -> Result<Response, Box<Status>> {
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return Err(not_allowed());
    }
    let json = |value: &Value| Ok(answer::json(StatusCode::OK, value));
    match path.trim_end_matches('/') {
        "/version" => return json(&ops::version()),
        "/healthz" | "/livez" => return Ok(health(backend, Probe::Live, request.query)),
        "/readyz" => return Ok(health(backend, Probe::Ready, request.query)),
        "/openapi/v3" => return Ok(openapi::answer(openapi::index())),
        "/openapi/v2" => {
            // kubectl asks for protobuf here and gets on without; it must not be given JSON instead.
            negotiation::form(request.headers, false)?;
            return Ok(openapi::answer(openapi::version_2()));
        }
        trimmed => {
            if let Some(document) = trimmed.strip_prefix("/openapi/v3/").and_then(openapi::document) {
                return Ok(openapi::answer(document));
            }
        }
    }
    let form = negotiation::form(request.headers, true)?;
    let document = discovery::document(path, form).ok_or_else(unknown)?;
    let mut response = answer::json(StatusCode::OK, &document);
    if document["kind"] == "APIGroupDiscoveryList" {
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(discovery::AGGREGATED));
    }
    Ok(response)
}

/// The probes once more, below the address that a kubeconfig holds; `draining` is the front door's to say.
fn health(backend: &Backend, probe: Probe, query: &Query) -> Response {
    ops::health(probe, backend, false, query)
}

/// What a body says, for the audit; or why that cannot be shown.
pub(crate) fn shown(headers: &HeaderMap, body: &[u8], most: usize) -> Result<Value, String> {
    let media = negotiation::content_type(headers);
    if body.len() > most {
        return Err(format!("more than {most} bytes"));
    }
    if media.contains("json") {
        return serde_json::from_slice(body).map_err(|_| "it is no JSON".to_owned());
    }
    if media.contains("yaml") {
        return negotiation::decode_as("application/yaml", body).map_err(|_| "it is no YAML".to_owned());
    }
    Err("neither JSON nor YAML".to_owned())
}

/// Removes members that are null: Kubernetes takes them for absent, and Go clients send many.
pub(crate) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// 404 for a path that leads nowhere.
pub(crate) fn unknown() -> Box<Status> {
    Box::new(Status::new(
        Reason::NotFound,
        "the server could not find the requested resource",
    ))
}

/// 405.
pub(crate) fn not_allowed() -> Box<Status> {
    Box::new(Status::new(
        Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    ))
}

/// 404 for an object.
pub(crate) fn no_such(kind: &dyn Kind, name: &str) -> Box<Status> {
    Box::new(Status::not_found(kind.names().group, kind.names().plural, name))
}

/// 409 for an object that changed.
pub(crate) fn conflict(kind: &dyn Kind, name: &str) -> Box<Status> {
    Box::new(Status::conflict(kind.names().group, kind.names().plural, name))
}
