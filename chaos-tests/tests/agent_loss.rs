//! `kill -9` of an agent alone: its tenants' processes keep running and are adopted. And of a whole region with
//! `hanse kill`, and back with `hanse start`.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Result, ensure};
use hanse_chaos_tests::World;
use std::time::{Duration, Instant};

#[test]
fn tenants_outlive_their_agent_and_are_adopted() -> Result<()> {
    let world = World::up(23)?;
    let context = world.tenant("work", "us")?;
    let before = world.tenant_processes("us")?;
    ensure!(before.keys().any(|name| name.contains("apiserver")), "{before:?}");
    let agent = world.process("agent", "us")?;
    let fault = Instant::now();
    agent.kill()?;
    for (name, process) in &before {
        ensure!(process.is_alive(), "{name} died with the agent");
    }
    world.hanse(&["start", "us"])?;
    world.until("kubectl after the agent's return", Duration::from_secs(30), || {
        world
            .kubectl(
                &context,
                &["create", "configmap", &format!("after-{}", fault.elapsed().as_millis())],
            )
            .map(|_| ())
    })?;
    println!(
        "agent killed and started again: its tenant answers after {:.1?}",
        fault.elapsed()
    );
    let after = world.tenant_processes("us")?;
    ensure!(
        after == before,
        "processes were not adopted: {before:?} became {after:?}"
    );
    whole_region(&world, &context)?;
    world.finish()
}

fn whole_region(world: &World, context: &str) -> Result<()> {
    world.hanse(&["kill", "us"])?;
    ensure!(
        world.tenant_processes("us")?.is_empty(),
        "hanse kill left {:?}",
        world.tenant_processes("us")?
    );
    ensure!(world.process("server", "us").is_err() && world.process("agent", "us").is_err());
    ensure!(
        world.status()?["servers"].as_array().is_some_and(|s| s.len() == 3),
        "the other regions answer"
    );
    let begun = Instant::now();
    world.hanse(&["start", "us"])?;
    world.until("kubectl after the region's return", Duration::from_secs(60), || {
        world.kubectl(context, &["get", "configmaps"]).map(|_| ())
    })?;
    println!(
        "region killed and started again: its tenant answers after {:.1?}",
        begun.elapsed()
    );
    Ok(())
}
