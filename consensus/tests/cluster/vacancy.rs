//! A leader whose process is gone, and leaders that only seem to be.

use crate::harness::{Cluster, SOON, wait_for};
use hanse_consensus::{GROUPS, GroupId, NodeId, Settings};
use hanse_state::Store;
use std::time::Duration;

const TENANTS: GroupId = GroupId::TENANTS;

fn term(cluster: &Cluster, id: NodeId) -> u64 {
    cluster.store(id, TENANTS).status().term
}

fn others(cluster: &Cluster, leader: NodeId) -> Vec<NodeId> {
    cluster.machines.keys().copied().filter(|id| *id != leader).collect()
}

#[tokio::test]
async fn a_killed_leader_is_not_waited_for() {
    // By time alone, nobody would stand for election before `election_max` and `election_min` have passed.
    let settings = Settings {
        election_min: SOON / 4,
        election_max: SOON,
        ..Settings::default()
    };
    let mut cluster = Cluster::start(3, false, settings).await;
    for group in GROUPS {
        let leader = cluster.leader(group).await;
        cluster.kill(leader);
        let new = cluster.leader(group).await;
        assert_ne!(new, leader);
        cluster.put(new, "after", "v").await.unwrap();
        cluster.boot(leader).await;
        cluster.ready().await;
    }
    cluster.agree().await;
}

#[tokio::test]
async fn a_leader_whose_connections_break_stays() {
    let cluster = Cluster::start_linked(3, Settings::default()).await;
    let leader = cluster.leader(TENANTS).await;
    let before = term(&cluster, leader);
    for _ in 0..5 {
        let links = || {
            others(&cluster, leader)
                .into_iter()
                .map(|other| &cluster.links[&(leader, other)])
        };
        for link in links() {
            let made = link.connections.load(std::sync::atomic::Ordering::SeqCst);
            link.break_off();
            wait_for("a new connection", || {
                (link.connections.load(std::sync::atomic::Ordering::SeqCst) > made).then_some(())
            })
            .await;
        }
        cluster.put(leader, "k", "v").await.unwrap();
    }
    assert_eq!(term(&cluster, leader), before);
    cluster.agree().await;
}

#[tokio::test]
async fn a_leader_that_refuses_only_one_follower_stays() {
    let cluster = Cluster::start_linked(3, Settings::default()).await;
    let leader = cluster.leader(TENANTS).await;
    let before = term(&cluster, leader);
    let misled = others(&cluster, leader)[0];
    // To this follower it looks as if the leader's process were gone, until the leader reaches it again.
    cluster.links[&(misled, leader)].close();
    cluster.links[&(leader, misled)].break_off();
    // Long enough for all the elections it stands for, which the other follower does not want.
    tokio::time::sleep(Duration::from_secs(4)).await;
    cluster.put(leader, "k", "v").await.unwrap();
    assert_eq!(term(&cluster, leader), before);
    assert_eq!(cluster.leader(TENANTS).await, leader);
    cluster.healthy();
}
