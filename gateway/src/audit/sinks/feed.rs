//! Gives a sink the trail, from where it stands to the end, and again when there is more.
//!
//! Every server has the task; the one that leads the group works. What a sink was given is kept in the store, as the number of
//! the last event, and is moved on only after the sink has taken everything up to there. So whoever leads next goes on from
//! there: nothing is left out, what was under way may be given twice, and of what comes for the first time the order is that of
//! the numbers. A server that does not know yet that it leads no more can only repeat: moving the cursor requires the revision
//! at which it was read.

use super::{DELIVERY, Way};
use hanse_api::Timestamp;
use hanse_api::audit::{Link, export, name};
use hanse_api::kinds::{AUDIT_EVENTS, AUDIT_SINKS};
use hanse_runtime::BoxError;
use hanse_runtime::backoff::Backoff;
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::rng::SharedRng;
use hanse_runtime::telemetry::Metrics;
use hanse_state::Role;
use hanse_state::objects::{ObjectError, ObjectKey, Objects, Op, Page, Stored};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde::Deserialize as _;
use serde_json::{Value, json};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks at the trail when there was nothing more.
const POLL: Duration = Duration::from_secs(1);
/// Between two tries when something failed: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Events of one delivery.
const MAX_BATCH: usize = 400;
/// Bytes of the events of one delivery. A web server often takes no more than 1 MiB.
const MAX_BATCH_BYTES: usize = 512 * 1024;
/// Time for an access to the store.
const STORE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    sink: String,
}

/// Metrics of all sinks.
#[derive(Default)]
pub(super) struct Meters {
    delivered: Family<Of, Counter>,
    failures: Family<Of, Counter>,
    lost: Family<Of, Counter>,
    lag_events: Family<Of, Gauge>,
    lag_seconds: Family<Of, Gauge>,
}

/// Metrics of one sink.
pub(super) struct SinkMeters {
    delivered: Counter,
    failures: Counter,
    lost: Counter,
    lag_events: Gauge,
    lag_seconds: Gauge,
}

impl Meters {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let meters = Self::default();
        metrics.register("audit_sink", |r| {
            r.register("events", "Events that the sink has taken", meters.delivered.clone());
            r.register(
                "failures",
                "Deliveries that failed and are tried again",
                meters.failures.clone(),
            );
            let lost = "Events that the trail did not hold any more when it was their turn";
            r.register("lost", lost, meters.lost.clone());
            let lag = "Events that the sink does not have yet; 0 on servers that do not lead";
            r.register("lag_events", lag, meters.lag_events.clone());
            let lag = "Age of the oldest event that the sink does not have yet; 0 on servers that do not lead";
            r.register("lag_seconds", lag, meters.lag_seconds.clone());
        });
        meters
    }

    pub(super) fn of(&self, sink: &str) -> SinkMeters {
        let of = Of { sink: sink.to_owned() };
        SinkMeters {
            delivered: self.delivered.get_or_create(&of).clone(),
            failures: self.failures.get_or_create(&of).clone(),
            lost: self.lost.get_or_create(&of).clone(),
            lag_events: self.lag_events.get_or_create(&of).clone(),
            lag_seconds: self.lag_seconds.get_or_create(&of).clone(),
        }
    }
}

impl SinkMeters {
    fn lag(&self, events: i64, age: Duration) {
        self.lag_events.set(events);
        self.lag_seconds.set(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
    }
}

/// How far a sink is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Number of the last event that it has; 0 before the first.
    pub(crate) sequence: u64,
    /// Revision of the object that says so; 0: there is none.
    revision: i64,
}

impl Cursor {
    fn key(sink: &str) -> ObjectKey {
        ObjectKey::new(&AUDIT_SINKS, "", sink)
    }

    /// As the store has it.
    pub(crate) async fn read(objects: &Objects, sink: &str) -> Result<Self, ObjectError> {
        let stored = objects.get(&Self::key(sink)).await?;
        let of = |stored: Stored| Self {
            sequence: serde_json::from_slice::<Value>(&stored.value)
                .ok()
                .and_then(|object| object["spec"]["sequence"].as_u64())
                .unwrap_or_default(),
            revision: stored.revision,
        };
        Ok(stored.map_or(
            Self {
                sequence: 0,
                revision: 0,
            },
            of,
        ))
    }

    /// Moves it to `sequence`, if nobody else moved it.
    async fn advance(self, objects: &Objects, sink: &str, sequence: u64) -> Result<Self, ObjectError> {
        let key = Self::key(sink);
        let object = json!({
            "apiVersion": AUDIT_SINKS.api_version(),
            "kind": AUDIT_SINKS.kind,
            "metadata": { "name": sink },
            "spec": { "sequence": sequence },
        });
        let value = object.to_string().into();
        let op = match self.revision {
            0 => Op::Create { key, value },
            expected => Op::Update { key, value, expected },
        };
        let revision = objects.commit(vec![op]).await?;
        Ok(Self { sequence, revision })
    }
}

/// What is given at once.
struct Batch {
    events: Vec<Value>,
    /// Number of the last of them.
    last: u64,
    /// When the first of them happened.
    first_at: Timestamp,
    /// Events that should have been there and are not.
    missing: u64,
}

impl Batch {
    /// The first of what follows the cursor, as much as may be given at once; none when nothing does. Pure.
    fn of(items: &[Stored], cursor: Cursor) -> Option<Self> {
        let mut batch: Option<Self> = None;
        let mut bytes = 0;
        // A sink that was never given anything misses nothing that went before it was there.
        let mut expected = (cursor.revision != 0).then(|| cursor.sequence.saturating_add(1));
        for stored in items.iter().take(MAX_BATCH) {
            bytes += stored.value.len();
            if bytes > MAX_BATCH_BYTES && batch.is_some() {
                break;
            }
            let object: Value = serde_json::from_slice(&stored.value).unwrap_or_default();
            // What is no event cannot be given to anybody; its number is missing then.
            let Ok(link) = Link::deserialize(&object["spec"]) else {
                continue;
            };
            let at = Timestamp::from_millis(link.at);
            let batch = batch.get_or_insert_with(|| Self::from(at));
            batch.missing += link.sequence.saturating_sub(expected.unwrap_or(link.sequence));
            batch.events.push(export(&object));
            batch.last = link.sequence;
            expected = Some(link.sequence.saturating_add(1));
        }
        batch
    }

    fn from(first_at: Timestamp) -> Self {
        Self {
            events: Vec::new(),
            last: 0,
            first_at,
            missing: 0,
        }
    }
}

/// What a look at the trail brought.
enum Looked {
    /// Nothing more is there now.
    AtEnd,
    /// There may be more.
    Gave,
}

/// What feeding a sink takes.
pub(super) struct Feed {
    pub(super) objects: Objects,
    pub(super) clock: SharedClock,
    pub(super) rng: SharedRng,
    pub(super) name: String,
    pub(super) meters: SinkMeters,
}

impl Feed {
    /// Feeds the sink until `stop`, whenever this server leads. `way` makes a way to it.
    pub(super) async fn run(
        self,
        way: impl Fn() -> Box<dyn Way> + Send,
        stop: CancellationToken,
    ) -> Result<(), BoxError> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let (mut there, mut cursor) = (way(), None);
        loop {
            let looked = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                looked = self.look(there.as_mut(), &mut cursor) => looked,
            };
            let pause = match looked {
                Ok(Looked::Gave) => {
                    backoff.reset();
                    Duration::ZERO
                }
                Ok(Looked::AtEnd) => {
                    backoff.reset();
                    if cursor.is_none() {
                        there = way();
                    }
                    POLL
                }
                Err(fault) => {
                    self.meters.failures.inc();
                    (there, cursor) = (way(), None);
                    let pause = backoff.next(self.rng.as_ref());
                    tracing::warn!(
                        sink = self.name,
                        fault,
                        ?pause,
                        "an audit sink takes no events; they wait"
                    );
                    pause
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.clock.sleep(pause) => {}
            }
        }
    }

    /// Gives the sink what comes next. Without leadership there is no cursor.
    async fn look(&self, way: &mut dyn Way, cursor: &mut Option<Cursor>) -> Result<Looked, String> {
        if self.objects.store().status().role != Role::Leader {
            *cursor = None;
            self.meters.lag(0, Duration::ZERO);
            return Ok(Looked::AtEnd);
        }
        let from = match *cursor {
            Some(cursor) => cursor,
            None => *cursor.insert(self.store(Cursor::read(&self.objects, &self.name)).await?),
        };
        let page = Page {
            limit: i64::try_from(MAX_BATCH).unwrap_or(i64::MAX),
            after: Some((String::new(), name(from.sequence))),
            local: true,
            ..Page::default()
        };
        let list = self.store(self.objects.list(&AUDIT_EVENTS, None, page)).await?;
        let Some(batch) = Batch::of(&list.items, from) else {
            self.meters.lag(0, Duration::ZERO);
            return Ok(Looked::AtEnd);
        };
        let waiting = i64::try_from(list.items.len()).unwrap_or(i64::MAX);
        let age = self.clock.wall().since(batch.first_at);
        self.meters.lag(waiting.saturating_add(list.remaining), age);
        match timeout(self.clock.as_ref(), DELIVERY, way.deliver(&batch.events)).await {
            Ok(delivered) => delivered?,
            Err(_) => return Err(format!("it did not take them within {} s", DELIVERY.as_secs())),
        }
        let moved = from.advance(&self.objects, &self.name, batch.last);
        *cursor = Some(self.store(moved).await?);
        self.meters.delivered.inc_by(batch.events.len() as u64);
        if batch.missing > 0 {
            self.meters.lost.inc_by(batch.missing);
            let (sink, events) = (&self.name, batch.missing);
            tracing::error!(
                sink,
                events,
                "an audit sink was away for longer than the trail is kept: it misses events"
            );
        }
        Ok(Looked::Gave)
    }

    async fn store<T>(&self, access: impl Future<Output = Result<T, ObjectError>>) -> Result<T, String> {
        match timeout(self.clock.as_ref(), STORE, access).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(ObjectError::Failed { .. })) => Err("another server feeds it as well".to_owned()),
            Ok(Err(error)) => Err(format!("the store: {error}")),
            Err(_) => Err(format!("the store did not answer within {} s", STORE.as_secs())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_api::audit::Head;

    /// Events `from` to `to` of a trail as they are stored, each with `more` bytes.
    fn stored(from: u64, to: u64, more: usize) -> Vec<Stored> {
        let event = json!({ "more": "x".repeat(more) }).to_string();
        let mut head = Head::start(0);
        let mut items = Vec::new();
        for sequence in 1..=to {
            let link = head.chain(10, i64::try_from(sequence).unwrap() * 1000, &event, |_| String::new());
            head = link.head();
            items.push(Stored {
                namespace: String::new(),
                name: link.name(),
                value: link.object(&event).into(),
                revision: 10,
                created: 10,
            });
        }
        items.split_off(usize::try_from(from).unwrap() - 1)
    }

    fn at(sequence: u64, revision: i64) -> Cursor {
        Cursor { sequence, revision }
    }

    #[test]
    fn a_batch_is_what_comes_next_and_is_bounded() {
        assert!(Batch::of(&[], at(0, 0)).is_none());
        let all = stored(3, 9, 0);
        let batch = Batch::of(&all, at(2, 5)).unwrap();
        assert_eq!((batch.events.len(), batch.last, batch.missing), (7, 9, 0));
        assert_eq!(batch.first_at, Timestamp::from_millis(3000));
        assert_eq!(batch.events[0]["annotations"]["audit.hanse.dev/sequence"], "3");
        let large = stored(1, 9, MAX_BATCH_BYTES / 3);
        let batch = Batch::of(&large, at(0, 0)).unwrap();
        assert_eq!((batch.events.len(), batch.last), (2, 2));
        let huge = stored(1, 2, MAX_BATCH_BYTES * 2);
        let batch = Batch::of(&huge, at(0, 0)).unwrap();
        assert_eq!(batch.last, 1, "one is always given");
    }

    #[test]
    fn what_went_before_its_turn_is_counted() {
        let missing = |cursor| Batch::of(&stored(5, 9, 0), cursor).unwrap().missing;
        assert_eq!(missing(at(2, 5)), 2);
        assert_eq!(missing(at(4, 5)), 0);
        assert_eq!(missing(at(0, 0)), 0, "a new sink begins with what is there");
        let mut unreadable = stored(5, 9, 0);
        unreadable[1].value = "{}".into();
        let batch = Batch::of(&unreadable, at(4, 5)).unwrap();
        assert_eq!((batch.missing, batch.last, batch.events.len()), (1, 9, 4));
    }
}
