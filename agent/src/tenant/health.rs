//! Watches one tenant's API server, and puts in what every tenant has: a binding for its admins, the default service
//! account, and simulated nodes.

use super::gate::Gate;
use super::nodes;
use crate::api_proxy::ApiTarget;
use crate::error::AgentError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hanse_api::access::{CLUSTER_ADMIN, GROUP_TENANT_ADMINS, GROUP_TENANT_ROLE_PREFIX, TENANT_ROLES};
use hanse_api::intent::TenantPki;
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::pki::load_certs;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleRef, Subject};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// How often is looked while a tenant comes up.
const POLL_STARTING: Duration = Duration::from_millis(100);
/// How often is looked when it is up. Each look reads the store, over the wide area perhaps.
const POLL_READY: Duration = Duration::from_secs(10);
/// How long one look may take. kube-apiserver asks its store within `/readyz` for at most two seconds.
const LOOK: Duration = Duration::from_secs(4);
/// How long putting one round of objects in may take.
const BOOTSTRAP: Duration = Duration::from_secs(30);

/// How a tenant's API server is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// `/readyz` is good.
    pub serving: bool,
    /// The objects are in place too.
    pub ready: bool,
    /// What it lacks, for people.
    pub message: String,
    /// Its version.
    pub version: String,
}

/// What to watch.
pub struct Probe {
    /// The API server, to be opened when it can judge requests.
    pub target: Arc<ApiTarget>,
    /// It ran and was good before this probe: an earlier agent started it, or this one had looked at it with other keys.
    pub known: bool,
    /// Keys.
    pub pki: TenantPki,
    /// Time.
    pub clock: SharedClock,
    /// How many nodes of what kind are wanted; changes while the probe runs.
    pub nodes: watch::Receiver<nodes::Wanted>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl Probe {
    /// Looks and tells until it is dropped.
    pub async fn run(mut self, tell: watch::Sender<Health>) -> Result<(), AgentError> {
        let client = match client(self.target.tenant(), self.target.address(), &self.pki) {
            Ok(client) => client,
            Err(error) => {
                let message = hanse_runtime::supervisor::chain(&error);
                tell.send_replace(Health {
                    message,
                    ..Health::default()
                });
                return Err(error);
            }
        };
        let gate = Gate::new(self.target.clone(), self.known);
        let mut in_place: Option<nodes::Wanted> = None;
        loop {
            let wanted = self.nodes.borrow_and_update().clone();
            let (mut health, started) = self.look(&client).await;
            health.version.clone_from(&tell.borrow().version);
            health.ready = health.serving && in_place.as_ref() == Some(&wanted);
            if health.serving && !health.ready {
                // Already now: its clients can be started meanwhile.
                publish(
                    &tell,
                    Health {
                        message: "its first objects are being put in".into(),
                        ..health.clone()
                    },
                );
            }
            gate.looked(&client, health.serving, started, &*self.clock).await;
            if health.serving && !health.ready {
                match self.put_in(&client, &wanted).await {
                    Ok(version) => {
                        in_place = Some(wanted);
                        health.ready = true;
                        health.version = version;
                    }
                    Err(error) => health.message = hanse_runtime::supervisor::chain(&error),
                }
            }
            let ready = health.ready;
            publish(&tell, health);
            let pause = if ready && gate.is_open() {
                POLL_READY
            } else {
                POLL_STARTING
            };
            tokio::select! {
                () = self.clock.sleep(pause) => {}
                Ok(()) = self.nodes.changed() => {}
            }
        }
    }

    /// How it is, and whether its start is over.
    async fn look(&self, client: &Client) -> (Health, bool) {
        // Says more than the error of a client that cannot connect.
        let connected = timeout(&*self.clock, LOOK, TcpStream::connect(self.target.address())).await;
        if !matches!(connected, Ok(Ok(_))) {
            let health = Health {
                message: "its API server does not accept connections yet".into(),
                ..Health::default()
            };
            return (health, false);
        }
        let (serving, started, message) = match timeout(&*self.clock, LOOK, readyz(client)).await {
            Ok(Ok(())) => (true, true, String::new()),
            Ok(Err(error)) => (false, has_started(&error), describe(&error)),
            // It hangs on its store, which is asked after the steps of its start.
            Err(elapsed) => (false, true, format!("its API server: {elapsed}")),
        };
        let health = Health {
            serving,
            message,
            ..Health::default()
        };
        (health, started)
    }

    async fn put_in(&self, client: &Client, wanted: &nodes::Wanted) -> Result<String, AgentError> {
        let fault = |what| {
            move |source: kube::Error| AgentError::Kube {
                tenant: self.target.tenant().to_owned(),
                what,
                source: Box::new(source),
            }
        };
        let all = async {
            bind_admins(client)
                .await
                .map_err(fault("take the binding of tenant admins"))?;
            default_account(client)
                .await
                .map_err(fault("take the default service account"))?;
            nodes::converge(client, wanted)
                .await
                .map_err(fault("take the simulated nodes"))?;
            let version = client.apiserver_version().await.map_err(fault("tell its version"))?;
            Ok(version.git_version)
        };
        timeout(&*self.clock, BOOTSTRAP, all).await.unwrap_or_else(|elapsed| {
            Err(AgentError::Malformed {
                what: "start of the tenant",
                fault: elapsed.to_string(),
            })
        })
    }
}

fn publish(tell: &watch::Sender<Health>, health: Health) {
    tell.send_if_modified(|told| {
        let new = *told != health;
        *told = health;
        new
    });
}

/// A client with the tenant's admin certificate.
pub fn client(tenant: &str, address: SocketAddr, pki: &TenantPki) -> Result<Client, AgentError> {
    // kube takes the process' default; a second call changes nothing.
    let _first = rustls::crypto::aws_lc_rs::default_provider().install_default().is_ok();
    let malformed = |fault: String| AgentError::Malformed { what: "address", fault };
    let uri: http::Uri = format!("https://{address}")
        .parse()
        .map_err(|e: http::uri::InvalidUri| malformed(e.to_string()))?;
    let mut config = kube::Config::new(uri);
    let roots = load_certs(&pki.ca.cert).map_err(AgentError::keys(&format!("tenant {tenant}")))?;
    config.root_cert = Some(roots.iter().map(|cert| cert.to_vec()).collect());
    config.connect_timeout = Some(LOOK);
    config.read_timeout = Some(BOOTSTRAP);
    config.write_timeout = Some(BOOTSTRAP);
    config.auth_info.client_certificate_data = Some(STANDARD.encode(&pki.admin.cert));
    config.auth_info.client_key_data = Some(STANDARD.encode(&pki.admin.key).into());
    let fault = |source| AgentError::Kube {
        tenant: tenant.to_owned(),
        what: "get a client",
        source: Box::new(source),
    };
    Client::try_from(config).map_err(fault)
}

async fn readyz(client: &Client) -> Result<(), kube::Error> {
    let request = http::Request::get("/readyz")
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    client.request_text(request).await.map(|_ok| ())
}

/// `/readyz` lists its checks as text; only the failed ones are of interest.
fn describe(error: &kube::Error) -> String {
    let text = match error {
        kube::Error::Api(status) => status.message.clone(),
        other => hanse_runtime::supervisor::chain(other),
    };
    let failed: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("[-]"))
        .take(3)
        .collect();
    if failed.is_empty() {
        let first = text.lines().next().unwrap_or("no reason given");
        return format!("its API server is not ready: {first}");
    }
    format!("its API server is not ready: {}", failed.join("; "))
}

/// Whether `/readyz` failed for another reason than steps of the start that are not done.
fn has_started(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if !status.message.contains("[-]poststarthook/"))
}

/// Whether `error` says that the object is there already.
pub(super) fn exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Binds the groups by which the gateway says what its callers are inside: always these few, however many callers there are.
pub(super) async fn bind_admins(client: &Client) -> Result<(), kube::Error> {
    bind(client, GROUP_TENANT_ADMINS, CLUSTER_ADMIN).await?;
    for role in TENANT_ROLES {
        bind(client, &format!("{GROUP_TENANT_ROLE_PREFIX}{role}"), role).await?;
    }
    Ok(())
}

async fn bind(client: &Client, group: &str, role: &str) -> Result<(), kube::Error> {
    let binding = ClusterRoleBinding {
        metadata: ObjectMeta {
            name: Some(group.into()),
            ..ObjectMeta::default()
        },
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "ClusterRole".into(),
            name: role.into(),
        },
        subjects: Some(vec![Subject {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "Group".into(),
            name: group.into(),
            namespace: None,
        }]),
    };
    create(&Api::all(client.clone()), &binding).await
}

/// The controller manager would make it some seconds later; pods created before would be refused.
async fn default_account(client: &Client) -> Result<(), kube::Error> {
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some("default".into()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    create(&Api::namespaced(client.clone(), "default"), &account).await
}

/// Creates `object`; it is fine when it is there.
pub(super) async fn create<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    match api.create(&PostParams::default(), object).await {
        Err(error) if !exists(&error) => Err(error),
        _there => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failed_checks_are_told() {
        let text = "[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\nreadyz check failed";
        let status = kube::core::Status {
            message: text.into(),
            code: 500,
            ..kube::core::Status::default()
        };
        let told = describe(&kube::Error::Api(Box::new(status)));
        assert_eq!(told, "its API server is not ready: etcd failed: reason withheld");
    }

    #[test]
    fn a_start_goes_on_while_a_step_of_it_is_not_done() {
        let text = |message: &str| {
            kube::Error::Api(Box::new(kube::core::Status {
                message: message.into(),
                code: 500,
                ..kube::core::Status::default()
            }))
        };
        assert!(has_started(&text("[+]poststarthook/a ok\n[-]etcd failed")));
        assert!(!has_started(&text(
            "[+]etcd ok\n[-]poststarthook/rbac/bootstrap-roles failed"
        )));
    }
}
