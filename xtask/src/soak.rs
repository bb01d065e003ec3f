//! `soak`: kube-apiserver on `hanse store` for minutes, while members are killed.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::load;

/// What can be chosen.
#[derive(Args)]
pub(crate) struct Options {
    /// How long it is under load
    #[arg(long, default_value_t = 10.0, value_parser = minutes)]
    minutes: f64,
    /// Seconds from one kill to the next, on average
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(5..=3600))]
    between: u64,
    /// Decides who is killed when
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A file for the figures, as JSON
    #[arg(long)]
    out: Option<PathBuf>,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.5..=240.0).contains(&minutes) => Ok(minutes),
        _ => Err("0.5 to 240 are possible".to_owned()),
    }
}

/// Runs the load.
pub(crate) fn run(options: &Options) -> Result<()> {
    load::run("kube_soak", "kube-apiserver", |command| {
        command.args(["--minutes", &options.minutes.to_string()]);
        command.args(["--between", &options.between.to_string()]);
        command.args(["--seed", &options.seed.to_string()]);
        if let Some(out) = &options.out {
            // Where the user is, not where cargo runs it.
            let out = std::env::current_dir().context("find this folder")?.join(out);
            command.arg("--out").arg(out);
        }
        Ok(())
    })
}
