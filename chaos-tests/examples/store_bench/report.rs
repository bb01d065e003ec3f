//! The table, the plot, and the figures as they were taken.

use crate::faults::Bulk;
use crate::hindered::Hindered;
use crate::load::Figures;
use crate::works::Work;
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::path::Path;

/// One line of the table: all runs of one work.
#[derive(Debug, Serialize)]
pub struct Line {
    pub title: String,
    pub nodes: usize,
    #[serde(skip)]
    pub work: Option<Work>,
    pub etcd: Vec<Figures>,
    pub hanse: Vec<Figures>,
}

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What the machine is, and how the figures were taken.
    pub preface: Vec<String>,
    pub lines: Vec<Line>,
    pub hindered: Vec<Hindered>,
    /// How often; etcd's and ours.
    pub kills: Option<(usize, Figures, Figures)>,
    /// etcd's and ours.
    pub bulk: Option<(Bulk, Bulk)>,
}

fn median(runs: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    let mut all: Vec<f64> = runs.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    match all.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => all[n / 2],
        n => f64::midpoint(all[n / 2 - 1], all[n / 2]),
    }
}

impl Line {
    /// Ours and etcd's, and their ratio.
    fn both(&self, of: impl Fn(&Figures) -> f64 + Copy) -> (f64, f64, f64) {
        let (ours, theirs) = (median(&self.hanse, of), median(&self.etcd, of));
        (ours, theirs, ours / theirs)
    }

    fn throughput(&self) -> (f64, f64, f64) {
        self.both(|f| f.per_second)
    }

    fn errors(&self) -> (u64, u64) {
        let sum = |runs: &[Figures]| runs.iter().map(|f| f.errors).sum();
        (sum(&self.hanse), sum(&self.etcd))
    }

    /// Each aim, with whether it is met.
    fn verdict(&self) -> String {
        let Some(aim) = self.work.map(|work| work.aim) else {
            return String::new();
        };
        let p99 = self.both(|f| f.p99).2;
        let cpu = self.both(|f| f.server_micros).2;
        let said = |name: &str, sign: &str, aim: Option<f64>, met: &dyn Fn(f64) -> bool| {
            aim.map(|aim| format!("{name} {sign} {aim}: {}", if met(aim) { "met" } else { "missed" }))
        };
        let throughput = self.throughput().2;
        [
            said("rate", "≥", aim.throughput, &|aim| throughput >= aim),
            said("p99", "≤", aim.p99, &|aim| p99 <= aim),
            said("CPU", "≤", aim.cpu, &|aim| cpu <= aim),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("; ")
    }
}

impl Report {
    /// Writes `store.md`, `store.svg` and `store.json` into `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let json = serde_json::to_string_pretty(self).context("write the figures")?;
        for (name, text) in [
            ("store.md", self.markdown()),
            ("store.svg", self.svg()),
            ("store.json", json + "\n"),
        ] {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            println!("{}", path.display());
        }
        Ok(())
    }

    /// The table.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# The store beside etcd\n\nMade by `cargo xtask bench store`.\n\n");
        for line in &self.preface {
            text.push_str(&format!("{line}\n"));
        }
        text.push_str(
            "\n![rates](store.svg)\n\nOurs / etcd's, medians of the runs; the ratio of the rates is what counts.\n\n",
        );
        text.push_str("| members | work | per second | ratio | p50 ms | p99 ms | µs of CPU per answer | errors | aim |\n|---|---|---|---|---|---|---|---|---|\n");
        for line in &self.lines {
            let (ours, theirs, ratio) = line.throughput();
            let pair = |of: fn(&Figures) -> f64| {
                let (ours, theirs, _) = line.both(of);
                format!("{ours:.1} / {theirs:.1}")
            };
            let errors = line.errors();
            text.push_str(&format!(
                "| {} | {} | {ours:.0} / {theirs:.0} | {ratio:.2} | {} | {} | {} | {} / {} | {} |\n",
                line.nodes,
                line.title,
                pair(|f| f.p50),
                pair(|f| f.p99),
                pair(|f| f.server_micros),
                errors.0,
                errors.1,
                line.verdict()
            ));
        }
        self.hindered(&mut text);
        self.faults(&mut text);
        text
    }

    fn hindered(&self, text: &mut String) {
        if self.hindered.is_empty() {
            return;
        }
        text.push_str("\nPuts over three members while something is in their way, one run; aims for a planned hand-over: no write fails, none takes over 50 ms.\n\n");
        text.push_str("| what | per second | ratio | p99 ms | longest ms | errors |\n|---|---|---|---|---|---|\n");
        for Hindered { title, etcd, hanse } in &self.hindered {
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

    /// Bars: our rate as a multiple of etcd's. A line marks etcd, a tick each aim.
    pub fn svg(&self) -> String {
        const LEFT: usize = 250;
        const WIDTH: f64 = 460.0;
        const ROW: usize = 26;
        const TOP: usize = 46;
        let widest = self
            .lines
            .iter()
            .map(|line| line.throughput().2)
            .filter(|r| r.is_finite());
        let most = widest.fold(2.0, f64::max) * 1.05;
        let x = |ratio: f64| LEFT as f64 + ratio / most * WIDTH;
        let height = TOP + self.lines.len() * ROW + 20;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 {height}\" font-family=\"sans-serif\" font-size=\"12\" role=\"img\">\n\
             <title>Answers per second of hanse store as a multiple of etcd's</title>\n\
             <rect width=\"800\" height=\"{height}\" fill=\"#fff\"/>\n\
             <text x=\"10\" y=\"20\" font-size=\"14\" font-weight=\"bold\">Answers per second, as a multiple of etcd's (tick: aim)</text>\n"
        );
        for (n, line) in self.lines.iter().enumerate() {
            let (y, ratio) = (TOP + n * ROW, line.throughput().2);
            let colour = if ratio >= 1.0 { "#2f7d4f" } else { "#b4552d" };
            let members = if line.nodes == 1 {
                "1 member".to_owned()
            } else {
                format!("{} members", line.nodes)
            };
            let wide = x(ratio) - LEFT as f64;
            svg.push_str(&format!(
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{members}: {}</text>\n\
                 <rect x=\"{LEFT}\" y=\"{y}\" width=\"{wide:.1}\" height=\"{}\" fill=\"{colour}\"/>\n\
                 <text x=\"{:.1}\" y=\"{}\">{ratio:.2}</text>\n",
                LEFT - 8,
                y + 14,
                line.title,
                ROW - 8,
                x(ratio) + 5.0,
                y + 14,
            ));
            if let Some(aim) = line.work.and_then(|work| work.aim.throughput) {
                svg.push_str(&format!(
                    "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1}\" y2=\"{2}\" stroke=\"#222\" stroke-width=\"2\"/>\n",
                    x(aim),
                    y - 2,
                    y + ROW - 6
                ));
            }
        }
        svg.push_str(&format!(
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1}\" y2=\"{2}\" stroke=\"#555\" stroke-dasharray=\"4 3\"/>\n\
             <text x=\"{0:.1}\" y=\"{1}\" text-anchor=\"middle\" fill=\"#555\">etcd</text>\n</svg>\n",
            x(1.0),
            TOP - 8,
            height - 12
        ));
        svg
    }
}
