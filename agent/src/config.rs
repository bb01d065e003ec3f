//! `agent.toml`: everything one agent needs to know. Unknown keys are faults; every fault is told at once.

use crate::paths::{Layout, SOCKET_PATH_MAX};
use hanse_api::name::{check_label, check_subdomain};
use hanse_runtime::config::{ConfigErrors, Validate};
use hanse_runtime::telemetry::Format;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Connected cluster that this agent stands for.
    pub cluster: String,
    /// Holds everything that the agent keeps.
    pub data_dir: PathBuf,
    /// Region whose servers are asked first.
    #[serde(default)]
    pub region: String,
    /// Certificate of the system's authority, PEM: servers must have theirs from it.
    pub ca_file: PathBuf,
    /// Enrolment token, read only while there is no certificate yet.
    #[serde(default)]
    pub enrolment_token_file: Option<PathBuf>,
    /// Folder of the Kubernetes tools: programs in it or in its `bin/`, kwok's stages in `kwok-stages/`. Otherwise
    /// `HANSE_KUBE_TOOLS`, then the user's cache, then `PATH` are searched.
    #[serde(default)]
    pub kube_tools: Option<PathBuf>,
    /// Address on which the tenants' API servers listen. Keep it on loopback: users come through the tunnel.
    #[serde(default = "default_listen_address")]
    pub listen_address: IpAddr,
    /// Ports for the tenants' processes.
    #[serde(default)]
    pub ports: PortRange,
    /// Simulated nodes.
    #[serde(default)]
    pub simulation: SimulationConfig,
    /// Form of log lines.
    #[serde(default)]
    pub log_format: Format,
    /// Servers to stay connected to.
    #[serde(rename = "server", default)]
    pub servers: Vec<ServerEntry>,
}

/// A server to stay connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerEntry {
    /// Its name, as its certificate says.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Address of its tunnel endpoint (UDP).
    pub address: SocketAddr,
}

/// First and last port that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, included.
    pub last: u16,
}

impl Default for PortRange {
    fn default() -> Self {
        // Below the range from which Linux picks ports of outgoing connections (32768 and up).
        Self {
            first: 20_000,
            last: 29_999,
        }
    }
}

/// Simulated nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulationConfig {
    /// Lets `kubectl exec` in a simulated pod run the command on this host (as `nobody` when the agent is root, with an
    /// environment of its own). There is no sandbox: only for development hosts.
    #[serde(default)]
    pub exec_on_host: bool,
}

const fn default_listen_address() -> IpAddr {
    IpAddr::V4(Ipv4Addr::LOCALHOST)
}

/// Most servers in one file.
const SERVERS_MAX: usize = 32;
/// Ports that one tenant needs.
const PORTS_PER_TENANT: u16 = 2;

impl Validate for AgentConfig {
    fn validate(&self, errors: &mut ConfigErrors) {
        if let Err(fault) = check_subdomain(&self.cluster) {
            errors.add("cluster", fault);
        }
        errors.require(self.data_dir.is_absolute(), "data_dir", "must be an absolute path");
        let longest = Layout::new(&self.data_dir).socket("any").as_os_str().len();
        if longest > SOCKET_PATH_MAX {
            let most = self.data_dir.as_os_str().len() + SOCKET_PATH_MAX - longest;
            errors.add(
                "data_dir",
                format!(
                    "must not be longer than {most} bytes, because Unix sockets below it may have {SOCKET_PATH_MAX}"
                ),
            );
        }
        if !self.region.is_empty()
            && let Err(fault) = check_label(&self.region)
        {
            errors.add("region", fault);
        }
        errors.require(
            !self.listen_address.is_unspecified(),
            "listen_address",
            "must be one address, not all",
        );
        let PortRange { first, last } = self.ports;
        errors.require(first > 1023, "ports.first", "must be above 1023");
        errors.require(
            last.checked_sub(first).is_some_and(|more| more >= PORTS_PER_TENANT),
            "ports.last",
            "must be greater than ports.first by at least 2",
        );
        self.validate_servers(errors);
    }
}

impl AgentConfig {
    /// The servers, those of the preferred region first.
    pub fn servers_by_preference(&self) -> Vec<&ServerEntry> {
        let mut servers: Vec<&ServerEntry> = self.servers.iter().collect();
        servers.sort_by_key(|server| server.region != self.region);
        servers
    }

    fn validate_servers(&self, errors: &mut ConfigErrors) {
        errors.require(!self.servers.is_empty(), "server", "needs at least one [[server]]");
        errors.require(self.servers.len() <= SERVERS_MAX, "server", "has more than 32 entries");
        let mut names = BTreeSet::new();
        for (n, server) in self.servers.iter().enumerate().take(SERVERS_MAX) {
            for (key, value) in [("name", &server.name), ("region", &server.region)] {
                if let Err(fault) = check_label(value) {
                    errors.add(format!("server[{n}].{key}"), fault);
                }
            }
            if !names.insert(&server.name) {
                errors.add(format!("server[{n}].name"), format!("{:?} is there twice", server.name));
            }
            if server.address.port() == 0 {
                errors.add(format!("server[{n}].address"), "needs a port");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::config::parse_text;
    use std::path::Path;

    const GOOD: &str = r#"
        cluster = "eu"
        data_dir = "/var/lib/hanse/agent"
        region = "eu"
        ca_file = "/etc/hanse/ca.crt"
        listen_address = "127.0.2.1"
        [[server]]
        name = "eu-1"
        region = "eu"
        address = "127.0.1.1:8445"
    "#;

    fn parse(text: &str) -> Result<AgentConfig, ConfigErrors> {
        parse_text(text, Path::new("agent.toml"))
    }

    #[test]
    fn defaults_fill_the_rest() {
        let config = parse(GOOD).unwrap();
        assert_eq!(
            config.ports,
            PortRange {
                first: 20_000,
                last: 29_999
            }
        );
        assert!(!config.simulation.exec_on_host);
        assert_eq!(config.servers.len(), 1);
    }

    #[test]
    fn every_fault_is_named() {
        let text = r#"
            cluster = "EU"
            data_dir = "relative"
            region = "a.b"
            ca_file = "x"
            listen_address = "0.0.0.0"
            ports = { first = 80, last = 81 }
            [[server]]
            name = "a"
            region = "eu"
            address = "127.0.0.1:0"
            [[server]]
            name = "a"
            region = "_"
            address = "127.0.0.1:1"
        "#;
        let errors = parse(text).unwrap_err();
        let keys: Vec<&str> = errors.faults().iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "cluster",
                "data_dir",
                "region",
                "listen_address",
                "ports.first",
                "ports.last",
                "server[0].address",
                "server[1].region",
                "server[1].name"
            ]
        );
    }

    #[test]
    fn a_data_dir_that_is_too_long_for_sockets_says_how_long_it_may_be() {
        let text = GOOD.replace("/var/lib/hanse/agent", &format!("/{}", "x".repeat(90)));
        let fault = parse(&text).unwrap_err().to_string();
        assert!(fault.contains("data_dir: must not be longer than"), "{fault}");
    }

    #[test]
    fn a_file_without_servers_or_with_unknown_keys_is_refused() {
        let text = "cluster = \"eu\"\ndata_dir = \"/d\"\nca_file = \"x\"\n";
        assert!(parse(text).unwrap_err().to_string().contains("[[server]]"));
        assert!(
            parse(&format!("color = 1\n{GOOD}"))
                .unwrap_err()
                .to_string()
                .contains("color")
        );
    }
}
