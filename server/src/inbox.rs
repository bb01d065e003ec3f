//! Where the file of a restore waits until it is whole: on disk, never in memory, and gone when it was put back or refused.

use crate::error::ServerError;
use crate::files::{self, FREE_SPACE_LOW};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use hanse_gateway::{BackupStream, PutBack, Said};
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::rng::SharedRng;
use hanse_state::backup::{BackupError, Checked, Replaced};
use hanse_state::{Store, StoreError};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Restores at once: each has a file on the disk and keeps a tenant waiting.
const AT_ONCE: usize = 1;
/// Largest file that is received.
const MAX_FILE: u64 = 64 << 30;
/// Bytes after which the disk is looked at again.
const LOOK: u64 = 16 << 20;
/// Pieces that wait for the disk.
const AHEAD: usize = 4;
/// How long a caller may send nothing before his file is given up.
const STALL: Duration = Duration::from_secs(60);

/// The folder that files are received in.
#[derive(Clone)]
pub struct Inbox {
    dir: PathBuf,
    rng: SharedRng,
    places: Arc<Semaphore>,
}

/// A file that goes away with its name.
struct Received {
    path: PathBuf,
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a received file could not be removed");
        }
    }
}

/// A file that is fit to be put back.
pub(crate) struct Ready {
    // Dropped before the place is free for the next file.
    checked: Checked,
    _file: Received,
    _place: OwnedSemaphorePermit,
    rng: SharedRng,
}

impl Inbox {
    /// In a folder of the data directory. What an earlier process left there goes.
    pub fn in_data_dir(data_dir: &Path, rng: SharedRng) -> Result<Self, ServerError> {
        let dir = data_dir.join("inbox");
        let made = match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => std::fs::create_dir_all(&dir),
        };
        made.map_err(|error| ServerError::File {
            what: "the folder of received files",
            path: dir.clone(),
            fault: format!("cannot be made empty: {error}"),
        })?;
        let places = Arc::new(Semaphore::new(AT_ONCE));
        Ok(Self { dir, rng, places })
    }

    /// Receives a file with the tenant's key space and reads it to its end.
    pub(crate) async fn receive(
        &self,
        tenant: &str,
        mut pieces: BackupStream,
        clock: &SharedClock,
    ) -> Result<Ready, BackupError> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| StoreError::Overloaded)?;
        let path = self.dir.join(format!("{}.backup", self.rng.uuid()));
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(BackupError::Io)?;
        let received = Received { path: path.clone() };
        let (sender, receiver) = mpsc::channel(AHEAD);
        let (dir, tenant) = (self.dir.clone(), tenant.to_owned());
        let written = tokio::task::spawn_blocking(move || {
            write(file, &dir, receiver)?;
            Checked::new(path, &tenant)
        });
        while let Ok(Some(piece)) = timeout(clock.as_ref(), STALL, pieces.next()).await {
            // One that broke off ends without the file's last frame, and is refused for that.
            let Ok(piece) = piece else { break };
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        drop(sender);
        let checked = written.await.unwrap_or(Err(StoreError::Stopped.into()))?;
        Ok(Ready {
            checked,
            _file: received,
            _place: place,
            rng: Arc::clone(&self.rng),
        })
    }
}

fn write(mut file: File, dir: &Path, mut pieces: mpsc::Receiver<Bytes>) -> Result<(), BackupError> {
    let (mut bytes, mut looked) = (0u64, None);
    while let Some(piece) = pieces.blocking_recv() {
        bytes += piece.len() as u64;
        if looked.is_none_or(|at| bytes - at >= LOOK) {
            looked = Some(bytes);
            let free = files::free_space(dir).map_err(|error| BackupError::Io(io::Error::other(error)))?;
            // The same again goes through the log.
            if bytes > MAX_FILE || free < FREE_SPACE_LOW.saturating_mul(2).saturating_add(bytes) {
                let text = format!("the server's disk has {} MiB free, too few for this file", free >> 20);
                return Err(BackupError::Io(io::Error::new(io::ErrorKind::StorageFull, text)));
            }
        }
        file.write_all(&piece).map_err(BackupError::Io)?;
    }
    Ok(())
}

impl Ready {
    /// To be put back into the store.
    pub(crate) fn into_store(self, store: Arc<dyn Store>, clock: SharedClock) -> impl PutBack {
        Putting {
            ready: self,
            store,
            clock,
        }
    }
}

struct Putting {
    ready: Ready,
    store: Arc<dyn Store>,
    clock: SharedClock,
}

#[async_trait]
impl PutBack for Putting {
    async fn run(self: Box<Self>, said: Said) -> Result<Replaced, BackupError> {
        let mut id = [0; 8];
        self.ready.rng.fill(&mut id);
        let id = u64::from_le_bytes(id).max(1);
        let (store, clock) = (self.store.as_ref(), self.clock.as_ref());
        self.ready.checked.replace(store, clock, id, said.as_ref()).await
    }
}
