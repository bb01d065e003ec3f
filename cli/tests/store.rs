//! `hanse store` in etcd's place: real processes, driven by etcd's own command line program.

#![allow(missing_docs, clippy::unwrap_used, reason = "test code")]

#[path = "support/processes.rs"]
mod processes;

use processes::{free_ports, tool, wait_until_ready};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

struct Cluster {
    members: Vec<Child>,
    endpoints: Vec<String>,
    etcdctl: PathBuf,
    dir: TempDir,
    /// Flags of etcdctl.
    client: &'static [&'static str],
}

/// How a cluster differs from the usual one.
#[derive(Clone, Copy)]
struct Setup {
    count: usize,
    scheme: &'static str,
    server: &'static [&'static str],
    client: &'static [&'static str],
}

impl Setup {
    const fn plain(count: usize) -> Self {
        Self {
            count,
            scheme: "http",
            server: &[],
            client: &[],
        }
    }
}

impl Cluster {
    /// Starts so many members and waits until each says that it is ready.
    fn start(count: usize) -> Option<Self> {
        Self::set_up(Setup::plain(count))
    }

    fn set_up(setup: Setup) -> Option<Self> {
        let Some(etcdctl) = tool("etcdctl") else {
            println!("skipped: no etcdctl; `cargo xtask kube-tools` builds it");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let ports = free_ports(2 * setup.count);
        let url = |n: usize| format!("{}://{}", setup.scheme, ports[n]);
        let urls: Vec<(String, String)> = (0..setup.count).map(|n| (url(2 * n), url(2 * n + 1))).collect();
        let all: Vec<String> = urls
            .iter()
            .enumerate()
            .map(|(n, (_, peer))| format!("m{n}={peer}"))
            .collect();
        let start = |(n, (client, peer)): (usize, &(String, String))| {
            Command::new(env!("CARGO_BIN_EXE_hanse"))
                .args(["store", "--name", &format!("m{n}"), "--initial-cluster", &all.join(",")])
                .args(["--listen-client-urls", client, "--advertise-client-urls", client])
                .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
                .args(setup.server)
                .env("ETCD_DATA_DIR", dir.path().join(format!("m{n}")))
                .env_remove("HANSE_LOG")
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut members: Vec<Child> = urls.iter().enumerate().map(start).collect();
        members.iter_mut().for_each(wait_until_ready);
        Some(Self {
            members,
            endpoints: urls.into_iter().map(|(client, _)| client).collect(),
            etcdctl,
            dir,
            client: setup.client,
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.etcdctl);
        command.args(["--endpoints", &self.endpoints.join(",")]);
        command.args(self.client).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a verb prints; it must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{args:?}: {out}{err}");
        out.into_owned()
    }

    /// What a verb complains of; it must fail.
    fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(!output.status.success(), "{args:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn with_input(&self, args: &[&str], input: &str) -> String {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.kill().unwrap();
            member.wait().unwrap();
        }
    }
}

/// The lines that a verb prints while it goes on, until it is dropped.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(cluster: &Cluster, args: &[&str]) -> Self {
        let mut child = cluster.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn etcdctl_reads_and_writes() {
    let Some(cluster) = Cluster::start(1) else { return };
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
        assert_eq!(cluster.ok(&["put", key, value]), "OK\n");
    }
    assert_eq!(cluster.ok(&["put", "a", "4", "--prev-kv"]), "OK\na\n1\n");
    assert_eq!(cluster.ok(&["get", "a"]), "a\n4\n");
    assert_eq!(cluster.ok(&["get", "a", "--rev=2", "--print-value-only"]), "1\n");
    assert_eq!(
        cluster.ok(&["get", "", "--prefix", "--keys-only", "--limit=2"]),
        "a\n\nb\n\n"
    );
    assert_eq!(
        cluster.ok(&["get", "a", "c", "--order=DESCEND", "--print-value-only"]),
        "2\n4\n"
    );
    assert_eq!(cluster.ok(&["get", "b", "--from-key", "--print-value-only"]), "2\n3\n");
    let by_value = [
        "get",
        "",
        "--prefix",
        "--sort-by=VALUE",
        "--order=DESCEND",
        "--print-value-only",
    ];
    assert_eq!(cluster.ok(&by_value), "4\n3\n2\n");
    assert!(
        cluster
            .ok(&["get", "", "--prefix", "--count-only", "--write-out=fields"])
            .contains("\"Count\" : 3")
    );
    assert_eq!(
        cluster.ok(&["get", "a", "--consistency=s", "--print-value-only"]),
        "4\n"
    );
    assert_eq!(cluster.ok(&["del", "b", "--prev-kv"]), "1\nb\n2\n");
    let txn = "value(\"a\") = \"4\"\n\nput x yes\nget a\n\nput x no\n\n";
    assert_eq!(cluster.with_input(&["txn"], txn), "SUCCESS\n\nOK\n\na\n4\n");
    assert_eq!(cluster.ok(&["compaction", "5"]), "compacted revision 5\n");
    assert!(
        cluster
            .fails(&["get", "a", "--rev=2"])
            .contains("required revision has been compacted")
    );
    assert!(
        cluster
            .fails(&["compaction", "5"])
            .contains("required revision has been compacted")
    );
    assert!(
        cluster
            .fails(&["get", "a", "--rev=1000"])
            .contains("required revision is a future revision")
    );
    let mut watch = Running::start(&cluster, &["watch", "x", "--rev=6", "--prev-kv"]);
    let seen: Vec<String> = (0..3).map(|_| watch.line()).collect();
    assert_eq!(seen, ["PUT", "x", "yes"]);
    assert!(cluster.fails(&["user", "list"]).contains("Unimplemented"));
    assert!(cluster.dir.path().join("m0").exists());
}

/// Every task ends in its phase; one that does not costs each stop five seconds, and what it holds is not closed.
#[test]
fn a_store_that_is_told_to_stop_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let ports = free_ports(2);
    let [client, peer] = [0, 1].map(|n| format!("http://{}", ports[n]));
    let mut store = Command::new(env!("CARGO_BIN_EXE_hanse"))
        .args(["store", "--initial-cluster", &format!("default={peer}")])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .env("ETCD_DATA_DIR", dir.path().join("data"))
        .env_remove("HANSE_LOG")
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(&log).unwrap();
    while !said().contains("ready to serve client requests") {
        assert!(store.try_wait().unwrap().is_none(), "{}", said());
        std::thread::sleep(Duration::from_millis(20));
    }
    kill_process(Pid::from_child(&store), Signal::TERM).unwrap();
    let status = store.wait().unwrap();
    assert!(status.success(), "{status}: {}", said());
    assert!(!said().contains("overran"), "{}", said());
}

#[test]
fn etcdctl_leases_locks_and_elects() {
    let Some(cluster) = Cluster::start(1) else { return };
    let granted = cluster.ok(&["lease", "grant", "600"]);
    let id = granted.split(' ').nth(1).unwrap().to_owned();
    assert_eq!(granted, format!("lease {id} granted with TTL(600s)\n"));
    cluster.ok(&["put", "leased", "v", "--lease", &id]);
    assert!(
        cluster
            .ok(&["lease", "timetolive", &id, "--keys"])
            .contains("attached keys([leased])")
    );
    assert!(cluster.ok(&["lease", "keep-alive", "--once", &id]).contains("TTL(600)"));
    assert!(cluster.ok(&["lease", "list"]).contains(&id));
    assert_eq!(cluster.ok(&["lease", "revoke", &id]), format!("lease {id} revoked\n"));
    assert_eq!(cluster.ok(&["get", "leased"]), "");
    assert!(
        cluster
            .fails(&["lease", "revoke", &id])
            .contains("requested lease not found")
    );
    assert_eq!(cluster.ok(&["lock", "door", "echo", "held"]), "held\n");
    let mut holder = Running::start(&cluster, &["lock", "door"]);
    assert!(holder.line().starts_with("door/"));
    let mut leader = Running::start(&cluster, &["elect", "chair", "me"]);
    assert!(leader.line().starts_with("chair/"));
    assert_eq!(leader.line(), "me");
    let mut observer = Running::start(&cluster, &["elect", "--listen", "chair"]);
    assert!(observer.line().starts_with("chair/"));
}

#[test]
fn etcdctl_looks_after_a_cluster() {
    let Some(cluster) = Cluster::start(3) else { return };
    cluster.ok(&["put", "k", "v"]);
    let members = cluster.ok(&["member", "list"]);
    assert_eq!(members.lines().count(), 3, "{members}");
    for endpoint in &cluster.endpoints {
        assert!(members.contains(endpoint.as_str()), "{members}");
    }
    assert!(members.lines().all(|line| line.contains(", started, m")), "{members}");
    let health = cluster.ok(&["endpoint", "health", "--cluster", "--write-out=json"]);
    assert_eq!(health.matches("\"health\":true").count(), 3, "{health}");
    assert_eq!(cluster.ok(&["alarm", "list"]), "");
    cluster.ok(&["defrag", "--cluster"]);
    let hashes = cluster.ok(&["endpoint", "hashkv"]);
    let hash: Vec<&str> = hashes.lines().filter_map(|line| line.split(", ").nth(1)).collect();
    assert!(hash.len() == 3 && hash.iter().all(|one| *one == hash[0]), "{hashes}");
    let leader = |status: &str| {
        let of_leader = status
            .lines()
            .find(|line| line.contains(", true, false, "))
            .unwrap()
            .to_owned();
        let id = of_leader.split(", ").nth(1).unwrap().to_owned();
        (of_leader.split(", ").next().unwrap().to_owned(), id)
    };
    let (at, old) = leader(&cluster.ok(&["endpoint", "status"]));
    let next = members
        .lines()
        .filter_map(|line| line.split(", ").next())
        .find(|id| *id != old)
        .unwrap();
    let moved = Command::new(&cluster.etcdctl)
        .args(["--endpoints", &at, "move-leader", next])
        .output()
        .unwrap();
    assert!(moved.status.success(), "{moved:?}");
    assert_eq!(leader(&cluster.ok(&["endpoint", "status"])).1, next);
    let refused = Command::new(&cluster.etcdctl)
        .args(["--endpoints", &at, "move-leader", &old])
        .output()
        .unwrap();
    assert!(!refused.status.success(), "a follower has no leadership to give");
}

#[test]
fn certificates_that_members_make_up_are_enough_for_a_cluster() {
    let setup = Setup {
        scheme: "https",
        server: &["--auto-tls", "--peer-auto-tls"],
        client: &["--insecure-transport=false", "--insecure-skip-tls-verify"],
        ..Setup::plain(3)
    };
    let Some(cluster) = Cluster::set_up(setup) else { return };
    cluster.ok(&["put", "k", "v"]);
    assert_eq!(cluster.ok(&["get", "k", "--print-value-only"]), "v\n");
    let health = cluster.ok(&["endpoint", "health", "--write-out=json"]);
    assert_eq!(health.matches("\"health\":true").count(), 3, "{health}");
}

/// An etcd on a data directory, and how to ask it.
struct Etcd {
    child: Child,
    endpoint: String,
}

impl Etcd {
    fn start(program: &PathBuf, data: &std::path::Path) -> Self {
        let ports = free_ports(2);
        let (client, peer) = (format!("http://{}", ports[0]), format!("http://{}", ports[1]));
        let mut child = Command::new(program)
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_until_ready(&mut child);
        Self {
            child,
            endpoint: client,
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What a verb of etcdctl finds, without what names the server: lines of `key : value`.
fn facts(etcdctl: &PathBuf, endpoint: &str, args: &[&str]) -> String {
    let output = Command::new(etcdctl)
        .args(["--endpoints", endpoint, "--write-out=fields"])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let named = ["\"ClusterID\"", "\"MemberID\"", "\"RaftTerm\""];
    let lines = text
        .lines()
        .filter(|line| !named.iter().any(|name| line.starts_with(name)));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn an_etcd_goes_on_from_a_snapshot() {
    let (Some(etcd), Some(etcdutl)) = (tool("etcd"), tool("etcdutl")) else {
        println!("skipped: no etcd and etcdutl; `cargo xtask test` builds them");
        return;
    };
    let Some(cluster) = Cluster::start(1) else { return };
    for n in 0..300 {
        cluster.ok(&["put", &format!("key-{:03}", n % 40), &format!("{n}").repeat(n % 50)]);
    }
    for key in ["key-007", "key-011"] {
        cluster.ok(&["del", key]);
    }
    let granted = cluster.ok(&["lease", "grant", "6000"]);
    let id = granted.split(' ').nth(1).unwrap();
    cluster.ok(&["put", "leased", "v", "--lease", id]);
    cluster.ok(&["compaction", "150"]);
    cluster.with_input(&["txn"], "\nput z 1\nput y 2\ndel key-020\n\n\n");
    cluster.ok(&["put", "key-007", "back"]);
    let (file, data) = (
        cluster.dir.path().join("snapshot.db"),
        cluster.dir.path().join("restored"),
    );
    cluster.ok(&["snapshot", "save", file.to_str().unwrap()]);
    let run = |args: &[&str]| {
        let output = Command::new(&etcdutl).args(args).arg(&file).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let status = run(&["--write-out=fields", "snapshot", "status"]);
    assert!(status.contains("\"Revision\" : 306"), "{status}");
    run(&["snapshot", "restore", "--data-dir", data.to_str().unwrap()]);
    let theirs = Etcd::start(&etcd, &data);
    let ours = &cluster.endpoints[0];
    let questions: [&[&str]; 8] = [
        &["get", "", "--prefix"],
        &["get", "", "--prefix", "--rev=150"],
        &["get", "", "--prefix", "--rev=200"],
        &["get", "", "--prefix", "--rev=303"],
        &["get", "key-007", "--rev=301"],
        &["get", "key-007", "--rev=302"],
        &["lease", "list"],
        &["get", "leased"],
    ];
    for question in questions {
        let [want, have] = [&theirs.endpoint, ours].map(|endpoint| facts(&cluster.etcdctl, endpoint, question));
        assert_eq!(have, want, "{question:?} (ours is left, etcd's right)");
    }
    let compacted = Command::new(&cluster.etcdctl)
        .args(["--endpoints", &theirs.endpoint, "get", "leased", "--rev=149"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&compacted.stderr).contains("has been compacted"),
        "{compacted:?}"
    );
}

/// Name and type of each metric on a client address.
fn metric_types(address: &str) -> BTreeMap<String, String> {
    let text = page(address, "/metrics");
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let kinds = kinds.filter_map(|line| line.split_once(' '));
    kinds.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

fn page(endpoint: &str, path: &str) -> String {
    let address = endpoint.split_once("://").unwrap().1;
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// What dashboards and alerts for etcd look at.
const METRICS: &[&str] = &[
    "etcd_server_has_leader",
    "etcd_server_is_leader",
    "etcd_server_is_learner",
    "etcd_server_id",
    "etcd_server_version",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_pending",
    "etcd_server_proposals_failed_total",
    "etcd_server_apply_duration_seconds",
    "etcd_server_snapshot_apply_in_progress_total",
    "etcd_server_quota_backend_bytes",
    "etcd_disk_wal_fsync_duration_seconds",
    "etcd_disk_backend_commit_duration_seconds",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_mvcc_put_total",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_txn_total",
    "etcd_mvcc_range_total",
    "etcd_debugging_mvcc_keys_total",
    "etcd_debugging_mvcc_current_revision",
    "etcd_debugging_mvcc_compact_revision",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_debugging_mvcc_slow_watcher_total",
    "etcd_debugging_mvcc_pending_events_total",
    "etcd_debugging_mvcc_events_total",
    "etcd_debugging_lease_granted_total",
    "etcd_debugging_lease_revoked_total",
    "etcd_debugging_lease_renewed_total",
    "etcd_debugging_server_lease_expired_total",
    "grpc_server_started_total",
    "grpc_server_handled_total",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_open_fds",
];

/// The figure in the one line that starts so.
fn figure(text: &str, start: &str) -> f64 {
    let found: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(start)).collect();
    let [one] = found[..] else { panic!("{start} in {text}") };
    one.trim().parse().unwrap()
}

#[test]
fn dashboards_for_etcd_find_the_same_metrics() {
    let Some(cluster) = Cluster::start(1) else { return };
    let Some(etcd) = tool("etcd") else {
        println!("skipped: no etcd; `cargo xtask kube-tools` builds it");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(&etcd, dir.path());
    for endpoint in [&etcd.endpoint, &cluster.endpoints[0]] {
        facts(&cluster.etcdctl, endpoint, &["put", "k", "v"]);
        facts(&cluster.etcdctl, endpoint, &["put", "l", "v"]);
        facts(&cluster.etcdctl, endpoint, &["del", "k"]);
        facts(&cluster.etcdctl, endpoint, &["get", "l"]);
        facts(&cluster.etcdctl, endpoint, &["lease", "grant", "600"]);
    }
    let (theirs, ours) = (metric_types(&etcd.endpoint), metric_types(&cluster.endpoints[0]));
    for name in METRICS {
        assert!(theirs.contains_key(*name), "an etcd has no {name}");
        assert_eq!(ours.get(*name), theirs.get(*name), "{name}");
    }
    // Other metrics under these names would be read for something that they are not.
    let strange = ours
        .keys()
        .filter(|name| !theirs.contains_key(*name) && !name.starts_with("hanse_"));
    assert_eq!(strange.collect::<Vec<_>>(), Vec::<&String>::new());
    let (theirs, ours) = (
        page(&etcd.endpoint, "/metrics"),
        page(&cluster.endpoints[0], "/metrics"),
    );
    for sample in [
        "etcd_mvcc_put_total ",
        "etcd_mvcc_delete_total ",
        "etcd_debugging_lease_granted_total ",
        "etcd_server_has_leader ",
        "etcd_server_is_leader ",
        "etcd_server_leader_changes_seen_total ",
        "etcd_debugging_mvcc_current_revision ",
        "etcd_server_proposals_failed_total ",
        "grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} ",
        "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} ",
    ] {
        assert_eq!(figure(&ours, sample), figure(&theirs, sample), "{sample}");
    }
    assert!(figure(&ours, "etcd_disk_wal_fsync_duration_seconds_count ") >= 4.0);
    assert!(figure(&ours, "hanse_store_commit_duration_seconds_count ") >= 4.0);
    assert!(figure(&ours, "hanse_store_space_bytes{space=\"registry\"} ") > 0.0);
}
