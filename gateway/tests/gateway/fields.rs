//! Fields that are unknown or given twice, deletion of many objects, and dry runs.

use crate::world::{API, Answer, Client, World};
use serde_json::{Value, json};

const JSON: (&str, &str) = ("content-type", "application/json");

async fn send(client: &Client, method: &str, path: &str, media: (&str, &str), body: &str) -> Answer {
    client
        .send(client.request(method, path, &[media], body.to_owned()))
        .await
}

fn warnings(answer: &Answer) -> Vec<&str> {
    answer
        .headers
        .get_all("warning")
        .iter()
        .map(|v| v.to_str().unwrap())
        .collect()
}

const ODD: &str =
    r#"{"metadata":{"name":"odd","nmae":"x"},"spec":{"displayName":"a","displayName":"b","descriptn":"x"}}"#;

#[tokio::test]
async fn fields_that_nobody_knows_are_refused_named_or_ignored() {
    let world = World::start().await;
    let admin = world.admin();
    let create = |rule: &str| format!("{API}/projects?dryRun=All{rule}");
    let strict = send(&admin, "POST", &create("&fieldValidation=Strict"), JSON, ODD).await;
    assert_eq!(
        strict.fails(400)["message"],
        "Project in version \"v1\" cannot be handled as a Project: strict decoding error: duplicate field \
         \"spec.displayName\", unknown field \"metadata.nmae\", unknown field \"spec.descriptn\""
    );
    let want = [
        "299 - \"duplicate field \\\"spec.displayName\\\"\"",
        "299 - \"unknown field \\\"metadata.nmae\\\"\"",
        "299 - \"unknown field \\\"spec.descriptn\\\"\"",
    ];
    for rule in ["", "&fieldValidation=Warn"] {
        let warned = send(&admin, "POST", &create(rule), JSON, ODD).await;
        assert_eq!(warned.good()["spec"]["displayName"], "b");
        assert_eq!(warnings(&warned), want);
    }
    let ignored = send(&admin, "POST", &create("&fieldValidation=Ignore"), JSON, ODD).await;
    assert_eq!(ignored.code, 201);
    assert!(warnings(&ignored).is_empty());
    send(&admin, "POST", &create("&fieldValidation=Maybe"), JSON, ODD)
        .await
        .fails(422);
    let put = format!("{API}/projects/default?fieldValidation=Strict");
    send(
        &admin,
        "PUT",
        &put,
        JSON,
        r#"{"metadata":{"name":"default"},"spec":{"x":1}}"#,
    )
    .await
    .fails(400);
}

/// An object may hold fields of a later version; a patch answers only for those that it brings in.
#[tokio::test]
async fn a_patch_answers_for_what_it_brings_in() {
    let world = World::start().await;
    let admin = world.admin();
    let of_later = json!({ "metadata": { "name": "later" }, "spec": { "fromLater": true } });
    let made = admin.post(&format!("{API}/projects"), &of_later).await;
    assert_eq!(made.good()["spec"]["fromLater"], true, "kept");
    assert_eq!(warnings(&made).len(), 1);
    let path = format!("{API}/projects/later?fieldValidation=Strict");
    let fine = admin.merge(&path, &json!({ "spec": { "displayName": "x" } })).await;
    assert_eq!(fine.good()["spec"]["fromLater"], true);
    let merge = ("content-type", "application/merge-patch+json");
    let status = send(
        &admin,
        "PATCH",
        &path,
        merge,
        r#"{"spec":{"y":1,"displayName":"a","displayName":"b"}}"#,
    )
    .await
    .fails(422);
    let message = status["message"].as_str().unwrap();
    assert!(
        message.ends_with("strict decoding error: duplicate field \"spec.displayName\", unknown field \"spec.y\""),
        "{message}"
    );
    let add = r#"[{"op":"add","path":"/spec/y","value":1}]"#;
    let path = format!("{API}/projects/later");
    let warned = send(
        &admin,
        "PATCH",
        &path,
        ("content-type", "application/json-patch+json"),
        add,
    )
    .await;
    assert_eq!(warnings(&warned), ["299 - \"unknown field \\\"spec.y\\\"\""]);
}

fn names(list: &Value) -> Vec<&str> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["metadata"]["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn many_are_deleted_at_once() {
    let world = World::start().await;
    let admin = world.admin();
    for (name, color) in [("a", "red"), ("b", "red"), ("c", "blue")] {
        let body = json!({ "metadata": { "name": name, "labels": { "color": color } } });
        admin.post(&format!("{API}/projects"), &body).await.good();
    }
    let projects = format!("{API}/projects");
    let red = format!("{projects}?labelSelector=color%3Dred");
    assert_eq!(
        names(&admin.delete(&format!("{red}&dryRun=All")).await.good()),
        ["a", "b"]
    );
    let dry = send(&admin, "DELETE", &red, JSON, r#"{"dryRun":["All"]}"#).await.good();
    assert_eq!(names(&dry), ["a", "b"]);
    send(&admin, "DELETE", &red, JSON, r#"{"dryRun":["Some"]}"#)
        .await
        .fails(422);
    assert_eq!(names(&admin.get(&red).await.good()), ["a", "b"], "nothing happened");
    let gone = admin.delete(&red).await.good();
    assert_eq!((&gone["kind"], names(&gone)), (&json!("ProjectList"), vec!["a", "b"]));
    assert_eq!(names(&admin.get(&projects).await.good()), ["c", "default"]);
    world.bob().delete(&red).await.fails(403);
    // What a single deletion refuses, that of many refuses too.
    admin.delete(&projects).await.fails(409);
    assert_eq!(names(&admin.get(&projects).await.good()), ["default"]);
}

#[tokio::test]
async fn a_dry_run_of_any_write_writes_nothing() {
    let world = World::start().await;
    let admin = world.admin();
    let one = format!("{API}/projects/default?dryRun=All");
    let revision = world.objects.store().revision();
    let patched = admin
        .merge(&one, &json!({ "spec": { "displayName": "dry" } }))
        .await
        .good();
    assert_eq!(patched["spec"]["displayName"], "dry");
    admin.put(&one, &patched).await.good();
    let named = json!({ "metadata": { "name": "dry" } });
    admin.post(&format!("{API}/projects?dryRun=All"), &named).await.good();
    let status = format!("{API}/projects/default/status?dryRun=All");
    admin
        .merge(&status, &json!({ "status": { "conditions": [] } }))
        .await
        .good();
    assert_eq!(world.objects.store().revision(), revision);
    admin.get(&format!("{API}/projects/dry")).await.fails(404);
    let vci = format!("{API}/namespaces/p-default/virtualclusterinstances/demo");
    admin.delete(&format!("{vci}?dryRun=All")).await.good();
    admin.get(&vci).await.good();
}

#[tokio::test]
async fn a_caller_can_ask_for_all_his_rules() {
    let world = World::start().await;
    let review = "/kubernetes/management/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let ask = json!({ "spec": { "namespace": "p-default" } });
    let all = world.admin().post(review, &ask).await.good();
    assert_eq!(all["status"]["resourceRules"][0]["verbs"], json!(["*"]));
    let some = world.bob().post(review, &ask).await.good();
    // Single objects may give him more.
    assert_eq!(some["status"]["incomplete"], true);
    assert_eq!(all["status"]["incomplete"], false);
    assert!(
        !some["status"]["resourceRules"]
            .to_string()
            .contains("[\"*\"],\"verbs\":[\"*\"]")
    );
}
