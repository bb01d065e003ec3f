//! A load that nobody here wrote: etcd's own `benchmark`, a program in Go, run as it is.

use crate::works::VALUE;
use anyhow::{Context as _, Result, ensure};
use hanse_chaos_tests::bench::Figures;
use hanse_chaos_tests::bench::usage::during;
use hanse_chaos_tests::store_cluster::Cluster;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

/// What it is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Puts of random keys.
    Put,
    /// Transactions of one put.
    TxnPut,
    /// Linearizable reads of one key.
    Range,
}

/// Clients share connections beyond this many.
const CONNECTIONS: usize = 32;
/// Keys that it chooses from.
const KEYS: u32 = 100_000;
/// Answers in a second that the number of requests is chosen for: it takes a number and no time.
const EXPECTED: f64 = 5_000.0;
/// Beyond it something hangs.
const LIMIT: Duration = Duration::from_secs(300);

impl Deed {
    fn words(self) -> Vec<String> {
        let (keys, value) = (format!("--key-space-size={KEYS}"), format!("--val-size={VALUE}"));
        let key_size = "--key-size=32".to_owned();
        match self {
            Self::Put => vec!["put".to_owned(), key_size, keys, value],
            Self::TxnPut => vec!["txn-put".to_owned(), key_size, keys, value],
            Self::Range => vec![
                "range".to_owned(),
                "/benchmark".to_owned(),
                "--consistency=l".to_owned(),
            ],
        }
    }
}

/// Runs `program` on all members, for about as long as `counted`.
pub async fn run(program: &Path, cluster: &Cluster, deed: Deed, clients: usize, counted: Duration) -> Result<Figures> {
    let total = (EXPECTED * counted.as_secs_f64()) as u64;
    let mut command = Command::new(program);
    command.args(deed.words()).kill_on_drop(true);
    command.arg(format!("--endpoints={}", cluster.urls().join(",")));
    command.arg(format!("--clients={clients}"));
    command.arg(format!("--conns={}", clients.min(CONNECTIONS)));
    command.arg(format!("--total={total}"));
    let (output, used) = during(&cluster.processes(), tokio::time::timeout(LIMIT, command.output())).await;
    let output = output
        .context("etcd's benchmark does not end")?
        .with_context(|| format!("run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let fault = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "etcd's benchmark failed: {}", fault.trim());
    let mut figures = read(&text).with_context(|| format!("etcd's benchmark said:\n{text}"))?;
    figures.server_micros = used.cpu.as_secs_f64() * 1e6 / total.max(1) as f64;
    figures.memory_mib = used.memory_mib;
    Ok(figures)
}

/// What is in its summary.
fn read(text: &str) -> Result<Figures> {
    let after = |word: &str| -> Result<f64> {
        let found = text.lines().find_map(|line| line.trim_start().strip_prefix(word));
        let found = found.with_context(|| format!("there is no line that begins with {word:?}"))?;
        let number = found.split_whitespace().next().unwrap_or_default();
        number
            .parse()
            .with_context(|| format!("{word} is {number:?}, which is no number"))
    };
    let errors = text.split_once("Error distribution:").map_or("", |(_, errors)| errors);
    let count = |line: &str| {
        let (count, _) = line.trim_start().strip_prefix('[')?.split_once(']')?;
        count.parse::<u64>().ok()
    };
    Ok(Figures {
        per_second: after("Requests/sec:")?,
        p50: after("50% in")? * 1000.0,
        p99: after("99% in")? * 1000.0,
        max: after("Slowest:")? * 1000.0,
        errors: errors.lines().filter_map(count).sum(),
        ..Figures::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "
Summary:
  Total:\t3.2502 secs.
  Slowest:\t0.3461 secs.
  Fastest:\t0.0014 secs.
  Requests/sec:\t153.8354

Response time histogram:
  0.0014 [1]\t|
  0.0359 [269]\t|∎∎

Latency distribution:
  25% in 0.0103 secs.
  50% in 0.0333 secs.
  99% in 0.3075 secs.
";

    #[test]
    fn its_summary_is_read() {
        let read_figures = read(SUMMARY).unwrap();
        let wanted = Figures {
            per_second: 153.8354,
            p50: 0.0333 * 1000.0,
            p99: 307.5,
            max: 346.1,
            ..Figures::default()
        };
        assert_eq!(read_figures, wanted);
        let failed = format!("{SUMMARY}\nError distribution:\n  [3]\tetcdserver: too many requests\n  [2]\tother\n");
        assert_eq!(read(&failed).unwrap().errors, 5);
        let fault = read("Summary:\n").unwrap_err().to_string();
        assert!(fault.contains("Requests/sec"), "{fault}");
        assert!(read(&SUMMARY.replace("153.8354", "many")).is_err());
    }
}
