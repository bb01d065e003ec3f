//! Puts while something is in their way: leadership that moves, a follower that stands still.

use crate::cluster::{Cluster, Peer, Programs};
use crate::load::{AsyncAsk, Client, Figures, Window, closed_loop};
use crate::works::Puts;
use anyhow::{Context as _, Result};
use hanse_state::pb;
use hanse_state::pb::maintenance_client::MaintenanceClient;
use serde::Serialize;
use std::time::Duration;

/// Members of each cluster.
const MEMBERS: usize = 3;
/// Between two planned hand-overs.
const BETWEEN: Duration = Duration::from_millis(500);

/// A put that takes longer has failed: some hang for seconds when their leader goes.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hindrance {
    /// The leader hands over to another member, again and again.
    HandOvers,
    /// A follower is stopped; its clients have gone to the others.
    PausedFollower,
}

/// Of them all: its words, its clients, what is in the way.
const CASES: [(&str, usize, Hindrance); 3] = [
    ("leader hands over every 500 ms, 1 client", 1, Hindrance::HandOvers),
    ("leader hands over every 500 ms, 64 clients", 64, Hindrance::HandOvers),
    ("one follower stopped, 64 clients", 64, Hindrance::PausedFollower),
];

/// One line of the table.
#[derive(Debug, Serialize)]
pub struct Hindered {
    pub title: &'static str,
    pub etcd: Figures,
    pub hanse: Figures,
}

/// Runs all of them with both.
pub async fn all(programs: &Programs, window: Window) -> Result<Vec<Hindered>> {
    let mut lines = Vec::new();
    for (title, clients, hindrance) in CASES {
        println!("{title}");
        let etcd = run(Peer::Etcd, programs, (clients, hindrance), window).await?;
        let hanse = run(Peer::Hanse, programs, (clients, hindrance), window).await?;
        lines.push(Hindered { title, etcd, hanse });
    }
    Ok(lines)
}

async fn run(
    peer: Peer,
    programs: &Programs,
    (clients, hindrance): (usize, Hindrance),
    window: Window,
) -> Result<Figures> {
    let mut cluster = Cluster::start(peer, programs, MEMBERS).await?;
    let figures = match hindrance {
        Hindrance::HandOvers => {
            let puts = closed_loop(&cluster, clients, window, Impatient);
            tokio::select! {
                figures = puts => figures?,
                never = hand_over_for_ever(&cluster) => match never? {},
            }
        }
        Hindrance::PausedFollower => {
            let leader = cluster.leader().await?;
            cluster.pause((leader + 1) % MEMBERS)?;
            closed_loop(&cluster, clients, window, Impatient).await?
        }
    };
    println!(
        "  {:<12} {:>9.0}/s  p99 {:>7.2} ms  longest {:>7.2} ms  {} failed",
        peer.name(),
        figures.per_second,
        figures.p99,
        figures.max,
        figures.errors
    );
    Ok(figures)
}

struct Impatient;

impl AsyncAsk for Impatient {
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
