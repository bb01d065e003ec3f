//! The same requests to this gateway and to a real kube-apiserver that serves the same kind as a custom resource: answers
//! must be equal but for uids, times and revisions. Left out where there is no kube-apiserver.

use crate::kubectl::tool;
use crate::world::{Answer, Client, PATIENCE, World};
use hanse_runtime::clock::SystemClock;
use hanse_runtime::pki::LeafSpec;
use hanse_tunnel::testing::TestPki;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

const PROJECTS: &str = "/apis/management.loft.sh/v1/projects";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const JSON: &str = "application/json";

/// A kube-apiserver on an etcd of its own; both end with the test.
pub struct Oracle {
    pub client: Client,
    children: Vec<Child>,
    home: tempfile::TempDir,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Oracle {
    /// Starts both and defines the kinds.
    pub async fn start(definitions: Vec<Value>) -> Option<Self> {
        let (Some(etcd), Some(server)) = (tool("etcd"), tool("kube-apiserver")) else {
            eprintln!("left out: there is no kube-apiserver (HANSE_KUBE_TOOLS, the cache of the kube tools, PATH)");
            return None;
        };
        let home = tempfile::tempdir().unwrap();
        let now = SystemClock::shared().wall();
        let pki = TestPki::new(now).unwrap();
        let spec = LeafSpec {
            ips: vec!["127.0.0.1".parse().unwrap()],
            server: true,
            days: 1,
            ..Default::default()
        };
        let leaf = pki.authority().issue(&spec, now).unwrap();
        let file = |name: &str, text: &str| {
            let path = home.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (cert, key) = (file("tls.crt", &leaf.cert), file("tls.key", &leaf.key));
        let tokens = file("tokens", "oracle,admin,admin,system:masters\n");
        let (store, peer, port) = (free_port(), free_port(), free_port());
        let (store, peer) = (format!("http://127.0.0.1:{store}"), format!("http://127.0.0.1:{peer}"));
        let run = |binary: &std::path::Path, log: &str, args: &[String]| {
            let log = std::fs::File::create(home.path().join(log)).unwrap();
            let mut command = Command::new(binary);
            command.args(args).stdin(Stdio::null()).stdout(log.try_clone().unwrap());
            command.stderr(log).kill_on_drop(true).spawn().unwrap()
        };
        let store_args = [
            format!("--data-dir={}", home.path().join("etcd").display()),
            format!("--listen-client-urls={store}"),
            format!("--advertise-client-urls={store}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--unsafe-no-fsync".to_owned(),
        ];
        let server_args = [
            format!("--etcd-servers={store}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={cert}"),
            format!("--tls-private-key-file={key}"),
            format!("--token-auth-file={tokens}"),
            "--authorization-mode=AlwaysAllow".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={cert}"),
            format!("--service-account-signing-key-file={key}"),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
        ];
        let children = vec![
            run(&etcd, "etcd.log", &store_args),
            run(&server, "apiserver.log", &server_args),
        ];
        let addr: SocketAddr = ([127, 0, 0, 1], port).into();
        let client = Client::new(addr, pki.authority().cert_pem().to_owned(), Some("oracle".into()));
        let oracle = Self { client, children, home };
        oracle.serve(addr, &definitions).await;
        Some(oracle)
    }

    /// Starts the garbage collector of Kubernetes beside it.
    pub fn collect(&mut self) -> Option<()> {
        let manager = tool("kube-controller-manager")?;
        let file = |name: &str| self.home.path().join(name).display().to_string();
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: m\n\
             clusters: [{{name: m, cluster: {{server: 'https://{}', certificate-authority: '{}'}}}}]\n\
             users: [{{name: u, user: {{token: 'oracle'}}}}]\ncontexts: [{{name: m, context: {{cluster: m, user: u}}}}]\n",
            self.client.addr,
            file("ca.crt")
        );
        std::fs::write(file("ca.crt"), &self.client.ca_pem).unwrap();
        std::fs::write(file("kubeconfig"), config).unwrap();
        let log = std::fs::File::create(file("manager.log")).unwrap();
        let mut command = Command::new(manager);
        command.args([
            &format!("--kubeconfig={}", file("kubeconfig")),
            "--controllers=garbage-collector-controller",
            "--leader-elect=false",
            "--secure-port=0",
        ]);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.children.push(command.kill_on_drop(true).spawn().unwrap());
        Some(())
    }

    /// What the controller manager said.
    pub fn manager_log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("manager.log")).unwrap_or_default()
    }

    /// Defines the kinds and waits until they are served.
    async fn serve(&self, addr: SocketAddr, definitions: &[Value]) {
        let started = Instant::now();
        let pause = || async {
            let log = || std::fs::read_to_string(self.home.path().join("apiserver.log")).unwrap_or_default();
            assert!(
                started.elapsed() < PATIENCE * 3,
                "kube-apiserver serves in time: {}",
                log()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        while tokio::net::TcpStream::connect(addr).await.is_err() {
            pause().await;
        }
        // While it starts it breaks connections off, which ends the task of that try.
        let ready = || {
            let client = self.client.clone();
            tokio::spawn(async move { client.get("/readyz").await.code == 200 })
        };
        while !ready().await.is_ok_and(|ready| ready) {
            pause().await;
        }
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        for definition in definitions {
            self.client.post(path, definition).await.good();
        }
        for definition in definitions {
            let (spec, plural) = (&definition["spec"], &definition["spec"]["names"]["plural"]);
            let (group, plural) = (spec["group"].as_str().unwrap(), plural.as_str().unwrap());
            while self.client.get(&format!("/apis/{group}/v1/{plural}")).await.code != 200 {
                pause().await;
            }
        }
    }
}

/// A kind that both serve.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    pub group: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
    pub has_status: bool,
}

pub const PROJECT: Served = Served {
    group: "management.loft.sh",
    plural: "projects",
    kind: "Project",
    namespaced: false,
    has_status: true,
};

/// The kind as a custom resource, with the schema that this gateway publishes.
pub async fn definition(client: &Client, served: &Served) -> Value {
    let Served {
        group, plural, kind, ..
    } = *served;
    let mut version = json!({ "name": "v1", "served": true, "storage": true });
    version["schema"]["openAPIV3Schema"] = schema_of(client, served).await;
    if served.has_status {
        version["subresources"] = json!({ "status": {} });
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group, "scope": if served.namespaced { "Namespaced" } else { "Cluster" },
            "names": { "plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List") },
            "versions": [version],
        },
    })
}

async fn schema_of(client: &Client, served: &Served) -> Value {
    let path = format!("/kubernetes/management/openapi/v3/apis/{}/v1", served.group);
    let document = client.get(&path).await.good();
    let group: Vec<&str> = served.group.split('.').rev().collect();
    let name = format!("{}.v1.{}", group.join("."), served.kind);
    let mut schema = document["components"]["schemas"][name].clone();
    schema["properties"]["metadata"] = json!({ "type": "object" });
    schema
        .as_object_mut()
        .unwrap()
        .remove("x-kubernetes-group-version-kind");
    schema
}

/// What both must agree in.
pub fn normal(answer: &Answer) -> Value {
    let mut body = answer.json();
    strip(&mut body);
    let mut warnings: Vec<&str> = answer
        .headers
        .get_all("warning")
        .iter()
        .filter_map(|v| v.to_str().ok())
        .collect();
    warnings.sort_unstable();
    json!({ "code": answer.code.as_u16(), "body": body, "warnings": warnings })
}

pub fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for key in ["uid", "resourceVersion", "creationTimestamp", "time"] {
                map.remove(key);
            }
            if map.contains_key("deletionTimestamp") {
                map.insert("deletionTimestamp".into(), "then".into());
            }
            // Lists of custom resources say that they do not go on, others leave it out.
            map.retain(|key, value| key != "continue" || value != "");
            // Keys of items that are told apart by the uid of an object.
            if map.keys().any(|key| key.starts_with(r#"k:{"uid""#)) {
                let keys = std::mem::take(map).into_iter();
                map.extend(keys.map(|(key, value)| match key.split_once("-") {
                    Some((before, _)) if key.starts_with(r#"k:{"uid""#) => {
                        let end = before.rfind('"').map_or(0, |at| at + 1);
                        (format!("{}...", &key[..end]), value)
                    }
                    _ => (key, value),
                }));
            }
            map.values_mut().for_each(strip);
            // Ordered by seconds, which fall differently.
            if let Some(entries) = map.get_mut("managedFields").and_then(Value::as_array_mut) {
                entries.sort_by_key(|e| format!("{} {} {}", e["operation"], e["manager"], e["subresource"]));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        // An object that is quoted in a message has its own uid and revision.
        Value::String(text) => {
            if let (Some(from), Some(to)) = (text.find("\"{"), text.rfind("}\"")) {
                text.replace_range(from..to, "");
            }
        }
        _ => {}
    }
}

struct Pair {
    ours: Client,
    oracle: Oracle,
}

/// The text with `uid-of-NAME` replaced by the uid that `client` knows the project by.
async fn with_uids(client: &Client, prefix: &str, text: String) -> String {
    let mut done = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("uid-of-") {
        let end = after.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(after.len());
        let found = client
            .get(&format!("{prefix}{PROJECTS}/{}", &after[..end]))
            .await
            .good();
        done.push_str(before);
        done.push_str(found["metadata"]["uid"].as_str().unwrap());
        rest = &after[end..];
    }
    done + rest
}

impl Pair {
    async fn new(world: &World) -> Option<Self> {
        let ours = world.admin();
        let oracle = Oracle::start(vec![definition(&ours, &PROJECT).await]).await?;
        Some(Self { ours, oracle })
    }

    /// Sends to both and compares; gives the code.
    async fn same(&self, method: &str, rest: &str, media: &str, body: &Value) -> u16 {
        let headers = [("content-type", media)];
        let text = if body.is_string() {
            body.as_str().unwrap().to_owned()
        } else {
            body.to_string()
        };
        let path = format!("{PROJECTS}{rest}");
        let ours = format!("/kubernetes/management{path}");
        let told = with_uids(&self.ours, "/kubernetes/management", text.clone()).await;
        let ours = self.ours.send(self.ours.request(method, &ours, &headers, told)).await;
        let theirs = &self.oracle.client;
        let told = with_uids(theirs, "", text).await;
        let theirs = theirs.send(theirs.request(method, &path, &headers, told)).await;
        let (have, want) = (normal(&ours), normal(&theirs));
        assert_eq!(have, want, "{method} {rest} {body}\nours: {have:#}\ntheirs: {want:#}");
        ours.code.as_u16()
    }

    async fn apply(&self, name: &str, options: &str, metadata: Value, spec: Value) -> u16 {
        let mut metadata = metadata;
        metadata["name"] = name.into();
        let body =
            json!({ "apiVersion": "management.loft.sh/v1", "kind": "Project", "metadata": metadata, "spec": spec });
        self.same("PATCH", &format!("/{name}?{options}"), APPLY, &body).await
    }
}

fn project(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "management.loft.sh/v1", "kind": "Project", "metadata": { "name": name }, "spec": spec })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_side_apply_does_what_kubernetes_does() {
    let world = World::start().await;
    let Some(pair) = Pair::new(&world).await else { return };
    let clusters = json!([{ "name": "*" }]);
    let red = project("red", json!({ "displayName": "Red", "allowedClusters": clusters }));
    assert_eq!(pair.same("POST", "?fieldManager=maker", JSON, &red).await, 201);
    let labels = json!({ "labels": { "a": "1", "b": "2" } });
    // A conflict with who made it, one more, and force.
    let spec = json!({ "displayName": "Ann", "allowedClusters": [{ "name": "eu" }] });
    assert_eq!(
        pair.apply("red", "fieldManager=ann", labels.clone(), spec.clone())
            .await,
        409
    );
    let one = json!({ "displayName": "Ann" });
    assert_eq!(
        pair.apply("red", "fieldManager=ann", labels.clone(), one.clone()).await,
        409
    );
    assert_eq!(
        pair.apply("red", "fieldManager=ann&force=true", labels.clone(), one.clone())
            .await,
        200
    );
    assert_eq!(
        pair.apply("red", "fieldManager=ann", labels.clone(), one.clone()).await,
        200
    );
    // Shared by a second manager, then left out by the first.
    let shared = json!({ "labels": { "b": "2", "c": "3" } });
    assert_eq!(
        pair.apply("red", "fieldManager=bob", shared, json!({ "description": { "x": 1 } }))
            .await,
        200
    );
    assert_eq!(pair.apply("red", "fieldManager=ann", json!({}), one.clone()).await, 200);
    // Plain writes take what they change, and give nothing back.
    let patch = json!({ "metadata": { "annotations": { "n": "1" } }, "spec": { "displayName": "Ed" } });
    assert_eq!(pair.same("PATCH", "/red?fieldManager=ed", MERGE, &patch).await, 200);
    assert_eq!(pair.same("PATCH", "/red?fieldManager=ed", MERGE, &patch).await, 200);
    assert_eq!(pair.apply("red", "fieldManager=ann", json!({}), one.clone()).await, 409);
    assert_eq!(pair.apply("red", "fieldManager=bob", json!({}), json!({})).await, 200);
    // What is made by an apply, and what it may not say.
    assert_eq!(
        pair.apply("blue", "fieldManager=ann&dryRun=All", labels.clone(), one.clone())
            .await,
        201
    );
    assert_eq!(pair.apply("blue", "fieldManager=ann", labels, one.clone()).await, 201);
    assert_eq!(pair.apply("blue", "", json!({}), one.clone()).await, 422);
    assert_eq!(pair.same("PATCH", "/blue?force=true", MERGE, &patch).await, 422);
    // Lists whose items have keys, through the status.
    let ready = |status: &str, kind: &str| json!({ "type": kind, "status": status, "reason": "R", "message": "m" });
    let status = |conditions: Value| {
        let mut body = project("red", json!({ "displayName": "ignored" }));
        body["status"] = json!({ "conditions": conditions });
        body
    };
    let path = "/red/status?fieldManager=ctl";
    assert_eq!(
        pair.same("PATCH", path, APPLY, &status(json!([ready("True", "Ready")])))
            .await,
        200
    );
    let other = "/red/status?fieldManager=other";
    let two = json!([ready("False", "Ready"), ready("True", "Synced")]);
    assert_eq!(pair.same("PATCH", other, APPLY, &status(two)).await, 409);
    let synced = json!([ready("True", "Synced")]);
    assert_eq!(pair.same("PATCH", other, APPLY, &status(synced)).await, 200);
    assert_eq!(pair.same("PATCH", path, APPLY, &status(json!([]))).await, 200);
    // Forgotten managers, and the first apply after that.
    let reset = json!({ "metadata": { "managedFields": [{}] } });
    assert_eq!(pair.same("PATCH", "/red", MERGE, &reset).await, 200);
    assert_eq!(pair.apply("red", "fieldManager=ann", json!({}), one).await, 409);
    assert_eq!(pair.same("GET", "/red", JSON, &json!("")).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_are_validated_as_kubernetes_does() {
    let world = World::start().await;
    let Some(pair) = Pair::new(&world).await else { return };
    let odd = json!(
        r#"{"apiVersion":"management.loft.sh/v1","kind":"Project","metadata":{"name":"odd","nmae":"x"},
            "spec":{"displayName":"a","displayName":"b","descriptn":"x","allowedClusters":[{"name":"a","nme":"b"}]}}"#
    );
    let strict = "?fieldManager=m&fieldValidation=Strict";
    assert_eq!(pair.same("POST", strict, JSON, &odd).await, 400);
    let plain = project("plain", json!({ "displayName": "x" }));
    assert_eq!(pair.same("POST", strict, JSON, &plain).await, 201);
    let patch = json!({ "spec": { "unheardOf": 1 } });
    let refused = pair.same("PATCH", &format!("/plain{strict}"), MERGE, &patch).await;
    assert_eq!(refused, 422);
    let gone = "?labelSelector=none%3Dsuch";
    assert_eq!(pair.same("DELETE", gone, JSON, &json!("")).await, 200);
}

/// References to owners of a kind that nobody here collects for.
fn owned(references: Value) -> Value {
    let mut body = project("owned", json!({}));
    body["metadata"]["ownerReferences"] = references;
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner_references_are_checked_as_kubernetes_does() {
    let world = World::start().await;
    let Some(pair) = Pair::new(&world).await else { return };
    let good = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": "d-uid" });
    let with = |key: &str, value: &str| {
        let mut bad = good.clone();
        bad[key] = value.into();
        owned(json!([bad]))
    };
    for (key, value) in [
        ("apiVersion", ""),
        ("apiVersion", "a/b/c"),
        ("kind", ""),
        ("name", ""),
        ("uid", ""),
    ] {
        let code = pair.same("POST", "?fieldManager=m", JSON, &with(key, value)).await;
        assert_eq!(code, 422, "{key} {value}");
    }
    let event = json!([{ "apiVersion": "v1", "kind": "Event", "name": "e", "uid": "e-uid" }]);
    assert_eq!(pair.same("POST", "?fieldManager=m", JSON, &owned(event)).await, 422);
    let controls =
        |name: &str| json!({ "apiVersion": "apps/v1", "kind": "X", "name": name, "uid": name, "controller": true });
    let two = json!([controls("a"), controls("b")]);
    assert_eq!(pair.same("POST", "?fieldManager=m", JSON, &owned(two)).await, 422);
    // What is there twice is kept once, with a warning.
    let twice = owned(json!([good, good]));
    assert_eq!(pair.same("POST", "?fieldManager=m", JSON, &twice).await, 201);
    let other = json!({ "metadata": { "ownerReferences": [controls("a"), good] } });
    assert_eq!(pair.same("PATCH", "/owned?fieldManager=n", MERGE, &other).await, 200);
    let none = json!({ "metadata": { "ownerReferences": [] } });
    assert_eq!(pair.same("PATCH", "/owned?fieldManager=n", MERGE, &none).await, 200);
    let both = json!({ "metadata": { "finalizers": ["orphan", "foregroundDeletion"] } });
    assert_eq!(pair.same("PATCH", "/owned?fieldManager=n", MERGE, &both).await, 422);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn propagation_policies_become_finalizers_as_in_kubernetes() {
    let world = World::start().await;
    let Some(pair) = Pair::new(&world).await else { return };
    let delete = |policy: Value| {
        let mut options = json!({ "kind": "DeleteOptions", "apiVersion": "v1" });
        for (key, value) in policy.as_object().unwrap() {
            options[key] = value.clone();
        }
        options
    };
    let mut owner = project("owner", json!({}));
    owner["metadata"]["finalizers"] = json!(["example.com/hold"]);
    assert_eq!(pair.same("POST", "?fieldManager=m", JSON, &owner).await, 201);
    for bad in [
        json!({ "propagationPolicy": "Sideways" }),
        json!({ "propagationPolicy": "Orphan", "orphanDependents": true }),
    ] {
        assert_eq!(pair.same("DELETE", "/owner", JSON, &delete(bad)).await, 422);
    }
    let dry = delete(json!({ "propagationPolicy": "Orphan", "dryRun": ["All"] }));
    assert_eq!(pair.same("DELETE", "/owner", JSON, &dry).await, 200);
    // A dependent that stays, so that its owner goes on waiting whether or not somebody collects.
    let mut held = project("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    held["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "management.loft.sh/v1", "kind": "Project", "name": "owner", "uid": "uid-of-owner",
        "blockOwnerDeletion": true,
    }]);
    assert_eq!(pair.same("POST", "?fieldManager=m", JSON, &held).await, 201);
    let foreground = delete(json!({ "propagationPolicy": "Foreground" }));
    assert_eq!(pair.same("DELETE", "/owner", JSON, &foreground).await, 200);
    assert_eq!(pair.same("DELETE", "/owner", JSON, &foreground).await, 200);
    assert_eq!(pair.same("DELETE", "/owner", JSON, &delete(json!({}))).await, 200);
    // Another policy while it waits.
    let background = delete(json!({ "propagationPolicy": "Background" }));
    assert_eq!(pair.same("DELETE", "/owner", JSON, &background).await, 200);
    for (name, query) in [
        ("a", "propagationPolicy=Orphan"),
        ("b", "orphanDependents=true"),
        ("c", "orphanDependents=false"),
    ] {
        assert_eq!(
            pair.same("POST", "?fieldManager=m", JSON, &project(name, json!({})))
                .await,
            201
        );
        assert_eq!(
            pair.same("DELETE", &format!("/{name}?{query}"), JSON, &json!("")).await,
            200
        );
    }
}
