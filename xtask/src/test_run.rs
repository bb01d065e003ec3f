//! `test`: the checks, all tests, and those that failed once more.
//!
//! Process tests kill servers on a machine that others use as well, and a thousand of them run at every change. A few that
//! fail are run again, alone, when everything else is over. Those that pass then are named as flaky in the closing
//! lines: each is a bug, of the test or of the product, whose first output stands above.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::check::{check, locked};
use crate::step::elapsed;
use crate::{cargo, etcd_suite, kube_clients, kube_tools, oidc_provider, root};

/// More failures than this are no accident of the machine.
const REPEATED_MAX: usize = 3;

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
        let mut args = self.packages();
        args.extend(self.lib.then(|| "--lib".to_owned()));
        args.extend(self.test.iter().map(|name| format!("--test={name}")));
        args.extend(self.name.clone());
        if !self.passed_on.is_empty() {
            args.push("--".to_owned());
            args.extend(self.passed_on.iter().cloned());
        }
        args
    }

    fn packages(&self) -> Vec<String> {
        if self.package.is_empty() {
            return vec!["--workspace".to_owned()];
        }
        Vec::from_iter(self.package.iter().map(|name| format!("--package={name}")))
    }

    /// The same packages, so that cargo has nothing to build, and of them just `failed`.
    fn again(&self, failed: &Failed) -> Vec<String> {
        let mut args = self.packages();
        args.extend(failed.files.iter().map(|name| format!("--test={name}")));
        args.extend(["--".to_owned(), "--exact".to_owned()]);
        args.extend(self.passed_on.iter().cloned());
        args.extend(failed.names.iter().cloned());
        args
    }
}

/// `check`, then the tests of `choice`.
pub(crate) fn test(choice: &Choice) -> Result<ExitCode> {
    check()?;
    let tools = Tools::ensure()?;
    let began = Instant::now();
    let (status, mut tally) = tools.run(choice.args())?;
    if let Some(failed) = tally.repeatable() {
        println!("tests: {failed} failed: once more, alone");
        let (status, again) = tools.run(choice.again(&failed))?;
        if status.success() && again.all_passed(&failed) {
            tally.flaky(&failed);
            println!("{tally} ({})", elapsed(began.elapsed()));
            println!(
                "tests: FLAKY: {failed} failed, and passed alone: a bug to be found; the failure's output is above"
            );
            return Ok(ExitCode::SUCCESS);
        }
    }
    println!("{tally} ({})", elapsed(began.elapsed()));
    if status.success() && tally.failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    println!("tests: FAILED, see above");
    let code = status.code().and_then(|c| u8::try_from(c).ok());
    Ok(ExitCode::from(code.filter(|c| *c != 0).unwrap_or(1)))
}

/// What tests find by their environment.
struct Tools(Vec<(&'static str, std::path::PathBuf)>);

impl Tools {
    fn ensure() -> Result<Self> {
        let mut found = vec![("HANSE_KUBE_CLIENTS", kube_clients::ensure()?)];
        found.extend(kube_tools::ensure()?.map(|dir| ("HANSE_KUBE_TOOLS", dir)));
        etcd_suite::ensure()?;
        found.extend(oidc_provider::ensure()?.map(|dir| ("HANSE_OIDC_PROVIDER", dir)));
        Ok(Self(found))
    }

    /// `cargo test` with `args`: its output is passed on, and counted.
    fn run(&self, args: Vec<String>) -> Result<(ExitStatus, Tally)> {
        // One pipe for both, or nothing tells which file of tests a result belongs to.
        let (reader, writer) = std::io::pipe().context("create a pipe")?;
        let mut command = Command::new(cargo());
        command
            .args(["test", "--no-fail-fast"])
            .args(locked())
            .args(args)
            .current_dir(root());
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().context("create a pipe")?)
            .stderr(writer)
            .env("RUST_BACKTRACE", "1")
            .envs(self.0.iter().map(|(name, dir)| (name, dir)));
        eprintln!("tests: {}", format!("{command:?}").replace('"', ""));
        let mut child = command.spawn().context("start cargo test")?;
        // The command object keeps our write ends open: without this the read never ends.
        drop(command);
        let mut tally = Tally::default();
        tally.follow(BufReader::new(reader))?;
        let status = child.wait().context("wait for cargo test")?;
        Ok((status, tally))
    }
}

/// Tests that failed, and the files in `tests/` that they are in.
#[derive(Debug, PartialEq, Eq)]
struct Failed {
    files: BTreeSet<String>,
    names: Vec<String>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = Vec::from_iter(self.files.iter().map(String::as_str));
        write!(f, "{} (tests/{})", self.names.join(", "), files.join(", tests/"))
    }
}

/// What the output of `cargo test` says: it prints a result per target and none for all.
#[derive(Default)]
struct Tally {
    targets: u32,
    passed: u32,
    failed: u32,
    flaky: u32,
    ignored: u32,
    /// Of tests that failed.
    names: Vec<String>,
    /// Targets that failed, as cargo lists them at its end: `-p PACKAGE --test FILE`.
    failed_targets: Vec<String>,
    /// Targets whose tests came to an end, some of them failed.
    counted_targets: usize,
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
        if let Some(name) = line.strip_prefix("---- ").and_then(|l| l.strip_suffix(" stdout ----")) {
            self.names.push(name.to_owned());
        }
        let listed = line.strip_prefix("    `-p ").and_then(|l| l.strip_suffix('`'));
        self.failed_targets.extend(listed.map(str::to_owned));
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
        self.counted_targets += usize::from(result.starts_with("FAILED"));
        for (what, number) in numbers {
            match what {
                "passed" => self.passed += number.unwrap_or(0),
                "failed" => self.failed += number.unwrap_or(0),
                "ignored" => self.ignored += number.unwrap_or(0),
                _ => {}
            }
        }
    }

    /// What is worth another try: a few tests with real processes. A unit test depends on nothing but its code, and a
    /// target that crashed names no test.
    fn repeatable(&self) -> Option<Failed> {
        let all_known = self.names.len() == self.failed as usize && self.counted_targets == self.failed_targets.len();
        if !all_known || self.names.is_empty() || self.names.len() > REPEATED_MAX {
            return None;
        }
        let files = self.failed_targets.iter().map(|target| {
            let (_, file) = target.split_once(" --test ")?;
            Some(file.to_owned())
        });
        Some(Failed {
            files: files.collect::<Option<_>>()?,
            names: self.names.clone(),
        })
    }

    /// Whether each of `failed` passed this time.
    fn all_passed(&self, failed: &Failed) -> bool {
        self.failed == 0 && self.passed as usize == failed.names.len()
    }

    fn flaky(&mut self, failed: &Failed) {
        self.flaky = std::mem::take(&mut self.failed);
        debug_assert_eq!(self.flaky as usize, failed.names.len());
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            targets,
            passed,
            failed,
            flaky,
            ignored,
            ..
        } = self;
        write!(
            f,
            "all tests: {passed} passed; {failed} failed; {flaky} flaky; {ignored} ignored; in {targets} targets"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s";
    const BAD: &str = "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s";

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.count(line);
        }
        tally
    }

    #[test]
    fn results_of_all_targets_add_up() {
        assert_eq!(
            tally(&[GOOD, "test a::b ... ok", BAD, BAD]).to_string(),
            "all tests: 18 passed; 2 failed; 0 flaky; 1 ignored; in 3 targets"
        );
    }

    #[test]
    fn a_few_failures_of_process_tests_are_repeated_and_nothing_else() {
        const NAME: &str = "---- a::b stdout ----";
        const PROCESS: &str = "    `-p hanse-agent --test processes`";
        let found = tally(&[GOOD, NAME, BAD, PROCESS]).repeatable().unwrap();
        assert_eq!(found.to_string(), "a::b (tests/processes)");
        let choice = Choice {
            package: vec!["hanse-agent".into()],
            lib: false,
            test: vec![],
            name: Some("a".into()),
            passed_on: vec!["--nocapture".into()],
        };
        assert_eq!(
            choice.again(&found),
            [
                "--package=hanse-agent",
                "--test=processes",
                "--",
                "--exact",
                "--nocapture",
                "a::b"
            ]
        );
        for (why, lines) in [
            ("nothing failed", &[GOOD][..]),
            ("a unit test", &[NAME, BAD, "    `-p hanse-agent --lib`"]),
            (
                "a unit test among others",
                &[NAME, BAD, PROCESS, NAME, BAD, "    `-p hanse-agent --lib`"],
            ),
            (
                "another target crashed",
                &[NAME, BAD, PROCESS, "    `-p hanse-agent --test other`"],
            ),
            ("a name is missing", &[BAD, PROCESS]),
            (
                "too many",
                &[
                    NAME, BAD, NAME, BAD, NAME, BAD, NAME, BAD, PROCESS, PROCESS, PROCESS, PROCESS,
                ],
            ),
        ] {
            assert_eq!(tally(lines).repeatable(), None, "{why}");
        }
    }

    #[test]
    fn only_what_ran_again_and_passed_is_flaky() {
        let mut first = tally(&["---- a stdout ----", BAD, "    `-p x --test y`"]);
        let failed = first.repeatable().unwrap();
        let one = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 1s";
        assert!(tally(&[one]).all_passed(&failed));
        for again in [&[BAD][..], &[], &["test result: ok. 0 passed; 0 failed; 0 ignored"]] {
            assert!(!tally(again).all_passed(&failed), "{again:?}");
        }
        first.flaky(&failed);
        assert_eq!(
            first.to_string(),
            "all tests: 3 passed; 0 failed; 1 flaky; 0 ignored; in 1 targets"
        );
    }
}
