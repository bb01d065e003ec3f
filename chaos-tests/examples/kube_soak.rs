//! kube-apiserver on three members of `hanse store`, under load, while members are killed: as long as one likes.
//!
//! ```text
//! cargo xtask soak [--minutes N] [--between SECONDS] [--seed N] [--out FILE]
//! ```
//!
//! builds all of it and runs this with the programs' paths.

#![allow(missing_docs, reason = "a program")]

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use hanse_chaos_tests::soak::{Plan, Tools, run};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "Loads kube-apiserver on hanse store while members are killed, and checks what must hold")]
struct Options {
    /// The hanse program
    #[arg(long)]
    hanse: PathBuf,
    /// The kube-apiserver program
    #[arg(long)]
    kube_apiserver: PathBuf,
    /// Where data goes while it runs: a folder on a real disk
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    data: PathBuf,
    /// How long
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seconds from one kill to the next, on average
    #[arg(long, default_value_t = 20.0)]
    between: f64,
    /// Decides who is killed when
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A file for the figures, as JSON
    #[arg(long)]
    out: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(
        (0.5..=240.0).contains(&options.minutes) && (5.0..=3600.0).contains(&options.between),
        "--minutes takes 0.5 to 240, --between 5 to 3600"
    );
    let plan = Plan {
        duration: Duration::from_secs_f64(options.minutes * 60.0),
        between: Duration::from_secs_f64(options.between),
        seed: options.seed,
    };
    let tools = Tools {
        hanse: options.hanse,
        api_server: options.kube_apiserver,
        data: options.data,
    };
    let report = run(&plan, &tools).await?;
    print!("\n{}", report.table());
    if let Some(path) = options.out {
        let text = format!("{:#}\n", report.json());
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
