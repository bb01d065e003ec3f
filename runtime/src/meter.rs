//! Figures for scrapers: a histogram that costs two atomic additions, a stopwatch, and families of samples that are
//! gathered when somebody asks and shown in Prometheus' text format or by the process' registry.

use crate::clock::{SharedClock, SystemClock};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long things take, in buckets that double.
#[derive(Debug)]
pub struct Histogram {
    bounds: Vec<f64>,
    /// One more than `bounds`: what is above all of them.
    counts: Vec<AtomicU64>,
    nanos: AtomicU64,
}

impl Histogram {
    /// `count` buckets, the first up to `first` seconds, each next one up to twice as much.
    pub fn doubling(first: f64, count: usize) -> Self {
        let bounds: Vec<f64> = std::iter::successors(Some(first), |bound| Some(bound * 2.0))
            .take(count)
            .collect();
        Self {
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            bounds,
            nanos: AtomicU64::new(0),
        }
    }

    /// etcd's buckets for what a disk does: 1 ms to 8.192 s.
    pub fn of_disk() -> Self {
        Self::doubling(0.001, 14)
    }

    /// etcd's buckets for what a request does: 0.1 ms to 52.4288 s.
    pub fn of_requests() -> Self {
        Self::doubling(0.0001, 20)
    }

    /// Notes that something took so long.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = self.bounds.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get(at) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// How it stands.
    pub fn value(&self) -> Value {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        Value::Histogram {
            buckets: bounds.zip(counts).collect(),
            sum: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64(),
        }
    }
}

/// Measures how long things take. What it measures is shown to people and decides nothing, so that it is the machine's own
/// clock in tests as well.
pub struct Stopwatch {
    clock: SharedClock,
}

impl fmt::Debug for Stopwatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stopwatch(..)")
    }
}

impl Default for Stopwatch {
    fn default() -> Self {
        Self {
            clock: SystemClock::shared(),
        }
    }
}

impl Stopwatch {
    /// Does something and notes how long it took.
    pub fn time<T>(&self, histogram: &Histogram, work: impl FnOnce() -> T) -> T {
        let start = self.clock.mono();
        let out = work();
        histogram.observe(self.clock.mono().saturating_sub(start));
        out
    }

    /// The same for a future.
    pub async fn time_async<T>(&self, histogram: &Histogram, work: impl Future<Output = T>) -> T {
        let start = self.clock.mono();
        let out = work.await;
        histogram.observe(self.clock.mono().saturating_sub(start));
        out
    }
}

/// What a figure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It goes up only, from the start of the process on. Its name ends with `_total`.
    Counter,
    /// Distribution of durations.
    Histogram,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a gauge or a counter.
    Number(f64),
    /// Of a histogram: upper bounds (the last is above all) with what fell between the one before and it, and the sum.
    Histogram {
        /// Upper bound and count of each.
        buckets: Vec<(f64, u64)>,
        /// Of all that was observed, in seconds.
        sum: f64,
    },
}

/// Label and what it says.
pub type Label = (&'static str, String);

/// One figure under one set of labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// In the order in which they are shown.
    pub labels: Vec<Label>,
    /// The figure.
    pub value: Value,
}

/// All figures of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// One sentence about it.
    pub help: &'static str,
    /// What its figures mean.
    pub kind: Kind,
    /// The figures.
    pub samples: Vec<Sample>,
}

#[expect(
    clippy::cast_precision_loss,
    reason = "figures for people; beyond 2^53 the last digits do not matter"
)]
const fn number(value: u64) -> Value {
    Value::Number(value as f64)
}

impl Family {
    /// A family without figures yet.
    pub const fn new(name: &'static str, help: &'static str, kind: Kind) -> Self {
        Self {
            name,
            help,
            kind,
            samples: Vec::new(),
        }
    }

    /// A gauge without labels.
    pub fn gauge(name: &'static str, help: &'static str, value: u64) -> Self {
        Self::new(name, help, Kind::Gauge).and(Vec::new(), value)
    }

    /// A counter without labels.
    pub fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self::new(name, help, Kind::Counter).and(Vec::new(), value)
    }

    /// A histogram.
    pub fn histogram(name: &'static str, help: &'static str, labels: Vec<Label>, histogram: &Histogram) -> Self {
        let mut family = Self::new(name, help, Kind::Histogram);
        let value = histogram.value();
        family.samples.push(Sample { labels, value });
        family
    }

    /// With one more figure.
    #[must_use]
    pub fn and(mut self, labels: Vec<Label>, value: u64) -> Self {
        let value = number(value);
        self.samples.push(Sample { labels, value });
        self
    }
}

/// Puts families together: figures of the same name become one family, each with the label of where it comes from.
pub fn labelled(sources: impl IntoIterator<Item = (Label, Vec<Family>)>) -> Vec<Family> {
    let mut all: Vec<Family> = Vec::new();
    for (label, families) in sources {
        for mut family in families {
            for sample in &mut family.samples {
                sample.labels.push(label.clone());
            }
            match all.iter_mut().find(|known| known.name == family.name) {
                Some(known) => known.samples.append(&mut family.samples),
                None => all.push(family),
            }
        }
    }
    all
}

/// Prometheus' text format, version 0.0.4.
pub fn text(families: &[Family]) -> String {
    let mut out = String::new();
    for family in families {
        // Writing to a string cannot fail.
        show(&mut out, family).ok();
    }
    out
}

fn show(out: &mut String, family: &Family) -> fmt::Result {
    let Family { name, help, kind, .. } = family;
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", kind.name())?;
    for Sample { labels, value } in &family.samples {
        match value {
            Value::Number(value) => writeln!(out, "{name}{} {value}", braced(labels, None))?,
            Value::Histogram { buckets, sum } => {
                let mut total = 0;
                for (bound, count) in buckets {
                    total += count;
                    let bound = if bound.is_infinite() {
                        "+Inf".to_owned()
                    } else {
                        bound.to_string()
                    };
                    writeln!(out, "{name}_bucket{} {total}", braced(labels, Some(bound)))?;
                }
                let labels = braced(labels, None);
                writeln!(out, "{name}_sum{labels} {sum}\n{name}_count{labels} {total}")?;
            }
        }
    }
    Ok(())
}

fn braced(labels: &[Label], bound: Option<String>) -> String {
    let bound = bound.map(|bound| ("le", bound));
    let one = |(name, value): &Label| {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("{name}=\"{value}\"")
    };
    let all: Vec<String> = labels.iter().chain(&bound).map(one).collect();
    if all.is_empty() {
        String::new()
    } else {
        format!("{{{}}}", all.join(","))
    }
}

/// What the system says of this process, as far as it does.
pub fn process() -> Vec<Family> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    let open = std::fs::read_dir("/proc/self/fd").map(|files| files.count() as u64);
    let figures = [
        (
            "process_resident_memory_bytes",
            "Memory in use.",
            kib("VmRSS:").map(|kib| kib << 10),
        ),
        (
            "process_virtual_memory_bytes",
            "Memory that is mapped.",
            kib("VmSize:").map(|kib| kib << 10),
        ),
        ("process_open_fds", "Files and connections that are open.", open.ok()),
    ];
    let known = figures
        .into_iter()
        .filter_map(|(name, help, value)| Some(Family::gauge(name, help, value?)));
    known.collect()
}

/// Families that are gathered whenever the registry is read.
pub(crate) struct Gathered(pub(crate) Box<dyn Fn() -> Vec<Family> + Send + Sync>);

impl fmt::Debug for Gathered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gathered(..)")
    }
}

fn encode(mut encoder: MetricEncoder<'_>, value: &Value, kind: Kind) -> fmt::Result {
    match (value, kind) {
        (Value::Number(value), Kind::Counter) => encoder.encode_counter::<NoLabelSet, f64, f64>(value, None),
        (Value::Number(value), _) => encoder.encode_gauge(value),
        (Value::Histogram { buckets, sum }, _) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
    }
}

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in (self.0)() {
            let (name, kind) = match family.kind {
                Kind::Gauge => (family.name, MetricType::Gauge),
                // The registry adds the ending of counters.
                Kind::Counter => (family.name.trim_end_matches("_total"), MetricType::Counter),
                Kind::Histogram => (family.name, MetricType::Histogram),
            };
            // The registry adds the full stop.
            let help = family.help.trim_end_matches('.');
            let mut all = encoder.encode_descriptor(name, help, None, kind)?;
            for Sample { labels, value } in &family.samples {
                encode(all.encode_family(&labels.as_slice())?, value, family.kind)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    fn families() -> Vec<Family> {
        let histogram = Histogram::doubling(0.5, 2);
        for millis in [500, 501, 2000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let spaces = Family::new("spaces_bytes", "Bytes of spaces.", Kind::Gauge)
            .and(vec![("space", "a\"b\\c\n".to_owned())], 7)
            .and(vec![("space", "d".to_owned())], 1 << 40);
        vec![
            spaces,
            Family::counter("puts_total", "Puts.", 3),
            Family::histogram("took_seconds", "Times.", vec![("op", "x".to_owned())], &histogram),
        ]
    }

    #[test]
    fn the_text_is_prometheus() {
        let wanted = r#"# HELP spaces_bytes Bytes of spaces.
# TYPE spaces_bytes gauge
spaces_bytes{space="a\"b\\c\n"} 7
spaces_bytes{space="d"} 1099511627776
# HELP puts_total Puts.
# TYPE puts_total counter
puts_total 3
# HELP took_seconds Times.
# TYPE took_seconds histogram
took_seconds_bucket{op="x",le="0.5"} 1
took_seconds_bucket{op="x",le="1"} 2
took_seconds_bucket{op="x",le="+Inf"} 3
took_seconds_sum{op="x"} 3.001
took_seconds_count{op="x"} 3
"#;
        assert_eq!(text(&families()), wanted);
    }

    #[test]
    fn a_process_takes_memory() {
        let found = process();
        let memory = found
            .iter()
            .find(|family| family.name == "process_resident_memory_bytes");
        let Some(Value::Number(bytes)) = memory.map(|family| &family.samples[0].value) else {
            panic!("{found:?}")
        };
        assert!((1e6..1e12).contains(bytes), "{bytes}");
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn the_registry_shows_what_is_gathered() {
        let metrics = Metrics::default();
        metrics.gather(|| {
            labelled([
                (("group", "one".to_owned()), families()),
                (("group", "two".to_owned()), families()),
            ])
        });
        let shown = metrics.encode().unwrap();
        for line in [
            "# TYPE puts counter\n",
            "puts_total{group=\"one\"} 3",
            "spaces_bytes{space=\"d\",group=\"two\"} 1099511627776",
            "took_seconds_bucket{le=\"1.0\",op=\"x\",group=\"two\"} 2",
            "took_seconds_bucket{le=\"+Inf\",op=\"x\",group=\"one\"} 3",
        ] {
            assert!(shown.contains(line), "{line} in {shown}");
        }
        assert_eq!(shown.matches("# TYPE").count(), 3, "one family for both groups");
    }
}
