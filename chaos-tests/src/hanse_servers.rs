//! `hanse server` processes that form one system, on loopback, with nothing around them: no agents, no front door.

use crate::store_cluster::{free_ports, local, tail};
use anyhow::{Context as _, Result, bail, ensure};
use hanse_runtime::clock::SystemClock;
use hanse_runtime::pki::{Ca, LeafSpec, sha256_hex};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// For them to form and serve; generous, because test machines are slow and busy.
const STARTING: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);
/// Ports of a server: gateway, Raft, tunnel.
const PORTS: usize = 3;
/// Access key of the only user, who may do everything.
pub const TOKEN: &str = "hak1.bench.0123456789abcdef0123456789abcdef";

/// One server.
#[derive(Debug)]
struct Server {
    gateway: SocketAddr,
    log: PathBuf,
    child: Child,
}

/// Running servers. Dropped, their processes are killed and their data is removed.
#[derive(Debug)]
pub struct HanseServers {
    /// Certificate of their authority, PEM.
    pub ca_pem: String,
    servers: Vec<Server>,
    _dir: TempDir,
}

impl HanseServers {
    /// Starts `count` of them, with their data below `data`. They may not serve yet ([`HanseServers::settle`]).
    pub fn start(program: &Path, data: &Path, count: usize) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("hanse-servers-")
            .tempdir_in(data)
            .context("make a folder for the data")?;
        let now = SystemClock::shared().wall();
        let ca = Ca::generate("bench", 1, now)?;
        let ports = free_ports(count * PORTS)?;
        let folder = dir.path().to_owned();
        let place = Place {
            dir: &folder,
            ca: &ca,
            members: members(&ports),
            url: format!("https://{}", local(ports[0])),
        };
        let mut all = Self {
            ca_pem: ca.cert_pem().to_owned(),
            servers: Vec::new(),
            _dir: dir,
        };
        for (n, ports) in ports.chunks(PORTS).enumerate() {
            let config = place.config(n, ports)?;
            let log = folder.join(format!("server-{n}.log"));
            let output = File::create(&log).context("open a log")?;
            let mut command = Command::new(program);
            command.args(["server", "--config"]).arg(config).stdin(Stdio::null());
            command
                .stdout(output.try_clone().context("share the log")?)
                .stderr(output);
            let child = command
                .spawn()
                .with_context(|| format!("start {}", program.display()))?;
            let gateway = local(ports[0]);
            // In its place at once: an error from here on ends those that run.
            all.servers.push(Server { gateway, log, child });
        }
        Ok(all)
    }

    /// Where their gateways listen.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|server| server.gateway).collect()
    }

    /// Numbers of their processes.
    pub fn processes(&self) -> Vec<u32> {
        self.servers.iter().map(|server| server.child.id()).collect()
    }

    /// Asks until `ready` says that the server at an address is, for each of them.
    pub async fn settle(&mut self, ready: impl AsyncFn(SocketAddr) -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        for server in &mut self.servers {
            while let Err(error) = ready(server.gateway).await {
                let log_end = tail(&server.log);
                if let Some(status) = server.child.try_wait().context("look after hanse server")? {
                    bail!("hanse server ended by itself ({status}); its log ends: {log_end}");
                }
                ensure!(
                    begun.elapsed() < STARTING,
                    "hanse server does not serve: {error:#}; its log ends: {log_end}"
                );
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }
}

impl Drop for HanseServers {
    fn drop(&mut self) {
        for server in &mut self.servers {
            if let Err(error) = server.child.kill().and_then(|()| server.child.wait().map(|_| ())) {
                eprintln!("hanse server: {error}");
            }
        }
    }
}

fn name(n: usize) -> String {
    format!("s-{}", n + 1)
}

fn region(n: usize) -> String {
    format!("r{}", n + 1)
}

/// The list that is the same in all configurations.
fn members(ports: &[u16]) -> String {
    let mut text = String::new();
    for (n, ports) in ports.chunks(PORTS).enumerate() {
        let [gateway, raft, tunnel] = [0, 1, 2].map(|at| local(ports[at]));
        // Writing to a String cannot fail.
        writeln!(
            text,
            "[[member]]\nid = {}\nname = '{}'\nregion = '{}'\ngateway = 'https://{gateway}'\nraft = '{raft}'\ntunnel = '{tunnel}'",
            n + 1,
            name(n),
            region(n)
        )
        .ok();
    }
    text
}

/// What the configurations have in common.
struct Place<'a> {
    dir: &'a Path,
    ca: &'a Ca,
    members: String,
    url: String,
}

impl Place<'_> {
    /// Keys, certificate and configuration of server `n`; gives the last.
    fn config(&self, n: usize, ports: &[u16]) -> Result<PathBuf> {
        let dir = self.dir.join(name(n));
        fs::create_dir(&dir).context("make a server's folder")?;
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).context("keep a file private")?;
            Ok::<_, anyhow::Error>(path)
        };
        let spec = LeafSpec {
            common_name: name(n),
            ips: vec!["127.0.0.1".parse()?],
            uris: vec![format!("hanse://server/{}", name(n))],
            client: true,
            server: true,
            days: 1,
            ..LeafSpec::default()
        };
        let leaf = self.ca.issue(&spec, SystemClock::shared().wall())?;
        let files = [
            ("ca", write("ca.pem", self.ca.cert_pem())?),
            ("ca_key", write("ca-key.pem", &self.ca.key_pair().key)?),
            ("cert", write("cert.pem", &leaf.cert)?),
            ("key", write("key.pem", &leaf.key)?),
            ("seal_key", write("seal.key", &"s".repeat(32))?),
        ];
        let (_, key) = TOKEN.split_once('.').context("an access key")?;
        let (id, secret) = key.split_once('.').context("an access key")?;
        let mut text = format!(
            "name = '{}'\nid = {}\nregion = '{}'\ndata_dir = '{}'\n[tls]\n",
            name(n),
            n + 1,
            region(n),
            dir.join("data").display()
        );
        for (key, file) in files {
            writeln!(text, "{key} = '{}'", file.display()).ok();
        }
        let [gateway, raft, tunnel] = [0, 1, 2].map(|at| local(ports[at]));
        writeln!(
            text,
            "[gateway]\nlisten = '{gateway}'\nexternal_url = '{}'\n[raft]\nlisten = '{raft}'\n[tunnel]\nlisten = '{tunnel}'",
            self.url
        )
        .ok();
        let hash = sha256_hex(secret.as_bytes());
        writeln!(
            text,
            "[bootstrap]\nadmin_key_id = '{id}'\nadmin_key_sha256 = '{hash}'\n{}",
            self.members
        )
        .ok();
        write("server.toml", &text)
    }
}
