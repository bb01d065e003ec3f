//! A client that follows a collection as controllers do: lists once, then watches, and after a break goes on from the
//! last version that it saw. It must see every object once, and must never be told to list again.

use anyhow::{Result, bail};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Between two tries to watch again.
const AGAIN: Duration = Duration::from_millis(50);
/// Connections that hang are found by the server's end of the watch.
const WATCH_SECONDS: u32 = 30;

#[derive(Debug, Default)]
struct Seen {
    /// How often each object was seen for the first time.
    added: BTreeMap<String, usize>,
    breaks: usize,
    fault: Option<String>,
}

/// A running watcher of ConfigMaps.
#[derive(Debug)]
pub struct Watcher {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Watcher {
    /// Starts to follow the ConfigMaps of the namespace `default`.
    pub async fn start(client: kube::Client) -> Result<Self> {
        let api: Api<ConfigMap> = Api::namespaced(client, "default");
        let list = api.list(&ListParams::default()).await?;
        let mut version = list.metadata.resource_version.unwrap_or_default();
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let own = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let ended = follow(&api, &mut version, &own).await;
                if ended.is_break() {
                    return;
                }
                own.lock().unwrap_or_else(PoisonError::into_inner).breaks += 1;
                tokio::time::sleep(AGAIN).await;
            }
        });
        Ok(Self { seen, task })
    }

    /// Waits until all of `names` were seen, each once.
    pub async fn saw_each_once(&self, names: &[String], limit: Duration) -> Result<()> {
        let check = async {
            loop {
                let missing: Vec<String> = {
                    let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(fault) = &seen.fault {
                        bail!("the watch could not go on: {fault}");
                    }
                    names.iter().filter(|n| !seen.added.contains_key(*n)).cloned().collect()
                };
                if missing.is_empty() {
                    return Ok(missing);
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        if tokio::time::timeout(limit, check)
            .await
            .map_or(Ok(vec![String::new()]), |r: Result<_>| r)?
            .is_empty()
        {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let twice: Vec<_> = seen.added.iter().filter(|(_, n)| **n > 1).collect();
            if !twice.is_empty() {
                bail!("the watch told objects twice: {twice:?}");
            }
            println!(
                "the watch went on over {} breaks and told all {} objects once",
                seen.breaks,
                names.len()
            );
            return Ok(());
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<_> = names.iter().filter(|n| !seen.added.contains_key(*n)).collect();
        bail!(
            "the watch did not tell within {limit:?}: {missing:?} (after {} breaks)",
            seen.breaks
        )
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches until the stream ends. Breaks when it cannot go on.
async fn follow(api: &Api<ConfigMap>, version: &mut String, seen: &Mutex<Seen>) -> std::ops::ControlFlow<()> {
    use std::ops::ControlFlow::{Break, Continue};
    let params = WatchParams::default().timeout(WATCH_SECONDS);
    let Ok(stream) = api.watch(&params, version).await else {
        return Continue(());
    };
    let mut stream = std::pin::pin!(stream);
    while let Ok(Some(event)) = stream.try_next().await {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            WatchEvent::Added(object) => {
                *version = object.metadata.resource_version.clone().unwrap_or_default();
                *seen.added.entry(object.metadata.name.unwrap_or_default()).or_default() += 1;
            }
            WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
                *version = object.metadata.resource_version.unwrap_or_default();
            }
            WatchEvent::Bookmark(mark) => *version = mark.metadata.resource_version,
            WatchEvent::Error(status) => {
                if status.code == 410 {
                    seen.fault = Some(format!("{status:?}"));
                    return Break(());
                }
                return Continue(());
            }
        }
    }
    Continue(())
}
