//! The OpenID provider that tests of logins run against: a pinned package of npm, installed once per machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::packages::on_path;
use crate::step::Step;
use crate::{cache, root};

const PACKAGE: &str = "oidc-provider";

/// Where the versions are pinned.
fn folder() -> PathBuf {
    root().join("gateway/tests/oidc-provider")
}

/// Finds the provider or installs it, and leads the link `current` to it. Without npm it is left out, but not in CI: there
/// its tests would fail for want of it.
pub(crate) fn ensure() -> Result<Option<PathBuf>> {
    let step = Step::start("OpenID provider", "");
    let parent = cache::root()?.join(PACKAGE);
    let key = key()?;
    let there = |dir: &Path| dir.join("node_modules").join(PACKAGE).is_dir();
    let mut how = "found";
    if !there(&parent.join(&key)) {
        if on_path("npm").is_none() || on_path("node").is_none() {
            if std::env::var_os("CI").is_some() {
                bail!("node and npm are missing; install them, on Debian: apt-get install nodejs npm");
            }
            step.finish("SKIPPED: there is no npm, so the tests of logins are left out");
            return Ok(None);
        }
        let entry = cache::Entry::lock(&parent, &key, || step.say("another installation runs, waiting"))?;
        if !there(entry.dir()) {
            step.log_to(&parent.join(format!("{key}.log")));
            let out = entry.scratch()?.join("out");
            fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
            for file in ["package.json", "package-lock.json"] {
                let from = folder().join(file);
                fs::copy(&from, out.join(file)).with_context(|| format!("copy {}", from.display()))?;
            }
            // Exactly what the lock file says, and none of its scripts.
            let mut npm = Command::new("npm");
            npm.current_dir(&out)
                .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
            step.run(&mut npm)?;
            entry.publish(&out)?;
            how = "installed";
        }
    }
    cache::relink(&parent.join("current"), Path::new(&key))?;
    let dir = parent.join(key);
    step.finish(&format!("{how} {}", dir.display()));
    Ok(Some(dir))
}

/// The pinned version and a checksum over everything that it needs.
fn key() -> Result<String> {
    let path = folder().join("package-lock.json");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let lock: Value = serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    let version = lock["packages"][format!("node_modules/{PACKAGE}")]["version"].as_str();
    let version = version.with_context(|| format!("{} does not pin {PACKAGE}", path.display()))?;
    // FNV-1a: the same on every machine, and no more than a name is at stake.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Ok(cache::file_name(&format!("{version}-{hash:016x}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_pinned_with_its_checksum() {
        let text = fs::read_to_string(folder().join("package-lock.json")).unwrap();
        let lock: Value = serde_json::from_str(&text).unwrap();
        let packages = lock["packages"].as_object().unwrap();
        assert!(packages.len() > 10);
        for (name, package) in packages.iter().filter(|(name, _)| !name.is_empty()) {
            assert!(
                package["integrity"].as_str().is_some_and(|i| i.starts_with("sha512-")),
                "{name}"
            );
        }
        let manifest = fs::read_to_string(folder().join("package.json")).unwrap();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        let version = manifest["dependencies"][PACKAGE].as_str().unwrap();
        assert!(
            version.chars().all(|c| c.is_ascii_digit() || c == '.'),
            "{version} is a range"
        );
        assert!(key().unwrap().starts_with(version));
    }
}
