//! Who gets in.

use crate::world::{API, DEMO, NoServers, World, soon};
use hanse_api::kinds::{ACCESS_KEYS, PROJECTS, USERS};
use hanse_gateway::access_key;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Every route but the probes answers 401 without credentials, whatever the method, and never redirects.
#[tokio::test]
async fn every_route_needs_credentials() {
    let world = World::start().await;
    let nobody = world.client(None);
    let closed = [
        "/",
        "/metrics",
        "/kubernetes",
        "/kubernetes/management",
        "/kubernetes/management/version",
        "/kubernetes/management/healthz",
        "/kubernetes/management/api",
        "/kubernetes/management/apis",
        "/kubernetes/management/openapi/v3",
        "/kubernetes/management/openapi/v2",
        "/kubernetes/management/apis/management.loft.sh/v1/projects",
        "/kubernetes/management/apis/management.loft.sh/v1/selves",
        "/kubernetes/cluster/eu/version",
        "/kubernetes/project/default/virtualcluster/demo/version",
        "/kubernetes/project/none/virtualcluster/none/version",
        "/login",
        "/nonsense",
        "/kubernetes/management/..%2f..",
        "/kubernetes/cluster/eu/../x",
        "/debug/pprof",
    ];
    for path in closed {
        for method in ["GET", "POST", "DELETE", "OPTIONS"] {
            let answer = nobody.send(nobody.request(method, path, &[], "")).await;
            let status = answer.fails(401);
            assert_eq!(status["reason"], "Unauthorized", "{method} {path}");
            assert!(!answer.headers.contains_key("location"));
        }
    }
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(nobody.get(path).await.code, 200, "{path}");
        assert_eq!(
            nobody.send(nobody.request("POST", path, &[], "")).await.code,
            405,
            "{path}"
        );
    }
    assert!(nobody.get("/readyz?verbose").await.text.contains("[+]store-leader ok"));
    assert_eq!(world.agent.count(), 0);
}

#[tokio::test]
async fn a_server_that_awaits_agents_is_alive_but_not_ready() {
    let servers = Arc::new(NoServers::default());
    servers.awaits_agents.store(true, Ordering::SeqCst);
    let world = World::with(|parts| parts.cluster_status = servers.clone()).await;
    let nobody = world.client(None);
    for path in ["/healthz", "/livez"] {
        assert_eq!(nobody.get(path).await.code, 200, "{path}");
    }
    let answer = nobody.get("/readyz").await;
    assert_eq!(answer.code, 503);
    assert!(
        answer.text.contains("[-]agents failed: agents that other"),
        "{}",
        answer.text
    );
    assert_eq!(nobody.get("/readyz?exclude=agents").await.text, "ok");
    let told = nobody.get("/readyz?exclude=agents&verbose").await.text;
    assert!(told.contains("[+]agents excluded: ok"), "{told}");
    assert_eq!(nobody.get("/readyz?exclude=ping").await.code, 503);
    servers.awaits_agents.store(false, Ordering::SeqCst);
    assert_eq!(nobody.get("/readyz").await.text, "ok");
}

#[tokio::test]
async fn only_a_whole_and_right_key_counts() {
    let world = World::start().await;
    for token in [
        "",
        " ",
        "x",
        "hak1.admin.",
        "hak1.admin.wrong",
        "hak1.nobody.admin-secret",
        "hak1.admin.admin-secret.x",
    ] {
        let client = world.client(Some(token.to_owned()));
        client.get(&format!("{API}/projects")).await.fails(401);
    }
    let me = world.admin().post(&format!("{API}/selves"), &json!({})).await.good();
    assert_eq!(me["status"]["user"]["name"], "admin");
    assert_eq!(me["status"]["projectNamespacePrefix"], "p-");
    assert!(!me.to_string().contains("admin-secret"));
}

#[tokio::test]
async fn keys_and_users_end_at_once() {
    let world = World::start().await;
    let bob = world.bob();
    let selves = format!("{API}/selves");
    bob.post(&selves, &json!({})).await.good();
    world
        .put(&USERS, "", "bob", json!({ "username": "bob", "disabled": true }))
        .await;
    bob.post(&selves, &json!({})).await.fails(401);
    world.user("bob", &[]).await;
    bob.post(&selves, &json!({})).await.good();
    let hash = hanse_runtime::pki::sha256_hex(b"bob-secret");
    world
        .put(
            &ACCESS_KEYS,
            "",
            "bob",
            json!({ "user": "bob", "secretSha256": hash, "expires": "2020-01-01T00:00:00Z" }),
        )
        .await;
    bob.post(&selves, &json!({})).await.fails(401);
    world
        .put(
            &ACCESS_KEYS,
            "",
            "bob",
            json!({ "user": "bob", "secretSha256": hash, "disabled": true }),
        )
        .await;
    bob.post(&selves, &json!({})).await.fails(401);
    world.remove(&ACCESS_KEYS, "", "bob").await;
    bob.post(&selves, &json!({})).await.fails(401);
}

/// Bob administers `default` only.
async fn lists_show_what_is_his(world: &World) {
    let (bob, admin) = (world.bob(), world.admin());
    for name in ["aaa", "other", "zzz"] {
        let body = json!({ "metadata": { "name": name } });
        admin.post(&format!("{API}/projects"), &body).await.good();
        let path = format!("{API}/namespaces/p-{name}/virtualclusterinstances");
        admin
            .post(&path, &json!({ "metadata": { "name": "web" } }))
            .await
            .good();
    }
    for (kind, want) in [("projects", "default"), ("virtualclusterinstances", "demo")] {
        for query in ["", "?limit=1", "?resourceVersion=0", "?limit=500&resourceVersion=0"] {
            let list = bob.get(&format!("{API}/{kind}{query}")).await.good();
            let items = list["items"].as_array().unwrap();
            assert_eq!(items.len(), 1, "{kind}{query}: {list}");
            assert_eq!(items[0]["metadata"]["name"], want);
            assert!(list["metadata"].get("remainingItemCount").is_none(), "{list}");
        }
        let all = admin.get(&format!("{API}/{kind}")).await.good();
        assert_eq!(all["items"].as_array().unwrap().len(), 4);
        bob.delete(&format!("{API}/{kind}")).await;
        let still = admin.get(&format!("{API}/{kind}")).await.good();
        assert_eq!(still["items"].as_array().unwrap().len(), 4, "{kind}");
    }
    bob.get(&format!("{API}/namespaces/p-other/virtualclusterinstances"))
        .await
        .fails(403);
}

#[tokio::test]
async fn rights_are_those_of_the_projects_one_administers() {
    let world = World::start().await;
    let bob = world.bob();
    assert_eq!(bob.get(&format!("{API}/projects")).await.good()["items"], json!([]));
    bob.get(&format!("{API}/clusters")).await.fails(403);
    bob.get("/metrics").await.fails(403);
    bob.get(&format!("{DEMO}/version")).await.fails(403);
    bob.get("/kubernetes/cluster/eu/version").await.fails(403);
    let denied = bob
        .get(&format!("{API}/namespaces/p-default/virtualclusterinstances"))
        .await
        .fails(403);
    let message = denied["message"].as_str().unwrap();
    assert!(
        message.contains("User \"bob\" cannot list resource \"virtualclusterinstances\""),
        "{message}"
    );
    assert_eq!(world.agent.count(), 0, "nothing went out");
    let member = json!({ "kind": "User", "name": "bob", "clusterRole": "loft-management-project-admin" });
    world
        .put(&PROJECTS, "", "default", json!({ "members": [member] }))
        .await;
    bob.get(&format!("{API}/namespaces/p-default/virtualclusterinstances"))
        .await
        .good();
    bob.get(&format!("{API}/projects/default")).await.good();
    assert_eq!(bob.get(&format!("{DEMO}/version")).await.code, 200);
    lists_show_what_is_his(&world).await;
    bob.get(&format!("{API}/users/bob")).await.good();
    bob.get(&format!("{API}/users/admin")).await.fails(403);
    assert!(
        world
            .admin()
            .get("/metrics")
            .await
            .text
            .contains("hanse_gateway_requests_total")
    );
}

#[tokio::test]
async fn keys_are_made_and_ended_by_their_owners() {
    let world = World::start().await;
    let (bob, keys) = (world.bob(), format!("{API}/ownedaccesskeys"));
    let made = bob
        .post(
            &keys,
            &json!({ "metadata": { "name": "laptop" }, "spec": { "displayName": "x", "ttl": 3600 } }),
        )
        .await
        .good();
    let key = made["spec"]["key"].as_str().unwrap().to_owned();
    assert!(key.starts_with("hak1.laptop."));
    let laptop = world.client(Some(key.clone()));
    assert_eq!(
        laptop.post(&format!("{API}/selves"), &json!({})).await.good()["status"]["accessKey"],
        "laptop"
    );
    bob.post(&keys, &json!({ "metadata": { "name": "laptop" }, "spec": {} }))
        .await
        .fails(409);
    for spec in [
        json!({ "user": "admin" }),
        json!({ "team": "devs" }),
        json!({ "key": "x".repeat(64) }),
        json!({ "type": "Reset" }),
        json!({ "ttlAfterLastActivity": 60 }),
        json!({ "scope": { "roles": [{ "role": "agent" }] } }),
        json!({ "scope": { "rules": [{ "verbs": ["get"] }] } }),
    ] {
        bob.post(&keys, &json!({ "spec": spec })).await.fails(422);
    }
    let listed = bob.get(&keys).await.good();
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
    assert!(!listed.to_string().contains("ecretSha256"), "{listed}");
    world.admin().delete(&format!("{keys}/laptop")).await.fails(404);
    laptop.delete(&format!("{keys}/laptop")).await.good();
    laptop.get(&keys).await.fails(401);
    assert_eq!(access_key("a", "b"), "hak1.a.b");
}

#[tokio::test]
async fn impersonation_is_for_admins_and_replaces_the_rights() {
    let world = World::start().await;
    let as_eve = [("impersonate-user", "eve"), ("impersonate-group", "devs")];
    let path = format!("{DEMO}/api/v1/pods");
    let bob = world.bob();
    bob.send(bob.request("GET", &path, &as_eve, "")).await.fails(403);
    let admin = world.admin();
    // The wanted identity must have the right itself.
    admin.send(admin.request("GET", &path, &as_eve, "")).await.fails(403);
    admin
        .send(admin.request("GET", &format!("{API}/clusters"), &as_eve, ""))
        .await
        .fails(403);
    let member = json!({ "kind": "User", "name": "eve", "clusterRole": "loft-management-project-admin" });
    world
        .put(&PROJECTS, "", "default", json!({ "members": [member] }))
        .await;
    assert_eq!(admin.send(admin.request("GET", &path, &as_eve, "")).await.code, 200);
    let seen = world.agent.last();
    let principal = seen.verified.claims.principal;
    assert_eq!(principal.user, "eve");
    assert_eq!(principal.groups, ["devs", "system:authenticated"]);
    assert!(principal.extra["original-user.hanse.dev"][0].contains("admin"));
    assert!(seen.head.headers.keys().all(|k| !k.as_str().starts_with("impersonate")));
    let masters = [("impersonate-user", "eve"), ("impersonate-group", "system:masters")];
    admin.send(admin.request("GET", &path, &masters, "")).await.fails(403);
    admin
        .send(admin.request("GET", &path, &[("impersonate-group", "x")], ""))
        .await
        .fails(400);
}

/// A watch that was opened with a key ends when the key does.
#[tokio::test]
async fn a_watch_ends_with_the_right_to_it() {
    let world = World::start().await;
    world.key("second", "admin").await;
    let client = world.client(Some(access_key("second", "second-secret")));
    let mut watch = client.watch(&format!("{API}/projects?watch=true")).await;
    assert_eq!(watch.brief().await, "ADDED default");
    // Another key's end changes nothing here.
    world.remove(&ACCESS_KEYS, "", "bob").await;
    world.put(&PROJECTS, "", "more", json!({})).await;
    assert_eq!(watch.brief().await, "ADDED more");
    world.remove(&ACCESS_KEYS, "", "second").await;
    assert_eq!(soon(watch.next()).await, None);
}

#[tokio::test]
async fn reviews_of_oneself() {
    let world = World::start().await;
    let review = |verb: &str| {
        json!({ "spec": { "resourceAttributes": {
        "verb": verb, "group": "management.loft.sh", "resource": "projects" } } })
    };
    let path = "/kubernetes/management/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(
        world.admin().post(path, &review("list")).await.good()["status"]["allowed"],
        true
    );
    assert_eq!(
        world.bob().post(path, &review("list")).await.good()["status"]["allowed"],
        false
    );
    let path = "/kubernetes/management/apis/authentication.k8s.io/v1/selfsubjectreviews";
    assert_eq!(
        world.bob().post(path, &json!({})).await.good()["status"]["userInfo"]["username"],
        "bob"
    );
}
