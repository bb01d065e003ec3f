//! Puts while something is in their way: leadership that moves, a follower that stands still or is far, a slow disk.

use crate::load::{Client, closed_loop};
use crate::works::Puts;
use anyhow::{Context as _, Result, ensure};
use hanse_chaos_tests::bench::{Ask, Figures, Window};
use hanse_chaos_tests::relay::LongLink;
use hanse_chaos_tests::slow_disk::SlowDisk;
use hanse_chaos_tests::store_cluster::{Cluster, Peer, Programs};
use hanse_state::pb;
use hanse_state::pb::maintenance_client::MaintenanceClient;
use serde::Serialize;
use std::time::Duration;

/// Members of each cluster.
const MEMBERS: usize = 3;
/// Between two planned hand-overs.
const BETWEEN: Duration = Duration::from_millis(500);

/// One way of the long link.
const ONE_WAY: Duration = Duration::from_millis(40);
/// How many times as long an fdatasync of the leader takes on the slow disk.
const SLOWER: f64 = 10.0;

/// A put that takes longer has failed: some hang for seconds when their leader goes.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hindrance {
    /// The leader hands over to another member, again and again.
    HandOvers,
    /// A follower is stopped; its clients have gone to the others.
    PausedFollower,
    /// The link between the leader and one follower is long; clients have gone to the other two.
    LongLink,
    /// The disk is slow for the leader alone.
    SlowDisk,
}

/// Of them all: its words, its clients, what is in the way.
const CASES: [(&str, usize, Hindrance); 5] = [
    ("leader hands over every 500 ms, 1 client", 1, Hindrance::HandOvers),
    ("leader hands over every 500 ms, 64 clients", 64, Hindrance::HandOvers),
    ("one follower stopped, 64 clients", 64, Hindrance::PausedFollower),
    ("one link at 80 ms, 64 clients", 64, Hindrance::LongLink),
    ("leader's disk 10x slower, 64 clients", 64, Hindrance::SlowDisk),
];

/// One line of the table.
#[derive(Debug, Serialize)]
pub struct Hindered {
    pub title: &'static str,
    pub etcd: Figures,
    pub hanse: Figures,
}

/// The lines, and what is to be said about them.
#[derive(Debug, Default, Serialize)]
pub struct Table {
    pub lines: Vec<Hindered>,
    pub notes: Vec<String>,
}

/// Runs those whose title holds `only`, with both.
pub async fn all(programs: &Programs, window: Window, only: &str) -> Result<Table> {
    let mut table = Table::default();
    for (title, clients, hindrance) in CASES.into_iter().filter(|(title, ..)| title.contains(only)) {
        println!("{title}");
        let mut disk = None;
        if hindrance == Hindrance::SlowDisk {
            let (made, note) = slow_disk(programs);
            println!("  {note}");
            table.notes.push(note);
            disk = made;
            if disk.is_none() {
                continue;
            }
        }
        let case = Case {
            clients,
            hindrance,
            disk,
        };
        let etcd = run(Peer::Etcd, programs, &case, window).await?;
        let hanse = run(Peer::Hanse, programs, &case, window).await?;
        table.lines.push(Hindered { title, etcd, hanse });
    }
    ensure!(
        !table.lines.is_empty() || !table.notes.is_empty(),
        "nothing that hinders has that title"
    );
    Ok(table)
}

/// One limit for both, so both have the same disk; and what the report says of it.
fn slow_disk(programs: &Programs) -> (Option<SlowDisk>, String) {
    match SlowDisk::new(&programs.data, SLOWER) {
        Ok(Some(disk)) => {
            let [free, slow] = disk.syncs.map(|sync| sync.as_secs_f64() * 1000.0);
            let note = format!(
                "The slow disk: an fdatasync of the leader takes {slow:.2} ms, of the others {free:.2} ms, on average."
            );
            (Some(disk), note)
        }
        Ok(None) => {
            let why = "the throttle of block devices (blkio, cgroup v1) cannot be set on this machine";
            (None, format!("The leader's slow disk was not tried: {why}."))
        }
        Err(error) => (None, format!("The leader's slow disk was not tried: {error:#}.")),
    }
}

/// What is in the way of how many.
struct Case {
    clients: usize,
    hindrance: Hindrance,
    disk: Option<SlowDisk>,
}

async fn run(peer: Peer, programs: &Programs, case: &Case, window: Window) -> Result<Figures> {
    let mut cluster = match case.hindrance {
        Hindrance::LongLink => Cluster::start_with_links(peer, programs, MEMBERS).await?,
        _ => Cluster::start(peer, programs, MEMBERS).await?,
    };
    let leader = cluster.leader().await?;
    let follower = (leader + 1) % MEMBERS;
    match case.hindrance {
        Hindrance::HandOvers => {}
        Hindrance::PausedFollower => cluster.pause(follower)?,
        Hindrance::LongLink => {
            let (ends, one_way) = ([leader, follower], ONE_WAY);
            let connections = cluster.lengthen(LongLink { ends, one_way })?;
            ensure!(
                connections > 0,
                "no connection between the leader and a follower was found"
            );
            cluster.avoid(follower);
        }
        Hindrance::SlowDisk => {
            let disk = case.disk.as_ref().context("there is no slow disk")?;
            disk.take(cluster.process(leader)?)?;
        }
    }
    let puts = closed_loop(&cluster, case.clients, window, Impatient);
    let figures = if case.hindrance == Hindrance::HandOvers {
        tokio::select! {
            figures = puts => figures?,
            never = hand_over_for_ever(&cluster) => match never? {},
        }
    } else {
        puts.await?
    };
    println!(
        "  {:<12} {:>9.0}/s  p99 {:>7.2} ms  longest {:>7.2} ms  {} failed",
        peer.name(),
        figures.per_second,
        figures.p99,
        figures.max,
        figures.errors
    );
    if case.hindrance != Hindrance::HandOvers && cluster.leader().await? != leader {
        println!("    another member leads now");
    }
    Ok(figures)
}

struct Impatient;

impl Ask<Client> for Impatient {
    type Error = tonic::Status;

    async fn ask(&self, client: &mut Client) -> Result<(), tonic::Status> {
        let asked = tokio::time::timeout(PATIENCE, Puts.ask(client)).await;
        asked.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer within a second")))
    }
}

async fn hand_over_for_ever(cluster: &Cluster) -> Result<std::convert::Infallible> {
    loop {
        tokio::time::sleep(BETWEEN).await;
        let leader = cluster.leader().await?;
        let target = cluster.id((leader + 1) % MEMBERS).await?;
        let request = pb::MoveLeaderRequest { target_id: target };
        let mut client = MaintenanceClient::new(cluster.channel(leader)?);
        client.move_leader(request).await.context("hand leadership over")?;
    }
}
