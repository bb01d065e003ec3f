//! Members of one store, started as processes with the flags that etcd and `hanse store` share.

use anyhow::{Context as _, Result, ensure};
use hanse_state::pb;
use hanse_state::pb::kv_client::KvClient;
use hanse_state::pb::maintenance_client::MaintenanceClient;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// For a cluster to form and answer.
const FORMING: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// For one question about how a member is.
const ASK: Duration = Duration::from_secs(1);

/// Whose program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Etcd,
    Hanse,
}

impl Peer {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Hanse => "hanse store",
        }
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    pub etcd: PathBuf,
    pub hanse: PathBuf,
    /// Where data goes; the same file system for both.
    pub data: PathBuf,
}

struct Member {
    name: String,
    client: String,
    peer: String,
    child: Option<Child>,
    /// Stopped, so clients keep away from it.
    paused: bool,
}

/// A running cluster. Dropped, its processes are killed and its data is removed.
pub struct Cluster {
    pub peer: Peer,
    program: PathBuf,
    members: Vec<Member>,
    dir: TempDir,
}

impl Cluster {
    /// Starts `nodes` members and waits until each takes a write.
    pub async fn start(peer: Peer, programs: &Programs, nodes: usize) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("store-bench-")
            .tempdir_in(&programs.data)
            .context("make a folder for the data")?;
        let ports = free_ports(nodes * 2)?;
        let members = ports.chunks(2).enumerate().map(|(n, ports)| Member {
            name: format!("m{n}"),
            client: format!("http://127.0.0.1:{}", ports[0]),
            peer: format!("http://127.0.0.1:{}", ports[1]),
            child: None,
            paused: false,
        });
        let program = match peer {
            Peer::Etcd => &programs.etcd,
            Peer::Hanse => &programs.hanse,
        };
        let mut cluster = Self {
            peer,
            program: program.clone(),
            members: members.collect(),
            dir,
        };
        for n in 0..nodes {
            cluster.launch(n)?;
        }
        cluster.answers().await?;
        Ok(cluster)
    }

    /// Starts member `n`, anew or again.
    pub fn launch(&mut self, n: usize) -> Result<()> {
        let all: Vec<String> = self.members.iter().map(|m| format!("{}={}", m.name, m.peer)).collect();
        let member = &self.members[n];
        let mut command = Command::new(&self.program);
        if self.peer == Peer::Hanse {
            command.arg("store");
        }
        let flags = [
            ("--name", member.name.as_str()),
            ("--listen-client-urls", &member.client),
            ("--advertise-client-urls", &member.client),
            ("--listen-peer-urls", &member.peer),
            ("--initial-advertise-peer-urls", &member.peer),
            ("--initial-cluster", &all.join(",")),
            ("--log-level", "warn"),
        ];
        for (flag, value) in flags {
            command.args([flag, value]);
        }
        command.arg("--data-dir").arg(self.dir.path().join(&member.name));
        let log = self.dir.path().join(format!("{}.log", member.name));
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .context("open a log")?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        self.members[n].child = Some(child);
        Ok(())
    }

    /// `kill -9` of member `n`.
    pub fn kill(&mut self, n: usize) -> Result<()> {
        if let Some(mut child) = self.members[n].child.take() {
            child.kill().context("kill a member")?;
            child.wait().context("wait for a member")?;
        }
        Ok(())
    }

    /// Stops member `n` where it is, for good. Clients are kept away from it.
    pub fn pause(&mut self, n: usize) -> Result<()> {
        let member = &mut self.members[n];
        let pid = member
            .child
            .as_ref()
            .context("the member does not run")?
            .id()
            .to_string();
        let status = Command::new("kill").args(["-STOP", &pid]).status();
        ensure!(status.context("run kill")?.success(), "the member could not be stopped");
        member.paused = true;
        Ok(())
    }

    /// Waits until a write through each member is acknowledged.
    pub async fn answers(&self) -> Result<()> {
        let begun = Instant::now();
        for n in 0..self.members.len() {
            loop {
                let put = pb::PutRequest {
                    key: "ready".into(),
                    value: "?".into(),
                    ..Default::default()
                };
                let tried = KvClient::new(self.channel(n)?).put(put).await;
                match tried {
                    Ok(_) => break,
                    Err(status) => {
                        let log = self.dir.path().join(format!("{}.log", self.members[n].name));
                        ensure!(
                            begun.elapsed() < FORMING,
                            "{} member {n} does not answer: {status}; its log ends: {}",
                            self.peer.name(),
                            tail(&log)
                        );
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    pub fn nodes(&self) -> usize {
        self.members.len()
    }

    /// A new connection to member `n`.
    pub fn channel(&self, n: usize) -> Result<Channel> {
        let endpoint = Endpoint::from_shared(self.members[n].client.clone()).context("an URL")?;
        Ok(endpoint.connect_timeout(ASK).tcp_nodelay(true).connect_lazy())
    }

    /// A new connection to one of the members that serve, in turns.
    pub fn any_channel(&self, n: usize) -> Result<Channel> {
        let serving: Vec<usize> = (0..self.members.len()).filter(|n| !self.members[*n].paused).collect();
        ensure!(!serving.is_empty(), "no member serves");
        self.channel(serving[n % serving.len()])
    }

    /// The id of member `n`, as itself says.
    pub async fn id(&self, n: usize) -> Result<u64> {
        let mut client = MaintenanceClient::new(self.channel(n)?);
        let reply = client
            .status(pb::StatusRequest::default())
            .await
            .context("ask a member")?;
        Ok(reply
            .into_inner()
            .header
            .context("a status without a header")?
            .member_id)
    }

    /// The member that leads, as itself says.
    pub async fn leader(&self) -> Result<usize> {
        let begun = Instant::now();
        loop {
            for n in (0..self.members.len()).filter(|n| self.members[*n].child.is_some()) {
                let mut client = MaintenanceClient::new(self.channel(n)?);
                let asked = tokio::time::timeout(ASK, client.status(pb::StatusRequest::default())).await;
                let Ok(Ok(reply)) = asked else { continue };
                let reply = reply.into_inner();
                if reply.header.is_some_and(|h| h.member_id == reply.leader) {
                    return Ok(n);
                }
            }
            ensure!(begun.elapsed() < FORMING, "{} has no leader", self.peer.name());
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn stat(&self, read: impl Fn(&str) -> Option<u64>) -> u64 {
        let pids = self.members.iter().filter_map(|m| m.child.as_ref()).map(Child::id);
        pids.filter_map(|pid| read(&pid.to_string())).sum()
    }

    /// Processor time of all members so far.
    pub fn cpu(&self) -> Duration {
        let ticks = self.stat(|pid| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
            let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(user + system)
        });
        // A tick is 10 ms on every Linux that this runs on (USER_HZ, proc(5)).
        Duration::from_millis(ticks * 10)
    }

    /// Resident memory of all members, MiB.
    pub fn memory(&self) -> u64 {
        let kib = self.stat(|pid| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.split_whitespace().next()?.parse().ok()
        });
        kib / 1024
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for n in 0..self.members.len() {
            if let Err(error) = self.kill(n) {
                eprintln!("member {n}: {error:#}");
            }
        }
    }
}

fn tail(log: &Path) -> String {
    const LINES: usize = 5;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}

/// Ports that nobody has. They are free again when this returns, so another program could take one: then a member says so.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()
        .context("find free ports")?;
    listeners
        .iter()
        .map(|l| Ok(l.local_addr().context("find free ports")?.port()))
        .collect()
}
