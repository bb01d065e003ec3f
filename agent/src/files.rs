//! Files that must be whole and private: written beside, synced, renamed.

use crate::error::AgentError;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Mode of files that hold secrets, and of everything else here: nobody else needs to read it.
const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_DIR: u32 = 0o700;

fn fault(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AgentError {
    let path = path.to_owned();
    move |source| AgentError::File { what, path, source }
}

/// Makes `dir` (and its parents) with mode 0700, or narrows its mode to that.
pub fn private_dir(dir: &Path) -> Result<(), AgentError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_DIR)
        .create(dir)
        .map_err(fault("create", dir))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(PRIVATE_DIR)).map_err(fault("set the mode of", dir))
}

/// Replaces `path` by `content` so that a crash leaves the old or the new file, whole; mode 0600.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<(), AgentError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(PRIVATE_FILE)
            .open(beside)?;
        file.set_permissions(fs::Permissions::from_mode(PRIVATE_FILE))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(beside, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(fault("write", path))
}

/// The same, unless the file holds `content` already. Says whether it wrote.
pub fn write_if_changed(path: &Path, content: &[u8]) -> Result<bool, AgentError> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    write_atomic(path, content)?;
    Ok(true)
}

/// The content of `path`, or nothing when there is no such file.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, AgentError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault("read", path)(error)),
    }
}

/// Removes `path`; it is no error when it is not there.
pub fn remove_file(path: &Path) -> Result<(), AgentError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fault("remove", path)(error)),
        _gone => Ok(()),
    }
}

/// Removes the directory `path` and all in it; it is no error when it is not there.
pub fn remove_dir(path: &Path) -> Result<(), AgentError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fault("remove", path)(error)),
        _gone => Ok(()),
    }
}

/// Names of the entries of `dir`, sorted; none when there is no such directory.
pub fn names_in(dir: &Path) -> Result<Vec<String>, AgentError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fault("list", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fault("list", dir))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_private_whole_and_written_only_when_changed() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("a/b");
        private_dir(&sub).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&sub), 0o700);
        let file = sub.join("f");
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(write_if_changed(&file, b"new").unwrap());
        assert!(!write_if_changed(&file, b"new").unwrap());
        assert_eq!(mode(&file), 0o600);
        assert_eq!(names_in(&sub).unwrap(), ["f"]);
        assert_eq!(read_optional(&sub.join("g")).unwrap(), None);
        remove_file(&sub.join("g")).unwrap();
        remove_dir(&sub).unwrap();
        assert!(names_in(&sub).unwrap().is_empty());
    }
}
