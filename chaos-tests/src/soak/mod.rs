//! An unmodified kube-apiserver on three members of `hanse store`, under load, while members are killed and started again.
//!
//! Writers make, change, read, list and delete objects of four kinds and know what must be there; followers watch. A run
//! fails when an acknowledged write is missing, a deleted object is back, a watch skips, repeats or reorders, events
//! outlive or miss their time to live, members' contents differ, or requests fail in a way or at a time that no killed
//! member explains.
//!
//! - [`book`]: what must hold between records and what was seen. Pure.
//! - [`report`]: what a run gave, as a table and as JSON.

pub mod book;
mod follower;
mod kinds;
pub mod report;
mod tally;
mod writer;

pub use tally::Line;

use crate::api_server::ApiServer;
use crate::standstill::Standstills;
use crate::store_cluster::{Cluster, Peer, Programs};
use anyhow::{Context as _, Result, bail, ensure};
use book::{Book, early_ends, state_faults, watch_faults};
use follower::Follower;
use futures::future::try_join_all;
use hanse_runtime::rng::{Rng as _, SeededRng};
use kinds::{COMPACTION, EVENT_TTL, Kind};
use kube::api::ListParams;
use report::Report;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tally::{Tally, excuse};
use tokio::sync::watch;
use writer::{Writer, revision};

const MEMBERS: usize = 3;
/// Writers of each kind; each has one request under way.
const WRITERS: u64 = 3;
/// Seconds after which the server ends a watch: of a follower that begins anew all the time, and of a patient one.
const WATCHES: [u32; 2] = [7, 280];
/// For the last events to be told, and for what expires to be gone after its time: leases start anew with each leader.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(200);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// So long after a member is back, requests may still fail: the API server's client notices it only then.
const AFTERMATH: Duration = Duration::from_secs(30);
/// The longest time without an acknowledged write. An election takes a second or two; this is where somebody would be woken up.
const LONGEST: Duration = Duration::from_secs(30);
/// Errors that one kill may cost each client.
const ERRORS: usize = 40;

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long it is loaded.
    pub duration: Duration,
    /// From one kill to the next, on average.
    pub between: Duration,
    /// Decides who is killed when, and what is written.
    pub seed: u64,
}

/// The programs that are run.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Of the members.
    pub hanse: PathBuf,
    /// kube-apiserver.
    pub api_server: PathBuf,
    /// Where data goes while it runs.
    pub data: PathBuf,
}

/// Runs it; an error says what did not hold.
pub async fn run(plan: &Plan, tools: &Tools) -> Result<Report> {
    let programs = Programs {
        etcd: PathBuf::new(),
        hanse: tools.hanse.clone(),
        data: tools.data.clone(),
    };
    let mut cluster = Cluster::start(Peer::Hanse, &programs, MEMBERS).await?;
    let flags = [
        format!("--etcd-compaction-interval={COMPACTION}"),
        format!("--event-ttl={}s", EVENT_TTL.as_secs()),
    ];
    let mut server = ApiServer::start(&tools.api_server, &cluster, &flags)?;
    kinds::define(&mut server).await?;
    let standstills = Standstills::watch();
    let tally = Arc::new(Tally::new(Instant::now()));
    println!("kube-apiserver serves; {plan:?}");
    let mut followers = Vec::new();
    for kind in Kind::ALL {
        for seconds in WATCHES {
            followers.push(Follower::start(kind, &server.client, seconds, &tally).await?);
        }
    }
    let (stop, stopped) = watch::channel(false);
    let writers = (0..).zip(Kind::ALL.iter().flat_map(|kind| (0..WRITERS).map(|_| *kind)));
    let writers: Vec<_> = writers
        .map(|(number, kind)| Writer::new(kind, number, &server.client, plan.seed, &tally))
        .map(|writer| tokio::spawn(writer.run(stopped.clone())))
        .collect();
    let begun = Instant::now();
    let outages = faults(plan, &mut cluster, &mut server, &tally).await?;
    let loaded = begun.elapsed();
    stop.send_replace(true);
    let mut books: BTreeMap<Kind, Book> = BTreeMap::new();
    for writer in try_join_all(writers).await? {
        let writer = writer?;
        books.entry(writer.kind).or_default().extend(writer.book);
    }
    server.runs()?;
    judge_errors(&tally, &outages, &standstills)?;
    let events = expire(&server, books.entry(Kind::Event).or_default()).await?;
    println!("{events} events have expired");
    states(&server, &books).await?;
    watches(&followers, &books).await?;
    let hashes = cluster.hashes().await?;
    ensure!(
        hashes.windows(2).all(|pair| pair[0] == pair[1]),
        "the members' contents differ: hashes {hashes:?}"
    );
    let (breaks, relists) = followers.iter().fold((0, 0), |(breaks, relists), follower| {
        let log = follower.log();
        (breaks + log.breaks.len(), relists + log.relists.len())
    });
    Ok(Report {
        seed: plan.seed,
        seconds: loaded.as_secs_f64(),
        lines: tally.lines(),
        errors: tally.errors_by_cause(),
        kills: outages.len(),
        longest: tally.longest().0.as_secs_f64(),
        objects: books.values().map(BTreeMap::len).sum(),
        events,
        told: followers.iter().map(|follower| follower.log().seen.len()).sum(),
        breaks,
        relists,
        hash: hashes.first().copied().unwrap_or_default(),
        standstills: standstills.count(),
    })
}

/// From a kill until the member took a write again.
#[derive(Debug)]
struct Outage {
    from: Instant,
    until: Instant,
}

/// Kills members and starts them again until the time is over; in the end all are there.
async fn faults(plan: &Plan, cluster: &mut Cluster, server: &mut ApiServer, tally: &Tally) -> Result<Vec<Outage>> {
    let rng = SeededRng::new(plan.seed);
    let begun = Instant::now();
    let mut said = begun;
    let mut outages: Vec<Outage> = Vec::new();
    let mut next = begun + plan.between.mul_f64(0.5);
    // A member that took long to come back must not leave the run without what it is for.
    let late = |kills: usize| kills < LEAST_KILLS && begun.elapsed() < plan.duration * 3;
    while begun.elapsed() < plan.duration || late(outages.len()) {
        if Instant::now() >= next {
            let from = Instant::now();
            let led = cluster.leader().await?;
            // Half of the kills hit the leader, the others one of the rest.
            let victim = match rng.unit() {
                dice if dice < 0.5 => led,
                dice if dice < 0.75 => (led + 1) % MEMBERS,
                _ => (led + 2) % MEMBERS,
            };
            cluster.kill(victim)?;
            tokio::time::sleep(Duration::from_secs_f64(0.2 + 4.8 * rng.unit())).await;
            cluster.launch(victim)?;
            cluster.answers_at(victim).await?;
            let until = Instant::now();
            let which = if victim == led { "the leader" } else { "a follower" };
            println!("kill -9 of {which}; it serves again after {:.1?}", until - from);
            outages.push(Outage { from, until });
            next = until + plan.between.mul_f64(0.5 + rng.unit());
        }
        server.runs()?;
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            let (done, failed) = tally.count();
            println!(
                "{:>4.0} s: {done} requests, {failed} errors, {} kills, at most {:.1?} without a write",
                begun.elapsed().as_secs_f64(),
                outages.len(),
                tally.longest().0
            );
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(outages)
}

/// Errors only while a member was away and shortly after, a bounded number of them, and writes that go on soon.
fn judge_errors(tally: &Tally, outages: &[Outage], standstills: &Standstills) -> Result<()> {
    let near = |at: Instant| {
        outages
            .iter()
            .any(|outage| outage.from <= at && at <= outage.until + AFTERMATH)
    };
    let errors = tally.errors();
    let unexplained: Vec<_> = errors
        .iter()
        .filter(|(at, _)| !near(*at) && !standstills.excuse(*at, AFTERMATH))
        .map(|(_, why)| why.as_str())
        .collect();
    ensure!(
        unexplained.is_empty(),
        "requests failed while no member was away: {unexplained:?}"
    );
    let clients = Kind::ALL.len() * (WATCHES.len() + usize::try_from(WRITERS)?);
    let most = outages.len() * clients * ERRORS;
    ensure!(
        errors.len() <= most,
        "{} requests failed, of {} kills at most {most} may come",
        errors.len(),
        outages.len()
    );
    let (longest, ended) = tally.longest();
    ensure!(
        longest <= LONGEST || standstills.excuse(ended, longest),
        "no write was acknowledged for {longest:?}"
    );
    Ok(())
}

async fn present(server: &ApiServer, kind: Kind) -> Result<BTreeMap<String, (String, u64)>> {
    let (api, begun) = (kind.api(&server.client), Instant::now());
    let list = loop {
        match api.list(&ListParams::default()).await {
            Ok(list) => break list,
            Err(error) if excuse(&error).is_none() || begun.elapsed() > PATIENCE => {
                return Err(error).with_context(|| format!("list {}", kind.plural()));
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    };
    let entry = |object: kube::api::DynamicObject| {
        let revision = revision(&object)?;
        let meta = object.metadata;
        Ok((meta.name.unwrap_or_default(), (meta.uid.unwrap_or_default(), revision)))
    };
    list.items.into_iter().map(entry).collect()
}

/// Waits until all events are gone by themselves.
async fn expire(server: &ApiServer, book: &mut Book) -> Result<usize> {
    let begun = Instant::now();
    loop {
        let left = present(server, Kind::Event).await?;
        if left.is_empty() {
            break;
        }
        ensure!(
            begun.elapsed() < EVENT_TTL + PATIENCE,
            "{} events outlive their {EVENT_TTL:?} by {PATIENCE:?}, one is {:?}",
            left.len(),
            left.first_key_value()
        );
        tokio::time::sleep(LOOK).await;
    }
    for life in book.values_mut() {
        life.ended = true;
    }
    Ok(book.len())
}

async fn states(server: &ApiServer, books: &BTreeMap<Kind, Book>) -> Result<()> {
    for (kind, book) in books {
        let present = present(server, *kind).await?;
        let faults = state_faults(book, &present).lines();
        ensure!(faults.is_empty(), "{} at the end: {faults:#?}", kind.plural());
        let live = book.values().filter(|life| !life.ended).count();
        println!(
            "{}: {live} are there as acknowledged, {} are gone",
            kind.plural(),
            book.len() - live
        );
    }
    Ok(())
}

/// Waits until every follower was told everything, once and in order.
async fn watches(followers: &[Follower], books: &BTreeMap<Kind, Book>) -> Result<()> {
    for follower in followers {
        let kind = follower.kind;
        let book = books.get(&kind).context("every kind has writers")?;
        let begun = Instant::now();
        loop {
            let log = follower.log();
            let mut faults = watch_faults(book, &log, kind == Kind::Event).lines();
            if kind == Kind::Event {
                faults.extend(early_ends(book, &log, EVENT_TTL).lines());
            }
            if faults.is_empty() {
                break;
            }
            if let Some(fault) = follower.fault() {
                bail!("a watch could not go on: {fault}");
            }
            if begun.elapsed() > PATIENCE {
                bail!(
                    "a watch of {} over {} breaks and {} lists: {faults:#?}",
                    kind.plural(),
                    log.breaks.len(),
                    log.relists.len()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}
/// Members killed at least, however long they take to come back.
const LEAST_KILLS: usize = 2;
