//! Starts processes, adopts running ones, and waits for their end.

use super::{MARK_VARIABLE, ProcessError, Record, Spec, procfs};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// Adopted processes are no children of ours: the system tells that they ended, not how.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Self::Unknown => f.write_str("ended"),
        }
    }
}

enum Watch {
    Child(Box<tokio::process::Child>),
    Adopted(AsyncFd<OwnedFd>),
}

/// A process that runs. Dropping it leaves the process alone.
pub struct Process {
    record: Record,
    watch: Watch,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let adopted = matches!(self.watch, Watch::Adopted(_));
        f.debug_struct("Process")
            .field("record", &self.record)
            .field("adopted", &adopted)
            .finish()
    }
}

impl Process {
    /// What is known of it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> Result<Exit, ProcessError> {
        match &mut self.watch {
            Watch::Child(child) => {
                let status = child.wait().await.map_err(ProcessError::Table)?;
                let signal = status.signal().map(Exit::Signal);
                Ok(status.code().map(Exit::Code).or(signal).unwrap_or(Exit::Unknown))
            }
            Watch::Adopted(pidfd) => {
                let _readable = pidfd.readable().await.map_err(ProcessError::Table)?;
                Ok(Exit::Unknown)
            }
        }
    }
}

/// Starts `spec`. The record goes into `run`, output into `<log>/<name>.log`.
pub fn spawn(spec: &Spec, mark: String, run: &Path, log: &Path) -> Result<Process, ProcessError> {
    let mut record = Record {
        name: spec.name.clone(),
        mark,
        spec: spec.digest(),
        boot_id: procfs::boot_id().map_err(ProcessError::Table)?,
        pid: None,
        start_ticks: None,
        ports: spec.ports.clone(),
        stop_rank: spec.stop_rank,
    };
    record.save(run)?;
    let output = open_log(&log.join(format!("{}.log", spec.name)))?;
    let fault = |source| ProcessError::Spawn {
        program: spec.program.clone(),
        source,
    };
    let mut command = tokio::process::Command::new(&spec.program);
    command
        .args(&spec.args)
        .env_clear()
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .env(MARK_VARIABLE, &record.mark)
        .current_dir(&spec.dir)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(fault)?)
        .stderr(output);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            record.forget(run)?;
            return Err(fault(error));
        }
    };
    record.pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = record.pid {
        record.start_ticks = procfs::stat(pid)
            .map_err(ProcessError::Table)?
            .map(|stat| stat.start_ticks);
    }
    record.save(run)?;
    Ok(Process {
        record,
        watch: Watch::Child(Box::new(child)),
    })
}

/// Watches the process of `record`, if it still runs.
pub fn adopt(record: Record) -> Result<Option<Process>, ProcessError> {
    let Some(pid) = record.pid.and_then(Pid::from_raw) else {
        return Ok(None);
    };
    // First the handle, then the check: a handle opened after the check could be another process'.
    let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(ProcessError::Table(error.into())),
    };
    if !record.is_alive()? {
        return Ok(None);
    }
    #[expect(
        deprecated,
        reason = "the replacement is `unsafe`; an `OwnedFd` keeps the promise that it asks for"
    )]
    let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE).map_err(ProcessError::Table)?;
    Ok(Some(Process {
        record,
        watch: Watch::Adopted(pidfd),
    }))
}

fn open_log(path: &Path) -> Result<File, ProcessError> {
    // Appending, so that writing goes on at the start after the file was truncated.
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|error: io::Error| ProcessError::File {
            what: "open",
            path: path.to_owned(),
            source: error.into(),
        })
}
