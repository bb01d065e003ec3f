//! The management API and kube-apiserver on etcd side by side: the same load on the same machine, in turns, in one run.
//!
//! ```text
//! cargo xtask bench api [--runs N] [--seconds S] [--clients N] [--objects N] [--watchers N] [--rate N] [--nodes N]
//! ```
//!
//! builds all of it and runs this with the programs' paths. Figures are of the machine that they were taken on; the ratios are
//! what can be compared.

#![allow(missing_docs, reason = "a program")]

use anyhow::Result;
use clap::Parser;
use hanse_chaos_tests::api_bench::{Plan, Programs, run};
use hanse_chaos_tests::programs::tool;
use std::path::PathBuf;

#[derive(Parser)]
#[command(about = "Loads hanse server and kube-apiserver in turns and writes a table and a plot")]
struct Options {
    /// The hanse program
    #[arg(long)]
    hanse: PathBuf,
    /// The kube-apiserver program; etcd is looked for beside it
    #[arg(long)]
    kube_apiserver: PathBuf,
    /// The etcd program
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Where the table and the plot go
    #[arg(long)]
    out: PathBuf,
    /// Where data goes while it runs: a folder on a real disk
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    data: PathBuf,
    /// How often everything is run; who begins changes from run to run
    #[arg(long, default_value_t = Plan::default().runs)]
    runs: usize,
    /// Seconds that count, of each work
    #[arg(long, default_value_t = Plan::default().seconds)]
    seconds: f64,
    /// Clients of get, create, update and apply
    #[arg(long, default_value_t = Plan::default().clients)]
    clients: usize,
    /// Objects that are there
    #[arg(long, default_value_t = Plan::default().objects)]
    objects: usize,
    /// Watches at once
    #[arg(long, default_value_t = Plan::default().watchers)]
    watchers: usize,
    /// Writes per second that they are told of
    #[arg(long, default_value_t = Plan::default().rate)]
    rate: u32,
    /// Servers on each side: 1 or 3
    #[arg(long, default_value_t = Plan::default().nodes)]
    nodes: usize,
    /// Only works whose title holds this
    #[arg(long, default_value = "")]
    only: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let plan = Plan {
        runs: options.runs,
        seconds: options.seconds,
        clients: options.clients,
        objects: options.objects,
        watchers: options.watchers,
        rate: options.rate,
        nodes: options.nodes,
        only: options.only,
    };
    plan.check()?;
    let beside = options.kube_apiserver.with_file_name("etcd");
    let etcd = match options.etcd {
        Some(etcd) => etcd,
        None if beside.is_file() => beside,
        None => tool("etcd")?,
    };
    let programs = Programs {
        hanse: options.hanse,
        etcd,
        kube_apiserver: options.kube_apiserver,
        data: options.data,
    };
    let report = run(&plan, &programs).await?;
    print!("\n{}", report.markdown());
    report.write(&options.out)
}
