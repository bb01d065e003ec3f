//! Credentials that are made when they are asked for: kubeconfigs and keys of tenant clusters, tokens of connected ones; and
//! who belongs to those.

use crate::kubectl::tool;
use crate::world::{API, CLUSTER, Client, DEMO, PATIENCE, World, plain};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hanse_api::kinds::{ACCESS_KEYS, CLUSTERS, PROJECTS, TEAMS, VIRTUAL_CLUSTER_INSTANCES};
use hanse_gateway::access_key;
use hanse_state::objects::{ObjectKey, Page};
use serde_json::{Value, json};
use std::process::Stdio;
use tokio::process::Command;

const VCI: &str = "/kubernetes/management/apis/management.loft.sh/v1/namespaces/p-default/virtualclusterinstances/demo";

async fn belongs_to_bob(world: &World) {
    let spec = json!({ "clusterRef": { "cluster": CLUSTER }, "owner": { "user": "bob" } });
    world.put(&VIRTUAL_CLUSTER_INSTANCES, "p-default", "demo", spec).await;
}

/// Events of the trail as `verb resource/subresource`, and all of it as text.
async fn trail(world: &World) -> (Vec<String>, String) {
    let list = world.admin().get(&format!("{API}/events")).await.good();
    let brief = |item: &Value| {
        let (event, of) = (&item["status"], &item["status"]["objectRef"]);
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        format!(
            "{} {}/{}",
            text(&event["verb"]),
            text(&of["resource"]),
            text(&of["subresource"])
        )
    };
    (
        list["items"].as_array().unwrap().iter().map(brief).collect(),
        list.to_string(),
    )
}

fn secret(key: &str) -> &str {
    key.split('.').nth(2).unwrap()
}

async fn key_spec(world: &World, key: &str) -> Value {
    let id = key.split('.').nth(1).unwrap();
    let key = ObjectKey::new(&ACCESS_KEYS, "", id);
    let stored = world.objects.get(&key).await.unwrap().unwrap();
    serde_json::from_slice::<Value>(&stored.value).unwrap()["spec"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubeconfig_leads_into_its_tenant_cluster_and_nowhere_else() {
    let world = World::start().await;
    belongs_to_bob(&world).await;
    let bob = world.bob();
    let path = format!("{VCI}/kubeconfig");
    let made = bob
        .post(&path, &json!({ "spec": { "certificateTTL": 3600 } }))
        .await
        .good();
    assert_eq!(made["kind"], "VirtualClusterInstanceKubeConfig");
    let text = made["status"]["kubeConfig"]
        .as_str()
        .unwrap()
        .replace("https://gateway", &format!("https://{}", world.addr));
    let config: Value = serde_json::from_str(&text).unwrap();
    let cluster = &config["clusters"][0]["cluster"];
    assert_eq!(cluster["server"], format!("https://{}{DEMO}", world.addr));
    let ca = STANDARD
        .decode(cluster["certificate-authority-data"].as_str().unwrap())
        .unwrap();
    assert_eq!(String::from_utf8(ca).unwrap(), world.ca_pem);
    let token = config["users"][0]["user"]["token"].as_str().unwrap();
    let spec = key_spec(&world, token).await;
    assert_eq!(spec["user"], "bob");
    assert!(spec["expires"].is_string(), "{spec}");
    let holder = world.client(Some(token.to_owned()));
    world
        .agent
        .answer(|_, _| plain(200, r#"{"major":"1","minor":"36","gitVersion":"v1.36.0-canary"}"#));
    assert_eq!(holder.get(&format!("{DEMO}/version")).await.code, 200);
    assert_eq!(world.agent.last().verified.claims.principal.user, "bob");
    for outside in [
        format!("{API}/users"),
        format!("/kubernetes/cluster/{CLUSTER}/version"),
        "/kubernetes/project/default/virtualcluster/other/version".to_owned(),
    ] {
        holder.get(&outside).await.fails(403);
    }
    // Not more keys by it, also not of the same kind.
    holder.post(&path, &json!({})).await.fails(403);
    holder
        .post(&format!("{API}/ownedaccesskeys"), &json!({}))
        .await
        .fails(403);
    let (events, all) = trail(&world).await;
    for wanted in ["create accesskeys/", "create virtualclusterinstances/kubeconfig"] {
        assert!(events.iter().any(|e| e == wanted), "{wanted}: {events:?}");
    }
    assert!(!all.contains(secret(token)), "a secret is in the trail");
    if let Some(kubectl) = tool("kubectl") {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("config");
        std::fs::write(&file, &text).unwrap();
        let mut command = Command::new(kubectl);
        command
            .args(["version", "--kubeconfig"])
            .arg(&file)
            .env_clear()
            .env("HOME", home.path());
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE * 3, command.output())
            .await
            .unwrap()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(
            told.contains("v1.36.0-canary"),
            "{told}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[tokio::test]
async fn credentials_are_for_those_who_may_use_them() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.bob());
    let (config, key) = (format!("{VCI}/kubeconfig"), format!("{VCI}/accesskey"));
    bob.post(&config, &json!({})).await.fails(403);
    bob.get(&key).await.fails(403);
    for part in ["accesskey", "agentconfig", "members"] {
        bob.get(&format!("{API}/clusters/{CLUSTER}/{part}")).await.fails(403);
        let path = format!("{API}/clusters/none/{part}");
        admin.get(&path).await.fails(404);
    }
    // Whoever may enter gets a kubeconfig; keys of the tenant cluster's programs are its owner's to give.
    let rules = json!([{ "users": ["bob"], "clusterRole": "view" }]);
    let spec = json!({ "clusterRef": { "cluster": CLUSTER }, "owner": { "user": "admin" }, "extraAccessRules": rules });
    world.put(&VIRTUAL_CLUSTER_INSTANCES, "p-default", "demo", spec).await;
    bob.post(&config, &json!({})).await.good();
    bob.get(&key).await.fails(403);
    belongs_to_bob(&world).await;
    let made = bob.get(&key).await.good();
    assert_eq!(made["kind"], "VirtualClusterAccessKey");
    let spec = key_spec(&world, made["accessKey"].as_str().unwrap()).await;
    let scope = json!({ "roles": [{ "role": "vcluster" }],
                        "virtualClusters": [{ "project": "default", "virtualCluster": "demo" }] });
    assert_eq!(spec["scope"], scope);
    // What only looks makes nothing.
    let count = async || {
        world
            .objects
            .list(&ACCESS_KEYS, None, Page::default())
            .await
            .unwrap()
            .items
            .len()
    };
    let before = count().await;
    let head = bob.send(bob.request("HEAD", &key, &[], "")).await;
    assert_eq!(head.code, 405);
    bob.get(&config).await.fails(405);
    admin
        .post(&config.replace("/demo/", "/none/"), &json!({}))
        .await
        .fails(404);
    let refused = bob
        .post(&config, &json!({ "spec": { "clientCert": true } }))
        .await
        .fails(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "spec.clientCert");
    assert_eq!(count().await, before);
}

#[tokio::test]
async fn an_agent_joins_by_what_it_is_given() {
    let world = World::start().await;
    let admin = world.admin();
    let path = format!("{API}/clusters/{CLUSTER}/accesskey");
    let first = admin.get(&path).await.good();
    assert_eq!(first["loftHost"], "https://gateway");
    assert_eq!(first["insecure"], false);
    let ca = STANDARD.decode(first["caCert"].as_str().unwrap()).unwrap();
    assert_eq!(String::from_utf8(ca).unwrap(), world.ca_pem);
    let token = first["accessKey"].as_str().unwrap();
    assert!(token.starts_with(hanse_gateway::ENROLMENT_TOKEN_PREFIX), "{token}");
    let second = admin.get(&path).await.good();
    assert_ne!(first["accessKey"], second["accessKey"], "each is shown once");
    let head = admin.send(admin.request("HEAD", &path, &[], "")).await;
    assert_eq!(head.code, 405);
    let config = admin.get(&format!("{API}/clusters/{CLUSTER}/agentconfig")).await.good();
    assert_eq!(
        (&config["cluster"], &config["loftHost"]),
        (&json!(CLUSTER), &json!("https://gateway"))
    );
    assert_eq!(config["tokenCaCert"], first["caCert"]);
    let (events, all) = trail(&world).await;
    let count = |wanted: &str| events.iter().filter(|e| *e == wanted).count();
    // Each token was made by a change with its event, and was asked for.
    assert_eq!(count("get enrolmenttokens/"), 2, "{events:?}");
    assert_eq!(count("get clusters/accesskey"), 2, "{events:?}");
    assert_eq!(count("get clusters/agentconfig"), 0, "{events:?}");
    assert!(!all.contains(secret(token)), "a secret is in the trail");
}

#[tokio::test]
async fn reads_of_ones_own_keys_are_in_the_trail() {
    let world = World::start().await;
    let bob: Client = world.bob();
    let keys = format!("{API}/ownedaccesskeys");
    bob.get(&keys).await.good();
    bob.get(&format!("{keys}/bob")).await.good();
    bob.get(&format!("{API}/selves")).await;
    let (events, _) = trail(&world).await;
    assert_eq!(events, ["list ownedaccesskeys/", "get ownedaccesskeys/"]);
}

#[tokio::test]
async fn members_are_those_of_the_projects_that_may_run_there() {
    let world = World::start().await;
    let admin = world.admin();
    world.user("ann", &[]).await;
    world
        .put(&TEAMS, "", "ops", json!({ "displayName": "Operations" }))
        .await;
    let member =
        |kind: &str, name: &str| json!({ "kind": kind, "name": name, "clusterRole": "loft-management-project-user" });
    let here = json!({ "members": [member("User", "bob"), member("Team", "ops")], "owner": { "user": "ann" },
                       "allowedClusters": [{ "name": CLUSTER }] });
    world.put(&PROJECTS, "", "here", here).await;
    let elsewhere = json!({ "members": [member("User", "eve")], "allowedClusters": [{ "name": "us" }] });
    world.put(&PROJECTS, "", "elsewhere", elsewhere).await;
    let access = json!([{ "verbs": ["*"], "subresources": ["*"], "users": ["carl"], "teams": ["net"] }]);
    let cluster = json!({ "networkPeer": true, "owner": { "team": "ops" }, "access": access });
    world.put(&CLUSTERS, "", CLUSTER, cluster).await;
    let names = |list: &Value| {
        let items = list.as_array().unwrap().iter();
        items
            .map(|m| m["info"]["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let of_cluster = admin.get(&format!("{API}/clusters/{CLUSTER}/members")).await.good();
    assert_eq!(of_cluster["kind"], "ClusterMembers");
    assert_eq!(names(&of_cluster["users"]), ["ann", "bob", "carl"]);
    assert_eq!(names(&of_cluster["teams"]), ["net", "ops"]);
    let of_project = admin.get(&format!("{API}/projects/here/members")).await.good();
    assert_eq!(names(&of_project["users"]), ["ann", "bob"]);
    assert_eq!(names(&of_project["teams"]), ["ops"]);
    let holder = world.client(Some(access_key("bob", "bob-secret")));
    holder.get(&format!("{API}/projects/here/members")).await.good();
}
