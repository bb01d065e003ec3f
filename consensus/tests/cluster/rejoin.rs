//! A member that lost log entries comes back as a new one.

use crate::TENANTS;
use crate::harness::{Cluster, SOON, leaf, patient, wait_for};
use crate::membership::{Strict, has_all, held, voters};
use hanse_consensus::codec::pb;
use hanse_consensus::tls::Tls;
use hanse_consensus::{ConsensusError, GroupId, Joined, NodeId, Rejoin, Settings};
use hanse_runtime::clock::SystemClock;
use std::time::{Duration, Instant};

/// The mark says that there were more entries than the log has.
fn lose_entries(cluster: &Cluster, id: NodeId) {
    let mark = cluster.data_dir(id).join("log-tenants.mark");
    std::fs::write(mark, "hanse log mark 1\n100000\n").unwrap();
}

/// Asks for a new id with the certificate of the server `name`.
async fn ask(cluster: &Cluster, old: NodeId, name: &str, limit: Duration) -> Result<Joined, ConsensusError> {
    let rejoin = Rejoin {
        old,
        name: name.to_owned(),
        address: cluster.machines[&old].member.address.clone(),
        members: cluster.founders.clone(),
        tls: leaf(&cluster.ca, &format!("hanse://server/{name}")),
        settings: cluster.settings.clone(),
    };
    rejoin.run(&SystemClock::shared(), limit).await
}

fn why(outcome: Result<Joined, ConsensusError>) -> String {
    match outcome {
        Err(ConsensusError::NotReplaced { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

/// Asks until it is refused with `text`: a busy member may not answer at once.
async fn refused(cluster: &Cluster, old: NodeId, name: &str, text: &str) {
    let begun = Instant::now();
    loop {
        let told = why(ask(cluster, old, name, Duration::ZERO).await);
        if told.contains(text) {
            return;
        }
        assert!(begun.elapsed() < SOON, "not `{text}` within {SOON:?}, but: {told}");
    }
}

/// A server that leads nothing.
async fn follower(cluster: &Cluster) -> NodeId {
    let leaders = [cluster.leader(GroupId::COUNCIL).await, cluster.leader(TENANTS).await];
    let mut ids = cluster.processes.keys().copied();
    ids.find(|id| !leaders.contains(id)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_entries_comes_back_as_a_new_one_without_a_failed_write() {
    let mut cluster = Cluster::start(3, false, patient(Settings::default())).await;
    let lost = follower(&cluster).await;
    let at = cluster.leader(TENANTS).await;
    held(&cluster, at, &[1, 2, 3]).await;
    let writes = Strict::start(&cluster, at);
    writes.more(50).await;
    let name = cluster.machines[&lost].member.name.clone();
    refused(&cluster, lost, &name, "stop it first").await;
    cluster.kill(lost);
    lose_entries(&cluster, lost);
    let error = cluster.try_boot(lost).await.unwrap_err();
    assert!(matches!(error, ConsensusError::LogLost { .. }), "{error}");
    let other = cluster.machines.keys().find(|id| **id != lost).copied().unwrap();
    let thief = cluster.machines[&other].member.name.clone();
    let refused = why(ask(&cluster, lost, &thief, SOON).await);
    assert!(refused.contains("not that of the member"), "{refused}");
    let joined = ask(&cluster, lost, &name, SOON).await.unwrap();
    assert_eq!(joined.id, 4);
    let again = ask(&cluster, lost, &name, SOON).await.unwrap();
    assert_eq!(again, joined, "the answer may get lost");
    let others: Vec<NodeId> = cluster.founders.keys().copied().filter(|id| *id != lost).collect();
    voters(&cluster, at, &others).await;
    let old = cluster.machines[&lost].member.clone();
    cluster.renumber(lost, 4);
    cluster.boot(4).await;
    let part = cluster.processes[&4].run(|node| async move { node.join(SOON).await });
    part.await.unwrap().unwrap();
    voters(&cluster, at, &[others[0], others[1], 4]).await;
    assert_eq!(cluster.processes[&at].node.roster().seats[&4].member, old);
    held(&cluster, at, &[4]).await;
    writes.more(50).await;
    let written = writes.finish().await;
    has_all(&cluster, 4, &written).await;
    cluster.agree().await;
    // The old id is spent.
    assert!(cluster.processes[&at].node.removed().contains(&lost));
    let machine = cluster.machines.remove(&4).unwrap();
    cluster.machines.insert(lost, machine);
    let gone = why(ask(&cluster, lost, &name, SOON).await);
    assert!(gone.contains("has come back under another id"), "{gone}");
}

/// A vote that is asked of the old member, at the address of the new one.
#[tokio::test]
async fn a_call_for_another_member_is_refused() {
    let cluster = Cluster::start(1, false, Settings::default()).await;
    let url = format!("https://{}", cluster.machines[&1].member.address);
    let tls = Tls::new(&leaf(&cluster.ca, "hanse://server/x"), "x").unwrap();
    let endpoint = tonic::transport::Endpoint::from_shared(url).unwrap();
    let channel = tls.secure(endpoint, "s1").unwrap().connect_lazy();
    let mut client = pb::consensus_client::ConsensusClient::new(channel);
    for (to, refused) in [(None, false), (Some("1"), false), (Some("3"), true), (Some("x"), true)] {
        let mut request = tonic::Request::new(pb::VoteRequest::default());
        if let Some(to) = to {
            request.metadata_mut().insert("hanse-to", to.parse().unwrap());
        }
        // An empty request is refused for another reason, once it is read.
        let status = client.vote(request).await.unwrap_err();
        let is = status.code() == tonic::Code::FailedPrecondition;
        assert_eq!(is, refused, "{to:?}: {status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_that_lost_entries_at_once_wait_and_nothing_changes() {
    let mut cluster = Cluster::start(3, false, Settings::default()).await;
    let at = cluster.leader(TENANTS).await;
    held(&cluster, at, &[1, 2, 3]).await;
    let lost: Vec<NodeId> = cluster.processes.keys().copied().filter(|id| *id != at).collect();
    for id in &lost {
        cluster.kill(*id);
        lose_entries(&cluster, *id);
    }
    for id in &lost {
        let name = cluster.machines[id].member.name.clone();
        let numbers = "of 3 voters 2 must answer besides this server, whose vote is lost, and 1 do: 1 too few";
        refused(&cluster, *id, &name, numbers).await;
    }
    let roster = cluster.processes[&at].node.roster();
    assert_eq!(roster.voters.iter().copied().collect::<Vec<_>>(), [1, 2, 3]);
    // One of them was only slow: what it had is there again, and the other may come back.
    let (well, ill) = (lost[0], lost[1]);
    std::fs::remove_file(cluster.data_dir(well).join("log-tenants.mark")).unwrap();
    let name = cluster.machines[&ill].member.name.clone();
    cluster.boot(well).await;
    assert_eq!(ask(&cluster, ill, &name, SOON).await.unwrap().id, 4);
    wait_for("two voters", || {
        let now = cluster.processes[&at].node.roster();
        (now.voters == [at, well].into() && !now.joint).then_some(())
    })
    .await;
}
