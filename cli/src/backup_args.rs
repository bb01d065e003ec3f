//! The command line of `backup` and `restore`.

use crate::args::{OutputArgs, ProjectArgs};
use clap::Args;
use std::path::PathBuf;

/// Where a passphrase comes from; never from an argument.
#[derive(Clone, Debug, Args)]
pub(crate) struct PassphraseArgs {
    /// File with the passphrase, closed to others (mode 0600); - is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

/// Options of `backup`.
#[derive(Clone, Debug, Args)]
pub(crate) struct BackupArgs {
    /// File to write, which must not exist yet
    pub(crate) file: PathBuf,
    /// Only the key space of this tenant cluster
    #[arg(long, value_name = "NAME")]
    pub(crate) tenant: Option<String>,
    #[command(flatten)]
    pub(crate) project: ProjectArgs,
    /// Take at most so many MiB in a second, so that tenants notice less of it
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: Option<u32>,
    /// Encrypt it with a passphrase, read from --passphrase-file or the terminal
    #[arg(long)]
    pub(crate) encrypt: bool,
    #[command(flatten)]
    pub(crate) passphrase: PassphraseArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Options of `restore`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RestoreArgs {
    /// File that `hanse backup` wrote
    pub(crate) file: PathBuf,
    /// Configuration of the server whose empty data directory is filled; do the same on every server of it, then start them
    #[arg(long, value_name = "FILE", required_unless_present_any = ["check", "tenant"])]
    pub(crate) config: Option<PathBuf>,
    /// Only look whether the file is whole, and what it holds
    #[arg(long, conflicts_with = "config")]
    pub(crate) check: bool,
    /// Put the key space of this tenant cluster back into the running system; what it holds now is lost
    #[arg(long, value_name = "NAME", conflicts_with_all = ["config", "check"])]
    pub(crate) tenant: Option<String>,
    #[command(flatten)]
    pub(crate) project: ProjectArgs,
    #[command(flatten)]
    pub(crate) passphrase: PassphraseArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}
