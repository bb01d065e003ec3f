//! Files that a server reads at its start, and the lock on its data directory.

use crate::error::ServerError;
use hanse_consensus::Disk;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Reads a text file that anyone may read.
pub fn read_public(what: &'static str, path: &Path) -> Result<String, ServerError> {
    std::fs::read_to_string(path).map_err(|error| fault(what, path, format!("cannot be read: {error}")))
}

/// Reads a secret file, which nobody but its owner may be able to read.
pub fn read_secret(what: &'static str, path: &Path) -> Result<String, ServerError> {
    check_secret(what, path)?;
    read_public(what, path)
}

/// Refuses a secret that others can read.
pub fn check_secret(what: &'static str, path: &Path) -> Result<(), ServerError> {
    let meta = std::fs::metadata(path).map_err(|error| fault(what, path, format!("cannot be read: {error}")))?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(fault(
        what,
        path,
        format!("others can read it (mode {mode:o}): chmod 600 it, and replace the secret if it leaked"),
    ))
}

/// Where the engine lies in a data directory.
pub fn store_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("store")
}

/// Holds the data directory: two servers on one directory would destroy it.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

/// File in the data directory that is locked; no data.
pub const LOCK_FILE: &str = "lock";

/// Creates the data directory and takes its lock; the lock ends with the process.
pub fn lock_data_dir(path: &Path) -> Result<DataDirLock, ServerError> {
    let what = "the data directory";
    std::fs::create_dir_all(path).map_err(|error| fault(what, path, format!("cannot be created: {error}")))?;
    let opened = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join(LOCK_FILE));
    let file = opened.map_err(|error| fault(what, path, format!("cannot be written: {error}")))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        fault(
            what,
            path,
            format!("is in use by another server ({error}): stop that one first"),
        )
    })?;
    Ok(DataDirLock { _file: file })
}

/// Free space below which a server does not start: it could not even write its first snapshot.
pub const FREE_SPACE_MIN: u64 = 256 << 20;

/// Bytes that must be free so that tenants may write more: what is under way then, and compaction, still have room.
pub const FREE_SPACE_LOW: u64 = FREE_SPACE_MIN / 2;

/// The disk of a data directory.
#[derive(Clone, Debug)]
pub struct DataDisk(pub PathBuf);

impl Disk for DataDisk {
    fn free(&self) -> io::Result<u64> {
        free_space(&self.0).map_err(io::Error::other)
    }
}

/// Bytes that are free on the disk of a directory.
pub fn free_space(path: &Path) -> Result<u64, ServerError> {
    let cannot = |error| fault("the data directory", path, format!("cannot be examined: {error}"));
    let stat = rustix::fs::statvfs(path).map_err(cannot)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Refuses to start on a disk that is nearly full.
pub fn check_free_space(path: &Path) -> Result<(), ServerError> {
    let what = "the data directory";
    let free = free_space(path)?;
    if free >= FREE_SPACE_MIN {
        return Ok(());
    }
    let (has, needs) = (free >> 20, FREE_SPACE_MIN >> 20);
    Err(fault(
        what,
        path,
        format!("its disk has {has} MiB free and a server needs {needs} MiB: make room"),
    ))
}

fn fault(what: &'static str, path: &Path, fault: String) -> ServerError {
    ServerError::File {
        what,
        path: path.to_owned(),
        fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "secret").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let fault = read_secret("a key", &path).unwrap_err().to_string();
        assert!(
            fault.contains("644") && fault.contains("chmod 600") && !fault.contains("secret\""),
            "{fault}"
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read_secret("a key", &path).unwrap(), "secret");
    }

    #[test]
    fn one_server_per_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock_data_dir(dir.path()).unwrap();
        assert!(
            lock_data_dir(dir.path())
                .unwrap_err()
                .to_string()
                .contains("in use by another server")
        );
        drop(first);
        assert!(lock_data_dir(dir.path()).is_ok());
    }
}
