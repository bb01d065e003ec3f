//! Sinks of the audit trail while everything goes wrong: the webhook refuses, loses its answers and goes away, the server that
//! feeds it is killed meanwhile and comes back. Every event arrives, and none before its turn.

#![allow(missing_docs, reason = "test code")]
#![allow(
    clippy::expect_used,
    unreachable_pub,
    reason = "the receiver is shared with tests of the gateway"
)]

#[path = "../../gateway/tests/webhook/receiver.rs"]
mod receiver;

use anyhow::{Context as _, Result, ensure};
use hanse_api::audit::import;
use hanse_chaos_tests::World;
use hanse_runtime::clock::{Clock as _, SystemClock};
use hanse_runtime::pki::{Ca, LeafSpec, load_certs, load_key};
use receiver::{Receiver, TOKEN};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

const REGIONS: [&str; 3] = ["eu", "us", "ap"];
/// For a sink to catch up, on a slow machine.
const LIMIT: Duration = Duration::from_secs(180);

/// A webhook with a certificate of an authority of its own, whose certificate is in `dir`.
async fn webhook(dir: &Path) -> Result<Receiver> {
    let now = SystemClock::new().wall();
    let ca = Ca::generate("tests", 1, now)?;
    let spec = LeafSpec {
        ips: vec!["127.0.0.1".parse()?],
        server: true,
        days: 1,
        ..LeafSpec::default()
    };
    let leaf = ca.issue(&spec, now)?;
    fs::write(dir.join("ca.pem"), ca.cert_pem())?;
    let token = dir.join("token");
    fs::write(&token, TOKEN)?;
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600))?;
    let tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(load_certs(&leaf.cert)?, load_key(&leaf.key)?)?;
    Ok(Receiver::start(tls).await)
}

/// Gives every server the sinks, and starts them all again.
fn configure(world: &World, dir: &Path, url: &str) -> Result<()> {
    for region in REGIONS {
        let (home, dir) = (world.region(region), dir.display());
        let path = home.join("server.toml");
        let file = home.join("audit.log");
        let sinks = format!(
            "\n[[audit.sink]]\nname = \"siem\"\n\
             webhook = {{ url = {url:?}, token_file = \"{dir}/token\", ca_file = \"{dir}/ca.pem\" }}\n\
             [[audit.sink]]\nname = \"disk\"\nfile = {{ path = {file:?} }}\n"
        );
        let config = fs::read_to_string(&path)?;
        fs::write(&path, config + &sinks)?;
        world.process("server", region)?.kill()?;
    }
    world.go_on().map(|_| ())
}

/// Number of the last event of the trail, which holds.
fn last(world: &World) -> Result<u64> {
    let checked = world.hanse(&["audit", "verify", "-o", "json"])?;
    let checked: Value = serde_json::from_str(&checked)?;
    checked["last"]
        .as_u64()
        .with_context(|| format!("no number in {checked}"))
}

fn users(world: &World, prefix: &str) -> Result<()> {
    (0..3).try_for_each(|n| world.hanse(&["user", "create", &format!("{prefix}{n}")]).map(|_| ()))
}

/// Waits until the webhook has the whole trail.
fn caught_up(world: &World, receiver: &Receiver, when: &str) -> Result<()> {
    let took = world.until(when, LIMIT, || {
        let end = last(world)?;
        let got = receiver.state().in_order().map_err(anyhow::Error::msg)?;
        ensure!(got == end, "the webhook has {got} of {end}");
        Ok(())
    })?;
    println!("{when}: the webhook has everything after {took:.1?}");
    Ok(())
}

/// The files of all servers together hold the whole trail, each in order.
fn files_hold_it(world: &World) -> Result<()> {
    let mut all = BTreeSet::new();
    for region in REGIONS {
        let Ok(text) = fs::read_to_string(world.region(region).join("audit.log")) else {
            // It never led.
            continue;
        };
        for line in text.lines() {
            let event = import(serde_json::from_str(line)?);
            all.insert(event.with_context(|| format!("{region}: {line}"))?.0.sequence);
        }
    }
    let (end, whole) = (last(world)?, all.len() as u64);
    ensure!(
        whole == end && all.last() == Some(&end),
        "the files hold {whole} of {end}: {all:?}"
    );
    Ok(())
}

fn no_token_in_logs(world: &World) -> Result<()> {
    for region in REGIONS {
        for entry in fs::read_dir(world.region(region).join("log"))? {
            let path = entry?.path();
            let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
            ensure!(!text.contains(TOKEN), "the token is in {}", path.display());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_event_arrives_in_order_whoever_fails() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let world = World::up(41)?;
    let mut receiver = webhook(dir.path()).await?;
    (receiver.state().refuse, receiver.state().swallow) = (2, 1);
    configure(&world, dir.path(), &receiver.url())?;
    users(&world, "refused")?;
    caught_up(&world, &receiver, "after refusals")?;
    receiver.stop().await;
    users(&world, "away")?;
    let leader = world.leader(0)?;
    world.process("server", &leader)?.kill()?;
    users(&world, "headless")?;
    receiver.start_again().await;
    receiver.state().swallow = 1;
    users(&world, "back")?;
    caught_up(&world, &receiver, "without its server, and after it went away")?;
    let leader = world.leader(0)?;
    world.go_on()?;
    users(&world, "third")?;
    world.process("server", &leader)?.kill()?;
    world.go_on()?;
    users(&world, "fourth")?;
    caught_up(&world, &receiver, "after another server died")?;
    world.until("files", LIMIT, || files_hold_it(&world))?;
    no_token_in_logs(&world)?;
    drop(receiver);
    world.finish()
}
