//! The audit trail's end at the gateway: who did what, from where.
//!
//! - [`event`]: events in the shape of `audit.k8s.io/v1`, without anything secret.
//! - A change carries its event in its own transaction: the registry that a request changes objects through knows the request
//!   ([`Writer`]), so there is nothing to remember at the places that change something.
//! - [`recorder`]: what changes nothing and must be known all the same (denials, failed logins, sessions and sensitive reads).
//! - [`retention`]: takes out the oldest events by number and age.
//! - [`policy`]: rules that say more or less of a request than what holds without them.
//! - [`sinks`]: files, syslog daemons and webhooks that are given the trail; [`settings`]: what an administrator says.
//!
//! How events are chained is the store's (`hanse_api::audit`); why it is so, docs/design/0014-audit.md.

pub(crate) mod event;
mod folded;
pub(crate) mod policy;
pub(crate) mod recorder;
pub(crate) mod retention;
pub(crate) mod settings;
pub(crate) mod sinks;
#[cfg(test)]
mod testing;

use crate::authn::Identity;
use crate::proxy::path::{self, RequestInfo};
use crate::query::Query;
use crate::router::{Route, route};
use event::{About, Reference, Shown};
use hanse_api::access::Principal;
use hanse_api::kinds::{ACCESS_KEYS, KindName, LOFT_GROUP, LOGIN_GRANTS, OIDC_GRANTS, REVOKED_KEYS, SPENT_LOGINS};
use hanse_api::status::Status;
use hanse_api::{ObjectMeta, Timestamp};
use hanse_runtime::clock::SharedClock;
use hanse_state::objects::{Author, ObjectKey, Op};
use http::header::{AUTHORIZATION, HeaderValue, SEC_WEBSOCKET_PROTOCOL, USER_AGENT};
use http::{Method, Request, Uri};
use policy::{Asked, AuditLevel, AuditPolicy, AuditStage, AuditTarget, Verdict};
use serde::Deserialize;
use serde_json::Value;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Objects that requests are tied together with and that nobody asked for.
const UNSEEN: [&str; 4] = [
    LOGIN_GRANTS.plural,
    REVOKED_KEYS.plural,
    SPENT_LOGINS.plural,
    "projectguards",
];

/// What a login makes: whose it is, is who logged in.
const LOGINS: [KindName; 2] = [ACCESS_KEYS, OIDC_GRANTS];

/// What is known of a request whatever becomes of it. Made for every request, so it holds handles and copies nothing.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) id: String,
    pub(crate) received: Timestamp,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) agent: Option<HeaderValue>,
    pub(crate) source: IpAddr,
    /// Whether the caller showed anything by which he could be known.
    credentials: bool,
    who: OnceLock<Who>,
    /// What was sent, if a rule wants to know.
    sent: OnceLock<Shown>,
    /// Whether events were made for a transaction.
    changes: AtomicBool,
    /// How many failed logins this one stands for.
    failures: AtomicU64,
}

/// A caller whose credentials hold.
#[derive(Debug)]
pub(crate) struct Who {
    pub(crate) user: Principal,
    /// Id of his access key.
    pub(crate) key: String,
    /// Who the request runs as, if that is somebody else.
    pub(crate) impersonated: Option<Principal>,
}

impl Facts {
    pub(crate) fn new<B>(id: String, request: &Request<B>, source: IpAddr, received: Timestamp) -> Self {
        let headers = request.headers();
        Self {
            id,
            received,
            method: request.method().clone(),
            uri: request.uri().clone(),
            agent: headers.get(USER_AGENT).cloned(),
            source,
            credentials: headers.contains_key(AUTHORIZATION) || headers.contains_key(SEC_WEBSOCKET_PROTOCOL),
            who: OnceLock::new(),
            sent: OnceLock::new(),
            changes: AtomicBool::new(false),
            failures: AtomicU64::new(0),
        }
    }

    /// Notes whose credentials hold, and who the request runs as.
    pub(crate) fn known(&self, identity: &Identity, principal: &Principal) {
        self.who.get_or_init(|| Who {
            user: identity.principal.clone(),
            key: identity.key.clone(),
            impersonated: (*principal != identity.principal).then(|| principal.clone()),
        });
    }

    /// Notes that this is a failed login that stands for so many.
    pub(crate) fn failed(&self, times: u64) {
        self.failures.store(times, Ordering::Relaxed);
    }

    pub(crate) fn who(&self) -> Option<&Who> {
        self.who.get()
    }

    /// Whose API is asked, and what for.
    fn asks(&self) -> Asks {
        let (target, rest) = match route(self.uri.path()) {
            Route::Management { rest } => ("management".to_owned(), Some(rest)),
            Route::Tenant { project, name, rest } => (format!("tenant/{project}/{name}"), Some(rest)),
            Route::Cluster { name, rest } => (format!("cluster/{name}"), Some(rest)),
            Route::Login(_) => ("login".to_owned(), None),
            _ => ("server".to_owned(), None),
        };
        let query = Query::parse(self.uri.query().unwrap_or_default()).unwrap_or_default();
        let info = rest.and_then(|rest| path::parse(&rest, &self.method, &query).ok());
        let verb = match &info {
            Some(info) => info.verb.clone(),
            None if target == "login" => target.clone(),
            None => self.method.as_str().to_ascii_lowercase(),
        };
        Asks { target, verb, info }
    }

    /// What the rules say about the request; none when there is none that fits.
    fn verdict<'p>(&self, policy: &'p AuditPolicy, asks: &Asks) -> Option<Verdict<'p>> {
        if policy.is_empty() {
            return None;
        }
        let (user, groups) = match self.who() {
            Some(who) => (who.user.user.as_str(), who.user.groups.as_slice()),
            None => ("system:anonymous", [].as_slice()),
        };
        let (target, cluster) = match asks.target.split_once('/') {
            Some(("tenant", _)) => (Some(AuditTarget::ProjectVCluster), ""),
            Some((_, cluster)) => (Some(AuditTarget::Cluster), cluster),
            None => (
                Some(AuditTarget::Management).filter(|_| asks.target == "management"),
                "",
            ),
        };
        policy.verdict(&Asked {
            user,
            groups,
            verb: &asks.verb,
            target,
            cluster,
            info: asks.info.as_ref(),
            path: asks.info.as_ref().map_or(self.uri.path(), |info| info.path.as_str()),
        })
    }

    /// How many bytes of the body a rule wants to have shown at most; none when it shall not be looked at.
    pub(crate) fn wants_body(&self, policy: &AuditPolicy) -> Option<usize> {
        let wants = |verdict: Verdict<'_>| verdict.level >= AuditLevel::Request;
        let reads = matches!(self.method, Method::GET | Method::HEAD);
        (!reads && self.verdict(policy, &self.asks()).is_some_and(wants)).then_some(policy.max_body)
    }

    /// Keeps what was sent, in a form that can be shown.
    pub(crate) fn sent(&self, body: Shown, most: usize) {
        self.sent
            .get_or_init(|| body.and_then(|object| event::shown(object, most)));
    }

    /// The event of a request that is about to be let in, before anything of it happens; none if a rule wants none.
    pub(crate) fn begun(&self, policy: &AuditPolicy, now: Timestamp) -> Option<String> {
        let asks = self.asks();
        let verdict = self.verdict(policy, &asks);
        if verdict.is_some_and(|verdict| !verdict.shows(AuditStage::RequestReceived)) {
            return None;
        }
        let about = About {
            target: &asks.target,
            verb: &asks.verb,
            reference: asks.info.as_ref().and_then(Reference::of_request),
            stage: AuditStage::RequestReceived,
            level: AuditLevel::Metadata,
            code: None,
            refusal: None,
            user: None,
        };
        Some(event::text(self, &about, now))
    }

    /// The event of a restore of the tenant `object` that is about to begin, or has ended with `code`.
    pub(crate) fn restored(&self, target: &str, object: &ObjectKey, code: Option<u16>, now: Timestamp) -> String {
        let about = About {
            target,
            verb: "restore",
            reference: Some(Reference::of_object(object, None)),
            stage: code.map_or(AuditStage::RequestReceived, |_| AuditStage::ResponseComplete),
            level: AuditLevel::Metadata,
            code,
            refusal: None,
            user: None,
        };
        event::text(self, &about, now)
    }

    /// The event of a request that was answered, if a rule wants one and no change has brought its own.
    pub(crate) fn answered(&self, policy: &AuditPolicy, code: u16, now: Timestamp) -> Option<String> {
        let asks = self.asks();
        let verdict = self.verdict(policy, &asks)?;
        let long = asks.info.as_ref().is_some_and(RequestInfo::long_running) || code == 101;
        let stage = if long {
            AuditStage::ResponseStarted
        } else {
            AuditStage::ResponseComplete
        };
        let changed = self.changes.load(Ordering::Relaxed) && code < 300;
        if changed || !verdict.shows(stage) {
            return None;
        }
        let about = About {
            target: &asks.target,
            verb: &asks.verb,
            reference: asks.info.as_ref().and_then(Reference::of_request),
            stage,
            // What became of objects is known of changes only.
            level: verdict.level.min(AuditLevel::Request),
            code: Some(code),
            refusal: None,
            user: None,
        };
        let mut event = event::value(self, &about, now);
        if let Some(sent) = self.sent.get() {
            event::show(&mut event, event::REQUEST, sent.clone());
        }
        Some(event::bounded(event))
    }

    /// The event of a request that was refused: what it is known by, and how it reads. None if a rule wants none.
    pub(crate) fn denied(&self, policy: &AuditPolicy, code: u16, why: &str, now: Timestamp) -> Option<folded::Denial> {
        let login = matches!(route(self.uri.path()), Route::Login(_));
        // Whoever shows nothing is told to log in; that is no denial.
        if self.who().is_none() && !login && !self.credentials {
            return None;
        }
        let asks = self.asks();
        let verdict = self.verdict(policy, &asks);
        if verdict.is_some_and(|verdict| !verdict.shows(AuditStage::ResponseComplete)) {
            return None;
        }
        let about = About {
            target: &asks.target,
            verb: &asks.verb,
            reference: asks.info.as_ref().and_then(Reference::of_request),
            stage: AuditStage::ResponseComplete,
            level: AuditLevel::Metadata,
            code: Some(code),
            refusal: Some(why),
            user: None,
        };
        let user = self.who().map(|who| who.user.user.clone());
        let key = folded::Key {
            // Whoever is not known can ask for any number of things: all are one.
            what: if user.is_some() {
                self.uri.path().to_owned()
            } else {
                asks.target.clone()
            },
            verb: if user.is_some() {
                asks.verb.clone()
            } else {
                String::new()
            },
            user: user.unwrap_or_default(),
            source: self.source,
            code,
        };
        let event = event::value(self, &about, now);
        let times = self.failures.load(Ordering::Relaxed).max(1);
        Some(folded::Denial { key, event, times })
    }
}

/// What a request asks for.
struct Asks {
    target: String,
    verb: String,
    info: Option<RequestInfo>,
}

/// Whether a request, to the management API or through it to a cluster, is one that the audit knows of before it is answered:
/// it opens a session, reads secrets, or makes credentials.
pub(crate) fn is_sensitive(info: &RequestInfo) -> bool {
    let reads = matches!(info.verb.as_str(), "get" | "list" | "watch");
    info.is_resource
        && match (info.group.as_str(), info.resource.as_str(), info.subresource.as_str()) {
            ("", "pods", "exec" | "attach" | "portforward") | ("", "serviceaccounts", "token") => true,
            (LOFT_GROUP, "virtualclusterinstances", "accesskey" | "kubeconfig")
            | (LOFT_GROUP, "clusters", "accesskey") => true,
            ("", "secrets", _) | (LOFT_GROUP, "projectsecrets" | "sharedsecrets" | "ownedaccesskeys", _) => reads,
            _ => false,
        }
}

/// Writes the events of what a request changes.
pub(crate) struct Writer {
    facts: Arc<Facts>,
    clock: SharedClock,
    policy: AuditPolicy,
}

impl Writer {
    pub(crate) fn new(facts: Arc<Facts>, clock: SharedClock, policy: AuditPolicy) -> Arc<Self> {
        Arc::new(Self { facts, clock, policy })
    }

    /// Puts into the event of a change what the level shows of it: what was sent, into that of the object that the request names,
    /// and what is stored now.
    fn show(&self, event: &mut Value, level: AuditLevel, op: &Op, asked: bool) {
        if level >= AuditLevel::Request
            && asked
            && let Some(sent) = self.facts.sent.get()
        {
            event::show(event, event::REQUEST, sent.clone());
        }
        if level >= AuditLevel::RequestResponse
            && let Op::Create { value, .. } | Op::Update { value, .. } = op
        {
            let stored = serde_json::from_slice(value).map_err(|_| "it is no JSON".to_owned());
            let stored = stored.and_then(|object| event::shown(object, self.policy.max_body));
            event::show(event, event::RESPONSE, stored);
        }
    }
}

/// Of an object as it is stored, what an event says about it.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
}

impl Author for Writer {
    fn events(&self, ops: &[Op]) -> Vec<String> {
        let now = self.clock.wall();
        let asks = self.facts.asks();
        let seen = |op: &&Op| !matches!(op, Op::Require { .. }) && !UNSEEN.contains(&op.key().kind.plural);
        let logged_in = ops.iter().find_map(|op| match op {
            Op::Create { key, value } if LOGINS.contains(&key.kind) && self.facts.who().is_none() => {
                let key: Named = serde_json::from_slice(value).ok()?;
                key.spec["user"].as_str().map(str::to_owned)
            }
            _ => None,
        });
        let wanted = self.facts.verdict(&self.policy, &asks).map(|verdict| verdict.level);
        let event = |op: &Op| {
            let object = match op {
                Op::Create { value, .. } | Op::Update { value, .. } => serde_json::from_slice::<Named>(value).ok(),
                Op::Delete { .. } | Op::Require { .. } => None,
            };
            let key = op.key();
            let mut reference = Reference::of_object(key, object.map(|named| named.metadata.uid));
            let asked = asks.info.as_ref().filter(|info| info.resource == key.kind.plural);
            if let Some(info) = asked {
                reference.subresource.clone_from(&info.subresource);
            }
            // A change has an event whatever the rules say: without it the chain would not hold it.
            let level = match wanted {
                Some(level) if !policy::is_hidden(&key.kind) => level.max(AuditLevel::Metadata),
                _ => AuditLevel::Metadata,
            };
            let about = About {
                target: &asks.target,
                verb: &asks.verb,
                reference: Some(reference),
                stage: AuditStage::ResponseComplete,
                level,
                code: Some(if matches!(op, Op::Create { .. }) { 201 } else { 200 }),
                refusal: None,
                user: logged_in.as_deref(),
            };
            let mut event = event::value(&self.facts, &about, now);
            let named = asked.is_some_and(|info| info.name.is_empty() || info.name == key.name);
            self.show(&mut event, level, op, named);
            event::bounded(event)
        };
        let events: Vec<String> = ops.iter().filter(seen).map(event).collect();
        if !events.is_empty() {
            self.facts.changes.store(true, Ordering::Relaxed);
        }
        events
    }

    fn begun(&self) -> Option<String> {
        self.facts.begun(&self.policy, self.clock.wall())
    }
}

/// Why a request was refused, if that is for the audit.
pub(crate) fn refusal(status: &Status) -> Option<(u16, &str)> {
    matches!(status.code, 401 | 403).then_some((status.code, status.message.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_and_secrets_are_sensitive() {
        let sensitive = |method: &str, path: &str| {
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            let query = Query::parse(query).unwrap();
            is_sensitive(&path::parse(path, &method.parse().unwrap(), &query).unwrap())
        };
        for (method, path) in [
            ("GET", "/api/v1/namespaces/a/pods/x/exec?command=sh"),
            ("POST", "/api/v1/namespaces/a/pods/x/attach"),
            ("GET", "/api/v1/namespaces/a/pods/x/portforward"),
            ("GET", "/api/v1/secrets"),
            ("GET", "/api/v1/namespaces/a/secrets/s"),
            ("GET", "/api/v1/namespaces/a/secrets?watch=1"),
            ("POST", "/api/v1/namespaces/a/serviceaccounts/s/token"),
            ("GET", "/apis/management.loft.sh/v1/namespaces/p-a/projectsecrets/s"),
            ("GET", "/apis/management.loft.sh/v1/sharedsecrets"),
            ("GET", "/apis/management.loft.sh/v1/ownedaccesskeys"),
            ("GET", "/apis/management.loft.sh/v1/clusters/eu/accesskey"),
            (
                "GET",
                "/apis/management.loft.sh/v1/namespaces/p-a/virtualclusterinstances/v/accesskey",
            ),
            (
                "POST",
                "/apis/management.loft.sh/v1/namespaces/p-a/virtualclusterinstances/v/kubeconfig",
            ),
        ] {
            assert!(sensitive(method, path), "{method} {path}");
        }
        for (method, path) in [
            ("GET", "/api/v1/namespaces/a/pods/x/log"),
            ("POST", "/api/v1/namespaces/a/secrets"),
            ("PUT", "/apis/management.loft.sh/v1/namespaces/p-a/projectsecrets/s"),
            ("POST", "/apis/management.loft.sh/v1/ownedaccesskeys"),
            ("GET", "/apis/management.loft.sh/v1/clusters/eu/agentconfig"),
            ("GET", "/apis/x.io/v1/secrets"),
            ("GET", "/version"),
        ] {
            assert!(!sensitive(method, path), "{method} {path}");
        }
    }
}
