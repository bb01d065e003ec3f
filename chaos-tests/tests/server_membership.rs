//! `hanse server join` and `remove`: one server becomes three and one again while a client writes through the API, without one
//! failed request. Real processes; the new servers get key, certificate and place by one-time tokens.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Context as _, Result, bail, ensure};
use hanse_chaos_tests::load::none_missing;
use hanse_chaos_tests::writers::{management_writes, project_names};
use hanse_chaos_tests::{Load, World};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

/// Of the two tests.
const BLOCKS: [u8; 2] = [34, 35];
const MANAGEMENT: &str = "hanse_management";
/// Acknowledgements between two changes.
const SOME: usize = 20;
/// For a change, or a server's start or end, on a slow machine.
const LIMIT: Duration = Duration::from_secs(120);

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// A server that this test lets join, in a folder of its own.
struct Newcomer {
    name: &'static str,
    block: u8,
    host: String,
    dir: PathBuf,
    child: Option<Child>,
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ended = child.kill().is_ok() && child.wait().is_ok();
        }
    }
}

impl Newcomer {
    fn new(world: &World, name: &'static str, (block, host): (u8, u8), folder: &str) -> Self {
        Self {
            name,
            block,
            host: format!("127.{block}.{host}.1"),
            dir: world.folder(folder),
            child: None,
        }
    }

    /// A file with a token for `region`.
    fn token(&self, world: &World, region: &str) -> Result<PathBuf> {
        let token = world.hanse(&["server", "token", "create", "--region", region, "--ttl", "30m"])?;
        let file = self.dir.with_extension("token");
        fs::write(&file, token)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        Ok(file)
    }

    fn join(&self, world: &World, token: &Path) -> Result<String> {
        let pki = world.home().join("pki");
        let at = format!("127.{}.1.1", self.block);
        let (ca_key, seal_key) = (pki.join("ca-key.pem"), pki.join("seal.key"));
        let args = ["server", "join", &at, "--name", self.name, "--address", &self.host];
        let files = ["--token-file", text(token), "--dir", text(&self.dir)];
        let keys = ["--ca-key", text(&ca_key), "--seal-key", text(&seal_key)];
        world.hanse(&[&args[..], &files, &keys].concat())
    }

    fn start(&mut self, world: &World) -> Result<()> {
        let log = File::create(self.dir.join("log"))?;
        let mut command = world.hanse_command();
        let config = self.dir.join("server.toml");
        command
            .args(["server", "--config", text(&config)])
            .stdout(log.try_clone()?);
        self.child = Some(command.stderr(log).spawn().context("start a server")?);
        Ok(())
    }

    /// Stops it as an operator would; it hands over what it leads.
    fn stop(&mut self, world: &World) -> Result<()> {
        let child = self.child.as_ref().context("it was never started")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a process number")?, Signal::TERM)?;
        world.until(&format!("stop of {}", self.name), LIMIT, || self.ended().map(|_| ()))?;
        Ok(())
    }

    /// Whether its process has ended; what it logged, if so.
    fn ended(&mut self) -> Result<String> {
        let child = self.child.as_mut().context("it was never started")?;
        match child.try_wait()? {
            None => bail!("{} still runs", self.name),
            Some(_) => fs::read_to_string(self.dir.join("log")).context("read its log"),
        }
    }
}

fn servers(world: &World) -> Result<Vec<Value>> {
    let output = world.hanse(&["server", "list", "-o", "json"])?;
    serde_json::from_str(&output).with_context(|| format!("read {output:?}"))
}

/// Names of the servers that vote and answer.
fn voters(world: &World) -> Result<Vec<String>> {
    let votes = |server: &&Value| server["status"]["seat"] == "Voter" && server["status"]["online"] == true;
    let all = servers(world)?;
    let name = |server: &Value| server["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Ok(all.iter().filter(votes).map(name).collect())
}

fn until_voters(world: &World, expected: &[&str]) -> Result<()> {
    let took = world.until(&format!("voters {expected:?}"), LIMIT, || {
        let now = voters(world)?;
        ensure!(now == expected, "the voters are {now:?}");
        Ok(())
    })?;
    println!("voters {expected:?} after {took:.1?}");
    Ok(())
}

/// Asks until it is refused for this reason: a busy machine may have another one first.
fn refused(world: &World, words: &[&str], ask: impl Fn() -> Result<String>) -> Result<()> {
    world.until(&format!("refusal by {words:?}"), LIMIT, || {
        let why = match ask() {
            Ok(said) => bail!("it was not refused: {said}"),
            Err(why) => format!("{why:#}"),
        };
        for word in words {
            ensure!(why.contains(word), "{word:?} is not in {why}");
        }
        Ok(())
    })?;
    println!("refused: {words:?}");
    Ok(())
}

/// Lets `newcomer` join while `load` goes on, until it votes with `expected`.
async fn take_in(
    world: &World,
    load: &mut Load,
    (newcomer, region): (&mut Newcomer, &str),
    expected: &[&str],
) -> Result<()> {
    load.more(SOME).await?;
    let token = newcomer.token(world, region)?;
    // The same key and token may ask again.
    world.until("the place", LIMIT, || newcomer.join(world, &token).map(|_| ()))?;
    newcomer.start(world)?;
    until_voters(world, expected)?;
    load.more(SOME).await
}

/// A token is used once, and by servers only; nothing of a refusal stays.
fn tokens_are_strict(world: &World, used: &Newcomer) -> Result<()> {
    let thief = Newcomer::new(world, "th-1", (used.block, 9), "thief");
    let spent = used.dir.with_extension("token");
    refused(world, &["used by another key"], || thief.join(world, &spent))?;
    let agents = thief.dir.with_extension("token");
    let body = world.folder("body.json");
    fs::write(&body, "{}")?;
    let path = "/apis/management.loft.sh/v1/clusters/eu/enrolmenttoken";
    let made = world.kubectl(MANAGEMENT, &["create", "--raw", path, "-f", text(&body)])?;
    let made: Value = serde_json::from_str(&made)?;
    fs::write(&agents, made["status"]["token"].as_str().context("a token")?)?;
    fs::set_permissions(&agents, fs::Permissions::from_mode(0o600))?;
    refused(world, &["not valid, or not for a server"], || {
        thief.join(world, &agents)
    })?;
    fs::write(&agents, fs::read_to_string(&spent)?.replace("het1.", "het1.x"))?;
    refused(world, &["not valid, or not for a server"], || {
        thief.join(world, &agents)
    })?;
    ensure!(
        !thief.dir.join("server.toml").exists(),
        "a refused server has a configuration"
    );
    world.until("no entry of the thief", LIMIT, || {
        let names: Vec<_> = servers(world)?.iter().map(|s| s["metadata"]["name"].clone()).collect();
        ensure!(!names.contains(&Value::from("th-1")), "{names:?}");
        Ok(())
    })?;
    Ok(())
}

/// Moves a server's Raft port to another address, as its operator would.
fn relocate(world: &World, server: &mut Newcomer, raft: &str) -> Result<()> {
    server.stop(world)?;
    let ask = ["server", "move", server.name, "--raft", raft];
    world.until("the move", LIMIT, || world.hanse(&ask).map(|_| ()))?;
    let file = server.dir.join("server.toml");
    let old = format!("{}:8444", server.host);
    fs::write(&file, fs::read_to_string(&file)?.replace(&old, raft))?;
    server.start(world)?;
    world.until("the new address", LIMIT, || {
        let all = servers(world)?;
        let addresses: Vec<&Value> = all.iter().map(|server| &server["status"]["address"]).collect();
        ensure!(addresses.contains(&&Value::from(raft)), "{addresses:?}");
        Ok(())
    })?;
    Ok(())
}

/// A server that was removed ends by itself, and does not come back.
fn is_out(world: &World, server: &mut Newcomer) -> Result<()> {
    world.until(&format!("end of {}", server.name), LIMIT, || server.ended().map(|_| ()))?;
    let log = server.ended()?;
    ensure!(log.contains("was removed from the cluster"), "{log}");
    server.start(world)?;
    world.until(&format!("second end of {}", server.name), LIMIT, || {
        server.ended().map(|_| ())
    })?;
    Ok(())
}

/// The key of a server that was removed makes no other server: its certificate is refused, too.
fn key_is_spent(world: &World, server: &Newcomer) -> Result<()> {
    fs::remove_file(server.dir.join("server.toml"))?;
    let token = server.token(world, "us")?;
    refused(world, &["a server that was removed for good"], || {
        server.join(world, &token)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn one_server_becomes_three_and_one_again_without_a_failed_request() -> Result<()> {
    let [block, _] = BLOCKS;
    let world = World::up_with(block, &["eu"])?;
    world.hanse(&["connect", "--management"])?;
    let mut load = management_writes(&world.client(MANAGEMENT).await?, "m");
    until_voters(&world, &["eu-1"])?;
    refused(&world, &["of 0 voters", "1 would be needed"], || {
        world.hanse(&["server", "remove", "eu-1"])
    })?;
    let mut us = Newcomer::new(&world, "us-1", (block, 2), "us");
    take_in(&world, &mut load, (&mut us, "us"), &["eu-1", "us-1"]).await?;
    tokens_are_strict(&world, &us)?;
    let mut ap = Newcomer::new(&world, "ap-1", (block, 3), "ap");
    take_in(&world, &mut load, (&mut ap, "ap"), &["ap-1", "eu-1", "us-1"]).await?;
    // The regions' contexts follow the servers.
    world.hanse(&["connect", "--management"])?;
    let before = load.acknowledged();
    let seen = project_names(&world.client(&format!("{MANAGEMENT}_us")).await?).await?;
    none_missing("writes, through the server that joined", &before, &seen)?;
    relocate(&world, &mut us, &format!("127.{block}.2.2:8444"))?;
    until_voters(&world, &["ap-1", "eu-1", "us-1"])?;
    load.more(SOME).await?;
    // One is down: no living one may leave before it is replaced, and it is removed although it does not answer.
    ap.stop(&world)?;
    let numbers = ["of 2 voters", "2 would be needed", "only 1 answer: 1 too few"];
    refused(&world, &numbers, || world.hanse(&["server", "remove", "us-1"]))?;
    world.hanse(&["server", "remove", "ap-1", "--wait"])?;
    until_voters(&world, &["eu-1", "us-1"])?;
    let mut again = Newcomer::new(&world, "ap-1", (block, 3), "ap2");
    take_in(&world, &mut load, (&mut again, "ap"), &["ap-1", "eu-1", "us-1"]).await?;
    world.hanse(&["server", "remove", "us-1", "--wait"])?;
    until_voters(&world, &["ap-1", "eu-1"])?;
    is_out(&world, &mut us)?;
    key_is_spent(&world, &us)?;
    load.more(SOME).await?;
    let (patient, again_is_fine) = ("--request-timeout=60s", "--ignore-not-found");
    let delete = ["delete", "servers.hanse.dev", "ap-1", patient, again_is_fine];
    world.until("the deletion", LIMIT, || world.kubectl(MANAGEMENT, &delete).map(|_| ()))?;
    until_voters(&world, &["eu-1"])?;
    is_out(&world, &mut again)?;
    load.more(SOME).await?;
    let failures = load.faults();
    ensure!(failures.is_empty(), "{} requests failed: {failures:?}", failures.len());
    let written = load.stop().await?;
    none_missing(
        "writes",
        &written,
        &project_names(&world.client(MANAGEMENT).await?).await?,
    )?;
    world.finish()
}

/// The system moves to other machines: its founder leaves, asked through its own gateway, and the one that joined goes on alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn the_founder_leaves_through_its_own_gateway_and_the_newcomer_goes_on_alone() -> Result<()> {
    let [_, block] = BLOCKS;
    let world = World::up_with(block, &["eu"])?;
    world.hanse(&["connect", "--management"])?;
    let mut load = management_writes(&world.client(MANAGEMENT).await?, "m");
    let mut us = Newcomer::new(&world, "us-1", (block, 2), "us");
    take_in(&world, &mut load, (&mut us, "us"), &["eu-1", "us-1"]).await?;
    let written = load.stop().await?;
    let founder = world.process("server", "eu")?;
    world.hanse(&["server", "remove", "eu-1", "--wait"])?;
    let pki = world.home().join("pki");
    let (url, ca, key) = (
        format!("https://{}:8443", us.host),
        pki.join("ca.pem"),
        pki.join("admin.key"),
    );
    let login = ["login", &url, "--ca-file", text(&ca), "--access-key-file", text(&key)];
    world.until("a login at the newcomer", LIMIT, || world.hanse(&login).map(|_| ()))?;
    // The founder could not take its own entry out any more: the newcomer does.
    world.until("one server", LIMIT, || {
        let all = servers(&world)?;
        let names: Vec<&Value> = all.iter().map(|server| &server["metadata"]["name"]).collect();
        ensure!(names == ["us-1"], "there are {names:?}");
        Ok(())
    })?;
    until_voters(&world, &["us-1"])?;
    world.until("end of the founder", LIMIT, || {
        ensure!(!founder.is_alive(), "it still runs");
        Ok(())
    })?;
    world.hanse(&["connect", "--management"])?;
    let mut load = management_writes(&world.client(MANAGEMENT).await?, "n");
    load.more(SOME).await?;
    let failures = load.faults();
    ensure!(failures.is_empty(), "{} requests failed: {failures:?}", failures.len());
    let written = [written, load.stop().await?].concat();
    let seen = project_names(&world.client(MANAGEMENT).await?).await?;
    none_missing("writes, before and after", &written, &seen)?;
    us.stop(&world)?;
    world.finish()
}
