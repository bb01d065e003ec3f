//! Sends intents to the agents that have a session with this server: on change and on connect. Runs on every server.
//!
//! An agent has sessions with several servers and gets the same intent from each; epoch and revision tell it which one
//! counts. So no server waits for another, and an agent that is cut off from one region is served by the rest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hanse_api::Timestamp;
use hanse_api::intent::{Intent, TenantIntent};
use hanse_api::resources::IntentObject;
use hanse_runtime::clock::SharedClock;
use hanse_runtime::seal::Sealer;
use hanse_tunnel::AgentHub;
use tokio_util::sync::CancellationToken;

use crate::error::StepError;
use crate::feed::SharedView;
use crate::tenant_pki;
use crate::view::{Item, View};

/// What could not be delivered is tried again this often, although nothing changed.
const RETRY: Duration = Duration::from_secs(2);

/// An intent with the sealed keys that belong to it.
struct Sealed {
    intent: Item<IntentObject>,
    keys: Vec<String>,
}

/// What was sent, and to which session.
#[derive(PartialEq, Eq)]
struct Sent {
    revision: i64,
    session: (Timestamp, String),
}

/// Sends intents.
pub struct Delivery {
    /// What this server knows of the council.
    pub view: Arc<SharedView>,
    /// Agents that are connected here.
    pub hub: Arc<dyn AgentHub>,
    /// Opens the tenants' keys.
    pub sealer: Sealer,
    /// Time.
    pub clock: SharedClock,
}

impl Delivery {
    /// Works until `cancel`.
    pub async fn run(self, cancel: CancellationToken) {
        let (mut version, mut connected) = (self.view.version(), self.hub.changes());
        let mut sent = BTreeMap::new();
        loop {
            version.mark_unchanged();
            connected.mark_unchanged();
            let complete = self.deliver(&mut sent);
            let retry = async {
                if complete {
                    futures::future::pending::<()>().await;
                }
                self.clock.sleep(RETRY).await;
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                changed = version.changed() => if changed.is_err() { return },
                changed = connected.changed() => if changed.is_err() { return },
                () = retry => {}
            }
        }
    }

    /// Sends what was not sent yet. Whether nothing is left to send.
    fn deliver(&self, sent: &mut BTreeMap<String, Sent>) -> bool {
        let mut sessions = BTreeMap::new();
        for session in self.hub.sessions() {
            let latest = sessions
                .entry(session.cluster)
                .or_insert((session.since, session.boot_id.clone()));
            if session.since >= latest.0 {
                *latest = (session.since, session.boot_id);
            }
        }
        sent.retain(|cluster, _| sessions.contains_key(cluster));
        let mut complete = true;
        for (cluster, session) in sessions {
            let Some(revision) = self.view.read(|view| view.intents.named(&cluster).map(|i| i.revision)) else {
                continue;
            };
            let wanted = Sent { revision, session };
            if sent.get(&cluster) == Some(&wanted) {
                continue;
            }
            match self.send(&cluster) {
                Ok(Some(revision)) => {
                    sent.insert(cluster, Sent { revision, ..wanted });
                }
                // No session any more, or the keys are not here yet: both come with a change.
                Ok(None) => complete = false,
                Err(error) => {
                    // Not even in part: an agent that gets an intent without a tenant removes that tenant.
                    tracing::error!(cluster, %error, "an intent cannot be sent by this server");
                    complete = false;
                }
            }
        }
        complete
    }

    fn send(&self, cluster: &str) -> Result<Option<i64>, StepError> {
        let Some(sealed) = self.view.read(|view| collect(view, cluster)) else {
            return Ok(None);
        };
        let revision = sealed.intent.revision;
        let tenants = open(&self.sealer, &sealed)?;
        let intent = Intent {
            cluster: cluster.to_owned(),
            epoch: sealed.intent.object.spec.epoch,
            revision,
            tenants,
        };
        let bytes = serde_json::to_vec(&intent).map_err(|source| StepError::Json {
            what: format!("the intent of cluster {cluster}"),
            source,
        })?;
        let taken = self.hub.send_intent(cluster, Bytes::from(bytes));
        tracing::debug!(cluster, revision, taken, "intent sent");
        Ok(taken.then_some(revision))
    }
}

/// The intent of `cluster` with its keys; nothing while one of them is not here.
fn collect(view: &View, cluster: &str) -> Option<Sealed> {
    let intent = view.intents.named(cluster)?.clone();
    let keys = intent
        .object
        .spec
        .tenants
        .iter()
        .map(|tenant| {
            view.host_of(&tenant.tenant)
                .map(|store| store.object.spec.sealed_pki.clone())
        })
        .collect::<Option<Vec<_>>>()?;
    Some(Sealed { intent, keys })
}

fn open(sealer: &Sealer, sealed: &Sealed) -> Result<Vec<TenantIntent>, StepError> {
    let tenants = sealed.intent.object.spec.tenants.iter();
    tenants
        .zip(&sealed.keys)
        .map(|(tenant, keys)| {
            let pki = tenant_pki::open(sealer, &tenant.tenant, keys)?;
            Ok(TenantIntent {
                pki: Some(pki),
                ..tenant.clone()
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::world::Agent;
    use crate::testing::{Fixture, START, at, vci};
    use hanse_api::kinds::TENANT_STORES;
    use hanse_runtime::clock::testing::ManualClock;
    use hanse_runtime::rng::SeededRng;
    use hanse_tunnel::AgentEvents;
    use hanse_tunnel::testing::LoopbackHub;

    #[test]
    fn all_keys_or_nothing_once_per_session() {
        let rng = SeededRng::new(4);
        let sealer = Sealer::from_key(&Sealer::generate(&rng)).unwrap();
        let mut fixture = Fixture::new();
        for name in ["a", "b"] {
            fixture.tenant(&vci(name)).store(name, "eu");
        }
        let revision = fixture.intent("eu", &["a", "b"]);
        let (hub, agent) = (Arc::new(LoopbackHub::new()), Agent::new("eu"));
        let connect = || hub.connect("eu", Arc::clone(&agent) as Arc<dyn AgentEvents>);
        connect();
        let delivery = Delivery {
            view: Arc::new(SharedView::new(fixture.view)),
            hub: Arc::clone(&hub) as Arc<dyn AgentHub>,
            sealer: sealer.clone(),
            clock: Arc::new(ManualClock::new(START)),
        };
        let mut sent = BTreeMap::new();
        let seal = |name: &str| {
            let pki = tenant_pki::generate(&format!("uid-{name}"), START).unwrap();
            let sealed = tenant_pki::seal(&sealer, &rng, &format!("uid-{name}"), &pki).unwrap();
            let mut store = delivery
                .view
                .read(|view| view.stores.get(&at(name)).unwrap().object.as_ref().clone());
            store.spec.sealed_pki = sealed;
            let value = serde_json::to_vec(&store).unwrap().into();
            let raw = crate::view::Raw {
                address: at(name),
                value,
                revision: 900,
            };
            delivery
                .view
                .update(|view| view.put(TENANT_STORES, &raw).into_iter().collect());
        };
        seal("a");
        assert!(!delivery.deliver(&mut sent), "the keys of b cannot be opened");
        assert_eq!(agent.last_intent(), None);
        seal("b");
        assert!(delivery.deliver(&mut sent));
        let intent = agent.take_intent().unwrap();
        assert_eq!((intent.revision, intent.tenants.len()), (revision, 2));
        assert!(intent.tenants.iter().all(|tenant| tenant.pki.is_some()));
        assert!(delivery.deliver(&mut sent));
        assert_eq!(agent.last_intent(), None, "sent once");
        hub.disconnect("eu");
        assert!(delivery.deliver(&mut sent));
        connect();
        assert!(delivery.deliver(&mut sent));
        assert_eq!(
            agent.last_intent().unwrap().revision,
            revision,
            "a new session gets it again"
        );
    }
}
