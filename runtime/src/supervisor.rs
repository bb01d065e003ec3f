//! The only place that spawns tasks. Each has a kind, and the kind fixes what its failure means.

use crate::BoxError;
use crate::shutdown::{Phase, Shutdown};
use futures::FutureExt;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// What a task is for; decides what happens when it fails or panics, and in which phase it must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// Accepts connections.
    Listener,
    /// Part of the consensus core.
    Consensus,
    /// Applies committed commands.
    Apply,
    /// Runs a controller.
    Controller,
    /// Serves one long-lived peer.
    Session,
    /// Serves one request.
    Request,
    /// Nice to have.
    BestEffort,
}

/// What a failure of a task means for the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The process stops: without this task it would lie about itself.
    StopProcess,
    /// It is logged.
    Log,
}

impl TaskKind {
    /// What a failure means.
    pub const fn on_error(self) -> OnError {
        match self {
            Self::Listener | Self::Consensus | Self::Apply | Self::Controller => OnError::StopProcess,
            Self::Session | Self::Request | Self::BestEffort => OnError::Log,
        }
    }

    /// The phase at whose end it must be gone.
    pub const fn phase(self) -> Phase {
        match self {
            Self::Listener => Phase::Refuse,
            Self::Request | Self::BestEffort => Phase::Drain,
            Self::Controller => Phase::Controllers,
            Self::Session => Phase::Agents,
            Self::Consensus => Phase::Consensus,
            Self::Apply => Phase::Flush,
        }
    }
}

#[derive(Debug)]
struct Running {
    name: String,
    kind: TaskKind,
}

struct Inner {
    shutdown: Shutdown,
    tasks: Mutex<BTreeMap<u64, Running>>,
    changed: watch::Sender<u64>,
    next: AtomicU64,
    failure: watch::Sender<Option<String>>,
}

/// Spawns and watches tasks. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor")
            .field("tasks", &self.running().len())
            .finish()
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new(Shutdown::new())
    }
}

impl Supervisor {
    /// A supervisor whose tasks end by `shutdown`.
    pub fn new(shutdown: Shutdown) -> Self {
        Self {
            inner: Arc::new(Inner {
                shutdown,
                tasks: Mutex::default(),
                changed: watch::Sender::new(0),
                next: AtomicU64::new(0),
                failure: watch::Sender::new(None),
            }),
        }
    }

    /// Runs `task` until it ends. A task of a vital kind that fails or panics stops the process.
    pub fn spawn<F>(&self, kind: TaskKind, name: impl Into<String>, task: F)
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let name = name.into();
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        self.tasks().insert(
            id,
            Running {
                name: name.clone(),
                kind,
            },
        );
        let supervisor = self.clone();
        tokio::spawn(async move {
            let outcome = AssertUnwindSafe(task).catch_unwind().await;
            let fault = match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(chain(error.as_ref())),
                Err(panic) => Some(format!("panicked: {}", panic_text(panic.as_ref()))),
            };
            if let Some(fault) = fault {
                supervisor.failed(kind, &name, &fault);
            }
            supervisor.tasks().remove(&id);
            supervisor.inner.changed.send_modify(|n| *n += 1);
        });
    }

    fn failed(&self, kind: TaskKind, name: &str, fault: &str) {
        match kind.on_error() {
            OnError::StopProcess => {
                tracing::error!(task = name, error = fault, "a vital task failed; the process stops");
                self.inner.failure.send_if_modified(|failure| {
                    let first = failure.is_none();
                    failure.get_or_insert_with(|| format!("{name}: {fault}"));
                    first
                });
                self.inner.shutdown.begin(Phase::Refuse);
            }
            OnError::Log => tracing::warn!(task = name, error = fault, "a task failed"),
        }
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Running>> {
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handle on the end of the process.
    pub fn shutdown_token(&self) -> Shutdown {
        self.inner.shutdown.clone()
    }

    /// The first failure of a vital task, if there was one.
    pub fn failure(&self) -> Option<String> {
        self.inner.failure.borrow().clone()
    }

    /// Names of the tasks that run.
    pub fn running(&self) -> Vec<String> {
        self.tasks().values().map(|t| t.name.clone()).collect()
    }

    /// Goes through all phases. Each gets `limit`; what overruns it is named in the log and left behind.
    pub async fn shut_down(&self, limit: Duration) {
        for phase in Phase::ALL {
            self.inner.shutdown.begin(phase);
            let ended = tokio::time::timeout(limit, self.phase_ended(phase)).await;
            if ended.is_err() {
                tracing::warn!(%phase, held_by = ?self.held(phase), "a shutdown phase overran its deadline");
            }
        }
    }

    fn held(&self, phase: Phase) -> Vec<String> {
        self.tasks()
            .values()
            .filter(|t| t.kind.phase() <= phase)
            .map(|t| t.name.clone())
            .collect()
    }

    async fn phase_ended(&self, phase: Phase) {
        let mut changed = self.inner.changed.subscribe();
        while !self.held(phase).is_empty() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The messages of `error` and of its sources, outermost first.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vital_task_that_panics_stops_the_process() {
        let supervisor = Supervisor::default();
        supervisor.spawn(TaskKind::Request, "one request", async { Err("bad".into()) });
        supervisor.spawn(TaskKind::Apply, "apply", async { panic!("gone") });
        supervisor.shutdown_token().cancelled().await;
        assert_eq!(supervisor.failure().unwrap(), "apply: panicked: gone");
    }

    #[tokio::test]
    async fn phases_wait_for_their_tasks() {
        let supervisor = Supervisor::default();
        let (ended, order) = tokio::sync::mpsc::channel(2);
        let mut order = order;
        for (kind, name) in [(TaskKind::Consensus, "raft"), (TaskKind::Listener, "listener")] {
            let token = supervisor.shutdown_token().phase(kind.phase());
            let ended = ended.clone();
            supervisor.spawn(kind, name, async move {
                token.cancelled().await;
                ended.send(name).await?;
                Ok(())
            });
        }
        supervisor.shut_down(Duration::from_secs(5)).await;
        assert_eq!(order.recv().await, Some("listener"));
        assert_eq!(order.recv().await, Some("raft"));
        assert!(supervisor.running().is_empty());
    }
}
