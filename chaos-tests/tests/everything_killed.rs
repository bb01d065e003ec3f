//! `kill -9` of every process at once, then `up`: everything is back with all data.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Result, ensure};
use hanse_chaos_tests::World;
use std::time::{Duration, Instant};

#[test]
fn up_after_the_death_of_everything_brings_all_data_back() -> Result<()> {
    let world = World::up(22)?;
    let context = world.tenant("work", "us")?;
    world.hanse(&["connect", "--management", "--no-switch"])?;
    for n in 0..10 {
        world.kubectl(
            &context,
            &[
                "create",
                "configmap",
                &format!("kept-{n}"),
                &format!("--from-literal=n={n}"),
            ],
        )?;
    }
    world.kubectl("hanse_management", &["annotate", "projects", "default", "test=kept"])?;
    let all = world.all_processes();
    ensure!(
        all.len() >= 10,
        "three servers, three agents, a front door and a tenant's processes: {all:?}"
    );
    for (process, _) in &all {
        // The tenant's processes may notice each other's end.
        if process.is_alive() {
            process.kill()?;
        }
    }
    ensure!(world.all_processes().is_empty(), "left: {:?}", world.all_processes());
    let refused = world.hanse(&["list"]).unwrap_err().to_string();
    ensure!(
        refused.contains("connection refused") && refused.contains("hanse up"),
        "{refused}"
    );
    let took = world.go_on()?;
    println!("up after the death of everything: {took:.1?}");
    let values = world.kubectl(&context, &["get", "configmaps", "-o", "name"])?;
    for n in 0..10 {
        ensure!(values.contains(&format!("configmap/kept-{n}\n")), "{values}");
    }
    let project = world.kubectl(
        "hanse_management",
        &[
            "get",
            "projects",
            "default",
            "-o",
            "jsonpath={.metadata.annotations.test}",
        ],
    )?;
    ensure!(project == "kept", "{project}");
    world.kubectl(&context, &["create", "configmap", "new"])?;
    world.finish()
}

#[test]
fn up_twice_down_and_up_again() -> Result<()> {
    let world = World::up(24)?;
    let before = world.all_processes();
    let again = world.go_on()?;
    println!("up when all runs already: {again:.1?}");
    let mut same = world.all_processes();
    same.retain(|(process, _)| !before.iter().any(|(p, _)| p == process));
    ensure!(same.is_empty(), "the second up started something: {same:?}");
    let context = world.tenant("work", "eu")?;
    world.kubectl(&context, &["create", "configmap", "kept"])?;
    let begun = Instant::now();
    world.hanse(&["down"])?;
    println!("down: {:.1?}", begun.elapsed());
    ensure!(
        world.all_processes().is_empty(),
        "down left: {:?}",
        world.all_processes()
    );
    println!("up, warm: {:.1?}", world.go_on()?);
    world.until("the tenant's data", Duration::from_secs(30), || {
        world.kubectl(&context, &["get", "configmap", "kept"]).map(|_| ())
    })?;
    world.finish()
}
