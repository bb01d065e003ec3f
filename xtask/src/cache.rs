//! Folders outside the checkout that hold what is slow to build.
//!
//! An entry appears by one rename, so a reader sees all of it or nothing, and a
//! lock per entry makes a second builder wait instead of building it again.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

/// `$XDG_CACHE_HOME/hanse`, or `~/.cache/hanse`.
pub(crate) fn root() -> Result<PathBuf> {
    // The specification of these folders tells programs to ignore relative paths.
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from)
        && dir.is_absolute()
    {
        return Ok(dir.join("hanse"));
    }
    let home = std::env::var_os("HOME")
        .ok_or_else(|| anyhow!("neither XDG_CACHE_HOME nor HOME is set: set one, the caches go there"))?;
    Ok(PathBuf::from(home).join(".cache/hanse"))
}

/// A key that is safe as a file name: everything unusual becomes `_`.
pub(crate) fn file_name(key: &str) -> String {
    key.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || ".-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

/// Held while an entry is built. The lock ends with the process, however it ends.
pub(crate) struct Entry {
    dir: PathBuf,
    scratch: PathBuf,
    _lock: File,
}

impl Entry {
    /// Waits for whoever builds the entry `key` under `parent` now, then takes its place.
    /// `waiting` is called once if there is somebody to wait for.
    pub(crate) fn lock(parent: &Path, key: &str, waiting: impl FnOnce()) -> Result<Self> {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        let path = parent.join(format!(".{key}.lock"));
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        if lock.try_lock().is_err() {
            waiting();
            lock.lock().with_context(|| format!("lock {}", path.display()))?;
        }
        Ok(Self {
            dir: parent.join(key),
            scratch: parent.join(format!(".{key}.part")),
            _lock: lock,
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// An empty folder to build in, on the same file system as the entry.
    /// What a killed builder left there is removed: we hold the lock, so it is nobody's.
    pub(crate) fn scratch(&self) -> Result<&Path> {
        remove(&self.scratch)?;
        fs::create_dir_all(&self.scratch).with_context(|| format!("create {}", self.scratch.display()))?;
        Ok(&self.scratch)
    }

    /// Makes `built`, a folder inside the scratch folder, the entry.
    pub(crate) fn publish(self, built: &Path) -> Result<PathBuf> {
        remove(&self.dir)?;
        fs::rename(built, &self.dir).with_context(|| format!("move {} to {}", built.display(), self.dir.display()))?;
        remove(&self.scratch)?;
        Ok(self.dir)
    }
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Points the link `link` at `target` (a name beside it), in one step.
pub(crate) fn relink(link: &Path, target: &Path) -> Result<()> {
    let mut name = link.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}", std::process::id()));
    let fresh = link.with_file_name(name);
    let _absent_is_fine = fs::remove_file(&fresh).is_ok();
    std::os::unix::fs::symlink(target, &fresh).with_context(|| format!("create link {}", fresh.display()))?;
    fs::rename(&fresh, link).with_context(|| format!("replace link {}", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch_dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("hanse-xtask-{name}-{}", std::process::id()));
        remove(&dir).unwrap();
        dir
    }

    #[test]
    fn entry_appears_whole_and_a_second_builder_finds_it() {
        let parent = scratch_dir("entry");
        let entry = Entry::lock(&parent, "k-1", || ()).unwrap();
        let built = entry.scratch().unwrap().join("out");
        fs::create_dir(&built).unwrap();
        fs::write(built.join("file"), "x").unwrap();
        assert!(!parent.join("k-1").exists());

        let second = std::thread::spawn({
            let parent = parent.clone();
            move || {
                let entry = Entry::lock(&parent, "k-1", || ()).unwrap();
                entry.dir().join("file").exists()
            }
        });
        entry.publish(&built).unwrap();
        assert!(second.join().unwrap());
        assert!(!parent.join(".k-1.part").exists());
        remove(&parent).unwrap();
    }

    #[test]
    fn keys_become_file_names() {
        assert_eq!(file_name("sys-0.19.0+11.8.1/c++ 12"), "sys-0.19.0_11.8.1_c___12");
    }
}
