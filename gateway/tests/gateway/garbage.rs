//! Objects go with their owners: the collector of the running gateway beside that of Kubernetes, and kubectl's cascades.

use crate::kubectl::Kubectl;
use crate::oracle::{Oracle, PROJECT, definition};
use crate::world::{API, Client, PATIENCE, World};
use hanse_api::kinds::{KindName, PROJECTS, TEAMS, VIRTUAL_CLUSTER_INSTANCES};
use hanse_gateway::access_key;
use hanse_runtime::rng::{Rng, SeededRng};
use hanse_state::objects::{ObjectKey, Op};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const HOLD: &str = "example.com/hold";

/// What remains of an object: its owners, its finalizers, and whether it is on its way out.
type Rest = BTreeMap<String, (BTreeSet<String>, Vec<String>, bool)>;

/// Projects of one API server that belong to the test.
struct Side {
    client: Client,
    path: String,
}

impl Side {
    fn ours(world: &World) -> Self {
        Self {
            client: world.admin(),
            path: format!("{API}/projects"),
        }
    }

    async fn uid(&self, name: &str) -> Value {
        let found = self.client.get(&format!("{}/{name}", self.path)).await.good();
        found["metadata"]["uid"].clone()
    }

    /// References; a name with `!` blocks, `?` has a uid that nobody has.
    async fn references(&self, owners: &[&str]) -> Value {
        let mut references = Vec::new();
        for owner in owners {
            let name = owner.trim_end_matches(['!', '?']);
            let uid = if owner.ends_with('?') {
                format!("nobody-{name}").into()
            } else {
                self.uid(name).await
            };
            references.push(json!({
                "apiVersion": "management.loft.sh/v1", "kind": "Project", "name": name, "uid": uid,
                "blockOwnerDeletion": owner.ends_with('!'),
            }));
        }
        references.into()
    }

    async fn make(&self, name: &str, owners: &[&str], finalizers: &[&str]) {
        let body = json!({
            "apiVersion": "management.loft.sh/v1", "kind": "Project",
            "metadata": {
                "name": name, "labels": { "t": "gc" }, "finalizers": finalizers,
                "ownerReferences": self.references(owners).await,
            },
            "spec": {},
        });
        self.client.post(&self.path, &body).await.good();
    }

    async fn own(&self, name: &str, owners: &[&str]) {
        let patch = json!({ "metadata": { "ownerReferences": self.references(owners).await } });
        self.client.merge(&format!("{}/{name}", self.path), &patch).await.good();
    }

    async fn delete(&self, name: &str, policy: &str) {
        let path = format!("{}/{name}?propagationPolicy={policy}", self.path);
        self.client.delete(&path).await.good();
    }

    async fn rest(&self) -> Rest {
        let list = self
            .client
            .get(&format!("{}?labelSelector=t%3Dgc", self.path))
            .await
            .good();
        let mut rest = Rest::new();
        for item in list["items"].as_array().unwrap() {
            let meta = &item["metadata"];
            let texts = |list: &Value, key: &str| {
                let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
                let text = |v: &Value| if key.is_empty() { v.clone() } else { v[key].clone() };
                items
                    .iter()
                    .map(|v| text(v).as_str().unwrap().to_owned())
                    .collect::<Vec<_>>()
            };
            let owners = texts(&meta["ownerReferences"], "name").into_iter().collect();
            let state = (
                owners,
                texts(&meta["finalizers"], ""),
                meta["deletionTimestamp"].is_string(),
            );
            rest.insert(meta["name"].as_str().unwrap().to_owned(), state);
        }
        rest
    }

    /// Waits until just this remains.
    async fn settles(&self, want: &Rest, what: &str) {
        let started = Instant::now();
        loop {
            let rest = self.rest().await;
            if rest == *want {
                return;
            }
            assert!(started.elapsed() < PATIENCE * 6, "{what}: {rest:#?}\nwanted {want:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn rest(items: &[(&str, &[&str], &[&str], bool)]) -> Rest {
    let owned = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
    let item = |(name, owners, finalizers, dying): &(&str, &[&str], &[&str], bool)| {
        (
            (*name).to_owned(),
            (owned(owners).into_iter().collect(), owned(finalizers), *dying),
        )
    };
    items.iter().map(item).collect()
}

/// Every rule once; gives what remains.
async fn cases(side: &Side) -> Rest {
    // A chain in the background, and one in the foreground.
    side.make("a", &[], &[]).await;
    side.make("b", &["a"], &[]).await;
    side.make("c", &["b!"], &[]).await;
    side.delete("a", "Background").await;
    side.make("f", &[], &[]).await;
    side.make("g", &["f!"], &[]).await;
    side.make("h", &["g!"], &[]).await;
    side.delete("f", "Foreground").await;
    // Orphans stay and forget.
    side.make("d", &[], &[]).await;
    side.make("e", &["d!"], &[]).await;
    side.delete("d", "Orphan").await;
    // One of two owners, and one of two that waits.
    side.make("i", &[], &[]).await;
    side.make("j", &[], &[]).await;
    side.make("k", &["i", "j"], &[]).await;
    side.delete("i", "Background").await;
    side.make("u", &[], &[]).await;
    side.make("w", &["u!", "j"], &[]).await;
    side.delete("u", "Foreground").await;
    // Owners that never were.
    side.make("l", &["nobody?"], &[]).await;
    side.make("m", &["j?"], &[]).await;
    // A circle.
    side.make("n", &[], &[]).await;
    side.make("o", &["n!"], &[]).await;
    side.own("n", &["o!"]).await;
    side.delete("n", "Foreground").await;
    // A dependent that somebody else holds: waited for, or not.
    side.make("q", &[], &[]).await;
    side.make("r", &["q!"], &[HOLD]).await;
    side.delete("q", "Foreground").await;
    side.make("s", &[], &[]).await;
    side.make("t", &["s"], &[HOLD]).await;
    side.delete("s", "Foreground").await;
    rest(&[
        ("e", &[], &[], false),
        ("j", &[], &[], false),
        ("k", &["j"], &[], false),
        ("q", &[], &["foregroundDeletion"], true),
        ("r", &["q"], &[HOLD], true),
        ("t", &["s"], &[HOLD], true),
        ("w", &["j"], &[], false),
    ])
}

/// What remains of a forest after one deletion, by the rule alone.
fn model(left: &mut Rest, name: &str, policy: &str) {
    left.remove(name);
    if policy == "Orphan" {
        left.values_mut().for_each(|(owners, ..)| {
            owners.remove(name);
        });
    }
    loop {
        let there: BTreeSet<String> = left.keys().cloned().collect();
        let before = left.len();
        left.retain(|_, (owners, _, dying)| *dying || owners.is_empty() || owners.iter().any(|o| there.contains(o)));
        if left.len() == before {
            let living = left.values_mut().filter(|(.., dying)| !dying);
            living.for_each(|(owners, ..)| owners.retain(|o| there.contains(o)));
            return;
        }
    }
}

/// Forests by chance, each deletion after the one before has settled.
async fn forests(side: &Side, seed: u64, what: &str) {
    let rng = SeededRng::new(seed);
    let below = |n: usize| {
        let mut byte = [0];
        rng.fill(&mut byte);
        usize::from(byte[0]) % n
    };
    let mut left = side.rest().await;
    let names: Vec<String> = (0..12).map(|n| format!("x{seed}-{n}")).collect();
    for (at, name) in names.iter().enumerate() {
        let mut owners = BTreeSet::new();
        for _ in 0..below(3).min(at) {
            owners.insert(names[below(at)].clone());
        }
        let blocking: Vec<String> = owners
            .iter()
            .map(|o| if below(2) == 0 { format!("{o}!") } else { o.clone() })
            .collect();
        let blocking: Vec<&str> = blocking.iter().map(String::as_str).collect();
        side.make(name, &blocking, &[]).await;
        left.insert(name.clone(), (owners, Vec::new(), false));
    }
    for _ in 0..5 {
        let mine: Vec<String> = left
            .keys()
            .filter(|n| n.starts_with(&format!("x{seed}-")))
            .cloned()
            .collect();
        let Some(name) = mine.get(below(mine.len().max(1))) else {
            return;
        };
        let policy = ["Background", "Foreground", "Orphan"][below(3)];
        side.delete(name, policy).await;
        model(&mut left, name, policy);
        side.settles(&left, &format!("{what}: forest {seed}, {policy} of {name}"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_go_with_their_owners_as_in_kubernetes() {
    let world = World::start().await;
    let ours = Side::ours(&world);
    let want = cases(&ours).await;
    ours.settles(&want, "ours").await;
    for seed in 1..5 {
        forests(&ours, seed, "ours").await;
    }
    let Some(mut oracle) = Oracle::start(vec![definition(&ours.client, &PROJECT).await]).await else {
        return;
    };
    if oracle.collect().is_none() {
        eprintln!("left out: there is no kube-controller-manager");
        return;
    }
    let theirs = Side {
        client: oracle.client.clone(),
        path: "/apis/management.loft.sh/v1/projects".into(),
    };
    let want = cases(&theirs).await;
    theirs
        .settles(&want, &format!("kube-controller-manager: {}", oracle.manager_log()))
        .await;
    forests(&theirs, 1, "kube-controller-manager").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_cascades() {
    let world = World::start().await;
    let Some(kubectl) = Kubectl::new(&world, &access_key("admin", "admin-secret")) else {
        return;
    };
    let ours = Side::ours(&world);
    for (policy, wanted) in [("foreground", "gone"), ("background", "goes"), ("orphan", "stays")] {
        let (owner, dependent) = (format!("{policy}-owner"), format!("{policy}-dependent"));
        ours.make(&owner, &[], &[]).await;
        ours.make(&dependent, &[&format!("{owner}!")], &[]).await;
        kubectl
            .good(&["delete", "project", &owner, &format!("--cascade={policy}")])
            .await;
        let dependent = format!("project/{dependent}");
        match wanted {
            // kubectl waited for the owner, which waited for its dependent.
            "gone" => assert!(kubectl.bad(&["get", &dependent]).await.contains("NotFound")),
            "goes" => {
                kubectl
                    .good(&["wait", "--for=delete", &dependent, "--timeout=60s"])
                    .await;
            }
            _ => {
                let owners = kubectl
                    .good(&["get", &dependent, "-o", "jsonpath={.metadata.ownerReferences}"])
                    .await;
                assert_eq!(owners, "", "forgotten before the owner went");
            }
        }
    }
}

/// A tenant cluster with a secret that goes with it, one that is shared with another, and one of another project.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_of_another_kind_are_found_in_the_namespace_of_their_dependent() {
    let world = World::start().await;
    let admin = world.admin();
    admin
        .post(&format!("{API}/projects"), &json!({ "metadata": { "name": "other" } }))
        .await
        .good();
    let demo = admin
        .get(&format!("{API}/namespaces/p-default/virtualclusterinstances/demo"))
        .await
        .good();
    let of_demo = json!({
        "apiVersion": "management.loft.sh/v1", "kind": "VirtualClusterInstance", "name": "demo",
        "uid": demo["metadata"]["uid"],
    });
    let project = admin.get(&format!("{API}/projects/default")).await.good();
    let of_project = json!({
        "apiVersion": "v1", "kind": "Namespace", "name": "p-default", "uid": project["metadata"]["uid"],
    });
    let unknown = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": "x" });
    let make = async |namespace: &str, name: &str, owners: Value| {
        let body = json!({
            "metadata": { "name": name, "ownerReferences": owners }, "spec": { "data": { "password": "czNjcjN0" } },
        });
        admin
            .post(&format!("{API}/namespaces/{namespace}/projectsecrets"), &body)
            .await
            .good();
    };
    make("p-default", "goes", json!([of_demo])).await;
    make("p-default", "shared", json!([of_demo, of_project])).await;
    make("p-default", "foreign", json!([of_demo, unknown])).await;
    make("p-other", "elsewhere", json!([of_demo])).await;
    let path = format!("{API}/namespaces/p-default/virtualclusterinstances/demo");
    admin.delete(&path).await.good();
    let left = async || {
        let list = admin.get(&format!("{API}/projectsecrets")).await.good();
        let brief = |item: &Value| {
            let owners = item["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len);
            format!(
                "{} {owners} {}",
                item["metadata"]["name"].as_str().unwrap(),
                item["spec"]["data"]["password"]
            )
        };
        list["items"].as_array().unwrap().iter().map(brief).collect::<Vec<_>>()
    };
    let want = [r#"foreign 2 "czNjcjN0""#, r#"shared 1 "czNjcjN0""#];
    let started = Instant::now();
    while left().await != want {
        assert!(started.elapsed() < PATIENCE * 3, "{:?}", left().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What was written while nobody collected is found when a server begins to lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_finds_what_was_left() {
    let world = World::over(async |objects| {
        let object = |kind: &KindName, namespace: &str, owner: Value| {
            let metadata = json!({
                "name": "left", "namespace": namespace, "uid": format!("uid-{namespace}"), "ownerReferences": [owner],
            });
            let value = json!({ "metadata": metadata, "spec": {} }).to_string().into();
            let key = ObjectKey::new(kind, namespace, "left");
            Op::Create { key, value }
        };
        let owner = |kind: &str, name: &str, uid: &str| {
            json!({ "apiVersion": "management.loft.sh/v1", "kind": kind, "name": name, "uid": uid })
        };
        let ops = vec![
            object(&TEAMS, "", owner("Project", "gone", "nobody")),
            object(&VIRTUAL_CLUSTER_INSTANCES, "p-b", owner("ProjectSecret", "left", "nobody")),
            object(&PROJECTS, "", owner("Project", "left", "uid-")),
        ];
        objects.commit(ops).await.unwrap();
    })
    .await;
    let started = Instant::now();
    for (kind, namespace) in [(&TEAMS, ""), (&VIRTUAL_CLUSTER_INSTANCES, "p-b")] {
        let key = ObjectKey::new(kind, namespace, "left");
        while world.objects.get(&key).await.unwrap().is_some() {
            assert!(started.elapsed() < PATIENCE * 3, "{key} is collected");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let own = ObjectKey::new(&PROJECTS, "", "left");
    assert!(world.objects.get(&own).await.unwrap().is_some(), "its own owner");
}

/// Whoever may change an object but not delete it cannot have it collected, nor keep another's object from going.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn references_ask_for_the_rights_that_they_give() {
    let world = World::start().await;
    let bob = world.bob();
    let access = json!([{ "verbs": ["get", "update", "patch"], "subresources": [], "users": ["bob"] }]);
    let spec = json!({ "clusterRef": { "cluster": "eu" }, "access": access });
    world.put(&VIRTUAL_CLUSTER_INSTANCES, "p-default", "demo", spec).await;
    world
        .put(
            &VIRTUAL_CLUSTER_INSTANCES,
            "p-default",
            "owner",
            json!({ "owner": { "user": "admin" } }),
        )
        .await;
    let path = format!("{API}/namespaces/p-default/virtualclusterinstances/demo");
    let reference = |block: bool| {
        let owner = json!({
            "apiVersion": "management.loft.sh/v1", "kind": "VirtualClusterInstance", "name": "owner", "uid": "uid-owner",
            "blockOwnerDeletion": block,
        });
        json!({ "metadata": { "ownerReferences": [owner] } })
    };
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    bob.merge(&path, &label).await.good();
    let refused = bob.merge(&path, &reference(false)).await.fails(403);
    assert!(
        refused["message"].as_str().unwrap().contains("cannot delete"),
        "{refused}"
    );
    let access = json!([{ "verbs": ["*"], "subresources": [], "users": ["bob"] }]);
    let spec = json!({ "clusterRef": { "cluster": "eu" }, "access": access });
    world.put(&VIRTUAL_CLUSTER_INSTANCES, "p-default", "demo", spec).await;
    bob.merge(&path, &reference(false)).await.good();
    let refused = bob.merge(&path, &reference(true)).await.fails(403);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("virtualclusterinstances/finalizers"),
        "{refused}"
    );
}
