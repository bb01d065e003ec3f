//! `hanse store` and etcd side by side: the same load, flags, file system and machine, in turns, in one run.
//!
//! ```text
//! cargo xtask bench store [--runs N] [--seconds S] [--kills N] [--keys N]
//! ```
//!
//! builds both and runs this with their paths. Both answer a write when a majority has it on disk (fdatasync). Figures are of
//! the machine that they were taken on; the ratios are what can be compared.

#![allow(missing_docs, unreachable_pub, clippy::print_stderr, reason = "a program")]

mod cluster;
mod faults;
mod hindered;
mod load;
mod report;
mod watch;
mod works;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use cluster::{Cluster, Peer, Programs};
use load::{Figures, Window};
use report::{Line, Report};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use works::{WORKS, Work};

#[derive(Parser)]
#[command(about = "Loads hanse store and etcd in turns and writes a table and a plot")]
struct Options {
    /// The hanse program
    #[arg(long)]
    hanse: PathBuf,
    /// The etcd program
    #[arg(long)]
    etcd: PathBuf,
    /// Where the table and the plot go
    #[arg(long)]
    out: PathBuf,
    /// Where data goes while it runs: a folder on a real disk
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    data: PathBuf,
    /// How often everything is run; who begins changes from run to run
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Seconds that count, of each work
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Only works of so many members
    #[arg(long)]
    members: Option<usize>,
    /// Only works whose title holds this
    #[arg(long, default_value = "")]
    only: String,
    /// How often the leader of three is killed; 0: not
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Leave out puts while leadership moves and while a follower stands still
    #[arg(long)]
    unhindered: bool,
    /// Keys for the look at memory and restart; 0: not
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.runs > 0, "--runs must be at least 1");
    ensure!(
        options.seconds.is_finite() && options.seconds >= 0.5,
        "--seconds must be at least 0.5"
    );
    let programs = Programs {
        etcd: options.etcd.clone(),
        hanse: options.hanse.clone(),
        data: options.data.clone(),
    };
    let works: Vec<Work> = WORKS
        .iter()
        .filter(|w| options.members.is_none_or(|n| n == w.nodes) && w.title.contains(&options.only))
        .copied()
        .collect();
    ensure!(!works.is_empty(), "no work has that title and number of members");
    let mut report = Report {
        preface: preface(&options, &programs)?,
        lines: works.iter().map(line).collect(),
        ..Report::default()
    };
    for run in 0..options.runs {
        for nodes in [1, 3] {
            for peer in turn(run) {
                println!("run {}, {nodes} members, {}", run + 1, peer.name());
                all_works(&mut report, peer, nodes, &programs, options.seconds).await?;
            }
        }
    }
    if !options.unhindered && options.members != Some(1) {
        report.hindered = hindered::all(&programs, window(options.seconds)).await?;
    }
    if options.kills > 0 {
        println!("kill -9 of the leader, {} times each", options.kills);
        let etcd = faults::leader_kills(Peer::Etcd, &programs, options.kills).await?;
        let ours = faults::leader_kills(Peer::Hanse, &programs, options.kills).await?;
        report.kills = Some((options.kills, etcd, ours));
    }
    if options.keys > 0 {
        println!("{} keys on one member", options.keys);
        let etcd = faults::bulk(Peer::Etcd, &programs, options.keys).await?;
        let ours = faults::bulk(Peer::Hanse, &programs, options.keys).await?;
        report.bulk = Some((etcd, ours));
    }
    print!("{}", report.markdown());
    report.write(&options.out)
}

fn window(seconds: f64) -> Window {
    Window {
        warm_up: Duration::from_secs(1),
        counted: Duration::from_secs_f64(seconds),
    }
}

/// The machine warms up, caches fill: nobody always begins.
const fn turn(run: usize) -> [Peer; 2] {
    if run.is_multiple_of(2) {
        [Peer::Etcd, Peer::Hanse]
    } else {
        [Peer::Hanse, Peer::Etcd]
    }
}

fn line(work: &Work) -> Line {
    Line {
        title: work.title.to_owned(),
        nodes: work.nodes,
        work: Some(*work),
        etcd: Vec::new(),
        hanse: Vec::new(),
    }
}

/// All works of `nodes` members, on one fresh cluster.
async fn all_works(report: &mut Report, peer: Peer, nodes: usize, programs: &Programs, seconds: f64) -> Result<()> {
    if report.lines.iter().all(|line| line.nodes != nodes) {
        return Ok(());
    }
    let window = window(seconds);
    let cluster = Cluster::start(peer, programs, nodes).await?;
    for line in report.lines.iter_mut().filter(|line| line.nodes == nodes) {
        let Some(work) = line.work else { continue };
        let run = work.run(&cluster, window).await;
        let figures: Figures = run.with_context(|| format!("{}, {nodes} members, {}", work.title, peer.name()))?;
        println!(
            "  {:<26} {:>9.0}/s  p50 {:>7.2} ms  p99 {:>7.2} ms",
            work.title, figures.per_second, figures.p50, figures.p99
        );
        match peer {
            Peer::Etcd => line.etcd.push(figures),
            Peer::Hanse => line.hanse.push(figures),
        }
    }
    Ok(())
}

fn preface(options: &Options, programs: &Programs) -> Result<Vec<String>> {
    let first = |program: &PathBuf, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        let output = output.with_context(|| format!("run {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok::<_, anyhow::Error>(text.lines().next().unwrap_or_default().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let cpu = cpu.map_or("unknown", |name| name.trim_start_matches([':', ' ', '\t']));
    Ok(vec![
        format!(
            "- {} beside {}, with the same flags.",
            first(&programs.hanse, &["version"])?,
            first(&programs.etcd, &["--version"])?
        ),
        format!("- {cores} cores ({cpu}), shared by load and servers; one disk for all members."),
        format!(
            "- {} runs of {} s for each work after 1 s of warming up; values of {} bytes.",
            options.runs,
            options.seconds,
            works::VALUE
        ),
    ])
}
