//! Stops processes: asks, waits, kills. Never a foreign one.

use super::{ProcessError, Record, procfs};
use futures::future::try_join_all;
use hanse_runtime::clock::Clock;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::path::Path;
use std::time::Duration;

/// How often the end of a process is looked for.
const POLL: Duration = Duration::from_millis(20);
/// How long a killed process may take to vanish.
const KILLED: Duration = Duration::from_secs(10);

/// Stops the process of `record` with its group: SIGTERM, at most `grace` to end, then SIGKILL. With no grace it is
/// killed at once. Afterwards nothing of it runs.
pub async fn stop(record: &Record, grace: Duration, clock: &dyn Clock) -> Result<(), ProcessError> {
    if record.is_alive()? {
        if grace.is_zero() || !ended_by(record, Signal::TERM, grace, clock).await? {
            ended_by(record, Signal::KILL, KILLED, clock).await?;
        }
        if record.is_alive()? {
            return Err(ProcessError::Unkillable {
                pid: record.pid.unwrap_or_default(),
                name: record.name.clone(),
            });
        }
    }
    kill_leftovers(record)
}

/// Stops all of `records`, higher ranks first, and removes their files from `run`.
pub async fn stop_records(
    run: &Path,
    mut records: Vec<Record>,
    grace: Duration,
    clock: &dyn Clock,
) -> Result<(), ProcessError> {
    records.sort_by_key(|record| std::cmp::Reverse(record.stop_rank));
    for rank in records.chunk_by(|a, b| a.stop_rank == b.stop_rank) {
        try_join_all(rank.iter().map(|record| stop(record, grace, clock))).await?;
    }
    records.iter().try_for_each(|record| record.forget(run))
}

async fn ended_by(record: &Record, signal: Signal, limit: Duration, clock: &dyn Clock) -> Result<bool, ProcessError> {
    let Some(pid) = record.pid.and_then(Pid::from_raw) else {
        return Ok(true);
    };
    match kill_process_group(pid, signal) {
        Ok(()) => {}
        // It is gone, or has not become the leader of its group yet.
        Err(rustix::io::Errno::SRCH) => signal_one(pid, signal, record)?,
        Err(error) => return Err(signal_fault(pid, record, error)),
    }
    let until = clock.mono() + limit;
    while record.is_alive()? {
        if clock.mono() >= until {
            return Ok(false);
        }
        clock.sleep(POLL).await;
    }
    Ok(true)
}

fn signal_one(pid: Pid, signal: Signal, record: &Record) -> Result<(), ProcessError> {
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(signal_fault(pid, record, error)),
    }
}

fn signal_fault(pid: Pid, record: &Record, error: rustix::io::Errno) -> ProcessError {
    ProcessError::Signal {
        pid: pid.as_raw_nonzero().get(),
        name: record.name.clone(),
        source: error.into(),
    }
}

/// Children that the process left behind carry its mark. Its group's number cannot be trusted any more.
fn kill_leftovers(record: &Record) -> Result<(), ProcessError> {
    for pid in procfs::find_by_environ(&record.mark_entry()).map_err(ProcessError::Table)? {
        if let Some(pid) = Pid::from_raw(pid) {
            signal_one(pid, Signal::KILL, record)?;
        }
    }
    Ok(())
}
