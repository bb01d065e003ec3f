//! The unmodified `vcluster` CLI against an installation: what its users do, as administrator and as a member of a project.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use hanse_chaos_tests::World;
use kube::api::{Api, ApiResource, DynamicObject, WatchParams};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MANAGEMENT: &str = "hanse_management";
/// What the issue asks for, in every region.
const REVOCATION: Duration = Duration::from_secs(2);

/// Where `cargo xtask kube-tools --clients` left it; else on PATH.
fn program() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let folders = [
        variable("HANSE_KUBE_CLIENTS").map(|d| d.join("bin")),
        cache.map(|c| c.join("hanse/kube-tools/clients/bin")),
    ];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = folders.into_iter().flatten().chain(std::env::split_paths(&path));
    found
        .find_map(|dir| Some(dir.join("vcluster")).filter(|f| f.is_file()))
        .context("there is no vcluster: `cargo xtask kube-tools --clients` builds it")
}

/// A person with a home of its own, who runs `vcluster`.
struct User {
    home: TempDir,
    program: PathBuf,
}

impl User {
    fn new() -> Result<Self> {
        Ok(Self {
            home: tempfile::tempdir().context("make a home")?,
            program: program()?,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env_clear().current_dir(self.home.path());
        command
            .env("HOME", self.home.path())
            .env("PATH", "/usr/bin:/bin")
            .env("KUBECONFIG", self.path("kubeconfig"))
            .env("VCLUSTER_CONFIG", self.path("config.json"))
            .env("LOFT_TIMEOUT", "3m");
        command
    }

    fn attempt(&self, args: &[&str]) -> Result<Output> {
        self.command(args).output().context("run vcluster")
    }

    /// Standard output and error, which the program mixes as it likes.
    fn vcluster(&self, args: &[&str]) -> Result<String> {
        let output = self.attempt(args)?;
        let text = said(&output);
        ensure!(output.status.success(), "`vcluster {}`: {text}", shown(args));
        let words: Vec<&str> = text.split(' ').collect();
        println!("--- vcluster {}\n{}", shown(args), shown(&words));
        Ok(text)
    }

    /// Runs what must fail; gives what it said.
    fn refused(&self, args: &[&str]) -> Result<String> {
        let output = self.attempt(args)?;
        ensure!(
            !output.status.success(),
            "`vcluster {}` went well: {}",
            shown(args),
            said(&output)
        );
        Ok(said(&output))
    }

    fn log_in(&self, host: &str, key: &str) -> Result<String> {
        self.vcluster(&[
            "platform",
            "login",
            host,
            "--access-key",
            key,
            "--insecure",
            "--use-driver",
            "platform",
        ])
    }

    /// `vcluster list` as documents.
    fn list(&self) -> Result<Vec<Value>> {
        let output = self.attempt(&["list", "--driver", "platform", "--output", "json"])?;
        let text = said(&output);
        ensure!(output.status.success(), "`vcluster list`: {text}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let value: Value = serde_json::from_str(&text).with_context(|| format!("`vcluster list` printed {text:?}"))?;
        Ok(value.as_array().cloned().unwrap_or_default())
    }
}

fn shown(args: &[&str]) -> String {
    let shown: Vec<&str> = args
        .iter()
        .map(|a| if a.starts_with("hak1.") { "KEY" } else { *a })
        .collect();
    shown.join(" ")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned()
}

/// Address of the front door, from the context that `hanse connect --management` wrote.
fn host(world: &World) -> Result<String> {
    let text = world.kubectl(
        MANAGEMENT,
        &[
            "config",
            "view",
            "--minify",
            "-o",
            "jsonpath={.clusters[0].cluster.server}",
        ],
    )?;
    let host = text
        .trim()
        .trim_end_matches('/')
        .trim_end_matches("/kubernetes/management");
    ensure!(host.starts_with("https://"), "no address: {text:?}");
    Ok(host.to_owned())
}

fn admin_key(world: &World) -> Result<String> {
    let path = world.home().join("pki/admin.key");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Runs the real kubectl with a kubeconfig that the CLI printed.
fn kubectl(world: &World, kubeconfig: &Path, args: &[&str]) -> Result<String> {
    let mut command = world.kubectl_command("", &[]);
    // The context of the file itself.
    let program = command.get_program().to_owned();
    command = Command::new(program);
    command.env("KUBECONFIG", kubeconfig).args(args);
    let output = command.output().context("run kubectl")?;
    ensure!(output.status.success(), "kubectl {}: {}", args.join(" "), said(&output));
    Ok(said(&output))
}

fn as_administrator(world: &World, host: &str, admin: &User) -> Result<()> {
    let said = admin.log_in(host, &admin_key(world)?)?;
    ensure!(said.contains("Successfully logged into"), "{said}");
    let me = admin.vcluster(&["platform", "get", "current-user"])?;
    ensure!(me.contains("admin"), "{me}");
    ensure!(admin.list()?.is_empty());
    admin.vcluster(&[
        "create",
        "demo",
        "--driver",
        "platform",
        "--project",
        "default",
        "--chart-version",
        "0.36.1",
        "--connect=false",
    ])?;
    let all = admin.list()?;
    ensure!(
        all.len() == 1 && all[0]["Name"] == "demo" && all[0]["Status"] == "Ready",
        "{all:?}"
    );
    ensure!(
        all[0]["Version"] == "0.36.1" && all[0]["Project"] == "default",
        "{all:?}"
    );
    let again = admin.refused(&[
        "create",
        "demo",
        "--driver",
        "platform",
        "--project",
        "default",
        "--connect=false",
    ])?;
    ensure!(again.contains("already exists"), "{again}");
    admin.vcluster(&["platform", "list", "vclusters"])?;
    admin.vcluster(&["describe", "demo", "--driver", "platform"])?;
    let printed = printed(admin, "demo")?;
    kubectl(world, &printed, &["create", "configmap", "made", "--from-literal=a=b"])?;
    let got = kubectl(
        world,
        &printed,
        &["get", "configmap", "made", "-o", "jsonpath={.data.a}"],
    )?;
    ensure!(got == "b", "{got}");
    admin.vcluster(&["connect", "demo", "--driver", "platform", "--project", "default"])?;
    kubectl(world, &admin.path("kubeconfig"), &["get", "namespaces"])?;
    for (what, wanted) in [("projects", "default"), ("clusters", "eu")] {
        let said = admin.vcluster(&["platform", "list", what])?;
        ensure!(said.contains(wanted), "{said}");
    }
    Ok(())
}

/// A kubeconfig of its own, as `connect --print` gives it.
fn printed(user: &User, name: &str) -> Result<PathBuf> {
    let args = [
        "connect",
        name,
        "--driver",
        "platform",
        "--project",
        "default",
        "--print",
        "--silent",
    ];
    let output = user.attempt(&args)?;
    ensure!(output.status.success(), "{}", said(&output));
    let file = user.path("printed");
    fs::write(&file, &output.stdout).context("write the kubeconfig")?;
    Ok(file)
}

/// Secrets of the project: set, changed, listed and read, by an administrator and by a member.
fn secrets(admin: &User, bob: &User) -> Result<()> {
    let platform =
        |user: &User, args: &[&str]| user.vcluster(&[&["platform"], args, &["--project", "default"]].concat());
    platform(admin, &["set", "secret", "registry.token", "canary-1"])?;
    platform(admin, &["set", "secret", "registry.token", "canary-2"])?;
    platform(admin, &["set", "secret", "registry.user", "ci"])?;
    for user in [admin, bob] {
        let listed = platform(user, &["list", "secrets"])?;
        ensure!(listed.contains("registry"), "{listed}");
        let got = platform(user, &["get", "secret", "registry.token", "--output", "value"])?;
        ensure!(got.contains("canary-2"), "{got}");
    }
    let refused = bob.refused(&[
        "platform",
        "set",
        "secret",
        "registry.token",
        "his",
        "--project",
        "default",
    ])?;
    ensure!(refused.contains("orbidden"), "{refused}");
    Ok(())
}

fn delete(admin: &User) -> Result<()> {
    admin.vcluster(&["delete", "demo", "--driver", "platform", "--project", "default"])?;
    ensure!(admin.list()?.is_empty(), "it is gone when the command ends");
    admin.vcluster(&["platform", "logout"])?;
    let said = admin.refused(&["platform", "get", "current-user"])?;
    ensure!(said.contains("log"), "{said}");
    Ok(())
}

/// What `hanse` alone can do: people, and keys for them.
fn make_bob(world: &World) -> Result<String> {
    world.hanse(&["user", "create", "bob", "--email", "bob@example.com"])?;
    world.hanse(&["team", "create", "devs", "--users", "bob"])?;
    world.hanse(&["members", "add", "--team", "devs", "--role", "user"])?;
    let free = r#"{"spec":{"requireTemplate":{"disabled":true}}}"#;
    world.kubectl(MANAGEMENT, &["patch", "project", "default", "--type=merge", "-p", free])?;
    let members = world.hanse(&["members", "list"])?;
    ensure!(
        members.contains("Team") && members.contains("devs") && members.contains("user"),
        "{members}"
    );
    let users = world.hanse(&["user", "list"])?;
    ensure!(users.contains("bob@example.com") && users.contains("devs"), "{users}");
    let key = world.hanse(&["key", "create", "laptop", "--user", "bob", "--ttl", "1d"])?;
    let key = key.trim().to_owned();
    ensure!(
        key.starts_with("hak1.laptop.") && !key.contains('\n'),
        "nothing but the key is printed"
    );
    let who = world.hanse(&["auth", "who-can", "create", "tenants"])?;
    ensure!(
        who.contains("bob") && who.contains("devs") && who.contains("admin"),
        "{who}"
    );
    let why = world.hanse(&["auth", "why", "delete", "tenant/demo", "--user", "bob"])?;
    ensure!(why.starts_with("no: no role of user"), "{why}");
    Ok(key)
}

fn as_member(world: &World, host: &str, admin: &User, bob: &User, key: &str) -> Result<()> {
    bob.log_in(host, key)?;
    let me = bob.vcluster(&["platform", "get", "current-user"])?;
    ensure!(me.contains("bob@example.com"), "{me}");
    ensure!(bob.list()?.is_empty(), "what is not shared with him is not listed");
    bob.refused(&["delete", "demo", "--driver", "platform", "--project", "default"])?;
    bob.refused(&[
        "connect",
        "demo",
        "--driver",
        "platform",
        "--project",
        "default",
        "--print",
    ])?;
    bob.vcluster(&[
        "create",
        "his",
        "--driver",
        "platform",
        "--project",
        "default",
        "--connect=false",
    ])?;
    let all = bob.list()?;
    ensure!(
        all.len() == 1 && all[0]["Name"] == "his" && all[0]["Status"] == "Ready",
        "{all:?}"
    );
    kubectl(world, &printed(bob, "his")?, &["create", "configmap", "his"])?;
    admin.vcluster(&[
        "platform",
        "share",
        "vcluster",
        "demo",
        "--project",
        "default",
        "--user",
        "bob",
        "--cluster-role",
        "view",
    ])?;
    ensure!(bob.list()?.len() == 2, "what is shared with him is listed");
    let shared = printed(bob, "demo")?;
    kubectl(world, &shared, &["get", "configmap", "made"])?;
    let refused = kubectl(world, &shared, &["create", "configmap", "more"])
        .err()
        .map(|e| format!("{e:#}"));
    ensure!(
        refused.as_ref().is_some_and(|e| e.contains("orbidden")),
        "a viewer wrote: {refused:?}"
    );
    let made = bob.vcluster(&["platform", "create", "accesskey", "k1"])?;
    let own = made
        .split_whitespace()
        .find(|w| w.starts_with("hak1.k1."))
        .context("no key was printed")?;
    bob.log_in(host, own)?;
    bob.vcluster(&["delete", "his", "--driver", "platform", "--project", "default"])?;
    Ok(())
}

/// Watches of bob in every region end when his key does, and so do those inside a tenant cluster.
async fn revoked_everywhere(world: &World, key: &str) -> Result<()> {
    let resource = ApiResource {
        group: "management.loft.sh".into(),
        version: "v1".into(),
        api_version: "management.loft.sh/v1".into(),
        kind: "VirtualClusterInstance".into(),
        plural: "virtualclusterinstances".into(),
    };
    let mut watches = Vec::new();
    for region in ["eu", "us", "ap"] {
        let context = format!("{MANAGEMENT}_{region}");
        let args = [
            "config",
            "view",
            "--minify",
            "-o",
            "jsonpath={.clusters[0].cluster.server}",
        ];
        let server = world.kubectl(&context, &args)?;
        for path in ["", "/../project/default/virtualcluster/demo"] {
            let url = format!("{}{path}", server.trim()).replace("/management/..", "");
            let mut config = kube::Config::new(url.parse().context("an address")?);
            config.accept_invalid_certs = true;
            config.auth_info.token = Some(key.to_owned().into());
            let client = kube::Client::try_from(config).context("make a client")?;
            let stream = if path.is_empty() {
                let api: Api<DynamicObject> = Api::all_with(client, &resource);
                api.watch(&WatchParams::default(), "0")
                    .await
                    .context("watch")?
                    .map_ok(|_| ())
                    .left_stream()
            } else {
                let api: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::all(client);
                api.watch(&WatchParams::default(), "0")
                    .await
                    .context("watch")?
                    .map_ok(|_| ())
                    .right_stream()
            };
            let mut stream = stream.boxed();
            // It is open when it has shown something.
            stream
                .try_next()
                .await
                .with_context(|| format!("watch at {url}"))?
                .context("an event")?;
            watches.push((url, stream));
        }
    }
    let begun = Instant::now();
    world.hanse(&["key", "revoke", "laptop"])?;
    for (url, mut stream) in watches {
        let ended = async { while let Ok(Some(())) = stream.try_next().await {} };
        let left = REVOCATION.saturating_sub(begun.elapsed());
        tokio::time::timeout(left, ended)
            .await
            .with_context(|| format!("{url} still sends after {REVOCATION:?}"))?;
    }
    println!(
        "six watches in three regions ended {:.1?} after the command to revoke began",
        begun.elapsed()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_vcluster_cli_works_unmodified() -> Result<()> {
    let world = World::up(31)?;
    world.hanse(&["connect", "--management"])?;
    let host = host(&world)?;
    let (admin, bob) = (User::new()?, User::new()?);
    as_administrator(&world, &host, &admin)?;
    let key = make_bob(&world)?;
    as_member(&world, &host, &admin, &bob, &key)?;
    secrets(&admin, &bob)?;
    revoked_everywhere(&world, &key).await?;
    delete(&admin)?;
    world.finish()
}
