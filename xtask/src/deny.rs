//! cargo-deny: which packages, licences and sources may come in (deny.toml).

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::packages::on_path;
use crate::step::Step;
use crate::{cache, cargo, root};

const VERSION: &str = "0.20.2";

/// Skipped, and said so, only where the program is neither there nor to be had.
pub(crate) fn check() -> Result<()> {
    let step = Step::start("dependencies", "");
    let program = match find_or_install(&step) {
        Ok(program) => program,
        Err(error) => {
            step.finish("SKIPPED: cargo-deny could not be installed");
            eprintln!("    because: {error:#}");
            return Ok(());
        }
    };
    // No advisories: their database comes by git from one host, and a check that
    // fails when the world changes belongs in a nightly job, not before a change.
    step.run(
        Command::new(program)
            .args(["--offline", "--all-features", "check", "--hide-inclusion-graph"])
            .args(["bans", "licenses", "sources"])
            .current_dir(root()),
    )?;
    step.finish("ok");
    Ok(())
}

fn find_or_install(step: &Step) -> Result<PathBuf> {
    if let Some(program) = on_path("cargo-deny") {
        return Ok(program);
    }
    let parent = cache::root()?.join("tools");
    let key = format!("cargo-deny-{VERSION}");
    let program = parent.join(&key).join("bin/cargo-deny");
    if program.is_file() {
        return Ok(program);
    }
    let entry = cache::Entry::lock(&parent, &key, || step.say("another build runs, waiting"))?;
    if !program.is_file() {
        let log = parent.join(format!("{key}.log"));
        step.say(&format!("installing cargo-deny {VERSION}; log: {}", log.display()));
        step.log_to(&log);
        let scratch = entry.scratch()?;
        let out = scratch.join("out");
        let mut install = Command::new(cargo());
        install.args(["install", "cargo-deny", "--locked", "--version", VERSION]);
        install
            .arg("--root")
            .arg(&out)
            .arg("--target-dir")
            .arg(scratch.join("target"));
        // Not from the checkout: its cargo configuration is not meant for this.
        step.run(install.current_dir(scratch))?;
        entry.publish(&out)?;
    }
    Ok(program)
}
