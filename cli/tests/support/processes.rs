//! Programs that tests start, and where they listen.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Child;

/// Where a pinned tool lies, if it was built on this machine.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let folder = match std::env::var_os("HANSE_KUBE_TOOLS") {
        Some(word) if word == "PATH" => {
            let path = std::env::var_os("PATH")?;
            return std::env::split_paths(&path)
                .map(|dir| dir.join(name))
                .find(|file| file.is_file());
        }
        Some(dir) => PathBuf::from(dir),
        None => {
            let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
            let tools = cache.join("hanse/kube-tools");
            // What only tests run lies beside what the program runs: `cargo xtask etcd-suite` builds etcdutl.
            let found = ["current", "etcd-suite"].map(|folder| tools.join(folder).join("bin").join(name));
            return found.into_iter().find(|file| file.is_file());
        }
    };
    Some(folder.join("bin").join(name)).filter(|file| file.is_file())
}

/// Reads a process' standard error until it says that it serves.
pub(crate) fn wait_until_ready(process: &mut Child) {
    let mut lines = BufReader::new(process.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    assert!(
        lines.any(|line| line.contains("ready to serve client requests")),
        "a member ended"
    );
    // Whatever it says later must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
}

pub(crate) fn free_ports(count: usize) -> Vec<String> {
    // All are bound at once, so that they differ.
    let ports: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    ports
        .iter()
        .map(|port| port.local_addr().unwrap().to_string())
        .collect()
}
