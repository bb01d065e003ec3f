//! The front door of an installation on one machine: a TCP pass-through in front of the gateways. It stands in for the
//! load balancer or the DNS of a real installation, ends no TLS, and knows nothing but which gateway answers `/readyz`.

pub(crate) mod backends;
pub(crate) mod config;
mod health;
mod pass;

use crate::error::{Error, Result};
use crate::role::asked_to_end;
use backends::Backends;
use config::FrontDoorConfig;
use hanse_runtime::clock::SharedClock;
use hanse_runtime::config::load;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpListener;

/// Connections are cut when the process ends; nothing takes long.
const PHASE_LIMIT: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run(path: &Path, clock: SharedClock) -> Result<()> {
    let config: FrontDoorConfig = load(path).map_err(|e| Error::usage(e.to_string()))?;
    let ca = crate::files::read_required(&config.ca)?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|e| Error::failed(format!("cannot listen on {}: {e}", config.listen)))?;
    let supervisor = Supervisor::default();
    start(listener, &config, &ca, &supervisor, &clock)?;
    tracing::info!(listen = %config.listen, backends = config.backends.len(), "front door is open");
    let shutdown = supervisor.shutdown_token();
    tokio::select! {
        asked = asked_to_end() => asked?,
        () = shutdown.cancelled() => {}
    }
    supervisor.shut_down(PHASE_LIMIT).await;
    supervisor.failure().map_or(Ok(()), |why| Err(Error::failed(why)))
}

/// Starts the health checks and takes connections from `listener`.
pub(crate) fn start(
    listener: TcpListener,
    config: &FrontDoorConfig,
    ca: &str,
    supervisor: &Supervisor,
    clock: &SharedClock,
) -> Result<Backends> {
    let backends = Backends::new(&config.backends);
    for number in 0..backends.len() {
        let probe = health::Probe::new(&backends, number, ca, clock)?;
        let end = supervisor.shutdown_token();
        let name = format!("health of {}", backends.get(number).name);
        supervisor.spawn(TaskKind::Listener, name, async move {
            tokio::select! {
                () = probe.run() => {}
                () = end.cancelled() => {}
            }
            Ok(())
        });
    }
    let accept = pass::accept(listener, backends.clone(), supervisor.clone(), clock.clone());
    supervisor.spawn(TaskKind::Listener, "front door", accept);
    Ok(backends)
}

#[cfg(test)]
#[path = "front_door_tests.rs"]
mod tests;
