//! Members of `hanse store` that come and go: real processes, driven by etcd's own command line program, and beside etcd itself.

#![allow(missing_docs, clippy::unwrap_used, reason = "test code")]

#[path = "support/processes.rs"]
mod processes;

use processes::{free_ports, tool, wait_until_ready};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// For whatever should happen soon; generous, because test machines are slow and busy.
const SOON: Duration = Duration::from_secs(60);

/// A process that ends with its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().unwrap();
    }
}

/// Where a member is reached, and its data.
struct Place {
    name: String,
    client: String,
    peer: String,
    dir: PathBuf,
}

fn places(dir: &Path, count: usize) -> Vec<Place> {
    let ports = free_ports(2 * count);
    let place = |n: usize| Place {
        name: format!("m{n}"),
        client: format!("http://{}", ports[2 * n]),
        peer: format!("http://{}", ports[2 * n + 1]),
        dir: dir.join(format!("m{n}")),
    };
    (0..count).map(place).collect()
}

/// The flags that etcd and `hanse store` share.
fn flags(mut command: Command, place: &Place, cluster: &[&Place], state: &str) -> Command {
    let all: Vec<String> = cluster.iter().map(|one| format!("{}={}", one.name, one.peer)).collect();
    command
        .args(["--name", &place.name, "--initial-cluster", &all.join(",")])
        .args(["--initial-cluster-state", state])
        .args([
            "--listen-client-urls",
            &place.client,
            "--advertise-client-urls",
            &place.client,
        ])
        .args([
            "--listen-peer-urls",
            &place.peer,
            "--initial-advertise-peer-urls",
            &place.peer,
        ])
        .arg("--data-dir")
        .arg(&place.dir)
        .env_remove("HANSE_LOG")
        .stderr(Stdio::piped());
    command
}

fn hanse(place: &Place, cluster: &[&Place], state: &str) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hanse"));
    command.arg("store");
    Process(flags(command, place, cluster, state).spawn().unwrap())
}

fn etcdctl(endpoint: &str, args: &[&str]) -> Output {
    let program = tool("etcdctl").unwrap();
    Command::new(program)
        .args(["--endpoints", endpoint])
        .args(args)
        .output()
        .unwrap()
}

fn ok(endpoint: &str, args: &[&str]) -> String {
    let output = etcdctl(endpoint, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What etcdctl says last when a verb fails; nothing when it succeeds.
fn complaint(endpoint: &str, args: &[&str]) -> String {
    let output = etcdctl(endpoint, args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = text.lines().rfind(|line| line.starts_with("Error: "));
    last.unwrap_or_default().to_owned()
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < SOON, "no {what} within {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The id of the member with this peer URL.
fn id_of(endpoint: &str, peer: &str) -> String {
    let list = ok(endpoint, &["member", "list"]);
    let line = list.lines().find(|line| line.contains(peer)).unwrap();
    line.split(", ").next().unwrap().to_owned()
}

/// Puts without a pause; every single one must succeed. etcd's client does not send a put twice.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    lanes: Vec<std::thread::JoinHandle<Option<String>>>,
}

impl Load {
    fn start(endpoint: &str) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let lane = |lane: usize| {
            let (stop, done, endpoint) = (Arc::clone(&stop), Arc::clone(&done), endpoint.to_owned());
            std::thread::spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let output = etcdctl(&endpoint, &["put", &format!("load/{lane}/{n}"), "v"]);
                    if !output.status.success() {
                        return Some(format!("{output:?}"));
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                None
            })
        };
        let lanes = (0..3).map(lane).collect();
        Self { stop, done, lanes }
    }

    fn more(&self, n: usize) {
        let until = self.done.load(Ordering::Relaxed) + n;
        wait_for("puts", || (self.done.load(Ordering::Relaxed) >= until).then_some(()));
    }

    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for lane in self.lanes {
            assert_eq!(lane.join().unwrap(), None, "a put failed");
        }
        self.done.load(Ordering::Relaxed)
    }
}

fn is_voter(place: &Place) -> bool {
    let output = etcdctl(&place.client, &["endpoint", "status", "--write-out=json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success() && text.contains("\"Status\"") && !text.contains("\"isLearner\":true")
}

#[test]
fn one_member_becomes_three_and_one_again_under_load_without_a_failed_put() {
    if tool("etcdctl").is_none() {
        println!("skipped: no etcdctl; `cargo xtask kube-tools` builds it");
        return;
    }
    let dir = TempDir::new().unwrap();
    let all = places(dir.path(), 3);
    let [first, second, third] = [&all[0], &all[1], &all[2]];
    let mut one = hanse(first, &[first], "new");
    wait_until_ready(&mut one.0);
    let big = "x".repeat(100_000);
    for n in 0..50 {
        ok(&first.client, &["put", &format!("big/{n}"), &big]);
    }
    let load = Load::start(&first.client);
    // As a voter: it follows until it has the data, and votes then.
    let said = ok(
        &first.client,
        &["member", "add", &second.name, "--peer-urls", &second.peer],
    );
    assert!(said.contains("ETCD_INITIAL_CLUSTER_STATE=\"existing\""), "{said}");
    load.more(10);
    let mut two = hanse(second, &[first, second], "existing");
    wait_until_ready(&mut two.0);
    wait_for("the vote of the second", || is_voter(second).then_some(()));
    // As a learner, through the follower, once that has served for the 5 s that etcd wants; killed while it is filled, and
    // started again.
    let learner = ["member", "add", &third.name, "--learner", "--peer-urls", &third.peer];
    wait_for("the end of the second's first seconds", || {
        let complaint = complaint(&second.client, &learner);
        assert!(
            complaint.is_empty() || complaint.contains("unhealthy cluster"),
            "{complaint}"
        );
        complaint.is_empty().then_some(())
    });
    let id = id_of(&first.client, &third.peer);
    assert!(complaint(&second.client, &["member", "promote", &id]).contains("in sync with leader"));
    for _ in 0..2 {
        let three = hanse(third, &[first, second, third], "existing");
        wait_for("the place of the third", || {
            third.dir.join("raft/server-id").exists().then_some(())
        });
        drop(three);
        load.more(10);
    }
    let mut three = hanse(third, &[first, second, third], "existing");
    wait_until_ready(&mut three.0);
    assert!(!is_voter(third));
    wait_for("the promotion", || {
        let complaint = complaint(&second.client, &["member", "promote", &id]);
        assert!(
            complaint.is_empty() || complaint.contains("in sync with leader"),
            "{complaint}"
        );
        complaint.is_empty().then_some(())
    });
    wait_for("three members that run", || {
        let list = ok(&third.client, &["member", "list"]);
        let fine = |line: &str| line.contains(", started, m") && line.ends_with(", false");
        (list.lines().count() == 3 && list.lines().all(fine)).then_some(())
    });
    load.more(20);
    for (place, process) in [(third, &mut three), (second, &mut two)] {
        ok(&first.client, &["member", "remove", &id_of(&first.client, &place.peer)]);
        let ended = wait_for("the end of the removed member", || process.0.try_wait().unwrap());
        assert!(!ended.success());
        load.more(20);
    }
    let puts = load.finish();
    println!("{puts} puts while members came and went");
    let count = ok(
        &first.client,
        &["get", "load/", "--prefix", "--count-only", "--write-out=fields"],
    );
    assert!(count.contains(&format!("\"Count\" : {puts}\n")), "{puts}: {count}");
    // Its data does not bring a removed member back.
    let mut again = hanse(second, &[first, second], "existing");
    let mut said = String::new();
    again.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("was removed from the cluster for good"), "{said}");
    assert_eq!(ok(&first.client, &["member", "list"]).lines().count(), 1);
}

/// The same questions to etcd and to us, and the same complaints.
#[test]
fn refusals_are_etcds_word_for_word() {
    let (Some(etcd), Some(_)) = (tool("etcd"), tool("etcdctl")) else {
        println!("skipped: no etcd; `cargo xtask kube-tools` builds it");
        return;
    };
    let dir = TempDir::new().unwrap();
    let all = places(dir.path(), 2);
    let mut theirs = Process(flags(Command::new(etcd), &all[0], &[&all[0]], "new").spawn().unwrap());
    wait_until_ready(&mut theirs.0);
    let mut ours = hanse(&all[1], &[&all[1]], "new");
    wait_until_ready(&mut ours.0);
    // What each says of a row of verbs; ids and URLs of its own in their places.
    let answers = |place: &Place| {
        let own = id_of(&place.client, &place.peer);
        let ask = |args: &[&str]| complaint(&place.client, &[&["member"], args].concat());
        let nowhere = "http://127.0.0.1:9";
        let mut said = vec![
            ask(&["remove", "1234"]),
            ask(&["promote", "1234"]),
            ask(&["update", "1234", "--peer-urls", nowhere]),
            ask(&["promote", &own]),
            ask(&["remove", &own]),
            ask(&["add", "x", "--peer-urls", &place.peer]),
            ask(&["add", "x", "--learner", "--peer-urls", &place.peer]),
            ask(&["add", "x", "--peer-urls", "ftp://127.0.0.1:9"]),
            ask(&["add", "x", "--peer-urls", "http://127.0.0.1"]),
            ask(&["add", "x", "--peer-urls", "http://127.0.0.1:9/path"]),
            ask(&["add", "l", "--learner", "--peer-urls", nowhere]),
        ];
        let learner = id_of(&place.client, nowhere);
        // etcd draws ids from the URL and the second, so no URL is added twice here.
        said.extend([
            ask(&["add", "m", "--learner", "--peer-urls", "http://127.0.0.1:10"]),
            ask(&["promote", &learner]),
            ask(&["update", &learner, "--peer-urls", &place.peer]),
            ask(&["update", &learner, "--peer-urls", "http://127.0.0.1:11"]),
            ask(&["remove", &learner]),
            ask(&["remove", &learner]),
            ask(&["promote", &learner]),
            // From here on etcd has no quorum, but still refuses; we have one until the new member votes.
            ask(&["add", "v", "--peer-urls", "http://127.0.0.1:12"]),
            ask(&["add", "w", "--peer-urls", "http://127.0.0.1:13"]),
        ]);
        said
    };
    let (theirs_said, ours_said) = (answers(&all[0]), answers(&all[1]));
    assert_eq!(ours_said, theirs_said);
    let refused = ours_said.iter().filter(|line| !line.is_empty()).count();
    assert_eq!((refused, ours_said.len()), (16, 20), "{ours_said:?}");
}

/// A watch of etcdctl's, which asks for a leader. What it says goes into a file.
fn watch_into(endpoint: &str, file: &Path) -> Process {
    let said = File::create(file).unwrap();
    let mut command = Command::new(tool("etcdctl").unwrap());
    command.args(["--endpoints", endpoint, "watch", "k"]);
    Process(command.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap())
}

/// etcd and we alike: with two of three members gone, what is open ends, what is new is refused, and both are told why.
#[test]
fn a_watch_that_asks_for_a_leader_ends_where_there_is_none() {
    let (Some(etcd), Some(_)) = (tool("etcd"), tool("etcdctl")) else {
        println!("skipped: no etcd; `cargo xtask kube-tools` builds it");
        return;
    };
    for ours in [false, true] {
        let dir = TempDir::new().unwrap();
        let all = places(dir.path(), 3);
        let members: Vec<&Place> = all.iter().collect();
        let start = |place: &Place| match ours {
            true => hanse(place, &members, "new"),
            false => Process(flags(Command::new(&etcd), place, &members, "new").spawn().unwrap()),
        };
        let mut running: Vec<Process> = all.iter().map(start).collect();
        running.iter_mut().for_each(|member| wait_until_ready(&mut member.0));
        let endpoint = &all[0].client;
        let (open, late) = (dir.path().join("open"), dir.path().join("late"));
        let mut watch = watch_into(endpoint, &open);
        wait_for("first event", || {
            ok(endpoint, &["put", "k", "v"]);
            fs::read_to_string(&open).unwrap().contains("PUT").then_some(())
        });
        running.truncate(1);
        for (watch, file) in [(&mut watch, &open), (&mut watch_into(endpoint, &late), &late)] {
            let ended = wait_for("end of the watch", || watch.0.try_wait().unwrap());
            let said = fs::read_to_string(file).unwrap();
            assert!(
                !ended.success() && said.contains("etcdserver: no leader"),
                "ours: {ours}, {said}"
            );
        }
        let old = ["get", "k", "--consistency=s", "--print-value-only"];
        assert_eq!(ok(endpoint, &old), "v\n", "what needs no leader goes on");
    }
}
