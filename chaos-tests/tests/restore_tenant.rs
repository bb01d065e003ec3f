//! One tenant is put back from a backup while another one writes: kubectl sees the objects again, the API server lived through
//! it and shows nothing of what was, and the other tenant lost nothing.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Context as _, Result, ensure};
use hanse_chaos_tests::World;
use hanse_chaos_tests::load::none_missing;
use hanse_chaos_tests::writers::{config_map_names, tenant_writes};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Acknowledgements of the other tenant before and after the restore.
const SOME: usize = 20;
/// For a tenant to show what was restored, on a slow machine.
const LIMIT: Duration = Duration::from_secs(180);
/// Objects that are deleted, enough for several pieces.
const OBJECTS: usize = 12;

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn hanse_json(world: &World, args: &[&str]) -> Result<Value> {
    let output = world.hanse(&[args, &["-o", "json"]].concat())?;
    serde_json::from_str(&output).with_context(|| format!("read {output:?}"))
}

struct Files {
    backup: PathBuf,
    phrase: PathBuf,
    wrong: PathBuf,
}

impl Files {
    fn in_dir(dir: &Path) -> Result<Self> {
        let phrase = |name: &str, text: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            Ok(path)
        };
        Ok(Self {
            backup: dir.join("all.backup"),
            phrase: phrase("phrase", "correct horse battery staple\n")?,
            wrong: phrase("wrong", "another horse altogether\n")?,
        })
    }
}

/// Config maps of 100 kB, and one that will be changed.
fn fill(world: &World, context: &str, dir: &Path) -> Result<()> {
    let value = dir.join("value");
    fs::write(&value, "x".repeat(100_000))?;
    for n in 0..OBJECTS {
        let file = format!("--from-file=v={}", text(&value));
        world.kubectl(context, &["create", "configmap", &format!("big-{n}"), &file])?;
    }
    world.kubectl(context, &["create", "configmap", "changed", "--from-literal=v=before"])?;
    world.kubectl(context, &["create", "namespace", "kept"])?;
    world.kubectl(
        context,
        &[
            "-n",
            "kept",
            "create",
            "secret",
            "generic",
            "s",
            "--from-literal=v=secret",
        ],
    )?;
    Ok(())
}

fn damage(world: &World, context: &str) -> Result<()> {
    let names: Vec<String> = (0..OBJECTS).map(|n| format!("big-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    world.kubectl(
        context,
        &[&["delete", "configmap", "--wait=false"], names.as_slice()].concat(),
    )?;
    let patch = r#"{"data":{"v":"after"}}"#;
    world.kubectl(context, &["patch", "configmap", "changed", "-p", patch])?;
    world.kubectl(context, &["delete", "-n", "kept", "secret", "s"])?;
    world.kubectl(context, &["create", "configmap", "too-late", "--from-literal=v=1"])?;
    Ok(())
}

/// What is wrong is told with its reason, and the tenant keeps what it has.
fn refusals(world: &World, context: &str, files: &Files) -> Result<()> {
    let flipped = files.backup.with_file_name("flipped");
    let mut bytes = fs::read(&files.backup)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&flipped, bytes)?;
    let (good, wrong) = (text(&files.phrase), text(&files.wrong));
    let cases = [
        (text(&files.backup), "hurt", wrong, "passphrase is not the one"),
        (text(&flipped), "hurt", good, "damaged"),
        (text(&files.backup), "nope", good, "no tenant cluster"),
        (text(&files.backup), "younger", good, "does not hold the key space"),
    ];
    for (file, tenant, phrase, says) in cases {
        let args = ["restore", file, "--tenant", tenant, "--passphrase-file", phrase];
        let fault = world.hanse(&args).err().with_context(|| format!("{args:?} was done"))?;
        let fault = format!("{fault:#}");
        ensure!(fault.contains(says), "{says:?} is not in {fault:?}");
    }
    world.kubectl(context, &["get", "configmap", "too-late"]).map(|_| ())
}

/// Whether kubectl sees what was backed up, through the API server that lived through it.
fn is_restored(world: &World, context: &str) -> Result<()> {
    let listed = world.kubectl(context, &["get", "configmap", "-o", "name"])?;
    for n in 0..OBJECTS {
        ensure!(
            listed.lines().any(|line| line == format!("configmap/big-{n}")),
            "{listed}"
        );
    }
    ensure!(!listed.contains("too-late"), "{listed}");
    let value = world.kubectl(context, &["get", "configmap", "changed", "-o", "jsonpath={.data.v}"])?;
    ensure!(value == "before", "{value:?}");
    let secret = world.kubectl(
        context,
        &["-n", "kept", "get", "secret", "s", "-o", "jsonpath={.data.v}"],
    )?;
    ensure!(secret == "c2VjcmV0", "{secret:?}");
    let value = world.kubectl(context, &["get", "configmap", "big-7", "-o", "jsonpath={.data.v}"])?;
    ensure!(value.len() == 100_000, "{} bytes", value.len());
    Ok(())
}

/// The trail has who began it and how it ended.
fn is_audited(world: &World) -> Result<()> {
    let listed = hanse_json(world, &["audit", "list", "--verb", "restore"])?.to_string();
    let (begun, ended) = (listed.contains("RequestReceived"), listed.contains("ResponseComplete"));
    ensure!(begun && ended && listed.contains("hurt"), "{listed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_tenant_comes_back_while_another_one_writes() -> Result<()> {
    let world = Arc::new(World::up(33)?);
    let (hurt, well) = (world.tenant("hurt", "us")?, world.tenant("well", "eu")?);
    let dir = tempfile::tempdir()?;
    let files = Files::in_dir(dir.path())?;
    fill(&world, &hurt, dir.path())?;
    let (backup, phrase) = (text(&files.backup), text(&files.phrase));
    hanse_json(&world, &["backup", backup, "--passphrase-file", phrase])?;
    damage(&world, &hurt)?;
    world.hanse(&["create", "younger", "--region", "eu"])?;
    refusals(&world, &hurt, &files)?;
    let client = world.client(&well).await?;
    let mut writes = tenant_writes(&client, "w");
    writes.more(SOME).await?;
    let place = Arc::clone(&world);
    let args = ["restore", backup, "--tenant", "hurt", "--passphrase-file", phrase].map(str::to_owned);
    let restored = tokio::task::spawn_blocking(move || hanse_json(&place, &args.each_ref().map(String::as_str)));
    let restored = restored.await??;
    println!("restored: {restored}");
    ensure!(restored["keys"].as_u64() > Some(20), "{restored}");
    let took = world.until("the tenant shows what was restored", LIMIT, || {
        is_restored(&world, &hurt)
    })?;
    println!("kubectl sees it after {took:.1?}");
    let after = ["create", "configmap", "after", "--from-literal=v=1"];
    world.until("the restored tenant takes writes", LIMIT, || {
        world.kubectl(&hurt, &after).map(|_| ())
    })?;
    is_restored(&world, &hurt).context("and keeps what was restored")?;
    writes.more(SOME).await?;
    let acknowledged = writes.stop().await?;
    none_missing(
        "the other tenant's writes",
        &acknowledged,
        &config_map_names(&client).await?,
    )?;
    world.until("the restore is in the trail", LIMIT, || is_audited(&world))?;
    Arc::into_inner(world).context("the world is still in use")?.finish()
}
