//! Generated sequences of requests for every kind that clients write, to this gateway and to a real kube-apiserver that serves
//! the kinds as custom resources. Answers and watches must be equal but for uids, times and revisions; what differs on
//! purpose is told by [`crate::differences`], rule by rule, and described by the same names in
//! `docs/design/0018-differences.md`. Anything else fails.
//!
//! `HANSE_SEED` chooses the sequences, `HANSE_FUZZ_CASES` how many requests each kind gets.

use crate::differences::{Differences, as_clients_write, even_out};
use crate::oracle::{Oracle, PROJECT, Served, definition, normal, strip};
use crate::world::{Answer, Client, World};
use serde_json::{Value, json};

const MERGE: &str = "application/merge-patch+json";
const PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const JSON: &str = "application/json";
/// What the world begins with, and the real one gets as well.
pub const SEEDED: [(&str, &str); 3] = [("projects", "default"), ("users", "admin"), ("users", "bob")];
const NAMES: [&str; 3] = ["a", "b", "c"];
/// Requests for each kind unless `HANSE_FUZZ_CASES` says otherwise.
const CASES: u64 = 60;
/// The sequences, unless `HANSE_SEED` says otherwise.
const SEED: u64 = 1;

/// Whole specs of a kind, so that nothing has to be filled in.
fn kinds() -> Vec<(Served, Vec<Value>)> {
    let loft = |plural, kind, has_status| Served {
        plural,
        kind,
        has_status,
        ..PROJECT
    };
    let inside = |plural, kind, has_status| Served {
        namespaced: true,
        ..loft(plural, kind, has_status)
    };
    let rules = |verb: &str| json!({ "rules": [{ "apiGroups": ["x"], "resources": ["y"], "verbs": [verb] }] });
    let owner = json!({ "user": "admin" });
    let host = |name: &str| json!({ "virtualCluster": name });
    let region = Served {
        group: "hanse.dev",
        ..loft("regions", "Region", true)
    };
    vec![
        (
            PROJECT,
            vec![
                json!({ "displayName": "A" }),
                json!({ "displayName": "B", "allowedClusters": [{ "name": "*" }], "description": "d" }),
            ],
        ),
        (
            loft("users", "User", false),
            vec![
                json!({ "username": "u", "displayName": "U" }),
                json!({ "username": "v", "email": "v@example.com", "groups": ["g"], "disabled": true }),
            ],
        ),
        (
            loft("teams", "Team", false),
            vec![
                json!({ "displayName": "T", "users": ["ann"] }),
                json!({ "groups": ["g", "h"] }),
            ],
        ),
        (
            loft("clusters", "Cluster", true),
            vec![
                json!({ "networkPeer": true }),
                json!({ "networkPeer": true, "displayName": "C" }),
            ],
        ),
        (
            loft("clusterroletemplates", "ClusterRoleTemplate", false),
            vec![
                json!({ "management": true, "clusterRoleTemplate": rules("get") }),
                json!({ "displayName": "R", "clusterRoleTemplate": rules("list") }),
            ],
        ),
        (
            inside("virtualclusterinstances", "VirtualClusterInstance", true),
            vec![
                json!({ "owner": owner, "clusterRef": host("x") }),
                json!({ "owner": owner, "clusterRef": host("x"), "displayName": "V", "parameters": "p: 1" }),
            ],
        ),
        (
            inside("projectsecrets", "ProjectSecret", false),
            vec![
                json!({ "owner": owner, "data": { "a": "YQ==" } }),
                json!({ "owner": owner, "displayName": "S", "data": { "a": "Yg==", "b": "YQ==" } }),
            ],
        ),
        (
            region,
            vec![json!({ "displayName": "N" }), json!({ "displayName": "S" })],
        ),
    ]
}

/// Chance that can be repeated (Marsaglia's xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        let at = self.below(all.len() as u64);
        all[usize::try_from(at).unwrap()].clone()
    }
}

#[derive(Debug)]
pub struct Request {
    pub method: &'static str,
    pub rest: String,
    pub media: &'static str,
    pub body: String,
}

fn request(method: &'static str, rest: impl Into<String>, media: &'static str, body: impl ToString) -> Request {
    Request {
        method,
        rest: rest.into(),
        media,
        body: body.to_string(),
    }
}

struct Script<'a> {
    served: Served,
    specs: &'a [Value],
    dice: Dice,
}

impl Script<'_> {
    fn object(&mut self, name: &str) -> Value {
        let mut metadata = json!({ "name": name });
        if self.dice.below(2) == 0 {
            metadata["labels"] = json!({ "a": self.dice.one_of(&["1", "2"]) });
        }
        // A tenant cluster has the finalizer of what takes it down.
        if self.served.plural == "virtualclusterinstances" {
            metadata["finalizers"] = json!(["hanse.dev/tenant"]);
        } else if self.dice.below(4) == 0 {
            metadata["finalizers"] = json!(["example.com/hold"]);
        }
        let api = format!("{}/v1", self.served.group);
        json!({ "apiVersion": api, "kind": self.served.kind, "metadata": metadata, "spec": self.dice.one_of(self.specs) })
    }

    fn options(&mut self) -> String {
        let more = [
            "",
            "",
            "",
            "&dryRun=All",
            "&fieldValidation=Strict",
            "&fieldValidation=Mild",
            "&dryRun=Some",
        ];
        format!(
            "?fieldManager={}{}",
            self.dice.one_of(&["m", "n"]),
            self.dice.one_of(&more)
        )
    }

    fn next(&mut self) -> Request {
        let name = self.dice.one_of(&NAMES);
        let item = format!("/{name}");
        match self.dice.below(14) {
            0..=2 => {
                let options = self.options();
                request("POST", options, JSON, self.object(name))
            }
            3 => self.update(name),
            4 | 5 => self.merge(&item),
            6 => self.operations(&item),
            7 | 8 => self.apply(name),
            9 => self.delete(&item),
            10 => self.read(&item),
            11 => self.status(name),
            _ => self.bad(name),
        }
    }

    fn update(&mut self, name: &str) -> Request {
        let mut object = self.object(name);
        let revision = self.dice.one_of(&["revision-of-", "revision-of-", "1", "0", ""]);
        let revision = revision.replace("-of-", &format!("-of-{name}"));
        if !revision.is_empty() {
            object["metadata"]["resourceVersion"] = revision.into();
        }
        if self.dice.below(8) == 0 {
            object["metadata"]["uid"] = "other".into();
        }
        let options = self.options();
        request("PUT", format!("/{name}{options}"), JSON, object)
    }

    fn merge(&mut self, item: &str) -> Request {
        let patches = [
            json!({ "metadata": { "labels": { "a": "3" } } }),
            json!({ "metadata": { "labels": null, "annotations": { "x": "y" } } }),
            json!({ "metadata": { "finalizers": null } }),
            json!({ "metadata": { "name": "other" } }),
            json!({ "metadata": { "uid": "other" } }),
            json!({ "metadata": { "resourceVersion": "1" } }),
            json!({ "spec": self.dice.one_of(self.specs) }),
            json!({ "spec": { "displayName": "P" } }),
            json!({}),
        ];
        let options = self.options();
        request("PATCH", format!("{item}{options}"), MERGE, self.dice.one_of(&patches))
    }

    fn operations(&mut self, item: &str) -> Request {
        let patches = [
            json!([{ "op": "add", "path": "/metadata/annotations", "value": { "k": "v" } }]),
            json!([{ "op": "replace", "path": "/spec/displayName", "value": "J" }]),
            json!([{ "op": "add", "path": "/spec/displayName", "value": "K" }]),
            json!([{ "op": "remove", "path": "/metadata/finalizers" }]),
            json!([{ "op": "test", "path": "/metadata/name", "value": "a" }]),
            json!([]),
        ];
        let options = self.options();
        request("PATCH", format!("{item}{options}"), PATCH, self.dice.one_of(&patches))
    }

    fn apply(&mut self, name: &str) -> Request {
        let object = self.object(name);
        let manager = self.dice.one_of(&["ann", "bob", "m"]);
        let force = self.dice.one_of(&["", "&force=true", "&force=false"]);
        request("PATCH", format!("/{name}?fieldManager={manager}{force}"), APPLY, object)
    }

    /// Of kinds that have none, to an endpoint that is not there.
    fn status(&mut self, name: &str) -> Request {
        let ready = |status: &str| json!({ "type": "Ready", "status": status, "reason": "R", "message": "m" });
        let status = json!({ "conditions": [ready(self.dice.one_of(&["True", "False"]))] });
        let mut object = self.object(name);
        object["status"] = status.clone();
        let path = format!("/{name}/status?fieldManager={}", self.dice.one_of(&["s", "t"]));
        match self.dice.below(4) {
            0 => request("PATCH", path, APPLY, object),
            1 => {
                object["metadata"]["resourceVersion"] = format!("revision-of-{name}").into();
                request("PUT", path, JSON, object)
            }
            2 => request("GET", path, JSON, ""),
            _ => request(
                "PATCH",
                path,
                MERGE,
                json!({ "status": status, "metadata": { "labels": { "a": "9" } } }),
            ),
        }
    }

    fn delete(&mut self, item: &str) -> Request {
        let options = [
            json!({}),
            json!({ "preconditions": { "uid": "nobody" } }),
            json!({ "preconditions": { "resourceVersion": "1" } }),
            json!({ "dryRun": ["All"] }),
            json!({ "dryRun": ["Some"] }),
            json!({ "propagationPolicy": "Background" }),
            json!({ "propagationPolicy": "Sometimes" }),
            json!({ "gracePeriodSeconds": 0 }),
        ];
        let mut body = self.dice.one_of(&options);
        body["apiVersion"] = "v1".into();
        body["kind"] = "DeleteOptions".into();
        let many = format!("?labelSelector={}", self.dice.one_of(&["a%3D1", "a%20in%20(2,3)", "b"]));
        let place = self.dice.one_of(&[item, item, item, &many]);
        // Many users are not deleted at once: that is no verb of theirs.
        let place = if self.served.plural == "users" { item } else { place };
        request("DELETE", place.to_owned(), JSON, body)
    }

    fn read(&mut self, item: &str) -> Request {
        let lists = [
            "?labelSelector=a%3D1",
            "?labelSelector=a%21%3D1",
            "?labelSelector=a%20in%20(1,2)",
            "?labelSelector=%21a",
            "?labelSelector=a%3D%3D%3D1",
            "?labelSelector=a%20in%20(",
            "?fieldSelector=metadata.name%3Da",
            "?fieldSelector=metadata.name%21%3Da",
            "?fieldSelector=spec.nothing%3Da",
            "?limit=x",
            "?resourceVersion=x",
            "?resourceVersionMatch=Exact",
        ];
        let list = self.dice.one_of(&lists).to_owned();
        request("GET", self.dice.one_of(&[item.to_owned(), list]), JSON, "")
    }

    fn bad(&mut self, name: &str) -> Request {
        let mut object = self.object(name);
        let faults = [
            ("/apiVersion", json!("x/v1")),
            ("/kind", json!("Other")),
            ("/metadata/name", json!("UPPER")),
            ("/metadata/labels", json!({ "a b": "c" })),
            ("/metadata/labels", json!({ "a": "-" })),
            ("/metadata/annotations", json!({ "a/b/c": "d" })),
            ("/metadata/resourceVersion", json!("5")),
            ("/metadata/finalizers", json!(["no slash!"])),
            ("/metadata/ownerReferences", json!([{ "kind": "X" }])),
        ];
        let (pointer, value) = self.dice.one_of(&faults);
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[field] = value;
        match self.dice.below(8) {
            0 => request("POST", "?fieldManager=m", JSON, "{"),
            4 => {
                let mut untyped = self.object(name);
                untyped.as_object_mut().unwrap().remove("kind");
                request("POST", "?fieldManager=m&dryRun=All", JSON, untyped)
            }
            5 => request("PATCH", format!("/{name}?force=true"), MERGE, "{}"),
            1 => request("PATCH", format!("/{name}"), "text/plain", "{}"),
            2 => request("PATCH", format!("/{name}"), APPLY, object),
            3 => request("PUT", format!("/{name}?fieldManager=m"), JSON, object),
            _ => request("POST", "?fieldManager=m", JSON, object),
        }
    }
}

/// One side, and where a kind is there.
struct Side<'a> {
    client: &'a Client,
    path: String,
}

impl Side<'_> {
    async fn send(&self, request: &Request) -> Answer {
        let mut body = request.body.clone();
        for name in NAMES {
            let word = format!("revision-of-{name}");
            if body.contains(&word) {
                let there = self.client.get(&format!("{}/{name}", self.path)).await.json();
                let revision = there["metadata"]["resourceVersion"].as_str().unwrap_or("1");
                body = body.replace(&word, revision);
            }
        }
        let path = format!("{}{}", self.path, request.rest);
        let headers = [("content-type", request.media)];
        let request = self.client.request(request.method, &path, &headers, body);
        self.client.send(request).await
    }

    async fn revision(&self) -> String {
        let list = self.client.get(&self.path).await.good();
        list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    }

    /// All that happened since a revision, until the object `last` is there.
    async fn since(&self, revision: &str, last: &str) -> Vec<Value> {
        let query = format!("?watch=1&resourceVersion={revision}&timeoutSeconds=120&allowWatchBookmarks=false");
        let mut lines = self.client.watch(&format!("{}{query}", self.path)).await;
        let mut events = Vec::new();
        while let Some(mut event) = lines.next().await {
            let is_last = event["object"]["metadata"]["name"] == last;
            strip(&mut event);
            even_out(&mut event["object"]);
            events.push(event);
            if is_last {
                break;
            }
        }
        events
    }

    /// Names page by page, with what each page says of the rest.
    async fn pages(&self) -> Vec<Value> {
        let (mut pages, mut next) = (Vec::new(), String::new());
        loop {
            let list = self.client.get(&format!("{}?limit=1{next}", self.path)).await.good();
            let names: Vec<&Value> = list["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| &i["metadata"]["name"])
                .collect();
            pages.push(json!({ "names": names, "remaining": list["metadata"]["remainingItemCount"] }));
            match list["metadata"]["continue"].as_str().filter(|token| !token.is_empty()) {
                Some(token) => next = format!("&continue={token}"),
                None => return pages,
            }
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Two sides that get the same requests.
struct Pair<'a> {
    ours: Side<'a>,
    theirs: Side<'a>,
}

impl Pair<'_> {
    /// Sends a request to both. Gives what differs, unless a rule says so.
    async fn send(&self, request: &Request, known: &mut Differences) -> Option<String> {
        let (mut have, mut want) = (
            normal(&self.ours.send(request).await),
            normal(&self.theirs.send(request).await),
        );
        for side in [&mut have, &mut want] {
            as_clients_write(side);
            even_out(&mut side["body"]);
        }
        let Request {
            method,
            rest,
            media,
            body,
        } = request;
        (!known.explain(request, &have, &want))
            .then(|| format!("{method} {rest} {media} {body}\nours: {have}\ntheirs: {want}"))
    }

    /// Sends `cases` requests, and then looks at all there is and at all that happened.
    async fn round(&self, script: &mut Script<'_>, cases: u64, last: &str, known: &mut Differences) -> Vec<String> {
        let from = (self.ours.revision().await, self.theirs.revision().await);
        let plural = script.served.plural;
        let mut unknown = Vec::new();
        for step in 0..cases {
            let request = script.next();
            let different = self.send(&request, known).await;
            unknown.extend(different.map(|what| format!("{plural} step {step}: {what}")));
        }
        let marker = request("POST", "?fieldManager=m", JSON, script.object(last));
        let different = self.send(&marker, known).await;
        unknown.extend(different.map(|what| format!("{plural} step last: {what}")));
        let (have, want) = (self.ours.pages().await, self.theirs.pages().await);
        if have != want {
            unknown.push(format!("{plural} pages\nours: {have:?}\ntheirs: {want:?}"));
        }
        let (have, want) = (
            self.ours.since(&from.0, last).await,
            self.theirs.since(&from.1, last).await,
        );
        if have != want {
            unknown.push(format!("{plural} watch\nours: {have:?}\ntheirs: {want:?}"));
        }
        unknown
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_behaves_as_in_kubernetes() {
    let world = World::start().await;
    let admin = world.admin();
    // What the world begins with is not there.
    for (kind, namespace, name) in [
        (&hanse_api::kinds::VIRTUAL_CLUSTER_INSTANCES, "p-default", "demo"),
        (&hanse_api::kinds::CLUSTERS, "", "eu"),
    ] {
        world.remove(kind, namespace, name).await;
    }
    let kinds = kinds();
    let mut definitions = Vec::new();
    for (served, _) in &kinds {
        definitions.push(definition(&admin, served).await);
    }
    let Some(oracle) = Oracle::start(definitions).await else {
        return;
    };
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "p-default" } });
    oracle.client.post("/api/v1/namespaces", &namespace).await.good();
    for (plural, name) in SEEDED {
        let (served, _) = kinds.iter().find(|(served, _)| served.plural == plural).unwrap();
        let object =
            json!({ "apiVersion": format!("{}/v1", served.group), "kind": served.kind, "metadata": { "name": name } });
        let path = format!("/apis/{}/v1/{plural}", served.group);
        oracle.client.post(&path, &object).await.good();
    }
    let (seed, cases) = (number("HANSE_SEED", SEED), number("HANSE_FUZZ_CASES", CASES));
    let (mut unknown, mut known) = (Vec::new(), Differences::default());
    for (at, (served, specs)) in (1_u64..).zip(kinds) {
        let space = if served.namespaced { "namespaces/p-default/" } else { "" };
        let path = format!("/apis/{}/v1/{space}{}", served.group, served.plural);
        let pair = Pair {
            ours: Side {
                client: &admin,
                path: format!("/kubernetes/management{path}"),
            },
            theirs: Side {
                client: &oracle.client,
                path,
            },
        };
        let mut script = Script {
            served,
            specs: &specs,
            dice: Dice((seed << 8 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        };
        // In rounds, so that a watch from the beginning of one is never too old.
        let mut left = cases;
        while left > 0 {
            let many = left.min(CASES);
            left -= many;
            unknown.extend(pair.round(&mut script, many, &format!("last-{left}"), &mut known).await);
        }
    }
    assert!(
        unknown.is_empty(),
        "HANSE_SEED={seed}: {} answers differ, and no rule says why\n{}",
        unknown.len(),
        unknown.join("\n\n")
    );
    // A rule that explains nothing hides the next fault.
    if (seed, cases) == (SEED, CASES) {
        assert_eq!(known.unused(), [""; 0], "rules that are of no use any more");
    }
}
