//! Real processes: adoption, records, and that nothing is left behind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use hanse_agent::process::{self, Exit, Process, Record, Spec, adopt, spawn, stop, stop_records};
use hanse_agent::{files, stop_all};
use hanse_runtime::clock::SystemClock;
use hanse_runtime::rng::{Rng, SystemRng};
use std::path::{Path, PathBuf};
use std::time::Duration;

const GRACE: Duration = Duration::from_secs(5);

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for dir in [place.run(), place.log()] {
            files::private_dir(&dir).unwrap();
        }
        place
    }

    fn run(&self) -> PathBuf {
        self.dir.path().join("tenants/t/run")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("tenants/t/log")
    }

    fn spec(&self, name: &str, script: &str) -> Spec {
        Spec {
            name: name.into(),
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("PATH".into(), "/usr/bin:/bin".into()), ("WORD".into(), "hello".into())],
            dir: self.dir.path().to_owned(),
            inputs: String::new(),
            ports: vec![1],
            stop_rank: 0,
        }
    }

    fn spawn(&self, name: &str, script: &str) -> Process {
        spawn(&self.spec(name, script), SystemRng.uuid(), &self.run(), &self.log()).unwrap()
    }

    fn records(&self) -> Vec<Record> {
        process::load_all(&self.run()).unwrap()
    }

    async fn wait_for(&self, file: &str) {
        wait_until(|| self.dir.path().join(file).exists()).await;
    }
}

async fn wait_until(mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain");
}

/// Processes that carry `mark`, zombies not counted.
fn marked(mark: &str) -> usize {
    let has = |pid: &Path| {
        let stat = std::fs::read_to_string(pid.join("stat")).unwrap_or_default();
        let alive = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'));
        alive && std::fs::read(pid.join("environ")).is_ok_and(|env| String::from_utf8_lossy(&env).contains(mark))
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .filter(|entry| has(&entry.as_ref().unwrap().path()))
        .count()
}

#[tokio::test]
async fn output_goes_to_the_log_and_the_environment_is_its_own() {
    let place = Place::new();
    let mut process = place.spawn("a", "echo $WORD ${HOME-none}; exit 3");
    assert_eq!(process.wait().await.unwrap(), Exit::Code(3));
    assert_eq!(
        std::fs::read_to_string(place.log().join("a.log")).unwrap(),
        "hello none\n"
    );
    assert!(process::load_alive(&place.run()).unwrap().is_empty());
    assert!(place.records().is_empty(), "records of ended processes are removed");
}

#[tokio::test]
async fn a_process_outlives_its_supervisor_is_adopted_and_its_end_noticed() {
    let place = Place::new();
    let first = place.spawn("a", "exec sleep 600");
    let record = first.record().clone();
    drop(first);
    let alive = process::load_alive(&place.run()).unwrap();
    assert_eq!(alive, std::slice::from_ref(&record));
    assert_eq!(record.spec, place.spec("a", "exec sleep 600").digest());
    let mut adopted = adopt(record.clone()).unwrap().unwrap();
    let clock = SystemClock::new();
    let (ended, stopped) = tokio::join!(adopted.wait(), stop(&record, GRACE, &clock));
    assert_eq!(ended.unwrap(), Exit::Unknown);
    stopped.unwrap();
    assert!(adopt(record).unwrap().is_none());
}

#[tokio::test]
async fn a_record_without_pid_leads_to_the_process_by_its_mark() {
    let place = Place::new();
    let process = place.spawn("a", "sleep 600 & wait");
    let whole = process.record().clone();
    wait_until(|| marked(&whole.mark) == 2).await;
    // As if the agent had died between the spawn and the second write.
    let half = Record {
        pid: None,
        start_ticks: None,
        ..whole.clone()
    };
    std::fs::write(place.run().join("a.json"), serde_json::to_vec(&half).unwrap()).unwrap();
    assert_eq!(place.records(), std::slice::from_ref(&whole));
    stop(&whole, Duration::ZERO, &SystemClock::new()).await.unwrap();
}

#[tokio::test]
async fn a_reused_pid_is_never_touched() {
    let place = Place::new();
    let stranger = place.spawn("stranger", "exec sleep 600");
    let theirs = stranger.record().clone();
    let ours = Record {
        name: "a".into(),
        mark: "other".into(),
        start_ticks: Some(1),
        ..theirs.clone()
    };
    let other_boot = Record {
        boot_id: "before".into(),
        mark: "other".into(),
        ..theirs.clone()
    };
    for record in [&ours, &other_boot] {
        assert!(!record.is_alive().unwrap());
        stop(record, Duration::ZERO, &SystemClock::new()).await.unwrap();
        assert!(adopt(record.clone()).unwrap().is_none());
    }
    assert!(theirs.is_alive().unwrap());
    stop(&theirs, Duration::ZERO, &SystemClock::new()).await.unwrap();
    assert!(!theirs.is_alive().unwrap());
}

#[tokio::test]
async fn stopping_asks_first_kills_what_does_not_listen_and_spares_no_child() {
    let place = Place::new();
    let polite = place.spawn(
        "polite",
        "trap 'echo bye > polite-bye; exit 0' TERM; touch polite-up; while :; do sleep 0.05; done",
    );
    let deaf = place.spawn(
        "deaf",
        "trap '' TERM; setsid sleep 600 & touch deaf-up; while :; do sleep 0.05; done",
    );
    place.wait_for("polite-up").await;
    place.wait_for("deaf-up").await;
    let clock = SystemClock::new();
    stop(polite.record(), GRACE, &clock).await.unwrap();
    place.wait_for("polite-bye").await;
    stop(deaf.record(), Duration::from_millis(200), &clock).await.unwrap();
    wait_until(|| marked(&polite.record().mark) + marked(&deaf.record().mark) == 0).await;
}

#[tokio::test]
async fn higher_ranks_are_stopped_first() {
    let place = Place::new();
    let script = |name: &str| {
        format!("trap 'date +%s%N > {name}-end; exit 0' TERM; touch {name}-up; while :; do sleep 0.02; done")
    };
    let mut records = Vec::new();
    for (name, rank) in [("server", 0), ("client", 1)] {
        let spec = Spec {
            stop_rank: rank,
            ..place.spec(name, &script(name))
        };
        records.push(
            spawn(&spec, SystemRng.uuid(), &place.run(), &place.log())
                .unwrap()
                .record()
                .clone(),
        );
        place.wait_for(&format!("{name}-up")).await;
    }
    stop_records(&place.run(), records, GRACE, &SystemClock::new())
        .await
        .unwrap();
    let end = |name: &str| -> u64 {
        std::fs::read_to_string(place.dir.path().join(format!("{name}-end")))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    assert!(end("client") < end("server"));
    assert!(place.records().is_empty());
}

#[tokio::test]
async fn stop_all_leaves_no_orphan() {
    let place = Place::new();
    let marks: Vec<String> = ["a", "b", "c"]
        .iter()
        .map(|name| place.spawn(name, "sleep 600 & sleep 600").record().mark.clone())
        .collect();
    wait_until(|| marks.iter().all(|mark| marked(mark) == 3)).await;
    assert_eq!(
        stop_all(place.dir.path(), Duration::ZERO, &SystemClock::new())
            .await
            .unwrap(),
        3
    );
    wait_until(|| marks.iter().all(|mark| marked(mark) == 0)).await;
    assert_eq!(stop_all(place.dir.path(), GRACE, &SystemClock::new()).await.unwrap(), 0);
}

#[tokio::test]
async fn a_missing_program_is_named_and_leaves_no_record() {
    let place = Place::new();
    let spec = Spec {
        program: "/no/such/program".into(),
        ..place.spec("a", "")
    };
    let error = spawn(&spec, "m".into(), &place.run(), &place.log()).unwrap_err();
    assert!(error.to_string().contains("/no/such/program") && !error.retryable());
    assert!(place.records().is_empty());
}
