//! What is over for long is taken away in the background, and nothing else.

use crate::world::World;
use hanse_api::kinds::{ACCESS_KEYS, ENROLMENT_TOKENS, JOIN_TOKENS, KindName, LOGIN_GRANTS, OIDC_GRANTS, SPENT_LOGINS};
use hanse_state::objects::{ObjectKey, Objects, Op, Page};
use serde_json::{Value, json};
use std::time::Duration;

/// Longest wait: a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(120);
const KINDS: [KindName; 6] = [
    ACCESS_KEYS,
    ENROLMENT_TOKENS,
    JOIN_TOKENS,
    LOGIN_GRANTS,
    SPENT_LOGINS,
    OIDC_GRANTS,
];

async fn put(objects: &Objects, kind: &KindName, name: &str, expires: Value) {
    let value = json!({
        "apiVersion": kind.api_version(), "kind": kind.kind,
        "metadata": { "name": name, "uid": format!("uid-{name}"), "creationTimestamp": "2020-01-01T00:00:00Z" },
        "spec": { "user": "bob", "expires": expires },
    });
    let op = Op::Create {
        key: ObjectKey::new(kind, "", name),
        value: value.to_string().into(),
    };
    objects.commit(vec![op]).await.unwrap();
}

async fn names(world: &World, kind: &KindName) -> Vec<String> {
    let all = world.objects.list(kind, None, Page::default()).await.unwrap();
    let names = all.items.into_iter().map(|stored| stored.name);
    names.filter(|name| name.starts_with("t-")).collect()
}

#[tokio::test]
async fn keys_tokens_and_logins_that_are_over_go_and_the_others_stay() {
    let world = World::over(async |objects| {
        for kind in &KINDS {
            // More than one page of them.
            for i in 0..120 {
                put(objects, kind, &format!("t-over-{i:03}"), json!("2020-01-01T00:00:00Z")).await;
            }
            put(objects, kind, "t-valid", json!("2999-01-01T00:00:00Z")).await;
        }
        put(objects, &ACCESS_KEYS, "t-endless", Value::Null).await;
        put(objects, &ACCESS_KEYS, "t-zz-over", json!("2020-01-01T00:00:00Z")).await;
    })
    .await;
    for kind in &KINDS {
        let want: &[&str] = match *kind == ACCESS_KEYS {
            true => &["t-endless", "t-valid"],
            false => &["t-valid"],
        };
        let gone = async {
            while names(&world, kind).await != want {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, gone).await;
        assert!(waited.is_ok(), "{}: {:?}", kind.plural, names(&world, kind).await);
    }
}
