//! From a file with one space into a running store, in the place of what the space held ([`crate::machine::restore`] says what
//! each step does there).
//!
//! Nothing is deleted before the whole file was read and found fit. From then on the space is closed until its content is
//! that of the file, which its hash says; a restore that breaks off leaves it closed, and the next one begins anew.

use super::file::{FileReader, Part};
use super::{BackupError, SpaceSummary};
use crate::error::StoreError;
use crate::machine::hash::Fnv;
use crate::machine::index::{Version, stored_bytes};
use crate::pb::backup::Rows;
use crate::pb::command::restore_space::Part as Step;
use crate::pb::command::{LeaseGrant, RestoreBegin, RestoreEnd, RestoreRows, RestoreSpace};
use crate::store::{Access, Store};
use hanse_runtime::clock::Clock;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one step is tried again while the store has no leader or too much to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// A file that was read to its end: it holds the space of one tenant.
#[derive(Debug)]
pub struct Checked {
    path: PathBuf,
    tenant: String,
    revision: i64,
    space: SpaceSummary,
}

/// What a space holds after a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Keys.
    pub keys: u64,
    /// Leases of the backup.
    pub leases: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// The space's hash in the backup.
    pub backup_hash: u64,
    /// The space's hash now, as members compare it; with other revisions than in the backup.
    pub hash: u64,
    /// The first revision at which the restored space can be read.
    pub revision: i64,
}

fn open(path: &Path) -> Result<BufReader<File>, BackupError> {
    File::open(path).map(BufReader::new).map_err(BackupError::Io)
}

impl Checked {
    /// Reads a file that is not encrypted, to its end.
    pub fn new(path: PathBuf, tenant: &str) -> Result<Self, BackupError> {
        let mut reader = FileReader::new(open(&path)?)?;
        let (mut revision, mut spaces) = (0, Vec::new());
        while let Some(part) = reader.part()? {
            match part {
                Part::Group(group) => revision = group.revision,
                Part::Space(_, head) if head.restore_id != 0 => return Err(BackupError::Part(head.tenant)),
                Part::Space(..) => {}
                Part::Rows(rows) => check(&rows, revision)?,
                Part::SpaceEnd(space) => spaces.push(space),
            }
        }
        match <[SpaceSummary; 1]>::try_from(spaces) {
            Ok([space]) if space.space.tenant() == tenant && space.dropped => Err(BackupError::Gone(tenant.to_owned())),
            Ok([space]) if space.space.tenant() == tenant => Ok(Self {
                path,
                tenant: tenant.to_owned(),
                revision,
                space,
            }),
            other => {
                let spaces = other.map_or_else(|spaces| spaces, Vec::from);
                let named = spaces.iter().map(|space| space.space.tenant().to_owned());
                Err(BackupError::NotThere {
                    wanted: tenant.to_owned(),
                    holds: named.filter(|tenant| !tenant.is_empty()).collect(),
                })
            }
        }
    }

    /// Whether the store may take it.
    fn fits(&self, store: &dyn Store) -> Result<(), BackupError> {
        let (backup, present) = (self.revision, store.revision());
        if backup > present {
            let store = present;
            return Err(BackupError::Ahead { backup, store });
        }
        let limits = store.machine().limits(&Access::tenant(&*self.tenant))?;
        let (keys, bytes) = (self.space.keys, self.space.bytes);
        let bytes = bytes.saturating_add(keys.saturating_mul(stored_bytes(0, 0)));
        let over = |limit: u64, wanted: u64| limit != 0 && wanted > limit;
        if over(limits.keys, keys) || over(limits.bytes, bytes) {
            return Err(BackupError::OverLimits { keys, bytes });
        }
        Ok(())
    }

    /// Puts what the file holds in the place of the tenant's space. `id` is random, and `said` hears how many bytes are there.
    pub async fn replace(
        &self,
        store: &dyn Store,
        clock: &dyn Clock,
        id: u64,
        said: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Replaced, BackupError> {
        self.fits(store)?;
        let mut steps = Steps {
            store,
            clock,
            tenant: &self.tenant,
            id,
            next: 0,
        };
        steps.go(Step::Begin(RestoreBegin {})).await?;
        // Leases come last in a file, and keys are attached to them.
        let mut rows = FileRows::open(&self.path)?;
        while let Some(piece) = rows.next().await? {
            if !piece.leases.is_empty() {
                steps.go(leases(piece)).await?;
            }
        }
        let (mut sum, mut bytes) = (Fnv::new(), 0);
        let mut rows = FileRows::open(&self.path)?;
        while let Some(piece) = rows.next().await? {
            if piece.keys.is_empty() {
                continue;
            }
            let keys = piece.keys.clone();
            let leases = Vec::new();
            let revision = steps.go(Step::Rows(RestoreRows { keys, leases })).await?;
            for kv in &piece.keys {
                bytes += (kv.key.len() + kv.value.len()) as u64;
                let modified = revision;
                sum.version(
                    &kv.key,
                    &Version {
                        modified,
                        ..super::version(kv)
                    },
                    &kv.value,
                );
            }
            said(bytes);
        }
        self.compare(store, sum.value()).await?;
        let keys = self.space.keys;
        let revision = steps.go(Step::End(RestoreEnd { keys })).await?;
        Ok(Replaced {
            keys,
            leases: self.space.leases,
            bytes,
            backup_hash: self.space.hash,
            hash: sum.value(),
            revision,
        })
    }

    /// Whether what was written is what the file holds. Nobody has seen it yet.
    async fn compare(&self, store: &dyn Store, wanted: u64) -> Result<(), BackupError> {
        let (machine, access) = (store.machine().clone(), Access::tenant(&*self.tenant));
        let read = tokio::task::spawn_blocking(move || machine.hash_while_closed(&access));
        let found = read.await.unwrap_or(Err(StoreError::Stopped))?.hash;
        if found == wanted {
            return Ok(());
        }
        Err(BackupError::Differs {
            space: format!("the key space of tenant {}", self.tenant),
            found,
            wanted,
        })
    }
}

/// Refuses rows that no space can have held, before anything is deleted for them.
fn check(rows: &Rows, revision: i64) -> Result<(), BackupError> {
    let odd = rows.keys.iter().any(|kv| {
        kv.key.is_empty() || kv.mod_revision > revision || !(1..=kv.mod_revision).contains(&kv.create_revision)
    });
    let odd = odd || rows.leases.iter().any(|lease| lease.id == 0 || lease.ttl_seconds <= 0);
    match odd {
        true => Err(BackupError::Damaged(
            "a key or a lease is such as no store has".to_owned(),
        )),
        false => Ok(()),
    }
}

fn leases(piece: Rows) -> Step {
    let grant = |lease: crate::pb::backup::Lease| LeaseGrant {
        id: lease.id,
        ttl_seconds: lease.ttl_seconds,
    };
    Step::Rows(RestoreRows {
        keys: Vec::new(),
        leases: piece.leases.into_iter().map(grant).collect(),
    })
}

/// The steps of a restore, one after the other.
struct Steps<'a> {
    store: &'a dyn Store,
    clock: &'a dyn Clock,
    tenant: &'a str,
    id: u64,
    next: u64,
}

impl Steps<'_> {
    /// Does the next step, and does it again until its fate is known: the store knows a step that it has done.
    async fn go(&mut self, part: Step) -> Result<i64, BackupError> {
        let step = RestoreSpace {
            id: self.id,
            step: self.next,
            part: Some(part),
        };
        let deadline = self.clock.mono() + PATIENCE;
        loop {
            match self.store.restore(self.tenant, step.clone()).await {
                Ok(revision) => {
                    self.next += 1;
                    return Ok(revision);
                }
                Err(error) if error.retryable() && self.clock.mono() < deadline => {
                    tracing::debug!(tenant = self.tenant, step = step.step, %error, "a step of a restore is tried again");
                    self.clock.sleep(PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The rows of a checked file, read beside the runtime.
struct FileRows {
    reader: Option<FileReader<BufReader<File>>>,
}

impl FileRows {
    fn open(path: &Path) -> Result<Self, BackupError> {
        let reader = Some(FileReader::new(open(path)?)?);
        Ok(Self { reader })
    }

    async fn next(&mut self) -> Result<Option<Rows>, BackupError> {
        let Some(mut reader) = self.reader.take() else {
            return Ok(None);
        };
        let read = tokio::task::spawn_blocking(move || {
            let rows = loop {
                match reader.part()? {
                    Some(Part::Rows(rows)) => break Some(rows),
                    Some(Part::Group(_) | Part::Space(..) | Part::SpaceEnd(_)) => {}
                    None => break None,
                }
            };
            Ok::<_, BackupError>((reader, rows))
        });
        let (reader, rows) = read.await.unwrap_or(Err(StoreError::Stopped.into()))?;
        self.reader = Some(reader);
        Ok(rows)
    }
}
