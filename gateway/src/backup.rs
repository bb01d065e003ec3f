//! `GET /backup`: everything that the store holds, or one tenant's key space (`?project=P&name=N`), as it is being written.
//! For administrators only: a backup holds what no role but theirs may see together.

use crate::apiserver::backend::failed;
use crate::apiserver::not_allowed;
use crate::audit::Facts;
use crate::authn::Identity;
use crate::authz::{Asker, forbidden};
use crate::body::{Body, Response};
use crate::parts::{BackupOf, BackupStream};
use crate::query::Query;
use crate::rights::{OwnedTarget, Place, Right};
use crate::{Inner, answer};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use hanse_api::access::{Principal, Target};
use hanse_api::kinds::{TENANT_STORES, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::name::{check_label, project_namespace};
use hanse_api::resources::TenantStore;
use hanse_api::status::{Reason, Status};
use hanse_runtime::BoxError;
use hanse_runtime::clock::timeout;
use hanse_state::objects::{ObjectError, ObjectKey};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use std::sync::Arc;

const PATH: &str = "/backup";

/// Answers a request for a backup.
pub(crate) async fn serve(
    inner: Arc<Inner>,
    request: &Parts,
    identity: Identity,
    principal: Principal,
    facts: &Facts,
) -> Result<Response, Box<Status>> {
    let asker = Asker {
        backend: &inner.backend,
        principal: &principal,
    };
    if !asker.is_admin() {
        return Err(forbidden(&principal, "get", &Target::Path(PATH)));
    }
    if request.method != Method::GET {
        return Err(not_allowed());
    }
    let query = Query::parse(request.uri.query().unwrap_or_default());
    let query = query.map_err(|fault| Box::new(Status::new(Reason::BadRequest, fault)))?;
    let of = wanted(&inner, &query).await?;
    let place = inner.place()?;
    inner.begin_audited(facts).await?;
    let limit = inner.parts.limits.request;
    let begun = timeout(inner.parts.clock.as_ref(), limit, inner.parts.backups.take(of.clone())).await;
    let begun = begun.map_err(|_| Box::new(Status::new(Reason::Timeout, "the backup did not begin in time")))?;
    let stream = begun.map_err(|error| failed(&ObjectError::Store(error)))?;
    tracing::info!(user = principal.user, ?of, "a backup is being sent");
    let right = Right {
        impersonated: (principal != identity.principal).then(|| principal.clone()),
        identity,
        verbs: vec!["get".to_owned()],
        target: OwnedTarget::Path(PATH),
        partial: false,
    };
    let mut response = answer::with_type(StatusCode::OK, "application/octet-stream", String::new());
    *response.body_mut() = as_body(inner, Sent { stream, right, place });
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}

async fn wanted(inner: &Inner, query: &Query) -> Result<BackupOf, Box<Status>> {
    let (project, name) = match (query.text("project"), query.text("name")) {
        (None, None) => return Ok(BackupOf::Everything),
        (Some(project), Some(name)) if check_label(project).is_ok() && check_label(name).is_ok() => (project, name),
        _ => {
            let message = "project and name must both be given, as names, or neither";
            return Err(Box::new(Status::new(Reason::BadRequest, message)));
        }
    };
    tenant_store(inner, project, name).await.map(BackupOf::Tenant)
}

/// Id of the key space of a tenant.
pub(crate) async fn tenant_store(inner: &Inner, project: &str, name: &str) -> Result<String, Box<Status>> {
    let key = ObjectKey::new(&TENANT_STORES, project_namespace(project), name);
    let stored = inner.backend.objects.get(&key).await.map_err(|error| failed(&error))?;
    let kind = VIRTUAL_CLUSTER_INSTANCES;
    let stored = stored.ok_or_else(|| Box::new(Status::not_found(kind.group, kind.plural, name)))?;
    let store: TenantStore = serde_json::from_slice(&stored.value).map_err(|error| {
        tracing::error!(project, name, %error, "a tenant's store cannot be read");
        Box::new(Status::new(Reason::InternalError, "the tenant's store cannot be read"))
    })?;
    Ok(store.spec.tenant)
}

/// What is sent for as long as its caller may have it.
pub(crate) struct Sent {
    pub(crate) stream: BackupStream,
    pub(crate) right: Right,
    pub(crate) place: Place,
}

/// What keeps it going, or ends it.
struct Sending {
    stream: BackupStream,
    ended: BoxFuture<'static, ()>,
    _place: Place,
}

/// The body: it breaks off when the caller loses his right or the server goes.
pub(crate) fn as_body(inner: Arc<Inner>, sent: Sent) -> Body {
    let Sent { stream, right, place } = sent;
    let ended = Box::pin(async move {
        tokio::select! {
            _ending = right.ended(Arc::clone(&inner)) => {}
            () = inner.drain() => {}
        }
    });
    let sending = Sending {
        stream,
        ended,
        _place: place,
    };
    let next = |state: Option<Sending>| async move {
        let mut sending = state?;
        let item: Result<Bytes, BoxError> = tokio::select! {
            biased;
            () = &mut sending.ended => Err("the answer was broken off".into()),
            item = sending.stream.next() => item?,
        };
        let go_on = item.is_ok();
        Some((item.map(Frame::data), go_on.then_some(sending)))
    };
    StreamBody::new(futures::stream::unfold(Some(sending), next)).boxed_unsync()
}
