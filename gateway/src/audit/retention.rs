//! Takes the oldest events out of the trail, by number and age, and keeps what the chain goes on from: the anchor says the
//! number and hash of the last event that went, so what is left can be verified.
//!
//! Every server does it for the group that it leads; a transaction that somebody else came before changes nothing. What a sink
//! was not given yet stays for longer, but the trail never has more than [`HELD`] times the events.

use super::settings::AuditKept;
use super::sinks::Cursor;
use hanse_api::Timestamp;
use hanse_api::audit::{ANCHOR, HEAD, Head, Link};
use hanse_api::kinds::{AUDIT_CHAINS, AUDIT_EVENTS};
use hanse_runtime::BoxError;
use hanse_runtime::clock::SharedClock;
use hanse_state::Role;
use hanse_state::objects::{ObjectError, ObjectKey, Objects, Op, Page, Stored};
use serde::Deserialize as _;
use serde_json::Value;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(60);
/// Events that one transaction takes out.
const AT_ONCE: i64 = 100;

/// How many times the events that are kept there may be while a sink does not take them.
const HELD: u64 = 2;

/// How many of the oldest events go: those beyond the number and those beyond the age, as far as all sinks have them
/// (`delivered`). Pure.
fn surplus(oldest: &[Link], total: u64, delivered: u64, kept: &AuditKept, now: Timestamp) -> usize {
    let beyond = |most: u64| usize::try_from(total.saturating_sub(most)).unwrap_or(usize::MAX);
    let too_old = |link: &&Link| now.since(Timestamp::from_millis(link.at)) > kept.age;
    let old = oldest.iter().take_while(too_old).count();
    let free = oldest.iter().take_while(|link| link.sequence <= delivered).count();
    let may = beyond(kept.events).max(old).min(free);
    may.max(beyond(kept.events.saturating_mul(HELD))).min(oldest.len())
}

/// Looks until `stop`.
pub(crate) async fn run(
    objects: Objects,
    clock: SharedClock,
    kept: AuditKept,
    sinks: Vec<String>,
    stop: CancellationToken,
) -> Result<(), BoxError> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = clock.sleep(PAUSE) => {}
        }
        if objects.store().status().role != Role::Leader {
            continue;
        }
        while !stop.is_cancelled() {
            match trim(&objects, &kept, &sinks, clock.wall()).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "old audit events cannot be taken out now");
                    break;
                }
            }
        }
    }
}

/// Number of the last event that all of `sinks` have.
async fn delivered(objects: &Objects, sinks: &[String]) -> Result<u64, ObjectError> {
    let mut all = u64::MAX;
    for sink in sinks {
        all = all.min(Cursor::read(objects, sink).await?.sequence);
    }
    Ok(all)
}

/// Takes out some; answers how many.
async fn trim(objects: &Objects, kept: &AuditKept, sinks: &[String], now: Timestamp) -> Result<usize, ObjectError> {
    let chain = |name: &str| ObjectKey::new(&AUDIT_CHAINS, "", name);
    let anchor = objects.get(&chain(ANCHOR)).await?;
    let place = |stored: &Option<Stored>| stored.as_ref().and_then(|stored| Head::of_object(&stored.value));
    let Some(head) = place(&objects.get(&chain(HEAD)).await?) else {
        return Ok(0);
    };
    let begin = place(&anchor).map_or(0, |anchor| anchor.sequence);
    let page = Page {
        limit: AT_ONCE,
        ..Page::default()
    };
    let oldest = objects.list(&AUDIT_EVENTS, None, page).await?.items;
    let links: Vec<Link> = oldest.iter().map_while(link).collect();
    let total = head.sequence.saturating_sub(begin);
    let surplus = surplus(&links, total, delivered(objects, sinks).await?, kept, now);
    let Some(last) = surplus.checked_sub(1).and_then(|last| links.get(last)) else {
        return Ok(0);
    };
    let (key, value) = (chain(ANCHOR), last.head().object(ANCHOR).into());
    let mut ops = vec![match anchor {
        None => Op::Create { key, value },
        Some(anchor) => Op::Update {
            key,
            value,
            expected: anchor.revision,
        },
    }];
    ops.extend(oldest.iter().take(surplus).map(|stored| Op::Delete {
        key: ObjectKey::new(&AUDIT_EVENTS, "", &stored.name),
        expected: stored.revision,
    }));
    match objects.commit(ops).await {
        Ok(_) => Ok(surplus),
        // Another server was there before.
        Err(ObjectError::Failed { .. }) => Ok(0),
        Err(error) => Err(error),
    }
}

fn link(stored: &Stored) -> Option<Link> {
    let object: Value = serde_json::from_slice(&stored.value).ok()?;
    Link::deserialize(&object["spec"]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::testing;
    use hanse_api::audit::Verifier;
    use hanse_runtime::clock::{Clock as _, SystemClock};
    use hanse_runtime::pki::sha256_hex;

    #[test]
    fn what_is_beyond_number_or_age_goes_and_no_more() {
        let links: Vec<Link> = (1_i64..=10)
            .map(|n| Link {
                at: n * 1000,
                group: 0,
                hash: String::new(),
                previous: String::new(),
                revision: n,
                sequence: n.unsigned_abs(),
            })
            .collect();
        let kept = |events: u64, seconds: u64| AuditKept {
            events,
            age: Duration::from_secs(seconds),
        };
        let now = Timestamp::from_millis(11_000);
        let all = u64::MAX;
        assert_eq!(surplus(&links, 10, all, &kept(100, 100), now), 0);
        assert_eq!(surplus(&links, 10, all, &kept(7, 100), now), 3);
        assert_eq!(surplus(&links, 10, all, &kept(100, 6), now), 4);
        assert_eq!(surplus(&links, 10, all, &kept(7, 6), now), 4);
        assert_eq!(
            surplus(&links, 1000, all, &kept(7, 100), now),
            10,
            "no more than were read"
        );
        assert_eq!(surplus(&[], 0, all, &kept(0, 0), now), 0);
        // What a sink does not have stays, but not for ever.
        assert_eq!(surplus(&links, 10, 2, &kept(7, 6), now), 2);
        assert_eq!(surplus(&links, 10, 0, &kept(7, 6), now), 0);
        assert_eq!(surplus(&links, 10, 0, &kept(4, 6), now), 2);
        assert_eq!(surplus(&links, 10, 1, &kept(4, 6), now), 2);
    }

    #[tokio::test]
    async fn a_trail_that_was_trimmed_still_holds() {
        let objects = testing::objects();
        for batch in 0..5 {
            let events = (0..50).map(|n| format!(r#"{{"auditID":"{batch}-{n}"}}"#)).collect();
            objects.record(events).await.unwrap();
        }
        let kept = AuditKept {
            events: 30,
            age: Duration::from_secs(1_000_000),
        };
        let now = SystemClock::new().wall();
        let mut taken = Vec::new();
        assert_eq!(
            trim(&objects, &kept, &["slow".to_owned()], now).await.unwrap(),
            100,
            "beyond what is held"
        );
        loop {
            match trim(&objects, &kept, &[], now).await.unwrap() {
                0 => break,
                some => taken.push(some),
            }
        }
        assert_eq!(taken, [100, 20]);
        let place = async |name: &str| {
            let stored = objects.get(&ObjectKey::new(&AUDIT_CHAINS, "", name)).await.unwrap();
            Head::of_object(&stored.unwrap().value).unwrap()
        };
        let (anchor, head) = (place(ANCHOR).await, place(HEAD).await);
        assert_eq!((anchor.sequence, head.sequence), (220, 250));
        let mut verifier = Verifier::new(Some(anchor), sha256_hex);
        for stored in objects.list(&AUDIT_EVENTS, None, Page::default()).await.unwrap().items {
            verifier
                .object(&serde_json::from_slice(&stored.value).unwrap())
                .unwrap();
        }
        assert_eq!(verifier.finish(&head), Ok(()));
        assert_eq!(verifier.count(), 30);
    }
}
