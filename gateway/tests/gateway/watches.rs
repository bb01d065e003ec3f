//! Watches of the management API.

use crate::world::{World, soon};
use hanse_runtime::shutdown::Phase;
use serde_json::json;

const PROJECTS: &str = "/kubernetes/management/apis/management.loft.sh/v1/projects";

#[tokio::test]
async fn changes_come_in_order_from_any_revision() {
    let world = World::start().await;
    let admin = world.admin();
    let start = admin.get(PROJECTS).await.good()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut live = admin
        .watch(&format!("{PROJECTS}?watch=1&resourceVersion={start}"))
        .await;
    admin
        .post(PROJECTS, &json!({ "metadata": { "name": "a" } }))
        .await
        .good();
    admin
        .merge(&format!("{PROJECTS}/a"), &json!({ "spec": { "displayName": "A" } }))
        .await
        .good();
    let deleted = admin.delete(&format!("{PROJECTS}/a")).await;
    assert_eq!(deleted.code, 200);
    let mut late = admin
        .watch(&format!("{PROJECTS}?watch=1&resourceVersion={start}"))
        .await;
    for watch in [&mut live, &mut late] {
        let mut last = start.parse::<i64>().unwrap();
        for want in ["ADDED", "MODIFIED", "DELETED"] {
            let event = watch.next().await.unwrap();
            assert_eq!(event["type"], want);
            assert_eq!(event["object"]["kind"], "Project");
            let revision: i64 = event["object"]["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap();
            assert!(revision > last, "{event}");
            last = revision;
        }
    }
}

#[tokio::test]
async fn objects_enter_and_leave_a_selection() {
    let world = World::start().await;
    let admin = world.admin();
    let mut watch = admin
        .watch(&format!("{PROJECTS}?watch=1&labelSelector=team%3Dred"))
        .await;
    admin
        .post(PROJECTS, &json!({ "metadata": { "name": "a" } }))
        .await
        .good();
    let label = async |team: serde_json::Value| {
        admin
            .merge(
                &format!("{PROJECTS}/a"),
                &json!({ "metadata": { "labels": { "team": team } } }),
            )
            .await
            .good()
    };
    label("red".into()).await;
    assert_eq!(watch.brief().await, "ADDED a");
    admin
        .merge(&format!("{PROJECTS}/a"), &json!({ "spec": { "displayName": "A" } }))
        .await
        .good();
    assert_eq!(watch.brief().await, "MODIFIED a");
    let left = label("blue".into()).await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["resourceVersion"]),
        (&json!("DELETED"), &left["metadata"]["resourceVersion"])
    );
    assert_eq!(event["object"]["metadata"]["labels"]["team"], "red", "shown as it was");
}

#[tokio::test]
async fn initial_events_end_with_their_bookmark() {
    let world = World::start().await;
    let admin = world.admin();
    let streamed = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = admin.watch(&format!("{PROJECTS}?{streamed}")).await;
    assert_eq!(watch.brief().await, "ADDED default");
    let mark = watch.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(
        mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    admin
        .post(PROJECTS, &json!({ "metadata": { "name": "a" } }))
        .await
        .good();
    assert_eq!(watch.brief().await, "ADDED a");
    admin
        .get(&format!("{PROJECTS}?watch=1&sendInitialEvents=true"))
        .await
        .fails(422);
    // Tables carry their headings once.
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let response = admin
        .open(admin.request("GET", &format!("{PROJECTS}?watch=1&timeoutSeconds=1"), &accept, ""))
        .await;
    let text = soon(http_body_util::BodyExt::collect(response.into_body()))
        .await
        .unwrap()
        .to_bytes();
    let lines: Vec<serde_json::Value> = std::str::from_utf8(&text)
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert!(!lines[0]["object"]["columnDefinitions"].as_array().unwrap().is_empty());
    assert!(lines[1]["object"]["columnDefinitions"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn watches_end_in_time_and_with_a_bookmark() {
    let world = World::start().await;
    let admin = world.admin();
    let mut watch = admin
        .watch(&format!("{PROJECTS}?watch=1&timeoutSeconds=1&allowWatchBookmarks=true"))
        .await;
    assert_eq!(watch.brief().await, "ADDED default");
    assert_eq!(watch.brief().await, "BOOKMARK ");
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn revisions_that_are_gone_or_to_come() {
    let world = World::start().await;
    let admin = world.admin();
    for i in 0..3 {
        admin
            .post(PROJECTS, &json!({ "metadata": { "name": format!("n{i}") } }))
            .await
            .good();
    }
    let now = world.objects.store().revision();
    world
        .objects
        .store()
        .compact(&hanse_state::Access::registry(), now)
        .await
        .unwrap();
    let mut old = admin.watch(&format!("{PROJECTS}?watch=1&resourceVersion=1")).await;
    let event = old.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["code"], &event["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert_eq!(old.next().await, None);
    admin
        .get(&format!("{PROJECTS}?watch=1&resourceVersion=99999999"))
        .await
        .fails(504);
    admin
        .get(&format!("{PROJECTS}?watch=1&resourceVersion=x"))
        .await
        .fails(400);
}

#[tokio::test]
async fn a_drain_ends_watches_cleanly_and_closes_the_door() {
    let world = World::start().await;
    let admin = world.admin();
    let mut watch = admin
        .watch(&format!("{PROJECTS}?watch=1&allowWatchBookmarks=true"))
        .await;
    assert_eq!(watch.brief().await, "ADDED default");
    let shutdown = world.supervisor.shutdown_token();
    shutdown.begin(Phase::Refuse);
    // The watch goes on until the drain.
    world.put(&hanse_api::kinds::PROJECTS, "", "more", json!({})).await;
    assert_eq!(watch.brief().await, "ADDED more");
    shutdown.begin(Phase::Drain);
    assert_eq!(watch.brief().await, "BOOKMARK ");
    assert_eq!(watch.next().await, None);
    soon(async {
        while tokio::net::TcpStream::connect(world.addr).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn namespaces_follow_their_projects() {
    let world = World::start().await;
    let admin = world.admin();
    let mut watch = admin.watch("/kubernetes/management/api/v1/namespaces?watch=1").await;
    assert_eq!(watch.brief().await, "ADDED p-default");
    admin
        .post(PROJECTS, &json!({ "metadata": { "name": "a" } }))
        .await
        .good();
    assert_eq!(watch.brief().await, "ADDED p-a");
    admin.delete(&format!("{PROJECTS}/a")).await.good();
    assert_eq!(watch.brief().await, "DELETED p-a");
}
