//! An unmodified kube-apiserver on members of a store.

use crate::store_cluster::{Cluster, free_ports, local, tail};
use anyhow::{Context as _, Result, bail, ensure};
use hanse_runtime::clock::SystemClock;
use hanse_runtime::pki::{Ca, LeafSpec, load_certs};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// For it to serve; generous, because test machines are slow and busy.
const STARTING: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(200);
/// Of its only user, who may do everything.
pub const TOKEN: &str = "soak";

/// A running kube-apiserver; it ends with this.
pub struct ApiServer {
    /// Of a user who may do everything. It tries nothing twice: a record is of requests, each sent once.
    pub client: Client,
    /// Where it listens.
    pub address: SocketAddr,
    /// Certificate of its authority, PEM.
    pub ca_pem: String,
    child: Child,
    log: PathBuf,
}

impl ApiServer {
    /// Starts one on the members of `cluster`, with `flags` besides the usual ones. It does not serve yet ([`ApiServer::settle`]).
    pub fn start(program: &Path, cluster: &Cluster, flags: &[String]) -> Result<Self> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        // Another test of this process may have done it.
        let _first = provider.install_default().is_ok();
        let now = SystemClock::shared().wall();
        let ca = Ca::generate("soak", 1, now)?;
        let spec = LeafSpec {
            ips: vec!["127.0.0.1".parse()?],
            server: true,
            days: 1,
            ..LeafSpec::default()
        };
        let leaf = ca.issue(&spec, now)?;
        let address = local(*free_ports(1)?.first().context("a free port")?);
        // Several may be on one cluster.
        let own = |name: &str| {
            cluster
                .folder()
                .join(format!("kube-apiserver-{}-{name}", address.port()))
        };
        let file = |name: &str, text: &str| {
            let path = own(name);
            std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            Ok::<_, anyhow::Error>(path.display().to_string())
        };
        let (cert, key) = (file("tls.crt", &leaf.cert)?, file("tls.key", &leaf.key)?);
        let tokens = file("tokens", &format!("{TOKEN},admin,admin,system:masters\n"))?;
        let log = own("log");
        let output = File::create(&log).context("open a log")?;
        let mut command = Command::new(program);
        command
            .arg(format!("--etcd-servers={}", cluster.urls().join(",")))
            .args(["--bind-address=127.0.0.1", &format!("--secure-port={}", address.port())])
            .arg(format!("--tls-cert-file={cert}"))
            .arg(format!("--tls-private-key-file={key}"))
            .arg(format!("--token-auth-file={tokens}"))
            .args([
                "--authorization-mode=AlwaysAllow",
                "--endpoint-reconciler-type=none",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--service-account-issuer=https://kubernetes.default.svc",
            ])
            .arg(format!("--service-account-key-file={cert}"))
            .arg(format!("--service-account-signing-key-file={key}"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("share the log")?)
            .stderr(output);
        let mut config = kube::Config::new(format!("https://{address}").parse()?);
        config.root_cert = Some(load_certs(ca.cert_pem())?.iter().map(|cert| cert.to_vec()).collect());
        config.auth_info.token = Some(TOKEN.to_owned().into());
        config.default_retry = false;
        let client = Client::try_from(config).context("make a client")?;
        let child = command
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self {
            client,
            address,
            ca_pem: ca.cert_pem().to_owned(),
            child,
            log,
        })
    }

    /// Does `prepare` until that goes well and the server says that it is ready: while it starts it refuses this and that.
    pub async fn settle(&mut self, prepare: impl AsyncFn(&Client) -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        loop {
            let ready = async {
                prepare(&self.client).await?;
                let ready = http::Request::get("/readyz").body(Vec::new())?;
                self.client.request_text(ready).await?;
                Ok::<_, anyhow::Error>(())
            };
            let Err(error) = ready.await else { return Ok(()) };
            self.runs()?;
            ensure!(
                begun.elapsed() < STARTING,
                "kube-apiserver does not serve: {error:#}; its log ends: {}",
                tail(&self.log)
            );
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Fails when it has ended.
    pub fn runs(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("look after kube-apiserver")? {
            bail!(
                "kube-apiserver ended by itself ({status}); its log ends: {}",
                tail(&self.log)
            );
        }
        Ok(())
    }

    /// The number of its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(|_| ())) {
            eprintln!("kube-apiserver: {error}");
        }
    }
}

/// The kind that defines kinds.
pub fn definitions() -> ApiResource {
    ApiResource {
        group: "apiextensions.k8s.io".into(),
        version: "v1".into(),
        api_version: "apiextensions.k8s.io/v1".into(),
        kind: "CustomResourceDefinition".into(),
        plural: "customresourcedefinitions".into(),
    }
}

/// Makes something of the whole cluster, unless it is there.
pub async fn make(client: &Client, resource: &ApiResource, object: &DynamicObject) -> Result<()> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    match api.create(&PostParams::default(), object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
        Err(error) => Err(error.into()),
    }
}
