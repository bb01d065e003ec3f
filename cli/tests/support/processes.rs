//! Programs that tests start, and where they listen.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Child;

/// Where a pinned tool lies, if it was built on this machine. Tests without their tools are skipped at a desk, never in CI.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let found = folders()
        .into_iter()
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    let in_ci = std::env::var_os("CI").is_some();
    assert!(found.is_some() || !in_ci, "no {name}: `cargo xtask test` builds it");
    found
}

fn folders() -> Vec<PathBuf> {
    let given = std::env::var_os("HANSE_KUBE_TOOLS").filter(|given| !given.is_empty());
    if given.as_ref().is_some_and(|given| given == "PATH") {
        return std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let tools = cache.map(|cache| cache.join("hanse/kube-tools"));
    // What only tests run lies beside what the program runs.
    let own = tools
        .iter()
        .flat_map(|tools| ["current", "etcd-suite"].map(|folder| tools.join(folder)));
    given
        .map(PathBuf::from)
        .into_iter()
        .chain(own)
        .map(|dir| dir.join("bin"))
        .collect()
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
