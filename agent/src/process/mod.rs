//! Processes that outlive the agent.
//!
//! Each runs in a process group of its own and writes to files, so that nothing of it depends on the agent. A record
//! on disk, written before the spawn and completed after it, lets a later agent adopt the process or stop it. A
//! record never leads to a foreign process: boot, start time and a mark in the environment must fit.
//!
//! A process group, and no session of its own: `setsid` after the fork needs `unsafe`, which this workspace forbids. A
//! background group gets no signal when the agent's session ends.

mod logs;
mod procfs;
mod record;
mod spawn;
mod stop;

pub use logs::{LOG_KEEP, LOG_MAX, rotate};
pub use record::{Record, load_alive, load_all};
pub use spawn::{Exit, Process, adopt, spawn};
pub use stop::{stop, stop_records};

use hanse_runtime::pki::sha256_hex;
use std::io;
use std::path::PathBuf;

/// Variable that marks a process as ours; its value is the record's mark.
pub const MARK_VARIABLE: &str = "HANSE_PROCESS_MARK";

/// Why a process cannot be managed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program cannot be started.
    #[error("cannot start {program}; check that it exists and may be executed")]
    Spawn {
        /// Which program.
        program: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A record or log cannot be used.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: hanse_runtime::BoxError,
    },
    /// The process table cannot be read.
    #[error("cannot read the process table in /proc")]
    Table(#[source] io::Error),
    /// A signal cannot be sent.
    #[error("cannot signal process {pid} ({name})")]
    Signal {
        /// Its id.
        pid: i32,
        /// Its name.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A process is there although it was killed.
    #[error("process {pid} ({name}) does not end, not even by SIGKILL; it may hang in the kernel")]
    Unkillable {
        /// Its id.
        pid: i32,
        /// Its name.
        name: String,
    },
}

impl ProcessError {
    /// Whether the same may succeed later without a change by a person.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Spawn { source, .. } => !matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput
            ),
            Self::File { .. } | Self::Table(_) | Self::Unkillable { .. } => true,
            Self::Signal { .. } => false,
        }
    }
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Name, unique in its directory of records.
    pub name: String,
    /// Program.
    pub program: PathBuf,
    /// Arguments. No secrets: everybody can list them.
    pub args: Vec<String>,
    /// The whole environment (nothing is inherited), besides the mark.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub dir: PathBuf,
    /// Digest of the files it reads, so that changed keys restart it.
    pub inputs: String,
    /// Ports it listens on.
    pub ports: Vec<u16>,
    /// Processes of a higher rank are stopped before those of a lower one.
    pub stop_rank: u8,
}

impl Spec {
    /// Digest of everything that should restart the process when it changes.
    pub fn digest(&self) -> String {
        let mut text = String::new();
        let mut add = |part: &str| {
            text.push_str(part);
            text.push('\0');
        };
        add(&self.program.to_string_lossy());
        self.args.iter().for_each(|arg| add(arg));
        for (name, value) in &self.env {
            add(name);
            add(value);
        }
        add(&self.dir.to_string_lossy());
        add(&self.inputs);
        sha256_hex(text.as_bytes())
    }
}
