//! Resources that are no objects of the registry: questions of the caller about himself, keys that are shown once, and
//! endpoints below objects.

use super::backend::{Backend, failed};
use super::credentials::{self, Tenant};
use super::keys::{self, Way};
use super::negotiation::{content_type, decode};
use super::{ApiRequest, members, not_allowed, protobuf, servers, target, unknown};
use crate::authn::{Identity, effective};
use crate::proxy::path::RequestInfo;
use crate::{answer, authz, body};
use hanse_api::access::{self, Action, Decision, GROUP_ADMINS, GROUP_TEAM_PREFIX, Principal, Target};
use hanse_api::kinds::{CLUSTERS, LOFT_GROUP, PROJECTS, STORAGE_GROUP, USERS, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::name::{PROJECT_NAMESPACE_PREFIX, check_subdomain};
use hanse_api::resources::{EntityInfo, Project, User};
use hanse_api::status::{Reason, Status};
use hanse_state::objects::{ObjectKey, Page};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};

/// A resource without objects, for discovery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Special {
    pub(crate) group: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) verbs: &'static [&'static str],
    /// What it is, in a sentence.
    pub(crate) about: &'static str,
    /// `spec` of a request, as JSON, for the reference.
    pub(crate) example: &'static str,
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
        about: "Who the caller is, with his user or team.",
        example: r#"{}"#,
    },
    Special {
        group: LOFT_GROUP,
        plural: "ownedaccesskeys",
        singular: "ownedaccesskey",
        kind: "OwnedAccessKey",
        verbs: &["create", "delete", "get", "list"],
        about: "The caller's own access keys, and those of his teams. The key itself is in the answer to its creation only.",
        example: r#"{ "displayName": "laptop", "ttl": 3600 }"#,
    },
    Special {
        group: LOFT_GROUP,
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        kind: "SubjectAccessReview",
        verbs: CREATE,
        about: "Whether a user may do something, as the management API decides.",
        example: r#"{ "user": "ann", "resourceAttributes": { "group": "management.loft.sh", "resource": "projects", "verb": "list" } }"#,
    },
    Special {
        group: LOFT_GROUP,
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        kind: "SelfSubjectAccessReview",
        verbs: CREATE,
        about: "Whether the caller may do something, as the management API decides.",
        example: r#"{ "resourceAttributes": { "group": "management.loft.sh", "resource": "projects", "verb": "list" } }"#,
    },
    Special {
        group: AUTHORIZATION,
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        kind: "SelfSubjectAccessReview",
        verbs: CREATE,
        about: "Whether the caller may do something (`kubectl auth can-i`).",
        example: r#"{ "resourceAttributes": { "group": "management.loft.sh", "resource": "projects", "verb": "list" } }"#,
    },
    Special {
        group: AUTHORIZATION,
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        kind: "SubjectAccessReview",
        verbs: CREATE,
        about: "Whether a user may do something.",
        example: r#"{ "user": "ann", "resourceAttributes": { "group": "management.loft.sh", "resource": "projects", "verb": "list" } }"#,
    },
    Special {
        group: AUTHORIZATION,
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        kind: "SelfSubjectRulesReview",
        verbs: CREATE,
        about: "What the caller may do (`kubectl auth can-i --list`).",
        example: r#"{ "namespace": "p-default" }"#,
    },
    Special {
        group: AUTHENTICATION,
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        kind: "SelfSubjectReview",
        verbs: CREATE,
        about: "Who the caller is (`kubectl auth whoami`).",
        example: r#"{}"#,
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
            ("projects", "clusters" | "templates" | "members")
                | ("clusters", "enrolmenttoken" | "accesskey" | "agentconfig" | "members")
                | ("virtualclusterinstances", "accesskey" | "kubeconfig")
        );
    // Keys are made here and looked at as other objects.
    let makes_key =
        (info.group.as_str(), info.resource.as_str(), info.verb.as_str()) == (STORAGE_GROUP, "accesskeys", "create");
    below || makes_key || servers::is_here(info) || find(info).is_some()
}

/// Whether a request that looks like a read makes credentials: it is one that changes something, for the audit.
pub(crate) fn makes_credentials(info: &RequestInfo) -> bool {
    info.group == LOFT_GROUP
        && matches!(
            (info.resource.as_str(), info.subresource.as_str()),
            ("clusters" | "virtualclusterinstances", "accesskey")
        )
}

/// Answers it.
pub(crate) async fn serve(
    backend: &Backend,
    info: &RequestInfo,
    request: ApiRequest<'_>,
) -> Result<body::Response, Box<Status>> {
    let of_tenant = info.resource == VIRTUAL_CLUSTER_INSTANCES.plural;
    if info.namespace.is_empty() == of_tenant || (find(info).is_some() && !info.subresource.is_empty()) {
        return Err(unknown());
    }
    if of_tenant {
        return of_tenant_cluster(backend, info, request).await;
    }
    authz::authorize(backend, request.principal, &[info.verb.as_str()], &target(info)).await?;
    let makes_by_head = request.method == Method::HEAD && makes_credentials(info);
    if makes_by_head || find(info).is_some_and(|s| !s.verbs.contains(&info.verb.as_str())) {
        return Err(not_allowed());
    }
    let ApiRequest {
        headers,
        identity,
        principal,
        body_limit,
        uri,
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
        ("selves", _, _) => created(selves(backend, identity, principal).await?),
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
        ("subjectaccessreviews", _, _) => created(subject_review(backend, &info.group, &value()?["spec"]).await?),
        ("accesskeys", "", "create") => {
            created(keys::create_key(backend, principal, Way::Administered, &value()?).await?)
        }
        ("ownedaccesskeys", _, "create") => created(keys::create_key(backend, principal, Way::Owned, &value()?).await?),
        ("ownedaccesskeys", _, "get") => ok(keys::get_key(backend, principal, &info.name).await?),
        ("ownedaccesskeys", _, "list") => ok(keys::list_keys(backend, principal).await?),
        ("ownedaccesskeys", _, "delete") => ok(keys::delete_key(backend, principal, &info.name).await?),
        ("projects" | "clusters", _, "get") => ok(part(backend, info, (headers, uri)).await?),
        ("clusters", "enrolmenttoken", "create") => created(keys::enrolment(backend, &info.name, &value()?).await?),
        _ if servers::is_here(info) => created(servers::serve(backend, principal, info, &value()?).await?),
        _ => Err(not_allowed()),
    }
}

/// A part of a project or a connected cluster.
async fn part(backend: &Backend, info: &RequestInfo, from: (&HeaderMap, &Uri)) -> Result<Value, Box<Status>> {
    let name = info.name.as_str();
    let address = || credentials::address(from.0, from.1);
    match (info.resource.as_str(), info.subresource.as_str()) {
        ("projects", "clusters") => project_clusters(backend, name).await,
        ("projects", "members") => members::of_project(backend, name).await,
        ("projects", "templates") => Ok(json!({
            "kind": "ProjectTemplates", "apiVersion": "management.loft.sh/v1", "metadata": { "name": name },
            "virtualClusterTemplates": [], "spaceTemplates": [],
        })),
        ("clusters", "members") => members::of_cluster(backend, name).await,
        ("clusters", "accesskey") => credentials::cluster_key(backend, name, &address()?).await,
        ("clusters", "agentconfig") => credentials::agent_config(backend, name, &address()?).await,
        _ => Err(not_allowed()),
    }
}

/// Credentials for a tenant cluster. A kubeconfig is for whoever may enter it; a key for its programs for whoever may get that.
async fn of_tenant_cluster(
    backend: &Backend,
    info: &RequestInfo,
    request: ApiRequest<'_>,
) -> Result<body::Response, Box<Status>> {
    let tenant = Tenant::new(&info.namespace, &info.name)?;
    let is_key = info.subresource == "accesskey";
    if is_key {
        authz::authorize(backend, request.principal, &["get"], &target(info)).await?;
    }
    tenant.admit(backend, request.principal).await?;
    match (is_key, request.method) {
        (true, &Method::GET) => {
            let made = credentials::instance_key(backend, request.principal, tenant).await?;
            Ok(answer::json(StatusCode::OK, &made))
        }
        (false, &Method::POST) => {
            let body = body::read(request.headers, request.body, request.body_limit).await?;
            let wanted = if body.is_empty() {
                json!({})
            } else {
                decode(request.headers, &body)?
            };
            let address = credentials::address(request.headers, request.uri)?;
            let made = credentials::kubeconfig(backend, request.principal, tenant, &address, &wanted).await?;
            Ok(answer::json(StatusCode::CREATED, &made))
        }
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

async fn selves(backend: &Backend, identity: &Identity, principal: &Principal) -> Result<Value, Box<Status>> {
    let directory = backend.directory.snapshot().await?;
    let mut status = json!({
        "subject": principal.user,
        "uid": principal.uid,
        "groups": principal.groups,
        "accessKey": identity.key,
        "accessKeyType": if identity.kind.is_empty() { "User" } else { &identity.kind },
        "projectNamespacePrefix": PROJECT_NAMESPACE_PREFIX,
    });
    if !principal.scope.is_everything() {
        status["accessKeyScope"] = json!(principal.scope);
    }
    if let Some(team) = principal.user.strip_prefix(GROUP_TEAM_PREFIX) {
        status["team"] = json!(directory.entity(team));
    } else {
        let user: User = typed(backend, &USERS, &principal.user).await?;
        let teams: Vec<EntityInfo> = principal.teams().map(|t| directory.entity(t)).collect();
        status["user"] = json!({
            "name": user.metadata.name, "username": user.spec.username, "displayName": user.spec.display_name,
            "email": user.spec.email, "teams": teams,
        });
    }
    Ok(json!({
        "kind": "Self", "apiVersion": "management.loft.sh/v1", "metadata": {}, "spec": {}, "status": status,
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
        if rule.non_resource_urls.is_empty() {
            let mut shown = json!({ "verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources });
            if !rule.resource_names.is_empty() {
                shown["resourceNames"] = json!(rule.resource_names);
            }
            resource_rules.push(shown);
        } else {
            path_rules.push(json!({ "verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls }));
        }
    }
    // Rights that single objects give, and what the scope of a key takes away, are not told.
    let incomplete = !principal.is_in(GROUP_ADMINS) || !principal.scope.is_everything();
    json!({
        "kind": "SelfSubjectRulesReview",
        "apiVersion": "authorization.k8s.io/v1",
        "metadata": {},
        "spec": {},
        "status": { "resourceRules": resource_rules, "nonResourceRules": path_rules, "incomplete": incomplete },
    })
}

async fn access_review(backend: &Backend, group: &str, principal: &Principal, spec: Value) -> Value {
    let decision = reviewed(backend, principal, &spec).await;
    review("SelfSubjectAccessReview", group, spec, &decision)
}

/// The same about somebody else. One of our users has his own groups beside those that are named.
async fn subject_review(backend: &Backend, group: &str, spec: &Value) -> Result<Value, Box<Status>> {
    let user = spec["user"].as_str().unwrap_or_default();
    let groups = spec["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
    let groups: Vec<String> = groups.iter().filter_map(|g| g.as_str().map(str::to_owned)).collect();
    if user.is_empty() && groups.is_empty() {
        let message = "a review needs spec.user or spec.groups";
        return Err(Box::new(Status::new(Reason::BadRequest, message)));
    }
    let mut principal = match typed::<User>(backend, &USERS, user).await {
        Ok(found) if check_subdomain(user).is_ok() => effective(&*backend.directory.snapshot().await?, found),
        Ok(_) | Err(_) => Principal {
            user: user.to_owned(),
            ..Principal::default()
        },
    };
    principal.groups.extend(groups);
    let decision = reviewed(backend, &principal, spec).await;
    Ok(review("SubjectAccessReview", group, spec.clone(), &decision))
}

fn review(kind: &str, group: &str, spec: Value, decision: &Decision) -> Value {
    json!({
        "kind": kind,
        "apiVersion": format!("{group}/v1"),
        "metadata": {},
        "spec": spec,
        "status": { "allowed": decision.allowed, "reason": decision.reason },
    })
}

/// The decision about what a review asks. Entering a tenant cluster is the verb `use` on its object.
async fn reviewed(backend: &Backend, principal: &Principal, spec: &Value) -> Decision {
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
        let Some(next) = list.next_page(page) else {
            break;
        };
        page = next;
    }
    Ok(json!({
        "kind": "ProjectClusters", "apiVersion": "management.loft.sh/v1", "metadata": { "name": name }, "clusters": clusters,
    }))
}
