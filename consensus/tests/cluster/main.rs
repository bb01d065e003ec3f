//! Three servers and what can happen to them.
#![expect(unreachable_pub, clippy::unwrap_used, reason = "test code")]

mod conformance;
mod disks;
mod fairness;
mod forwarding;
mod harness;
mod membership;
mod partitions;
mod rejoin;
mod snapshots;
mod vacancy;
mod writers;

use hanse_consensus::tls::Tls;
use hanse_consensus::{Change, ConsensusError, GROUPS, GroupId, NodeId, Settings, Trust};
use hanse_state::{Access, Store, StoreError, WatchItem, WatchRequest};
use harness::{Cluster, SOON, access, eager_snapshots, get, leaf, put, wait_for};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use writers::Writers;

const TENANTS: GroupId = GroupId::TENANTS;

#[tokio::test]
async fn every_member_writes_and_reads_both_groups() {
    let cluster = Cluster::start(3, false, Settings::default()).await;
    for writer in 1..=3 {
        let key = format!("k{writer}");
        let revision = cluster.put(writer, &key, "v").await.unwrap();
        // The writer reads its write even without asking the leader.
        assert!(cluster.store(writer, TENANTS).revision() >= revision);
        for reader in 1..=3 {
            assert_eq!(
                cluster.get(reader, &key).await.unwrap().as_deref(),
                Some("v"),
                "{writer} -> {reader}"
            );
        }
    }
    let council = cluster.store(2, GroupId::COUNCIL);
    let done = cluster.processes[&2]
        .run(|_| async move { council.txn(&Access::registry(), put("/a", "1")).await })
        .await;
    assert_eq!(
        done.unwrap().unwrap().header.unwrap().revision,
        2,
        "each group counts its own revisions"
    );
    let wrong = cluster.store(1, GroupId::COUNCIL);
    assert!(matches!(
        wrong.range(&access(), get("k1")).await,
        Err(StoreError::WrongGroup { .. })
    ));
    cluster.agree().await;
}

/// Servers that stand in for etcd's know each other as etcd's do.
#[tokio::test]
async fn servers_by_host_and_open_servers_are_clusters_too() {
    for trust in [Trust::Hosts, Trust::Open] {
        let settings = Settings {
            trust,
            ..Settings::default()
        };
        let cluster = Cluster::start(3, false, settings).await;
        for writer in 1..=3 {
            let key = format!("k{writer}");
            cluster.put(writer, &key, "v").await.unwrap();
        }
        assert_eq!(cluster.get(1, "k3").await.unwrap().as_deref(), Some("v"), "{trust:?}");
        cluster.agree().await;
    }
}

#[tokio::test]
async fn one_server_is_a_cluster() {
    let mut cluster = Cluster::start(1, true, Settings::default()).await;
    for n in 0..20 {
        cluster.put(1, &format!("k{n}"), "v").await.unwrap();
    }
    cluster.kill(1);
    cluster.boot(1).await;
    cluster.ready().await;
    for n in 0..20 {
        assert_eq!(cluster.get(1, &format!("k{n}")).await.unwrap().as_deref(), Some("v"));
    }
}

/// Everything that a watch of all keys yields: key to revision, in order, until `until` were seen.
type Seen = Arc<Mutex<Vec<(String, i64)>>>;

fn watch_all(cluster: &Cluster, id: NodeId) -> (Seen, tokio::task::JoinHandle<()>) {
    let (store, seen) = (cluster.store(id, TENANTS), Seen::default());
    let into = Arc::clone(&seen);
    let task = cluster.processes[&id].spawn(async move {
        let all = WatchRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            start_revision: 1,
            ..Default::default()
        };
        let mut watch = store.watch(&access(), all).await.unwrap();
        while let Some(item) = watch.next().await {
            match item {
                WatchItem::Events { revision, events } => {
                    let keys = events.iter().map(|event| event.kv.as_ref().unwrap());
                    let keys = keys.map(|kv| (String::from_utf8(kv.key.to_vec()).unwrap(), revision));
                    into.lock().unwrap().extend(keys);
                }
                WatchItem::Progress { .. } => {}
                other => panic!("the watch was cut: {other:?}"),
            }
        }
    });
    (seen, task)
}

#[tokio::test]
async fn the_leader_dies_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::start(3, true, Settings::default()).await;
    let leader = cluster.leader(TENANTS).await;
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != leader).collect();
    let (seen, _watching) = watch_all(&cluster, others[0]);
    let writers = Writers::start(&cluster, &[1, 2, 3]);
    writers.more(100).await;
    let killed = Instant::now();
    cluster.kill(leader);
    // Those that were acknowledged a moment ago have been counted by now.
    let before = writers.count();
    writers.more(before + 50).await;
    let outage = killed.elapsed();
    println!("writes went on {outage:?} after the leader died");
    assert!(outage < Duration::from_secs(10), "writes resumed only after {outage:?}");
    let next = cluster.leader(TENANTS).await;
    assert_ne!(next, leader);
    cluster.boot(leader).await;
    cluster.ready().await;
    let before = writers.count();
    writers.more(before + 50).await;
    let (acknowledged, unknown) = writers.finish().await;
    assert_eq!(
        unknown,
        BTreeSet::new(),
        "the survivors learn the fate of every write from the next term"
    );
    cluster.agree().await;
    // Every member has every acknowledged write, at the revision that was told.
    for id in 1..=3 {
        let store = cluster.store(id, TENANTS);
        for (key, revision) in &acknowledged {
            let found = store
                .range(
                    &access(),
                    hanse_state::pb::RangeRequest {
                        serializable: true,
                        ..get(key)
                    },
                )
                .await
                .unwrap();
            assert_eq!(
                found.kvs.first().map(|kv| kv.mod_revision),
                Some(*revision),
                "{key} on {id}"
            );
        }
    }
    // The follower's watch saw each write once, in order, without a gap, over the leader's death.
    let last = cluster.store(others[0], TENANTS).revision();
    wait_for("the watch", || (seen.lock().unwrap().last()?.1 == last).then_some(())).await;
    let seen = seen.lock().unwrap().clone();
    let revisions: Vec<i64> = seen.iter().map(|(_, revision)| *revision).collect();
    assert_eq!(revisions, (2..=last).collect::<Vec<_>>(), "gap, repeat or disorder");
    let keys: BTreeSet<&String> = seen.iter().map(|(key, _)| key).collect();
    assert!(acknowledged.keys().all(|key| keys.contains(key)));
    // What is there but was not acknowledged is what its writer did not hear of: of the killed server, or of unknown outcome.
    let of_killed = format!("w{leader}-");
    let unexplained = keys
        .iter()
        .filter(|key| !acknowledged.contains_key(**key) && !unknown.contains(**key));
    assert!(
        unexplained.clone().all(|key| key.starts_with(&of_killed)),
        "{:?}",
        unexplained.collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn all_die_at_once_and_come_back_with_everything() {
    let mut cluster = Cluster::start(3, true, Settings::default()).await;
    let writers = Writers::start(&cluster, &[1, 2, 3]);
    writers.more(300).await;
    for id in 1..=3 {
        cluster.kill(id);
    }
    let (acknowledged, _) = writers.finish().await;
    cluster.boot_all().await;
    cluster.ready().await;
    for (key, _) in acknowledged.iter().rev().take(100) {
        assert_eq!(cluster.get(1, key).await.unwrap().as_deref(), Some("v"), "{key}");
    }
    let all = hanse_state::pb::RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        count_only: true,
        ..Default::default()
    };
    let count = cluster.store(2, TENANTS).range(&access(), all).await.unwrap().count;
    assert!(usize::try_from(count).unwrap() >= acknowledged.len());
    cluster.agree().await;
}

#[tokio::test]
async fn a_member_far_behind_catches_up_by_a_snapshot() {
    let mut cluster = Cluster::start(3, true, eager_snapshots()).await;
    cluster.put(1, "first", "v").await.unwrap();
    let leader = cluster.leader(TENANTS).await;
    let behind = (1..=3).find(|id| *id != leader).unwrap();
    cluster.kill(behind);
    fill(&cluster, leader, 0, 400).await;
    cluster.boot(behind).await;
    cluster.ready().await;
    wait_for("the state", || {
        (cluster.store(behind, TENANTS).revision() >= 402).then_some(())
    })
    .await;
    assert_eq!(cluster.get(behind, "f0399").await.unwrap().as_deref(), Some("v"));
    assert_eq!(cluster.get(behind, "first").await.unwrap().as_deref(), Some("v"));
    // It goes on as a full member, also after another start on what the snapshot left on disk.
    cluster.put(behind, "after", "v").await.unwrap();
    cluster.kill(behind);
    cluster.boot(behind).await;
    cluster.ready().await;
    assert_eq!(cluster.get(behind, "after").await.unwrap().as_deref(), Some("v"));
    cluster.agree().await;
}

async fn fill(cluster: &Cluster, id: NodeId, from: usize, to: usize) {
    let store = cluster.store(id, TENANTS);
    let writes = async move {
        let puts = (from..to).map(|n| {
            let store = Arc::clone(&store);
            async move { store.txn(&access(), put(&format!("f{n:04}"), "v")).await.map(|_| ()) }
        });
        use futures::StreamExt;
        let done: Vec<Result<(), StoreError>> = futures::stream::iter(puts).buffer_unordered(20).collect().await;
        done.into_iter().collect::<Result<Vec<()>, _>>().unwrap();
    };
    cluster.processes[&id].run(|_| writes).await.unwrap();
}

#[tokio::test]
async fn a_wiped_server_is_refused_and_comes_back_under_a_new_id() {
    let mut cluster = Cluster::start(3, true, eager_snapshots()).await;
    let leader = cluster.leader(TENANTS).await;
    fill(&cluster, leader, 0, 300).await;
    let lost = (1..=3).find(|id| *id != leader && *id != 1).unwrap_or(1);
    cluster.kill(lost);
    cluster.wipe(lost);
    let error = cluster.try_boot(lost).await.unwrap_err();
    assert!(
        matches!(error, ConsensusError::DataGone { id, .. } if id == lost),
        "{error}"
    );
    cluster.machines.remove(&lost);
    cluster.add_machine(4);
    cluster.boot(4).await;
    let left = (1..=3).find(|id| *id != lost).unwrap();
    membership::change(&cluster, left, Change::Remove(lost)).await.unwrap();
    let added = membership::added(&cluster, 4, false);
    membership::change(&cluster, left, added).await.unwrap();
    let all: Vec<NodeId> = (1..=4).filter(|id| *id != lost).collect();
    membership::voters(&cluster, left, &all).await;
    assert_eq!(cluster.get(4, "f0299").await.unwrap().as_deref(), Some("v"));
    cluster.put(4, "new", "v").await.unwrap();
    cluster.agree().await;
    // It carries the quorum: with one of the old servers gone, writes go on.
    let gone = (1..=3).find(|id| *id != lost).unwrap();
    cluster.kill(gone);
    cluster.put(4, "still", "v").await.unwrap();
    let ids: Vec<NodeId> = cluster.processes[&4].node.members().keys().copied().collect();
    assert!(ids.contains(&4) && !ids.contains(&lost), "{ids:?}");
}

#[tokio::test]
async fn without_a_quorum_nothing_is_acknowledged_and_local_reads_go_on() {
    let settings = Settings {
        request_timeout: Duration::from_secs(2),
        ..Settings::default()
    };
    let mut cluster = Cluster::start(3, false, settings).await;
    cluster.put(1, "k", "v").await.unwrap();
    cluster.agree().await;
    cluster.kill(2);
    cluster.kill(3);
    let error = cluster.put(1, "k", "w").await.unwrap_err();
    assert!(error.retryable(), "{error}");
    assert!(cluster.get(1, "k").await.is_err(), "a linearizable read needs a quorum");
    let local = hanse_state::pb::RangeRequest {
        serializable: true,
        ..get("k")
    };
    let found = cluster.store(1, TENANTS).range(&access(), local).await.unwrap();
    assert_eq!(&found.kvs[0].value[..], b"v");
    let store = cluster.store(1, TENANTS);
    wait_for("the loss of the leader", || (!store.has_leader()).then_some(())).await;
    let status = cluster.processes[&1]
        .run(|node| async move { node.cluster_status().await })
        .await
        .unwrap();
    let online: Vec<bool> = status.iter().map(|member| member.online).collect();
    assert_eq!(online, [true, false, false]);
}

#[tokio::test]
async fn a_leaving_leader_hands_over_first() {
    let mut cluster = Cluster::start(3, false, Settings::default()).await;
    let leader = cluster.leader(TENANTS).await;
    let other = (1..=3).find(|id| *id != leader).unwrap();
    let start = Instant::now();
    cluster.processes[&leader]
        .run(|node| async move { node.shutdown().await })
        .await
        .unwrap()
        .unwrap();
    cluster.put(other, "k", "v").await.unwrap();
    println!(
        "a write succeeded {:?} after the leader began to leave",
        start.elapsed()
    );
    cluster.kill(leader);
    assert_eq!(cluster.get(other, "k").await.unwrap().as_deref(), Some("v"));
    let status = cluster.processes[&other]
        .run(|node| async move { node.cluster_status().await })
        .await
        .unwrap();
    let leaders = status
        .iter()
        .flat_map(|member| &member.groups)
        .filter(|group| group.role == "Leader")
        .count();
    assert_eq!(leaders, GROUPS.len());
}

#[tokio::test]
async fn leases_end_by_the_leaders_clock_and_outlive_it() {
    let mut cluster = Cluster::start(3, false, Settings::default()).await;
    let leader = cluster.leader(TENANTS).await;
    let other = (1..=3).find(|id| *id != leader).unwrap();
    let store = cluster.store(other, TENANTS);
    let granted = cluster.processes[&other]
        .run(|_| async move {
            let lease = store.lease_grant(&access(), 0, 2).await?.id;
            let mut request = put("leased", "v");
            let Some(hanse_state::pb::request_op::Request::RequestPut(put)) = &mut request.success[0].request else {
                panic!()
            };
            put.lease = lease;
            store.txn(&access(), request).await
        })
        .await;
    granted.unwrap().unwrap();
    cluster.kill(leader);
    assert_eq!(
        cluster.get(other, "leased").await.unwrap().as_deref(),
        Some("v"),
        "extended by the new leader"
    );
    let store = cluster.store(other, TENANTS);
    let gone = async {
        while !store.range(&access(), get("leased")).await.unwrap().kvs.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, gone).await.unwrap();
    assert!(store.leases(&access()).await.unwrap().is_empty());
}

#[tokio::test]
async fn only_servers_of_our_ca_get_in() {
    use hanse_consensus::codec::pb;
    let cluster = Cluster::start(1, false, Settings::default()).await;
    let address = cluster.machines[&1].member.address.clone();
    let ask = |tls: Tls, name: &'static str| {
        let address = address.clone();
        async move {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("https://{address}")).unwrap();
            let channel = tls.secure(endpoint, name).unwrap().connect().await.ok()?;
            let mut client = pb::consensus_client::ConsensusClient::new(channel);
            client
                .status(pb::StatusRequest {})
                .await
                .ok()
                .map(|reply| reply.into_inner().name)
        }
    };
    let ours = Tls::new(&leaf(&cluster.ca, "hanse://server/x"), "x").unwrap();
    assert_eq!(ask(ours.clone(), "s1").await.as_deref(), Some("s1"));
    assert_eq!(ask(ours, "s2").await, None, "another server's name");
    let other_ca = hanse_runtime::pki::Ca::generate("other", 10, harness::now()).unwrap();
    let mut stranger = leaf(&other_ca, "hanse://server/x");
    stranger.ca = cluster.ca.cert_pem().to_owned();
    assert_eq!(ask(Tls::new(&stranger, "x").unwrap(), "s1").await, None, "another CA");
    let mut agent = leaf(&cluster.ca, "hanse://server/x");
    let as_agent = leaf(&cluster.ca, "hanse://agent/x");
    (agent.cert, agent.key) = (as_agent.cert, as_agent.key);
    assert!(
        Tls::new(&agent, "x").is_err(),
        "an agent's certificate is refused before it is used"
    );
}

#[tokio::test]
async fn a_revoked_key_is_heard_no_more_also_on_a_connection_that_is_there() {
    use hanse_consensus::codec::pb;
    use hanse_runtime::pki::{cert_key_sha256, load_certs};
    let cluster = Cluster::start(1, false, Settings::default()).await;
    let url = format!("https://{}", cluster.machines[&1].member.address);
    let client = |pem: &hanse_consensus::TlsPem| {
        let tls = Tls::new(pem, "x").unwrap();
        let endpoint = tonic::transport::Endpoint::from_shared(url.clone()).unwrap();
        let channel = tls.secure(endpoint, "s1").unwrap().connect_lazy();
        pb::consensus_client::ConsensusClient::new(channel)
    };
    let (removed, other) = (
        leaf(&cluster.ca, "hanse://server/x"),
        leaf(&cluster.ca, "hanse://server/x"),
    );
    let (mut removed_client, mut other_client) = (client(&removed), client(&other));
    let ask = || pb::ReadIndexRequest { group: 0 };
    removed_client.read_index(ask()).await.unwrap();
    other_client.read_index(ask()).await.unwrap();
    let key = cert_key_sha256(&load_certs(&removed.cert).unwrap()[0]).unwrap();
    cluster.processes[&1].node.revoke(BTreeSet::from([key]));
    for mut refused in [removed_client.clone(), client(&removed)] {
        let status = refused.read_index(ask()).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status:?}");
        let vote = refused.vote(pb::VoteRequest::default()).await.unwrap_err();
        assert_eq!(vote.code(), tonic::Code::PermissionDenied, "{vote:?}");
        // By this it learns that it was removed.
        refused.status(pb::StatusRequest {}).await.unwrap();
    }
    other_client.read_index(ask()).await.unwrap();
}

#[tokio::test]
async fn lost_log_entries_stop_the_start() {
    let mut cluster = Cluster::start(1, true, Settings::default()).await;
    cluster.put(1, "k", "v").await.unwrap();
    cluster.kill(1);
    let mark = cluster.data_dir(1).join("log-tenants.mark");
    std::fs::write(&mark, "hanse log mark 1\n100000\n").unwrap();
    let error = cluster.try_boot(1).await.unwrap_err();
    assert!(
        matches!(error, ConsensusError::LogLost { expected: 99_999, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("under a new id"), "{error}");
}
