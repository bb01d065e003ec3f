//! The real kubectl against the management API. Left out where there is no kubectl.

use crate::world::{PATIENCE, World};
use hanse_gateway::access_key;
use std::path::PathBuf;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// A tool of Kubernetes.
pub fn tool(name: &str) -> Option<PathBuf> {
    let place = std::env::var("HANSE_KUBE_TOOLS").ok();
    let cache = std::env::var("XDG_CACHE_HOME").ok().map(PathBuf::from);
    let cache = cache.or_else(|| {
        std::env::var("HOME")
            .ok()
            .map(|home| PathBuf::from(home).join(".cache"))
    });
    let cached = cache.map(|c| c.join("hanse/kube-tools/current/bin").join(name));
    let on_path = || {
        std::env::split_paths(&std::env::var_os("PATH")?)
            .map(|d| d.join(name))
            .find(|p| p.is_file())
    };
    match place.as_deref() {
        Some("PATH") => on_path(),
        Some(dir) => Some(PathBuf::from(dir).join("bin").join(name)).filter(|p| p.is_file()),
        None => cached.filter(|p| p.is_file()).or_else(on_path),
    }
}

pub struct Kubectl {
    binary: PathBuf,
    home: tempfile::TempDir,
}

impl Kubectl {
    pub fn new(world: &World, key: &str) -> Option<Self> {
        let Some(binary) = tool("kubectl") else {
            eprintln!("left out: there is no kubectl (HANSE_KUBE_TOOLS, the cache of the kube tools, PATH)");
            return None;
        };
        let home = tempfile::tempdir().unwrap();
        let ca = home.path().join("ca.pem");
        std::fs::write(&ca, &world.ca_pem).unwrap();
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: m\n\
             clusters: [{{name: m, cluster: {{server: 'https://{}/kubernetes/management', certificate-authority: '{}'}}}}]\n\
             users: [{{name: u, user: {{token: '{key}'}}}}]\n\
             contexts: [{{name: m, context: {{cluster: m, user: u, namespace: p-default}}}}]\n",
            world.addr,
            ca.display()
        );
        std::fs::write(home.path().join("config"), config).unwrap();
        Some(Self { binary, home })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.home.path().join("config"));
        command
            .env("KUBE_EDITOR", "sed -i s/before-edit/after-edit/")
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Exit code 0 or not, and what was written to both outputs.
    pub async fn run(&self, args: &[&str]) -> (bool, String) {
        let output = tokio::time::timeout(PATIENCE * 3, self.command(args).output())
            .await
            .expect("kubectl ends")
            .unwrap();
        let text = [output.stdout, output.stderr]
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .concat();
        (output.status.success(), text)
    }

    pub async fn good(&self, args: &[&str]) -> String {
        let (good, text) = self.run(args).await;
        assert!(good, "kubectl {args:?}: {text}");
        text
    }

    pub async fn bad(&self, args: &[&str]) -> String {
        let (good, text) = self.run(args).await;
        assert!(!good, "kubectl {args:?}: {text}");
        text
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

const DEMO: &str = "apiVersion: management.loft.sh/v1\nkind: VirtualClusterInstance\n\
                    metadata: {name: web, namespace: p-default, annotations: {hanse.dev/simulated-nodes: '2'}}\n\
                    spec: {displayName: before-edit}\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_through_kubectl() {
    let world = World::start().await;
    let Some(kubectl) = Kubectl::new(&world, &access_key("admin", "admin-secret")) else {
        return;
    };
    let resources = kubectl.good(&["api-resources"]).await;
    for word in ["projects", "vci", "clusters", "regions", "servers", "namespaces"] {
        assert!(resources.contains(word), "{word}: {resources}");
    }
    assert!(kubectl.good(&["version"]).await.contains("hanse"));
    let project = kubectl.file(
        "project.yaml",
        "apiVersion: management.loft.sh/v1\nkind: Project\nmetadata: {name: red}\nspec: {displayName: Red}\n",
    );
    assert!(
        kubectl
            .good(&["create", "-f", &project])
            .await
            .contains("project.management.loft.sh/red created")
    );
    assert!(kubectl.bad(&["create", "-f", &project]).await.contains("AlreadyExists"));
    let listed = kubectl.good(&["get", "projects"]).await;
    assert!(
        listed.contains("NAME") && listed.contains("AGE") && listed.contains("red"),
        "{listed}"
    );
    assert!(
        kubectl
            .good(&["get", "project", "red", "-o", "yaml"])
            .await
            .contains("displayName: Red")
    );
    assert!(kubectl.good(&["get", "ns"]).await.contains("p-red"));

    // apply, twice, with and without a change
    let vci = kubectl.file("vci.yaml", DEMO);
    assert!(kubectl.good(&["apply", "-f", &vci]).await.contains("created"));
    assert!(kubectl.good(&["apply", "-f", &vci]).await.contains("unchanged"));
    let changed = kubectl.file("vci2.yaml", &DEMO.replace("'2'", "'5'"));
    assert!(kubectl.good(&["diff", "-f", &vci]).await.is_empty());
    assert!(
        kubectl
            .bad(&["diff", "-f", &changed])
            .await
            .contains("+    hanse.dev/simulated-nodes: \"5\"")
    );
    assert!(kubectl.good(&["apply", "-f", &changed]).await.contains("configured"));
    assert!(kubectl.good(&["get", "vci"]).await.contains("Pending"));
    let wide = kubectl.good(&["get", "vci", "-A", "-o", "wide"]).await;
    assert!(
        wide.contains("NAMESPACE") && wide.contains("MESSAGE") && wide.contains("p-default"),
        "{wide}"
    );
    // What was applied by the client goes on by the server, and other managers conflict.
    kubectl.good(&["apply", "--server-side", "-f", &changed]).await;
    let mine = kubectl.file("mine.yaml", &DEMO.replace("'2'", "'4'"));
    let other = ["apply", "--server-side", "--field-manager=other", "-f", &mine];
    let conflict = kubectl.bad(&other).await;
    assert!(
        conflict.contains("Apply failed with 1 conflict: conflict with \"kubectl\""),
        "{conflict}"
    );
    kubectl.good(&[other.as_slice(), &["--force-conflicts"]].concat()).await;
    kubectl.bad(&["diff", "--server-side", "-f", &changed]).await;
    kubectl
        .good(&["apply", "--server-side", "--force-conflicts", "-f", &changed])
        .await;

    kubectl
        .good(&[
            "patch",
            "vci",
            "web",
            "--type=merge",
            "-p",
            "{\"spec\":{\"description\":\"d\"}}",
        ])
        .await;
    kubectl
        .good(&[
            "patch",
            "vci",
            "web",
            "--type=json",
            "-p",
            "[{\"op\":\"remove\",\"path\":\"/spec/description\"}]",
        ])
        .await;
    kubectl.good(&["label", "vci", "web", "team=red"]).await;
    assert!(
        kubectl
            .good(&["get", "vci", "-l", "team=red", "-o", "name"])
            .await
            .contains("/web")
    );
    kubectl.good(&["annotate", "vci", "web", "note=x"]).await;
    kubectl.good(&["edit", "vci", "web"]).await;
    let edited = kubectl
        .good(&[
            "get",
            "vci",
            "web",
            "-o",
            "jsonpath={.spec.displayName} {.metadata.annotations.note}",
        ])
        .await;
    assert_eq!(edited, "after-edit x");
    let described = kubectl.good(&["describe", "vci", "web"]).await;
    assert!(described.contains("after-edit"), "{described}");
    let bad = kubectl.file("bad.yaml", &DEMO.replace("'2'", "many"));
    assert!(
        kubectl
            .bad(&["apply", "-f", &bad])
            .await
            .contains("must be a whole number from 0 to 1000")
    );
    assert!(kubectl.bad(&["get", "project", "none"]).await.contains("(NotFound)"));
    assert!(
        kubectl
            .bad(&["delete", "project", "default"])
            .await
            .contains("still has tenant clusters")
    );
    kubectl.good(&["delete", "project", "red"]).await;
    assert!(
        kubectl
            .good(&["create", "--dry-run=server", "-f", &project])
            .await
            .contains("dry run")
    );
    kubectl.bad(&["get", "project", "red"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_and_watching_through_kubectl() {
    let world = World::start().await;
    let Some(kubectl) = Kubectl::new(&world, &access_key("admin", "admin-secret")) else {
        return;
    };
    let vci = kubectl.file("vci.yaml", DEMO);
    kubectl.good(&["create", "-f", &vci]).await;
    let mut watching = kubectl.command(&["get", "vci", "-w"]).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let line = async |lines: &mut tokio::io::Lines<_>| {
        tokio::time::timeout(PATIENCE, lines.next_line())
            .await
            .expect("a line in time")
            .unwrap()
            .expect("a line")
    };
    assert!(line(&mut lines).await.contains("NAME"));
    let (first, second) = (line(&mut lines).await, line(&mut lines).await);
    assert!(first.contains("demo") && second.contains("web"), "{first} {second}");

    let wait = [
        "wait",
        "vci/web",
        "--for=jsonpath={.status.phase}=Ready",
        "--timeout=30s",
    ];
    let condition = ["wait", "vci/web", "--for=condition=Ready", "--timeout=30s"];
    let ready = "{\"status\":{\"phase\":\"Ready\",\"conditions\":[{\"type\":\"Ready\",\"status\":\"True\",\"reason\":\"x\",\
                 \"message\":\"\",\"observedGeneration\":1,\"lastTransitionTime\":\"2026-01-01T00:00:00Z\"}]}}";
    let patch = async {
        // Once all wait: the line of the watch says that the server serves them meanwhile.
        kubectl
            .good(&[
                "patch",
                "vci",
                "web",
                "--subresource=status",
                "--type=merge",
                "-p",
                ready,
            ])
            .await
    };
    let (by_phase, by_condition, _) = tokio::join!(kubectl.good(&wait), kubectl.good(&condition), patch);
    assert!(by_phase.contains("condition met") && by_condition.contains("condition met"));
    assert!(line(&mut lines).await.contains("Ready"));

    let deletion = async {
        kubectl.good(&["delete", "vci", "web", "--wait=false"]).await;
        kubectl
            .good(&[
                "patch",
                "vci",
                "web",
                "--type=json",
                "-p",
                "[{\"op\":\"remove\",\"path\":\"/metadata/finalizers\"}]",
            ])
            .await
    };
    let gone = ["wait", "vci/web", "--for=delete", "--timeout=30s"];
    let (_, waited) = tokio::join!(deletion, kubectl.good(&gone));
    assert!(waited.contains("condition met"), "{waited}");
    let terminating = line(&mut lines).await;
    assert!(terminating.contains("Terminating"), "{terminating}");
    watching.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_and_refusals_through_kubectl() {
    let world = World::start().await;
    let Some(bob) = Kubectl::new(&world, &access_key("bob", "bob-secret")) else {
        return;
    };
    let whoami = bob.good(&["auth", "whoami"]).await;
    assert!(whoami.contains("bob") && whoami.contains("devs"), "{whoami}");
    assert!(
        bob.bad(&["auth", "can-i", "list", "projects.management.loft.sh"])
            .await
            .contains("no")
    );
    let denied = bob.bad(&["get", "clusters.management.loft.sh"]).await;
    assert!(denied.contains("Forbidden") && denied.contains("bob"), "{denied}");
    let none = bob.good(&["get", "projects"]).await;
    assert!(none.contains("No resources found"), "{none}");
    let Some(admin) = Kubectl::new(&world, &access_key("admin", "admin-secret")) else {
        return;
    };
    assert!(
        admin
            .good(&["auth", "can-i", "list", "projects.management.loft.sh"])
            .await
            .contains("yes")
    );
    assert!(
        admin
            .bad(&["get", "clusters.management.loft.sh", "--as", "bob"])
            .await
            .contains("Forbidden")
    );
    let Some(nobody) = Kubectl::new(&world, "hak1.bob.wrong") else {
        return;
    };
    let out = nobody.bad(&["get", "projects"]).await;
    assert!(out.contains("You must be logged in"), "{out}");
    let Some(empty) = Kubectl::new(&world, " ") else { return };
    empty.bad(&["get", "projects"]).await;
}

/// What kubectl checks and shows by the schemas of the kinds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemas_through_kubectl() {
    let world = World::start().await;
    let Some(kubectl) = Kubectl::new(&world, &access_key("admin", "admin-secret")) else {
        return;
    };
    let all = kubectl.good(&["explain", "projects", "--recursive"]).await;
    for word in [
        "displayName",
        "allowedClusters",
        "clusterRole",
        "lastTransitionTime",
        "ObjectMeta",
        "ownerReferences",
    ] {
        assert!(all.contains(word), "{word}: {all}");
    }
    let one = kubectl.good(&["explain", "vci.status.phase"]).await;
    assert!(one.contains("Sleeping") && one.contains("Life cycle"), "{one}");
    assert!(
        kubectl
            .bad(&["explain", "vci.spec.nonsense"])
            .await
            .contains("does not exist")
    );

    let odd = kubectl.file(
        "odd.yaml",
        "apiVersion: management.loft.sh/v1\nkind: Project\nmetadata: {name: odd, labels: {t: odd}}\n\
         spec: {displayName: Odd, descriptn: typo, allowedClusters: [{name: x, nme: x}]}\n",
    );
    let refused = kubectl.bad(&["create", "-f", &odd]).await;
    assert!(
        refused.contains("unknown field \"spec.allowedClusters[0].nme\", unknown field \"spec.descriptn\""),
        "{refused}"
    );
    kubectl.bad(&["create", "-f", &odd, "--dry-run=server"]).await;
    let warned = kubectl.good(&["create", "-f", &odd, "--validate=warn"]).await;
    assert!(warned.contains("Warning: unknown field \"spec.descriptn\""), "{warned}");
    kubectl.good(&["delete", "project", "odd"]).await;
    kubectl.bad(&["apply", "-f", &odd]).await;
    let quiet = kubectl.good(&["apply", "-f", &odd, "--validate=ignore"]).await;
    assert!(!quiet.contains("unknown field"), "{quiet}");
    kubectl
        .good(&["delete", "projects", "-l", "t=odd", "--cascade=foreground"])
        .await;
    let can = kubectl.good(&["auth", "can-i", "--list"]).await;
    assert!(can.contains("*.*") && can.contains("[*]"), "{can}");
    let listed = kubectl.good(&["get", "projects", "--chunk-size=1", "-o", "name"]).await;
    assert_eq!(listed.trim(), "project.management.loft.sh/default");
    kubectl
        .good(&["replace", "--force", "-f", &odd, "--validate=false"])
        .await;
}
