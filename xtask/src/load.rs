//! Loads: examples of `chaos-tests` that are built in release, beside `hanse` and a peer's program, and then run.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::step::Step;
use crate::{cargo, kube_tools, packages, rocksdb, root, up};

/// Builds what is needed, then becomes the load: the example gets `--hanse`, `--<peer>` and what `with` adds.
pub(crate) fn run(example: &str, peer: &str, with: impl FnOnce(&mut Command) -> Result<()>) -> Result<()> {
    packages::install()?;
    rocksdb::ensure()?;
    let program = match kube_tools::ensure()? {
        Some(dir) => dir.join("bin").join(peer),
        None => packages::on_path(peer).with_context(|| format!("there is no {peer} on PATH"))?,
    };
    let hanse = up::build()?;
    let step = Step::start("load", "building target release");
    let load = ["--release", "--package", "hanse-chaos-tests", "--example", example];
    step.run(Command::new(cargo()).arg("build").args(load).current_dir(root()))?;
    step.finish("built");
    let mut command = Command::new(cargo());
    command.args(["run", "--quiet"]).args(load).arg("--");
    command.arg("--hanse").arg(hanse).arg(format!("--{peer}")).arg(program);
    with(&mut command)?;
    let status = command.current_dir(root()).status().context("run the load")?;
    ensure!(status.success(), "{example} failed: {status}");
    Ok(())
}
