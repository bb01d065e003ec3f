//! Brings into the trail what changes nothing by itself.
//!
//! **Sessions and sensitive reads** wait until their event is in the store; concurrent ones share a write. While the store
//! confirms nothing (no quorum), they go on after [`CONFIRM`] as long as there is room among the [`MAX_WAITING`] that wait, and
//! the log says so; beyond that they are refused. **Denials** have had their answer; what is the same is counted
//! ([`super::folded`]). What could not be written when the process ends is written to the log.

use super::folded::{Denial, Folded};
use hanse_api::status::{Reason, Status};
use hanse_runtime::BoxError;
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::telemetry::Metrics;
use hanse_state::machine::MAX_EVENTS;
use hanse_state::objects::Objects;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Events of sessions and reads that wait for the store.
pub(crate) const MAX_WAITING: usize = 1024;
/// How long a request waits for the store to confirm its event, and for room among those that wait.
pub(crate) const CONFIRM: Duration = Duration::from_secs(2);
/// Time for one write.
const WRITE: Duration = Duration::from_secs(5);
/// Between two tries of a write: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

struct Entry {
    event: String,
    written: oneshot::Sender<()>,
}

#[derive(Default)]
struct Meters {
    /// Events written.
    written: Counter,
    /// Denials that were counted with others unlike them.
    merged: Counter,
    /// Requests that went on before their event was in the store.
    ahead: Counter,
    /// Requests refused because too many events waited.
    refused: Counter,
    /// Events that only the log has.
    unwritten: Counter,
}

/// The way into the trail. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Entry>,
}

struct Shared {
    objects: Objects,
    clock: SharedClock,
    folded: Mutex<Folded>,
    wake: Notify,
    meters: Meters,
}

/// The end that writes.
pub(crate) struct Writing {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Entry>,
}

impl Recorder {
    pub(crate) fn new(objects: Objects, clock: SharedClock, metrics: &Metrics) -> (Self, Writing) {
        let (sender, queue) = mpsc::channel(MAX_WAITING);
        let meters = Meters::default();
        metrics.register("audit", |r| {
            r.register(
                "events",
                "Events written that no change carries",
                meters.written.clone(),
            );
            r.register(
                "denials_merged",
                "Denials counted together with others unlike them, because there were too many kinds at once",
                meters.merged.clone(),
            );
            r.register(
                "requests_ahead",
                "Sessions and reads that began before their event was in the store",
                meters.ahead.clone(),
            );
            r.register(
                "requests_refused",
                "Sessions and reads refused because too many events waited for the store",
                meters.refused.clone(),
            );
            r.register(
                "events_unwritten",
                "Events that only the log has",
                meters.unwritten.clone(),
            );
        });
        let shared = Arc::new(Shared {
            objects,
            clock,
            folded: Mutex::default(),
            wake: Notify::new(),
            meters,
        });
        let writing = Writing {
            shared: Arc::clone(&shared),
            queue,
        };
        (Self { shared, queue: sender }, writing)
    }

    /// Returns when the event is in the store, or waits for it with room left.
    pub(crate) async fn record(&self, event: String) -> Result<(), Box<Status>> {
        let Shared { clock, meters, .. } = self.shared.as_ref();
        let room = timeout(clock.as_ref(), CONFIRM, self.queue.reserve()).await;
        let Ok(Ok(room)) = room else {
            meters.refused.inc();
            let message = format!(
                "{MAX_WAITING} events wait for the audit trail, which the store does not take now; try again when it does"
            );
            return Err(Box::new(
                Status::new(Reason::ServiceUnavailable, message).retry_after(5),
            ));
        };
        let (written, confirmed) = oneshot::channel();
        room.send(Entry { event, written });
        if !matches!(timeout(clock.as_ref(), CONFIRM, confirmed).await, Ok(Ok(()))) {
            meters.ahead.inc();
            tracing::warn!("a request goes on before its audit event is in the store, which does not answer");
        }
        Ok(())
    }

    /// The same for what happened already: when too many wait, the log has the event.
    pub(crate) async fn record_or_log(&self, event: String) {
        if let Err(status) = self.record(event.clone()).await {
            self.shared.give_up(&[event], &status.message);
        }
    }

    /// Notes a denial. Does not wait.
    pub(crate) fn denied(&self, denial: Denial) {
        if !self.shared.folded.lock().add(denial) {
            self.shared.meters.merged.inc();
        }
        self.shared.wake.notify_one();
    }
}

impl Shared {
    /// Completes when denials may be written.
    async fn due(&self) {
        loop {
            let wait = self.folded.lock().due(self.clock.mono());
            match wait {
                None => self.wake.notified().await,
                Some(wait) => return self.clock.sleep(wait).await,
            }
        }
    }

    fn take_denials(&self) -> Vec<String> {
        let now = self.clock.mono();
        let mut folded = self.folded.lock();
        match folded.due(now) {
            Some(Duration::ZERO) => folded.take(now),
            Some(_) | None => Vec::new(),
        }
    }

    /// Writes events, and goes on trying until it is done or the process ends. Events may come to be there twice, when
    /// nobody knows whether a write was done; they have the same id then.
    async fn write(&self, events: &[String], stop: &CancellationToken) {
        for events in events.chunks(MAX_EVENTS) {
            let mut pause = RETRY.0;
            loop {
                let tried = timeout(self.clock.as_ref(), WRITE, self.objects.record(events.to_vec())).await;
                let error: BoxError = match tried {
                    Ok(Ok(())) => {
                        self.meters.written.inc_by(events.len() as u64);
                        break;
                    }
                    Ok(Err(error)) if !error.retryable() => {
                        self.give_up(events, &error);
                        break;
                    }
                    Ok(Err(error)) => error.into(),
                    Err(elapsed) => elapsed.into(),
                };
                tracing::warn!(%error, events = events.len(), "audit events wait: they cannot be written");
                tokio::select! {
                    () = stop.cancelled() => return self.give_up(events, &error),
                    () = self.clock.sleep(pause) => {}
                }
                pause = (pause * 2).min(RETRY.1);
            }
        }
    }

    fn give_up(&self, events: &[String], error: &dyn std::fmt::Display) {
        for event in events {
            self.meters.unwritten.inc();
            tracing::error!(%error, event, "an event is not in the audit trail, but here only");
        }
    }
}

impl Writing {
    /// Writes until `stop`, and what is left then.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), BoxError> {
        loop {
            let first = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                entry = self.queue.recv() => entry,
                () = self.shared.due() => None,
            };
            self.step(first, &stop).await;
        }
        self.queue.close();
        while let Ok(entry) = self.queue.try_recv() {
            self.step(Some(entry), &stop).await;
        }
        let now = self.shared.clock.mono();
        let last = self.shared.folded.lock().take(now);
        self.shared.write(&last, &stop).await;
        Ok(())
    }

    /// Writes what waits, as far as it goes into one transaction.
    async fn step(&mut self, first: Option<Entry>, stop: &CancellationToken) {
        let mut entries: Vec<Entry> = first.into_iter().collect();
        while entries.len() < MAX_EVENTS
            && let Ok(entry) = self.queue.try_recv()
        {
            entries.push(entry);
        }
        let (mut events, mut waiting) = (Vec::new(), Vec::new());
        for Entry { event, written } in entries {
            events.push(event);
            waiting.push(written);
        }
        self.shared.write(&events, stop).await;
        for written in waiting {
            // Whoever waited may have gone.
            let _told = written.send(()).is_ok();
        }
        let denials = self.shared.take_denials();
        self.shared.write(&denials, stop).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::testing;
    use hanse_api::kinds::AUDIT_EVENTS;
    use hanse_runtime::clock::SystemClock;
    use hanse_state::objects::Page;

    #[tokio::test]
    async fn while_nothing_is_written_requests_go_on_up_to_the_bound_and_no_event_is_lost() {
        let objects = testing::objects();
        let (recorder, writing) = Recorder::new(objects.clone(), SystemClock::shared(), &Metrics::default());
        let all = (0..MAX_WAITING).map(|n| recorder.record(format!(r#"{{"auditID":"{n}"}}"#)));
        for went_on in futures::future::join_all(all).await {
            went_on.unwrap();
        }
        assert_eq!(recorder.shared.meters.ahead.get(), MAX_WAITING as u64);
        let refused = recorder.record("{}".into()).await.unwrap_err();
        assert_eq!(refused.code, 503, "{refused:?}");
        assert_eq!(recorder.shared.meters.refused.get(), 1);
        // The end comes at once: what waits is written all the same.
        let stop = CancellationToken::new();
        stop.cancel();
        writing.run(stop).await.unwrap();
        let written = objects.list(&AUDIT_EVENTS, None, Page::default()).await.unwrap();
        assert_eq!(written.items.len(), MAX_WAITING);
    }
}
