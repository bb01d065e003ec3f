//! `bench`: Hanse beside its peers, on this machine.

use std::process::Command;

use anyhow::{Context, Result};

use crate::step::Step;
use crate::{cargo, kube_tools, packages, rocksdb, root, up};

/// Builds both stores and the load, then becomes the load; `args` are its own.
pub(crate) fn store(args: &[String]) -> Result<()> {
    packages::install()?;
    rocksdb::ensure()?;
    let tools = kube_tools::ensure()?;
    let etcd = match tools {
        Some(dir) => dir.join("bin/etcd"),
        None => packages::on_path("etcd").context("there is no etcd on PATH")?,
    };
    let hanse = up::build()?;
    let step = Step::start("load", "building target release");
    const LOAD: [&str; 4] = ["--package", "hanse-chaos-tests", "--example", "store_bench"];
    step.run(
        Command::new(cargo())
            .args(["build", "--release"])
            .args(LOAD)
            .current_dir(root()),
    )?;
    step.finish("built");
    let mut command = Command::new(cargo());
    command.args(["run", "--quiet", "--release"]).args(LOAD).arg("--");
    command.arg("--hanse").arg(hanse).arg("--etcd").arg(etcd);
    command.arg("--out").arg(root().join("docs/bench")).args(args);
    let status = command.current_dir(root()).status().context("run the load")?;
    anyhow::ensure!(status.success(), "the load failed: {status}");
    Ok(())
}
