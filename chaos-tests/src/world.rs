//! An installation of its own: loopback block, home, kubeconfig. It goes without a trace when the test calls
//! [`World::finish`]; otherwise its files stay for whoever looks into the failure, and only its processes go.

use crate::processes::{self, Process};
use crate::programs::{binary, checked, tool};
use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// For a leader to be there and to be told, whoever was killed.
const LEADER_LIMIT: Duration = Duration::from_secs(30);

/// An installation under test.
#[derive(Debug)]
pub struct World {
    dir: Option<TempDir>,
    binary: PathBuf,
    kubectl: PathBuf,
    block: u8,
    /// Names of its regions; the usual ones if empty.
    regions: Vec<String>,
}

impl World {
    /// Brings one up, without a tenant. `block` must differ from those of all other tests.
    pub fn up(block: u8) -> Result<Self> {
        Self::up_with(block, &[])
    }

    /// The same with other regions than the usual ones.
    pub fn up_with(block: u8, regions: &[&str]) -> Result<Self> {
        let mut world = Self::new(block)?;
        world.regions = regions.iter().map(|region| (*region).to_owned()).collect();
        let took = world.go_on()?;
        println!("up, cold: {took:.1?}");
        Ok(world)
    }

    /// The place for one, with nothing in it yet.
    pub fn new(block: u8) -> Result<Self> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        // Another test of this process may have done it.
        let _first = provider.install_default().is_ok();
        let dir = tempfile::Builder::new()
            .prefix("hanse-")
            .tempdir()
            .context("make a folder")?;
        Ok(Self {
            dir: Some(dir),
            binary: binary()?,
            kubectl: tool("kubectl")?,
            block,
            regions: Vec::new(),
        })
    }

    /// Starts `hanse up` and kills it after `delay`, wherever it is by then.
    pub fn interrupted_up(&self, delay: Duration) -> Result<()> {
        let block = self.block.to_string();
        let mut command = self.command(&self.binary);
        command
            .args(["up", "--no-tenant", "--address-block", &block])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().context("start hanse up")?;
        std::thread::sleep(delay);
        child.kill().context("kill hanse up")?;
        child.wait().map(|_| ()).context("wait for hanse up")
    }

    /// `hanse up`, again; says how long it took.
    pub fn go_on(&self) -> Result<Duration> {
        let begun = Instant::now();
        let (block, regions) = (self.block.to_string(), self.regions.join(","));
        let mut args = vec!["up", "--no-tenant", "--address-block", &block];
        if !regions.is_empty() {
            args.extend(["--regions", &regions]);
        }
        self.hanse(&args)?;
        Ok(begun.elapsed())
    }

    fn dir(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new(""), TempDir::path)
    }

    /// A place beside the installation.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Home of the installation.
    pub fn home(&self) -> PathBuf {
        self.dir().join("h")
    }

    /// What clients use.
    pub fn url(&self) -> String {
        format!("https://127.{}.0.1:8443", self.block)
    }

    /// Its kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("HANSE_HOME", self.home())
            .env("HANSE_CONFIG", self.dir().join("login.toml"));
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBECACHEDIR", self.dir().join("kube-cache"));
        command.env_remove("HANSE_SERVER").stdin(Stdio::null());
        command
    }

    /// `hanse`, to be started.
    pub fn hanse_command(&self) -> Command {
        self.command(&self.binary)
    }

    /// Runs `hanse`; gives its standard output.
    pub fn hanse(&self, args: &[&str]) -> Result<String> {
        let output = self.command(&self.binary).args(args).output().context("run hanse")?;
        checked(&format!("hanse {}", args.join(" ")), output)
    }

    /// `hanse kubectl` is not a thing: this is the real kubectl, in `context`.
    pub fn kubectl(&self, context: &str, args: &[&str]) -> Result<String> {
        let output = self.kubectl_command(context, args).output().context("run kubectl")?;
        checked(&format!("kubectl {}", args.join(" ")), output)
    }

    /// kubectl in `context`, to be started.
    pub fn kubectl_command(&self, context: &str, args: &[&str]) -> Command {
        let mut command = self.command(&self.kubectl);
        command.args(["--context", context, "--request-timeout=5s"]).args(args);
        command
    }

    /// A Kubernetes client that goes through `context`. It tries nothing twice: tests are to see what users would.
    pub async fn client(&self, context: &str) -> Result<kube::Client> {
        let file = kube::config::Kubeconfig::read_from(self.kubeconfig()).context("read the kubeconfig")?;
        let options = kube::config::KubeConfigOptions {
            context: Some(context.to_owned()),
            ..Default::default()
        };
        let mut config = kube::Config::from_custom_kubeconfig(file, &options)
            .await
            .context("use the kubeconfig")?;
        config.default_retry = false;
        kube::Client::try_from(config).context("make a client")
    }

    /// Creates the tenant cluster `name` in `region` and connects to it; gives its context.
    pub fn tenant(&self, name: &str, region: &str) -> Result<String> {
        let begun = Instant::now();
        self.hanse(&["create", name, "--region", region, "--simulated-nodes", "1"])?;
        println!("tenant {name} in {region} answers after {:.1?}", begun.elapsed());
        self.hanse(&["connect", name])?;
        Ok(format!("hanse_{name}_default"))
    }

    /// The `server`, `agent` or (with an empty region) `front-door`, which must run.
    pub fn process(&self, role: &str, region: &str) -> Result<Process> {
        let run = if region.is_empty() {
            self.home().join("run")
        } else {
            self.region(region).join("run")
        };
        let process = processes::read(&run.join(format!("{role}.pid")), "start")?;
        if process.is_alive() {
            Ok(process)
        } else {
            bail!("{role} {region} does not run")
        }
    }

    /// Folder of a region.
    pub fn region(&self, region: &str) -> PathBuf {
        self.home().join("regions").join(region)
    }

    /// Processes of tenants in `region`.
    pub fn tenant_processes(&self, region: &str) -> Result<std::collections::BTreeMap<String, Process>> {
        processes::of_tenants(&self.region(region).join("agent"))
    }

    /// Every process of this installation, with its command line.
    pub fn all_processes(&self) -> Vec<(Process, String)> {
        processes::holding(&self.home().display().to_string())
    }

    /// `hanse status -o json`.
    pub fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.hanse(&["status", "-o", "json"])?).context("read the status")
    }

    /// Region of the server that leads the Raft group `group`; for a moment it may be none, or one that is slow to say so.
    pub fn leader(&self, group: u64) -> Result<String> {
        let mut found = String::new();
        self.until("a leader", LEADER_LIMIT, || {
            found = self.leader_now(group)?;
            Ok(())
        })?;
        Ok(found)
    }

    fn leader_now(&self, group: u64) -> Result<String> {
        let status = self.status()?;
        let servers = status["servers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let leads = |server: &&Value| {
            let groups = server["status"]["groups"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            groups
                .iter()
                .any(|g| g["group"].as_u64().unwrap_or(0) == group && g["role"] == "Leader")
        };
        let leader = servers
            .iter()
            .find(leads)
            .and_then(|server| server["spec"]["region"].as_str());
        leader
            .map(str::to_owned)
            .ok_or_else(|| anyhow!("group {group} has no leader in {servers:?}"))
    }

    /// Waits until `holds`, with the last reason in the failure.
    pub fn until(&self, what: &str, limit: Duration, mut holds: impl FnMut() -> Result<()>) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            match holds() {
                Ok(()) => return Ok(begun.elapsed()),
                Err(why) if begun.elapsed() > limit => {
                    return Err(why.context(format!("{what}: not within {limit:?}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Ends the test well: stops and removes everything, and makes sure that nothing is left.
    pub fn finish(mut self) -> Result<()> {
        self.hanse(&["down", "--delete"])?;
        let left = self.all_processes();
        if !left.is_empty() {
            bail!("processes outlived `down`: {left:?}");
        }
        if self.home().exists() {
            bail!("`down --delete` left {}", self.home().display());
        }
        let dir = self.dir.take();
        dir.map_or(Ok(()), |dir| dir.close().context("remove the folder"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        let path = dir.keep();
        eprintln!("the installation's files are kept in {}", path.display());
        let down = Command::new(&self.binary)
            .args(["down", "--home"])
            .arg(path.join("h"))
            .output();
        if !down.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("`hanse down` failed: {down:?}");
        }
        for (process, line) in processes::holding(&path.display().to_string()) {
            eprintln!("killing what is left: {line}");
            if let Err(error) = process.kill() {
                eprintln!("{error:#}");
            }
        }
    }
}
