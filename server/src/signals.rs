//! What ends a server from outside: the signals of its operator.

use crate::error::ServerError;
use hanse_runtime::shutdown::Shutdown;
use tokio::signal::unix::{SignalKind, signal};

/// Completes at SIGTERM, at SIGINT, or when the server's own shutdown began.
pub(crate) async fn wait_for_the_end(shutdown: &Shutdown) -> Result<(), ServerError> {
    let fault = |error| ServerError::part("signal handling", error);
    let mut term = signal(SignalKind::terminate()).map_err(fault)?;
    let mut int = signal(SignalKind::interrupt()).map_err(fault)?;
    tokio::select! {
        _ = term.recv() => tracing::info!("SIGTERM: stopping"),
        _ = int.recv() => tracing::info!("SIGINT: stopping"),
        () = shutdown.cancelled() => {}
    }
    Ok(())
}
