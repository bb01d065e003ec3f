//! The table, the plot, and the figures as they were taken.

use crate::bench::{Line, table};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::path::Path;

/// Memory of the servers without load, MiB.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Rest {
    /// When they had just started.
    pub(super) empty: u64,
    /// When the objects had just been made.
    pub(super) filled: u64,
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What the machine is, and how the figures were taken.
    pub preface: Vec<String>,
    /// One of each work.
    pub lines: Vec<Line>,
    pub(super) peer_rest: Vec<Rest>,
    pub(super) hanse_rest: Vec<Rest>,
}

fn mean(of: impl Iterator<Item = u64> + Clone) -> u64 {
    let count = of.clone().count().max(1) as u64;
    of.sum::<u64>() / count
}

impl Report {
    /// The table, with what has to be said about it.
    pub fn markdown(&self) -> String {
        let mut text =
            String::from("# The management API beside kube-apiserver\n\nMade by `cargo xtask bench api`.\n\n");
        for line in &self.preface {
            text.push_str(&format!("{line}\n"));
        }
        text.push_str(
            "\n![rates](api.svg)\n\nOurs / kube-apiserver's with its etcd, medians of the runs; the ratios are what counts. A \
             list by parts counts once for the whole walk. Watchers are told of writes at a given rate, so their events per \
             second are equal where nothing is late, and what one costs is compared. MiB: the most that all processes of a side \
             had resident (VmRSS) while it counted.\n\n",
        );
        text.push_str(&table::markdown(&self.lines));
        let memory = |rest: &[Rest], of: fn(&Rest) -> u64| mean(rest.iter().map(of));
        text.push_str(&format!(
            "\nWithout load: {} / {} MiB just started, {} / {} MiB when the objects had just been made.\n",
            memory(&self.hanse_rest, |rest| rest.empty),
            memory(&self.peer_rest, |rest| rest.empty),
            memory(&self.hanse_rest, |rest| rest.filled),
            memory(&self.peer_rest, |rest| rest.filled),
        ));
        text
    }

    /// Writes `api.md`, `api.svg` and `api.json` into `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).context("write the figures")?;
        let svg = table::svg(&table::rates(&self.lines), "Hanse", "kube-apiserver");
        let files = [("api.md", self.markdown()), ("api.svg", svg), ("api.json", json + "\n")];
        table::write(folder, &files)
    }
}
