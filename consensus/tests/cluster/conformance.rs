//! The suite that every store must pass, on one member, on three, and through a follower.

use crate::harness::Cluster;
use hanse_consensus::{GroupId, NodeId, Settings};
use hanse_state::conformance::{registry_suite, store_suite};

async fn run(cluster: &Cluster, id: NodeId, prefix: &str) {
    store_suite(cluster.store(id, GroupId::TENANTS), prefix).await;
}

#[tokio::test]
async fn one_member() {
    let cluster = Cluster::start(1, true, Settings::default()).await;
    run(&cluster, 1, "alone").await;
}

#[tokio::test]
async fn the_leader_of_three() {
    let cluster = Cluster::start(3, true, Settings::default()).await;
    run(&cluster, cluster.leader(GroupId::TENANTS).await, "leader").await;
    cluster.agree().await;
}

#[tokio::test]
async fn a_follower_of_three() {
    let cluster = Cluster::start(3, false, Settings::default()).await;
    let leader = cluster.leader(GroupId::TENANTS).await;
    let follower = (1..=3).find(|id| *id != leader).expect("a follower");
    run(&cluster, follower, "follower").await;
    registry_suite(cluster.store(follower, GroupId::COUNCIL), "follower").await;
    cluster.agree().await;
}
