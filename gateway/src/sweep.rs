//! Takes away what is over: access keys, tokens and logins that have been refused by their own end for a while. Nothing depends
//! on it but the room that they take; so it is slow, and a look that fails is made up for by the next one.
//!
//! The leader of the council does it, a few objects in each transaction. Whatever was changed since it was read stays.

use hanse_api::Timestamp;
use hanse_api::kinds::{ACCESS_KEYS, ENROLMENT_TOKENS, JOIN_TOKENS, KindName, LOGIN_GRANTS, OIDC_GRANTS, SPENT_LOGINS};
use hanse_runtime::BoxError;
use hanse_runtime::clock::SharedClock;
use hanse_state::Role;
use hanse_state::objects::{ObjectError, ObjectKey, Objects, Op, Page, Stored};
use serde::Deserialize;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks at who leads.
const TICK: Duration = Duration::from_secs(30);
/// Between two looks at everything.
const PAUSE: Duration = Duration::from_secs(600);
/// Objects that are read at once, and at most taken away by one transaction.
const AT_ONCE: i64 = 100;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What ends by itself, and for how long it is kept after that: what people have in their hands is kept for a day, so that
/// they see that it ended, and when.
const ENDING: [(KindName, Duration); 6] = [
    (ACCESS_KEYS, DAY),
    (ENROLMENT_TOKENS, DAY),
    (JOIN_TOKENS, DAY),
    (LOGIN_GRANTS, Duration::ZERO),
    (SPENT_LOGINS, Duration::ZERO),
    (OIDC_GRANTS, Duration::ZERO),
];

/// As much as has to be known of an object.
#[derive(Deserialize)]
struct Ends {
    spec: End,
}

#[derive(Deserialize)]
struct End {
    #[serde(default)]
    expires: Option<Timestamp>,
}

/// Whether a stored object has been over for more than `kept`. One that cannot be read, or has no end, never is.
fn is_over(value: &[u8], kept: Duration, now: Timestamp) -> bool {
    let ends = serde_json::from_slice::<Ends>(value).ok().and_then(|o| o.spec.expires);
    ends.is_some_and(|end| end.plus(kept) < now)
}

/// Looks until `stop`.
pub(crate) async fn run(objects: Objects, clock: SharedClock, stop: CancellationToken) -> Result<(), BoxError> {
    let mut last: Option<Duration> = None;
    loop {
        let due = last.is_none_or(|last| clock.mono().saturating_sub(last) >= PAUSE);
        if due && objects.store().status().role == Role::Leader {
            last = Some(clock.mono());
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sweep(&objects, clock.wall()) => {}
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = clock.sleep(TICK) => {}
        }
    }
}

async fn sweep(objects: &Objects, now: Timestamp) {
    for (kind, kept) in &ENDING {
        match sweep_kind(objects, kind, *kept, now).await {
            Ok(0) => {}
            Ok(gone) => tracing::info!(kind = kind.plural, gone, "what was over was taken away"),
            Err(error) => tracing::warn!(kind = kind.plural, %error, "what is over cannot be taken away now"),
        }
    }
}

/// Takes away what is over of one kind; answers how much.
async fn sweep_kind(objects: &Objects, kind: &KindName, kept: Duration, now: Timestamp) -> Result<usize, ObjectError> {
    let mut gone = 0;
    let mut page = Page {
        limit: AT_ONCE,
        ..Page::default()
    };
    loop {
        let list = objects.list(kind, None, page.clone()).await?;
        let delete = |stored: &Stored| Op::Delete {
            key: ObjectKey::new(kind, stored.namespace.as_str(), stored.name.as_str()),
            expected: stored.revision,
        };
        let over = list.items.iter().filter(|stored| is_over(&stored.value, kept, now));
        let ops: Vec<Op> = over.map(delete).collect();
        let count = ops.len();
        if count > 0 {
            match objects.commit(ops).await {
                Ok(_) => gone += count,
                // One of them was changed, or taken away by whoever used it: the next look finds the others.
                Err(ObjectError::Failed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let Some(next) = list.next_page(page) else {
            return Ok(gone);
        };
        page = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_been_over_for_long_enough_goes() {
        let day = Timestamp::from_millis(24 * 3600 * 1000);
        let ends = |end: &str| format!("{{\"spec\":{{\"expires\":{end}}}}}");
        let over = |object: &str, kept| is_over(object.as_bytes(), kept, day);
        let (midnight, noon) = (ends("\"1970-01-01T00:00:00Z\""), ends("\"1970-01-01T12:00:00Z\""));
        assert!(over(&midnight, Duration::ZERO) && over(&noon, Duration::ZERO));
        assert!(!over(&midnight, DAY), "not a moment before the day is full");
        assert!(over(&midnight, DAY - Duration::from_millis(1)) && !over(&noon, DAY));
        let later = ends("\"1970-01-02T00:00:00Z\"");
        for never in [
            later.as_str(),
            &ends("null"),
            "{\"spec\":{}}",
            "{}",
            "",
            &ends("\"soon\""),
        ] {
            assert!(!over(never, Duration::ZERO), "{never}");
        }
    }
}
