//! Load on a cluster, and the account of it.

use crate::TENANTS;
use crate::harness::{Cluster, access, put, wait_for};
use hanse_consensus::NodeId;
use hanse_state::Store as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Writers on given members: each writes fresh keys one after the other until told to stop.
pub struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeMap<String, i64>>>,
    unknown: Arc<Mutex<BTreeSet<String>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    /// Four on each of `members`.
    pub fn start(cluster: &Cluster, members: &[NodeId]) -> Self {
        let (stop, acknowledged, unknown) = (Arc::<AtomicBool>::default(), Arc::default(), Arc::default());
        let mut this = Self {
            stop,
            acknowledged,
            unknown,
            tasks: Vec::new(),
        };
        for id in members {
            for lane in 0..4 {
                let store = cluster.store(*id, TENANTS);
                let (stop, id) = (Arc::clone(&this.stop), *id);
                let (acknowledged, unknown) = (Arc::clone(&this.acknowledged), Arc::clone(&this.unknown));
                this.tasks.push(cluster.processes[&id].spawn(async move {
                    for n in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let key = format!("w{id}-{lane}-{n:06}");
                        match store.txn(&access(), put(&key, "v")).await {
                            Ok(answer) => {
                                acknowledged
                                    .lock()
                                    .unwrap()
                                    .insert(key, answer.header.unwrap().revision);
                            }
                            Err(error) if error.outcome_unknown() => {
                                unknown.lock().unwrap().insert(key);
                            }
                            Err(error) => assert!(error.retryable(), "{error}"),
                        }
                    }
                }));
            }
        }
        this
    }

    /// How many writes were acknowledged so far.
    pub fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Waits for more than so many.
    pub async fn more(&self, than: usize) {
        wait_for("acknowledged writes", || (self.count() > than).then_some(())).await;
    }

    /// Ends them; those of killed servers are gone already. Answers what was acknowledged, with revisions, and what nobody knows.
    pub async fn finish(self) -> (BTreeMap<String, i64>, BTreeSet<String>) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            if let Err(error) = task.await {
                assert!(error.is_cancelled(), "a writer failed: {error}");
            }
        }
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        let unknown = self.unknown.lock().unwrap().clone();
        (acknowledged, unknown)
    }
}
