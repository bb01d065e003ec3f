//! `kill -9` of servers while clients write and watch: a tenant hosted in `us` and the management API go on within three
//! seconds through the front door, and nothing that was acknowledged is missing.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use hanse_chaos_tests::load::{Outcome, none_missing};
use hanse_chaos_tests::writers::{config_map_names, management_writes, project_names, tenant_writes};
use hanse_chaos_tests::{Load, Watcher, World};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the issue asks for.
const RECOVERY: Duration = Duration::from_secs(3);
/// Acknowledgements before and after each fault: of clients with a kept connection, and of kubectl, which is slower.
const SOME: usize = 30;
const FEW: usize = 4;
const MANAGEMENT: &str = "hanse_management";

/// Each try is a kubectl of its own: a new connection, discovery, a write.
fn kubectl_writes(world: &Arc<World>, context: &str) -> Load {
    let (world, context) = (world.clone(), context.to_owned());
    let write = move |name: String| {
        let command = world.kubectl_command(&context, &["create", "configmap", &name]);
        async move {
            let output = tokio::process::Command::from(command).kill_on_drop(true).output().await;
            let output = match output {
                Ok(output) => output,
                Err(error) => return Outcome::Failed(error.to_string()),
            };
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            match output.status.success() {
                true => Outcome::Done,
                false if said.contains("already exists") => Outcome::Exists,
                false => Outcome::Failed(said),
            }
        }
        .boxed()
    };
    Load::start("kubectl", "k", Box::new(write))
}

/// Kills the server of `region`, sees everything go on, and brings it back.
async fn lose(world: &World, what: &str, region: &str, loads: &mut [(&mut Load, usize)]) -> Result<()> {
    for (load, count) in loads.iter_mut() {
        load.more(*count).await?;
    }
    let server = world.process("server", region)?;
    let fault = Instant::now();
    server.kill()?;
    for (load, count) in loads.iter_mut() {
        load.more(*count).await?;
        load.judge(what, fault, RECOVERY)?;
    }
    let begun = Instant::now();
    world.hanse(&["start", region])?;
    println!("{what}: {region} is back after {:.1?}", begun.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_go_on_when_a_server_dies() -> Result<()> {
    let world = Arc::new(World::up(21)?);
    let context = world.tenant("work", "us")?;
    world.hanse(&["connect", "--management"])?;
    let (tenant, management) = (world.client(&context).await?, world.client(MANAGEMENT).await?);
    let watcher = Watcher::start(tenant.clone()).await?;
    let (mut w, mut m) = (tenant_writes(&tenant, "w"), management_writes(&management, "m"));
    let mut k = kubectl_writes(&world, &context);
    lose(
        &world,
        "server eu killed",
        "eu",
        &mut [(&mut w, SOME), (&mut m, SOME), (&mut k, FEW)],
    )
    .await?;
    for (group, name) in [(0, "council"), (1, "tenant store")] {
        let leader = world.leader(group)?;
        let what = format!("leader of the {name} ({leader}) killed");
        lose(
            &world,
            &what,
            &leader,
            &mut [(&mut w, SOME), (&mut m, SOME), (&mut k, FEW)],
        )
        .await?;
    }
    let (w, m, k) = (w.stop().await?, m.stop().await?, k.stop().await?);
    watcher
        .saw_each_once(&[w.clone(), k.clone()].concat(), Duration::from_secs(20))
        .await?;
    for region in ["eu", "us", "ap"] {
        let found = config_map_names(&world.client(&format!("{context}_{region}")).await?).await?;
        none_missing(&format!("tenant writes through {region}"), &w, &found)?;
        none_missing(&format!("kubectl writes through {region}"), &k, &found)?;
        let found = project_names(&world.client(&format!("{MANAGEMENT}_{region}")).await?).await?;
        none_missing(&format!("management writes through {region}"), &m, &found)?;
    }
    drop(watcher);
    Arc::into_inner(world).context("the world is still in use")?.finish()
}
