//! A real etcd as a child process, from the project's pinned tools.

use hanse_runtime::clock::{Clock, SystemClock};
use hanse_state::pb::{self, maintenance_client::MaintenanceClient};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Where a pinned tool lies, if it was built on this machine.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let from_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .find(|file| file.is_file())
    };
    let found = match std::env::var("HANSE_KUBE_TOOLS") {
        Ok(word) if word == "PATH" => return from_path(),
        Ok(dir) => PathBuf::from(dir).join("bin").join(name),
        Err(_) => {
            let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
            cache.join("hanse/kube-tools/current/bin").join(name)
        }
    };
    if found.is_file() { Some(found) } else { from_path() }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) struct Etcd {
    child: Child,
    _dir: tempfile::TempDir,
    pub(crate) channel: Channel,
}

impl Etcd {
    /// Starts an empty etcd; none if there is no program for it.
    pub(crate) async fn start() -> Option<Self> {
        let program = tool("etcd")?;
        let dir = tempfile::tempdir().unwrap();
        let (client, peer) = (free_port(), free_port());
        let urls = |port: u16| format!("http://127.0.0.1:{port}");
        let child = Command::new(program)
            .args([
                "--data-dir",
                dir.path().to_str().unwrap(),
                "--log-level",
                "error",
                "--unsafe-no-fsync",
            ])
            .args([
                "--listen-client-urls",
                &urls(client),
                "--advertise-client-urls",
                &urls(client),
            ])
            .args([
                "--listen-peer-urls",
                &urls(peer),
                "--initial-advertise-peer-urls",
                &urls(peer),
            ])
            .args(["--initial-cluster", &format!("default={}", urls(peer))])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let channel = Endpoint::from_shared(urls(client)).unwrap().connect_lazy();
        wait_until_ready(channel.clone()).await;
        Some(Self {
            child,
            _dir: dir,
            channel,
        })
    }
}

pub(crate) async fn wait_until_ready(channel: Channel) {
    let clock = SystemClock::new();
    let deadline = clock.mono() + Duration::from_secs(30);
    let mut client = MaintenanceClient::new(channel);
    loop {
        match client.status(pb::StatusRequest {}).await {
            Ok(status) if status.get_ref().leader != 0 => return,
            other => assert!(clock.mono() < deadline, "no store within 30 s: {other:?}"),
        }
        clock.sleep(Duration::from_millis(50)).await;
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
