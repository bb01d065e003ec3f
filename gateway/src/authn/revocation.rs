//! Tells requests that go on for long when the rights of somebody may have changed.

use hanse_api::access::changes_grants;
use hanse_api::kinds::{
    ACCESS_KEYS, CLUSTER_ROLE_TEMPLATES, IDENTITIES, KindName, PROJECT_SECRETS, PROJECTS, SHARED_SECRETS, TEAMS, USERS,
    VIRTUAL_CLUSTER_INSTANCES,
};
use hanse_runtime::backoff::Backoff;
use hanse_runtime::clock::SharedClock;
use hanse_runtime::rng::SharedRng;
use hanse_runtime::shutdown::Phase;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use hanse_state::objects::{ObjectEvent, Objects, Stored};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Bumps whenever rights may have changed: a key, a user, a team, a role, a project's members, or what is written on a
/// tenant cluster about who may use it.
#[derive(Clone, Debug)]
pub(crate) struct Changes(watch::Receiver<u64>);

impl Changes {
    /// Completes after the next change.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // The watcher is gone with the process' shutdown; nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
}

/// Kinds that [`crate::directory`] keeps.
const DIRECTORY: [KindName; 2] = [TEAMS, CLUSTER_ROLE_TEMPLATES];
const OTHERS: [KindName; 7] = [
    ACCESS_KEYS,
    IDENTITIES,
    USERS,
    PROJECTS,
    VIRTUAL_CLUSTER_INSTANCES,
    PROJECT_SECRETS,
    SHARED_SECRETS,
];

/// Which state the teams and roles are in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generation {
    changes: Arc<AtomicU64>,
    followed: Arc<AtomicU64>,
}

impl Generation {
    /// A number that differs after each change; none while changes are not followed.
    pub(crate) fn now(&self) -> Option<u64> {
        let all = self.followed.load(Ordering::SeqCst) == DIRECTORY.len() as u64;
        all.then(|| self.changes.load(Ordering::SeqCst))
    }
}

/// Watches in the background.
pub(crate) fn watch_rights(
    objects: &Objects,
    clock: &SharedClock,
    rng: &SharedRng,
    supervisor: &Supervisor,
) -> (Changes, Generation) {
    let (sender, generation) = (Arc::new(watch::Sender::new(0)), Generation::default());
    let changes = Changes(sender.subscribe());
    let kinds = DIRECTORY.map(|kind| (kind, Some(generation.clone())));
    for (kind, generation) in kinds.into_iter().chain(OTHERS.map(|kind| (kind, None))) {
        let follower = Follower {
            kind,
            sender: Arc::clone(&sender),
            generation,
        };
        let task = follower.follow(objects.clone(), clock.clone(), rng.clone());
        let end = supervisor.shutdown_token().phase(Phase::Drain);
        supervisor.spawn(
            TaskKind::BestEffort,
            format!("rights from {}", kind.plural),
            async move {
                tokio::select! {
                    () = end.cancelled() => {}
                    () = task => {}
                }
                Ok(())
            },
        );
    }
    (changes, generation)
}

struct Follower {
    kind: KindName,
    sender: Arc<watch::Sender<u64>>,
    generation: Option<Generation>,
}

impl Follower {
    async fn follow(self, objects: Objects, clock: SharedClock, rng: SharedRng) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            match objects.watch(&self.kind, None, 0).await {
                Ok(mut changes) => {
                    // Changes between two watches were missed: everybody looks again.
                    self.bump();
                    if let Some(generation) = &self.generation {
                        generation.followed.fetch_add(1, Ordering::SeqCst);
                    }
                    backoff.reset();
                    while let Some(Ok(event)) = changes.next().await {
                        match event {
                            ObjectEvent::Put { new, old } if self.matters(&new, old.as_ref()) => self.bump(),
                            ObjectEvent::Deleted { .. } => self.bump(),
                            ObjectEvent::Put { .. } | ObjectEvent::Progress { .. } => {}
                            ObjectEvent::Expired { .. } => break,
                        }
                    }
                    if let Some(generation) = &self.generation {
                        generation.followed.fetch_sub(1, Ordering::SeqCst);
                    }
                }
                Err(error) => tracing::debug!(%error, kind = self.kind.plural, "changes of rights cannot be watched"),
            }
            clock.sleep(backoff.next(rng.as_ref())).await;
        }
    }

    fn bump(&self) {
        if let Some(generation) = &self.generation {
            generation.changes.fetch_add(1, Ordering::SeqCst);
        }
        self.sender.send_modify(|n| *n += 1);
    }

    /// Tenant clusters change with every report of their agents; what counts here changes rarely.
    fn matters(&self, new: &Stored, old: Option<&Stored>) -> bool {
        if self.kind != VIRTUAL_CLUSTER_INSTANCES {
            return true;
        }
        let spec = |stored: &Stored| serde_json::from_slice::<Value>(&stored.value).map(|mut v| v["spec"].take());
        match (old.map(spec), spec(new)) {
            (None, _) => false,
            (Some(Ok(old)), Ok(new)) => changes_grants(&old, &new),
            (Some(_), _) => true,
        }
    }
}
