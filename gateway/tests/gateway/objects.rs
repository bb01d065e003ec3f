//! Objects of the management API: made, read, changed and deleted as Kubernetes does.

use crate::world::{API, World};
use hanse_api::kinds::VIRTUAL_CLUSTER_INSTANCES;
use hanse_state::objects::Objects;
use serde_json::{Value, json};

const PROJECTS: &str = "/kubernetes/management/apis/management.loft.sh/v1/projects";
const VCIS: &str = "/kubernetes/management/apis/management.loft.sh/v1/namespaces/p-default/virtualclusterinstances";

fn named(name: &str) -> Value {
    json!({ "metadata": { "name": name } })
}

#[tokio::test]
async fn the_life_of_an_object() {
    let world = World::start().await;
    let admin = world.admin();
    let made = admin.post(PROJECTS, &json!({ "metadata": { "name": "a", "uid": "forged", "creationTimestamp": null }, "spec": { "displayName": "A", "extra": { "kept": 1 } }, "status": { "forged": true } })).await;
    assert_eq!(made.code, 201);
    let made = made.json();
    assert_eq!(
        (&made["kind"], &made["apiVersion"]),
        (&json!("Project"), &json!("management.loft.sh/v1"))
    );
    assert_eq!(made["metadata"]["generation"], 1);
    assert_ne!(made["metadata"]["uid"], "forged");
    assert_eq!(made["spec"]["extra"]["kept"], 1, "fields of others are kept");
    assert!(made.get("status").is_none());
    admin.post(PROJECTS, &named("a")).await.fails(409);
    let got = admin.get(&format!("{PROJECTS}/a")).await.good();
    assert_eq!(got, made);
    let mut changed = got.clone();
    changed["spec"]["displayName"] = "B".into();
    let put = admin.put(&format!("{PROJECTS}/a"), &changed).await.good();
    assert_eq!(put["metadata"]["generation"], 2);
    let conflict = admin.put(&format!("{PROJECTS}/a"), &changed).await.fails(409);
    assert_eq!(conflict["reason"], "Conflict");
    // Without a revision it could undo what others changed; one that changes nothing writes nothing.
    changed["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let unbound = admin.put(&format!("{PROJECTS}/a"), &changed).await.fails(422);
    assert_eq!(unbound["details"]["causes"][0]["field"], "metadata.resourceVersion");
    let same = admin.put(&format!("{PROJECTS}/a"), &put).await.good();
    assert_eq!(same["metadata"]["resourceVersion"], put["metadata"]["resourceVersion"]);
    let patched = admin
        .merge(
            &format!("{PROJECTS}/a"),
            &json!({ "metadata": { "labels": { "x": "1" } }, "spec": { "extra": null } }),
        )
        .await
        .good();
    assert_eq!(patched["metadata"]["labels"]["x"], "1");
    assert!(patched["spec"].get("extra").is_none());
    let deleted = admin.delete(&format!("{PROJECTS}/a")).await.good();
    assert_eq!(
        (&deleted["status"], &deleted["details"]["uid"]),
        (&json!("Success"), &made["metadata"]["uid"])
    );
    let gone = admin.get(&format!("{PROJECTS}/a")).await.fails(404);
    assert_eq!(gone["message"], "projects.management.loft.sh \"a\" not found");
}

#[tokio::test]
async fn status_is_written_through_its_endpoint_only() {
    let world = World::start().await;
    let admin = world.admin();
    let path = format!("{API}/clusters/eu");
    let status = admin
        .merge(
            &format!("{path}/status"),
            &json!({ "status": { "phase": "Initialized", "online": true }, "spec": { "displayName": "no" } }),
        )
        .await
        .good();
    assert_eq!(status["status"]["phase"], "Initialized");
    assert!(status["spec"].get("displayName").is_none());
    let main = admin
        .merge(
            &path,
            &json!({ "status": { "phase": "Failed" }, "spec": { "displayName": "yes" } }),
        )
        .await
        .good();
    assert_eq!(main["status"]["phase"], "Initialized");
    assert_eq!(main["spec"]["displayName"], "yes");
    admin
        .merge(&format!("{path}/status"), &json!({ "status": { "online": "maybe" } }))
        .await
        .fails(422);
}

#[tokio::test]
async fn bad_input_is_named() {
    let world = World::start().await;
    let admin = world.admin();
    let fault = |answer: Value| answer["details"]["causes"][0]["field"].as_str().unwrap().to_owned();
    assert_eq!(
        fault(admin.post(PROJECTS, &named("Not_A_Label")).await.fails(422)),
        "metadata.name"
    );
    assert_eq!(
        fault(admin.post(PROJECTS, &json!({})).await.fails(422)),
        "metadata.name"
    );
    let nodes = json!({ "metadata": { "name": "x", "annotations": { "hanse.dev/simulated-nodes": "many" } } });
    assert!(fault(admin.post(VCIS, &nodes).await.fails(422)).contains("simulated-nodes"));
    assert_eq!(
        fault(
            admin
                .post(
                    PROJECTS,
                    &json!({ "metadata": { "name": "x" }, "spec": { "members": 5 } })
                )
                .await
                .fails(422)
        ),
        "spec"
    );
    assert_eq!(
        fault(
            admin
                .put(
                    &format!("{PROJECTS}/default"),
                    &json!({ "metadata": { "name": "default", "resourceVersion": "abc" } })
                )
                .await
                .fails(422)
        ),
        "metadata.resourceVersion"
    );
    admin
        .put(
            &format!("{PROJECTS}/default"),
            &json!({ "metadata": { "name": "default", "resourceVersion": "1" } }),
        )
        .await
        .fails(409);
    admin
        .put(&format!("{PROJECTS}/default"), &named("other"))
        .await
        .fails(400);
    admin
        .post(
            PROJECTS,
            &json!({ "metadata": { "name": "x", "resourceVersion": "5" } }),
        )
        .await
        .fails(400);
    admin
        .post(PROJECTS, &json!({ "kind": "Cluster", "metadata": { "name": "x" } }))
        .await
        .fails(422);
    admin
        .post(VCIS, &json!({ "metadata": { "name": "x", "namespace": "p-other" } }))
        .await
        .fails(400);
    let send = async |media: &str, body: String| {
        admin
            .send(admin.request("POST", PROJECTS, &[("content-type", media)], body))
            .await
    };
    send("application/json", "{".into()).await.fails(400);
    send("application/vnd.kubernetes.protobuf", "k8s".into())
        .await
        .fails(415);
    send("application/json", format!("{{\"a\":\"{}\"}}", "x".repeat(3 << 20)))
        .await
        .fails(413);
    send("application/yaml", "metadata:\n  name: from-yaml\n".into())
        .await
        .good();
    let patch = async |media: &str, body: &str| {
        let path = format!("{PROJECTS}/default");
        admin
            .send(admin.request("PATCH", &path, &[("content-type", media)], body.to_owned()))
            .await
    };
    patch("application/merge-patch+json", "{").await.fails(400);
    patch("application/strategic-merge-patch+json", "{}").await.fails(415);
    patch("application/apply-patch+yaml", "{}").await.fails(422);
    patch(
        "application/json-patch+json",
        "[{\"op\":\"test\",\"path\":\"/spec/x\",\"value\":1}]",
    )
    .await
    .fails(422);
    patch(
        "application/json-patch+json",
        "[{\"op\":\"add\",\"path\":\"/spec/displayName\",\"value\":\"j\"}]",
    )
    .await
    .good();
    admin.get(&format!("{PROJECTS}?resourceVersion=abc")).await.fails(400);
    admin.get(&format!("{PROJECTS}?labelSelector=a%20b")).await.fails(400);
    admin
        .get(&format!("{PROJECTS}?fieldSelector=spec.x%3D1"))
        .await
        .fails(400);
    let some = format!("{PROJECTS}?dryRun=Some");
    assert_eq!(fault(admin.post(&some, &named("dry")).await.fails(422)), "dryRun");
    admin
        .get("/kubernetes/management/apis/management.loft.sh/v2/projects")
        .await
        .fails(404);
    admin.get(&format!("{PROJECTS}/default/nonsense")).await.fails(404);
    admin.get(&format!("{PROJECTS}/default/status/deeper")).await.fails(404);
    admin.delete(&format!("{API}/virtualclusterinstances")).await.fails(404);
    admin.delete(&format!("{API}/users")).await.fails(405);
    admin
        .post("/kubernetes/management/api/v1/namespaces", &named("x"))
        .await
        .fails(405);
    let tenants = "/kubernetes/management/apis/hanse.dev/v1/namespaces/p-default/tenantstores";
    admin.get(tenants).await.fails(404);
    admin.get(&format!("{API}/accesskeys")).await.fails(404);
}

#[tokio::test]
async fn tenants_need_their_project_and_projects_outlive_their_tenants() {
    let world = World::start().await;
    let admin = world.admin();
    let lost = admin
        .post(&VCIS.replace("p-default", "p-none"), &named("x"))
        .await
        .fails(404);
    assert_eq!(lost["message"], "projects.management.loft.sh \"none\" not found");
    admin
        .post(&VCIS.replace("p-default", "kube-system"), &named("x"))
        .await
        .fails(404);
    let made = admin.post(VCIS, &named("x")).await.good();
    assert_eq!(made["metadata"]["finalizers"][0], "hanse.dev/tenant");
    assert_eq!(made["spec"]["owner"]["user"], "admin");
    let held = admin.delete(&format!("{PROJECTS}/default")).await.fails(409);
    assert!(held["message"].as_str().unwrap().contains("demo"), "{held}");
    // The refusal left nothing behind: tenants can still be made.
    admin.post(VCIS, &named("y")).await.good();
    // A finalizer keeps a tenant until somebody takes it away.
    let marked = admin.delete(&format!("{VCIS}/x")).await.good();
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    admin.delete(&format!("{VCIS}/x")).await.good();
    let more = json!({ "metadata": { "finalizers": ["hanse.dev/tenant", "other.dev/x"] } });
    admin.merge(&format!("{VCIS}/x"), &more).await.fails(422);
    admin
        .merge(&format!("{VCIS}/x"), &json!({ "metadata": { "finalizers": null } }))
        .await
        .good();
    admin.get(&format!("{VCIS}/x")).await.fails(404);
    admin
        .merge(&format!("{VCIS}/y"), &json!({ "metadata": { "finalizers": [] } }))
        .await
        .good();
    admin.delete(&format!("{VCIS}/y")).await.good();
    world.remove(&VIRTUAL_CLUSTER_INSTANCES, "p-default", "demo").await;
    admin.delete(&format!("{PROJECTS}/default")).await.good();
    admin.post(VCIS, &named("z")).await.fails(404);
}

/// However creations of tenants and the deletion of their project interleave: there is never a tenant without a project.
#[tokio::test]
async fn no_race_leaves_a_tenant_without_its_project() {
    let world = World::start().await;
    for round in 0..15 {
        let (admin, other) = (world.admin(), world.admin());
        let project = format!("race-{round}");
        admin.post(PROJECTS, &named(&project)).await.good();
        let vcis = VCIS.replace("p-default", &format!("p-{project}"));
        let (path, tenant) = (format!("{PROJECTS}/{project}"), named("t"));
        let (deleted, created) = tokio::join!(admin.delete(&path), other.post(&vcis, &tenant));
        let there = admin.get(&path).await.code == 200;
        assert_eq!(deleted.code == 200, !there, "{deleted:?}");
        assert!(
            created.code != 201 || there,
            "a tenant was made in a project that is gone: {created:?} {deleted:?}"
        );
        assert!(
            [200, 409].contains(&deleted.code.as_u16()) && [201, 404, 409].contains(&created.code.as_u16()),
            "{created:?}"
        );
    }
}

#[tokio::test]
async fn clusters_and_regions_in_use_stay() {
    let world = World::start().await;
    let admin = world.admin();
    let regions = "/kubernetes/management/apis/hanse.dev/v1/regions";
    admin.delete(&format!("{API}/clusters/eu")).await.fails(409);
    admin.post(regions, &named("north")).await.good();
    let cluster = json!({ "metadata": { "name": "n1", "annotations": { "hanse.dev/region": "north" } } });
    admin.post(&format!("{API}/clusters"), &cluster).await.good();
    admin.delete(&format!("{regions}/north")).await.fails(409);
    admin.delete(&format!("{API}/clusters/n1")).await.good();
    admin.delete(&format!("{regions}/north")).await.good();
}

#[tokio::test]
async fn preconditions_and_dry_runs() {
    let world = World::start().await;
    let admin = world.admin();
    let path = format!("{PROJECTS}/default");
    let delete = async |query: &str, body: Value| {
        admin
            .send(admin.request(
                "DELETE",
                &format!("{path}{query}"),
                &[("content-type", "application/json")],
                body.to_string(),
            ))
            .await
    };
    delete("", json!({ "preconditions": { "uid": "other" } }))
        .await
        .fails(409);
    delete("", json!({ "preconditions": { "resourceVersion": "1" } }))
        .await
        .fails(409);
    world.remove(&VIRTUAL_CLUSTER_INSTANCES, "p-default", "demo").await;
    delete("?dryRun=All", json!({})).await.good();
    delete("", json!({ "dryRun": ["All"] })).await.good();
    let dry = admin
        .post(&format!("{PROJECTS}?dryRun=All"), &named("ghost"))
        .await
        .good();
    assert!(dry["metadata"]["uid"].is_string());
    admin.get(&format!("{PROJECTS}/ghost")).await.fails(404);
    let dry = admin
        .merge(
            &format!("{path}?dryRun=All"),
            &json!({ "spec": { "displayName": "ghost" } }),
        )
        .await
        .good();
    assert_eq!(dry["spec"]["displayName"], "ghost");
    assert!(admin.get(&path).await.good()["spec"].get("displayName").is_none());
    let generated = admin
        .post(PROJECTS, &json!({ "metadata": { "generateName": "gen-" } }))
        .await
        .good();
    assert_eq!(generated["metadata"]["name"].as_str().unwrap().len(), 9);
    delete("", json!({ "propagationPolicy": "Background" })).await.good();
}

#[tokio::test]
async fn lists_go_page_by_page_at_one_revision() {
    let world = World::start().await;
    let admin = world.admin();
    for i in 0..7 {
        let labels = json!({ "parity": if i % 2 == 0 { "even" } else { "odd" } });
        admin
            .post(
                PROJECTS,
                &json!({ "metadata": { "name": format!("n{i}"), "labels": labels } }),
            )
            .await
            .good();
    }
    let names = |list: &Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = admin.get(&format!("{PROJECTS}?limit=3")).await.good();
    assert_eq!(names(&first), ["default", "n0", "n1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 5);
    // What happens between two pages is not seen.
    admin.delete(&format!("{PROJECTS}/n3")).await.good();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = admin.get(&format!("{PROJECTS}?limit=3&continue={token}")).await.good();
    assert_eq!(names(&second), ["n2", "n3", "n4"]);
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let token = second["metadata"]["continue"].as_str().unwrap();
    let third = admin.get(&format!("{PROJECTS}?limit=3&continue={token}")).await.good();
    assert_eq!(names(&third), ["n5", "n6"]);
    assert!(third["metadata"].get("continue").is_none());
    assert_eq!(
        names(
            &admin
                .get(&format!("{PROJECTS}?labelSelector=parity%3Dodd"))
                .await
                .good()
        ),
        ["n1", "n5"]
    );
    let one = admin
        .get(&format!("{PROJECTS}?limit=1&labelSelector=parity%3Dodd"))
        .await
        .good();
    assert_eq!(names(&one), ["n1"]);
    let token = one["metadata"]["continue"].as_str().unwrap();
    assert_eq!(
        names(
            &admin
                .get(&format!(
                    "{PROJECTS}?limit=9&labelSelector=parity%3Dodd&continue={token}"
                ))
                .await
                .good()
        ),
        ["n5"]
    );
    assert_eq!(
        names(
            &admin
                .get(&format!("{PROJECTS}?fieldSelector=metadata.name%3Dn2"))
                .await
                .good()
        ),
        ["n2"]
    );
    let floor = first["metadata"]["resourceVersion"].as_str().unwrap();
    assert_eq!(
        names(
            &admin
                .get(&format!(
                    "{PROJECTS}?resourceVersion={floor}&resourceVersionMatch=Exact"
                ))
                .await
                .good()
        )
        .len(),
        8
    );
    let future = admin
        .get(&format!("{PROJECTS}?resourceVersion=99999999"))
        .await
        .fails(504);
    assert_eq!(future["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    let revision: i64 = third["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    world
        .objects
        .store()
        .compact(&hanse_state::Access::registry(), revision + 1)
        .await
        .unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    assert_eq!(
        admin
            .get(&format!("{PROJECTS}?limit=3&continue={token}"))
            .await
            .fails(410)["reason"],
        "Expired"
    );
}

#[tokio::test]
async fn forms_of_answers() {
    let world = World::start().await;
    let admin = world.admin();
    let accept = async |path: &str, form: &str| admin.send(admin.request("GET", path, &[("accept", form)], "")).await;
    let table = accept(
        PROJECTS,
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    )
    .await
    .good();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "default");
    let partial = accept(
        PROJECTS,
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
    )
    .await
    .good();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    accept(PROJECTS, "application/vnd.kubernetes.protobuf").await.fails(406);
    let discovery = accept(
        "/kubernetes/management/apis",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
    )
    .await;
    assert!(
        discovery.headers["content-type"]
            .to_str()
            .unwrap()
            .contains("apidiscovery")
    );
    assert_eq!(discovery.good()["kind"], "APIGroupDiscoveryList");
    assert_eq!(
        admin.get("/kubernetes/management/apis").await.good()["kind"],
        "APIGroupList"
    );
    assert_eq!(admin.get("/kubernetes/management/version").await.good()["minor"], "36");
    let namespace = admin
        .get("/kubernetes/management/api/v1/namespaces/p-default")
        .await
        .good();
    assert_eq!(namespace["status"]["phase"], "Active");
    assert_eq!(
        admin
            .get("/kubernetes/management/api/v1/namespaces/default/events")
            .await
            .good()["items"],
        json!([])
    );
    let extended = admin.get(&format!("{VCIS}/demo?extended=true")).await.good();
    assert_eq!(extended["status"]["canUse"], true);
    let clusters = admin.get(&format!("{PROJECTS}/default/clusters")).await.good();
    assert_eq!(clusters["clusters"][0]["metadata"]["name"], "eu");
    let h2 = admin.send_h2(admin.request("GET", PROJECTS, &[], "")).await.good();
    assert_eq!(h2["kind"], "ProjectList");
}

#[tokio::test]
async fn enrolment_tokens_are_shown_once_and_stored_hashed() {
    let world = World::start().await;
    let admin = world.admin();
    let made = admin
        .post(&format!("{API}/clusters/eu/enrolmenttoken"), &json!({}))
        .await
        .good();
    let token = made["status"]["token"].as_str().unwrap();
    let parts: Vec<&str> = token.split('.').collect();
    let [prefix, id, secret, pin] = parts[..] else {
        panic!("{token}")
    };
    assert_eq!((prefix, pin), ("het1", "c".repeat(64).as_str()));
    let key = hanse_state::objects::ObjectKey::new(&hanse_api::kinds::ENROLMENT_TOKENS, "", id);
    let stored = world.objects.get(&key).await.unwrap().unwrap();
    let stored: Value = serde_json::from_slice(&stored.value).unwrap();
    assert_eq!(stored["spec"]["cluster"], "eu");
    assert_eq!(
        stored["spec"]["secretSha256"],
        hanse_runtime::pki::sha256_hex(secret.as_bytes())
    );
    assert!(!stored.to_string().contains(secret));
    admin
        .post(&format!("{API}/clusters/none/enrolmenttoken"), &json!({}))
        .await
        .fails(404);
    admin
        .post(
            &format!("{API}/clusters/eu/enrolmenttoken"),
            &json!({ "spec": { "ttlSeconds": -1 } }),
        )
        .await
        .fails(422);
    world
        .bob()
        .post(&format!("{API}/clusters/eu/enrolmenttoken"), &json!({}))
        .await
        .fails(403);
}

struct OneServer;

#[async_trait::async_trait]
impl hanse_gateway::ClusterStatus for OneServer {
    async fn servers(&self) -> Vec<hanse_api::resources::Server> {
        let mut server = hanse_api::resources::Server::default();
        server.metadata.name = "eu-1".into();
        server.status.online = true;
        server.status.groups.push(hanse_api::resources::GroupProgress {
            role: "Leader".into(),
            term: 3,
            ..Default::default()
        });
        vec![server]
    }

    fn awaits_agents(&self) -> bool {
        false
    }

    async fn remove(&self, _objects: &Objects, name: &str, id: u64) -> Result<(), hanse_gateway::ChangeFault> {
        let refusal = format!("{name} has the id {id} and is the last");
        Err(hanse_gateway::ChangeFault::Refused(refusal))
    }

    async fn relocate(&self, id: u64, address: &str) -> Result<(), hanse_gateway::ChangeFault> {
        match (id, address) {
            (9, "new:1") => Ok(()),
            other => Err(hanse_gateway::ChangeFault::Refused(format!("{other:?} is taken"))),
        }
    }
}

#[tokio::test]
async fn servers_show_how_they_are_now() {
    let world = World::with(|parts| parts.cluster_status = std::sync::Arc::new(OneServer)).await;
    for name in ["eu-1", "us-1"] {
        world
            .put(&hanse_api::kinds::SERVERS, "", name, json!({ "id": 1, "region": "eu" }))
            .await;
    }
    let path = "/kubernetes/management/apis/hanse.dev/v1/servers";
    let list = world.admin().get(path).await.good();
    assert_eq!(list["items"][0]["status"]["groups"][0]["role"], "Leader");
    assert_eq!(list["items"][1]["status"]["online"], false, "it did not answer");
    world
        .admin()
        .merge(&format!("{path}/eu-1"), &json!({ "spec": { "region": "us" } }))
        .await
        .fails(405);
}

#[tokio::test]
async fn a_server_is_deleted_only_by_leaving_the_members() {
    let world = World::with(|parts| parts.cluster_status = std::sync::Arc::new(OneServer)).await;
    let spec = json!({ "id": 9, "region": "eu" });
    world.put(&hanse_api::kinds::SERVERS, "", "eu-1", spec).await;
    let path = "/kubernetes/management/apis/hanse.dev/v1/servers/eu-1";
    world.bob().delete(path).await.fails(403);
    let refused = world.admin().delete(path).await;
    let text = refused.fails(409).to_string();
    assert!(text.contains("eu-1 has the id 9 and is the last"), "{text}");
    world.admin().get(path).await.good();
    let place = format!("{path}/move");
    let to = |address: &str| json!({ "spec": { "raft": address } });
    world.admin().post(&place, &to("new:1")).await.good();
    world.admin().post(&place, &to("old:1")).await.fails(409);
    world.admin().post(&place, &to("new")).await.fails(422);
    world.bob().post(&place, &to("new:1")).await.fails(403);
    // Who changes who the servers are is in the trail before anything of it happens, as it may be the end of a server.
    let all = world.admin().get(&format!("{API}/events")).await.good();
    let begun = |event: &&Value| {
        event["status"]["stage"] == "RequestReceived" && event["status"]["user"]["username"] == "admin"
    };
    let of = |event: &Value| {
        format!(
            "{} {}",
            event["status"]["verb"], event["status"]["objectRef"]["subresource"]
        )
    };
    let seen: Vec<String> = all["items"].as_array().unwrap().iter().filter(begun).map(of).collect();
    assert_eq!(seen, [r#""delete" null"#, r#""create" "move""#, r#""create" "move""#]);
}

#[tokio::test]
async fn join_tokens_are_for_administrators_shown_once_and_stored_hashed() {
    let world = World::start().await;
    let path = "/kubernetes/management/apis/hanse.dev/v1/regions/mars/jointoken";
    let admin = world.admin();
    let body = json!({ "spec": { "ttlSeconds": 60 } });
    let answer = admin.post(path, &body).await.good();
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    let [form, id, secret, pin] = token.split('.').collect::<Vec<_>>()[..] else {
        panic!("{token}")
    };
    assert_eq!((form, pin.len()), ("het1", 64));
    let key = hanse_state::objects::ObjectKey::new(&hanse_api::kinds::JOIN_TOKENS, "", id);
    let stored = world.objects.get(&key).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&stored.value);
    assert!(text.contains("\"region\":\"mars\"") && !text.contains(secret), "{text}");
    admin
        .post(path, &json!({ "spec": { "ttlSeconds": 10_000_000 } }))
        .await
        .fails(422);
    admin.get(path).await.fails(405);
    world.bob().post(path, &body).await.fails(403);
    let listed = "/kubernetes/management/apis/hanse.dev/v1/jointokens";
    admin.get(listed).await.fails(404);
}

/// A server that died while it decided about a project's deletion does not block the project for good.
#[tokio::test]
async fn a_guard_that_was_left_behind_expires() {
    let world = World::start().await;
    let admin = world.admin();
    let guards = hanse_api::kinds::KindName {
        group: "hanse.dev",
        version: "v1",
        kind: "ProjectGuard",
        plural: "projectguards",
        namespaced: false,
    };
    let key = hanse_state::objects::ObjectKey::new(&guards, "", "default");
    let create = |at: i64| hanse_state::objects::Op::Create {
        key: key.clone(),
        value: json!({ "at": at }).to_string().into(),
    };
    world.objects.commit(vec![create(i64::MAX)]).await.unwrap();
    assert!(
        admin.post(VCIS, &named("x")).await.fails(409)["message"]
            .as_str()
            .unwrap()
            .contains("being deleted")
    );
    world.remove(&guards, "", "default").await;
    world.objects.commit(vec![create(0)]).await.unwrap();
    admin.post(VCIS, &named("x")).await.good();
    assert!(world.objects.get(&key).await.unwrap().is_none());
}
