//! Builds, checks and starts Hanse from a checkout: `cargo xtask --help`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod api_docs;
mod bench;
mod cache;
mod check;
mod deny;
mod etcd_suite;
mod kube_clients;
mod kube_tools;
mod layers;
mod load;
mod oidc_provider;
mod packages;
mod rocksdb;
mod soak;
mod source;
mod step;
mod test_run;
mod tidy;
mod up;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing, build, and start Hanse on this machine
    Up(up::Options),
    /// Run `check`, then all tests
    Test(test_run::Choice),
    /// Check format, crate layers, house rules, lints and dependencies
    Check,
    /// Check file and function lengths, banned names and crate layers only (seconds)
    Tidy,
    /// Measure Hanse beside its peers; writes tables and plots into docs/bench
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Run etcd's own end-to-end tests against `hanse store`: minutes
    EtcdSuite {
        /// A pattern of Go's test names [default: those that must pass]
        pattern: Option<String>,
    },
    /// Write the reference of the management API into docs/api
    ApiDocs,
    /// Run kube-apiserver on `hanse store` under load while members are killed: minutes
    Soak(soak::Options),
    /// Build the store library into the cache and lead cargo to it
    Rocksdb,
    /// Build kube-apiserver, kubectl, kwok, etcd and the like into the cache; print the folder
    KubeTools {
        /// Print the folder only: no progress unless something has to be built
        #[arg(long)]
        dir: bool,
        /// Build the clients that only tests run instead
        #[arg(long, conflicts_with = "dir")]
        clients: bool,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// `hanse store` beside etcd: the same load in turns
    Store {
        /// Passed on to the load; `--help` shows what it takes
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The management API beside kube-apiserver on etcd: the same load in turns
    Api(bench::ApiOptions),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Up(options) => up::up(&options)?,
        Task::Test(choice) => return test_run::test(&choice),
        Task::Check => check::check()?,
        Task::Tidy => check::tidy()?,
        Task::Bench {
            what: Bench::Store { args },
        } => bench::store(&args)?,
        Task::Bench {
            what: Bench::Api(options),
        } => bench::api(&options)?,
        Task::EtcdSuite { pattern } => etcd_suite::run(pattern.as_deref())?,
        Task::ApiDocs => api_docs::write()?,
        Task::Soak(options) => soak::run(&options)?,
        Task::Rocksdb => {
            packages::install()?;
            rocksdb::ensure()?;
        }
        Task::KubeTools { clients: true, .. } => {
            packages::install()?;
            println!("{}", kube_clients::ensure()?.display());
        }
        Task::KubeTools { dir, .. } => return tools(dir),
    }
    Ok(ExitCode::SUCCESS)
}

/// The folder goes to standard output, alone; progress goes to standard error.
fn tools(quiet: bool) -> Result<ExitCode> {
    if let Some(dir) = quiet.then(kube_tools::find).transpose()?.flatten() {
        println!("{}", dir.display());
        return Ok(ExitCode::SUCCESS);
    }
    packages::install()?;
    if let Some(dir) = kube_tools::ensure()? {
        println!("{}", dir.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The checkout. Cargo says at run time where it is: the folder may have moved
/// since this program was built.
fn root() -> PathBuf {
    let built_in = env!("CARGO_MANIFEST_DIR");
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| built_in.into());
    Path::new(&manifest).parent().unwrap_or(Path::new(".")).to_owned()
}

/// The cargo that runs us, so that a chosen toolchain stays chosen.
fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is typed wrong is refused before the first build, which takes minutes.
    #[test]
    fn options_are_read_before_anything_is_built() {
        for wrong in [
            &["up", "--tenant"][..],
            &["up", "eu"],
            &["test", "--fast"],
            &["tset"],
            &["soak", "--minutes", "0"],
            &["soak", "--minutes", "ten"],
            &["soak", "--between", "1"],
            &["bench", "api", "--runs", "0"],
            &["bench", "api", "--seconds", "0.1"],
            &["bench", "api", "--clients", "1001"],
            &["bench", "api", "--objects", "50000"],
            &["bench", "api", "--watchers", "many"],
            &["bench", "api", "--rate", "0"],
            &["bench", "api", "--nodes", "2"],
        ] {
            let parsed = Cli::try_parse_from([&["xtask"], wrong].concat());
            assert!(parsed.is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn what_is_right_is_passed_on() {
        let parse = |line: &[&str]| Cli::try_parse_from([&["xtask"], line].concat()).map(|cli| cli.task);
        let up = parse(&["up", "--regions", "a,b", "--address-block", "9", "--no-tenant"]);
        assert!(
            matches!(&up, Ok(Task::Up(options)) if options.args() == ["--regions=a,b", "--address-block=9", "--no-tenant"])
        );
        let test = parse(&[
            "test",
            "-p",
            "hanse-state",
            "--test",
            "store",
            "mvcc",
            "--",
            "--nocapture",
        ]);
        let expected = ["--package=hanse-state", "--test=store", "mvcc", "--", "--nocapture"];
        assert!(matches!(&test, Ok(Task::Test(choice)) if choice.args() == expected));
        let bench = parse(&["bench", "api", "--nodes", "3", "--seconds", "0.5", "--only", "list of"]);
        let expected = ["--seconds=0.5", "--nodes=3", "--only=list of"];
        assert!(matches!(&bench, Ok(Task::Bench { what: Bench::Api(options) }) if options.args() == expected));
        assert!(matches!(parse(&["test"]), Ok(Task::Test(all)) if all.args() == ["--workspace"]));
    }
}
