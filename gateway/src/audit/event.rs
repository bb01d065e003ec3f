//! Events as `audit.k8s.io/v1` has them: who, what, from where, with which outcome; bodies where a rule says so.
//!
//! What callers choose is bounded, and of a query only the parameters that are known to hold no secret keep their values.

use super::policy::{AuditLevel, AuditStage};
use super::{Facts, Who};
use crate::proxy::path::RequestInfo;
use hanse_api::Timestamp;
use hanse_api::access::Principal;
use hanse_state::machine::MAX_EVENT_BYTES;
use hanse_state::objects::ObjectKey;
use serde_json::{Map, Value, json};

/// Longest text of one field that a caller chooses.
const MAX_TEXT: usize = 512;
/// Longest address, query included.
const MAX_URI: usize = 2048;
/// Most groups of one person.
const MAX_GROUPS: usize = 64;
/// Parameters whose values are kept.
const PLAIN: &[&str] = &[
    "allowWatchBookmarks",
    "container",
    "dryRun",
    "extended",
    "fieldManager",
    "fieldSelector",
    "fieldValidation",
    "follow",
    "force",
    "gracePeriodSeconds",
    "labelSelector",
    "limit",
    "name",
    "orphanDependents",
    "ports",
    "pretty",
    "previous",
    "project",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "sinceSeconds",
    "stderr",
    "stdin",
    "stdout",
    "tailLines",
    "timeout",
    "timeoutSeconds",
    "timestamps",
    "tty",
    "watch",
];

/// What an event says beside the facts of its request.
pub(crate) struct About<'a> {
    /// Whose API is asked.
    pub(crate) target: &'a str,
    pub(crate) verb: &'a str,
    pub(crate) reference: Option<Reference>,
    pub(crate) stage: AuditStage,
    pub(crate) level: AuditLevel,
    pub(crate) code: Option<u16>,
    /// Why it was refused.
    pub(crate) refusal: Option<&'a str>,
    /// Whose request it is, where only its outcome tells: a login.
    pub(crate) user: Option<&'a str>,
}

/// The object that a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Reference {
    pub(crate) fn of_request(info: &RequestInfo) -> Option<Self> {
        info.is_resource.then(|| Self {
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            uid: String::new(),
        })
    }

    pub(crate) fn of_object(key: &ObjectKey, uid: Option<String>) -> Self {
        Self {
            group: key.kind.group.to_owned(),
            version: key.kind.version.to_owned(),
            resource: key.kind.plural.to_owned(),
            subresource: String::new(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: uid.unwrap_or_default(),
        }
    }

    fn value(&self) -> Value {
        let mut out = Map::new();
        for (field, text) in [
            ("apiGroup", &self.group),
            ("apiVersion", &self.version),
            ("resource", &self.resource),
            ("subresource", &self.subresource),
            ("namespace", &self.namespace),
            ("name", &self.name),
            ("uid", &self.uid),
        ] {
            if !text.is_empty() {
                out.insert(field.to_owned(), cut(text, MAX_TEXT).into());
            }
        }
        out.into()
    }
}

/// An event as it is stored: canonical JSON, not longer than the store takes.
pub(crate) fn text(facts: &Facts, about: &About<'_>, now: Timestamp) -> String {
    bounded(value(facts, about, now))
}

/// An object that was sent or stored, or why it is not shown.
pub(crate) type Shown = Result<Value, String>;

/// What was sent.
pub(crate) const REQUEST: &str = "requestObject";
/// What became of the object.
pub(crate) const RESPONSE: &str = "responseObject";
/// Levels of an object that is shown. Readers take 128, and it lies within others.
const MAX_DEPTH: usize = 64;

/// An object as it may be shown: neither too large, nor such that it would read otherwise than it was hashed.
pub(crate) fn shown(object: Value, most: usize) -> Shown {
    if depth(&object) > MAX_DEPTH {
        return Err(format!("nested deeper than {MAX_DEPTH} levels"));
    }
    let text = object.to_string();
    if text.len() > most {
        return Err(format!("more than {most} bytes"));
    }
    // Numbers with many digits come back as others.
    let again = serde_json::from_str(&text).map(|again: Value| again.to_string());
    if again.is_ok_and(|again| again == text) {
        Ok(object)
    } else {
        Err("numbers that cannot be kept exactly".to_owned())
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

/// Puts an object into an event, or the reason why it is not there.
pub(crate) fn show(event: &mut Value, field: &str, object: Shown) {
    match object {
        Ok(object) => event[field] = object,
        Err(why) => event["annotations"][format!("hanse.dev/{field}-omitted")] = why.into(),
    }
}

/// The text of an event; of one that would be too long, without objects, and then without groups.
pub(crate) fn bounded(mut event: Value) -> String {
    let text = event.to_string();
    if text.len() <= MAX_EVENT_BYTES {
        return text;
    }
    for field in [RESPONSE, REQUEST] {
        let removed = event.as_object_mut().and_then(|event| event.remove(field));
        if removed.is_some() {
            show(&mut event, field, Err("the event would be too long".to_owned()));
            let text = event.to_string();
            if text.len() <= MAX_EVENT_BYTES {
                return text;
            }
        }
    }
    for who in ["user", "impersonatedUser"] {
        if event[who].is_object() {
            event[who]["groups"] = json!([]);
        }
    }
    event["annotations"]["hanse.dev/left-out"] = "groups".into();
    event.to_string()
}

/// An event.
pub(crate) fn value(facts: &Facts, about: &About<'_>, now: Timestamp) -> Value {
    let mut event = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Event",
        "level": about.level.name(),
        "auditID": facts.id,
        "stage": about.stage.name(),
        "requestURI": uri(facts),
        "verb": about.verb,
        "sourceIPs": [facts.source.to_string()],
        "requestReceivedTimestamp": facts.received.micros(),
        "stageTimestamp": now.micros(),
    });
    event["user"] = match (facts.who(), about.user) {
        (Some(who), _) => caller(who),
        (None, Some(user)) => json!({ "username": cut(user, MAX_TEXT) }),
        (None, None) => json!({ "username": "system:anonymous", "groups": ["system:unauthenticated"] }),
    };
    if let Some(other) = facts.who().and_then(|who| who.impersonated.as_ref()) {
        event["impersonatedUser"] = person(other);
    }
    if let Some(agent) = facts.agent.as_ref().and_then(|agent| agent.to_str().ok()) {
        event["userAgent"] = cut(agent, MAX_TEXT).into();
    }
    if let Some(reference) = &about.reference {
        event["objectRef"] = reference.value();
    }
    let mut annotations = json!({
        "authorization.k8s.io/decision": if about.refusal.is_some() { "forbid" } else { "allow" },
        "hanse.dev/target": about.target,
    });
    if let Some(code) = about.code {
        event["responseStatus"] = json!({ "metadata": {}, "code": code });
        if let Some(why) = about.refusal {
            event["responseStatus"]["status"] = "Failure".into();
            event["responseStatus"]["reason"] = if code == 401 { "Unauthorized" } else { "Forbidden" }.into();
            annotations["authorization.k8s.io/reason"] = cut(why, MAX_TEXT).into();
        }
    }
    event["annotations"] = annotations;
    event
}

fn caller(who: &Who) -> Value {
    let mut user = person(&who.user);
    if !who.key.is_empty() {
        user["extra"] = json!({ "authentication.kubernetes.io/credential-id": [format!("accesskey={}", who.key)] });
    }
    user
}

fn person(of: &Principal) -> Value {
    let groups: Vec<String> = of
        .groups
        .iter()
        .take(MAX_GROUPS)
        .map(|group| cut(group, MAX_TEXT))
        .collect();
    let mut user = json!({ "username": cut(&of.user, MAX_TEXT), "groups": groups });
    if !of.uid.is_empty() {
        user["uid"] = cut(&of.uid, MAX_TEXT).into();
    }
    user
}

/// The address that was asked for, with the values of unknown parameters left out: of a login that is all of them.
fn uri(facts: &Facts) -> String {
    let mut out = cut(facts.uri.path(), MAX_URI);
    let mut mark = '?';
    for pair in facts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
    {
        let name = pair.split('=').next().unwrap_or_default();
        let shown = if PLAIN.contains(&name) {
            pair.to_owned()
        } else {
            format!("{name}=...")
        };
        if out.len() + 1 + shown.len() > MAX_URI {
            break;
        }
        out.push(mark);
        out.push_str(&shown);
        mark = '&';
    }
    out
}

fn cut(text: &str, limit: usize) -> String {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn facts(uri: &str) -> Facts {
        let request = Request::builder()
            .uri(uri)
            .header("user-agent", "x".repeat(5000))
            .body(())
            .unwrap();
        Facts::new(
            "id".into(),
            &request,
            "127.0.0.1".parse().unwrap(),
            Timestamp::from_millis(1_700_000_000_123),
        )
    }

    fn about(code: u16) -> About<'static> {
        About {
            target: "management",
            verb: "get",
            reference: None,
            stage: AuditStage::ResponseComplete,
            level: AuditLevel::Metadata,
            code: Some(code),
            refusal: Some("no"),
            user: None,
        }
    }

    #[test]
    fn addresses_are_kept_without_what_may_be_secret() {
        let of = |uri: &str| value(&facts(uri), &about(403), Timestamp::default())["requestURI"].clone();
        assert_eq!(
            of("/auth/corp/callback?code=c4n4ry&state=s"),
            "/auth/corp/callback?code=...&state=..."
        );
        assert_eq!(
            of("/x?limit=5&command=psql&command=-pc4n4ry&token"),
            "/x?limit=5&command=...&command=...&token=..."
        );
        assert!(of(&format!("/{}", "a".repeat(5000))).as_str().unwrap().len() <= MAX_URI);
    }

    #[test]
    fn objects_are_shown_if_they_fit_and_read_as_they_were_hashed() {
        let object = json!({ "spec": { "n": 1, "x": 0.5 } });
        assert_eq!(shown(object.clone(), 100), Ok(object.clone()));
        assert!(shown(object.clone(), 10).unwrap_err().contains("10 bytes"));
        let deep = (0..70).fold(json!(1), |inner, _| json!([inner]));
        assert!(shown(deep, 1000).unwrap_err().contains("64 levels"));
        // A chain that holds them would not verify.
        for number in [
            "0.1234567890123456789",
            "123456789012345678901234567890",
            "1e300",
            "-0.0",
        ] {
            let object: Value = serde_json::from_str(&format!("{{\"n\":{number}}}")).unwrap();
            let text = object.to_string();
            if let Ok(kept) = shown(object, 100) {
                let again: Value = serde_json::from_str(&kept.to_string()).unwrap();
                assert_eq!(again.to_string(), text, "{number}");
            }
        }
        let mut event = value(&facts("/x"), &about(403), Timestamp::default());
        show(&mut event, REQUEST, Ok(json!({ "a": "x".repeat(9000) })));
        show(&mut event, RESPONSE, Ok(json!({ "b": "x".repeat(9000) })));
        let text = bounded(event);
        assert!(text.len() <= MAX_EVENT_BYTES, "{}", text.len());
        let event: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(event[REQUEST]["a"].as_str().unwrap().len(), 9000);
        assert!(event["annotations"]["hanse.dev/responseObject-omitted"].is_string() && event[RESPONSE].is_null());
    }

    #[test]
    fn events_read_as_kubernetes_writes_them_and_are_bounded() {
        let event = value(&facts("/x"), &about(401), Timestamp::from_millis(1_700_000_000_500));
        assert_eq!(event["requestReceivedTimestamp"], "2023-11-14T22:13:20.123000Z");
        assert_eq!(event["stageTimestamp"], "2023-11-14T22:13:20.500000Z");
        assert_eq!(event["user"]["username"], "system:anonymous");
        assert_eq!(event["responseStatus"]["reason"], "Unauthorized");
        assert_eq!(event["userAgent"].as_str().unwrap().len(), MAX_TEXT);
        let facts = facts("/x");
        let group = "\u{1}".repeat(600);
        let user = Principal {
            user: "u".into(),
            groups: vec![group; 200],
            ..Principal::default()
        };
        let who = Who {
            user,
            key: "k".into(),
            impersonated: None,
        };
        facts.who.set(who).unwrap();
        let text = text(&facts, &about(403), Timestamp::default());
        assert!(text.len() <= MAX_EVENT_BYTES, "{}", text.len());
        let event: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(event["annotations"]["hanse.dev/left-out"], "groups");
        assert_eq!(
            event["user"]["extra"]["authentication.kubernetes.io/credential-id"][0],
            "accesskey=k"
        );
        assert_eq!(event.to_string(), text, "canonical");
    }
}
