//! Backups of a running server: from a view of its engine, in a thread of its own, as fast as the caller takes them; and what
//! is to be put back into it, one tenant's key space at a time.

use crate::inbox::Inbox;
use crate::node::VERSION;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use hanse_consensus::{ConsensusError, GROUPS, Node};
use hanse_gateway::{BackupOf, BackupStream, Backups, PutBack};
use hanse_runtime::BoxError;
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::seal::Sealer;
use hanse_state::backup::{self, BackupError, Head, Scope};
use hanse_state::engine::SharedEngine;
use hanse_state::{Access, KeySpace, Store as _, StoreError};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Backups at once: each keeps a view of the engine, and so the space of what is deleted meanwhile.
const AT_ONCE: usize = 2;
/// Pieces read ahead of the caller.
const AHEAD: usize = 4;
/// How long a caller may take nothing before his backup is given up.
const STALL: Duration = Duration::from_secs(60);

/// Makes backups of this server's store.
pub struct LiveBackups {
    node: Node,
    engine: SharedEngine,
    clock: SharedClock,
    seal_key_id: Bytes,
    places: Arc<Semaphore>,
    inbox: Inbox,
}

impl LiveBackups {
    /// Of the store on `engine`, which `node` replicates. Files that are to be restored are received in `inbox`.
    pub fn new(node: &Node, engine: SharedEngine, clock: &SharedClock, sealer: &Sealer, inbox: Inbox) -> Self {
        Self {
            inbox,
            node: node.clone(),
            engine,
            clock: Arc::clone(clock),
            seal_key_id: Bytes::copy_from_slice(&sealer.id()),
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

#[async_trait]
impl Backups for LiveBackups {
    async fn take(&self, of: BackupOf) -> Result<BackupStream, StoreError> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| StoreError::Overloaded)?;
        let scope = match &of {
            BackupOf::Everything => Scope::Groups(GROUPS.to_vec()),
            BackupOf::Tenant(id) => Scope::Space(KeySpace::from_tenant(id)?),
        };
        self.node.catch_up_all().await.map_err(|error| match error {
            ConsensusError::Store(error) => error,
            other => StoreError::Corrupt(other.to_string()),
        })?;
        if let BackupOf::Tenant(id) = of {
            self.node.tenants().machine().check_open(&Access::tenant(id))?;
        }
        let head = Head {
            program: VERSION.to_owned(),
            taken_at_millis: self.clock.wall().as_millis(),
            seal_key_id: self.seal_key_id.clone(),
            ..Head::default()
        };
        let (sender, receiver) = mpsc::channel(AHEAD);
        let work = Work {
            engine: Arc::clone(&self.engine),
            clock: Arc::clone(&self.clock),
            runtime: Handle::current(),
            sender,
            _place: place,
        };
        // A thread of its own: a view borrows the engine, and who waits for a slow caller must not hold up the runtime.
        let thread = std::thread::Builder::new().name("backup".to_owned());
        thread.spawn(move || work.run(head, &scope)).map_err(|error| {
            tracing::error!(%error, "the thread of a backup cannot be started");
            StoreError::Overloaded
        })?;
        let stream = futures::stream::unfold(receiver, |mut receiver| async move {
            let item = receiver.recv().await?;
            Some((item, receiver))
        });
        Ok(stream.boxed())
    }

    async fn receive(&self, tenant: &str, file: BackupStream) -> Result<Box<dyn PutBack>, BackupError> {
        let received = self.inbox.receive(tenant, file, &self.clock).await?;
        Ok(Box::new(
            received.into_store(self.node.tenants(), Arc::clone(&self.clock)),
        ))
    }
}

struct Work {
    engine: SharedEngine,
    clock: SharedClock,
    runtime: Handle,
    sender: mpsc::Sender<Result<Bytes, BoxError>>,
    _place: OwnedSemaphorePermit,
}

impl Work {
    fn run(self, head: Head, scope: &Scope) {
        let view = self.engine.snapshot();
        let mut bytes = 0;
        let taken = backup::take(view.as_ref(), head, scope, &mut |piece| {
            bytes += piece.len();
            self.send(Ok(piece))
        });
        match taken {
            Ok(()) => tracing::info!(bytes, "a backup was sent"),
            Err(error) => {
                tracing::warn!(bytes, %error, "a backup was given up");
                // Whoever is gone wants no error either.
                self.send(Err(error.into())).ok();
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this thread is none of the runtime's")]
    fn send(&self, piece: Result<Bytes, BoxError>) -> Result<(), BackupError> {
        let sent = self
            .runtime
            .block_on(timeout(self.clock.as_ref(), STALL, self.sender.send(piece)));
        let fault = match sent {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(_)) => "the caller is gone".to_owned(),
            Err(_) => format!("the caller took nothing for {} s", STALL.as_secs()),
        };
        Err(BackupError::Io(std::io::Error::other(fault)))
    }
}
