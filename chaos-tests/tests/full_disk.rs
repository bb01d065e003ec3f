//! A server, or a whole installation, that is started on a file system without room says so, ends, and leaves nothing
//! that is in the way of the next start.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Result, ensure};
use hanse_chaos_tests::World;
use hanse_chaos_tests::small_disk::{can_mount, run_on};
use std::path::Path;

const MIB: u64 = 1 << 20;

/// Runs `hanse` with `args` on such a file system at `place`; what it left there must be among `may_leave`.
fn refused(world: &World, place: &Path, [size, taken]: [u64; 2], args: &[&str], may_leave: &[&str]) -> Result<()> {
    let mut command = world.hanse_command();
    command.args(args);
    let outcome = run_on(place, size, taken, &command)?;
    let said = String::from_utf8_lossy(&outcome.output.stderr).into_owned();
    let case = format!("hanse {} with {} bytes free", args.join(" "), size - taken);
    println!("{case}: {}", said.trim_end());
    ensure!(outcome.output.status.code() == Some(1), "{case}: {:?}", outcome.output);
    ensure!(
        said.contains(&place.display().to_string()),
        "{case} does not say where: {said}"
    );
    let advice = ["make room", "free some space"]
        .iter()
        .any(|words| said.contains(words));
    ensure!(advice, "{case} does not say what to do: {said}");
    ensure!(
        said.lines().count() <= 2 && !said.contains("panicked"),
        "{case}: {said}"
    );
    let allowed = |path: &String| {
        may_leave
            .iter()
            .any(|name| *path == place.join(name).display().to_string())
    };
    ensure!(outcome.left.iter().all(allowed), "{case} left {:?}", outcome.left);
    Ok(())
}

#[test]
fn without_room_nothing_starts_and_nothing_is_left() -> Result<()> {
    if !can_mount() {
        println!("skipped: it takes the right to mount a file system, try as root");
        return Ok(());
    }
    let world = World::up(28)?;
    world.process("server", "eu")?.kill()?;
    let region = world.region("eu");
    let place = region.join("server");
    let path = |name: &str| region.join(name).display().to_string();
    let (config, pid_file) = (path("server.toml"), path("run/server.pid"));
    let server = ["server", "--config", &config, "--pid-file", &pid_file];
    for room in [[MIB, MIB], [MIB, MIB - 4096], [64 * MIB, 0], [512 * MIB, 300 * MIB]] {
        refused(&world, &place, room, &server, &["lock"])?;
    }
    // Its own file cannot be written when the whole region is on that file system.
    let run = region.join("run");
    refused(&world, &run, [MIB, MIB], &server, &["server.lock"])?;
    println!("{}", world.hanse(&["start", "eu"])?);
    world.process("server", "eu")?;
    // An installation elsewhere: nothing of it is begun.
    let other = tempfile::tempdir()?;
    let home = other.path().join("h").display().to_string();
    let up = ["up", "--no-tenant", "--address-block", "29", "--home", &home];
    refused(&world, other.path(), [64 * MIB, 0], &up, &["h"])?;
    world.finish()
}
