//! The audit trail as clients see it: what a change, a denial, a login and a session leave behind, and that nobody can take
//! it away unseen.

use crate::world::{API, CLUSTER, Client, DEMO, World, plain, soon};
use hanse_api::audit::{ANCHOR, Fault, HEAD, Head, Verifier};
use hanse_api::kinds::{AUDIT_CHAINS, AUDIT_EVENTS};
use hanse_runtime::clock::{Clock as _, SystemClock};
use hanse_runtime::pki::sha256_hex;
use hanse_state::objects::{ObjectKey, Op};
use http::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

const EVENTS: &str = "/kubernetes/management/apis/management.loft.sh/v1/events";
const CHAINS: &str = "/kubernetes/management/apis/hanse.dev/v1/auditchains";

fn named(name: &str) -> Value {
    json!({ "metadata": { "name": name } })
}

async fn events(client: &Client) -> Vec<Value> {
    let list = client.get(EVENTS).await.good();
    list["items"].as_array().unwrap().clone()
}

/// The first event that is like this, once there is one.
async fn event(client: &Client, is: impl Fn(&Value) -> bool) -> Value {
    let clock = SystemClock::new();
    let look = async {
        loop {
            let all = events(client).await;
            if let Some(found) = all.iter().find(|object| is(&object["status"])) {
                return found["status"].clone();
            }
            clock.sleep(Duration::from_millis(50)).await;
        }
    };
    soon(look).await
}

async fn place(client: &Client, name: &str) -> Option<Head> {
    let answer = client.get(&format!("{CHAINS}/{name}")).await;
    (answer.code == StatusCode::OK).then(|| serde_json::from_value(answer.json()["spec"].clone()).unwrap())
}

async fn verify(client: &Client) -> Result<u64, Fault> {
    let anchor = place(client, ANCHOR).await.unwrap_or_else(|| Head::start(0));
    let mut verifier = Verifier::new(Some(anchor), sha256_hex);
    for object in events(client).await {
        verifier.object(&object)?;
    }
    let head = place(client, HEAD).await.unwrap_or_else(|| Head::start(0));
    verifier.finish(&head).map(|()| verifier.count())
}

#[tokio::test]
async fn each_change_leaves_an_event_of_its_own_revision() {
    let world = World::start().await;
    let admin = world.admin();
    let path = format!("{API}/projects");
    let made = admin.post(&path, &named("a")).await;
    let id = made.headers["audit-id"].to_str().unwrap().to_owned();
    let made = made.good();
    let changed = admin
        .merge(
            &format!("{path}/a?fieldManager=me"),
            &json!({ "spec": { "displayName": "A" } }),
        )
        .await
        .good();
    admin.delete(&format!("{path}/a")).await.good();
    // What changes nothing leaves nothing: refused, without effect, or only tried.
    admin.post(&path, &named("default")).await.fails(409);
    admin.merge(&format!("{path}/default"), &json!({})).await.good();
    admin.post(&format!("{path}?dryRun=All"), &named("b")).await.good();
    let all = events(&admin).await;
    let verbs: Vec<&str> = all.iter().map(|e| e["status"]["verb"].as_str().unwrap()).collect();
    assert_eq!(verbs, ["create", "patch", "delete"], "{all:#?}");
    assert_eq!(
        all[0]["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
    assert_eq!(
        all[1]["metadata"]["resourceVersion"],
        changed["metadata"]["resourceVersion"]
    );
    let first = &all[0]["status"];
    assert_eq!(
        (&first["kind"], &first["apiVersion"]),
        (&json!("Event"), &json!("audit.k8s.io/v1"))
    );
    assert_eq!(first["auditID"], id);
    assert_eq!(first["level"], "Metadata");
    assert_eq!(first["user"]["username"], "admin");
    assert_eq!(
        first["user"]["extra"]["authentication.kubernetes.io/credential-id"],
        json!(["accesskey=admin"])
    );
    assert_eq!(first["sourceIPs"], json!(["127.0.0.1"]));
    assert_eq!(first["responseStatus"]["code"], 201);
    assert_eq!(
        first["objectRef"],
        json!({ "apiGroup": "management.loft.sh", "apiVersion": "v1", "resource": "projects", "name": "a", "uid": made["metadata"]["uid"] })
    );
    assert!(
        all[1]["status"]["requestURI"]
            .as_str()
            .unwrap()
            .ends_with("/a?fieldManager=me")
    );
    assert_eq!(verify(&admin).await, Ok(3));
}

#[tokio::test]
async fn keys_leave_an_event_and_no_secret() {
    let world = World::start().await;
    let admin = world.admin();
    let made = admin
        .post(
            &format!("{API}/ownedaccesskeys"),
            &json!({ "spec": { "displayName": "d" } }),
        )
        .await
        .good();
    let key = made["spec"]["key"].as_str().unwrap().to_owned();
    let token = admin
        .post(&format!("{API}/clusters/{CLUSTER}/enrolmenttoken"), &json!({}))
        .await
        .good();
    let secret = |key: &str| key.split('.').nth(2).unwrap().to_owned();
    let secrets = [secret(&key), secret(token["status"]["token"].as_str().unwrap())];
    let all = events(&admin).await;
    let kinds: Vec<&str> = all
        .iter()
        .map(|e| e["status"]["objectRef"]["resource"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["accesskeys", "enrolmenttokens"]);
    let text = json!(all).to_string();
    assert!(secrets.iter().all(|secret| !text.contains(secret)), "{text}");
}

#[tokio::test]
async fn denials_and_wrong_keys_are_there_and_a_flood_of_them_is_counted() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.bob());
    bob.post(&format!("{API}/projects"), &named("mine")).await.fails(403);
    let denied = event(&admin, |e| e["user"]["username"] == "bob").await;
    assert_eq!(denied["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(
        (&denied["verb"], &denied["responseStatus"]["code"]),
        (&json!("create"), &json!(403))
    );
    assert_eq!(denied["objectRef"]["resource"], "projects");
    let stranger = world.client(Some(hanse_gateway::access_key("admin", "guess-c4n4ry")));
    for n in 0..5 {
        stranger.get(&format!("{API}/projects/{n}")).await.fails(401);
    }
    world.client(None).get(&format!("{API}/projects")).await.fails(401);
    // However they were cut into writes, all five are counted, and who showed nothing is not among them.
    let times = |e: &Value| {
        e["annotations"]["hanse.dev/times"]
            .as_str()
            .map_or(1, |t| t.parse().unwrap())
    };
    let clock = SystemClock::new();
    let counted = async {
        loop {
            let all = events(&admin).await;
            let failed = all
                .iter()
                .map(|o| &o["status"])
                .filter(|e| e["responseStatus"]["code"] == 401);
            let sum: u32 = failed.map(times).sum();
            assert!(sum <= 5, "{all:#?}");
            if sum == 5 {
                return all;
            }
            clock.sleep(Duration::from_millis(50)).await;
        }
    };
    let all = soon(counted).await;
    assert!(!json!(all).to_string().contains("c4n4ry"));
    assert!(verify(&admin).await.is_ok());
}

#[tokio::test]
async fn both_names_of_an_impersonation_are_there() {
    let world = World::start().await;
    let admin = world.admin();
    let path = format!("{API}/projects");
    let as_bob = [("content-type", "application/json"), ("impersonate-user", "bob")];
    admin
        .send(admin.request("POST", &path, &as_bob, named("x").to_string()))
        .await
        .fails(403);
    let denied = event(&admin, |e| e["impersonatedUser"]["username"] == "bob").await;
    assert_eq!(denied["user"]["username"], "admin");
    let bob = world.bob();
    bob.send(bob.request("POST", &path, &[("impersonate-user", "admin")], "{}"))
        .await
        .fails(403);
    let tried = event(&admin, |e| e["user"]["username"] == "bob").await;
    assert!(
        tried["annotations"]["authorization.k8s.io/reason"]
            .as_str()
            .unwrap()
            .contains("impersonate")
    );
}

#[tokio::test]
async fn sessions_and_secrets_of_tenants_are_there_before_they_begin() {
    let world = World::start().await;
    let admin = world.admin();
    world.agent.answer(|_, _| plain(200, "{}"));
    let secrets = format!("{DEMO}/api/v1/namespaces/a/secrets/s");
    assert_eq!(admin.get(&secrets).await.code, 200);
    let exec = format!("{DEMO}/api/v1/namespaces/a/pods/p/exec?command=psql&command=-pc4n4ry&tty=true");
    admin.post(&exec, &json!({})).await;
    for quiet in ["configmaps/c", "pods/p/log", "pods"] {
        assert_eq!(
            admin.get(&format!("{DEMO}/api/v1/namespaces/a/{quiet}")).await.code,
            200
        );
    }
    // No waiting: the answers came after the events.
    let all = events(&admin).await;
    assert_eq!(all.len(), 2, "{all:#?}");
    let (read, session) = (&all[0]["status"], &all[1]["status"]);
    assert_eq!(read["objectRef"]["resource"], "secrets");
    assert_eq!(read["stage"], "RequestReceived");
    assert_eq!(read["annotations"]["hanse.dev/target"], "tenant/default/demo");
    assert_eq!(session["objectRef"]["subresource"], "exec");
    assert!(
        session["requestURI"]
            .as_str()
            .unwrap()
            .ends_with("?command=...&command=...&tty=true"),
        "{session}"
    );
}

#[tokio::test]
async fn only_administrators_see_the_trail_and_nobody_writes_it() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.bob());
    admin.post(&format!("{API}/projects"), &named("a")).await.good();
    bob.get(EVENTS).await.fails(403);
    bob.get(&format!("{CHAINS}/{HEAD}")).await.fails(403);
    let first = events(&admin).await.remove(0);
    let path = format!("{EVENTS}/{}", first["metadata"]["name"].as_str().unwrap());
    admin.delete(&path).await.fails(405);
    admin.delete(EVENTS).await.fails(405);
    admin.put(&path, &first).await.fails(405);
    admin.post(EVENTS, &first).await.fails(405);
    let page = admin.get(&format!("{EVENTS}?limit=1")).await.good();
    assert_eq!(page["items"][0]["metadata"]["name"], first["metadata"]["name"]);
    let table = admin
        .send(admin.request(
            "GET",
            EVENTS,
            &[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")],
            "",
        ))
        .await
        .good();
    let cells = table["rows"][0]["cells"].to_string();
    assert!(
        cells.contains("admin") && cells.contains("projects") && cells.contains("201"),
        "{cells}"
    );
}

#[tokio::test]
async fn a_watch_follows_the_trail() {
    let world = World::start().await;
    let admin = world.admin();
    let list = admin.get(EVENTS).await.good();
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut lines = admin.watch(&format!("{EVENTS}?watch=1&resourceVersion={from}")).await;
    admin.post(&format!("{API}/projects"), &named("a")).await.good();
    let seen = lines.next().await.unwrap();
    assert_eq!(
        (&seen["type"], &seen["object"]["status"]["objectRef"]["name"]),
        (&json!("ADDED"), &json!("a"))
    );
}

#[tokio::test]
async fn whoever_reaches_the_store_itself_is_found_out() {
    let world = World::start().await;
    let admin = world.admin();
    for name in ["a", "b", "c"] {
        admin.post(&format!("{API}/projects"), &named(name)).await.good();
    }
    assert_eq!(verify(&admin).await, Ok(3));
    let key = ObjectKey::new(&AUDIT_EVENTS, "", hanse_api::audit::name(2));
    let stored = world.objects.get(&key).await.unwrap().unwrap();
    let value = String::from_utf8_lossy(&stored.value)
        .replace("\"admin\"", "\"somebody\"")
        .into();
    let expected = stored.revision;
    world
        .objects
        .commit(vec![Op::Update {
            key: key.clone(),
            value,
            expected,
        }])
        .await
        .unwrap();
    assert_eq!(verify(&admin).await, Err(Fault::Changed(2)));
    let expected = world.objects.get(&key).await.unwrap().unwrap().revision;
    world.objects.commit(vec![Op::Delete { key, expected }]).await.unwrap();
    assert_eq!(verify(&admin).await, Err(Fault::Missing { from: 2, to: 2 }));
    let head = ObjectKey::new(&AUDIT_CHAINS, "", HEAD);
    assert!(world.objects.get(&head).await.unwrap().is_some());
}
