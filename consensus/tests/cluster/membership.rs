//! Servers that come and go while the cluster works.

use crate::TENANTS;
use crate::harness::{Cluster, Link, SOON, access, eager_snapshots, get, patient, put, wait_for};
use crate::writers::Writers;
use hanse_consensus::{Change, ConsensusError, GROUPS, GroupId, NodeId, Refusal, Roster, Settings};
use hanse_state::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const COUNCIL: GroupId = GroupId::COUNCIL;

/// Asks one server for a change.
pub(crate) async fn change(cluster: &Cluster, at: NodeId, change: Change) -> Result<(), ConsensusError> {
    let asked = cluster.processes[&at].run(move |node| async move { node.change(change).await });
    asked.await.unwrap()
}

/// A server with a vote to be, or a learner.
pub(crate) fn added(cluster: &Cluster, id: NodeId, learner: bool) -> Change {
    Change::Add {
        id,
        member: cluster.machines[&id].member.clone(),
        learner,
    }
}

fn roster(cluster: &Cluster, at: NodeId) -> Roster {
    cluster.processes[&at].node.roster()
}

pub(crate) async fn voters(cluster: &Cluster, at: NodeId, wanted: &[NodeId]) {
    let wanted: BTreeSet<NodeId> = wanted.iter().copied().collect();
    wait_for("the voters", || {
        let now = roster(cluster, at);
        (now.voters == wanted && !now.joint).then_some(())
    })
    .await;
}

/// Waits until the leader has written down that these servers hold data.
pub(crate) async fn held(cluster: &Cluster, at: NodeId, ids: &[NodeId]) {
    wait_for("the notes of who holds data", || {
        let now = roster(cluster, at);
        ids.iter().all(|id| now.seats[id].held).then_some(())
    })
    .await;
}

/// Writes one key after the other at one member; every single write must succeed.
pub(crate) struct Strict {
    stop: Arc<AtomicBool>,
    done: Arc<Mutex<BTreeMap<String, i64>>>,
    lanes: Vec<tokio::task::JoinHandle<Result<(), String>>>,
}

impl Strict {
    pub(crate) fn start(cluster: &Cluster, at: NodeId) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<Mutex<BTreeMap<_, _>>>::default());
        let lane = |lane: usize| {
            let (stop, done, store) = (Arc::clone(&stop), Arc::clone(&done), cluster.store(at, TENANTS));
            cluster.processes[&at].spawn(async move {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("w{lane}-{n:06}");
                    let answer = store.txn(&access(), put(&key, "v")).await;
                    let answer = answer.map_err(|error| format!("{key}: {error}"))?;
                    done.lock().unwrap().insert(key, answer.header.unwrap().revision);
                }
                Ok(())
            })
        };
        let lanes = (0..4).map(lane).collect();
        Self { stop, done, lanes }
    }

    fn count(&self) -> usize {
        self.done.lock().unwrap().len()
    }

    pub(crate) async fn more(&self, n: usize) {
        let until = self.count() + n;
        wait_for("writes", || (self.count() > until).then_some(())).await;
    }

    pub(crate) async fn finish(self) -> BTreeMap<String, i64> {
        self.stop.store(true, Ordering::Relaxed);
        for lane in self.lanes {
            assert_eq!(lane.await.unwrap(), Ok(()), "a write failed");
        }
        self.done.lock().unwrap().clone()
    }
}

/// Every write is at the member, at the revision that was told.
pub(crate) async fn has_all(cluster: &Cluster, at: NodeId, written: &BTreeMap<String, i64>) {
    let store = cluster.store(at, TENANTS);
    cluster.get(at, "linearize").await.unwrap();
    for (key, revision) in written {
        let local = hanse_state::pb::RangeRequest {
            serializable: true,
            ..get(key)
        };
        let found = store.range(&access(), local).await.unwrap();
        let found = found.kvs.first().map(|kv| kv.mod_revision);
        assert_eq!(found, Some(*revision), "{key} at {at}");
    }
}

#[tokio::test]
async fn one_server_becomes_three_and_one_again_without_a_failed_write() {
    let mut cluster = Cluster::start(1, true, patient(eager_snapshots())).await;
    let writers = Strict::start(&cluster, 1);
    writers.more(200).await;
    for (id, at) in [(2, 1), (3, 2)] {
        cluster.add_machine(id);
        cluster.boot(id).await;
        // The third is added through a follower.
        change(&cluster, at, added(&cluster, id, false)).await.unwrap();
        voters(&cluster, 1, &(1..=id).collect::<Vec<_>>()).await;
        writers.more(100).await;
    }
    for group in GROUPS {
        let status = cluster.processes[&1]
            .run(|node| async move { node.cluster_status().await })
            .await
            .unwrap();
        let of_group = status
            .iter()
            .flat_map(|member| &member.groups)
            .filter(|g| g.group == group.0);
        assert!(
            of_group.clone().all(|g| g.role != "Learner"),
            "{:?}",
            of_group.collect::<Vec<_>>()
        );
    }
    for id in [3, 2] {
        change(&cluster, 1, Change::Remove(id)).await.unwrap();
        cluster.kill(id);
        writers.more(100).await;
    }
    let written = writers.finish().await;
    assert_eq!(roster(&cluster, 1).seats.len(), 1);
    has_all(&cluster, 1, &written).await;
}

#[tokio::test]
async fn a_leader_that_is_removed_hands_over_stops_and_stays_out() {
    let mut cluster = Cluster::start(3, true, patient(Settings::default())).await;
    let leader = cluster.leader(COUNCIL).await;
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != leader).collect();
    held(&cluster, leader, &[1, 2, 3]).await;
    let writers = Strict::start(&cluster, others[0]);
    writers.more(50).await;
    change(&cluster, others[0], Change::Remove(leader)).await.unwrap();
    voters(&cluster, others[0], &others).await;
    writers.more(50).await;
    let supervisor = cluster.processes[&leader].supervisor.clone();
    let failure = wait_for("the end of the removed server", || supervisor.failure()).await;
    assert!(failure.contains("was removed from the cluster"), "{failure}");
    cluster.kill(leader);
    // With its data it hears of it only while it runs; without, at once.
    cluster.boot(leader).await;
    let supervisor = cluster.processes[&leader].supervisor.clone();
    wait_for("the end of the server that came back", || supervisor.failure()).await;
    cluster.kill(leader);
    cluster.wipe(leader);
    let error = cluster.try_boot(leader).await.unwrap_err();
    assert!(
        matches!(error, ConsensusError::Removed { id } if id == leader),
        "{error}"
    );
    let again = change(&cluster, others[0], added(&cluster, leader, false))
        .await
        .unwrap_err();
    assert!(
        matches!(again, ConsensusError::Refused(Refusal::IdUsed { id }) if id == leader),
        "{again}"
    );
    let written = writers.finish().await;
    has_all(&cluster, others[1], &written).await;
}

#[tokio::test]
async fn a_wiped_server_is_refused_also_while_nobody_leads() {
    let mut cluster = Cluster::start(3, false, Settings::default()).await;
    let leader = cluster.leader(COUNCIL).await;
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != leader).collect();
    let (wiped, left) = (others[0], others[1]);
    held(&cluster, left, &[1, 2, 3]).await;
    // No leader has word of anybody's entries now, nor will a new one have at first.
    cluster.kill(leader);
    cluster.kill(wiped);
    cluster.wipe(wiped);
    let error = cluster.try_boot(wiped).await.unwrap_err();
    assert!(
        matches!(error, ConsensusError::DataGone { id, .. } if id == wiped),
        "{error}"
    );
    // While the others are down it starts, but has no part in an election: only the old leader has all entries.
    cluster.kill(left);
    cluster.boot(wiped).await;
    cluster.boot(left).await;
    let supervisor = cluster.processes[&wiped].supervisor.clone();
    let failure = wait_for("the end of the wiped server", || supervisor.failure()).await;
    assert!(failure.contains("must come back under a new id"), "{failure}");
    // It may still take the dead one for the leader; it would lead itself only with the wiped one's vote.
    for group in GROUPS {
        let view = cluster.processes[&left]
            .node
            .leadership(group)
            .unwrap()
            .borrow()
            .clone();
        assert!(
            !view.here,
            "elected by a server without data in group {group}: {view:?}"
        );
    }
    cluster.kill(wiped);
    cluster.boot(leader).await;
    cluster.put(left, "k", "v").await.unwrap();
}

#[tokio::test]
async fn a_change_that_would_cost_the_quorum_is_refused_with_numbers() {
    let mut cluster = Cluster::start(3, false, Settings::default()).await;
    let leader = cluster.leader(COUNCIL).await;
    held(&cluster, leader, &[1, 2, 3]).await;
    let others: Vec<NodeId> = (1..=3).filter(|id| *id != leader).collect();
    let (dead, alive) = (others[0], others[1]);
    cluster.kill(dead);
    cluster.add_machine(4);
    let refused = |error: ConsensusError| match error {
        ConsensusError::Refused(refusal) => refusal,
        other => panic!("{other}"),
    };
    let error = change(&cluster, alive, Change::Remove(alive)).await.unwrap_err();
    let (voters, present, needed) = (2, 1, 2);
    assert_eq!(
        refused(error),
        Refusal::Unreachable {
            voters,
            present,
            needed
        }
    );
    let error = change(&cluster, leader, added(&cluster, 4, false)).await.unwrap_err();
    let (voters, present, needed) = (4, 2, 3);
    assert_eq!(
        refused(error),
        Refusal::Unreachable {
            voters,
            present,
            needed
        }
    );
    let error = change(&cluster, leader, Change::Promote(9)).await.unwrap_err();
    assert_eq!(refused(error), Refusal::NoSuchMember { id: 9 });
    change(&cluster, alive, Change::Remove(dead)).await.unwrap();
    change(&cluster, alive, added(&cluster, 4, true)).await.unwrap();
    let error = change(&cluster, alive, Change::Promote(4)).await.unwrap_err();
    assert_eq!(refused(error), Refusal::Behind { id: 4, behind: None });
    cluster.boot(4).await;
    let deadline = std::time::Instant::now() + SOON;
    while let Err(error) = change(&cluster, alive, Change::Promote(4)).await {
        assert!(matches!(refused(error), Refusal::Behind { .. }));
        assert!(std::time::Instant::now() < deadline, "the learner does not catch up");
    }
    let all: BTreeSet<NodeId> = roster(&cluster, leader).voters;
    assert_eq!(all, BTreeSet::from([leader, alive, 4]));
    cluster.agree().await;
}

/// A leader without other voters gets no answers that would tell it that it leads.
#[tokio::test]
async fn one_server_that_was_idle_takes_a_second_in() {
    let mut cluster = Cluster::start(1, false, Settings::default()).await;
    cluster.put(1, "k", "v").await.unwrap();
    // Longer than a leader that hears of nobody is believed.
    tokio::time::sleep(Settings::default().election_max * 3).await;
    assert!(cluster.store(1, TENANTS).has_leader());
    cluster.add_machine(2);
    change(&cluster, 1, added(&cluster, 2, true)).await.unwrap();
    cluster.boot(2).await;
    assert_eq!(cluster.get(2, "k").await.unwrap().as_deref(), Some("v"));
}

#[tokio::test]
async fn a_learner_that_dies_while_it_is_filled_costs_nothing() {
    let mut cluster = Cluster::start(1, true, patient(eager_snapshots())).await;
    let writers = Strict::start(&cluster, 1);
    writers.more(500).await;
    cluster.add_machine(2);
    change(&cluster, 1, added(&cluster, 2, false)).await.unwrap();
    for _ in 0..3 {
        cluster.boot(2).await;
        let store = cluster.store(2, TENANTS);
        wait_for("the first entries", || (store.revision() > 1).then_some(())).await;
        cluster.kill(2);
        writers.more(100).await;
    }
    cluster.boot(2).await;
    voters(&cluster, 1, &[1, 2]).await;
    let written = writers.finish().await;
    has_all(&cluster, 2, &written).await;
    cluster.agree().await;
}

#[tokio::test]
async fn a_member_that_moved_is_found_where_it_is_now() {
    let mut cluster = Cluster::start(3, true, Settings::default()).await;
    let leader = cluster.leader(COUNCIL).await;
    let moved = (1..=3).find(|id| *id != leader).unwrap();
    cluster.kill(moved);
    let old = cluster.machines.remove(&moved).unwrap();
    cluster.add_machine(moved);
    cluster.machines.get_mut(&moved).unwrap().dir = old.dir;
    let address = cluster.machines[&moved].member.address.clone();
    assert_ne!(address, old.member.address);
    let update = Change::Update {
        id: moved,
        address: address.clone(),
    };
    change(&cluster, leader, update.clone()).await.unwrap();
    // Once more changes nothing.
    change(&cluster, leader, update).await.unwrap();
    cluster.put(leader, "k", "v").await.unwrap();
    cluster.boot(moved).await;
    assert_eq!(cluster.get(moved, "k").await.unwrap().as_deref(), Some("v"));
    assert_eq!(cluster.processes[&leader].node.members()[&moved].address, address);
    cluster.agree().await;
}

/// Three founders and two more, all ways through links.
async fn linked_five() -> Cluster {
    let settings = Settings {
        request_timeout: Duration::from_secs(2),
        ..Settings::default()
    };
    let mut cluster = Cluster::prepare(3, false, settings);
    cluster.add_machine(4);
    cluster.add_machine(5);
    for from in 1..=5 {
        for to in (1..=5).filter(|to| *to != from) {
            let target = cluster.machines[&to].member.address.parse().unwrap();
            cluster.links.insert((from, to), Link::start(target).await);
        }
    }
    for id in 1..=3 {
        cluster.boot(id).await;
    }
    cluster.ready().await;
    cluster.boot(4).await;
    cluster.boot(5).await;
    cluster
}

/// Who led which term, as every server saw it.
type Reigns = Arc<Mutex<BTreeMap<(u32, u64), BTreeSet<NodeId>>>>;

fn watch_reigns(cluster: &Cluster) -> Reigns {
    let reigns = Reigns::default();
    for process in cluster.processes.values() {
        for group in GROUPS {
            let (mut seen, reigns) = (process.node.leadership(group).unwrap(), Arc::clone(&reigns));
            process.spawn(async move {
                loop {
                    let now = seen.borrow_and_update().clone();
                    if let Some(leader) = now.leader {
                        reigns
                            .lock()
                            .unwrap()
                            .entry((group.0, now.term))
                            .or_default()
                            .insert(leader);
                    }
                    if seen.changed().await.is_err() {
                        return;
                    }
                }
            });
        }
    }
    reigns
}

/// A change and a partition of every kind, in an order that the seed fixes. Changes may be refused or run out of time while
/// servers are cut off; what was acknowledged stays, and no term has two leaders.
async fn members_change_while_servers_are_cut_off(seed: u64) {
    let cluster = linked_five().await;
    let reigns = watch_reigns(&cluster);
    // Two founders stay; writes go through them.
    let writers = Writers::start(&cluster, &[1, 2]);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut below = move |n: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let mut next = 4;
    for round in 0..4 {
        let victim = 1 + below(5);
        cluster.isolate(victim, true);
        let now = roster(&cluster, 1);
        let asked = match below(3) {
            0 if next <= 5 => {
                next += 1;
                added(&cluster, next - 1, false)
            }
            1 if now.seats.contains_key(&3) => Change::Remove(3),
            _ if next <= 5 => {
                next += 1;
                added(&cluster, next - 1, false)
            }
            _ => Change::Remove(3),
        };
        let at = 1 + below(2);
        let (asking, healing) = (change(&cluster, at, asked.clone()), async {
            tokio::time::sleep(Duration::from_millis(200 + below(1800))).await;
            cluster.isolate(victim, false);
        });
        let (outcome, ()) = tokio::join!(asking, healing);
        println!("seed {seed}, round {round}: {victim} cut off, {asked:?}: {outcome:?}");
    }
    writers.more(writers.count() + 20).await;
    let (written, _unknown) = writers.finish().await;
    let revisions: BTreeSet<i64> = written.values().copied().collect();
    assert_eq!(
        revisions.len(),
        written.len(),
        "seed {seed}: one revision was given twice"
    );
    let members: Vec<NodeId> = roster(&cluster, 1).seats.keys().copied().collect();
    for id in members {
        has_all(&cluster, id, &written).await;
    }
    for ((group, term), leaders) in reigns.lock().unwrap().iter() {
        assert!(
            leaders.len() == 1,
            "seed {seed}: group {group}, term {term}: {leaders:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_change_during_partitions_and_nothing_acknowledged_is_lost() {
    let given = std::env::var("HANSE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = given.map_or_else(|| vec![1, 2, 3], |seed| vec![seed]);
    for seed in seeds {
        members_change_while_servers_are_cut_off(seed).await;
    }
}
