//! Processes of an installation, found by the files that they leave, and by what they carry.

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// For a killed process to vanish.
const GONE_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// A process at one time: its number and when it started, in ticks since the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Number.
    pub pid: i32,
    /// Start time.
    pub start: u64,
}

impl Process {
    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|(ended, start)| start == self.start && !ended)
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        if !self.is_alive() {
            bail!("process {} is gone already", self.pid);
        }
        let pid = Pid::from_raw(self.pid).ok_or_else(|| anyhow!("no process number"))?;
        kill_process(pid, Signal::KILL).with_context(|| format!("kill -9 {}", self.pid))?;
        let end = Instant::now() + GONE_LIMIT;
        while self.is_alive() {
            if Instant::now() > end {
                bail!("process {} is still there after kill -9", self.pid);
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

/// Whether it has ended, and its start time, by `/proc/PID/stat`, proc(5). A process whose first thread is a zombie keeps
/// its ports until its last thread has ended.
fn stat(pid: i32) -> Option<(bool, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let threads: u64 = fields.nth(16)?.parse().ok()?;
    Some((matches!(state, 'Z' | 'X') && threads <= 1, fields.nth(1)?.parse().ok()?))
}

/// The process that the JSON file at `path` names under the keys `pid` and `start`.
pub fn read(path: &Path, start: &str) -> Result<Process> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let record: Value = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    let pid = record["pid"].as_i64().and_then(|n| i32::try_from(n).ok());
    let start = record[start].as_u64();
    pid.zip(start)
        .map(|(pid, start)| Process { pid, start })
        .ok_or_else(|| anyhow!("{} names no process: {text}", path.display()))
}

/// Processes of tenants on the agent with the data folder `agent`, by tenant and name.
pub fn of_tenants(agent: &Path) -> Result<BTreeMap<String, Process>> {
    let mut found = BTreeMap::new();
    let Ok(tenants) = fs::read_dir(agent.join("tenants")) else {
        return Ok(found);
    };
    for tenant in tenants {
        let tenant = tenant?.path();
        let Ok(records) = fs::read_dir(tenant.join("run")) else {
            continue;
        };
        for record in records {
            let path = record?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if path.extension().is_some_and(|e| e == "json")
                && let Ok(process) = read(&path, "start_ticks")
                && process.is_alive()
            {
                let id = tenant.file_name().unwrap_or_default().to_string_lossy().into_owned();
                found.insert(format!("{id}/{name}"), process);
            }
        }
    }
    Ok(found)
}

/// Every process whose command line holds `text`, such as the path of a home, with that line.
pub fn holding(text: &str) -> Vec<(Process, String)> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir("/proc") else {
        return found;
    };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(text)
            && let Some((false, start)) = stat(pid)
        {
            found.push((Process { pid, start }, line));
        }
    }
    found
}
