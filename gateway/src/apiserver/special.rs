//! Resources that are no objects of the registry: questions of the caller about himself, keys that are shown once, and
//! endpoints below objects.

use super::backend::{Backend, failed};
use super::negotiation::{content_type, decode};
use super::{ApiRequest, keys, not_allowed, protobuf, target, unknown};
use crate::proxy::path::RequestInfo;
use crate::{answer, authz, body};
use hanse_api::access::{self, Action, Principal, RuleTarget, Target};
use hanse_api::kinds::{CLUSTERS, LOFT_GROUP, PROJECTS, USERS};
use hanse_api::name::PROJECT_NAMESPACE_PREFIX;
use hanse_api::resources::{Project, User};
use hanse_api::status::{Reason, Status};
use hanse_state::objects::{ObjectKey, Page};
use http::StatusCode;
use serde_json::{Value, json};

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
        group: AUTHORIZATION,
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        kind: "SelfSubjectRulesReview",
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

/// Objects read from the store at once.
const SCAN_PAGE: i64 = 500;

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
        ("selfsubjectrulesreviews", _, _) => {
            let namespace = if is_proto {
                proto_namespace(&body)?
            } else {
                value()?["spec"]["namespace"].as_str().unwrap_or_default().to_owned()
            };
            created(rules_review(backend, principal, &namespace).await)
        }
        ("ownedaccesskeys", _, "create") => created(keys::create_key(backend, principal, &value()?).await?),
        ("ownedaccesskeys", _, "list") => ok(keys::list_keys(backend, principal).await?),
        ("ownedaccesskeys", _, "delete") => ok(keys::delete_key(backend, principal, &info.name).await?),
        ("projects", "clusters", "get") => ok(project_clusters(backend, &info.name).await?),
        ("projects", "templates", "get") => ok(json!({
            "kind": "ProjectTemplates", "apiVersion": "management.loft.sh/v1", "metadata": { "name": info.name },
            "virtualClusterTemplates": [], "spaceTemplates": [],
        })),
        ("clusters", "enrolmenttoken", "create") => created(keys::enrolment(backend, &info.name, &value()?).await?),
        _ => Err(not_allowed()),
    }
}

/// Reads an object as its type; 404 when it is not there.
pub(super) async fn typed<T: serde::de::DeserializeOwned>(
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

/// `spec.namespace` of a SelfSubjectRulesReview in protobuf.
fn proto_namespace(body: &[u8]) -> Result<String, Box<Status>> {
    let read = || protobuf::text(protobuf::message(protobuf::object(body)?, 2)?, 1);
    read().map(str::to_owned).ok_or_else(|| {
        Box::new(Status::new(
            Reason::BadRequest,
            "the protobuf body is no SelfSubjectRulesReview",
        ))
    })
}

async fn rules_review(backend: &Backend, principal: &Principal, namespace: &str) -> Value {
    let roles = authz::roles_in(backend, principal, namespace).await;
    let (mut resource_rules, mut path_rules) = (Vec::new(), Vec::new());
    for rule in access::rules(principal, namespace, &roles) {
        match rule.on {
            RuleTarget::Resources {
                groups,
                resources,
                names,
            } => {
                let mut shown = json!({ "verbs": rule.verbs, "apiGroups": groups, "resources": resources });
                if !names.is_empty() {
                    shown["resourceNames"] = json!(names);
                }
                resource_rules.push(shown);
            }
            RuleTarget::Paths(paths) => path_rules.push(json!({ "verbs": rule.verbs, "nonResourceURLs": paths })),
        }
    }
    json!({
        "kind": "SelfSubjectRulesReview",
        "apiVersion": "authorization.k8s.io/v1",
        "metadata": {},
        "spec": {},
        "status": { "resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": false },
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
