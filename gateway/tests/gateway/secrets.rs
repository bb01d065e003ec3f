//! Secrets of projects and of the installation: sealed where they are stored, shown to those who may see them.

use crate::world::{API, Client, World};
use hanse_api::kinds::{KindName, PROJECT_SECRETS, PROJECTS, SHARED_SECRETS};
use hanse_state::objects::{ObjectKey, Op};
use serde_json::{Value, json};

/// `canary-7f3a`, as it is sent.
const VALUE: &str = "Y2FuYXJ5LTdmM2E=";
const PLAIN: &str = "canary-7f3a";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

fn secrets(namespace: &str, plural: &str) -> String {
    format!("{API}/namespaces/{namespace}/{plural}")
}

fn secret(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "annotations": { LAST_APPLIED: format!("{{\"data\":\"{VALUE}\"}}") } },
        "spec": { "displayName": "For the registry", "data": { "token": VALUE } },
    })
}

async fn stored(world: &World, kind: &KindName, namespace: &str, name: &str) -> (i64, Value) {
    let key = ObjectKey::new(kind, namespace, name);
    let stored = world.objects.get(&key).await.unwrap().unwrap();
    let text = String::from_utf8(stored.value.to_vec()).unwrap();
    assert!(
        !text.contains(VALUE) && !text.contains(PLAIN),
        "it is stored in clear: {text}"
    );
    (stored.revision, serde_json::from_str(&text).unwrap())
}

#[tokio::test]
async fn a_secret_is_stored_sealed_and_read_in_clear() {
    let world = World::start().await;
    let admin = world.admin();
    for (kind, namespace) in [(&PROJECT_SECRETS, "p-default"), (&SHARED_SECRETS, "vcluster-platform")] {
        let all = secrets(namespace, kind.plural);
        let one = format!("{all}/foo");
        let mut watch = admin.watch(&format!("{all}?watch=true&resourceVersion=0")).await;
        let made = admin.post(&all, &secret("foo")).await.good();
        assert_eq!(made["spec"]["data"]["token"], VALUE);
        let (_, raw) = stored(&world, kind, namespace, "foo").await;
        assert_eq!(
            raw["spec"]["displayName"], "For the registry",
            "only what is secret is sealed"
        );
        assert_eq!(admin.get(&one).await.good(), made);
        assert_eq!(admin.get(&all).await.good()["items"][0]["spec"], made["spec"]);
        assert_eq!(watch.next().await.unwrap()["object"]["spec"], made["spec"]);
        let same = admin.put(&one, &made).await.good();
        assert_eq!(
            same["metadata"], made["metadata"],
            "a change that changes nothing writes nothing"
        );
        let more = admin
            .merge(&one, &json!({ "spec": { "data": { "more": "YQ==" } } }))
            .await
            .good();
        assert_eq!(
            (&more["spec"]["data"]["token"], &more["metadata"]["generation"]),
            (&json!(VALUE), &json!(2))
        );
        assert_eq!(more["metadata"]["annotations"], made["metadata"]["annotations"]);
        stored(&world, kind, namespace, "foo").await;
        let form = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
        let table = admin.send(admin.request("GET", &all, &form, "")).await.good();
        assert_eq!(table["rows"][0]["cells"][1], "more,token");
        admin.delete(&one).await.good();
    }
}

#[tokio::test]
async fn what_is_sealed_opens_in_its_own_object_only() {
    let world = World::start().await;
    let admin = world.admin();
    let all = secrets("p-default", "projectsecrets");
    admin.post(&all, &secret("foo")).await.good();
    admin.post(&all, &secret("bar")).await.good();
    let (_, foo) = stored(&world, &PROJECT_SECRETS, "p-default", "foo").await;
    let (expected, mut bar) = stored(&world, &PROJECT_SECRETS, "p-default", "bar").await;
    bar["sealed"] = foo["sealed"].clone();
    let moved = Op::Update {
        key: ObjectKey::new(&PROJECT_SECRETS, "p-default", "bar"),
        value: bar.to_string().into(),
        expected,
    };
    world.objects.commit(vec![moved]).await.unwrap();
    let fault = admin.get(&format!("{all}/bar")).await.fails(500);
    assert!(fault["message"].as_str().unwrap().contains("cannot be read"), "{fault}");
    admin.get(&format!("{all}/foo")).await.good();
}

#[tokio::test]
async fn faults_are_named_without_the_value() {
    let world = World::start().await;
    let admin = world.admin();
    let all = secrets("p-default", "projectsecrets");
    let bad = json!({ "metadata": { "name": "bad" }, "spec": { "data": { "a/b": "YQ==", "x": PLAIN } } });
    let fault = admin.post(&all, &bad).await.fails(422);
    let causes = fault["details"]["causes"].as_array().unwrap();
    let fields: Vec<&str> = causes.iter().map(|c| c["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["spec.data[a/b]", "spec.data[x]"]);
    assert!(!fault.to_string().contains(PLAIN), "{fault}");
    admin
        .post(&secrets("p-none", "projectsecrets"), &secret("x"))
        .await
        .fails(404);
    admin
        .post(&secrets("elsewhere", "sharedsecrets"), &secret("x"))
        .await
        .fails(404);
    admin
        .post(&format!("{API}/projects"), &json!({ "metadata": { "name": "x" } }))
        .await
        .good();
    admin
        .post(&secrets("p-x", "projectsecrets"), &secret("kept"))
        .await
        .good();
    let held = admin.delete(&format!("{API}/projects/x")).await.fails(409);
    assert!(held["message"].as_str().unwrap().contains("secrets (kept)"), "{held}");
}

/// Members with the role user use a project's secrets; they change their own; viewers see none that is not shared with them.
#[tokio::test]
async fn members_see_what_their_role_or_the_secret_says() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.bob());
    let all = secrets("p-default", "projectsecrets");
    let member = |role: &str| json!({ "members": [{ "kind": "User", "name": "bob", "clusterRole": format!("loft-management-project-{role}") }] });
    admin.post(&all, &secret("foo")).await.good();
    bob.get(&format!("{all}/foo")).await.fails(403);
    world.put(&PROJECTS, "", "default", member("viewer")).await;
    bob.get(&format!("{all}/foo")).await.fails(404);
    assert_eq!(bob.get(&all).await.good()["items"], json!([]));
    let share = json!({ "spec": { "access": [{ "users": ["bob"], "verbs": ["get"] }] } });
    admin.merge(&format!("{all}/foo"), &share).await.good();
    assert_eq!(
        bob.get(&format!("{all}/foo")).await.good()["spec"]["data"]["token"],
        VALUE
    );
    assert_eq!(bob.get(&all).await.good()["items"].as_array().unwrap().len(), 1);
    let change = json!({ "spec": { "data": { "token": "YQ==" } } });
    bob.merge(&format!("{all}/foo"), &change).await.fails(403);
    world.put(&PROJECTS, "", "default", member("user")).await;
    bob.merge(&format!("{all}/foo"), &change).await.fails(403);
    let his = bob.post(&all, &secret("his")).await.good();
    assert_eq!(his["spec"]["owner"]["user"], "bob");
    bob.merge(&format!("{all}/his"), &change).await.good();
    shared_ones(&admin, &bob).await;
}

async fn shared_ones(admin: &Client, bob: &Client) {
    let all = secrets("vcluster-platform", "sharedsecrets");
    admin.post(&all, &secret("global")).await.good();
    bob.get(&format!("{all}/global")).await.fails(403);
    let share = json!({ "spec": { "access": [{ "users": ["*"], "verbs": ["get"] }] } });
    admin.merge(&format!("{all}/global"), &share).await.good();
    bob.get(&format!("{all}/global")).await.good();
    bob.post(&all, &secret("mine")).await.fails(403);
}

#[tokio::test]
async fn whoever_reads_a_secret_is_in_the_audit_trail() {
    let world = World::start().await;
    let admin = world.admin();
    let all = secrets("p-default", "projectsecrets");
    admin.post(&all, &secret("foo")).await.good();
    admin.get(&format!("{all}/foo")).await.good();
    world.bob().get(&format!("{all}/foo")).await.fails(403);
    // No waiting: the answer came after its event.
    let trail = admin.get(&format!("{API}/events")).await.good();
    let told: Vec<(&str, &str)> = trail["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["status"])
        .map(|e| (e["verb"].as_str().unwrap(), e["user"]["username"].as_str().unwrap()))
        .filter(|(_, user)| *user != "bob")
        .collect();
    assert_eq!(told, [("create", "admin"), ("get", "admin")], "{trail}");
    assert!(
        !trail.to_string().contains(VALUE) && !trail.to_string().contains(PLAIN),
        "{trail}"
    );
}
