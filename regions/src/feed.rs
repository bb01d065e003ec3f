//! Keeps a [`View`] current: lists every kind at one revision, then follows one watch per kind.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll, StreamExt};
use hanse_api::kinds::KindName;
use hanse_runtime::backoff::Backoff;
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::rng::SharedRng;
use hanse_state::objects::{ObjectError, ObjectEvent, Objects, Page, Stored};
use hanse_tunnel::AgentHub;
use parking_lot::RwLock;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::address::Address;
use crate::reconciler::Commit;
use crate::view::{Change, FOLLOWED, Raw, View};

/// Changes that a slow controller may be behind before it looks at everything instead.
const CHANGES_MAX: usize = 4096;
/// Objects per page of a list.
const PAGE: i64 = 500;
/// Waits after the feed broke.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long the lists may take before they are started anew.
const LIST_LIMIT: Duration = Duration::from_secs(30);

/// A view that one task feeds and many read.
pub struct SharedView {
    view: RwLock<View>,
    changes: broadcast::Sender<Change>,
    version: watch::Sender<u64>,
    live: watch::Sender<bool>,
}

impl std::fmt::Debug for SharedView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedView")
            .field("live", &self.is_live())
            .finish_non_exhaustive()
    }
}

impl SharedView {
    /// A view that is not live yet.
    pub fn new(view: View) -> Self {
        Self {
            view: RwLock::new(view),
            changes: broadcast::Sender::new(CHANGES_MAX),
            version: watch::Sender::new(0),
            live: watch::Sender::new(false),
        }
    }

    /// A view that counts as live although nobody feeds it.
    #[cfg(test)]
    pub(crate) fn live(view: View) -> Self {
        let view = Self::new(view);
        view.live.send_replace(true);
        view
    }

    /// How many listen to changes.
    #[cfg(test)]
    pub(crate) fn listeners(&self) -> usize {
        self.changes.receiver_count()
    }

    /// Reads at one moment. `read` must be quick: the feed waits for it.
    pub fn read<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        read(&self.view.read())
    }

    /// Every change from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// A number that grows with every change.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Whether the watches run. A view that is not live is old, and nothing may be planned by it.
    pub fn is_live(&self) -> bool {
        *self.live.borrow()
    }

    /// Completes when `condition` holds.
    pub async fn wait_until(&self, mut condition: impl FnMut(&View) -> bool) {
        let mut version = self.version();
        loop {
            version.mark_unchanged();
            if self.read(&mut condition) {
                return;
            }
            if version.changed().await.is_err() {
                return;
            }
        }
    }

    /// Completes when the view has everything that `commit` wrote.
    pub async fn seen(&self, commit: &Commit) {
        self.wait_until(|view| commit.keys.iter().all(|key| view.seen(key.kind) >= commit.revision))
            .await;
    }

    /// Takes in what `update` does to the view and tells everybody.
    pub fn update(&self, update: impl FnOnce(&mut View) -> Vec<Change>) {
        let changes = update(&mut self.view.write());
        for change in changes {
            // Nobody listens while no controller runs; that is no fault.
            self.changes.send(change).ok();
        }
        self.version.send_modify(|n| *n += 1);
    }

    /// Feeds the view until `cancel`.
    pub async fn follow(&self, objects: &Objects, clock: &SharedClock, rng: &SharedRng, cancel: CancellationToken) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            let broken = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                broken = self.follow_once(objects, clock, &mut backoff) => broken,
            };
            self.live.send_replace(false);
            let wait = backoff.next(rng.as_ref());
            tracing::info!(reason = broken, "the view of the council starts over");
            tokio::select! {
                () = cancel.cancelled() => return,
                () = clock.sleep(wait) => {}
            }
        }
    }

    async fn follow_once(&self, objects: &Objects, clock: &SharedClock, backoff: &mut Backoff) -> String {
        let (revision, raws) = match timeout(clock.as_ref(), LIST_LIMIT, list_all(objects)).await {
            Ok(Ok(listed)) => listed,
            Ok(Err(error)) => return format!("cannot list: {error}"),
            Err(elapsed) => return format!("cannot list: {elapsed}"),
        };
        let mut events: SelectAll<BoxStream<'_, (KindName, Result<ObjectEvent, ObjectError>)>> = SelectAll::new();
        for kind in FOLLOWED {
            match objects.watch(&kind, None, revision).await {
                Ok(watch) => events.push(
                    futures::stream::unfold(watch, move |mut watch| async move {
                        watch.next().await.map(|event| ((kind, event), watch))
                    })
                    .boxed(),
                ),
                Err(error) => return format!("cannot watch {}: {error}", kind.plural),
            }
        }
        self.replace(revision, raws);
        self.live.send_replace(true);
        self.version.send_modify(|n| *n += 1);
        backoff.reset();
        let all = events.len();
        while let Some((kind, event)) = events.next().await {
            let taken = event.map_err(|error| format!("watch of {}: {error}", kind.plural));
            if let Err(broken) = taken.and_then(|event| self.take(kind, event)) {
                return broken;
            }
            if events.len() < all {
                break;
            }
        }
        "a watch ended".to_owned()
    }

    /// Starts over with everything as of `revision`; who is connected is kept.
    fn replace(&self, revision: i64, raws: Vec<(KindName, Raw)>) {
        self.update(|view| {
            let mut changes = Vec::new();
            let gone = view.forget_absent(&raws);
            for (kind, address) in gone {
                changes.extend(view.delete(kind, &address, revision));
            }
            for (kind, raw) in &raws {
                changes.extend(view.put(*kind, raw));
            }
            for kind in FOLLOWED {
                view.saw(kind, revision);
            }
            changes
        });
    }

    fn take(&self, kind: KindName, event: ObjectEvent) -> Result<(), String> {
        match event {
            ObjectEvent::Put { new, .. } => {
                let raw = raw(new);
                self.update(|view| view.put(kind, &raw).into_iter().collect());
            }
            ObjectEvent::Deleted { old, revision } => {
                let address = Address::new(old.namespace, old.name);
                self.update(|view| view.delete(kind, &address, revision).into_iter().collect());
            }
            ObjectEvent::Progress { revision } => self.update(|view| {
                view.saw(kind, revision);
                Vec::new()
            }),
            ObjectEvent::Expired { compacted } => {
                return Err(format!("{} is compacted up to {compacted}", kind.plural));
            }
        }
        Ok(())
    }

    /// Follows who has a session with this server, until `cancel`.
    pub async fn follow_sessions(&self, hub: &dyn AgentHub, clock: &SharedClock, cancel: CancellationToken) {
        let mut changes = hub.changes();
        loop {
            changes.mark_unchanged();
            let connected: BTreeSet<String> = hub.sessions().into_iter().map(|s| s.cluster).collect();
            let now = clock.wall();
            self.update(|view| view.set_sessions(&connected, now));
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = changes.changed() => if changed.is_err() {
                    return;
                }
            }
        }
    }
}

fn raw(stored: Stored) -> Raw {
    Raw {
        address: Address::new(stored.namespace, stored.name),
        value: stored.value,
        revision: stored.revision,
    }
}

async fn list_all(objects: &Objects) -> Result<(i64, Vec<(KindName, Raw)>), ObjectError> {
    let mut raws = Vec::new();
    let mut at = 0;
    for kind in FOLLOWED {
        let mut after = None;
        loop {
            let page = Page {
                limit: PAGE,
                after: after.take(),
                revision: at,
                local: false,
            };
            let list = objects.list(&kind, None, page).await?;
            at = list.revision;
            after = list
                .items
                .last()
                .map(|last| (last.namespace.clone(), last.name.clone()));
            raws.extend(list.items.into_iter().map(|stored| (kind, raw(stored))));
            if !list.more || after.is_none() {
                break;
            }
        }
    }
    Ok((at, raws))
}
