//! `hanse store` and etcd side by side: the same load, flags, file system and machine, in turns, in one run.
//!
//! ```text
//! cargo xtask bench store [--runs N] [--seconds S] [--kills N] [--keys N] [--hindered-only]
//! ```
//!
//! builds both and runs this with their paths. Both answer a write when a majority has it on disk (fdatasync). Figures are of
//! the machine that they were taken on; the ratios are what can be compared.

#![allow(missing_docs, unreachable_pub, clippy::print_stderr, reason = "a program")]

mod faults;
mod foreign;
mod hindered;
mod load;
mod report;
mod watch;
mod works;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use hanse_chaos_tests::bench::table::{machine, version};
use hanse_chaos_tests::bench::{Figures, Line, Window};
use hanse_chaos_tests::store_cluster::{Cluster, Peer, Programs};
use report::Report;
use std::path::PathBuf;
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
    /// etcd's own load, called benchmark
    #[arg(long)]
    benchmark: PathBuf,
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
    /// Leave out puts while something is in their way: leadership that moves, a slow link or disk, a stopped follower
    #[arg(long)]
    unhindered: bool,
    /// Only those; into store-hindered.md, so that the whole table stays
    #[arg(long, conflicts_with_all = ["unhindered", "members"])]
    hindered_only: bool,
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
        .filter(|_| !options.hindered_only)
        .copied()
        .collect();
    ensure!(
        options.hindered_only || !works.is_empty(),
        "no work has that title and number of members"
    );
    let mut report = Report {
        preface: preface(&options, &programs)?,
        lines: works.iter().map(line).collect(),
        ..Report::default()
    };
    // Without works there is nothing to run in turns.
    for run in (0..options.runs).take_while(|_| !works.is_empty()) {
        for nodes in [1, 3] {
            for peer in turn(run) {
                println!("run {}, {nodes} members, {}", run + 1, peer.name());
                all_works((&mut report, &works), peer, nodes, &programs, &options).await?;
            }
        }
    }
    if !options.unhindered && options.members != Some(1) {
        let only = if options.hindered_only { &options.only } else { "" };
        report.hindered = hindered::all(&programs, Window::of_seconds(options.seconds), only).await?;
    }
    if options.kills > 0 && !options.hindered_only {
        println!("kill -9 of the leader, {} times each", options.kills);
        let etcd = faults::leader_kills(Peer::Etcd, &programs, options.kills).await?;
        let ours = faults::leader_kills(Peer::Hanse, &programs, options.kills).await?;
        report.kills = Some((options.kills, etcd, ours));
    }
    if options.keys > 0 && !options.hindered_only {
        println!("{} keys on one member", options.keys);
        let etcd = faults::bulk(Peer::Etcd, &programs, options.keys).await?;
        let ours = faults::bulk(Peer::Hanse, &programs, options.keys).await?;
        report.bulk = Some((etcd, ours));
    }
    print!("{}", report.markdown());
    report.write(&options.out)
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
        aim: work.aim,
        ..Line::default()
    }
}

/// All works of `nodes` members, on one fresh cluster.
async fn all_works(
    (report, works): (&mut Report, &[Work]),
    peer: Peer,
    nodes: usize,
    programs: &Programs,
    options: &Options,
) -> Result<()> {
    if works.iter().all(|work| work.nodes != nodes) {
        return Ok(());
    }
    let window = Window::of_seconds(options.seconds);
    let cluster = Cluster::start(peer, programs, nodes).await?;
    for (line, work) in report
        .lines
        .iter_mut()
        .zip(works)
        .filter(|(_, work)| work.nodes == nodes)
    {
        let run = work.run(&cluster, &options.benchmark, window).await;
        let figures: Figures = run.with_context(|| format!("{}, {nodes} members, {}", work.title, peer.name()))?;
        println!(
            "  {:<26} {:>9.0}/s  p50 {:>7.2} ms  p99 {:>7.2} ms",
            work.title, figures.per_second, figures.p50, figures.p99
        );
        match peer {
            Peer::Etcd => line.peer.push(figures),
            Peer::Hanse => line.hanse.push(figures),
        }
    }
    Ok(())
}

fn preface(options: &Options, programs: &Programs) -> Result<Vec<String>> {
    let runs = if options.hindered_only { 1 } else { options.runs };
    Ok(vec![
        format!(
            "- {} beside {}, with the same flags.",
            version(&programs.hanse, &["version"])?,
            version(&programs.etcd, &["--version"])?
        ),
        format!("- {}; one disk for all members.", machine()),
        format!(
            "- {runs} runs of {} s for each work after {} s of warming up; values of {} bytes.",
            options.seconds,
            Window::of_seconds(options.seconds).warm_up.as_secs_f64(),
            works::VALUE
        ),
    ])
}
