//! Members of one store, started as processes with the flags that etcd and `hanse store` share. Nothing runs around them.

use crate::relay::{Links, LongLink, relay};
use anyhow::{Context as _, Result, bail, ensure};
use hanse_state::pb;
use hanse_state::pb::kv_client::KvClient;
use hanse_state::pb::maintenance_client::MaintenanceClient;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
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
    /// etcd itself.
    Etcd,
    /// `hanse store`.
    Hanse,
}

impl Peer {
    /// What tables call it.
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
    /// etcd.
    pub etcd: PathBuf,
    /// hanse.
    pub hanse: PathBuf,
    /// Where data goes; the same file system for both.
    pub data: PathBuf,
}

#[derive(Debug)]
struct Member {
    name: String,
    client: String,
    /// Where it listens for other members.
    listen_peer: String,
    /// Where others reach it: the same, or a relay before it.
    peer: String,
    /// Of this member alone: members of two versions can be together.
    program: PathBuf,
    child: Option<Child>,
    /// Clients keep away from it.
    avoided: bool,
}

/// A running cluster. Dropped, its processes are killed and its data is removed.
#[derive(Debug)]
pub struct Cluster {
    /// Whose program it runs.
    pub peer: Peer,
    members: Vec<Member>,
    /// With a relay before each member: what the relays share.
    links: Option<Arc<Links>>,
    dir: TempDir,
}

impl Cluster {
    /// Starts `nodes` members and waits until each takes a write.
    pub async fn start(peer: Peer, programs: &Programs, nodes: usize) -> Result<Self> {
        Self::start_with(peer, programs, nodes, None).await
    }

    /// As [`Cluster::start`], with a relay before each member's peer address, so that a link can be made long.
    pub async fn start_with_links(peer: Peer, programs: &Programs, nodes: usize) -> Result<Self> {
        Self::start_with(peer, programs, nodes, Some(Arc::default())).await
    }

    async fn start_with(peer: Peer, programs: &Programs, nodes: usize, links: Option<Arc<Links>>) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("store-bench-")
            .tempdir_in(&programs.data)
            .context("make a folder for the data")?;
        let ports = free_ports(nodes * 3)?;
        let program = match peer {
            Peer::Etcd => &programs.etcd,
            Peer::Hanse => &programs.hanse,
        };
        let mut members = Vec::new();
        for (n, ports) in ports.chunks(3).enumerate() {
            let mut reached_at = ports[1];
            if let Some(links) = &links {
                reached_at = ports[2];
                relay(links.clone(), n, local(reached_at), local(ports[1])).await?;
            }
            members.push(Member {
                name: format!("m{n}"),
                client: format!("http://{}", local(ports[0])),
                listen_peer: format!("http://{}", local(ports[1])),
                peer: format!("http://{}", local(reached_at)),
                program: program.clone(),
                child: None,
                avoided: false,
            });
        }
        let mut cluster = Self {
            peer,
            members,
            links,
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
        let mut command = Command::new(&member.program);
        if self.peer == Peer::Hanse {
            command.arg("store");
        }
        let flags = [
            ("--name", member.name.as_str()),
            ("--listen-client-urls", &member.client),
            ("--advertise-client-urls", &member.client),
            ("--listen-peer-urls", &member.listen_peer),
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
            .with_context(|| format!("start {}", member.program.display()))?;
        if let Some(links) = &self.links {
            links.is_process_of(n, child.id());
        }
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

    /// Stops member `n` as an operator does, and waits until it has ended.
    pub async fn stop(&mut self, n: usize) -> Result<()> {
        let mut child = self.members[n].child.take().context("the member does not run")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("no process number")?, Signal::TERM).context("stop a member")?;
        let begun = Instant::now();
        while child.try_wait().context("wait for a member")?.is_none() {
            if begun.elapsed() > FORMING {
                child.kill().context("kill a member")?;
                bail!("member {n} does not stop; its log ends: {}", self.log_end(n));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// What member `n` runs from its next start on.
    pub fn use_program(&mut self, n: usize, program: PathBuf) {
        self.members[n].program = program;
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
        member.avoided = true;
        Ok(())
    }

    /// Keeps clients away from member `n`, for good.
    pub fn avoid(&mut self, n: usize) {
        self.members[n].avoided = true;
    }

    /// Makes the link between two members long; gives how many connections it has by now.
    pub fn lengthen(&self, link: LongLink) -> Result<usize> {
        let links = self.links.as_ref().context("this cluster has no relays")?;
        Ok(links.lengthen(link))
    }

    /// The process of member `n`.
    pub fn process(&self, n: usize) -> Result<u32> {
        Ok(self.members[n].child.as_ref().context("the member does not run")?.id())
    }

    /// Waits until a write through each member is acknowledged.
    pub async fn answers(&self) -> Result<()> {
        for n in 0..self.members.len() {
            self.answers_at(n).await?;
        }
        Ok(())
    }

    /// Waits until a write through member `n` is acknowledged.
    pub async fn answers_at(&self, n: usize) -> Result<()> {
        let begun = Instant::now();
        loop {
            let put = pb::PutRequest {
                key: "ready".into(),
                value: "?".into(),
                ..Default::default()
            };
            let Err(status) = KvClient::new(self.channel(n)?).put(put).await else {
                return Ok(());
            };
            ensure!(
                begun.elapsed() < FORMING,
                "{} member {n} does not answer: {status}; its log ends: {}",
                self.peer.name(),
                self.log_end(n)
            );
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The last lines that member `n` wrote.
    pub fn log_end(&self, n: usize) -> String {
        tail(&self.dir.path().join(format!("{}.log", self.members[n].name)))
    }

    /// A folder beside the members' data, which goes with it.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Where clients reach the members.
    pub fn urls(&self) -> Vec<&str> {
        self.members.iter().map(|member| member.client.as_str()).collect()
    }

    /// How many members it has.
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
        let serving: Vec<usize> = (0..self.members.len()).filter(|n| !self.members[*n].avoided).collect();
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

    /// Hashes of all members over what can be read at one revision: equal, or members disagree about what they hold.
    pub async fn hashes(&self) -> Result<Vec<u32>> {
        let begun = Instant::now();
        loop {
            match self.try_hashes().await {
                Ok(hashes) => return Ok(hashes),
                // A member may be behind that revision, or it is compacted by now.
                Err(error) if begun.elapsed() > FORMING => return Err(error.context("no hashes of one revision")),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn try_hashes(&self) -> Result<Vec<u32>> {
        let range = pb::RangeRequest {
            key: "ready".into(),
            ..Default::default()
        };
        let reply = KvClient::new(self.channel(0)?).range(range).await.context("read")?;
        let revision = reply
            .into_inner()
            .header
            .context("an answer without a header")?
            .revision;
        let mut hashes = Vec::new();
        for n in 0..self.members.len() {
            let request = pb::HashKvRequest { revision };
            let reply = MaintenanceClient::new(self.channel(n)?).hash_kv(request).await;
            hashes.push(reply.with_context(|| format!("hash of member {n}"))?.into_inner().hash);
        }
        Ok(hashes)
    }

    /// Numbers of the members' processes.
    pub fn processes(&self) -> Vec<u32> {
        let children = self.members.iter().filter_map(|member| member.child.as_ref());
        children.map(Child::id).collect()
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

pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    const LINES: usize = 5;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}

/// Ports that nobody has. They are free again when this returns, so another program could take one: then a member says so.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()
        .context("find free ports")?;
    listeners
        .iter()
        .map(|l| Ok(l.local_addr().context("find free ports")?.port()))
        .collect()
}
