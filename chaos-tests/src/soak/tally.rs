//! Figures of a run, and which errors it may have.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Errors that are kept with their times. A run that reaches it has failed anyway.
const MOST_ERRORS: usize = 100_000;

/// Why a request may fail while a member goes or comes: kube-apiserver sends no write twice, because it cannot know whether
/// the first one was carried out, and passes on what its store's client said. `None`: nothing excuses this one.
pub(super) fn excuse(error: &kube::Error) -> Option<&'static str> {
    const BROKEN: [&str; 8] = [
        // Of a watch: etcd's members too cut those off that ask for a leader, while they hear of none.
        "etcdserver: no leader",
        "code = Unavailable",
        "connection refused",
        "connection reset",
        "error reading from server",
        "transport is closing",
        "leader changed",
        "request timed out",
    ];
    let status = match error {
        kube::Error::Api(status) => status,
        // So kube-apiserver ends a request that took longer than its limit; that it lives on is looked at otherwise.
        kube::Error::Service(_) | kube::Error::HyperError(_) => return Some("the API server closed the connection"),
        _ => return None,
    };
    let says = |words: &[&str]| words.iter().any(|word| status.message.contains(word));
    match status.code {
        // The connection to the member broke under it.
        500 | 503 if says(&BROKEN) => Some("the store's connection broke"),
        500 | 504 if says(&["context deadline exceeded", "request did not complete", "Timeout"]) => {
            Some("the store took too long")
        }
        // The server's cache has lost its own watch of the store and fills itself anew.
        429 if says(&["storage is (re)initializing", "please try again"]) => Some("the server's cache fills itself"),
        503 if says(&["storage is (re)initializing", "unable to handle the request"]) => {
            Some("the server's cache fills itself")
        }
        _ => None,
    }
}

/// What came of the requests so far.
#[derive(Debug)]
pub(super) struct Tally {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Microseconds of each acknowledged request, by verb.
    took: BTreeMap<&'static str, Vec<u32>>,
    errors: Vec<(Instant, String)>,
    last_write: Instant,
    /// The longest time without an acknowledged write, and when it ended.
    longest: (Duration, Instant),
}

/// A line of the closing table.
#[derive(Clone, Debug)]
pub struct Line {
    /// create, update, ...
    pub verb: &'static str,
    /// Acknowledged.
    pub count: usize,
    /// Milliseconds.
    pub p50: f64,
    /// Milliseconds.
    pub p99: f64,
    /// Milliseconds.
    pub max: f64,
}

impl Tally {
    pub(super) fn new(now: Instant) -> Self {
        let inner = Inner {
            took: BTreeMap::new(),
            errors: Vec::new(),
            last_write: now,
            longest: (Duration::ZERO, now),
        };
        Self {
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn done(&self, verb: &'static str, took: Duration, now: Instant) {
        let mut inner = self.lock();
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        inner.took.entry(verb).or_default().push(micros);
        if matches!(verb, "create" | "update" | "delete") {
            let gap = now.saturating_duration_since(inner.last_write);
            if gap > inner.longest.0 {
                inner.longest = (gap, now);
            }
            inner.last_write = now;
        }
    }

    pub(super) fn failed(&self, why: &str, now: Instant) {
        let mut inner = self.lock();
        if inner.errors.len() < MOST_ERRORS {
            inner.errors.push((now, why.to_owned()));
        }
    }

    pub(super) fn count(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.took.values().map(Vec::len).sum(), inner.errors.len())
    }

    pub(super) fn longest(&self) -> (Duration, Instant) {
        self.lock().longest
    }

    pub(super) fn errors(&self) -> Vec<(Instant, String)> {
        self.lock().errors.clone()
    }

    pub(super) fn errors_by_cause(&self) -> BTreeMap<String, usize> {
        let mut causes = BTreeMap::new();
        for (_, why) in self.errors() {
            *causes.entry(why).or_default() += 1;
        }
        causes
    }

    pub(super) fn lines(&self) -> Vec<Line> {
        let inner = self.lock();
        let line = |(verb, took): (&&'static str, &Vec<u32>)| {
            let mut took = took.clone();
            took.sort_unstable();
            let at = |percent: usize| {
                let place = (took.len() * percent / 100).min(took.len().saturating_sub(1));
                f64::from(took.get(place).copied().unwrap_or_default()) / 1000.0
            };
            Line {
                verb,
                count: took.len(),
                p50: at(50),
                p99: at(99),
                max: at(100),
            }
        };
        inner.took.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: u16, message: &str) -> kube::Error {
        let status = kube::core::Status {
            code,
            message: message.into(),
            ..Default::default()
        };
        kube::Error::Api(Box::new(status))
    }

    #[test]
    fn only_what_a_lost_member_explains_is_excused() {
        for (code, message) in [
            (
                500,
                "rpc error: code = Unavailable desc = error reading from server: EOF",
            ),
            (500, "etcdserver: request timed out"),
            (500, "etcdserver: no leader"),
            (504, "Timeout: request did not complete within the allotted timeout"),
            (429, "storage is (re)initializing"),
        ] {
            assert!(excuse(&error(code, message)).is_some(), "{code} {message}");
        }
        for (code, message) in [
            (500, "etcdserver: mvcc: database space exceeded"),
            (500, "illegal base64 data"),
            (403, "leader changed"),
            (404, "not found"),
            (429, "slow down"),
        ] {
            assert!(excuse(&error(code, message)).is_none(), "{code} {message}");
        }
    }

    #[test]
    fn the_longest_time_without_a_write_counts_writes_only() {
        let begun = Instant::now();
        let after = |secs| begun + Duration::from_secs(secs);
        let tally = Tally::new(begun);
        tally.done("create", Duration::from_millis(2), after(1));
        tally.done("get", Duration::from_millis(2), after(3));
        tally.done("update", Duration::from_millis(4), after(6));
        tally.done("update", Duration::from_millis(8), after(7));
        assert_eq!(tally.longest(), (Duration::from_secs(5), after(6)));
        let lines = tally.lines();
        let update = lines.iter().find(|line| line.verb == "update").unwrap();
        assert_eq!((update.count, update.p50, update.max), (2, 8.0, 8.0));
    }
}
