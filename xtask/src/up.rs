//! `up`: from a fresh machine to a running Hanse.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::packages::on_path;
use crate::step::{self, Step};
use crate::{cache, cargo, kube_tools, packages, rocksdb, root};

/// From here on the builds gain from running at once; each alone fills two cores.
const CORES_FOR_PARALLEL: usize = 4;

/// The options of `hanse up`, once more: the program that could read them is yet to be built.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Names of the regions of a new installation, separated by commas [default: eu,us,ap]
    #[arg(long, value_name = "NAMES")]
    regions: Option<String>,
    /// Addresses of a new installation: 127.<B>.0.1 and up [default: 0]
    #[arg(long, value_name = "B")]
    address_block: Option<u8>,
    /// Make no first tenant cluster
    #[arg(long)]
    no_tenant: bool,
}

impl Options {
    /// As `hanse up` takes them.
    pub(crate) fn args(&self) -> Vec<String> {
        let regions = self.regions.iter().map(|names| format!("--regions={names}"));
        let block = self
            .address_block
            .iter()
            .map(|block| format!("--address-block={block}"));
        let no_tenant = self.no_tenant.then(|| "--no-tenant".to_owned());
        regions.chain(block).chain(no_tenant).collect()
    }
}

/// Installs, builds, then becomes `hanse up`. Returns only on failure.
pub(crate) fn up(options: &Options) -> Result<()> {
    packages::install()?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let (tools, binary) = if cores >= CORES_FOR_PARALLEL {
        step::force_plain();
        thread::scope(|scope| {
            let tools = scope.spawn(kube_tools::ensure);
            let binary = rocksdb::ensure().and_then(|()| build());
            let tools = tools.join().map_err(|_| anyhow!("the build of the tools panicked"))?;
            Ok::<_, anyhow::Error>((tools?, binary?))
        })?
    } else {
        rocksdb::ensure()?;
        (kube_tools::ensure()?, build()?)
    };
    match link("hanse", &binary) {
        Ok(link) => eprintln!("program: {} (also as {})", binary.display(), link.display()),
        Err(why) => eprintln!("program: {} ({why:#})", binary.display()),
    }
    // A kubectl of the user's own stays the one that is found.
    if let Some(dir) = tools.filter(|_| on_path("kubectl").is_none())
        && let Ok(link) = link("kubectl", &dir.join("bin/kubectl"))
    {
        eprintln!("kubectl: there was none on PATH, now {}", link.display());
    }
    let error = Command::new(&binary).arg("up").args(options.args()).exec();
    Err(error).with_context(|| format!("start {}", binary.display()))
}

/// Builds the program as users run it.
pub(crate) fn build() -> Result<PathBuf> {
    let step = Step::start("program", "building target release");
    let target = target_dir()?;
    step.run(
        Command::new(cargo())
            .args(["build", "--release", "--package", "hanse", "--bin", "hanse"])
            .current_dir(root()),
    )?;
    let binary = target.join("release/hanse");
    if !binary.is_file() {
        bail!("cargo built no {}", binary.display());
    }
    step.finish("built");
    Ok(binary)
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let output = Command::new(cargo())
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()
        .context("run cargo metadata")?;
    let graph: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
        .context("cargo metadata failed")?;
    let dir = graph["target_directory"].as_str();
    Ok(PathBuf::from(
        dir.ok_or_else(|| anyhow!("cargo metadata names no target folder"))?,
    ))
}

/// Makes a program a command: a link in a folder of the user's that is on PATH.
fn link(name: &str, program: &Path) -> Result<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME").ok_or_else(|| anyhow!("HOME is not set"))?);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let searched = std::env::split_paths(&path).collect::<Vec<_>>();
    let dir = [home.join(".cargo/bin"), home.join(".local/bin")]
        .into_iter()
        .find(|dir| searched.contains(dir) && dir.is_dir())
        .ok_or_else(|| anyhow!("no link made: neither ~/.cargo/bin nor ~/.local/bin is on PATH"))?;
    let link = dir.join(name);
    // A link is ours or another checkout's; a file somebody installed is not.
    if link.symlink_metadata().is_ok_and(|m| !m.is_symlink()) {
        bail!("no link made: {} is a file of its own", link.display());
    }
    cache::relink(&link, program)?;
    match on_path(name) {
        Some(first) if first != link => bail!("PATH finds {} first", first.display()),
        _ => Ok(link),
    }
}
