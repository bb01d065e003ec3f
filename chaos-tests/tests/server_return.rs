//! A server that was away long enough for the agents to dial it seldom: `/readyz` must not promise tenants that it cannot
//! reach. A load balancer goes by it.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Context as _, Result};
use hanse_chaos_tests::World;
use std::time::{Duration, Instant};

/// Longer than the sum of the waits by which an agent's backoff has grown to its bound, so that agents are between two tries.
const AWAY: Duration = Duration::from_secs(8);
/// The wait for agents has a bound of its own; this one is for a test that hangs.
const LIMIT: Duration = Duration::from_secs(30);

async fn get(client: &kube::Client, path: &str) -> Result<String> {
    let request = http::Request::get(path).body(Vec::new())?;
    client
        .request_text(request)
        .await
        .with_context(|| format!("GET {path}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_ready_reaches_the_tenants() -> Result<()> {
    let world = World::up(29)?;
    let context = world.tenant("work", "us")?;
    world.hanse(&["connect", "--management"])?;
    let through_eu = world.client(&format!("{context}_eu")).await?;
    let eu = world.client("hanse_management_eu").await?;
    get(&through_eu, "/version").await.context("before the fault")?;
    world.process("server", "eu")?.kill()?;
    tokio::time::sleep(AWAY).await;
    let mut command = world.hanse_command();
    let begun = Instant::now();
    let mut start = command.args(["start", "eu"]).spawn().context("run hanse start")?;
    let ready = tokio::time::timeout(LIMIT, async {
        while get(&eu, "/readyz").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    ready.await.context("the server did not get ready")?;
    println!("eu is ready {:.1?} after its start", begun.elapsed());
    get(&through_eu, "/version").await.context("right after /readyz")?;
    let status = start.wait().context("wait for hanse start")?;
    anyhow::ensure!(status.success(), "hanse start eu: {status}");
    world.finish()
}

/// Whoever is told that a region is back goes to it at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_was_started_reaches_the_tenants() -> Result<()> {
    let world = World::up(36)?;
    let context = world.tenant("work", "us")?;
    let through_eu = world.client(&format!("{context}_eu")).await?;
    world.process("server", "eu")?.kill()?;
    tokio::time::sleep(AWAY).await;
    world.hanse(&["start", "eu"])?;
    get(&through_eu, "/version").await.context("right after the start")?;
    world.finish()
}

/// What was removed for good does not come back, and the rest goes on without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_installation_goes_on_without_a_server_that_was_removed() -> Result<()> {
    let world = World::up(45)?;
    let context = world.tenant("work", "eu")?;
    world.hanse(&["server", "remove", "eu-1"])?;
    world.hanse(&["down"])?;
    world.go_on()?;
    world.kubectl(&context, &["get", "namespace", "default"])?;
    world.finish()
}
