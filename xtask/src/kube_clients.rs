//! Kubernetes clients of others that only tests run, built from pinned Go modules, once per machine. `up` needs none.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cache;
use crate::kube_tools::{Apart, Versions, folder, go_build};
use crate::step::Step;

/// Programs, each with the module it is pinned by and its package.
const PROGRAMS: [(&str, &str, &str); 1] = [("vcluster", "vcluster", "github.com/loft-sh/vcluster/cmd/vclusterctl")];

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
    let clients = Apart {
        key: &versions.clients_key(),
        programs: &PROGRAMS.map(|(name, ..)| name),
        takes: "7 minutes",
    };
    // Without it the program takes itself for 0.0.1 and asks everybody to upgrade.
    let stamp = format!("-X main.version={}", versions.vcluster.trim_start_matches('v'));
    let (dir, how) = clients.ensure(&step, |bin| {
        PROGRAMS.iter().try_for_each(|(name, module, package)| {
            step.say(name);
            step.run(&mut go_build(&folder().join(module), &stamp, &bin.join(name), package))
        })
    })?;
    cache::relink(&dir.with_file_name("clients"), Path::new(clients.key))?;
    step.finish(&format!("{how} {}", dir.display()));
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_module_pins_the_version_of_the_key() {
        let versions = Versions::read().unwrap();
        let module = fs::read_to_string(folder().join("vcluster/go.mod")).unwrap();
        assert!(module.contains(&format!("github.com/loft-sh/vcluster {} ", versions.vcluster)));
        assert!(versions.clients_key().contains(&versions.vcluster));
    }
}
