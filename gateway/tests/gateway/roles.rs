//! Who may what: teams, roles in projects and in the management API, what is written on objects, scopes of keys. Lists and
//! watches hold just what their reader may see, also while that changes.

use crate::world::{API, Client, DEMO, World, soon};
use hanse_api::access::{GROUP_ADMINS, GROUP_TENANT_ADMINS};
use hanse_api::kinds::{PROJECTS, TEAMS, USERS, VIRTUAL_CLUSTER_INSTANCES};
use hanse_gateway::access_key;
use serde_json::{Value, json};
use std::time::Duration;

const VCIS: &str = "/kubernetes/management/apis/management.loft.sh/v1/namespaces/p-default/virtualclusterinstances";
const REVIEW: &str = "/kubernetes/management/apis/authorization.k8s.io/v1/subjectaccessreviews";
const KEYS: &str = "/kubernetes/management/apis/storage.loft.sh/v1/accesskeys";

fn member(kind: &str, name: &str, role: &str) -> Value {
    json!({ "kind": kind, "name": name, "clusterRole": format!("loft-management-project-{role}") })
}

async fn members(world: &World, members: &[Value]) {
    let spec =
        json!({ "members": members, "allowedClusters": [{ "name": "*" }], "requireTemplate": { "disabled": true } });
    world.put(&PROJECTS, "", "default", spec).await;
}

/// A further user with a key of his own.
async fn person(world: &World, name: &str) -> Client {
    world.user(name, &[]).await;
    world.key(name, name).await;
    world.client(Some(access_key(name, &format!("{name}-secret"))))
}

fn named(name: &str) -> Value {
    json!({ "metadata": { "name": name } })
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect()
}

/// Waits until `holds`: teams reach decisions by a watch, moments after they are written.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    soon(async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(holds().await, "{what}");
}

#[tokio::test]
async fn members_make_tenants_and_have_those_alone() {
    let world = World::start().await;
    let (bob, eve) = (world.bob(), person(&world, "eve").await);
    members(
        &world,
        &[member("User", "bob", "user"), member("User", "eve", "viewer")],
    )
    .await;
    assert_eq!(names(&bob.get(VCIS).await.good()), Vec::<&str>::new());
    bob.get(&format!("{VCIS}/demo")).await.fails(404);
    bob.get(&format!("{VCIS}/none")).await.fails(404);
    bob.get(&format!("{DEMO}/version")).await.fails(403);
    let made = bob.post(VCIS, &named("his")).await.good();
    assert_eq!(made["spec"]["owner"]["user"], "bob");
    assert_eq!(names(&bob.get(VCIS).await.good()), ["his"]);
    let all = bob
        .get(&format!("{API}/virtualclusterinstances?extended=true"))
        .await
        .good();
    assert_eq!(names(&all), ["his"]);
    assert_eq!(all["items"][0]["status"]["canUse"], true);
    assert_eq!(all["items"][0]["status"]["virtualCluster"], json!({}));
    bob.merge(&format!("{VCIS}/his"), &json!({ "spec": { "displayName": "x" } }))
        .await
        .good();
    bob.merge(&format!("{VCIS}/demo"), &json!({ "spec": { "displayName": "x" } }))
        .await
        .fails(403);
    bob.delete(&format!("{VCIS}/demo")).await.fails(403);
    bob.delete(VCIS).await.fails(403);
    // Not for others, and not with rights that are not his.
    let theirs = json!({ "metadata": { "name": "b" }, "spec": { "owner": { "user": "eve" } } });
    bob.post(VCIS, &theirs).await.fails(403);
    // A viewer sees nothing, makes nothing, and gets what is shared with him.
    eve.post(VCIS, &named("c")).await.fails(403);
    assert_eq!(names(&eve.get(VCIS).await.good()), Vec::<&str>::new());
    let share = json!({ "spec": { "extraAccessRules": [{ "users": ["eve"], "clusterRole": "view" }] } });
    bob.merge(&format!("{VCIS}/his"), &share).await.good();
    assert_eq!(names(&eve.get(VCIS).await.good()), ["his"]);
    eve.merge(
        &format!("{VCIS}/his"),
        &json!({ "spec": { "owner": { "user": "eve" } } }),
    )
    .await
    .fails(403);
    bob.delete(&format!("{VCIS}/his")).await.good();
}

#[tokio::test]
async fn a_project_that_asks_for_templates_refuses_tenants_without() {
    let world = World::start().await;
    let spec = json!({ "members": [member("User", "bob", "user"), member("Team", "x", "admin")], "allowedClusters": [{ "name": "*" }] });
    world.put(&PROJECTS, "", "default", spec).await;
    let refused = world.bob().post(VCIS, &named("a")).await.fails(403);
    assert!(refused["message"].as_str().unwrap().contains("restricted"), "{refused}");
    world.admin().post(VCIS, &named("a")).await.good();
}

/// Roles inside a tenant cluster reach it as groups that are bound there.
#[tokio::test]
async fn rules_of_a_tenant_say_what_its_users_are_inside() {
    let world = World::start().await;
    let (bob, eve, ann) = (world.bob(), person(&world, "eve").await, person(&world, "ann").await);
    let spec = json!({
        "clusterRef": { "cluster": "eu" }, "owner": { "user": "bob" },
        "extraAccessRules": [
            { "users": ["eve"], "clusterRole": "view" }, { "users": ["ann"], "clusterRole": "loft-cluster-space-admin" },
        ],
    });
    world
        .put(&VIRTUAL_CLUSTER_INSTANCES, "p-default", "demo", spec.clone())
        .await;
    let groups = async |client: &Client| {
        assert_eq!(client.get(&format!("{DEMO}/version")).await.code, 200);
        world.agent.last().verified.claims.principal.groups
    };
    assert!(groups(&bob).await.contains(&GROUP_TENANT_ADMINS.to_owned()));
    let seen = groups(&eve).await;
    assert!(seen.contains(&"hanse:tenant-role:view".to_owned()), "{seen:?}");
    assert!(!seen.contains(&GROUP_TENANT_ADMINS.to_owned()), "{seen:?}");
    assert!(groups(&ann).await.contains(&"hanse:tenant-role:admin".to_owned()));
    assert!(groups(&world.admin()).await.contains(&GROUP_TENANT_ADMINS.to_owned()));
    // A stream that was opened by a rule ends with it.
    let client = eve.clone();
    world.agent.answer(|_, _| {
        let endless = http_body_util::StreamBody::new(futures::stream::pending());
        http::Response::new(http_body_util::BodyExt::boxed_unsync(endless))
    });
    let open = client
        .open(client.request("GET", &format!("{DEMO}/api/v1/pods?watch=1"), &[], ""))
        .await;
    let mut without = spec;
    without["extraAccessRules"] = json!([]);
    world
        .put(&VIRTUAL_CLUSTER_INSTANCES, "p-default", "demo", without)
        .await;
    let end = soon(http_body_util::BodyExt::frame(&mut open.into_body())).await;
    assert!(end.is_none_or(|f| f.is_err()), "nothing more comes");
    eve.get(&format!("{DEMO}/version")).await.fails(403);
}

#[tokio::test]
async fn teams_carry_rights_and_keys() {
    let world = World::start().await;
    let (bob, admin) = (world.bob(), world.admin());
    let team = json!({ "metadata": { "name": "ops" }, "spec": { "displayName": "Ops", "users": ["bob"] } });
    admin.post(&format!("{API}/teams"), &team).await.good();
    members(&world, &[member("Team", "ops", "admin")]).await;
    until("bob is in the team", async || bob.get(VCIS).await.code == 200).await;
    let me = bob.post(&format!("{API}/selves"), &json!({})).await.good();
    assert_eq!(me["status"]["user"]["teams"][0]["displayName"], "Ops");
    assert!(
        me["status"]["groups"]
            .as_array()
            .unwrap()
            .contains(&"loft:team:ops".into())
    );
    bob.get(&format!("{API}/teams/ops")).await.good();
    bob.get(&format!("{API}/teams")).await.fails(403);
    let user = bob.get(&format!("{API}/users/bob")).await.good();
    assert_eq!(user["status"]["teams"], json!(["ops"]));
    // A key of the team is the team.
    let made = bob
        .post(
            &format!("{API}/ownedaccesskeys"),
            &json!({ "metadata": { "name": "robot" }, "spec": { "team": "ops" } }),
        )
        .await
        .good();
    let robot = world.client(Some(made["spec"]["key"].as_str().unwrap().to_owned()));
    let me = robot.post(&format!("{API}/selves"), &json!({})).await.good();
    assert_eq!(me["status"]["team"]["name"], "ops");
    assert!(me["status"].get("user").is_none(), "{me}");
    let vci = robot.post(VCIS, &named("theirs")).await.good();
    assert_eq!(vci["spec"]["owner"], json!({ "team": "ops" }));
    let listed = bob.get(&format!("{API}/ownedaccesskeys")).await.good();
    assert_eq!(names(&listed), ["bob", "robot"]);
    assert!(!listed.to_string().contains("ecretSha256"));
    // Who leaves the team leaves its rights.
    admin
        .merge(&format!("{API}/teams/ops"), &json!({ "spec": { "users": [] } }))
        .await
        .good();
    until("bob is out", async || bob.get(VCIS).await.code == 403).await;
    bob.get(&format!("{API}/ownedaccesskeys/robot")).await.fails(404);
    robot.get(VCIS).await.good();
    admin.delete(&format!("{API}/teams/ops")).await.good();
    until("the team is gone", async || robot.get(VCIS).await.code == 401).await;
}

async fn role(world: &World, name: &str, rules: Value, labels: Value) {
    let spec = json!({ "management": true, "clusterRoleTemplate": { "rules": rules } });
    let body = json!({ "metadata": { "name": name, "labels": labels }, "spec": spec });
    world
        .admin()
        .post(&format!("{API}/clusterroletemplates"), &body)
        .await
        .good();
}

#[tokio::test]
async fn nobody_gives_what_he_does_not_have() {
    let world = World::start().await;
    let (bob, admin) = (world.bob(), world.admin());
    let rules = json!([
        { "verbs": ["*"], "apiGroups": ["management.loft.sh"], "resources": ["users", "teams", "clusterroletemplates"] },
        { "verbs": ["*"], "apiGroups": ["storage.loft.sh"], "resources": ["accesskeys"] },
    ]);
    // Without `bind`, `escalate` and `impersonate`, which `*` would hold.
    let verbs = json!(["get", "list", "watch", "create", "update", "patch", "delete"]);
    let rules: Vec<Value> = rules
        .as_array()
        .unwrap()
        .iter()
        .map(|r| {
            let mut rule = r.clone();
            rule["verbs"] = verbs.clone();
            rule
        })
        .collect();
    role(&world, "people", json!(rules), json!({})).await;
    let of_bob = json!({ "username": "bob", "clusterRoles": [{ "name": "people" }] });
    world.put(&USERS, "", "bob", of_bob).await;
    until("bob has the role", async || {
        bob.get(&format!("{API}/users")).await.code == 200
    })
    .await;
    let user = |name: &str, spec: Value| json!({ "metadata": { "name": name }, "spec": spec });
    bob.post(&format!("{API}/users"), &user("new", json!({ "email": "a@b" })))
        .await
        .good();
    for spec in [
        json!({ "groups": [GROUP_ADMINS] }),
        json!({ "groups": ["devs"] }),
        json!({ "clusterRoles": [{ "name": "loft-management-admin" }] }),
        json!({ "clusterRoles": [{ "name": "people" }] }),
    ] {
        bob.post(&format!("{API}/users"), &user("mine", spec.clone()))
            .await
            .fails(403);
        let same = spec["clusterRoles"][0]["name"] == "people";
        let changed = bob.merge(&format!("{API}/users/bob"), &json!({ "spec": spec })).await;
        assert_eq!(changed.code, if same { 200 } else { 403 });
        let now = admin.get(&format!("{API}/users/bob")).await.good();
        assert_eq!(now["spec"].get("groups"), None, "{now}");
        assert_eq!(now["spec"]["clusterRoles"], json!([{ "name": "people" }]));
    }
    admin
        .post(
            &format!("{API}/users"),
            &user("forged", json!({ "groups": ["loft:team:ops"] })),
        )
        .await
        .fails(422);
    // Teams with rights take nobody in by somebody who has them not.
    world.put(&TEAMS, "", "ops", json!({ "users": ["admin"] })).await;
    bob.merge(
        &format!("{API}/teams/ops"),
        &json!({ "spec": { "users": ["admin", "bob"] } }),
    )
    .await
    .fails(403);
    bob.merge(&format!("{API}/teams/ops"), &json!({ "spec": { "displayName": "x" } }))
        .await
        .good();
    // Roles: no more than his own.
    let template = |rules: Value| json!({ "metadata": { "generateName": "r-" }, "spec": { "management": true, "clusterRoleTemplate": { "rules": rules } } });
    let path = format!("{API}/clusterroletemplates");
    let own = json!([{ "verbs": ["get"], "apiGroups": ["management.loft.sh"], "resources": ["users"] }]);
    bob.post(&path, &template(own)).await.good();
    for more in [
        json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }]),
        json!([{ "verbs": ["get"], "apiGroups": ["management.loft.sh"], "resources": ["projects"] }]),
        json!([{ "verbs": ["bind"], "apiGroups": ["management.loft.sh"], "resources": ["users"] }]),
        json!([{ "verbs": ["get"], "nonResourceURLs": ["/metrics"] }]),
    ] {
        bob.post(&path, &template(more)).await.fails(403);
    }
    // A key of another is that other.
    bob.post(KEYS, &json!({ "spec": { "user": "admin" } })).await.fails(403);
    let made = admin
        .post(
            KEYS,
            &json!({ "metadata": { "name": "new" }, "spec": { "user": "new" } }),
        )
        .await
        .good();
    assert!(made["spec"]["key"].as_str().unwrap().starts_with("hak1.new."));
    let key = world.client(Some(made["spec"]["key"].as_str().unwrap().to_owned()));
    key.post(&format!("{API}/selves"), &json!({})).await.good();
    let shown = bob.get(KEYS).await;
    assert!(!shown.text.contains("ecretSha256"), "{}", shown.text);
    bob.merge(
        &format!("{KEYS}/admin"),
        &json!({ "spec": { "secretSha256": "0".repeat(64) } }),
    )
    .await
    .fails(422);
    bob.merge(&format!("{KEYS}/new"), &json!({ "spec": { "disabled": true } }))
        .await
        .good();
    key.post(&format!("{API}/selves"), &json!({})).await.fails(401);
    bob.merge(&format!("{KEYS}/new"), &json!({ "spec": { "disabled": false } }))
        .await
        .good();
    key.post(&format!("{API}/selves"), &json!({})).await.good();
}

#[tokio::test]
async fn project_administrators_change_members_and_not_limits() {
    let world = World::start().await;
    members(&world, &[member("User", "bob", "admin")]).await;
    let (bob, project) = (world.bob(), format!("{API}/projects/default"));
    let more = json!({ "spec": { "members": [member("User", "bob", "admin"), member("User", "eve", "viewer")] } });
    bob.merge(&project, &more).await.good();
    for spec in [
        json!({ "allowedClusters": [{ "name": "secret" }] }),
        json!({ "quotas": { "project": {} } }),
        json!({ "owner": { "user": "bob" } }),
    ] {
        let refused = bob.merge(&project, &json!({ "spec": spec })).await.fails(403);
        assert!(refused["message"].as_str().unwrap().contains("projects/"), "{refused}");
    }
    bob.delete(&project).await.fails(403);
    let members = bob.get(&format!("{project}/members")).await.good();
    let users: Vec<&str> = members["users"]
        .as_array()
        .unwrap()
        .iter()
        .map(|u| u["info"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(users, ["bob", "eve"]);
}

#[tokio::test]
async fn custom_roles_hold_in_their_project() {
    let world = World::start().await;
    let rules = json!([{ "verbs": ["get", "list", "watch", "use"], "apiGroups": ["management.loft.sh"], "resources": ["virtualclusterinstances"] }]);
    role(
        &world,
        "support",
        rules.clone(),
        json!({ "loft.sh/project-role": "true" }),
    )
    .await;
    role(&world, "unmarked", rules, json!({})).await;
    let (bob, eve) = (world.bob(), person(&world, "eve").await);
    let with = |user: &str, role: &str| json!({ "kind": "User", "name": user, "clusterRole": role });
    members(&world, &[with("bob", "support"), with("eve", "unmarked")]).await;
    until("the role counts", async || bob.get(VCIS).await.code == 200).await;
    assert_eq!(names(&bob.get(VCIS).await.good()), ["demo"]);
    assert_eq!(bob.get(&format!("{DEMO}/version")).await.code, 200);
    bob.delete(&format!("{VCIS}/demo")).await.fails(403);
    eve.get(VCIS).await.fails(403);
}

#[tokio::test]
async fn a_scope_narrows_a_key_and_its_watches() {
    let world = World::start().await;
    let admin = world.admin();
    admin.post(&format!("{API}/projects"), &named("other")).await.good();
    let other = format!("{API}/namespaces/p-other/virtualclusterinstances");
    admin.post(&other, &named("web")).await.good();
    let scope = json!({ "projects": [{ "project": "other" }] });
    let made = admin
        .post(
            &format!("{API}/ownedaccesskeys"),
            &json!({ "spec": { "scope": scope } }),
        )
        .await
        .good();
    assert_eq!(made["spec"]["scope"], scope);
    let narrow = world.client(Some(made["spec"]["key"].as_str().unwrap().to_owned()));
    let me = narrow.post(&format!("{API}/selves"), &json!({})).await.good();
    assert_eq!(me["status"]["accessKeyScope"], scope);
    assert_eq!(
        names(&narrow.get(&format!("{API}/virtualclusterinstances")).await.good()),
        ["web"]
    );
    assert_eq!(names(&narrow.get(&format!("{API}/projects")).await.good()), ["other"]);
    narrow.get(VCIS).await.fails(403);
    narrow.get(&format!("{DEMO}/version")).await.fails(403);
    narrow.get(&format!("{API}/clusters")).await.fails(403);
    narrow.get("/metrics").await.fails(403);
    // No key without the scope comes out of it, also not by being somebody else.
    narrow
        .post(&format!("{API}/ownedaccesskeys"), &json!({}))
        .await
        .fails(403);
    narrow
        .post(KEYS, &json!({ "spec": { "user": "admin" } }))
        .await
        .fails(403);
    let as_bob = [("impersonate-user", "bob"), ("impersonate-group", "x")];
    narrow.send(narrow.request("GET", VCIS, &as_bob, "")).await.fails(403);
    let mut watch = narrow.watch(&format!("{API}/virtualclusterinstances?watch=1")).await;
    assert_eq!(watch.brief().await, "ADDED web");
    admin.post(VCIS, &named("hidden")).await.good();
    admin.post(&other, &named("seen")).await.good();
    assert_eq!(watch.brief().await, "ADDED seen");
}

#[tokio::test]
async fn watches_of_members_hold_what_is_theirs_and_begin_anew_when_that_changes() {
    let world = World::start().await;
    let (bob, admin) = (world.bob(), world.admin());
    members(&world, &[member("User", "bob", "user")]).await;
    for path in [
        format!("{API}/virtualclusterinstances?watch=1"),
        format!("{VCIS}?watch=1"),
    ] {
        let mut watch = bob.watch(&path).await;
        admin.post(VCIS, &named("theirs")).await.good();
        bob.post(VCIS, &named("his")).await.good();
        assert_eq!(watch.brief().await, "ADDED his");
        // Given away, it goes; given, it comes.
        let to = |user: &str| json!({ "spec": { "owner": { "user": user } } });
        admin.merge(&format!("{VCIS}/his"), &to("eve")).await.good();
        assert_eq!(watch.brief().await, "DELETED his");
        admin.merge(&format!("{VCIS}/theirs"), &to("bob")).await.good();
        assert_eq!(watch.brief().await, "ADDED theirs");
        // A change of somebody else's membership is nothing to him.
        members(&world, &[member("User", "bob", "user"), member("User", "ann", "admin")]).await;
        bob.merge(&format!("{VCIS}/theirs"), &json!({ "spec": { "displayName": "x" } }))
            .await
            .good();
        assert_eq!(watch.brief().await, "MODIFIED theirs");
        // His own is: what he may see now was never sent, so he is told to list.
        members(&world, &[member("User", "bob", "admin")]).await;
        let end = watch.next().await.unwrap();
        assert_eq!(
            (&end["type"], &end["object"]["code"]),
            (&json!("ERROR"), &json!(410)),
            "{end}"
        );
        assert_eq!(watch.next().await, None);
        assert_eq!(bob.get(VCIS).await.good()["items"].as_array().unwrap().len(), 3);
        members(&world, &[member("User", "bob", "user")]).await;
        for name in ["his", "theirs"] {
            world.remove(&VIRTUAL_CLUSTER_INSTANCES, "p-default", name).await;
        }
    }
}

/// A watch that goes on from a revision does not miss that the roles changed since.
#[tokio::test]
async fn a_membership_that_changed_between_list_and_watch_is_noticed() {
    let world = World::start().await;
    let bob = world.bob();
    members(&world, &[member("User", "bob", "user")]).await;
    let list = bob.get(&format!("{API}/virtualclusterinstances")).await.good();
    let at = list["metadata"]["resourceVersion"].as_str().unwrap();
    members(&world, &[member("User", "bob", "admin")]).await;
    members(&world, &[member("User", "bob", "user")]).await;
    let mut watch = bob
        .watch(&format!("{API}/virtualclusterinstances?watch=1&resourceVersion={at}"))
        .await;
    assert_eq!(watch.next().await.unwrap()["object"]["code"], 410);
}

#[tokio::test]
async fn watches_of_projects_show_those_that_one_belongs_to() {
    let world = World::start().await;
    let (bob, admin) = (world.bob(), world.admin());
    let mut watch = bob.watch(&format!("{API}/projects?watch=1")).await;
    admin.post(&format!("{API}/projects"), &named("other")).await.good();
    members(&world, &[member("User", "bob", "viewer")]).await;
    assert_eq!(watch.brief().await, "ADDED default");
    members(&world, &[member("User", "bob", "admin")]).await;
    assert_eq!(watch.brief().await, "MODIFIED default");
    members(&world, &[]).await;
    assert_eq!(watch.brief().await, "DELETED default");
    // A team that he comes into may open other projects.
    world.put(&TEAMS, "", "ops", json!({ "users": ["bob"] })).await;
    assert_eq!(watch.next().await.unwrap()["object"]["code"], 410);
}

#[tokio::test]
async fn reviews_of_others_are_for_those_who_may_and_count_their_teams() {
    let world = World::start().await;
    members(&world, &[member("Team", "ops", "admin")]).await;
    world.put(&TEAMS, "", "ops", json!({ "users": ["bob"] })).await;
    let attributes = json!({
        "verb": "delete", "group": "management.loft.sh", "resource": "virtualclusterinstances", "namespace": "p-default",
        "name": "demo",
    });
    let review = |who: &str| json!({ "spec": { "user": who, "resourceAttributes": attributes } });
    world.bob().post(REVIEW, &review("admin")).await.fails(403);
    let admin = world.admin();
    until("bob may", async || {
        admin.post(REVIEW, &review("bob")).await.good()["status"]["allowed"] == true
    })
    .await;
    let why = admin.post(REVIEW, &review("bob")).await.good();
    let reason = why["status"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("loft-management-project-admin in project default"),
        "{reason}"
    );
    assert_eq!(
        admin.post(REVIEW, &review("nobody")).await.good()["status"]["allowed"],
        false
    );
    admin.post(REVIEW, &json!({ "spec": {} })).await.fails(400);
}
