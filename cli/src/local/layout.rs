//! Paths and addresses of an installation, as functions of its home and plan (docs/design/0001-first-slice.md).

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// HTTPS, of gateways and of the front door.
pub(crate) const GATEWAY_PORT: u16 = 8443;
/// Raft between servers.
pub(crate) const RAFT_PORT: u16 = 8444;
/// QUIC for agents.
pub(crate) const TUNNEL_PORT: u16 = 8445;
/// Regions of one installation: each takes an address `127.<block>.<n>.1`.
const REGIONS_MAX: usize = 9;
/// Longest path of an agent's folder: its sockets (`/s/` and 17 bytes more) must stay within the 107 bytes that
/// unix(7) allows.
const AGENT_DIR_MAX: usize = 107 - 20;
/// Of the plan's own form.
pub(crate) const FORMAT: u32 = 1;

/// What was decided at the first `up` and never changes: `installation.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// Of this file.
    pub(crate) format: u32,
    /// Names, in the order of their addresses.
    pub(crate) regions: Vec<String>,
    /// Second byte of every address.
    pub(crate) address_block: u8,
}

/// One region of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Name.
    pub(crate) name: String,
    /// Raft node id of its server, from 1.
    pub(crate) id: u64,
    /// Address of its server.
    pub(crate) ip: Ipv4Addr,
}

impl Region {
    /// Name of its server.
    pub(crate) fn server(&self) -> String {
        format!("{}-1", self.name)
    }

    /// Address of its gateway.
    pub(crate) const fn gateway(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.ip), GATEWAY_PORT)
    }

    /// Address of its Raft service.
    pub(crate) const fn raft(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.ip), RAFT_PORT)
    }

    /// Address of its tunnel endpoint.
    pub(crate) const fn tunnel(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.ip), TUNNEL_PORT)
    }

    /// Base of its gateway.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.gateway())
    }
}

impl Plan {
    /// A plan for `regions`, checked.
    pub(crate) fn new(regions: &[String], address_block: u8) -> Result<Self> {
        if regions.is_empty() || regions.len() > REGIONS_MAX {
            return Err(Error::usage(format!("--regions names {} regions", regions.len()))
                .hint(format!("name 1 to {REGIONS_MAX}, such as --regions eu,us,ap")));
        }
        for (i, name) in regions.iter().enumerate() {
            if let Err(why) = hanse_api::name::check_label(name) {
                return Err(Error::usage(format!(
                    "--regions: {name:?} is no name for a region: {why}"
                )));
            }
            if regions[..i].contains(name) {
                return Err(Error::usage(format!("--regions names {name:?} twice")));
            }
        }
        Ok(Self {
            format: FORMAT,
            regions: regions.to_vec(),
            address_block,
        })
    }

    /// Its regions with their addresses.
    pub(crate) fn regions(&self) -> Vec<Region> {
        let numbered = self.regions.iter().zip(1u8..);
        numbered
            .map(|(name, n)| Region {
                name: name.clone(),
                id: u64::from(n),
                ip: Ipv4Addr::new(127, self.address_block, n, 1),
            })
            .collect()
    }

    /// The region called `name`.
    pub(crate) fn region(&self, name: &str) -> Result<Region> {
        self.regions().into_iter().find(|r| r.name == name).ok_or_else(|| {
            Error::not_found(format!("there is no region {name:?} in this installation"))
                .hint(format!("the regions are: {}", self.regions.join(", ")))
        })
    }

    /// Address of the front door.
    pub(crate) const fn front_door(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, self.address_block, 0, 1)), GATEWAY_PORT)
    }

    /// What clients use.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.front_door())
    }
}

/// Paths below one home.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    home: PathBuf,
}

impl Layout {
    /// Of `given`, else of the user's data folder.
    pub(crate) fn find(given: Option<&Path>) -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = match given {
            Some(path) => path.to_owned(),
            None => match variable("XDG_DATA_HOME").filter(|p| p.is_absolute()) {
                Some(data) => data.join("hanse"),
                None => variable("HOME")
                    .ok_or_else(|| Error::failed("HOME is not set").hint("name a folder with --home DIR"))?
                    .join(".local/share/hanse"),
            },
        };
        let home = std::path::absolute(&home).map_err(|e| Error::io("find", &home, &e))?;
        if home.to_str().is_none() {
            return Err(Error::usage("the path of the home is no valid UTF-8").hint("choose another --home"));
        }
        Ok(Self { home })
    }

    /// Fails when sockets below would get too long a name.
    pub(crate) fn fits(&self, plan: &Plan) -> Result<()> {
        for region in &plan.regions {
            let path = self.region(region, "agent");
            if path.as_os_str().len() > AGENT_DIR_MAX {
                let message = format!("the path {} is longer than {AGENT_DIR_MAX} bytes", path.display());
                return Err(Error::usage(message)
                    .hint("sockets below it would get too long a name: choose a shorter --home or region name"));
            }
        }
        Ok(())
    }

    /// All of it.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// The plan; its presence says that everything was generated.
    pub(crate) fn plan(&self) -> PathBuf {
        self.home.join("installation.toml")
    }

    /// Held by whoever changes what runs.
    pub(crate) fn lock(&self) -> PathBuf {
        self.home.join("run/hanse.lock")
    }

    /// Keys and certificates.
    pub(crate) fn pki(&self, file: &str) -> PathBuf {
        self.home.join("pki").join(file)
    }

    /// Pid and lock files that belong to no region.
    pub(crate) fn run(&self, file: &str) -> PathBuf {
        self.home.join("run").join(file)
    }

    /// Logs that belong to no region.
    pub(crate) fn log(&self, file: &str) -> PathBuf {
        self.home.join("log").join(file)
    }

    /// Configuration of the front door.
    pub(crate) fn front_door(&self) -> PathBuf {
        self.home.join("front-door.toml")
    }

    /// Something of a region.
    pub(crate) fn region(&self, region: &str, path: &str) -> PathBuf {
        self.home.join("regions").join(region).join(path)
    }

    /// All regions.
    pub(crate) fn regions(&self) -> PathBuf {
        self.home.join("regions")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn addresses_differ_by_region_and_block() {
        let plan = Plan::new(&names(&["eu", "us", "ap"]), 0).unwrap();
        assert_eq!(plan.url(), "https://127.0.0.1:8443");
        let urls: Vec<String> = plan.regions().iter().map(Region::url).collect();
        assert_eq!(
            urls,
            [
                "https://127.0.1.1:8443",
                "https://127.0.2.1:8443",
                "https://127.0.3.1:8443"
            ]
        );
        let other = Plan::new(&names(&["eu"]), 7).unwrap();
        assert_eq!(other.front_door().to_string(), "127.7.0.1:8443");
        assert_eq!(other.regions()[0].raft().to_string(), "127.7.1.1:8444");
        assert_eq!(other.regions()[0].server(), "eu-1");
    }

    #[test]
    fn bad_regions_are_refused_and_unknown_ones_answered_with_the_known() {
        for bad in [&[][..], &["EU"], &["eu", "eu"], &["a b"], &["a"; 10]] {
            assert!(Plan::new(&names(bad), 0).is_err(), "{bad:?}");
        }
        let error = Plan::new(&names(&["eu", "us"]), 0).unwrap().region("mars").unwrap_err();
        assert!(error.to_string().contains("mars") && error.remedy().unwrap().contains("eu, us"));
    }

    #[test]
    fn a_home_that_is_too_deep_for_sockets_is_refused() {
        let plan = Plan::new(&names(&["eu"]), 0).unwrap();
        let below = |length: usize| Layout::find(Some(&PathBuf::from(format!("/{}", "x".repeat(length))))).unwrap();
        let most = AGENT_DIR_MAX - "//regions/eu/agent".len();
        assert!(below(most).fits(&plan).is_ok());
        assert!(
            below(most + 1)
                .fits(&plan)
                .unwrap_err()
                .remedy()
                .unwrap()
                .contains("shorter")
        );
    }
}
