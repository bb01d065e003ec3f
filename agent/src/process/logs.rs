//! Bounded logs of processes that write their files themselves.
//!
//! The processes outlive the agent, so no pipe through the agent can carry their output. Instead the agent copies a
//! file that grew too large and truncates it: processes append, so they go on at its start. Lines written between
//! copy and truncation are lost; while no agent runs, nothing is cut.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Size at which a log is rotated.
pub const LOG_MAX: u64 = 8 << 20;
/// Rotated files that are kept of each log.
pub const LOG_KEEP: u32 = 2;

/// Rotates the log at `path` if it is larger than `max`. Says whether it did.
pub fn rotate(path: &Path, max: u64, keep: u32) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > max => {}
        Ok(_small) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    for n in (1..keep).rev() {
        match fs::rename(numbered(path, n), numbered(path, n + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _moved => {}
        }
    }
    if keep > 0 {
        fs::copy(path, numbered(path, 1))?;
    }
    OpenOptions::new().write(true).open(path)?.set_len(0)?;
    Ok(true)
}

fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_writer_goes_on_in_the_truncated_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        assert!(!rotate(&path, 4, 2).unwrap());
        let mut writer = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        for n in 0..4 {
            writer.write_all(format!("line {n}\n").as_bytes()).unwrap();
            assert!(rotate(&path, 4, 2).unwrap());
        }
        writer.write_all(b"x").unwrap();
        assert!(!rotate(&path, 4, 2).unwrap());
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (text("a.log"), text("a.log.1"), text("a.log.2")),
            ("x".into(), "line 3\n".into(), "line 2\n".into())
        );
        assert!(!dir.path().join("a.log.3").exists());
    }
}
