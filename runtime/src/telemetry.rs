//! Logs and metrics, set up in one place.

use crate::meter::{Family, Gathered};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use tracing_subscriber::EnvFilter;

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What is logged unless `HANSE_LOG` says otherwise. The Raft library warns of each try to reach a server that is down; the
/// status of servers says that once. The Kubernetes client calls each look at an API server that is still starting an error;
/// who asked reports what matters.
pub const DEFAULT_FILTER: &str = "info,openraft=error,kube_client::client::builder=off";

/// Sends logs to standard error. The filter comes from `HANSE_LOG` (such as `debug` or `info,hanse_tunnel=trace`),
/// otherwise [`DEFAULT_FILTER`]. A second call changes nothing.
pub fn init(format: Format) {
    let filter = EnvFilter::try_from_env("HANSE_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let done = match format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    if done.is_err() {
        tracing::debug!("logging was set up before");
    }
}

/// The process' metrics. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(..)")
    }
}

impl Metrics {
    /// Lets `add` register metrics below `prefix` (`hanse_<prefix>_...`).
    pub fn register(&self, prefix: &str, add: impl FnOnce(&mut Registry)) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        add(registry
            .sub_registry_with_prefix("hanse")
            .sub_registry_with_prefix(prefix));
    }

    /// Shows what `families` answers whenever the metrics are read, under the names that it says.
    pub fn gather(&self, families: impl Fn() -> Vec<Family> + Send + Sync + 'static) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register_collector(Box::new(Gathered(Box::new(families))));
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn metrics_carry_their_prefix() {
        let metrics = Metrics::default();
        let counter: Counter = Counter::default();
        metrics.register("gateway", |r| {
            r.register("requests", "Requests served", counter.clone())
        });
        counter.inc();
        assert!(metrics.encode().unwrap().contains("hanse_gateway_requests_total 1"));
    }
}
