//! Records of processes: one JSON file each.

use super::{MARK_VARIABLE, ProcessError, procfs};
use crate::error::AgentError;
use crate::files;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Ending of record files.
const SUFFIX: &str = ".json";

/// What is known of a process that was, or was about to be, started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Name, that of the file too.
    pub name: String,
    /// Unique value in its environment.
    pub mark: String,
    /// Digest of what it runs.
    pub spec: String,
    /// Boot in which it was started.
    pub boot_id: String,
    /// Its id, that of its process group too. Missing when the agent died while it started the process.
    pub pid: Option<i32>,
    /// When it started, in ticks since boot.
    pub start_ticks: Option<u64>,
    /// Ports it listens on.
    pub ports: Vec<u16>,
    /// Processes of a higher rank are stopped first.
    pub stop_rank: u8,
}

fn file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}{SUFFIX}"))
}

fn fault(what: &'static str, path: PathBuf) -> impl FnOnce(AgentError) -> ProcessError {
    move |error| ProcessError::File {
        what,
        path,
        source: error.into(),
    }
}

impl Record {
    pub(super) fn save(&self, dir: &Path) -> Result<(), ProcessError> {
        let path = file(dir, &self.name);
        let text = serde_json::to_vec_pretty(self).map_err(|error| ProcessError::File {
            what: "encode",
            path: path.clone(),
            source: error.into(),
        })?;
        files::write_atomic(&path, &text).map_err(fault("write", path))
    }

    /// Removes the record from `dir`.
    pub fn forget(&self, dir: &Path) -> Result<(), ProcessError> {
        let path = file(dir, &self.name);
        files::remove_file(&path).map_err(fault("remove", path))
    }

    pub(super) fn mark_entry(&self) -> String {
        format!("{MARK_VARIABLE}={}", self.mark)
    }

    /// Whether the recorded process runs. A pid that was given to another process since does not count.
    pub fn is_alive(&self) -> Result<bool, ProcessError> {
        let (Some(pid), Some(start_ticks)) = (self.pid, self.start_ticks) else {
            return Ok(false);
        };
        if procfs::boot_id().map_err(ProcessError::Table)? != self.boot_id {
            return Ok(false);
        }
        let stat = procfs::stat(pid).map_err(ProcessError::Table)?;
        Ok(stat.is_some_and(|stat| !stat.ended && stat.start_ticks == start_ticks))
    }

    /// Fills in pid and start time of a process whose agent died before it could note them.
    fn complete(mut self) -> Result<Self, ProcessError> {
        if self.pid.is_none() && procfs::boot_id().map_err(ProcessError::Table)? == self.boot_id {
            // The oldest is the process itself; the others are its children.
            let marked = procfs::find_by_environ(&self.mark_entry()).map_err(ProcessError::Table)?;
            let mut oldest: Option<(u64, i32)> = None;
            for pid in marked {
                let stat = procfs::stat(pid).map_err(ProcessError::Table)?;
                let found = stat.map(|stat| (stat.start_ticks, pid));
                oldest = [oldest, found].into_iter().flatten().min();
            }
            if let Some((ticks, pid)) = oldest {
                self.pid = Some(pid);
                self.start_ticks = Some(ticks);
            }
        }
        Ok(self)
    }
}

/// All records in `dir`. A file that cannot be read is an error: skipping it could leave a process behind.
pub fn load_all(dir: &Path) -> Result<Vec<Record>, ProcessError> {
    let names = files::names_in(dir).map_err(fault("list", dir.to_owned()))?;
    let mut records = Vec::new();
    for name in names.iter().filter_map(|name| name.strip_suffix(SUFFIX)) {
        let path = file(dir, name);
        let Some(bytes) = files::read_optional(&path).map_err(fault("read", path.clone()))? else {
            continue;
        };
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| ProcessError::File {
            what: "parse",
            path,
            source: error.into(),
        })?;
        records.push(record.complete()?);
    }
    Ok(records)
}

/// The records in `dir` whose processes run. The others are removed.
pub fn load_alive(dir: &Path) -> Result<Vec<Record>, ProcessError> {
    let mut alive = Vec::new();
    for record in load_all(dir)? {
        if record.is_alive()? {
            alive.push(record);
        } else {
            record.forget(dir)?;
        }
    }
    Ok(alive)
}
