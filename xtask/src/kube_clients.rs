//! Kubernetes clients of others that only tests run, built from pinned Go modules, once per machine. `up` needs none.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache;
use crate::kube_tools::{Versions, folder, go_build};
use crate::step::Step;

/// Programs, each with the module it is pinned by and its package.
const PROGRAMS: &[(&str, &str, &str)] = &[("vcluster", "vcluster", "github.com/loft-sh/vcluster/cmd/vclusterctl")];

fn missing(dir: &Path) -> bool {
    PROGRAMS.iter().any(|(name, ..)| !dir.join("bin").join(name).is_file())
}

/// Finds the clients or builds them, and leads the link `clients` to them.
pub(crate) fn ensure() -> Result<PathBuf> {
    let step = Step::start("Kubernetes clients", "");
    if let Some(dir) = std::env::var_os("HANSE_KUBE_CLIENTS").filter(|d| !d.is_empty()) {
        let dir = PathBuf::from(dir);
        anyhow::ensure!(
            !missing(&dir),
            "HANSE_KUBE_CLIENTS names {}, which lacks bin/vcluster",
            dir.display()
        );
        step.finish(&format!("given by HANSE_KUBE_CLIENTS: {}", dir.display()));
        return Ok(dir);
    }
    let versions = Versions::read()?;
    let parent = cache::root()?.join("kube-tools");
    let key = versions.clients_key();
    let mut how = "found";
    if missing(&parent.join(&key)) {
        let entry = cache::Entry::lock(&parent, &key, || step.say("another build runs, waiting"))?;
        if missing(entry.dir()) {
            let log = parent.join(format!("{key}.log"));
            step.say(&format!("building, 7 minutes on two cores; log: {}", log.display()));
            step.log_to(&log);
            let built = build(&step, &versions, entry.scratch()?)?;
            entry.publish(&built)?;
            how = "built";
        }
    }
    cache::relink(&parent.join("clients"), Path::new(&key))?;
    let dir = parent.join(key);
    step.finish(&format!("{how} {}", dir.display()));
    Ok(dir)
}

fn build(step: &Step, versions: &Versions, scratch: &Path) -> Result<PathBuf> {
    let out = scratch.join("out");
    let bin = out.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
    // Without it the program takes itself for 0.0.1 and asks everybody to upgrade.
    let stamp = format!("-X main.version={}", versions.vcluster.trim_start_matches('v'));
    for (name, module, package) in PROGRAMS {
        step.say(name);
        step.run(&mut go_build(&folder().join(module), &stamp, &bin.join(name), package))?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_pins_the_version_of_the_key() {
        let versions = Versions::read().unwrap();
        let module = fs::read_to_string(folder().join("vcluster/go.mod")).unwrap();
        assert!(module.contains(&format!("github.com/loft-sh/vcluster {} ", versions.vcluster)));
        assert!(versions.clients_key().contains(&versions.vcluster));
    }
}
