//! What one run of a load gives, and all runs of it beside the peer's.

use super::usage::Used;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a load runs, and how long before it counts.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Before anything counts: connections are made, caches filled.
    pub warm_up: Duration,
    /// What counts.
    pub counted: Duration,
}

impl Window {
    /// So many seconds that count, after one that does not, or after as many where they are fewer.
    pub fn of_seconds(seconds: f64) -> Self {
        Self {
            warm_up: Duration::from_secs_f64(seconds.min(1.0)),
            counted: Duration::from_secs_f64(seconds),
        }
    }
}

/// What one run of a load gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Answers per second; of a watch, events delivered.
    pub per_second: f64,
    /// Milliseconds.
    pub p50: f64,
    /// The same.
    pub p99: f64,
    /// The same.
    pub max: f64,
    /// Requests that failed.
    pub errors: u64,
    /// Processor time of the servers per answer, microseconds.
    pub server_micros: f64,
    /// The most memory that the servers had resident at one time, MiB.
    #[serde(default)]
    pub memory_mib: u64,
}

impl Figures {
    /// Of all `times`, taken in `window`.
    pub fn of(mut times: Vec<Duration>, window: Duration, errors: u64, used: Used) -> Self {
        times.sort_unstable();
        let millis = |part: f64| {
            let place = (times.len().saturating_sub(1) as f64 * part).round() as usize;
            times.get(place).map_or(f64::NAN, |t| t.as_secs_f64() * 1000.0)
        };
        let count = times.len() as f64;
        Self {
            per_second: count / window.as_secs_f64(),
            p50: millis(0.5),
            p99: millis(0.99),
            max: millis(1.0),
            errors,
            server_micros: used.cpu.as_secs_f64() * 1e6 / count.max(1.0),
            memory_mib: used.memory_mib,
        }
    }
}

/// Ratios of Hanse to the peer; none where only the figure is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Aim {
    /// At least so many times the throughput.
    pub throughput: Option<f64>,
    /// At most so many times the 99th percentile.
    pub p99: Option<f64>,
    /// At most so many times the servers' processor time for each answer.
    pub cpu: Option<f64>,
    /// At most so many times the servers' memory.
    pub memory: Option<f64>,
}

/// One line of the table: all runs of one load, by both.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Line {
    /// What is done.
    pub title: String,
    /// How many servers there are on each side.
    pub nodes: usize,
    /// What Hanse aims at.
    #[serde(skip)]
    pub aim: Aim,
    /// The peer's.
    pub peer: Vec<Figures>,
    /// Ours.
    pub hanse: Vec<Figures>,
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

fn memory(figures: &Figures) -> f64 {
    figures.memory_mib as f64
}

impl Line {
    /// Ours and the peer's, medians of all runs, and their ratio.
    pub fn both(&self, of: impl Fn(&Figures) -> f64 + Copy) -> (f64, f64, f64) {
        let (ours, theirs) = (median(&self.hanse, of), median(&self.peer, of));
        (ours, theirs, ours / theirs)
    }

    /// Answers per second.
    pub fn throughput(&self) -> (f64, f64, f64) {
        self.both(|f| f.per_second)
    }

    /// MiB.
    pub fn memory(&self) -> (f64, f64, f64) {
        self.both(memory)
    }

    /// Failed requests of all runs, ours and theirs.
    pub fn errors(&self) -> (u64, u64) {
        let sum = |runs: &[Figures]| runs.iter().map(|f| f.errors).sum();
        (sum(&self.hanse), sum(&self.peer))
    }

    /// Each aim, with whether it is met.
    pub fn verdict(&self) -> String {
        let p99 = self.both(|f| f.p99).2;
        let cpu = self.both(|f| f.server_micros).2;
        let (throughput, memory) = (self.throughput().2, self.memory().2);
        let said = |name: &str, sign: &str, aim: Option<f64>, met: &dyn Fn(f64) -> bool| {
            aim.map(|aim| format!("{name} {sign} {aim}: {}", if met(aim) { "met" } else { "missed" }))
        };
        [
            said("rate", "≥", self.aim.throughput, &|aim| throughput >= aim),
            said("p99", "≤", self.aim.p99, &|aim| p99 <= aim),
            said("CPU", "≤", self.aim.cpu, &|aim| cpu <= aim),
            said("memory", "≤", self.aim.memory, &|aim| memory <= aim),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(millis: &[u64], memory_mib: u64) -> Figures {
        let times = millis.iter().map(|ms| Duration::from_millis(*ms)).collect();
        let used = Used {
            cpu: Duration::from_millis(10),
            memory_mib,
        };
        Figures::of(times, Duration::from_secs(2), 3, used)
    }

    #[test]
    fn figures_are_those_of_the_times() {
        let times: Vec<u64> = (1..=100).rev().collect();
        let of = figures(&times, 7);
        assert_eq!((of.per_second, of.p50, of.p99, of.max), (50.0, 51.0, 99.0, 100.0));
        assert_eq!((of.errors, of.server_micros, of.memory_mib), (3, 100.0, 7));
        assert!(figures(&[], 0).p99.is_nan(), "nothing was measured");
    }

    #[test]
    fn a_line_compares_medians_and_says_what_was_missed() {
        let line = Line {
            aim: Aim {
                throughput: Some(2.0),
                p99: Some(1.0),
                cpu: None,
                memory: Some(0.5),
            },
            peer: vec![figures(&[10, 10], 100), figures(&[10, 10, 10], 300)],
            hanse: vec![figures(&[1; 6], 100), figures(&[1; 5], 90), figures(&[2; 4], 120)],
            ..Line::default()
        };
        assert_eq!(line.throughput(), (2.5, 1.25, 2.0));
        assert_eq!(line.memory(), (100.0, 200.0, 0.5));
        assert_eq!(line.errors(), (9, 6));
        assert_eq!(line.verdict(), "rate ≥ 2: met; p99 ≤ 1: met; memory ≤ 0.5: met");
        let nothing = Line {
            aim: line.aim,
            ..Line::default()
        };
        assert!(!nothing.verdict().contains(": met"), "{}", nothing.verdict());
    }
}
