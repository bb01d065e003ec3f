//! `Maintenance.Snapshot`: the space as an etcd database, with the checksum that etcd's tools look for at its end.
//!
//! `etcdutl snapshot status` and `restore` take it, so what is kept here can go on in an etcd. It is gathered in a file first,
//! because the start of the format says where its end is; the file has no name and is gone with the call.

use super::{STORAGE_VERSION, Service};
use crate::bolt::{BoltWriter, Tree};
use crate::error::StoreError;
use crate::machine::export::Item;
use crate::pb;
use crate::store::Access;
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use prost::Message;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::AsyncReadExt;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

/// Snapshots that may be under way at a time on one door: each takes as much disk as the space.
pub(super) const AT_A_TIME: usize = 2;
/// Bytes in one message.
const BLOB: usize = 256 << 10;
/// Buckets that etcd expects to exist.
const EMPTY_BUCKETS: [&str; 7] = [
    "alarm",
    "auth",
    "authRoles",
    "authUsers",
    "cluster",
    "members",
    "members_removed",
];

/// The answers of one call.
pub(super) type Blobs = BoxStream<'static, Result<pb::SnapshotResponse, Status>>;

/// Tells files of one process apart while they have names.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Where etcd would be in its log.
#[derive(Clone, Copy)]
struct Place {
    index: u64,
    term: u64,
}

/// A lease as etcd stores it.
#[derive(Clone, Copy, PartialEq, Message)]
struct StoredLease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
}

impl Service {
    /// Gathers a snapshot, then answers what sends it.
    pub(super) async fn take_snapshot(&self, access: Access) -> Result<Blobs, Status> {
        if self.operator.is_none() {
            return Err(Status::permission_denied(
                "hanse: snapshots are the operators' business",
            ));
        }
        let Some(folder) = self.settings.spool.clone() else {
            return Err(Status::unimplemented("hanse: this door has no snapshots"));
        };
        let permit = Arc::clone(&self.snapshots).try_acquire_owned();
        let permit = permit.map_err(|_| StoreError::Overloaded.status())?;
        let status = self.store.status();
        let place = Place {
            index: status.applied_index,
            term: status.term,
        };
        let machine = Arc::clone(self.store.machine());
        let work = tokio::task::spawn_blocking(move || {
            let file = nameless(&folder)?;
            write(file, place, &mut |emit| machine.export(&access, emit))
        });
        let written = work.await.unwrap_or(Err(io::Error::other("the work was cut short")));
        let (file, length) = written.map_err(|error| {
            tracing::error!(%error, "a snapshot could not be gathered");
            Status::internal(format!("hanse: the snapshot could not be gathered: {error}"))
        })?;
        tracing::info!(bytes = length, "sending a snapshot");
        let sending = Sending {
            header: Some(self.store.header()),
            file: tokio::fs::File::from_std(file),
            left: length,
            digest: Context::new(&SHA256),
            step: Step::Blobs,
            _permit: permit,
        };
        let blobs = futures::stream::unfold(sending, |mut sending| async move {
            let blob = sending.next().await?;
            Some((blob, sending))
        });
        Ok(blobs.boxed())
    }
}

/// A file that is gone when it is closed.
fn nameless(folder: &Path) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("snapshot-{}-{number}.tmp", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// What writes itself item by item.
type Source<'a> = dyn FnMut(&mut crate::machine::export::Emit<'_>) -> Result<(), StoreError> + 'a;

/// Writes an etcd database; answers the file, at its start, and its length.
fn write(file: File, place: Place, source: &mut Source<'_>) -> io::Result<(File, u64)> {
    let mut bolt = BoltWriter::new(BufWriter::new(file))?;
    let (mut keys, mut leases) = (bolt.tree(), bolt.tree());
    let mut compacted = -1;
    source(&mut |item| {
        let put = |bolt: &mut _, tree: &mut Tree, key: &[u8], value| {
            tree.push(bolt, key, value)
                .map_err(|error| StoreError::Storage(format!("a snapshot cannot be written: {error}")))
        };
        match item {
            Item::Head { floor, .. } => {
                compacted = floor;
                Ok(())
            }
            Item::Change { sub, kv, deleted } => {
                let mut key = revision_key(kv.mod_revision, sub);
                if !deleted {
                    return put(&mut bolt, &mut keys, &key, kv.encode_to_vec());
                }
                key.push(b't');
                let bare = pb::KeyValue {
                    key: kv.key,
                    ..Default::default()
                };
                put(&mut bolt, &mut keys, &key, bare.encode_to_vec())
            }
            Item::Lease { id, ttl } => {
                let lease = StoredLease { id, ttl }.encode_to_vec();
                put(&mut bolt, &mut leases, &id.to_be_bytes(), lease)
            }
        }
    })
    .map_err(io::Error::other)?;
    bolt.bucket("key", keys)?;
    bolt.bucket("lease", leases)?;
    let mut meta = bolt.tree();
    for (name, value) in meta_records(place, compacted) {
        meta.push(&mut bolt, name.as_bytes(), value)?;
    }
    bolt.bucket("meta", meta)?;
    for name in EMPTY_BUCKETS {
        let empty = bolt.tree();
        bolt.bucket(name, empty)?;
    }
    let (mut out, length) = bolt.finish()?;
    out.flush()?;
    let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.seek(SeekFrom::Start(0))?;
    Ok((file, length))
}

/// A revision as etcd's keys have it.
fn revision_key(main: i64, sub: u32) -> Vec<u8> {
    let mut key = main.to_be_bytes().to_vec();
    key.push(b'_');
    key.extend_from_slice(&i64::from(sub).to_be_bytes());
    key
}

/// In ascending order of their names.
fn meta_records(place: Place, compacted: i64) -> Vec<(&'static str, Vec<u8>)> {
    let mut records = vec![("consistent_index", place.index.to_be_bytes().to_vec())];
    if compacted > 0 {
        records.push(("finishedCompactRev", revision_key(compacted, 0)));
        records.push(("scheduledCompactRev", revision_key(compacted, 0)));
    }
    records.push(("storageVersion", STORAGE_VERSION.as_bytes().to_vec()));
    records.push(("term", place.term.to_be_bytes().to_vec()));
    records
}

enum Step {
    Blobs,
    Sum,
    Ended,
}

struct Sending {
    /// For the first answer.
    header: Option<pb::ResponseHeader>,
    file: tokio::fs::File,
    left: u64,
    digest: Context,
    step: Step,
    _permit: OwnedSemaphorePermit,
}

impl Sending {
    async fn next(&mut self) -> Option<Result<pb::SnapshotResponse, Status>> {
        let blob = match self.step {
            Step::Ended => return None,
            Step::Sum => {
                self.step = Step::Ended;
                let digest = std::mem::replace(&mut self.digest, Context::new(&SHA256));
                Bytes::copy_from_slice(digest.finish().as_ref())
            }
            Step::Blobs => match self.blob().await {
                Ok(blob) => blob,
                Err(error) => {
                    self.step = Step::Ended;
                    return Some(Err(Status::internal(format!(
                        "hanse: the snapshot could not be read: {error}"
                    ))));
                }
            },
        };
        Some(Ok(pb::SnapshotResponse {
            header: self.header.take(),
            remaining_bytes: self.left,
            blob,
            version: STORAGE_VERSION.to_owned(),
        }))
    }

    async fn blob(&mut self) -> io::Result<Bytes> {
        let size = usize::try_from(self.left).unwrap_or(BLOB).min(BLOB);
        let mut blob = vec![0; size];
        self.file.read_exact(&mut blob).await?;
        self.left -= size as u64;
        self.digest.update(&blob);
        if self.left == 0 {
            self.step = Step::Sum;
        }
        Ok(blob.into())
    }
}
