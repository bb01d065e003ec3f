//! What a run gave.

use super::Line;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Figures of a run in which everything held.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of the plan.
    pub seed: u64,
    /// Under load.
    pub seconds: f64,
    /// By verb.
    pub lines: Vec<Line>,
    /// Failed requests by cause. Their fate was found out, and is in the checks.
    pub errors: BTreeMap<String, usize>,
    /// Members killed and started again.
    pub kills: usize,
    /// Seconds without an acknowledged write, at most.
    pub longest: f64,
    /// Objects made.
    pub objects: usize,
    /// Of these, with a time to live.
    pub events: usize,
    /// Events and bookmarks that followers were told, all together.
    pub told: usize,
    /// How often a watch ended and went on.
    pub breaks: usize,
    /// How often a follower had to list anew (410).
    pub relists: usize,
    /// Of the content, on all members.
    pub hash: u32,
    /// Times at which the machine gave the clients no time.
    pub standstills: usize,
}

impl Report {
    fn per_second(&self) -> f64 {
        let count: usize = self.lines.iter().map(|line| line.count).sum();
        #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
        let count = count as f64;
        count / self.seconds.max(f64::EPSILON)
    }

    /// The closing table.
    pub fn table(&self) -> String {
        let mut text = String::from("| request | acknowledged | p50 ms | p99 ms | max ms |\n|---|--:|--:|--:|--:|\n");
        for line in &self.lines {
            let Line {
                verb,
                count,
                p50,
                p99,
                max,
            } = line;
            // Writing to a String cannot fail.
            writeln!(text, "| {verb} | {count} | {p50:.1} | {p99:.1} | {max:.0} |").ok();
        }
        let errors: Vec<String> = self
            .errors
            .iter()
            .map(|(why, count)| format!("{count} {why}"))
            .collect();
        let errors = if errors.is_empty() {
            "none".to_owned()
        } else {
            errors.join(", ")
        };
        write!(
            text,
            "\n{:.0} s, {:.0} requests/s, {} kills, at most {:.1} s without an acknowledged write; errors: {errors}.\n\
             {} objects, {} of them expired; watches told {} events over {} breaks and {} new lists; \
             content hash {:08x} on all members; seed {}.\n",
            self.seconds,
            self.per_second(),
            self.kills,
            self.longest,
            self.objects,
            self.events,
            self.told,
            self.breaks,
            self.relists,
            self.hash,
            self.seed
        )
        .ok();
        text
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let line = |line: &Line| json!({ "verb": line.verb, "count": line.count, "p50Ms": line.p50, "p99Ms": line.p99, "maxMs": line.max });
        json!({
            "seed": self.seed,
            "seconds": self.seconds,
            "requestsPerSecond": self.per_second(),
            "requests": self.lines.iter().map(line).collect::<Vec<_>>(),
            "errors": self.errors,
            "kills": self.kills,
            "longestWithoutWriteSeconds": self.longest,
            "objects": self.objects,
            "expired": self.events,
            "watchEvents": self.told,
            "watchBreaks": self.breaks,
            "relists": self.relists,
            "hash": format!("{:08x}", self.hash),
            "standstills": self.standstills,
        })
    }
}
