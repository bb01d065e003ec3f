//! Serves one tenant's space of a store in this process through the etcd API, in the clear:
//! `serve <address> [<directory>]`. Without a directory everything is in memory.
//!
//! For trying real clients by hand (kube-apiserver, etcdctl, load generators) and for comparing with etcd.

use hanse_runtime::clock::SystemClock;
use hanse_runtime::rng::SystemRng;
use hanse_runtime::supervisor::Supervisor;
use hanse_state::engine::{LogWriter, MemoryEngine, RocksEngine, RocksOptions, SharedEngine, WriterOptions};
use hanse_state::{Access, GroupId, LocalParts, LocalStore, etcd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let address = args.next().ok_or("usage: serve <address> [<directory>]")?;
    let engine: SharedEngine = match args.next() {
        Some(dir) => Arc::new(RocksEngine::open(Path::new(&dir), &RocksOptions::default())?),
        None => Arc::new(MemoryEngine::new()),
    };
    let supervisor = Supervisor::default();
    let parts = LocalParts {
        writer: LogWriter::start(engine, WriterOptions::default())?,
        clock: SystemClock::shared(),
        rng: SystemRng::shared(),
        supervisor: supervisor.clone(),
    };
    let writer = parts.writer.clone();
    let store = LocalStore::open(GroupId::TENANTS, parts)?;
    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("ready to serve client requests on {}", listener.local_addr()?);
    let end = async {
        let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
        let terminated = async {
            match &mut terminated {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminated => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    let failed = supervisor.shutdown_token();
    let ended = async {
        tokio::select! {
            () = end => {}
            () = failed.cancelled() => {}
        }
    };
    let access = Access::tenant("serve");
    etcd::serve_plain(listener, store.clone(), access, ended).await?;
    supervisor.shut_down(Duration::from_secs(5)).await;
    drop(store);
    tokio::task::spawn_blocking(move || writer.close()).await?;
    match supervisor.failure() {
        Some(failure) => Err(failure.into()),
        None => Ok(()),
    }
}
