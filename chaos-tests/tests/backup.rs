//! A backup that is taken while clients write, and the loss of everything: the system that is restored from it holds what was
//! acknowledged before the backup began, tenants included, and damaged files make no system at all.

#![allow(missing_docs, reason = "test code")]

use anyhow::{Context as _, Result, bail, ensure};
use hanse_chaos_tests::World;
use hanse_chaos_tests::load::none_missing;
use hanse_chaos_tests::writers::{config_map_names, tenant_writes};
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

const REGIONS: [&str; 3] = ["eu", "us", "ap"];
/// Acknowledgements before the backup begins, and again before the system is lost.
const SOME: usize = 20;
/// For tenants to be back after a restore, on a slow machine.
const LIMIT: Duration = Duration::from_secs(180);

/// Paths of a test as arguments.
fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

struct Files {
    plain: PathBuf,
    sealed: PathBuf,
    phrase: PathBuf,
}

impl Files {
    fn in_dir(dir: &Path) -> Result<Self> {
        let phrase = dir.join("phrase");
        fs::write(&phrase, "correct horse battery staple\n")?;
        fs::set_permissions(&phrase, fs::Permissions::from_mode(0o600))?;
        Ok(Self {
            plain: dir.join("plain.backup"),
            sealed: dir.join("sealed.backup"),
            phrase,
        })
    }
}

fn hanse_json(world: &World, args: &[&str]) -> Result<Value> {
    let output = world.hanse(&[args, &["-o", "json"]].concat())?;
    serde_json::from_str(&output).with_context(|| format!("read {output:?}"))
}

/// What `hanse restore` says when it must refuse; nothing may be left in the data directory.
fn refused(world: &World, file: &Path, phrase: Option<&Path>, says: &str) -> Result<()> {
    let config = world.region("eu").join("server.toml");
    let mut args = vec!["restore", text(file), "--config", text(&config)];
    if let Some(phrase) = phrase {
        args.extend(["--passphrase-file", text(phrase)]);
    }
    let fault = match world.hanse(&args) {
        Ok(said) => bail!("{} was restored: {said}", file.display()),
        Err(fault) => format!("{fault:#}"),
    };
    ensure!(fault.contains(says), "{says:?} is not in {fault:?}");
    let left: Vec<_> = fs::read_dir(world.region("eu").join("server"))?.collect::<std::io::Result<_>>()?;
    let left: Vec<_> = left
        .iter()
        .map(|e| e.file_name())
        .filter(|name| name != "lock")
        .collect();
    ensure!(left.is_empty(), "the refused restore left {left:?}");
    Ok(())
}

/// A copy of `file` in which `change` was done.
fn changed(file: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<PathBuf> {
    let mut bytes = fs::read(file)?;
    change(&mut bytes);
    let path = file.with_file_name(name);
    fs::write(&path, bytes)?;
    Ok(path)
}

fn damaged_files_make_no_system(world: &World, files: &Files) -> Result<()> {
    let flip = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
    };
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() * 2 / 3);
    refused(world, &changed(&files.plain, "flipped", flip)?, None, "damaged")?;
    refused(world, &changed(&files.plain, "cut", cut)?, None, "cut short")?;
    let phrase = Some(files.phrase.as_path());
    refused(
        world,
        &changed(&files.sealed, "flipped-sealed", flip)?,
        phrase,
        "damaged",
    )?;
    refused(world, &changed(&files.sealed, "cut-sealed", cut)?, phrase, "cut short")?;
    let wrong = files.phrase.with_file_name("wrong");
    fs::write(&wrong, "another horse altogether\n")?;
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600))?;
    refused(world, &files.sealed, Some(&wrong), "passphrase is not the one")
}

/// Loses all servers with their data, while agents and tenants go on, and restores the backup on each.
fn lose_and_restore(world: &World, files: &Files, expected: &Value) -> Result<()> {
    for region in REGIONS {
        world.process("server", region)?.kill()?;
        fs::remove_dir_all(world.region(region).join("server"))?;
        fs::create_dir(world.region(region).join("server"))?;
    }
    damaged_files_make_no_system(world, files)?;
    for region in REGIONS {
        let config = world.region(region).join("server.toml");
        let args = ["restore", text(&files.sealed), "--config", text(&config)];
        let phrase = ["--passphrase-file", text(&files.phrase)];
        let restored = hanse_json(world, &[args.as_slice(), &phrase].concat())?;
        ensure!(restored["hash"] == expected["hash"], "{restored} is not {expected}");
    }
    let config = world.region("eu").join("server.toml");
    let again = world.hanse(&["restore", text(&files.plain), "--config", text(&config)]);
    let fault = again.err().context("a full directory was filled again")?;
    ensure!(format!("{fault:#}").contains("holds data"), "{fault:#}");
    world.go_on().map(|_| ())
}

/// A backup of one tenant names it; a tenant that is not there, or a folder that is not, is told with the remedy.
fn one_tenant(world: &World, dir: &Path) -> Result<()> {
    let part = hanse_json(world, &["backup", text(&dir.join("work")), "--tenant", "work"])?;
    let spaces = part["spaces"].as_array().context("spaces")?;
    ensure!(spaces.len() == 1 && spaces[0]["tenant"] == "default/work", "{part}");
    let refusals = [
        (dir.join("none"), "nope", "there are: work"),
        (dir.join("no/such/folder"), "work", "make the folder first"),
    ];
    for (file, tenant, says) in refusals {
        let fault = world.hanse(&["backup", text(&file), "--tenant", tenant]).err();
        let fault = format!("{:#}", fault.context("it was taken")?);
        ensure!(fault.contains(says), "{says:?} is not in {fault:?}");
    }
    Ok(())
}

/// A user who is no administrator gets no backup, and no file.
fn only_administrators(world: &World, dir: &Path) -> Result<()> {
    world.hanse(&["user", "create", "ann"])?;
    world.hanse(&[
        "members",
        "add",
        "--user",
        "ann",
        "--role",
        "admin",
        "--project",
        "default",
    ])?;
    let made = hanse_json(world, &["key", "create", "laptop", "--user", "ann"])?;
    let key = made.pointer("/spec/key").and_then(Value::as_str).context("a key")?;
    let file = dir.join("ann.backup");
    let key_file = dir.join("ann.key");
    fs::write(&key_file, key)?;
    let mut command = world.hanse_command();
    command.env("HANSE_CONFIG", dir.join("ann-login.toml"));
    let ca = world.home().join("pki/ca.pem");
    let url = world.url();
    let args = [
        "login",
        &url,
        "--ca-file",
        text(&ca),
        "--access-key-file",
        text(&key_file),
    ];
    ensure!(command.args(args).output()?.status.success(), "ann cannot log in");
    let mut command = world.hanse_command();
    command.env("HANSE_CONFIG", dir.join("ann-login.toml"));
    let output = command.args(["backup", text(&file)]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(4) && said.contains("cannot get path"),
        "{said}"
    );
    let left = fs::read_dir(dir)?
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().contains("ann.backup"));
    ensure!(left.count() == 0, "a refused backup left a file");
    Ok(())
}

/// Config maps as the tenant's API has them once it holds those of `wanted` and not `unwanted`: its API server lived through
/// the loss and must not go on with what it remembers.
async fn list_restored(world: &World, context: &str, wanted: &str, unwanted: &str) -> Result<Vec<String>> {
    let client = world.client(context).await?;
    let begun = Instant::now();
    loop {
        let why = match config_map_names(&client).await {
            Ok(names) => {
                let has = |name: &str| names.iter().any(|n| n == name);
                if has(wanted) && !has(unwanted) {
                    println!("the tenant shows the restored state after {:.1?}", begun.elapsed());
                    return Ok(names);
                }
                format!("{wanted}: {}, {unwanted}: {}", has(wanted), has(unwanted))
            }
            Err(error) => error.to_string(),
        };
        ensure!(begun.elapsed() < LIMIT, "the tenant is not what was restored: {why}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The audit trail holds, and goes on from a place that was known; answers the new one.
async fn audit_holds(world: &World, known: Option<&str>) -> Result<String> {
    let mut args = vec!["audit", "verify"];
    args.extend(known.iter().flat_map(|known| ["--known", known]));
    let checked = hanse_json(world, &args)?;
    let (last, hash) = (checked["last"].as_u64(), checked["hash"].as_str());
    let place = format!("{}:{}", last.context("a number")?, hash.context("a hash")?);
    ensure!(last > Some(0), "nothing was audited: {checked}");
    let begun = Instant::now();
    loop {
        // Denials come after their answer.
        let denied = hanse_json(world, &["audit", "list", "--user", "ann", "--denied"])?;
        if denied.to_string().contains("/backup") {
            return Ok(place);
        }
        ensure!(
            begun.elapsed() < LIMIT,
            "ann's denied backup is not in the trail: {denied}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What was exported verifies without the system, and does not any more when a letter of it was changed.
fn exported_events_are_checked(world: &World, dir: &Path) -> Result<()> {
    let file = dir.join("trail.jsonl");
    world.hanse(&["audit", "export", text(&file)])?;
    let checked = hanse_json(world, &["audit", "verify", "--file", text(&file)])?;
    ensure!(checked["holds"] == true, "{checked}");
    let forged = fs::read_to_string(&file)?.replacen("\"create\"", "\"delete\"", 1);
    fs::write(&file, forged)?;
    let fault = world.hanse(&["audit", "verify", "--file", text(&file)]).err();
    let fault = format!("{:#}", fault.context("a forged export verifies")?);
    ensure!(fault.contains("does not hold"), "{fault}");
    Ok(())
}

/// `audit follow` shows what happens after it began.
fn events_are_followed(world: &World) -> Result<()> {
    let args = [
        "audit",
        "follow",
        "--resource",
        "users",
        "--verb",
        "create",
        "-o",
        "json",
    ];
    let mut follow = world.hanse_command().args(args).stdout(Stdio::piped()).spawn()?;
    let (sender, seen) = std::sync::mpsc::channel();
    let out = follow.stdout.take().context("its output")?;
    let reader = std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(out).read_line(&mut line).map(|_| line);
        sender.send(read).is_ok()
    });
    let begun = Instant::now();
    let mut made = 0;
    let line = loop {
        world.hanse(&["user", "create", &format!("u{made}")])?;
        made += 1;
        match seen.recv_timeout(Duration::from_millis(500)) {
            Ok(line) => break line?,
            Err(_) if begun.elapsed() < LIMIT => {}
            Err(error) => bail!("{made} users were made and `audit follow` showed none: {error}"),
        }
    };
    follow.kill()?;
    follow.wait()?;
    ensure!(reader.join().is_ok(), "the reader fell over");
    let event: Value = serde_json::from_str(&line).with_context(|| format!("read {line:?}"))?;
    let name = event.pointer("/status/objectRef/name").and_then(Value::as_str);
    ensure!(name.is_some_and(|name| name.starts_with('u')), "{event}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_system_comes_back_from_a_backup_taken_under_load() -> Result<()> {
    let world = Arc::new(World::up(32)?);
    let context = world.tenant("work", "us")?;
    let dir = tempfile::tempdir()?;
    let files = Files::in_dir(dir.path())?;
    only_administrators(&world, dir.path())?;
    let known = audit_holds(&world, None).await?;
    let mut writes = tenant_writes(&world.client(&context).await?, "w");
    writes.more(SOME).await?;
    let before = writes.acknowledged();
    let place = Arc::clone(&world);
    let (sealed, phrase) = (files.sealed.clone(), files.phrase.clone());
    let taken = tokio::task::spawn_blocking(move || {
        hanse_json(&place, &["backup", text(&sealed), "--passphrase-file", text(&phrase)])
    });
    let taken = taken.await??;
    writes.more(SOME).await?;
    let all = writes.stop().await?;
    world.hanse(&["backup", text(&files.plain)])?;
    let again = world.hanse(&["backup", text(&files.plain)]);
    ensure!(again.is_err(), "a backup took the place of another");
    one_tenant(&world, dir.path())?;
    lose_and_restore(&world, &files, &taken)?;
    let (first, last) = (before.first().context("a write")?, all.last().context("a write")?);
    let found = list_restored(&world, &context, first, last).await?;
    none_missing("writes acknowledged before the backup", &before, &found)?;
    audit_holds(&world, Some(&known)).await?;
    world.hanse(&["user", "create", "bert"])?;
    ensure!(
        audit_holds(&world, Some(&known)).await? != known,
        "the restored trail did not grow"
    );
    exported_events_are_checked(&world, dir.path())?;
    events_are_followed(&world)?;
    let mut more = tenant_writes(&world.client(&context).await?, "after");
    more.more(SOME).await.context("the restored system takes writes")?;
    more.stop().await?;
    Arc::into_inner(world).context("the world is still in use")?.finish()
}
