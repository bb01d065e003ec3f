//! etcd's own end-to-end tests against `hanse store`. They are built from a pinned Go module, once per machine; nothing of
//! them is kept here. Which ones pass and why others do not: docs/ETCD.md.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::kube_tools::{self, Apart, Versions, folder, go_build};
use crate::step::Step;
use crate::{cache, cargo, packages, root};

const MODULE: &str = "go.etcd.io/etcd/tests/v3";
/// What is left out has its reason in docs/ETCD.md.
const MUST_PASS: &str = "^Test(Alarm.*|Compact|DefragOnline|Endpoint.*|VerifyHashKV.*|KV.*|Lease.*|Member.*|Status|Txn.*|WaitLeader.*|Watch)$";

/// Runs the tests that must pass, or those that a pattern of Go's names.
pub(crate) fn run(pattern: Option<&str>) -> Result<()> {
    packages::install()?;
    let tools = kube_tools::ensure()?.context("etcd's suite needs a folder of tools, not those on PATH")?;
    let suite = ensure()?;
    build_hanse()?;
    let scratch = suite.join("run");
    let bin = scratch.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
    cache::relink(&bin.join("etcdctl"), &tools.join("bin/etcdctl"))?;
    cache::relink(&bin.join("etcdutl"), &suite.join("bin/etcdutl"))?;
    let hanse = root().join("target/debug/hanse");
    let wrapper = bin.join("etcd");
    fs::write(
        &wrapper,
        format!("#!/bin/sh\nexec '{}' store \"$@\"\n", hanse.display()),
    )
    .context("write the wrapper")?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).context("make the wrapper a program")?;
    let mut tests = Command::new(suite.join("bin/common.test"));
    tests.current_dir(&scratch).args(["-test.v", "-test.timeout=60m"]);
    tests.arg(format!("-test.run={}", pattern.unwrap_or(MUST_PASS)));
    tests.arg("-bin-dir").arg(&bin).arg("-cert-dir").arg(fixtures()?);
    follow(&mut tests, &scratch.join("log"))
}

fn build_hanse() -> Result<()> {
    let status = Command::new(cargo())
        .current_dir(root())
        .args(["build", "--locked", "-p", "hanse"])
        .status();
    if !status.context("run cargo build")?.success() {
        bail!("hanse could not be built");
    }
    Ok(())
}

/// Finds the suite and etcdutl, which other tests run too, or builds them, and leads the link `etcd-suite` to them.
pub(crate) fn ensure() -> Result<PathBuf> {
    let step = Step::start("etcd's tests", "");
    let suite = Apart {
        key: &Versions::read()?.etcd_suite_key(),
        programs: &["common.test", "etcdutl"],
        takes: "2 minutes",
    };
    let module = folder().join("etcd-suite");
    let (dir, how) = suite.ensure(&step, |bin| {
        let etcdutl = "go.etcd.io/etcd/etcdutl/v3";
        step.run(&mut go_build(&module, "", &bin.join("etcdutl"), etcdutl))?;
        let mut tests = Command::new("go");
        tests.current_dir(&module).env("CGO_ENABLED", "0").env_remove("GOFLAGS");
        tests.args(["test", "-mod=readonly", "-tags", "e2e", "-c", "-o"]);
        tests.arg(bin.join("common.test")).arg(format!("{MODULE}/common"));
        step.run(&mut tests)
    })?;
    cache::relink(&dir.with_file_name("etcd-suite"), Path::new(suite.key))?;
    step.finish(&format!("{how} {}", dir.display()));
    Ok(dir)
}

/// Where the certificates lie that the tests hand out.
fn fixtures() -> Result<PathBuf> {
    let list = Command::new("go")
        .current_dir(folder().join("etcd-suite"))
        .args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", MODULE])
        .output()
        .context("run go list")?;
    let dir = String::from_utf8_lossy(&list.stdout).trim().to_owned();
    if dir.is_empty() {
        bail!(
            "go list does not know where {MODULE} lies: {}",
            String::from_utf8_lossy(&list.stderr).trim()
        );
    }
    Ok(PathBuf::from(dir).join("fixtures"))
}

/// Shows results as they come; everything goes to the log.
fn follow(tests: &mut Command, log: &Path) -> Result<()> {
    let mut file = fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
    let mut child = tests.stdout(Stdio::piped()).spawn().context("start the tests")?;
    let output = child.stdout.take().context("the tests have no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("read the tests' output")?;
        let line = String::from_utf8_lossy(&line).into_owned();
        writeln!(file, "{line}").context("write the log")?;
        if line.starts_with("--- ") {
            println!("{line}");
        }
    }
    if child.wait().context("wait for the tests")?.success() {
        return Ok(());
    }
    bail!("etcd's tests failed; all they said: {}", log.display())
}
