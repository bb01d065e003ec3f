//! Metrics of the gateway.

use hanse_runtime::telemetry::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use std::time::Duration;

/// Upper bounds of the duration buckets, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: &'static str,
    method: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Routed {
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Throttled {
    of: &'static str,
}

/// Counters, gauges and histograms.
pub(crate) struct Meters {
    requests: Family<Answered, Counter>,
    duration: Family<Routed, Histogram>,
    pub(crate) in_flight: Gauge,
    pub(crate) streams: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) panics: Counter,
    pub(crate) refused: Counter,
    logins_failed: Counter,
    logins_throttled: Family<Throttled, Counter>,
}

impl Meters {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let meters = Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            in_flight: Gauge::default(),
            streams: Gauge::default(),
            connections: Gauge::default(),
            panics: Counter::default(),
            refused: Counter::default(),
            logins_failed: Counter::default(),
            logins_throttled: Family::default(),
        };
        metrics.register("gateway", |r| {
            r.register("requests", "Requests answered", meters.requests.clone());
            r.register(
                "request_duration_seconds",
                "Time until the head of an answer",
                meters.duration.clone(),
            );
            r.register(
                "requests_in_flight",
                "Requests without the head of an answer yet",
                meters.in_flight.clone(),
            );
            r.register(
                "streams",
                "Watches, logs and upgraded connections that go on",
                meters.streams.clone(),
            );
            r.register("connections", "Open connections", meters.connections.clone());
            r.register("panics", "Requests that ended in a panic", meters.panics.clone());
            r.register("refused", "Requests refused because of a limit", meters.refused.clone());
            let failed = "Credentials that did not hold, and logins that were refused";
            r.register("logins_failed", failed, meters.logins_failed.clone());
            let throttled = "Failed logins and steps of logins that were too many, by what they were counted by";
            r.register("logins_throttled", throttled, meters.logins_throttled.clone());
        });
        meters
    }

    /// Counts a login that failed.
    pub(crate) fn login_failed(&self) {
        self.logins_failed.inc();
    }

    /// Counts one too many of an `address`, an `account` or its `steps`.
    pub(crate) fn throttled(&self, of: &'static str) {
        self.logins_throttled.get_or_create(&Throttled { of }).inc();
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, route: &'static str, method: &http::Method, code: u16, took: Duration) {
        self.requests
            .get_or_create(&Answered {
                route,
                method: method_label(method),
                code,
            })
            .inc();
        self.duration
            .get_or_create(&Routed { route })
            .observe(took.as_secs_f64());
    }
}

/// Methods are chosen by callers: only known ones become labels.
fn method_label(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

/// Counts something as long as it lives.
pub(crate) struct Counted(Gauge);

impl Counted {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
