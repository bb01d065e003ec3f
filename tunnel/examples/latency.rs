//! Prints how long a 512-byte exchange takes between a hub and an agent over QUIC on the loopback interface:
//! `cargo run --release -p hanse-tunnel --example latency [exchanges] [parallel]`.

use async_trait::async_trait;
use bytes::Bytes;
use hanse_runtime::clock::SystemClock;
use hanse_runtime::rng::SystemRng;
use hanse_runtime::supervisor::Supervisor;
use hanse_tunnel::testing::TestPki;
use hanse_tunnel::{
    AgentEvents, AgentHub, Body, Dialer, DialerConfig, Enrolled, Hub, HubConfig, Parts, RequestHead, ServerAddress,
    ServerEvents, Settings, StoreHead, Target, Upgraded, full_body,
};
use http_body_util::BodyExt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

struct Echo;

async fn echo(body: Body) -> http::Response<Body> {
    match body.collect().await {
        Ok(all) => http::Response::new(full_body(all.to_bytes())),
        Err(error) => hanse_tunnel::refuse(error),
    }
}

#[async_trait]
impl AgentEvents for Echo {
    async fn request(&self, _server: &str, _head: RequestHead, body: Body) -> http::Response<Body> {
        echo(body).await
    }

    async fn upgrade(&self, _server: &str, _head: RequestHead) -> Upgraded {
        Upgraded::Answered(http::Response::new(full_body("no")))
    }

    fn intent(&self, _server: &str, _intent: Bytes) {}
}

#[async_trait]
impl ServerEvents for Echo {
    async fn report(&self, _cluster: &str, _report: Bytes) {}

    async fn store_call(&self, _cluster: &str, _head: StoreHead, body: Body) -> http::Response<Body> {
        echo(body).await
    }

    async fn enrol(&self, _token: &str, _csr_pem: &str) -> Result<Enrolled, String> {
        Err("not here".into())
    }
}

fn head(n: usize) -> RequestHead {
    RequestHead {
        request_id: format!("r-{n}"),
        target: Target::Cluster,
        assertion: vec![7; 600],
        method: http::Method::POST,
        path_and_query: http::uri::PathAndQuery::from_static("/api/v1/namespaces/default/pods"),
        headers: http::HeaderMap::new(),
        upgrade: false,
    }
}

async fn exchange(hub: &Hub, n: usize, payload: Bytes) -> Result<Duration, AnyError> {
    let began = Instant::now();
    let response = hub.request("here", head(n), full_body(payload.clone())).await?;
    let back = response.into_body().collect().await?.to_bytes();
    if back != payload {
        return Err("something else came back".into());
    }
    Ok(began.elapsed())
}

fn start() -> Result<(Hub, Dialer), AnyError> {
    let clock = SystemClock::shared();
    let parts = Parts {
        clock: clock.clone(),
        rng: SystemRng::shared(),
        supervisor: Supervisor::default(),
    };
    let pki = TestPki::new(clock.wall())?;
    let settings = Settings::default();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = HubConfig {
        listen,
        credentials: pki.server("s1")?,
        version: "example".into(),
        settings: settings.clone(),
    };
    let hub = Hub::start(config, parts.clone(), Arc::new(Echo))?;
    let servers = vec![ServerAddress {
        name: "s1".into(),
        address: hub.local_addr()?.to_string(),
    }];
    let config = DialerConfig {
        servers,
        preferred: None,
        credentials: pki.agent("here")?,
        version: "example".into(),
        store: false,
        local: None,
        settings,
    };
    let dialer = Dialer::start(config, parts, Arc::new(Echo))?;
    Ok((hub, dialer))
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let mut args = std::env::args().skip(1);
    let count: usize = args.next().map_or(Ok(20_000), |arg| arg.parse())?;
    let parallel: usize = args.next().map_or(Ok(1), |arg| arg.parse())?.max(1);
    let (hub, _dialer) = start()?;
    let mut changes = hub.changes();
    while hub.sessions().is_empty() {
        changes.changed().await?;
    }
    let payload = Bytes::from(vec![1; 512]);
    for n in 0..500 {
        exchange(&hub, n, payload.clone()).await?;
    }
    let began = Instant::now();
    let workers = (0..parallel).map(|worker| {
        let (hub, payload) = (hub.clone(), payload.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            for n in (worker..count).step_by(parallel) {
                times.push(exchange(&hub, n, payload.clone()).await?);
            }
            Ok::<_, AnyError>(times)
        })
    });
    let mut times = Vec::with_capacity(count);
    for worker in workers.collect::<Vec<_>>() {
        times.extend(worker.await??);
    }
    let took = began.elapsed();
    times.sort_unstable();
    let at = |share: usize| {
        times
            .get((times.len() * share / 1000).min(times.len() - 1))
            .copied()
            .unwrap_or_default()
    };
    println!(
        "{count} exchanges of 512 bytes, {parallel} at a time, {:.0}/s",
        count as f64 / took.as_secs_f64()
    );
    println!(
        "p50 {:?}  p90 {:?}  p99 {:?}  p99.9 {:?}",
        at(500),
        at(900),
        at(990),
        at(999)
    );
    Ok(())
}
