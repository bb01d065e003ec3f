//! Tells requests that go on for long when the rights of somebody may have changed.

use hanse_api::kinds::{ACCESS_KEYS, KindName, PROJECTS, USERS};
use hanse_runtime::backoff::Backoff;
use hanse_runtime::clock::SharedClock;
use hanse_runtime::rng::SharedRng;
use hanse_runtime::shutdown::Phase;
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use hanse_state::objects::{ObjectEvent, Objects};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Bumps whenever a key, a user or a project's members changed.
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

/// Watches in the background.
pub(crate) fn watch_rights(
    objects: &Objects,
    clock: &SharedClock,
    rng: &SharedRng,
    supervisor: &Supervisor,
) -> Changes {
    let sender = Arc::new(watch::Sender::new(0));
    let changes = Changes(sender.subscribe());
    for kind in [ACCESS_KEYS, USERS, PROJECTS] {
        let task = follow(objects.clone(), kind, clock.clone(), rng.clone(), Arc::clone(&sender));
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
    changes
}

async fn follow(objects: Objects, kind: KindName, clock: SharedClock, rng: SharedRng, sender: Arc<watch::Sender<u64>>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    loop {
        match objects.watch(&kind, None, 0).await {
            Ok(mut changes) => {
                // Changes between two watches were missed: everybody looks again.
                sender.send_modify(|n| *n += 1);
                backoff.reset();
                while let Some(Ok(event)) = changes.next().await {
                    match event {
                        ObjectEvent::Put { .. } | ObjectEvent::Deleted { .. } => sender.send_modify(|n| *n += 1),
                        ObjectEvent::Progress { .. } => {}
                        ObjectEvent::Expired { .. } => break,
                    }
                }
            }
            Err(error) => tracing::debug!(%error, kind = kind.plural, "changes of rights cannot be watched"),
        }
        clock.sleep(backoff.next(rng.as_ref())).await;
    }
}
