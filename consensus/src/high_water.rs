//! A mark beside the engine that says: the log reached at least to here.
//!
//! The engine's write-ahead log recovers a prefix after a crash. A torn tail was never acknowledged, but damage in the
//! middle would silently drop everything after it, and Raft would count entries as stored that are gone. The mark is synced
//! on its own; a log that ends before it has lost entries, and the server refuses to start.

use parking_lot::Mutex;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Entries between two marks: a sync per stride, not per write.
pub const STRIDE: u64 = 4096;

/// First line of the file.
const HEADER: &str = "hanse log mark 1";

/// The mark of one group.
#[derive(Debug)]
pub struct HighWater {
    path: Option<PathBuf>,
    /// Entries known to have been on disk: last index + 1.
    next: Mutex<u64>,
}

impl HighWater {
    /// Reads the mark at `path`; a missing file is a mark of zero. Without a path nothing is kept (tests).
    pub fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let next = match &path {
            Some(path) => read(path)?,
            None => 0,
        };
        Ok(Self {
            path,
            next: Mutex::new(next),
        })
    }

    /// One more than the last index that must be there; 0 when nothing is known.
    pub fn next(&self) -> u64 {
        *self.next.lock()
    }

    /// Entry `last` is on disk. Written only when a stride is full.
    pub fn advance(&self, last: u64) -> io::Result<()> {
        let mut next = self.next.lock();
        if last < next.saturating_add(STRIDE - 1) {
            return Ok(());
        }
        self.write(last + 1)?;
        *next = last + 1;
        Ok(())
    }

    /// The log is about to be cut so that it ends before `end`.
    pub fn lower(&self, end: u64) -> io::Result<()> {
        let mut next = self.next.lock();
        if end < *next {
            self.write(end)?;
            *next = end;
        }
        Ok(())
    }

    fn write(&self, next: u64) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        writeln!(file, "{HEADER}\n{next}")?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        sync_dir(path)
    }
}

/// Makes a rename or removal in the folder of `path` durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn read(path: &Path) -> io::Result<u64> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut lines = text.lines();
    let mark = (lines.next() == Some(HEADER))
        .then(|| lines.next().and_then(|line| line.parse().ok()))
        .flatten();
    mark.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a log mark, or a damaged one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_and_goes_down_before_a_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("group-0.mark");
        let open = || HighWater::open(Some(path.clone())).unwrap();
        let mark = open();
        assert_eq!(mark.next(), 0);
        mark.advance(STRIDE - 2).unwrap();
        assert_eq!(open().next(), 0, "a stride is not full");
        mark.advance(STRIDE - 1).unwrap();
        assert_eq!(open().next(), STRIDE);
        mark.lower(STRIDE + 5).unwrap();
        assert_eq!(open().next(), STRIDE, "a cut above the mark leaves it");
        mark.lower(7).unwrap();
        assert_eq!(open().next(), 7);
        mark.advance(7 + STRIDE).unwrap();
        assert_eq!(open().next(), 8 + STRIDE);
        fs::write(&path, "garbage").unwrap();
        assert_eq!(
            HighWater::open(Some(path)).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
