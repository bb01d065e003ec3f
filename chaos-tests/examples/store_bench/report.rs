//! The table, the plot, and the figures as they were taken.

use crate::faults::Bulk;
use crate::hindered::{Hindered, Table};
use anyhow::{Context as _, Result};
use hanse_chaos_tests::bench::{Figures, Line, table};
use serde::Serialize;
use std::path::Path;

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What the machine is, and how the figures were taken.
    pub preface: Vec<String>,
    pub lines: Vec<Line>,
    pub hindered: Table,
    /// How often; etcd's and ours.
    pub kills: Option<(usize, Figures, Figures)>,
    /// etcd's and ours.
    pub bulk: Option<(Bulk, Bulk)>,
}

impl Report {
    /// Writes `store.md`, `store.svg` and `store.json` into `folder`; without works `store-hindered.md` and `.json`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).context("write the figures")?;
        let files = if self.lines.is_empty() {
            vec![
                ("store-hindered.md", self.markdown()),
                ("store-hindered.json", json + "\n"),
            ]
        } else {
            vec![
                ("store.md", self.markdown()),
                (
                    "store.svg",
                    table::svg(&table::rates(&self.lines), "hanse store", "etcd"),
                ),
                ("store.json", json + "\n"),
            ]
        };
        table::write(folder, &files)
    }

    /// The table.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# The store beside etcd\n\nMade by `cargo xtask bench store`.\n\n");
        for line in &self.preface {
            text.push_str(&format!("{line}\n"));
        }
        if !self.lines.is_empty() {
            self.works(&mut text);
        }
        self.hindered(&mut text);
        self.faults(&mut text);
        text
    }

    fn works(&self, text: &mut String) {
        text.push_str(
            "\n![rates](store.svg)\n\nOurs / etcd's, medians of the runs; the ratio of the rates is what counts.\n\n",
        );
        text.push_str(&table::markdown(&self.lines));
    }

    fn hindered(&self, text: &mut String) {
        let Table { lines, notes } = &self.hindered;
        if lines.is_empty() && notes.is_empty() {
            return;
        }
        text.push_str("\nPuts over three members while something is in their way, one run; aims for a planned hand-over: no write fails, none takes over 50 ms. A put without an answer after a second has failed. One link at 80 ms: the round trip between the leader and one follower, clients at the other two. A slow disk: for the leader alone, clients at all.\n\n");
        text.push_str("| what | per second | ratio | p99 ms | longest ms | errors |\n|---|---|---|---|---|---|\n");
        for Hindered { title, etcd, hanse } in lines {
            text.push_str(&format!(
                "| {title} | {:.0} / {:.0} | {:.2} | {:.1} / {:.1} | {:.0} / {:.0} | {} / {} |\n",
                hanse.per_second,
                etcd.per_second,
                hanse.per_second / etcd.per_second,
                hanse.p99,
                etcd.p99,
                hanse.max,
                etcd.max,
                hanse.errors,
                etcd.errors
            ));
        }
        for note in notes {
            text.push_str(&format!("\n{note}\n"));
        }
    }

    fn faults(&self, text: &mut String) {
        if let Some((times, etcd, ours)) = &self.kills {
            text.push_str(&format!(
                "\n`kill -9` of the leader of three, until another member acknowledges a write, {times} times, ms: p50 {:.0} / {:.0}, longest {:.0} / {:.0}.\n",
                ours.p50, etcd.p50, ours.max, etcd.max
            ));
        }
        if let Some((etcd, ours)) = &self.bulk {
            text.push_str(&format!(
                "\nOne node with {} keys: {} / {} MiB resident; {:.1} / {:.1} s from its start after `kill -9` to the first acknowledged write.\n",
                ours.keys, ours.memory_mib, etcd.memory_mib, ours.restart_seconds, etcd.restart_seconds
            ));
        }
    }
}
