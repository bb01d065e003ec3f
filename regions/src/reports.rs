//! Takes agents' reports in, and stores them when something has changed.
//!
//! The last report of each agent is kept in memory. It becomes an [`Observation`] in the council only when it says
//! something that the stored one does not, so a heartbeat writes nothing; words that change without a fact are stored
//! seldom. The writes need no lease: whichever server an agent reports to tells the truth, and an overtaken report is
//! recognised ([`ObservationSpec::compare`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hanse_api::intent::AgentReport;
use hanse_api::meta::{Object, ObjectMeta};
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::rng::SharedRng;
use hanse_state::objects::{ObjectError, Objects, Op};
use parking_lot::Mutex;

use crate::address::Address;
use crate::error::{ReportError, StepError};
use crate::feed::SharedView;
use crate::observation::{Difference, OBSERVATIONS, Observation, ObservationSpec};
use crate::reconciler::{COMMIT_LIMIT, encode};

/// Longest report, in bytes.
pub const REPORT_MAX: usize = 8 << 20;
/// Agents whose last report is kept; beyond, the one that was silent longest is forgotten.
const AGENTS_MAX: usize = 10_000;
/// Changes of words alone are stored at most this often per agent.
const WORDS_EVERY: Duration = Duration::from_secs(10);
/// Tries to store one report; after that the next report does.
const TRIES: usize = 3;

struct Latest {
    spec: ObservationSpec,
    received: Duration,
    number: u64,
    writing: bool,
    stored_at: Option<Duration>,
}

/// The last report of each agent that reports here.
pub struct Reports {
    objects: Objects,
    view: Arc<SharedView>,
    clock: SharedClock,
    rng: SharedRng,
    latest: Mutex<BTreeMap<String, Latest>>,
}

impl std::fmt::Debug for Reports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reports")
            .field("agents", &self.latest.lock().len())
            .finish_non_exhaustive()
    }
}

/// Ends the claim to write for a cluster, also when the future that holds it is dropped.
struct Claim<'a> {
    reports: &'a Reports,
    cluster: &'a str,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(latest) = self.reports.latest.lock().get_mut(self.cluster) {
            latest.writing = false;
        }
    }
}

impl Reports {
    /// Without reports yet.
    pub fn new(objects: Objects, view: Arc<SharedView>, clock: SharedClock, rng: SharedRng) -> Self {
        Self {
            objects,
            view,
            clock,
            rng,
            latest: Mutex::default(),
        }
    }

    /// Takes in a report of the agent of `cluster`, as its certificate names it. Returns when it is stored, if it had
    /// to be. May be called for the same agent again meanwhile: then the newest report is stored, by one of the
    /// callers.
    pub async fn receive(&self, cluster: &str, report: &[u8]) -> Result<(), ReportError> {
        if report.len() > REPORT_MAX {
            return Err(ReportError::TooLarge {
                cluster: cluster.to_owned(),
                length: report.len(),
            });
        }
        let report: AgentReport = serde_json::from_slice(report).map_err(|source| ReportError::Json {
            cluster: cluster.to_owned(),
            source,
        })?;
        if !self.keep(cluster, ObservationSpec::compact(&report)) {
            return Ok(());
        }
        let _claim = Claim { reports: self, cluster };
        for _ in 0..TRIES {
            let Some((number, spec)) = self.latest.lock().get(cluster).map(|l| (l.number, l.spec.clone())) else {
                break;
            };
            self.store(cluster, &spec).await.map_err(ReportError::Store)?;
            if self
                .latest
                .lock()
                .get(cluster)
                .is_none_or(|latest| latest.number == number)
            {
                break;
            }
        }
        Ok(())
    }

    /// The last report of the agent of `cluster`, and how long ago it came here.
    pub fn last(&self, cluster: &str) -> Option<(ObservationSpec, Duration)> {
        let now = self.clock.mono();
        self.latest
            .lock()
            .get(cluster)
            .map(|latest| (latest.spec.clone(), now.saturating_sub(latest.received)))
    }

    /// Keeps `spec`; whether the caller shall store it.
    fn keep(&self, cluster: &str, spec: ObservationSpec) -> bool {
        let now = self.clock.mono();
        let mut all = self.latest.lock();
        if all.len() >= AGENTS_MAX && !all.contains_key(cluster) {
            let silent = all
                .iter()
                .filter(|(_, l)| !l.writing)
                .min_by_key(|(_, l)| l.received)
                .map(|(c, _)| c.clone());
            if let Some(silent) = silent {
                all.remove(&silent);
            }
        }
        let latest = all.entry(cluster.to_owned()).or_insert_with(|| Latest {
            spec: ObservationSpec::default(),
            received: now,
            number: 0,
            writing: false,
            stored_at: None,
        });
        latest.spec = spec;
        latest.received = now;
        latest.number += 1;
        !std::mem::replace(&mut latest.writing, true)
    }

    async fn store(&self, cluster: &str, spec: &ObservationSpec) -> Result<(), StepError> {
        let seen = self.view.read(|view| {
            view.clusters
                .named(cluster)
                .map(|_| view.observations.named(cluster).cloned())
        });
        let Some(mut stored) = seen.map(|item| item.map(|i| (i.object.as_ref().clone(), i.revision))) else {
            tracing::debug!(cluster, "a report of a cluster that does not exist (yet) is not stored");
            return Ok(());
        };
        for _ in 0..TRIES {
            if !self.worth_storing(cluster, stored.as_ref().map(|(o, _)| &o.spec), spec) {
                return Ok(());
            }
            let key = Address::global(cluster).key(OBSERVATIONS);
            let op = match &stored {
                Some((old, expected)) => {
                    let new = Observation {
                        spec: spec.clone(),
                        ..old.clone()
                    };
                    Op::Update {
                        key: key.clone(),
                        value: encode(&new)?,
                        expected: *expected,
                    }
                }
                None => Op::Create {
                    key: key.clone(),
                    value: encode(&self.new_observation(cluster, spec))?,
                },
            };
            match timeout(self.clock.as_ref(), COMMIT_LIMIT, self.objects.commit(vec![op])).await {
                Ok(Ok(_)) => {
                    let now = self.clock.mono();
                    if let Some(latest) = self.latest.lock().get_mut(cluster) {
                        latest.stored_at = Some(now);
                    }
                    return Ok(());
                }
                // Another server stored one meanwhile, or the view is behind: compare with what is there.
                Ok(Err(ObjectError::Failed { found, .. })) => stored = decode(cluster, found)?,
                Ok(Err(error)) => return Err(StepError::Council(error)),
                Err(_) => return Err(StepError::Timeout("storing a report")),
            }
        }
        Err(StepError::Conflict(format!("the observation of cluster {cluster}")))
    }

    fn worth_storing(&self, cluster: &str, stored: Option<&ObservationSpec>, new: &ObservationSpec) -> bool {
        match stored.map(|old| old.compare(new)) {
            None | Some(Difference::Facts) => true,
            Some(Difference::None | Difference::Older) => false,
            Some(Difference::Words) => {
                let now = self.clock.mono();
                let stored_at = self.latest.lock().get(cluster).and_then(|latest| latest.stored_at);
                stored_at.is_none_or(|at| now.saturating_sub(at) >= WORDS_EVERY)
            }
        }
    }

    fn new_observation(&self, cluster: &str, spec: &ObservationSpec) -> Observation {
        Object {
            api_version: OBSERVATIONS.api_version(),
            kind: OBSERVATIONS.kind.to_owned(),
            metadata: ObjectMeta {
                name: cluster.to_owned(),
                uid: self.rng.uuid(),
                generation: 1,
                creation_timestamp: Some(self.clock.wall()),
                ..ObjectMeta::default()
            },
            spec: spec.clone(),
            status: (),
        }
    }
}

fn decode(cluster: &str, found: Option<hanse_state::objects::Stored>) -> Result<Option<(Observation, i64)>, StepError> {
    let Some(found) = found else { return Ok(None) };
    let object = serde_json::from_slice(&found.value).map_err(|source| StepError::Json {
        what: format!("the observation of cluster {cluster}"),
        source,
    })?;
    Ok(Some((object, found.revision)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, START, objects};
    use hanse_api::intent::{TenantReport, TenantState};
    use hanse_runtime::clock::Clock;
    use hanse_runtime::clock::testing::ManualClock;
    use hanse_runtime::rng::SeededRng;

    fn reports(objects: &Objects) -> (Reports, ManualClock) {
        let clock = ManualClock::new(START);
        let view = Arc::new(SharedView::new(Fixture::new().view));
        (
            Reports::new(
                objects.clone(),
                view,
                Arc::new(clock.clone()),
                Arc::new(SeededRng::new(2)),
            ),
            clock,
        )
    }

    fn report(clock: &ManualClock, state: TenantState, message: &str) -> Vec<u8> {
        let tenant = TenantReport {
            tenant: "t".into(),
            state,
            message: message.into(),
            ..Default::default()
        };
        let report = AgentReport {
            observed_at: clock.wall(),
            tenants: vec![tenant],
            ..Default::default()
        };
        serde_json::to_vec(&report).unwrap()
    }

    #[tokio::test]
    async fn heartbeats_write_nothing_facts_at_once_and_words_seldom() {
        let objects = objects();
        let (reports, clock) = reports(&objects);
        let mut revision = objects.store().revision();
        // The view of this test is not fed: what is stored is found by the refused commit.
        for (after, state, message, writes) in [
            (0, TenantState::Starting, "etcd", 1),
            (5, TenantState::Starting, "etcd", 0),
            (1, TenantState::Starting, "apiserver", 0),
            (9, TenantState::Starting, "apiserver", 1),
            (1, TenantState::Ready, "", 1),
            (5, TenantState::Ready, "", 0),
        ] {
            clock.advance(Duration::from_secs(after));
            reports.receive("eu", &report(&clock, state, message)).await.unwrap();
            let now = objects.store().revision();
            assert_eq!(now - revision, writes, "{state:?} {message}");
            revision = now;
        }
        assert_eq!(reports.last("eu").unwrap().0.tenants[0].state, TenantState::Ready);
        assert!(reports.last("us").is_none());
    }

    #[tokio::test]
    async fn what_is_no_report_or_of_no_cluster_is_not_stored() {
        let objects = objects();
        let (reports, clock) = reports(&objects);
        let revision = objects.store().revision();
        assert!(matches!(
            reports.receive("eu", b"{").await,
            Err(ReportError::Json { .. })
        ));
        let long = vec![b' '; REPORT_MAX + 1];
        assert!(matches!(
            reports.receive("eu", &long).await,
            Err(ReportError::TooLarge { .. })
        ));
        reports
            .receive("nowhere", &report(&clock, TenantState::Ready, ""))
            .await
            .unwrap();
        assert_eq!(objects.store().revision(), revision);
    }
}
