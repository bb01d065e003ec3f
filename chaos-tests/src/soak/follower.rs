//! One client that follows a kind as controllers do: it lists, watches, and goes on after each break from what it saw last.

use super::book::{Change, Log, Relist, Seen};
use super::kinds::Kind;
use super::tally::{Tally, excuse};
use super::writer::revision;
use anyhow::{Result, bail};
use futures::TryStreamExt as _;
use kube::api::{Api, DynamicObject, ListParams, WatchEvent, WatchParams};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Between two tries to watch again.
const AGAIN: Duration = Duration::from_millis(50);
/// A follower that cannot list for so long has failed.
const LIST_LIMIT: Duration = Duration::from_secs(120);

/// A running follower.
pub(super) struct Follower {
    pub(super) kind: Kind,
    log: Arc<Mutex<Log>>,
    /// Why it gave up.
    fault: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

struct Task {
    kind: Kind,
    api: Api<DynamicObject>,
    params: WatchParams,
    /// Everything up to here was seen.
    reached: u64,
    log: Arc<Mutex<Log>>,
    tally: Arc<Tally>,
}

/// How a watch ended.
enum End {
    /// It goes on from where it was.
    Break,
    /// The revision is gone.
    Expired,
}

impl Follower {
    /// Lists, and begins to watch; the server ends each watch after `seconds`.
    pub(super) async fn start(kind: Kind, client: &kube::Client, seconds: u32, tally: &Arc<Tally>) -> Result<Self> {
        let log: Arc<Mutex<Log>> = Arc::default();
        let mut task = Task {
            kind,
            api: kind.api(client),
            params: WatchParams::default().timeout(seconds),
            reached: 0,
            log: log.clone(),
            tally: tally.clone(),
        };
        task.list().await?;
        let fault: Arc<Mutex<Option<String>>> = Arc::default();
        let note = fault.clone();
        let task = tokio::spawn(async move {
            if let Err(error) = task.follow().await {
                *note.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{error:#}"));
            }
        });
        Ok(Self { kind, log, fault, task })
    }

    /// What it saw so far.
    pub(super) fn log(&self) -> Log {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why it had to give up.
    pub(super) fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Task {
    fn lock(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: &kube::Error) -> Result<()> {
        // A stream that broke tells nothing about requests.
        let Some(why) = excuse(error) else {
            if matches!(error, kube::Error::Api(_)) {
                bail!("watch of {}: {error:?}", self.kind.plural());
            }
            return Ok(());
        };
        self.tally.failed(why, Instant::now());
        Ok(())
    }

    async fn list(&mut self) -> Result<()> {
        let begun = Instant::now();
        let list = loop {
            match self.api.list(&ListParams::default()).await {
                Ok(list) => break list,
                Err(error) if begun.elapsed() > LIST_LIMIT => bail!("list of {}: {error:?}", self.kind.plural()),
                Err(error) => self.failed(&error)?,
            }
            tokio::time::sleep(AGAIN).await;
        };
        let to: u64 = list.metadata.resource_version.as_deref().unwrap_or_default().parse()?;
        let mut present = std::collections::BTreeMap::new();
        for object in &list.items {
            present.insert(object.metadata.name.clone().unwrap_or_default(), revision(object)?);
        }
        let from = std::mem::replace(&mut self.reached, to);
        let mut log = self.lock();
        if from == 0 {
            log.begun = to;
        } else {
            log.relists.push(Relist { from, to, present });
        }
        Ok(())
    }

    async fn follow(mut self) -> Result<()> {
        loop {
            let end = self.watch().await?;
            {
                let mut log = self.lock();
                let last = log.seen.last().map(|seen| seen.change);
                log.breaks.push(last);
            }
            if matches!(end, End::Expired) {
                self.list().await?;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn watch(&mut self) -> Result<End> {
        let version = self.reached.to_string();
        let stream = match self.api.watch(&self.params, &version).await {
            Ok(stream) => stream,
            Err(kube::Error::Api(status)) if status.code == 410 => return Ok(End::Expired),
            Err(error) => {
                self.failed(&error)?;
                return Ok(End::Break);
            }
        };
        let mut stream = std::pin::pin!(stream);
        loop {
            let event = match stream.try_next().await {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(End::Break),
                Err(error) => {
                    self.failed(&error)?;
                    return Ok(End::Break);
                }
            };
            let (change, object) = match event {
                WatchEvent::Added(object) => (Change::Added, object),
                WatchEvent::Modified(object) => (Change::Modified, object),
                WatchEvent::Deleted(object) => (Change::Deleted, object),
                WatchEvent::Bookmark(mark) => {
                    let revision = mark.metadata.resource_version.parse()?;
                    self.note(Change::Mark, (String::new(), String::new()), revision);
                    continue;
                }
                WatchEvent::Error(status) if status.code == 410 => return Ok(End::Expired),
                WatchEvent::Error(status) => {
                    self.failed(&kube::Error::Api(status))?;
                    return Ok(End::Break);
                }
            };
            let revision = revision(&object)?;
            let meta = object.metadata;
            self.note(
                change,
                (meta.name.unwrap_or_default(), meta.uid.unwrap_or_default()),
                revision,
            );
        }
    }

    fn note(&mut self, change: Change, (name, uid): (String, String), revision: u64) {
        self.reached = self.reached.max(revision);
        let seen = Seen {
            change,
            name,
            uid,
            revision,
            at: Instant::now(),
        };
        self.lock().seen.push(seen);
    }
}
