//! `check` and `test`: what has to hold before a change lands. Fast things first.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::step::{Step, elapsed};
use crate::tidy::Finding;
use crate::{cargo, deny, etcd_suite, kube_clients, kube_tools, layers, oidc_provider, packages, rocksdb, root, tidy};

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
fn locked() -> Option<&'static str> {
    std::env::var_os("CI").map(|_| "--locked")
}

/// Which tests: all, or those that these options of `cargo test` choose.
#[derive(clap::Args)]
pub(crate) struct Choice {
    /// The tests of this package only
    #[arg(short, long, value_name = "NAME")]
    package: Vec<String>,
    /// Only the unit tests of libraries
    #[arg(long)]
    lib: bool,
    /// Only this file of tests
    #[arg(long, value_name = "NAME")]
    test: Vec<String>,
    /// Only tests whose names contain this
    name: Option<String>,
    /// Passed on to the tests, such as --nocapture
    #[arg(last = true)]
    passed_on: Vec<String>,
}

impl Choice {
    /// As `cargo test` takes it.
    pub(crate) fn args(&self) -> Vec<String> {
        let mut args = Vec::from_iter(self.package.iter().map(|name| format!("--package={name}")));
        if args.is_empty() {
            args.push("--workspace".to_owned());
        }
        args.extend(self.lib.then(|| "--lib".to_owned()));
        args.extend(self.test.iter().map(|name| format!("--test={name}")));
        args.extend(self.name.clone());
        if !self.passed_on.is_empty() {
            args.push("--".to_owned());
            args.extend(self.passed_on.iter().cloned());
        }
        args
    }
}

/// `check`, then the tests of `choice`.
pub(crate) fn test(choice: &Choice) -> Result<ExitCode> {
    check()?;
    let tools = kube_tools::ensure()?;
    let clients = kube_clients::ensure()?;
    etcd_suite::ensure()?;
    let provider = oidc_provider::ensure()?;
    let began = Instant::now();
    let mut command = Command::new(cargo());
    command
        .args(["test", "--no-fail-fast"])
        .args(locked())
        .current_dir(root());
    command
        .args(choice.args())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .env("RUST_BACKTRACE", "1");
    command.env("HANSE_KUBE_CLIENTS", clients);
    if let Some(dir) = provider {
        command.env("HANSE_OIDC_PROVIDER", dir);
    }
    if let Some(dir) = tools {
        command.env("HANSE_KUBE_TOOLS", dir);
    }
    eprintln!("tests: {}", format!("{command:?}").replace('"', ""));
    let mut child = command.spawn().context("start cargo test")?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        tally.follow(BufReader::new(stdout))?;
    }
    let status = child.wait().context("wait for cargo test")?;
    println!("{tally} ({})", elapsed(began.elapsed()));
    if status.success() && tally.failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    println!("tests: FAILED, see above");
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|c| u8::try_from(c).ok())
            .filter(|c| *c != 0)
            .unwrap_or(1),
    ))
}

/// The sum of the `test result:` lines: cargo prints one per target and none for all.
#[derive(Default)]
struct Tally {
    targets: u32,
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl Tally {
    /// Passes every line on and counts.
    fn follow(&mut self, output: impl BufRead) -> Result<()> {
        let mut out = std::io::stdout();
        for line in output.split(b'\n') {
            let mut line = line.context("read the output of cargo test")?;
            self.count(&String::from_utf8_lossy(&line));
            line.push(b'\n');
            out.write_all(&line)
                .and_then(|()| out.flush())
                .context("write to the terminal")?;
        }
        Ok(())
    }

    fn count(&mut self, line: &str) {
        let Some(result) = line.trim_start().strip_prefix("test result: ") else {
            return;
        };
        let numbers = result.split(';').map(|part| {
            let mut words = part.split_whitespace().rev();
            (
                words.next().unwrap_or_default(),
                words.next().and_then(|n| n.parse::<u32>().ok()),
            )
        });
        self.targets += 1;
        for (what, number) in numbers {
            match what {
                "passed" => self.passed += number.unwrap_or(0),
                "failed" => self.failed += number.unwrap_or(0),
                "ignored" => self.ignored += number.unwrap_or(0),
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            targets,
            passed,
            failed,
            ignored,
        } = self;
        write!(
            f,
            "all tests: {passed} passed; {failed} failed; {ignored} ignored; in {targets} targets"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_targets_add_up() {
        let mut tally = Tally::default();
        tally.count("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s");
        tally.count("test a::b ... ok");
        tally.count("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s");
        assert_eq!(
            tally.to_string(),
            "all tests: 15 passed; 2 failed; 1 ignored; in 2 targets"
        );
    }
}
