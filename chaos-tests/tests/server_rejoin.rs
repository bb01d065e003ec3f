//! A server that finds log entries missing after `kill -9`, or its store damaged, comes back as a new member by itself, by the same command line, while a client
//! writes through another server and no request of it fails. Its old id is spent, and a second loss stops it.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Context as _, Result, ensure};
use hanse_chaos_tests::load::none_missing;
use hanse_chaos_tests::writers::{management_writes, project_names};
use hanse_chaos_tests::{Load, World};
use hanse_state::Access;
use hanse_state::engine::{RocksEngine, RocksOptions};
use hanse_state::keys::GroupId;
use hanse_state::machine::Machine;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const BLOCK: u8 = 58;
const REGIONS: [&str; 3] = ["eu", "us", "ap"];
const MANAGEMENT: &str = "hanse_management";
/// Acknowledgements between two steps.
const SOME: usize = 20;
/// For a change, or a server's start or end, on a slow machine.
const LIMIT: Duration = Duration::from_secs(120);

fn server_named(world: &World, name: &str) -> Result<Value> {
    let output = world.hanse(&["server", "list", "-o", "json"])?;
    let servers: Vec<Value> = serde_json::from_str(&output).with_context(|| format!("read {output:?}"))?;
    let found = servers.into_iter().find(|server| server["metadata"]["name"] == name);
    found.with_context(|| format!("no server {name}"))
}

/// Waits until the server votes under this id.
fn until_it_votes(world: &World, name: &str, id: u64) -> Result<()> {
    let took = world.until(&format!("{name} votes as {id}"), LIMIT, || {
        let server = server_named(world, name)?;
        let status = &server["status"];
        let well = server["spec"]["id"] == id && status["seat"] == "Voter" && status["online"] == true;
        ensure!(well, "it is {server}");
        Ok(())
    })?;
    println!("{name} votes under the id {id} after {took:.1?}");
    Ok(())
}

/// A region whose server leads nothing, and one whose server leads the council.
fn cast(world: &World) -> Result<(&'static str, String)> {
    let mut found = None;
    world.until("leaders", LIMIT, || {
        let leaders = [world.leader(0)?, world.leader(1)?];
        let idle = REGIONS
            .into_iter()
            .find(|region| leaders.iter().all(|leader| leader != region));
        found = Some((idle.context("every server leads something")?, leaders[0].clone()));
        Ok(())
    })?;
    found.context("no leaders")
}

/// Starts the server of a region, as soon as what was killed has let go of its ports.
fn start(world: &World, region: &str) -> Result<()> {
    world.until("the start", LIMIT, || world.hanse(&["start", region]).map(drop))?;
    Ok(())
}

/// The log seems to end long before what the server had acknowledged.
fn lose_entries(data: &Path) -> Result<()> {
    fs::write(data.join("raft/log-council.mark"), "hanse log mark 1\n1000000\n").context("damage the log")
}

/// Starts the server of a region by hand; it must end by itself. Gives what it logged.
fn ends(world: &World, region: &str) -> Result<String> {
    let mut log = String::new();
    world.until("an end of its own", LIMIT, || {
        log = run_to_its_end(world, region)?;
        // The threads of a killed process may hold its files and ports for a moment more.
        let early = log.contains("is in use by another server") || log.contains("cannot listen on");
        ensure!(!early, "{log}");
        Ok(())
    })?;
    Ok(log)
}

fn run_to_its_end(world: &World, region: &str) -> Result<String> {
    let log = world.folder("ended.log");
    let file = File::create(&log)?;
    let config = world.region(region).join("server.toml");
    let mut command = world.hanse_command();
    command.args(["server", "--config"]).arg(config);
    let mut child = command
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .context("start a server")?;
    let ended = world.until("its end", LIMIT, || {
        ensure!(child.try_wait()?.is_some(), "it still runs");
        Ok(())
    });
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let text = fs::read_to_string(&log)?;
    ended.with_context(|| text.clone())?;
    Ok(text)
}

/// A second loss stops the server, and says why; its data stays as it is.
fn stops_when_it_happens_again(world: &World, region: &str, data: &Path) -> Result<()> {
    world.process("server", region)?.kill()?;
    let mark = data.join("raft/log-council.mark");
    let good = fs::read(&mark).ok();
    lose_entries(data)?;
    let log = ends(world, region)?;
    ensure!(log.contains("move that directory away"), "{log}");
    match good {
        Some(bytes) => fs::write(&mark, bytes)?,
        None => fs::remove_file(&mark)?,
    }
    Ok(())
}

/// With the old data, damaged or not, there is no way back.
fn the_old_id_is_spent(world: &World, region: &str, data: &Path) -> Result<()> {
    let (aside, new) = (data.join("lost-data"), data.join("new"));
    fs::create_dir(&new)?;
    for part in ["store", "raft", "rejoined.json"] {
        fs::rename(data.join(part), new.join(part))?;
    }
    for part in ["store", "raft"] {
        fs::rename(aside.join(part), data.join(part))?;
    }
    fs::remove_dir(&aside)?;
    let log = ends(world, region)?;
    ensure!(log.contains("has come back under another id already"), "{log}");
    fs::rename(data.join("raft/log-council.mark"), new.join("mark"))?;
    let log = ends(world, region)?;
    ensure!(log.contains("was removed from the cluster for good"), "{log}");
    for part in ["store", "raft"] {
        fs::remove_dir_all(data.join(part))?;
    }
    for part in ["store", "raft", "rejoined.json"] {
        fs::rename(new.join(part), data.join(part))?;
    }
    Ok(())
}

/// A store that cannot be opened is as good as none.
async fn comes_back_from_damage(
    world: &World,
    load: &mut Load,
    (region, name): (&str, &str),
    data: &Path,
) -> Result<()> {
    world.process("server", region)?.kill()?;
    // A killed store may have an older manifest as well.
    let current = fs::read_to_string(data.join("store/CURRENT"))?;
    let manifest = data.join("store").join(current.trim());
    let mut bytes = fs::read(&manifest)?;
    *bytes.get_mut(20).context("an empty manifest")? ^= 1;
    fs::write(manifest, bytes)?;
    start(world, region)?;
    until_it_votes(world, name, 5)?;
    ensure!(data.join("lost-data/store").is_dir(), "the damaged store is not there");
    load.more(SOME).await
}

/// The registry, as each server has it, at the newest revision that all have.
fn hashes_are_equal(world: &World) -> Result<()> {
    let mut machines = Vec::new();
    for region in REGIONS {
        let store = world.region(region).join("server/store");
        let engine = RocksEngine::open(&store, &RocksOptions::default())?;
        machines.push(Machine::open(GroupId::COUNCIL, Arc::new(engine))?);
    }
    let newest = machines.iter().map(Machine::revision).min().context("no server")?;
    let hashes: Result<Vec<u64>, _> = machines
        .iter()
        .map(|machine| machine.hash_at(&Access::registry(), newest).map(|sum| sum.hash))
        .collect();
    let hashes = hashes?;
    ensure!(hashes.iter().all(|hash| *hash == hashes[0]), "at {newest}: {hashes:?}");
    println!("at revision {newest} all have the hash {:x}", hashes[0]);
    Ok(())
}

async fn comes_back(world: &World, load: &mut Load, (region, name): (&str, &str), data: &Path) -> Result<()> {
    load.more(SOME).await?;
    world.process("server", region)?.kill()?;
    lose_entries(data)?;
    load.more(SOME).await?;
    start(world, region)?;
    until_it_votes(world, name, 4)?;
    load.more(SOME).await?;
    ensure!(fs::read_to_string(data.join("lost-data/raft/server-id"))?.starts_with("hanse server id"));
    ensure!(data.join("lost-data/store").is_dir(), "the damaged store is not there");
    // It goes on like that, by the same command line.
    world.process("server", region)?.kill()?;
    start(world, region)?;
    until_it_votes(world, name, 4)?;
    load.more(SOME).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_server_that_lost_entries_comes_back_by_itself_without_a_failed_request() -> Result<()> {
    let world = World::up(BLOCK)?;
    world.hanse(&["connect", "--management"])?;
    let (region, leader) = cast(&world)?;
    let (name, data): (String, PathBuf) = (format!("{region}-1"), world.region(region).join("server"));
    let mut load = management_writes(&world.client(&format!("{MANAGEMENT}_{leader}")).await?, "m");
    comes_back(&world, &mut load, (region, &name), &data).await?;
    stops_when_it_happens_again(&world, region, &data)?;
    the_old_id_is_spent(&world, region, &data)?;
    start(&world, region)?;
    until_it_votes(&world, &name, 4)?;
    load.more(SOME).await?;
    comes_back_from_damage(&world, &mut load, (region, &name), &data).await?;
    let failures = load.faults();
    ensure!(failures.is_empty(), "{} requests failed: {failures:?}", failures.len());
    let written = load.stop().await?;
    let client = world.client(&format!("{MANAGEMENT}_{region}")).await?;
    none_missing(
        "writes, through the server that came back",
        &written,
        &project_names(&client).await?,
    )?;
    world.hanse(&["down"])?;
    hashes_are_equal(&world)?;
    world.finish()
}
