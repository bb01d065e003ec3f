//! Resources that are no objects of the registry: questions of the caller about himself, keys that are shown once, and
//! endpoints below objects.

use super::backend::{Backend, failed};
use super::negotiation::{content_type, decode};
use super::object;
use super::{ApiRequest, not_allowed, protobuf, target, unknown};
use crate::authn::{access_key, enrolment_token};
use crate::proxy::path::RequestInfo;
use crate::{answer, authz, body};
use hanse_api::access::{Action, Principal, Target};
use hanse_api::kinds::{ACCESS_KEYS, CLUSTERS, ENROLMENT_TOKENS, LOFT_GROUP, PROJECTS, USERS};
use hanse_api::meta::ObjectMeta;
use hanse_api::name::PROJECT_NAMESPACE_PREFIX;
use hanse_api::resources::{AccessKey, AccessKeySpec, Cluster, EnrolmentToken, EnrolmentTokenSpec, Project, User};
use hanse_api::status::{Cause, Reason, Status};
use hanse_runtime::pki::sha256_hex;
use hanse_state::objects::{ObjectError, ObjectKey, Op, Page};
use http::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

/// A resource without objects, for discovery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Special {
    pub(crate) group: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) verbs: &'static [&'static str],
}

const AUTHORIZATION: &str = "authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";
const CREATE: &[&str] = &["create"];

/// All of them.
pub(crate) static ALL: &[Special] = &[
    Special {
        group: LOFT_GROUP,
        plural: "selves",
        singular: "self",
        kind: "Self",
        verbs: CREATE,
    },
    Special {
        group: LOFT_GROUP,
        plural: "ownedaccesskeys",
        singular: "ownedaccesskey",
        kind: "OwnedAccessKey",
        verbs: &["create", "delete", "list"],
    },
    Special {
        group: LOFT_GROUP,
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        kind: "SelfSubjectAccessReview",
        verbs: CREATE,
    },
    Special {
        group: AUTHORIZATION,
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        kind: "SelfSubjectAccessReview",
        verbs: CREATE,
    },
    Special {
        group: AUTHENTICATION,
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        kind: "SelfSubjectReview",
        verbs: CREATE,
    },
];

/// Default and longest life of an enrolment token.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Longest life of an access key that may be asked for.
const KEY_LIFE_MAX: i64 = 10 * 365 * 24 * 3600;
/// Objects read from the store at once.
const SCAN_PAGE: i64 = 500;
/// Most keys of one user that are listed.
const MAX_KEYS: usize = 1000;

fn find(info: &RequestInfo) -> Option<&'static Special> {
    ALL.iter()
        .find(|s| s.group == info.group && s.plural == info.resource && info.version == "v1")
}

/// Whether a request is answered here.
pub(crate) fn is_special(info: &RequestInfo) -> bool {
    let below = info.group == LOFT_GROUP && info.version == "v1" && !info.name.is_empty();
    let below = below
        && matches!(
            (info.resource.as_str(), info.subresource.as_str()),
            ("projects", "clusters" | "templates") | ("clusters", "enrolmenttoken")
        );
    below || find(info).is_some()
}

/// Answers it.
pub(crate) async fn serve(
    backend: &Backend,
    info: &RequestInfo,
    request: ApiRequest<'_>,
) -> Result<body::Response, Box<Status>> {
    if !info.namespace.is_empty() || (find(info).is_some() && !info.subresource.is_empty()) {
        return Err(unknown());
    }
    authz::authorize(backend, request.principal, &[info.verb.as_str()], &target(info)).await?;
    if find(info).is_some_and(|s| !s.verbs.contains(&info.verb.as_str())) {
        return Err(not_allowed());
    }
    let ApiRequest {
        headers,
        identity,
        principal,
        body_limit,
        ..
    } = request;
    let body = body::read(headers, request.body, body_limit).await?;
    let is_proto = content_type(headers) == protobuf::MEDIA;
    let value = || {
        if body.is_empty() {
            Ok(json!({}))
        } else {
            decode(headers, &body)
        }
    };
    let created = |value: Value| Ok(answer::json(StatusCode::CREATED, &value));
    let ok = |value: Value| Ok(answer::json(StatusCode::OK, &value));
    match (info.resource.as_str(), info.subresource.as_str(), info.verb.as_str()) {
        ("selves", _, _) => created(selves(backend, &identity.key, principal).await?),
        ("selfsubjectreviews", _, _) => created(self_review(principal)),
        ("selfsubjectaccessreviews", _, _) => {
            let spec = if is_proto {
                proto_review(&body)?
            } else {
                value()?["spec"].clone()
            };
            created(access_review(backend, &info.group, principal, spec).await)
        }
        ("ownedaccesskeys", _, "create") => created(create_key(backend, principal, &value()?).await?),
        ("ownedaccesskeys", _, "list") => ok(list_keys(backend, principal).await?),
        ("ownedaccesskeys", _, "delete") => ok(delete_key(backend, principal, &info.name).await?),
        ("projects", "clusters", "get") => ok(project_clusters(backend, &info.name).await?),
        ("projects", "templates", "get") => ok(json!({
            "kind": "ProjectTemplates", "apiVersion": "management.loft.sh/v1", "metadata": { "name": info.name },
            "virtualClusterTemplates": [], "spaceTemplates": [],
        })),
        ("clusters", "enrolmenttoken", "create") => created(enrolment(backend, &info.name, &value()?).await?),
        _ => Err(not_allowed()),
    }
}

/// Reads an object as its type; 404 when it is not there.
async fn typed<T: serde::de::DeserializeOwned>(
    backend: &Backend,
    kind: &hanse_api::kinds::KindName,
    name: &str,
) -> Result<T, Box<Status>> {
    let stored = backend
        .objects
        .get(&ObjectKey::new(kind, "", name))
        .await
        .map_err(|e| failed(&e))?;
    let stored = stored.ok_or_else(|| Box::new(Status::not_found(kind.group, kind.plural, name)))?;
    serde_json::from_value(Backend::parse(&stored)?).map_err(|e| {
        Box::new(Status::new(
            Reason::InternalError,
            format!("the stored {} {name:?} cannot be read: {e}", kind.kind),
        ))
    })
}

async fn selves(backend: &Backend, key: &str, principal: &Principal) -> Result<Value, Box<Status>> {
    let user: User = typed(backend, &USERS, &principal.user).await?;
    Ok(json!({
        "kind": "Self",
        "apiVersion": "management.loft.sh/v1",
        "metadata": {},
        "spec": {},
        "status": {
            "user": { "name": user.metadata.name, "username": user.spec.username },
            "subject": principal.user,
            "uid": principal.uid,
            "groups": principal.groups,
            "accessKey": key,
            "accessKeyType": "User",
            "projectNamespacePrefix": PROJECT_NAMESPACE_PREFIX,
        },
    }))
}

fn self_review(principal: &Principal) -> Value {
    let info = json!({ "username": principal.user, "uid": principal.uid, "groups": principal.groups, "extra": principal.extra });
    json!({
        "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
        "status": { "userInfo": info },
    })
}

/// `spec` of a SelfSubjectAccessReview in protobuf.
fn proto_review(body: &[u8]) -> Result<Value, Box<Status>> {
    let read = || {
        let spec = protobuf::message(protobuf::object(body)?, 2)?;
        let (resource, path) = (protobuf::message(spec, 1)?, protobuf::message(spec, 2)?);
        if !path.is_empty() {
            return Some(
                json!({ "nonResourceAttributes": { "path": protobuf::text(path, 1)?, "verb": protobuf::text(path, 2)? } }),
            );
        }
        let text = |number| protobuf::text(resource, number);
        Some(json!({ "resourceAttributes": {
            "namespace": text(1)?, "verb": text(2)?, "group": text(3)?, "version": text(4)?, "resource": text(5)?,
            "subresource": text(6)?, "name": text(7)?,
        } }))
    };
    read().ok_or_else(|| {
        Box::new(Status::new(
            Reason::BadRequest,
            "the protobuf body is no SelfSubjectAccessReview",
        ))
    })
}

async fn access_review(backend: &Backend, group: &str, principal: &Principal, spec: Value) -> Value {
    let decision = {
        let text = |pointer: &str| spec.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let some = |pointer: &str| Some(text(pointer)).filter(|t| !t.is_empty());
        let path = text("/nonResourceAttributes/path");
        let (verb, target) = if path.is_empty() {
            let target = Target::Resource {
                group: text("/resourceAttributes/group"),
                resource: text("/resourceAttributes/resource"),
                subresource: some("/resourceAttributes/subresource"),
                namespace: some("/resourceAttributes/namespace"),
                name: some("/resourceAttributes/name"),
            };
            (text("/resourceAttributes/verb"), target)
        } else {
            (text("/nonResourceAttributes/verb"), Target::Path(path))
        };
        authz::decision(backend, principal, &Action { verb }, &target).await
    };
    json!({
        "kind": "SelfSubjectAccessReview",
        "apiVersion": format!("{group}/v1"),
        "metadata": {},
        "spec": spec,
        "status": { "allowed": decision.allowed, "reason": decision.reason },
    })
}

fn invalid(kind: &str, name: &str, field: &str, message: String) -> Box<Status> {
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message,
        field: field.into(),
    };
    Box::new(Status::invalid(LOFT_GROUP, kind, name, vec![cause]))
}

/// A public id: lower case, so that it can name an object.
fn new_id(backend: &Backend) -> String {
    backend.rng.uuid().replace('-', "").chars().take(12).collect()
}

async fn create_key(backend: &Backend, principal: &Principal, wanted: &Value) -> Result<Value, Box<Status>> {
    const KIND: &str = "OwnedAccessKey";
    let spec = &wanted["spec"];
    let name = match object::name(wanted) {
        "" => new_id(backend),
        name => name.to_owned(),
    };
    if let Err(why) = hanse_api::name::check_label(&name) {
        return Err(invalid(
            KIND,
            &name,
            "metadata.name",
            format!("Invalid value: {name:?}: {why}"),
        ));
    }
    let owner = spec["user"]
        .as_str()
        .filter(|u| !u.is_empty())
        .unwrap_or(&principal.user);
    if owner != principal.user {
        return Err(invalid(
            KIND,
            &name,
            "spec.user",
            format!("Invalid value: {owner:?}: a key can be made for oneself only"),
        ));
    }
    // A key that can do more than was asked for would be worse than none.
    if spec["scope"].as_object().is_some_and(|s| !s.is_empty()) {
        return Err(invalid(
            KIND,
            &name,
            "spec.scope",
            "Invalid value: scopes of access keys are not supported yet".into(),
        ));
    }
    let ttl = spec["ttl"].as_i64().unwrap_or(0);
    if !(0..=KEY_LIFE_MAX).contains(&ttl) {
        return Err(invalid(
            KIND,
            &name,
            "spec.ttl",
            format!("Invalid value: {ttl}: must be from 0 to {KEY_LIFE_MAX} seconds"),
        ));
    }
    let user: User = typed(backend, &USERS, owner).await?;
    let (now, secret) = (backend.clock.wall(), backend.rng.token());
    let expires = (ttl > 0).then(|| now.plus(Duration::from_secs(ttl.unsigned_abs())));
    let display_name = spec["displayName"].as_str().unwrap_or_default().to_owned();
    let key = AccessKey {
        api_version: ACCESS_KEYS.api_version(),
        kind: ACCESS_KEYS.kind.into(),
        metadata: ObjectMeta {
            name: name.clone(),
            uid: backend.rng.uuid(),
            generation: 1,
            creation_timestamp: Some(now),
            ..ObjectMeta::default()
        },
        spec: AccessKeySpec {
            display_name: display_name.clone(),
            user: user.metadata.name.clone(),
            secret_sha256: sha256_hex(secret.as_bytes()),
            expires,
            disabled: false,
        },
        status: (),
    };
    let value = stored_json(&key)?;
    commit_new(
        backend,
        Op::Create {
            key: ObjectKey::new(&ACCESS_KEYS, "", &name),
            value,
        },
        "ownedaccesskeys",
        &name,
    )
    .await?;
    let mut made = owned_key(&key);
    made["spec"]["key"] = access_key(&name, &secret).into();
    Ok(made)
}

fn owned_key(key: &AccessKey) -> Value {
    json!({
        "kind": "OwnedAccessKey",
        "apiVersion": "management.loft.sh/v1",
        "metadata": key.metadata,
        "spec": {
            "displayName": key.spec.display_name, "user": key.spec.user, "type": "User", "disabled": key.spec.disabled,
            "expires": key.spec.expires,
        },
    })
}

fn stored_json(object: &impl serde::Serialize) -> Result<bytes::Bytes, Box<Status>> {
    serde_json::to_vec(object).map(Into::into).map_err(|e| {
        Box::new(Status::new(
            Reason::InternalError,
            format!("an object cannot be written: {e}"),
        ))
    })
}

async fn commit_new(backend: &Backend, op: Op, plural: &str, name: &str) -> Result<(), Box<Status>> {
    match backend.objects.commit(vec![op]).await {
        Ok(_) => Ok(()),
        Err(ObjectError::Failed { .. }) => Err(Box::new(Status::already_exists(LOFT_GROUP, plural, name))),
        Err(error) => Err(failed(&error)),
    }
}

async fn list_keys(backend: &Backend, principal: &Principal) -> Result<Value, Box<Status>> {
    let mut items = Vec::new();
    let mut page = Page {
        limit: SCAN_PAGE,
        ..Page::default()
    };
    let revision = loop {
        let list = backend
            .objects
            .list(&ACCESS_KEYS, None, page.clone())
            .await
            .map_err(|e| failed(&e))?;
        for stored in &list.items {
            match serde_json::from_value::<AccessKey>(Backend::parse(stored)?) {
                Ok(key) if key.spec.user == principal.user && items.len() < MAX_KEYS => items.push(owned_key(&key)),
                Ok(_) => {}
                Err(error) => tracing::error!(%error, name = stored.name, "a stored access key cannot be read"),
            }
        }
        let Some(last) = list.items.last().filter(|_| list.more) else {
            break list.revision;
        };
        page.after = Some((String::new(), last.name.clone()));
        page.revision = list.revision;
    };
    Ok(json!({
        "kind": "OwnedAccessKeyList", "apiVersion": "management.loft.sh/v1",
        "metadata": { "resourceVersion": revision.to_string() }, "items": items,
    }))
}

async fn delete_key(backend: &Backend, principal: &Principal, name: &str) -> Result<Value, Box<Status>> {
    let missing = || Box::new(Status::not_found(LOFT_GROUP, "ownedaccesskeys", name));
    let key = ObjectKey::new(&ACCESS_KEYS, "", name);
    let stored = backend
        .objects
        .get(&key)
        .await
        .map_err(|e| failed(&e))?
        .ok_or_else(missing)?;
    let owned = serde_json::from_slice::<AccessKey>(&stored.value).is_ok_and(|k| k.spec.user == principal.user);
    if !owned {
        return Err(missing());
    }
    backend
        .objects
        .commit(vec![Op::Delete {
            key,
            expected: stored.revision,
        }])
        .await
        .map_err(|e| failed(&e))?;
    Ok(json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": { "name": name, "group": LOFT_GROUP, "kind": "ownedaccesskeys" },
    }))
}

async fn project_clusters(backend: &Backend, name: &str) -> Result<Value, Box<Status>> {
    let project: Project = typed(backend, &PROJECTS, name).await?;
    let mut clusters = Vec::new();
    let mut page = Page {
        limit: SCAN_PAGE,
        ..Page::default()
    };
    loop {
        let list = backend
            .objects
            .list(&CLUSTERS, None, page.clone())
            .await
            .map_err(|e| failed(&e))?;
        for stored in list.items.iter().filter(|c| project.spec.allows_cluster(&c.name)) {
            clusters.push(Backend::parse(stored)?);
        }
        let Some(last) = list.items.last().filter(|_| list.more) else {
            break;
        };
        page.after = Some((String::new(), last.name.clone()));
        page.revision = list.revision;
    }
    Ok(json!({
        "kind": "ProjectClusters", "apiVersion": "management.loft.sh/v1", "metadata": { "name": name }, "clusters": clusters,
    }))
}

async fn enrolment(backend: &Backend, cluster: &str, wanted: &Value) -> Result<Value, Box<Status>> {
    let found: Cluster = typed(backend, &CLUSTERS, cluster).await?;
    if found.metadata.deletion_timestamp.is_some() {
        return Err(Box::new(Status::new(
            Reason::Conflict,
            format!("cluster {cluster:?} is being deleted; no agent can be enrolled"),
        )));
    }
    let life = match wanted["spec"]["ttlSeconds"].as_i64() {
        None | Some(0) => TOKEN_LIFE,
        Some(seconds) if seconds > 0 && seconds.unsigned_abs() <= TOKEN_LIFE_MAX.as_secs() => {
            Duration::from_secs(seconds.unsigned_abs())
        }
        Some(seconds) => {
            let message = format!(
                "Invalid value: {seconds}: must be from 1 to {}",
                TOKEN_LIFE_MAX.as_secs()
            );
            return Err(invalid("EnrolmentToken", cluster, "spec.ttlSeconds", message));
        }
    };
    let (now, id, secret) = (backend.clock.wall(), new_id(backend), backend.rng.token());
    let expires = now.plus(life);
    let token = EnrolmentToken {
        api_version: ENROLMENT_TOKENS.api_version(),
        kind: ENROLMENT_TOKENS.kind.into(),
        metadata: ObjectMeta {
            name: id.clone(),
            uid: backend.rng.uuid(),
            generation: 1,
            creation_timestamp: Some(now),
            ..ObjectMeta::default()
        },
        spec: EnrolmentTokenSpec {
            cluster: cluster.to_owned(),
            secret_sha256: sha256_hex(secret.as_bytes()),
            expires,
            used_by_key_sha256: None,
        },
        status: (),
    };
    let value = stored_json(&token)?;
    commit_new(
        backend,
        Op::Create {
            key: ObjectKey::new(&ENROLMENT_TOKENS, "", &id),
            value,
        },
        "enrolmenttokens",
        &id,
    )
    .await?;
    Ok(json!({
        "kind": "EnrolmentToken",
        "apiVersion": "management.loft.sh/v1",
        "metadata": { "name": cluster },
        "status": { "token": enrolment_token(&id, &secret, &backend.ca_sha256), "expires": expires },
    }))
}
