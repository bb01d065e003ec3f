//! Files that are there whole or not at all.

use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Only the owner may read and write.
pub(crate) const PRIVATE: u32 = 0o600;
/// Everybody may read.
pub(crate) const PUBLIC: u32 = 0o644;

/// How the name of a file ends that is being written; before it comes the writer's process id.
const FRESH: &str = ".tmp";

/// Replaces the file at `path` by `content` in one step; a crash leaves the old or the new one.
pub(crate) fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}{FRESH}", std::process::id()));
    let fresh = path.with_file_name(name);
    let written = write_fresh(&fresh, content, mode).and_then(|()| fs::rename(&fresh, path));
    if let Err(error) = written {
        // What is left of it is worth nothing; the write's own fault is the one to tell.
        let _gone = fs::remove_file(&fresh).is_ok();
        return Err(Error::io("write", path, &error));
    }
    sync_dir(path)
}

fn write_fresh(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(path)?;
    // `mode` above passes through the umask and does not change a file that was there.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes the folder of `path` durable, and with it the names in it.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) else {
        return Ok(());
    };
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| Error::io("sync", dir, &e))
}

/// The text of the file at `path`, or `None` when there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path, &error)),
    }
}

/// The text of a file that must be there.
pub(crate) fn read_required(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))
}

/// Makes the folder `path` and those above it; `private` ones are closed to others.
pub(crate) fn create_dir(path: &Path, private: bool) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io("create", path, &e))?;
    if private {
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(|e| Error::io("close", path, &e))?;
    }
    Ok(())
}

/// Removes the file at `path` if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The same, and what writes of it left that were cut off.
pub(crate) fn remove_with_leftovers(path: &Path) -> Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return remove(path);
    };
    let ours = |file: &str| {
        let writer = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
        let writer = writer.and_then(|rest| rest.strip_suffix(FRESH));
        writer.is_some_and(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()))
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", dir, &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("read", dir, &error))?;
        if entry.file_name().to_str().is_some_and(ours) {
            remove(&entry.path())?;
        }
    }
    remove(path)
}

/// Removes the folder at `path` with all in it, if it is there.
pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The last `count` lines of the file at `path`, at most `TAIL_BYTES` of it.
pub(crate) fn tail(path: &Path, count: usize) -> String {
    /// Enough for a handful of log lines.
    const TAIL_BYTES: u64 = 16 * 1024;
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let Ok(bytes) = read() else { return String::new() };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_has_its_mode_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        write(&path, b"new", PRIVATE).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "x").unwrap();
        assert!(write(&path, b"new", PUBLIC).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(path.join("inside").exists());
    }

    #[test]
    fn tail_gives_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "a\nb\nc\n").unwrap();
        assert_eq!(tail(&path, 2), "b\nc");
        assert_eq!(tail(&dir.path().join("none"), 2), "");
    }
}
