//! `up` goes on from whatever an interrupted one left, and `down` knows all of it.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Result, ensure};
use hanse_chaos_tests::World;
use std::fs;
use std::time::Duration;

#[test]
fn up_goes_on_from_a_half_start() -> Result<()> {
    let world = World::new(25)?;
    for delay in [10, 40, 120, 300, 700, 1500] {
        world.interrupted_up(Duration::from_millis(delay))?;
    }
    world.hanse(&["down"])?;
    ensure!(
        world.all_processes().is_empty(),
        "down left: {:?}",
        world.all_processes()
    );
    world.interrupted_up(Duration::from_millis(900))?;
    println!("up after seven interrupted ones: {:.1?}", world.go_on()?);
    // Of a process that is long gone, of another program, cut off in the middle.
    let run = world.region("eu").join("run");
    world.process("server", "eu")?.kill()?;
    fs::write(
        run.join("server.pid"),
        format!("{{\"pid\":{},\"start\":1,\"boot\":\"x\"}}", std::process::id()),
    )?;
    world.process("agent", "eu")?.kill()?;
    fs::write(run.join("agent.pid"), "{\"pid\":")?;
    world.process("front-door", "")?.kill()?;
    fs::remove_file(world.region("us").join("agent.toml"))?;
    fs::write(world.home().join("regions/eu/.server.toml.1.tmp"), "half")?;
    let refused = world.hanse(&["list"]).unwrap_err().to_string();
    ensure!(refused.contains("connection refused"), "{refused}");
    println!("up over stale and broken pid files: {:.1?}", world.go_on()?);
    for role in ["server", "agent"] {
        world.process(role, "eu")?;
    }
    ensure!(world.region("us").join("agent.toml").is_file());
    world.hanse(&["create", "first", "--no-wait"])?;
    world.hanse(&["delete", "first", "--wait"])?;
    world.finish()
}

#[test]
fn a_damaged_installation_can_still_be_removed() -> Result<()> {
    let world = World::up(26)?;
    fs::write(world.home().join("installation.toml"), "damaged")?;
    let refused = world.hanse(&["up"]).unwrap_err().to_string();
    ensure!(refused.contains("damaged") && refused.contains("--delete"), "{refused}");
    world.finish()
}
