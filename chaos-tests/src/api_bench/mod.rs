//! The management API beside kube-apiserver on etcd that serves the same kind as a custom resource: the same driver, bodies,
//! connections and clients, in turns. Both answer a write when a majority of the stores has it on disk (fdatasync).
//!
//! The kind is `projects.management.loft.sh/v1`: people and tools write it, nothing is set up or torn down for one, and the
//! differential tests compare its answers with kube-apiserver's byte by byte. Its schema is the one that Hanse publishes.
//!
//! - [`works`]: what is asked.
//! - [`client`]: the driver.

pub mod client;
mod report;
mod sides;
mod watch;
pub mod works;

pub use report::Report;
pub use sides::Peer;

use crate::bench::table::{machine, version};
use crate::bench::usage::memory_mib;
use crate::bench::{Line, Window};
use anyhow::{Context as _, Result, ensure};
use report::Rest;
use serde_json::Value;
use sides::Side;
use std::fmt::Display;
use std::path::PathBuf;
use works::{Work, fill, works};

/// Events that a run may keep the times of.
const EVENTS: f64 = 2e7;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How often everything is run; who begins changes from run to run.
    pub runs: usize,
    /// Seconds that count, of each work.
    pub seconds: f64,
    /// Clients of get, create, update and apply.
    pub clients: usize,
    /// Objects that are there.
    pub objects: usize,
    /// Watches at once.
    pub watchers: usize,
    /// Writes per second that they are told of.
    pub rate: u32,
    /// Servers on each side: so many `hanse server`, or kube-apiservers and members of etcd.
    pub nodes: usize,
    /// Only works whose title holds this.
    pub only: String,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            runs: 3,
            seconds: 5.0,
            clients: 64,
            objects: 10_000,
            watchers: 1000,
            rate: 20,
            nodes: 1,
            only: String::new(),
        }
    }
}

impl Plan {
    /// Fails, with what is possible, where a number is out of bounds.
    pub fn check(&self) -> Result<()> {
        fn within<T: PartialOrd + Display>(name: &str, value: T, least: T, most: T) -> Result<()> {
            let fits = value >= least && value <= most;
            ensure!(fits, "--{name} takes {least} to {most}, not {value}");
            Ok(())
        }
        within("runs", self.runs, 1, 20)?;
        within("seconds", self.seconds, 0.5, 600.0)?;
        within("clients", self.clients, 1, 1000)?;
        within("objects", self.objects, 1, 40_000)?;
        within("watchers", self.watchers, 1, 5000)?;
        within("rate", self.rate, 1, 1000)?;
        ensure!([1, 3].contains(&self.nodes), "--nodes takes 1 or 3, not {}", self.nodes);
        ensure!(
            self.clients <= self.objects,
            "--clients takes at most as many as there are --objects: each changes some of its own"
        );
        let events = self.watchers as f64 * f64::from(self.rate) * (self.seconds + 1.0);
        ensure!(
            events <= EVENTS,
            "--watchers times --rate times --seconds is {events:.0} events; at most {EVENTS:.0} are possible"
        );
        ensure!(!self.works().is_empty(), "no work has {:?} in its title", self.only);
        Ok(())
    }

    fn works(&self) -> Vec<Work> {
        let mut all = works(self);
        all.retain(|work| work.title.contains(&self.only));
        all
    }
}

/// The programs that are run.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Ours.
    pub hanse: PathBuf,
    /// kube-apiserver.
    pub kube_apiserver: PathBuf,
    /// Its store.
    pub etcd: PathBuf,
    /// Where data goes while it runs: a folder on a real disk.
    pub data: PathBuf,
}

/// Runs all of it.
pub async fn run(plan: &Plan, programs: &Programs) -> Result<Report> {
    plan.check()?;
    let works = plan.works();
    let line = |work: &Work| Line {
        title: work.title.clone(),
        nodes: plan.nodes,
        aim: work.aim,
        ..Line::default()
    };
    let mut report = Report {
        preface: preface(plan, programs)?,
        lines: works.iter().map(line).collect(),
        ..Report::default()
    };
    let schema = sides::schema(programs).await?;
    for run in 0..plan.runs {
        for peer in turn(run) {
            println!("run {}, {}", run + 1, peer.name());
            one_side(&mut report, &works, peer, plan, programs, &schema).await?;
        }
    }
    Ok(report)
}

/// The machine warms up: nobody always begins.
const fn turn(run: usize) -> [Peer; 2] {
    if run.is_multiple_of(2) {
        [Peer::Kubernetes, Peer::Hanse]
    } else {
        [Peer::Hanse, Peer::Kubernetes]
    }
}

/// All works, on servers that were just started.
async fn one_side(
    report: &mut Report,
    works: &[Work],
    peer: Peer,
    plan: &Plan,
    programs: &Programs,
    schema: &Value,
) -> Result<()> {
    let window = Window::of_seconds(plan.seconds);
    let side = Side::start(peer, programs, plan.nodes, schema).await?;
    let processes = side.processes();
    let empty = memory_mib(&processes);
    fill(&side, plan).await?;
    let rest = Rest {
        empty,
        filled: memory_mib(&processes),
    };
    println!("  {rest:?} MiB with {} objects", plan.objects);
    match peer {
        Peer::Kubernetes => report.peer_rest.push(rest),
        Peer::Hanse => report.hanse_rest.push(rest),
    }
    for (line, work) in report.lines.iter_mut().zip(works) {
        let figures = work.run(&side, plan, window).await;
        let figures = figures.with_context(|| format!("{}, {}", work.title, peer.name()))?;
        println!(
            "  {:<34} {:>9.1}/s  p50 {:>8.2} ms  p99 {:>8.2} ms  {:>6} MiB",
            work.title, figures.per_second, figures.p50, figures.p99, figures.memory_mib
        );
        match peer {
            Peer::Kubernetes => line.peer.push(figures),
            Peer::Hanse => line.hanse.push(figures),
        }
    }
    Ok(())
}

fn preface(plan: &Plan, programs: &Programs) -> Result<Vec<String>> {
    let servers = if plan.nodes == 1 {
        "one server of each".to_owned()
    } else {
        format!("{} servers of each", plan.nodes)
    };
    Ok(vec![
        format!(
            "- {}, beside {} on {}; {servers}.",
            version(&programs.hanse, &["version"])?,
            version(&programs.kube_apiserver, &["--version"])?,
            version(&programs.etcd, &["--version"])?,
        ),
        format!("- {}; one disk for all.", machine()),
        format!(
            "- {} runs of {} s for each work after {} s of warming up; {} objects are there.",
            plan.runs,
            plan.seconds,
            Window::of_seconds(plan.seconds).warm_up.as_secs_f64(),
            plan.objects
        ),
        "- The kind is `projects.management.loft.sh/v1`, for Kubernetes a custom resource with the schema that Hanse publishes. \
         Same driver, bodies, connections (HTTP/2 over TLS) and clients for both, by the token of a user who may do everything."
            .to_owned(),
        "- Both answer a write when it is on disk. Hanse authorizes by its roles, writes an audit event with each change and \
         collects garbage in the same process; kube-apiserver runs with `AlwaysAllow`, without audit and without a controller \
         manager."
            .to_owned(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_out_of_bounds_are_refused_with_what_is_possible() {
        Plan::default().check().unwrap();
        let refused = |change: fn(&mut Plan), words: &str| {
            let mut plan = Plan::default();
            change(&mut plan);
            let why = plan.check().unwrap_err().to_string();
            assert!(why.contains(words), "{why}");
        };
        refused(|plan| plan.runs = 0, "--runs takes 1 to 20, not 0");
        refused(|plan| plan.seconds = f64::NAN, "--seconds takes 0.5 to 600");
        refused(|plan| plan.clients = 1001, "--clients takes 1 to 1000");
        refused(|plan| plan.objects = 60, "as many as there are --objects");
        refused(|plan| plan.objects = 50_000, "--objects takes 1 to 40000");
        refused(|plan| plan.watchers = 0, "--watchers takes 1 to 5000");
        refused(|plan| plan.rate = 0, "--rate takes 1 to 1000");
        refused(|plan| plan.nodes = 2, "--nodes takes 1 or 3, not 2");
        refused(
            |plan| (plan.rate, plan.seconds) = (1000, 60.0),
            "61000000 events; at most",
        );
        refused(|plan| plan.only = "delete".into(), "no work has");
    }
}
