//! `kill -9` of an agent alone: its tenants' processes keep running and are adopted. And of a whole region with
//! `hanse kill`, and back with `hanse start`.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Result, ensure};
use hanse_chaos_tests::{Process, World};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

type Processes = BTreeMap<String, Process>;

#[test]
fn tenants_outlive_their_agent_and_are_adopted() -> Result<()> {
    let world = World::up(23)?;
    let context = world.tenant("work", "us")?;
    settle(&world, &context)?;
    let before = world.tenant_processes("us")?;
    let apiservers = |all: &Processes| -> Processes {
        let of = all.iter().filter(|(name, _)| name.ends_with("/kube-apiserver"));
        of.map(|(name, process)| (name.clone(), *process)).collect()
    };
    ensure!(apiservers(&before).len() == 1, "{before:?}");
    let agent = world.process("agent", "us")?;
    let fault = Instant::now();
    agent.kill()?;
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
        apiservers(&after) == apiservers(&before),
        "kube-apiserver was not adopted: {before:?} became {after:?}"
    );
    // The others may end when their API does not answer, as anywhere; then they are started again.
    world.until("all parts of the tenant", Duration::from_secs(30), || {
        let now = world.tenant_processes("us")?;
        ensure!(now.keys().eq(before.keys()), "{before:?} became {now:?}");
        Ok(())
    })?;
    println!(
        "adopted: {} of {} processes",
        before.values().filter(|p| p.is_alive()).count(),
        before.len()
    );
    whole_region(&world, &context)?;
    world.finish()
}

/// Waits until each part of the control plane has done its work: controllers, scheduler, simulated nodes.
fn settle(world: &World, context: &str) -> Result<()> {
    world.kubectl(context, &["create", "deployment", "web", "--image=nginx"])?;
    world.until("a running pod", Duration::from_secs(60), || {
        let phases = world.kubectl(context, &["get", "pods", "-o", "jsonpath={.items[*].status.phase}"])?;
        ensure!(phases == "Running", "{phases:?}");
        Ok(())
    })?;
    Ok(())
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
