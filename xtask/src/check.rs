//! `check`: what has to hold before any test runs. Fast things first.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step::Step;
use crate::tidy::Finding;
use crate::{cargo, deny, layers, packages, rocksdb, root, tidy};

/// Everything that runs no product code.
pub(crate) fn check() -> Result<()> {
    packages::install()?;
    // Seconds, and most mistakes: before anything long starts.
    let step = Step::start("format", "");
    step.run(
        Command::new(cargo())
            .args(["fmt", "--all", "--check"])
            .current_dir(root()),
    )
    .context("run `cargo fmt --all`")?;
    step.finish("ok");
    tidy()?;
    // From here on cargo builds the store's crate, which wants its library.
    rocksdb::ensure()?;
    let step = Step::start("clippy", "");
    step.run(&mut clippy())?;
    step.finish("ok");
    deny::check()
}

/// The house rules alone.
pub(crate) fn tidy() -> Result<()> {
    report("layers", layers::check)?;
    report("tidy", tidy::check)
}

fn report(name: &'static str, rules: fn(&std::path::Path) -> Result<Vec<Finding>>) -> Result<()> {
    let step = Step::start(name, "");
    let findings = rules(&root())?;
    if findings.is_empty() {
        step.finish("ok");
        return Ok(());
    }
    drop(step);
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("{name}: {} to mend, listed above", findings.len())
}

fn clippy() -> Command {
    let mut command = Command::new(cargo());
    command.args(["clippy", "--workspace", "--all-targets"]);
    command
        .args(locked())
        .args(["--", "-D", "warnings"])
        .current_dir(root());
    command
}

/// CI must not invent versions; at a desk an edit of a manifest may update the lock file.
pub(crate) fn locked() -> Option<&'static str> {
    std::env::var_os("CI").map(|_| "--locked")
}
