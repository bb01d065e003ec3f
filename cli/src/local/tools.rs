//! Where the Kubernetes programs are (docs/design/0002-build-and-tools.md): the same rules as the agent's.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// What a tenant's control plane consists of.
const PROGRAMS: &[&str] = &["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"];
/// Names the folder, or says `PATH`.
pub(crate) const VARIABLE: &str = "HANSE_KUBE_TOOLS";

/// Where they were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tools {
    /// In a folder with `bin/` and `kwok-stages/`.
    Folder(PathBuf),
    /// On PATH.
    Path,
}

/// Finds them, or says what is missing and how to get it.
pub(crate) fn find() -> Result<Tools> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME")
        .filter(|p| p.is_absolute())
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("hanse/kube-tools/current"));
    choose(
        variable(VARIABLE).as_deref(),
        cache.as_deref(),
        &variable("PATH").unwrap_or_default(),
    )
}

fn choose(named: Option<&Path>, cache: Option<&Path>, path: &Path) -> Result<Tools> {
    let on_path = || missing(&std::env::split_paths(path.as_os_str()).collect::<Vec<_>>());
    let named = named
        .filter(|n| *n != Path::new("PATH"))
        .map(|n| (n, true))
        .or(named.map(|n| (n, false)));
    match named {
        Some((folder, true)) => match &missing(&[folder.join("bin")])[..] {
            [] => Ok(Tools::Folder(folder.to_owned())),
            lacks => Err(Error::failed(format!(
                "{VARIABLE} names {}, which lacks {}",
                folder.display(),
                lacks.join(", ")
            ))
            .hint("complete the folder, or unset the variable")),
        },
        None if cache.is_some_and(|c| missing(&[c.join("bin")]).is_empty()) => {
            Ok(Tools::Folder(cache.unwrap_or(Path::new("")).to_owned()))
        }
        Some((_, false)) | None => match &on_path()[..] {
            [] => Ok(Tools::Path),
            lacks => Err(
                Error::failed(format!("the Kubernetes programs are missing: {}", lacks.join(", "))).hint(format!(
                    "`cargo xtask kube-tools` builds them; or set {VARIABLE} to a folder that has them in bin/"
                )),
            ),
        },
    }
}

/// Programs that none of `folders` has.
fn missing(folders: &[PathBuf]) -> Vec<&'static str> {
    let there = |name: &str| folders.iter().any(|folder| folder.join(name).is_file());
    PROGRAMS.iter().copied().filter(|name| !there(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(programs: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        for name in programs {
            std::fs::write(dir.path().join("bin").join(name), "").unwrap();
        }
        dir
    }

    #[test]
    fn first_match_wins_and_what_lacks_is_named() {
        let (full, part, none) = (folder(PROGRAMS), folder(&["kwok"]), folder(&[]));
        let bin = full.path().join("bin");
        let nowhere = Path::new("");
        let found = |p: &tempfile::TempDir| Tools::Folder(p.path().to_owned());
        assert_eq!(
            choose(Some(full.path()), Some(none.path()), nowhere).unwrap(),
            found(&full)
        );
        assert_eq!(choose(None, Some(full.path()), nowhere).unwrap(), found(&full));
        assert_eq!(choose(None, Some(none.path()), &bin).unwrap(), Tools::Path);
        assert_eq!(
            choose(Some(Path::new("PATH")), Some(full.path()), &bin).unwrap(),
            Tools::Path
        );
        let error = choose(Some(part.path()), Some(full.path()), &bin).unwrap_err();
        assert!(
            error.to_string().contains("lacks kube-apiserver") && !error.to_string().contains("kwok"),
            "{error}"
        );
        let error = choose(None, None, nowhere).unwrap_err();
        assert!(error.remedy().unwrap().contains("cargo xtask kube-tools"));
    }
}
