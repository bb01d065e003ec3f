//! The lease of a scope: which one server may run its controllers.
//!
//! Two objects: the lease itself, written only when the holder changes, whose mod revision is the fencing token; and
//! its renewal, which the holder rewrites every two seconds. Every commit of a controller requires the token, so the
//! store refuses whatever a deposed holder still sends, however late. Timing therefore decides only how soon a lost
//! region is taken over, never who may write.
//!
//! Nobody compares clocks of two machines: a server takes over when it has itself watched neither object change for
//! [`TTL`] of its own monotonic time, and its take-over requires both to be as it saw them.

use std::time::Duration;

use bytes::Bytes;
use hanse_api::kinds::REGION_LEASES;
use hanse_api::meta::{Object, ObjectMeta};
use hanse_api::resources::{RegionLease, RegionLeaseSpec};
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::rng::SharedRng;
use hanse_state::objects::{ObjectError, Objects, Op};

use crate::error::StepError;
use crate::reconciler::encode;
use crate::scope::Scope;
use crate::view::View;

/// A lease that was not renewed for this long, as watched by another server, may be taken over.
pub const TTL: Duration = Duration::from_secs(6);
/// The holder renews this often.
pub const RENEW_EVERY: Duration = Duration::from_secs(2);
/// A holder that could not renew for this long stops its controllers: others may act soon.
pub const STEP_DOWN_AFTER: Duration = Duration::from_secs(5);
/// A server of the region itself takes its lease back after it has been up for this long, so that one that restarts in
/// a loop does not make the lease go to and fro.
pub const SETTLED_AFTER: Duration = Duration::from_secs(4);
/// Servers of other regions take over one after the other, this far apart, so that they do not all try at once.
const STAGGER: Duration = Duration::from_millis(500);
/// Longest such delay.
const STAGGER_MAX: Duration = Duration::from_secs(5);
/// Longest wait for the council to take a lease or a renewal. Two renewals fit between the first that fails and the
/// end.
const COMMIT_LIMIT: Duration = Duration::from_millis(1500);

/// How much this server is meant to hold a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// It is of the region itself.
    Own,
    /// It steps in; lower ranks first.
    StandIn(u32),
}

/// The tenure of this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Fencing token: mod revision of the lease.
    pub token: i64,
    /// Mod revision of the renewal that this server wrote last.
    pub renewal: i64,
    /// When the last successful renewal was begun.
    pub renewed_at: Duration,
}

/// A lease as this server sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Holder (empty: released) and mod revision of the lease.
    pub lease: Option<(String, i64)>,
    /// Mod revision of the renewal, 0 if there is none.
    pub renewal: i64,
    /// Whether the holder is a server of the region itself.
    pub holder_is_own: bool,
    /// When this server first saw this pair of revisions.
    pub unchanged_since: Duration,
    /// When this server began to watch.
    pub watching_since: Duration,
    /// The tenure of this server, if it has one.
    pub held: Option<Held>,
}

/// What to do about a lease now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Take it.
    Acquire,
    /// Show that its holder, this server, lives.
    Renew,
    /// Nothing.
    Wait,
    /// Stop the controllers: the lease is lost, or may be.
    StepDown,
}

/// Decides; pure. All times are of one monotonic clock.
pub fn decide(observed: &Observed, now: Duration, me: &str, prefers: Preference) -> Decision {
    if let Some(held) = observed.held {
        return decide_held(observed, held, now, me);
    }
    let unchanged = now.saturating_sub(observed.unchanged_since);
    let Some((holder, _)) = observed.lease.as_ref().filter(|(holder, _)| !holder.is_empty()) else {
        return match prefers {
            Preference::Own => Decision::Acquire,
            // Nobody ever held it, or its holder let it go: a server of the region goes first.
            Preference::StandIn(rank) => when(unchanged >= STEP_IN_EMPTY + stagger(rank)),
        };
    };
    if holder == me {
        // An earlier life of this server: its controllers are gone, and its token goes with the new one.
        return Decision::Acquire;
    }
    match prefers {
        Preference::Own if !observed.holder_is_own => {
            let up = now.saturating_sub(observed.watching_since);
            when(up >= SETTLED_AFTER || unchanged >= TTL)
        }
        Preference::Own => when(unchanged >= TTL),
        Preference::StandIn(rank) => when(unchanged >= TTL + stagger(rank)),
    }
}

/// How long stand-ins leave an empty lease to the region's own servers.
const STEP_IN_EMPTY: Duration = Duration::from_secs(3);

fn decide_held(observed: &Observed, held: Held, now: Duration, me: &str) -> Decision {
    let still_ours = match &observed.lease {
        // Ours, or the view has not seen our own write yet.
        Some((holder, revision)) => *revision < held.token || *revision == held.token && holder == me,
        None => true,
    };
    let since = now.saturating_sub(held.renewed_at);
    if !still_ours || since >= STEP_DOWN_AFTER {
        return Decision::StepDown;
    }
    if since >= RENEW_EVERY {
        Decision::Renew
    } else {
        Decision::Wait
    }
}

fn when(due: bool) -> Decision {
    if due { Decision::Acquire } else { Decision::Wait }
}

fn stagger(rank: u32) -> Duration {
    STAGGER.saturating_mul(rank).min(STAGGER_MAX)
}

/// How much `me` is meant to hold the lease of `scope`. For the fleet's, the first servers by name go first.
pub fn preference(view: &View, scope: &Scope, me: &str) -> Preference {
    let region = scope.region();
    if region.is_some() && view.region_of_server(me) == region {
        return Preference::Own;
    }
    let others = view
        .servers
        .iter()
        .filter(|(_, s)| Some(s.object.spec.region.as_str()) != region);
    let rank = others.take_while(|(a, _)| a.name != me).count();
    if region.is_none() && rank == 0 {
        return Preference::Own;
    }
    Preference::StandIn(u32::try_from(rank).unwrap_or(u32::MAX))
}

/// Watches one lease from the view: remembers since when it has not changed.
#[derive(Debug)]
pub struct Watcher {
    seen: Observed,
}

impl Watcher {
    /// Begins to watch at `now`.
    pub fn new(now: Duration) -> Self {
        Self {
            seen: Observed {
                watching_since: now,
                unchanged_since: now,
                ..Observed::default()
            },
        }
    }

    /// The lease of `scope` as it is in `view` at `now`.
    pub fn observe(&mut self, view: &View, scope: &Scope, held: Option<Held>, now: Duration) -> Observed {
        let lease = view
            .leases
            .named(scope.lease_name())
            .map(|l| (l.object.spec.holder.clone(), l.revision));
        let renewal = view.leases.named(&scope.renewal_name()).map_or(0, |r| r.revision);
        if lease != self.seen.lease || renewal != self.seen.renewal {
            self.seen.unchanged_since = now;
        }
        self.seen.holder_is_own = match (&lease, scope.region()) {
            (Some((holder, _)), Some(region)) => view.region_of_server(holder) == Some(region),
            // Any server may hold the fleet's lease; there is nobody to hand it back to.
            (Some(_), None) => true,
            (None, _) => false,
        };
        self.seen.lease = lease;
        self.seen.renewal = renewal;
        self.seen.held = held;
        self.seen.clone()
    }
}

/// Writes leases.
#[derive(Clone)]
pub struct LeaseWriter {
    /// The council.
    pub objects: Objects,
    /// Time.
    pub clock: SharedClock,
    /// Randomness, for uids.
    pub rng: SharedRng,
    /// This server.
    pub server: String,
}

impl std::fmt::Debug for LeaseWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseWriter")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl LeaseWriter {
    /// Takes the lease if it and its renewal are still as `observed`.
    pub async fn acquire(&self, scope: &Scope, observed: &Observed) -> Result<Held, StepError> {
        let begun = self.clock.mono();
        let lease = match &observed.lease {
            Some((_, revision)) => Op::Update {
                key: scope.lease_key(),
                value: self.value(scope.lease_name(), &self.server)?,
                expected: *revision,
            },
            None => Op::Create {
                key: scope.lease_key(),
                value: self.value(scope.lease_name(), &self.server)?,
            },
        };
        let renewal = self.value(&scope.renewal_name(), &self.server)?;
        let renewal = if observed.renewal == 0 {
            Op::Create {
                key: scope.renewal_key(),
                value: renewal,
            }
        } else {
            Op::Update {
                key: scope.renewal_key(),
                value: renewal,
                expected: observed.renewal,
            }
        };
        let revision = self.commit(scope, vec![lease, renewal]).await?;
        Ok(Held {
            token: revision,
            renewal: revision,
            renewed_at: begun,
        })
    }

    /// Shows that this server lives.
    pub async fn renew(&self, scope: &Scope, held: Held) -> Result<Held, StepError> {
        let begun = self.clock.mono();
        let require = Op::Require {
            key: scope.lease_key(),
            revision: held.token,
        };
        let value = self.value(&scope.renewal_name(), &self.server)?;
        let touch = Op::Update {
            key: scope.renewal_key(),
            value,
            expected: held.renewal,
        };
        match self.commit(scope, vec![require, touch]).await {
            Ok(revision) => Ok(Held {
                renewal: revision,
                renewed_at: begun,
                ..held
            }),
            // An earlier renewal was made although its answer got lost: go on from what is there.
            Err(StepError::Conflict(_)) => {
                let key = scope.renewal_key();
                match timeout(self.clock.as_ref(), COMMIT_LIMIT, self.objects.get(&key)).await {
                    Ok(Ok(Some(stored))) => Ok(Held {
                        renewal: stored.revision,
                        ..held
                    }),
                    Ok(Ok(None)) => Err(StepError::Fenced(scope.clone())),
                    Ok(Err(error)) => Err(StepError::Council(error)),
                    Err(_) => Err(StepError::Timeout("reading a lease")),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Lets the lease go, so that another server need not wait for it to run out.
    pub async fn release(&self, scope: &Scope, held: Held) -> Result<(), StepError> {
        let value = self.value(scope.lease_name(), "")?;
        let op = Op::Update {
            key: scope.lease_key(),
            value,
            expected: held.token,
        };
        self.commit(scope, vec![op]).await.map(|_| ())
    }

    async fn commit(&self, scope: &Scope, ops: Vec<Op>) -> Result<i64, StepError> {
        match timeout(self.clock.as_ref(), COMMIT_LIMIT, self.objects.commit(ops)).await {
            Ok(Ok(revision)) => Ok(revision),
            Ok(Err(ObjectError::Failed { index: 0, .. })) => Err(StepError::Fenced(scope.clone())),
            Ok(Err(ObjectError::Failed { .. })) => Err(StepError::Conflict(format!("the lease of {scope}"))),
            Ok(Err(error)) => Err(StepError::Council(error)),
            Err(_) => Err(StepError::Timeout("writing a lease")),
        }
    }

    fn value(&self, name: &str, holder: &str) -> Result<Bytes, StepError> {
        let now = self.clock.wall();
        let lease: RegionLease = Object {
            api_version: REGION_LEASES.api_version(),
            kind: REGION_LEASES.kind.to_owned(),
            metadata: ObjectMeta {
                name: name.to_owned(),
                uid: self.rng.uuid(),
                creation_timestamp: Some(now),
                ..ObjectMeta::default()
            },
            spec: RegionLeaseSpec {
                holder: holder.to_owned(),
            },
            status: (),
        };
        encode(&lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const ME: &str = "eu-1";
    const OWN: Preference = Preference::Own;
    const fn stand_in(rank: u32) -> Preference {
        Preference::StandIn(rank)
    }

    fn seen(holder: Option<&str>, own: bool, unchanged_since: u64) -> Observed {
        Observed {
            lease: holder.map(|h| (h.to_owned(), 10)),
            renewal: 11,
            holder_is_own: own,
            unchanged_since: ms(unchanged_since),
            ..Observed::default()
        }
    }

    fn check(case: &str, observed: Observed, now: u64, prefers: Preference, expected: Decision) {
        assert_eq!(decide(&observed, ms(now), ME, prefers), expected, "{case}");
    }

    #[test]
    fn an_empty_lease_goes_to_the_regions_own_server_first() {
        use Decision::{Acquire, Wait};
        check("own at once", seen(None, false, 0), 0, OWN, Acquire);
        check(
            "others wait for the own server",
            seen(None, false, 0),
            2999,
            stand_in(0),
            Wait,
        );
        check("others step in then", seen(None, false, 0), 3000, stand_in(0), Acquire);
        check("a released lease is free", seen(Some(""), false, 0), 0, OWN, Acquire);
        check(
            "others one after the other",
            seen(Some(""), false, 0),
            3000,
            stand_in(1),
            Wait,
        );
        check(
            "the second of them",
            seen(Some(""), false, 0),
            3500,
            stand_in(1),
            Acquire,
        );
    }

    #[test]
    fn a_lease_is_taken_over_when_it_was_not_renewed() {
        use Decision::{Acquire, Wait};
        check(
            "renewed: left alone",
            seen(Some("us-1"), true, 1000),
            6999,
            stand_in(0),
            Wait,
        );
        check("expired", seen(Some("us-1"), true, 1000), 7000, stand_in(0), Acquire);
        check(
            "staggered by rank",
            seen(Some("us-1"), true, 1000),
            7499,
            stand_in(1),
            Wait,
        );
        check(
            "stagger is bounded",
            seen(Some("us-1"), true, 0),
            11_000,
            stand_in(1000),
            Acquire,
        );
        check(
            "own, settled: back from a stand-in",
            seen(Some("us-1"), false, 3900),
            4000,
            OWN,
            Acquire,
        );
        check(
            "own, just up: not yet",
            seen(Some("us-1"), false, 3900),
            3999,
            OWN,
            Wait,
        );
        check(
            "own, of two: no hand-over among equals",
            seen(Some("eu-2"), true, 3900),
            9000,
            OWN,
            Wait,
        );
        check(
            "own, of two: the other is dead",
            seen(Some("eu-2"), true, 0),
            6000,
            OWN,
            Acquire,
        );
        check(
            "a restarted holder starts a new tenure",
            seen(Some(ME), true, 0),
            1,
            stand_in(3),
            Acquire,
        );
    }

    #[test]
    fn who_holds_it() {
        use Decision::{Renew, StepDown, Wait};
        let held = Held {
            token: 10,
            renewal: 11,
            renewed_at: ms(1000),
        };
        let with = |lease: Option<(&str, i64)>| Observed {
            lease: lease.map(|(h, r)| (h.to_owned(), r)),
            held: Some(held),
            ..Observed::default()
        };
        for (case, observed, now, expected) in [
            ("fresh", with(Some((ME, 10))), 2999, Wait),
            ("due", with(Some((ME, 10))), 3000, Renew),
            ("could not renew", with(Some((ME, 10))), 6000, StepDown),
            ("another took it", with(Some(("us-1", 20))), 1500, StepDown),
            (
                "an own later tenure that this one does not know of",
                with(Some((ME, 20))),
                1500,
                StepDown,
            ),
            ("the view is behind our own write", with(Some(("us-1", 5))), 1500, Wait),
            ("the view has nothing yet", with(None), 1500, Wait),
        ] {
            assert_eq!(decide(&observed, ms(now), ME, OWN), expected, "{case}");
        }
    }

    #[test]
    fn a_holder_stops_before_others_may_take_over() {
        assert!(STEP_DOWN_AFTER < TTL);
        assert!(RENEW_EVERY * 2 < STEP_DOWN_AFTER);
    }
}
