//! The programs that are run: the one under test, and those of others.

use anyhow::{Context as _, Result, anyhow, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Lines of a command's output that a failure shows.
const SHOWN_LINES: usize = 30;

/// Standard output of a command that did well; otherwise the end of what it said.
pub(crate) fn checked(what: &str, output: Output) -> Result<String> {
    if output.status.success() {
        return String::from_utf8(output.stdout).context("output is no UTF-8");
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
    bail!("`{what}` failed with {}:\n{shown}", output.status)
}

/// The program under test: `HANSE_BIN`, else the one that cargo builds beside this test.
pub fn binary() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|e| format!("{e:#}")));
    built.clone().map_err(|e| anyhow!(e))
}

fn build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HANSE_BIN") {
        return Ok(path.into());
    }
    // target/<profile>/deps/<test>
    let own = std::env::current_exe().context("find this test's program")?;
    let profile = own.parent().and_then(Path::parent).context("find the target folder")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--package", "hanse"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
        .arg("--target-dir")
        .arg(profile.parent().context("find the target folder")?);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    checked("cargo build --package hanse", cargo.output().context("run cargo")?)?;
    Ok(profile.join("hanse"))
}

/// A pinned tool, by the rules of docs/design/0002-build-and-tools.md.
pub fn tool(name: &str) -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = || {
        let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
        Some(cache.join("hanse/kube-tools/current"))
    };
    let folder = match variable("HANSE_KUBE_TOOLS") {
        Some(word) if word == Path::new("PATH") => None,
        Some(folder) => Some(folder),
        None => cache(),
    };
    match folder.map(|f| f.join("bin").join(name)).filter(|f| f.is_file()) {
        Some(program) => Ok(program),
        None => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let mut found = std::env::split_paths(&path).map(|dir| dir.join(name));
            found
                .find(|f| f.is_file())
                .with_context(|| format!("there is no {name}: `cargo xtask kube-tools` builds it"))
        }
    }
}
