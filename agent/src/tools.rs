//! Finds the Kubernetes programs: configuration, then `HANSE_KUBE_TOOLS`, then the user's cache, then `PATH`.

use crate::error::AgentError;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Programs that every tenant needs.
const PROGRAMS: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];
/// Program that simulates nodes.
const KWOK: &str = "kwok";
/// Without these kwok does nothing.
const STAGES: [&str; 5] = [
    "node-initialize.yaml",
    "node-heartbeat-with-lease.yaml",
    "pod-ready.yaml",
    "pod-complete.yaml",
    "pod-delete.yaml",
];
/// The word that asks for `PATH` instead of a folder.
const PATH_WORD: &str = "PATH";

/// Where the programs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeTools {
    /// kube-apiserver.
    pub apiserver: PathBuf,
    /// kube-controller-manager.
    pub controller_manager: PathBuf,
    /// kube-scheduler.
    pub scheduler: PathBuf,
    /// kwok and its stages, when there are any.
    pub kwok: Option<Kwok>,
}

/// What simulates nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kwok {
    /// The program.
    pub program: PathBuf,
    /// Stage files, each passed by its own `--config`.
    pub stages: Vec<PathBuf>,
}

/// Where to look.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Folder from the configuration.
    pub configured: Option<PathBuf>,
    /// `HANSE_KUBE_TOOLS`.
    pub env: Option<PathBuf>,
    /// `XDG_CACHE_HOME`, or `~/.cache`.
    pub cache: Option<PathBuf>,
    /// `PATH`.
    pub path: Vec<PathBuf>,
}

impl Search {
    /// By this process' environment.
    pub fn from_env(configured: Option<PathBuf>) -> Self {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let cache = var("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| var("HOME").map(|h| Path::new(&h).join(".cache")));
        Self {
            configured,
            env: var("HANSE_KUBE_TOOLS").map(PathBuf::from),
            cache,
            path: var("PATH")
                .map(|path| std::env::split_paths(&path).collect())
                .unwrap_or_default(),
        }
    }

    /// The programs of the first place that is named or exists. A place that is named must be complete.
    pub fn find(&self) -> Result<KubeTools, AgentError> {
        match self.configured.as_ref().or(self.env.as_ref()) {
            Some(named) if named.as_os_str() == OsStr::new(PATH_WORD) => return self.on_path(),
            Some(named) => return in_folder(named),
            None => {}
        }
        if let Some(cached) = self.cache.as_ref().map(|cache| cache.join("hanse/kube-tools/current"))
            && cached.is_dir()
        {
            return in_folder(&cached);
        }
        self.on_path()
    }

    fn on_path(&self) -> Result<KubeTools, AgentError> {
        let find = |name: &str| self.path.iter().map(|dir| dir.join(name)).find(|file| file.is_file());
        let share = |program: &Path| program.parent().map(|bin| bin.join("../share/hanse/kwok-stages"));
        collect(find, share, "PATH")
    }
}

fn in_folder(folder: &Path) -> Result<KubeTools, AgentError> {
    // Resolved, so that a newer build behind the same link is another program and processes are restarted with it.
    let real = std::fs::canonicalize(folder).unwrap_or_else(|_missing| folder.to_owned());
    let find = |name: &str| {
        [real.join("bin").join(name), real.join(name)]
            .into_iter()
            .find(|file| file.is_file())
    };
    collect(
        find,
        |_program| Some(real.join("kwok-stages")),
        &folder.display().to_string(),
    )
}

fn collect(
    find: impl Fn(&str) -> Option<PathBuf>,
    stages: impl Fn(&Path) -> Option<PathBuf>,
    searched: &str,
) -> Result<KubeTools, AgentError> {
    let missing: Vec<&str> = PROGRAMS.into_iter().filter(|name| find(name).is_none()).collect();
    let [Some(apiserver), Some(controller_manager), Some(scheduler)] = PROGRAMS.map(&find) else {
        return Err(AgentError::Tools {
            missing: missing.join(", "),
            searched: searched.to_owned(),
        });
    };
    let kwok = find(KWOK).and_then(|program| {
        let dir = stages(&program)?;
        let stages: Vec<PathBuf> = STAGES.iter().map(|name| dir.join(name)).collect();
        stages
            .iter()
            .all(|file| file.is_file())
            .then_some(Kwok { program, stages })
    });
    Ok(KubeTools {
        apiserver,
        controller_manager,
        scheduler,
        kwok,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder(dir: &Path, bin: &str, with_kwok: bool) {
        let bin = dir.join(bin);
        fs::create_dir_all(&bin).unwrap();
        for name in PROGRAMS.into_iter().chain(with_kwok.then_some(KWOK)) {
            fs::write(bin.join(name), "").unwrap();
        }
        if with_kwok {
            fs::create_dir_all(dir.join("kwok-stages")).unwrap();
            for name in STAGES {
                fs::write(dir.join("kwok-stages").join(name), "").unwrap();
            }
        }
    }

    #[test]
    fn places_are_searched_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let place = |name: &str| root.join(name);
        folder(&place("configured"), "", false);
        folder(&place("env"), "bin", true);
        folder(&place("cache/hanse/kube-tools/v1"), "bin", true);
        std::os::unix::fs::symlink("v1", place("cache/hanse/kube-tools/current")).unwrap();
        folder(&place("path"), "", false);
        let mut search = Search {
            configured: Some(place("configured")),
            env: Some(place("env")),
            cache: Some(place("cache")),
            path: vec![place("nowhere"), place("path")],
        };
        let found = search.find().unwrap();
        assert_eq!(
            (found.apiserver, found.kwok),
            (place("configured/kube-apiserver"), None)
        );
        search.configured = None;
        let found = search.find().unwrap();
        assert_eq!(found.apiserver, place("env/bin/kube-apiserver"));
        assert_eq!(found.kwok.unwrap().stages.len(), 5);
        search.env = None;
        assert_eq!(
            search.find().unwrap().scheduler,
            place("cache/hanse/kube-tools/v1/bin/kube-scheduler")
        );
        search.env = Some("PATH".into());
        assert_eq!(search.find().unwrap().scheduler, place("path/kube-scheduler"));
        search.cache = None;
        search.env = None;
        assert_eq!(search.find().unwrap().scheduler, place("path/kube-scheduler"));
    }

    #[test]
    fn a_named_place_must_be_complete() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path(), "bin", false);
        fs::remove_file(dir.path().join("bin/kube-scheduler")).unwrap();
        let search = Search {
            env: Some(dir.path().to_owned()),
            ..Search::default()
        };
        let text = search.find().unwrap_err().to_string();
        assert!(text.starts_with("kube-scheduler not found in"), "{text}");
    }
}
