//! Takes connections and passes bytes both ways.

use super::backends::{Backend, Backends, Health};
use hanse_runtime::BoxError;
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections at one time. Further ones wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 4096;
/// For the way to one gateway: they are on this machine.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// Buffer for each direction.
const BUFFER: usize = 16 * 1024;
/// After a failed accept, such as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn accept(
    listener: TcpListener,
    backends: Backends,
    supervisor: Supervisor,
    clock: SharedClock,
) -> Result<(), BoxError> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let end = supervisor.shutdown_token();
    loop {
        let place = places.clone().acquire_owned().await?;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => return Ok(()),
        };
        match accepted {
            Ok((client, _)) => {
                let (backends, clock, end) = (backends.clone(), clock.clone(), end.clone());
                supervisor.spawn(TaskKind::Request, "connection", async move {
                    let _place = place;
                    tokio::select! {
                        () = pass(client, &backends, &clock) => {}
                        () = end.cancelled() => {}
                    }
                    Ok(())
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                clock.sleep(PAUSE).await;
            }
        }
    }
}

/// Finds a gateway for `client` and passes bytes until one side is gone. A client that nobody serves is closed.
async fn pass(mut client: TcpStream, backends: &Backends, clock: &SharedClock) {
    for backend in backends.order() {
        let Some(mut server) = connect(&backend, clock).await else {
            continue;
        };
        for stream in [&client, &server] {
            // Small messages must not wait; a socket that refuses the option still works.
            let _quick = stream.set_nodelay(true).is_ok();
        }
        tokio::select! {
            // An end of one direction is passed on, and the other goes on.
            _ended = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER) => {}
            () = backend.died() => {
                tracing::info!(backend = %backend.name, "closed a connection of a dead gateway");
            }
        }
        return;
    }
    tracing::warn!("no gateway takes connections");
}

async fn connect(backend: &Backend, clock: &SharedClock) -> Option<TcpStream> {
    match timeout(&**clock, CONNECT_LIMIT, TcpStream::connect(backend.address)).await {
        Ok(Ok(stream)) => {
            if backend.health() == Health::Dead {
                // It is back before the next check found out; its connections must not be closed as a dead one's.
                backend.found(Health::Unknown);
            }
            Some(stream)
        }
        Ok(Err(error)) => {
            if error.kind() == ErrorKind::ConnectionRefused {
                backend.found(Health::Dead);
            }
            None
        }
        Err(_late) => None,
    }
}
