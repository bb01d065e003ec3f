//! `bench`: Hanse beside its peers, on this machine.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::kube_tools::{Apart, Versions, folder, go_build};
use crate::step::Step;
use crate::{load, packages, root};

/// Loads both stores in turns; `args` are the load's own.
pub(crate) fn store(args: &[String]) -> Result<()> {
    packages::install()?;
    let benchmark = etcd_benchmark()?;
    load::run("store_bench", "etcd", |command| {
        command.arg("--benchmark").arg(&benchmark);
        command.arg("--out").arg(root().join("docs/bench")).args(args);
        Ok(())
    })
}

/// Finds etcd's own load or builds it.
fn etcd_benchmark() -> Result<PathBuf> {
    let step = Step::start("etcd's benchmark", "");
    let load = Apart {
        key: &Versions::read()?.etcd_benchmark_key(),
        programs: &["benchmark"],
        takes: "a minute",
    };
    let (dir, how) = load.ensure(&step, |bin| {
        let package = "go.etcd.io/etcd/v3/tools/benchmark";
        step.run(&mut go_build(
            &folder().join("etcd-benchmark"),
            "",
            &bin.join("benchmark"),
            package,
        ))
    })?;
    step.finish(&format!("{how} {}", dir.display()));
    Ok(dir.join("bin/benchmark"))
}

/// What can be chosen for `bench api`. The load has the defaults, and looks at how the numbers go together.
#[derive(Args, Default)]
pub(crate) struct ApiOptions {
    /// How often everything is run; who begins changes from run to run [default: 3]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=20))]
    runs: Option<u64>,
    /// Seconds that count, of each work [default: 5]
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Clients of get, create, update and apply [default: 64]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1000))]
    clients: Option<u64>,
    /// Objects that are there [default: 10000]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=40_000))]
    objects: Option<u64>,
    /// Watches at once [default: 1000]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=5000))]
    watchers: Option<u64>,
    /// Writes per second that they are told of [default: 20]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rate: Option<u64>,
    /// Servers on each side: 1 or 3 [default: 1]
    #[arg(long, value_parser = nodes)]
    nodes: Option<u64>,
    /// Only works whose title holds this
    #[arg(long)]
    only: Option<String>,
    /// Where the table and the plot go [default: docs/bench]
    #[arg(long)]
    out: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.5..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("0.5 to 600 are possible".to_owned()),
    }
}

fn nodes(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(nodes @ (1 | 3)) => Ok(nodes),
        _ => Err("1 or 3 are possible".to_owned()),
    }
}

impl ApiOptions {
    /// As the load takes them.
    pub(crate) fn args(&self) -> Vec<String> {
        let number = |name: &str, value: Option<u64>| value.map(|value| format!("--{name}={value}"));
        let numbers = [
            number("runs", self.runs),
            self.seconds.map(|seconds| format!("--seconds={seconds}")),
            number("clients", self.clients),
            number("objects", self.objects),
            number("watchers", self.watchers),
            number("rate", self.rate),
            number("nodes", self.nodes),
            self.only.as_ref().map(|only| format!("--only={only}")),
        ];
        numbers.into_iter().flatten().collect()
    }
}

/// Loads the management API and kube-apiserver in turns.
pub(crate) fn api(options: &ApiOptions) -> Result<()> {
    let out = match &options.out {
        // Where the user is, not where cargo runs it.
        Some(out) => std::env::current_dir().context("find this folder")?.join(out),
        None => root().join("docs/bench"),
    };
    load::run("api_bench", "kube-apiserver", |command| {
        command.arg("--out").arg(out).args(options.args());
        Ok(())
    })
}
