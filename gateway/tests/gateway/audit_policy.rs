//! Rules that say more or less of requests in the audit trail than what holds without them, through a real gateway.

use crate::world::{API, CLUSTER, Client, DEMO, World, plain};
use hanse_gateway::AuditSettings;
use serde_json::{Value, json};

const EVENTS: &str = "/kubernetes/management/apis/management.loft.sh/v1/events";

async fn world(rules: Value) -> World {
    let settings: AuditSettings = serde_json::from_value(json!({ "rule": rules, "max_body_bytes": 2000 })).unwrap();
    assert_eq!(settings.faults(), []);
    World::with(|parts| parts.audit_policy = settings.policy()).await
}

async fn events(client: &Client) -> Vec<Value> {
    let list = client.get(EVENTS).await.good();
    let items = list["items"].as_array().unwrap();
    items.iter().map(|object| object["status"].clone()).collect()
}

fn of(resource: &str) -> Value {
    json!([{ "group": "management.loft.sh", "resources": [resource] }])
}

fn named(name: &str) -> Value {
    json!({ "metadata": { "name": name } })
}

#[tokio::test]
async fn no_rule_hides_a_change_and_bodies_are_shown_where_they_are_wanted() {
    let world = world(json!([
        { "level": "RequestResponse", "resources": of("projects"), "verbs": ["create", "patch", "delete"] },
        { "level": "Request", "resources": of("subjectaccessreviews") },
        { "level": "None" },
    ]))
    .await;
    let admin = world.admin();
    let mut project = named("a");
    project["spec"]["displayName"] = "A".into();
    let made = admin.post(&format!("{API}/projects"), &project).await.good();
    admin
        .merge(&format!("{API}/projects/a"), &json!({ "spec": { "displayName": "B" } }))
        .await
        .good();
    let mut large = named("large");
    large["spec"]["description"] = "x".repeat(2000).into();
    admin.post(&format!("{API}/projects"), &large).await.good();
    admin.post(&format!("{API}/teams"), &named("t")).await.good();
    let review = json!({ "spec": { "user": "bob", "resourceAttributes": { "verb": "get", "resource": "pods" } } });
    admin.post(&format!("{API}/subjectaccessreviews"), &review).await.good();
    let all = events(&admin).await;
    let brief = |e: &Value| {
        (
            e["objectRef"]["resource"].as_str().unwrap().to_owned(),
            e["level"].clone(),
        )
    };
    let levels: Vec<_> = all.iter().map(brief).collect();
    let want = [
        ("projects", "RequestResponse"),
        ("projects", "RequestResponse"),
        ("projects", "RequestResponse"),
        ("teams", "Metadata"),
        ("subjectaccessreviews", "Request"),
    ];
    assert_eq!(levels, want.map(|(r, l)| (r.to_owned(), json!(l))), "{all:#?}");
    assert_eq!(all[0]["requestObject"], project);
    assert_eq!(all[0]["responseObject"]["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(all[1]["requestObject"], json!({ "spec": { "displayName": "B" } }));
    assert_eq!(all[1]["responseObject"]["spec"]["displayName"], "B");
    assert_eq!(
        all[2]["annotations"]["hanse.dev/requestObject-omitted"],
        "more than 2000 bytes"
    );
    assert!(all[2]["requestObject"].is_null() && all[2]["responseObject"].is_null());
    assert!(all[3]["requestObject"].is_null() && all[3]["responseObject"].is_null());
    assert_eq!(
        (&all[4]["requestObject"], &all[4]["responseStatus"]["code"]),
        (&review, &json!(201))
    );
}

#[tokio::test]
async fn rules_silence_denials_and_reads_and_ask_for_others() {
    let world = world(json!([
        { "level": "None", "users": ["bob"], "verbs": ["create"] },
        { "level": "Metadata", "resources": of("clusters"), "verbs": ["get", "list"], "omitStages": ["RequestReceived"] },
        { "level": "Metadata", "requestTargets": ["ProjectVCluster"],
          "resources": [{ "group": "", "resources": ["pods", "pods/log"] }] },
        { "level": "None", "requestTargets": ["ProjectVCluster"], "resources": [{ "group": "", "resources": ["secrets"] }] },
        { "level": "Metadata", "nonResourceURLs": ["/openapi*"] },
    ]))
    .await;
    let (admin, bob) = (world.admin(), world.bob());
    world.agent.answer(|_, _| plain(200, "{}"));
    bob.post(&format!("{API}/projects"), &named("mine")).await.fails(403);
    bob.get(&format!("{API}/teams")).await.fails(403);
    for path in [
        format!("{API}/clusters/{CLUSTER}"),
        format!("{API}/clusters/none"),
        format!("{API}/projects"),
        format!("{DEMO}/api/v1/namespaces/a/pods"),
        format!("{DEMO}/api/v1/namespaces/a/pods/p/log"),
        format!("{DEMO}/api/v1/namespaces/a/secrets/s"),
        format!("{DEMO}/api/v1/namespaces/a/configmaps"),
        "/kubernetes/management/openapi/v3".to_owned(),
        "/version".to_owned(),
    ] {
        admin.get(&path).await;
    }
    // What comes after its answer and is written by another task is there once a later one is.
    let denied = crate::world::soon(async {
        loop {
            let all = events(&admin).await;
            if let Some(found) = all.iter().find(|e| e["user"]["username"] == "bob") {
                return found.clone();
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(denied.await["objectRef"]["resource"], "teams");
    let all = events(&admin).await;
    let asked = all.iter().filter(|e| e["user"]["username"] == "admin");
    let brief = |e: &Value| {
        let uri = e["requestURI"].as_str().unwrap();
        let last = uri.rsplit('/').next().unwrap().to_owned();
        (
            last,
            e["stage"].as_str().unwrap().to_owned(),
            e["responseStatus"]["code"].clone(),
        )
    };
    let mut seen: Vec<_> = asked.map(brief).collect();
    seen.retain(|(last, ..)| last != "events");
    let complete = |last: &str, code: u16| (last.to_owned(), "ResponseComplete".to_owned(), json!(code));
    let want = [
        complete(CLUSTER, 200),
        complete("none", 404),
        complete("pods", 200),
        ("log".to_owned(), "ResponseStarted".to_owned(), json!(200)),
        complete("v3", 200),
    ];
    assert_eq!(seen, want, "{all:#?}");
}

#[tokio::test]
async fn what_is_secret_is_in_no_event_whatever_the_rules() {
    let world = world(json!([{ "level": "RequestResponse" }])).await;
    let admin = world.admin();
    let mut secret = named("s");
    secret["spec"]["data"] = json!({ "k": "YzRuNHJ5LXNlY3JldA==" });
    let path = format!("{API}/namespaces/p-default/projectsecrets");
    admin.post(&path, &secret).await.good();
    admin.get(&format!("{path}/s")).await.good();
    admin.merge(&format!("{path}/s"), &secret).await.good();
    let key = admin
        .post(
            &format!("{API}/ownedaccesskeys"),
            &json!({ "spec": { "displayName": "d" } }),
        )
        .await
        .good();
    admin.post(&format!("{API}/projects"), &named("seen")).await.good();
    let all = events(&admin).await;
    let text = json!(all).to_string();
    assert!(!text.contains("YzRuNHJ5"), "{text}");
    let key = key["spec"]["key"].as_str().unwrap().split('.').nth(2).unwrap();
    assert!(!text.contains(key) && !text.contains("secretSha256"), "{text}");
    let about = |resource: &'static str| all.iter().filter(move |e| e["objectRef"]["resource"] == resource);
    assert!(about("projectsecrets").all(|e| e["level"] == "Metadata"), "{all:#?}");
    assert!(about("projectsecrets").count() >= 3 && about("accesskeys").all(|e| e["level"] == "Metadata"));
    assert!(about("projects").any(|e| e["responseObject"]["metadata"]["name"] == "seen"));
}
