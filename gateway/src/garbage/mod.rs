//! The garbage collector: objects go when their owners are gone, and owners that were deleted in the foreground or are to leave
//! orphans wait for their dependents. What is to be done is decided in [`hanse_api::ownership`].
//!
//! The leader of the council follows every kind whose objects can be deleted and keeps an index of who goes with whom
//! ([`graph`]); whatever a change may concern is judged by what the store has then ([`act`]). Another leader starts anew from
//! lists: there is nothing to hand over. Decisions that need all dependents of an object wait until the index has heard of
//! everything up to the change that asked for them.

mod act;
mod graph;

use crate::apiserver::backend::{Backend, failed};
use crate::kinds::{KINDS, Kind};
use act::Job;
use futures::future::{BoxFuture, FutureExt, select_all};
use futures::stream::{FuturesUnordered, StreamExt};
use graph::{Graph, Id, Seen};
use hanse_api::ownership::Stage;
use hanse_api::status::{Reason, Status};
use hanse_runtime::BoxError;
use hanse_runtime::backoff::Backoff;
use hanse_runtime::queue::Queue;
use hanse_state::Role;
use hanse_state::objects::{ObjectEvent, ObjectWatch, Page, Stored};
use std::sync::LazyLock;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Objects worked on at the same time.
const WORKERS: usize = 8;
/// Objects read at once.
const PAGE: i64 = 500;
/// Between two looks at who leads.
const TICK: Duration = Duration::from_millis(500);
/// Pause of a decision that waits for the index.
const LAG: Duration = Duration::from_millis(20);
/// Everything is looked at again after this time, for owners of kinds that are not followed.
const RESYNC: Duration = Duration::from_secs(600);
/// First and longest wait after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// From this many failures of one object in a row on, the log says so as a warning.
const WARN_FROM: u32 = 5;

/// Kinds whose objects go with others.
static COLLECTED: LazyLock<Vec<&'static dyn Kind>> = LazyLock::new(|| {
    KINDS
        .iter()
        .copied()
        .filter(|k| k.verbs().contains(&"delete"))
        .collect()
});

/// Collects whenever this server leads, until `stop`.
pub(crate) async fn run(backend: Backend, stop: CancellationToken) -> Result<(), BoxError> {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        let session = async {
            if !leads(&backend) {
                return backend.clock.sleep(TICK).await;
            }
            match Session::open(&backend).await {
                Ok(session) => {
                    backoff.reset();
                    if let Err(why) = session.follow().await {
                        tracing::debug!(why, "the collector's index starts anew");
                    }
                }
                Err(error) => tracing::warn!(error = error.message, "the garbage collector cannot start now"),
            }
            backend.clock.sleep(backoff.next(backend.rng.as_ref())).await;
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = session => {}
        }
    }
}

fn leads(backend: &Backend) -> bool {
    backend.objects.store().status().role == Role::Leader
}

type Run = BoxFuture<'static, (Id, Result<(), Box<Status>>)>;

struct Session<'a> {
    backend: &'a Backend,
    watches: Vec<ObjectWatch>,
    /// Up to which revision each watch has surely told everything.
    told: Vec<i64>,
    graph: Graph,
    queue: Queue<Id>,
    resync_at: Duration,
}

impl<'a> Session<'a> {
    /// Reads everything once and goes on from there.
    async fn open(backend: &'a Backend) -> Result<Self, Box<Status>> {
        let mut session = Self {
            backend,
            watches: Vec::with_capacity(COLLECTED.len()),
            told: Vec::with_capacity(COLLECTED.len()),
            graph: Graph::default(),
            queue: Queue::new(WORKERS),
            // All that is read now is looked at by itself.
            resync_at: backend.clock.mono() + RESYNC,
        };
        for (at, kind) in COLLECTED.iter().enumerate() {
            let revision = session.read(at, *kind).await?;
            let watch = backend.objects.watch(kind.stored_as(), None, revision).await;
            session.watches.push(watch.map_err(|e| failed(&e))?);
            session.told.push(revision);
        }
        Ok(session)
    }

    async fn read(&mut self, at: usize, kind: &dyn Kind) -> Result<i64, Box<Status>> {
        let mut page = Page {
            limit: PAGE,
            ..Page::default()
        };
        loop {
            let list = self.backend.objects.list(kind.stored_as(), None, page.clone()).await;
            let list = list.map_err(|e| failed(&e))?;
            for stored in &list.items {
                self.put(at, stored);
            }
            match list.next_page(page) {
                Some(next) => page = next,
                None => return Ok(list.revision),
            }
        }
    }

    /// Works until this server leads no more, or the index is behind for good.
    async fn follow(mut self) -> Result<(), &'static str> {
        let mut runs: FuturesUnordered<Run> = FuturesUnordered::new();
        while leads(self.backend) {
            self.start_due(&runs);
            let now = self.backend.clock.mono();
            let due = self.queue.next_due().map_or(TICK, |due| due.saturating_sub(now));
            let heard = select_all(self.watches.iter_mut().map(|watch| watch.next().boxed()));
            let heard = heard.map(|(event, at, _)| (event, at));
            tokio::select! {
                (event, at) = heard => match event {
                    Some(Ok(event)) => self.hear(at, event)?,
                    Some(Err(_)) | None => return Err("a watch ended"),
                },
                Some((id, outcome)) = runs.next(), if !runs.is_empty() => self.finish(&id, outcome),
                () = self.backend.clock.sleep(due.min(TICK)) => {}
            }
        }
        Ok(())
    }

    fn hear(&mut self, at: usize, event: ObjectEvent) -> Result<(), &'static str> {
        let told = match &event {
            // More of the same revision may follow.
            ObjectEvent::Put { new, .. } => new.revision - 1,
            ObjectEvent::Deleted { revision, .. } => revision - 1,
            ObjectEvent::Progress { revision } => *revision,
            ObjectEvent::Expired { .. } => 0,
        };
        if let Some(before) = self.told.get_mut(at) {
            *before = told.max(*before);
        }
        match event {
            ObjectEvent::Put { new, .. } => self.put(at, &new),
            ObjectEvent::Deleted { old, .. } => {
                let Some(seen) = seen(&old) else { return Ok(()) };
                let concerned = self.graph.remove(&id(at, &old), &seen.metadata.uid);
                self.wake(concerned);
            }
            ObjectEvent::Progress { .. } => {}
            ObjectEvent::Expired { .. } => return Err("a watch fell behind"),
        }
        Ok(())
    }

    fn put(&mut self, at: usize, stored: &Stored) {
        if let Some(seen) = seen(stored) {
            let concerned = self.graph.put(id(at, stored), seen.metadata, stored.revision);
            self.wake(concerned);
        }
    }

    fn wake(&mut self, ids: Vec<Id>) {
        let now = self.backend.clock.mono();
        for id in ids {
            self.queue.wake(id, now);
        }
    }

    /// Whether the index has heard of everything up to `revision`.
    fn has_heard(&self, revision: i64) -> bool {
        let idle = |watch: &ObjectWatch| watch.progress().is_some_and(|to| to >= revision);
        let mut watches = self.watches.iter().zip(&self.told);
        watches.all(|(watch, told)| *told >= revision || idle(watch))
    }

    fn start_due(&mut self, runs: &FuturesUnordered<Run>) {
        let now = self.backend.clock.mono();
        if now >= self.resync_at {
            self.resync_at = now + RESYNC;
            let all = self.graph.all().cloned().collect();
            self.wake(all);
        }
        while let Some(id) = self.queue.take(now) {
            let (Some(kind), Some(known)) = (COLLECTED.get(id.kind), self.graph.known(&id)) else {
                self.queue.settled(&id, None, now);
                continue;
            };
            let of_all = matches!(known.stage, Stage::Waits | Stage::Orphans);
            if of_all && !self.has_heard(known.revision) {
                self.queue.settled(&id, Some(now + LAG), now);
                continue;
            }
            let job = Job {
                kind: *kind,
                id,
                known,
                kinds: &COLLECTED,
            };
            let backend = self.backend.clone();
            runs.push(
                async move {
                    let outcome = act::work(&backend, &job).await;
                    (job.id, outcome)
                }
                .boxed(),
            );
        }
    }

    fn finish(&mut self, id: &Id, outcome: Result<(), Box<Status>>) {
        let now = self.backend.clock.mono();
        let Err(status) = outcome else {
            return self.queue.settled(id, None, now);
        };
        let failures = self.queue.failures(id);
        let wait = RETRY.0.saturating_mul(1 << failures.min(16)).min(RETRY.1);
        self.queue.failed(id, now + wait, now);
        let (namespace, name, error) = (&id.namespace, &id.name, &status.message);
        if failures == WARN_FROM && status.reason != Reason::Conflict {
            tracing::warn!(
                namespace,
                name,
                error,
                "an object cannot be collected; it is tried again"
            );
        } else {
            tracing::debug!(namespace, name, error, "an object cannot be collected now");
        }
    }
}

fn id(kind: usize, stored: &Stored) -> Id {
    Id {
        kind,
        namespace: stored.namespace.clone(),
        name: stored.name.clone(),
    }
}

/// What the index needs; what cannot be read is left alone.
fn seen(stored: &Stored) -> Option<Seen> {
    match serde_json::from_slice(&stored.value) {
        Ok(seen) => Some(seen),
        Err(error) => {
            tracing::warn!(%error, name = stored.name, "a stored object cannot be read; it is not collected");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_object_is_followed_twice() {
        let stored: BTreeSet<String> = COLLECTED.iter().map(|k| format!("{:?}", k.stored_as())).collect();
        assert_eq!(stored.len(), COLLECTED.len());
        assert!(COLLECTED.iter().any(|k| k.names().plural == "virtualclusterinstances"));
        assert!(!COLLECTED.iter().any(|k| k.names().plural == "namespaces"));
    }
}
