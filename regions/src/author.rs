//! What a server changes of its own accord, for the audit: the first objects, agents and servers that are let in, and what
//! controllers make and take away. What they note about the state of things is left out: it is the system's memory and nobody's
//! doing.

use hanse_api::kinds::{
    ACCESS_KEYS, CLUSTER_ROLE_TEMPLATES, CLUSTERS, ENROLMENT_TOKENS, IDENTITIES, JOIN_TOKENS, KindName,
    PROJECT_SECRETS, PROJECTS, REGIONS, SERVERS, SHARED_SECRETS, TEAMS, USERS, VIRTUAL_CLUSTER_INSTANCES,
};
use hanse_runtime::clock::SharedClock;
use hanse_runtime::rng::SharedRng;
use hanse_state::objects::{Author, ObjectKey, Op};
use serde_json::json;
use std::sync::Arc;

/// Kinds whose objects people make and delete.
const SEEN: &[KindName] = &[
    ACCESS_KEYS,
    CLUSTER_ROLE_TEMPLATES,
    CLUSTERS,
    ENROLMENT_TOKENS,
    IDENTITIES,
    JOIN_TOKENS,
    PROJECT_SECRETS,
    PROJECTS,
    REGIONS,
    SERVERS,
    SHARED_SECRETS,
    TEAMS,
    USERS,
    VIRTUAL_CLUSTER_INSTANCES,
];

struct ServerAuthor {
    server: String,
    clock: SharedClock,
    rng: SharedRng,
}

/// The author of what the server of this name does by itself.
pub fn author(server: &str, clock: &SharedClock, rng: &SharedRng) -> Arc<dyn Author> {
    Arc::new(ServerAuthor {
        server: server.to_owned(),
        clock: Arc::clone(clock),
        rng: Arc::clone(rng),
    })
}

impl ServerAuthor {
    fn event(&self, verb: &str, key: &ObjectKey) -> String {
        let now = self.clock.wall().micros();
        let ObjectKey { kind, namespace, name } = key;
        let mut event = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Event",
            "level": "Metadata",
            "auditID": self.rng.uuid(),
            "stage": "ResponseComplete",
            "requestURI": "",
            "verb": verb,
            "user": {
                "username": format!("system:hanse:server:{}", self.server),
                "groups": ["system:hanse:servers"],
            },
            "objectRef": {
                "apiGroup": kind.group,
                "apiVersion": kind.version,
                "resource": kind.plural,
                "name": name,
            },
            "responseStatus": { "metadata": {}, "code": if verb == "create" { 201 } else { 200 } },
            "requestReceivedTimestamp": now,
            "stageTimestamp": now,
            "annotations": { "authorization.k8s.io/decision": "allow", "hanse.dev/target": "management" },
        });
        if !namespace.is_empty() {
            event["objectRef"]["namespace"] = namespace.as_str().into();
        }
        event.to_string()
    }
}

impl Author for ServerAuthor {
    fn events(&self, ops: &[Op]) -> Vec<String> {
        let event = |op: &Op| {
            let (verb, key) = match op {
                Op::Create { key, .. } => ("create", key),
                Op::Delete { key, .. } => ("delete", key),
                // A token is used up when an agent or a server is let in.
                Op::Update { key, .. } if [ENROLMENT_TOKENS, JOIN_TOKENS].contains(&key.kind) => ("update", key),
                Op::Update { .. } | Op::Require { .. } => return None,
            };
            SEEN.contains(&key.kind).then(|| self.event(verb, key))
        };
        ops.iter().filter_map(event).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_api::kinds::{AUDIT_EVENTS, INTENTS};
    use hanse_runtime::clock::SystemClock;
    use hanse_runtime::rng::SystemRng;
    use serde_json::Value;

    #[test]
    fn what_is_made_and_taken_away_is_seen_and_what_is_noted_is_not() {
        let author = author("eu-1", &SystemClock::shared(), &SystemRng::shared());
        let key = |kind: &KindName| {
            let namespace = if kind.namespaced { "p-a" } else { "" };
            ObjectKey::new(kind, namespace, "x")
        };
        let value = bytes::Bytes::from_static(b"{}");
        let create = |kind: &KindName| Op::Create {
            key: key(kind),
            value: value.clone(),
        };
        let update = |kind: &KindName| Op::Update {
            key: key(kind),
            value: value.clone(),
            expected: 1,
        };
        let delete = |kind: &KindName| Op::Delete {
            key: key(kind),
            expected: 1,
        };
        let events = author.events(&[
            create(&USERS),
            update(&VIRTUAL_CLUSTER_INSTANCES),
            delete(&VIRTUAL_CLUSTER_INSTANCES),
            create(&INTENTS),
            // Or trimming the trail would make it longer.
            delete(&AUDIT_EVENTS),
            update(&ENROLMENT_TOKENS),
            create(&SERVERS),
            update(&JOIN_TOKENS),
            // It notes its own addresses at every start.
            update(&SERVERS),
        ]);
        let read = |event: &String| {
            let event: Value = serde_json::from_str(event).unwrap();
            let text = |pointer: &str| {
                event
                    .pointer(pointer)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            assert_eq!(text("/user/username"), "system:hanse:server:eu-1");
            [text("/verb"), text("/objectRef/resource"), text("/objectRef/namespace")].join(" ")
        };
        let seen: Vec<String> = events.iter().map(read).collect();
        assert_eq!(
            seen,
            [
                "create users ",
                "delete virtualclusterinstances p-a",
                "update enrolmenttokens ",
                "create servers ",
                "update jointokens "
            ]
        );
    }
}
