//! `hanse store` in etcd's place: real processes, driven by etcd's own command line program.

#![allow(missing_docs, clippy::unwrap_used, reason = "test code")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// Where a pinned tool lies, if it was built on this machine.
fn tool(name: &str) -> Option<PathBuf> {
    let folder = match std::env::var_os("HANSE_KUBE_TOOLS") {
        Some(word) if word == "PATH" => {
            let path = std::env::var_os("PATH")?;
            return std::env::split_paths(&path)
                .map(|dir| dir.join(name))
                .find(|file| file.is_file());
        }
        Some(dir) => PathBuf::from(dir),
        None => {
            let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
            cache.join("hanse/kube-tools/current")
        }
    };
    Some(folder.join("bin").join(name)).filter(|file| file.is_file())
}

struct Cluster {
    members: Vec<Child>,
    endpoints: Vec<String>,
    etcdctl: PathBuf,
    dir: TempDir,
}

impl Cluster {
    /// Starts so many members and waits until each says that it is ready.
    fn start(count: usize) -> Option<Self> {
        let Some(etcdctl) = tool("etcdctl") else {
            println!("skipped: no etcdctl; `cargo xtask kube-tools` builds it");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        // All are bound at once, so that they differ.
        let ports: Vec<_> = (0..2 * count)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let url = |n: usize| format!("http://{}", ports[n].local_addr().unwrap());
        let urls: Vec<(String, String)> = (0..count).map(|n| (url(2 * n), url(2 * n + 1))).collect();
        drop(ports);
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
                .env("ETCD_DATA_DIR", dir.path().join(format!("m{n}")))
                .env_remove("HANSE_LOG")
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut members: Vec<Child> = urls.iter().enumerate().map(start).collect();
        for member in &mut members {
            let mut lines = BufReader::new(member.stderr.take().unwrap())
                .lines()
                .map_while(Result::ok);
            assert!(
                lines.any(|line| line.contains("ready to serve client requests")),
                "a member ended"
            );
            // Whatever it says later must not fill the pipe.
            std::thread::spawn(move || lines.for_each(drop));
        }
        Some(Self {
            members,
            endpoints: urls.into_iter().map(|(client, _)| client).collect(),
            etcdctl,
            dir,
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.etcdctl);
        command.args(["--endpoints", &self.endpoints.join(",")]).args(args);
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
