//! A tenant with many writes beside one with few.

use crate::TENANTS;
use crate::harness::*;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hanse_consensus::{ReplicatedStore, Settings, fair};
use hanse_state::{Access, Store as _, StoreError};
use std::future::poll_fn;
use std::task::Poll;

/// All of them wait for the log at once. With [`LINE`] they are fewer than a line takes.
const NOISE: usize = 5_000;
/// As many in the line are more than the writes that one which comes last may have to wait for.
const LINE: usize = 3_000;

/// One figure of a store, by its name.
fn figure(store: &ReplicatedStore, name: &str) -> f64 {
    let text = hanse_runtime::meter::text(&store.families());
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap().trim().parse().unwrap()
}

/// One that comes last has to wait for what is in the log's hands already, not for the whole line of another.
#[tokio::test]
async fn a_single_write_overtakes_the_line_of_another_space() {
    let cluster = Cluster::start(1, false, Settings::default()).await;
    let store = cluster.store(1, TENANTS);
    let (noisy, quiet) = (Access::tenant("noisy"), Access::tenant("quiet"));
    let mut noise = FuturesUnordered::new();
    let mut sent = 0;
    // As many as it takes for a line, however fast the log is meanwhile.
    while figure(&store, "hanse_store_writes_waiting") < LINE as f64 {
        assert!(sent < 20 * NOISE, "no line forms");
        let more = (sent..sent + NOISE).map(|n| store.txn(&noisy, put(&format!("k{n}"), "v")));
        let mut more: Vec<_> = more.collect();
        // Every one of them takes its place in the line: the runtime must not end the poll early.
        let once = poll_fn(|cx| {
            more.retain_mut(|write| match write.as_mut().poll(cx) {
                Poll::Ready(done) => done.map(|_| false).unwrap(),
                Poll::Pending => true,
            });
            Poll::Ready(())
        });
        tokio::task::unconstrained(once).await;
        noise.extend(more);
        sent += NOISE;
    }
    let mut single = std::pin::pin!(store.txn(&quiet, put("k", "v")));
    let mut before = 0;
    loop {
        tokio::select! {
            biased;
            done = &mut single => {
                done.unwrap();
                break;
            }
            done = noise.next() => {
                done.expect("the single write is done before the noise").unwrap();
                before += 1;
            }
        }
    }
    let fair::Limits { window, share, .. } = fair::Limits::default();
    assert!(before <= 2 * window + share, "{before} of {sent} writes went before it");
    while let Some(done) = noise.next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_space_with_too_many_writes_is_told_so_and_no_other() {
    let settings = Settings {
        turns: fair::Limits {
            line: 100,
            ..fair::Limits::default()
        },
        ..Settings::default()
    };
    let cluster = Cluster::start(1, false, settings).await;
    let store = cluster.store(1, TENANTS);
    let (noisy, quiet) = (Access::tenant("noisy"), Access::tenant("quiet"));
    let writes = (0..3_000).map(|n| store.txn(&noisy, put(&format!("k{n}"), "v")));
    let single = store.txn(&quiet, put("k", "v"));
    let (answers, single) = tokio::join!(futures::future::join_all(writes), single);
    single.unwrap();
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(refused.len() >= 1_500, "{} refused", refused.len());
    for error in refused {
        assert_eq!(error.status().message(), "etcdserver: too many requests");
    }
}

/// Who gives up at once has no more writes under way than who waits: the log has them all the same.
#[tokio::test]
async fn writes_that_nobody_waits_for_keep_their_turns() {
    let mut cluster = Cluster::start(3, false, Settings::default()).await;
    let leader = cluster.leader(TENANTS).await;
    let store = cluster.store(leader, TENANTS);
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.kill(id);
    }
    let noisy = Access::tenant("noisy");
    let mut writes: Vec<_> = (0..NOISE)
        .map(|n| store.txn(&noisy, put(&format!("k{n}"), "v")))
        .collect();
    let once = poll_fn(|cx| {
        for write in &mut writes {
            assert!(
                write.as_mut().poll(cx).is_pending(),
                "nothing is committed without a majority"
            );
        }
        Poll::Ready(())
    });
    tokio::task::unconstrained(once).await;
    let window = fair::Limits::default().window as f64;
    assert!(figure(&store, "hanse_store_writes_under_way") >= window);
    drop(writes);
    assert!(
        figure(&store, "hanse_store_writes_under_way") >= window,
        "they are given up, not gone"
    );
    wait_for("the end of the abandoned writes", || {
        let left = figure(&store, "hanse_store_writes_under_way") + figure(&store, "hanse_store_writes_waiting");
        (left < 1.0).then_some(())
    })
    .await;
    let more = store.txn(&noisy, put("k", "v")).await;
    assert!(
        !matches!(more, Ok(_) | Err(StoreError::Overloaded)),
        "not refused for want of a turn: {more:?}"
    );
}

/// A fence must not wait behind the writes that it is to end.
#[tokio::test]
async fn what_is_done_about_a_tenant_does_not_wait_for_its_turn() {
    let settings = Settings {
        turns: fair::Limits {
            window: 2,
            share: 1,
            line: 1,
            ..fair::Limits::default()
        },
        ..Settings::default()
    };
    let cluster = Cluster::start(1, false, settings).await;
    let store = cluster.store(1, TENANTS);
    let noisy = Access::tenant("noisy").with_epoch(1);
    // All under way, and the line is full; nobody looks after them.
    let mut writes: Vec<_> = (0..10)
        .map(|n| Box::pin(store.txn(&noisy, put(&format!("k{n}"), "v"))))
        .collect();
    let refused = writes
        .iter_mut()
        .filter_map(|write| futures::FutureExt::now_or_never(write.as_mut()))
        .filter(|answer| matches!(answer, Err(StoreError::Overloaded)))
        .count();
    // Two under way and one in the line; the log may have ended some of them meanwhile.
    assert!((1..=7).contains(&refused), "{refused} refused");
    store.set_fence("noisy", 2).await.unwrap();
    drop(writes);
    // One that gave up in the line leaves it when its turn has come.
    wait_for("an empty line", || {
        (figure(&store, "hanse_store_writes_waiting") < 1.0).then_some(())
    })
    .await;
    let late = store.txn(&noisy, put("k", "v")).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })), "{late:?}");
}
