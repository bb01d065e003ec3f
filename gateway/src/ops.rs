//! `/healthz`, `/livez`, `/readyz`, `/version` and `/metrics`.

use crate::answer;
use crate::apiserver::backend::Backend;
use crate::body::Response;
use crate::query::Query;
use crate::router::Probe;
use hanse_runtime::telemetry::Metrics;
use http::StatusCode;
use serde_json::{Value, json};

/// Version of Kubernetes whose API conventions the management API follows. Clients look at its minor number.
const KUBERNETES: (&str, &str, &str) = ("1", "36", "v1.36.3");
/// Version of vCluster Platform whose wire contract is followed; the `vcluster` CLI refuses older ones.
const PLATFORM: &str = "v4.12.0";

/// One condition of readiness.
struct Check {
    name: &'static str,
    fault: Option<&'static str>,
}

/// Answers a probe. `?verbose` lists the checks, `?exclude=NAME` leaves one out, as at a kube-apiserver.
pub(crate) fn health(probe: Probe, backend: &Backend, draining: bool, query: &Query) -> Response {
    let store = backend.objects.store();
    let fault = |bad: bool, why| if bad { Some(why) } else { None };
    let checks = match probe {
        Probe::Live => vec![Check {
            name: "ping",
            fault: None,
        }],
        Probe::Ready => vec![
            Check {
                name: "ping",
                fault: None,
            },
            Check {
                name: "store-leader",
                fault: fault(
                    !store.has_leader(),
                    "the council has no leader that this server knows of",
                ),
            },
            Check {
                name: "store-applied",
                fault: fault(store.revision() <= 0, "this server has applied nothing yet"),
            },
            Check {
                name: "agents",
                fault: fault(
                    backend.cluster_status.awaits_agents(),
                    "agents that other servers hold are not connected here yet",
                ),
            },
            Check {
                name: "shutdown",
                fault: fault(draining, "this server is shutting down"),
            },
        ],
    };
    let counts = |check: &&Check| !query.all("exclude").any(|name| name == check.name);
    let good = checks.iter().filter(counts).all(|c| c.fault.is_none());
    let code = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let text = if good && !query.flag("verbose") {
        "ok".to_owned()
    } else {
        report(probe, &checks, counts, good)
    };
    answer::with_type(code, "text/plain; charset=utf-8", text)
}

fn report(probe: Probe, checks: &[Check], counts: impl Fn(&&Check) -> bool, good: bool) -> String {
    let mut text = String::new();
    for check in checks {
        text.push_str(&match check.fault {
            _ if !counts(&check) => format!("[+]{} excluded: ok\n", check.name),
            None => format!("[+]{} ok\n", check.name),
            Some(why) => format!("[-]{} failed: {why}\n", check.name),
        });
    }
    let name = match probe {
        Probe::Live => "livez",
        Probe::Ready => "readyz",
    };
    text.push_str(&format!("{name} check {}\n", if good { "passed" } else { "failed" }));
    text
}

/// `version.Info` of Kubernetes, with the fields of vCluster Platform beside it.
pub(crate) fn version() -> Value {
    let (major, minor, git) = KUBERNETES;
    let own = env!("CARGO_PKG_VERSION");
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": format!("{git}+hanse.{own}"),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        "version": PLATFORM,
        "kubeVersion": git,
        "hanseVersion": own,
    })
}

/// All metrics of the process.
pub(crate) fn metrics(metrics: &Metrics) -> Response {
    match metrics.encode() {
        Ok(text) => answer::with_type(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            text,
        ),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be encoded");
            let status = hanse_api::Status::new(hanse_api::Reason::InternalError, "metrics cannot be encoded");
            answer::failure(&status)
        }
    }
}
