//! Data goes to standard output, progress and faults to standard error; colours only where a person looks.

pub(crate) mod document;
pub(crate) mod progress;
pub(crate) mod secret;
pub(crate) mod style;
pub(crate) mod table;

use crate::error::{Error, Result};
use std::io::{IsTerminal as _, Write as _};
use style::Paint;

/// How results are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// More columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Where this process writes, and whether a person reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Colours for standard output.
    pub(crate) out: Paint,
    /// Colours for standard error.
    pub(crate) err: Paint,
    /// Whether standard error is a terminal, so that a line may be redrawn.
    pub(crate) live: bool,
}

impl Output {
    /// From the environment (<https://no-color.org>).
    pub(crate) fn detect() -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let plain = set("NO_COLOR") || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let (out, err) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        Self {
            out: Paint::new(out && !plain),
            err: Paint::new(err && !plain),
            live: err,
        }
    }

    /// Prints a result.
    pub(crate) fn print(&self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        match written {
            // The reader has seen enough, as in `hanse list | head`.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(Error::failed(format!("cannot write to standard output: {error}"))),
            Ok(()) => Ok(()),
        }
    }

    /// Prints a line of a result.
    pub(crate) fn line(&self, text: &str) -> Result<()> {
        self.print(&format!("{text}\n"))
    }

    /// Tells the person something that is no result.
    pub(crate) fn note(&self, text: &str) {
        eprintln!("{text}");
    }

    /// Tells why the command failed and what to do.
    pub(crate) fn fault(&self, error: &Error) {
        eprintln!("{} {error}", self.err.red("error:"));
        let again = error.kind().retryable().then_some("try again");
        if let Some(remedy) = error.remedy().or(again) {
            eprintln!("{} {remedy}", self.err.yellow(" hint:"));
        }
    }
}
