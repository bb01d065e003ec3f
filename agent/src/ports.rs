//! Ports of tenants' processes, remembered so that a restart keeps them.

use crate::config::PortRange;
use crate::error::AgentError;
use crate::files;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Who got which port. The key is `<tenant>/<use>`.
#[derive(Debug)]
pub struct PortBook {
    path: PathBuf,
    address: IpAddr,
    range: PortRange,
    given: Mutex<BTreeMap<String, u16>>,
}

impl PortBook {
    /// Reads the book at `path`.
    pub fn open(path: PathBuf, address: IpAddr, range: PortRange) -> Result<Self, AgentError> {
        let given = match files::read_optional(&path)? {
            None => BTreeMap::new(),
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| AgentError::Damaged {
                path: path.clone(),
                fault: error.to_string(),
                loss: "tenants get other ports and restart",
            })?,
        };
        Ok(Self {
            path,
            address,
            range,
            given: Mutex::new(given),
        })
    }

    /// Address that the ports are for.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u16>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port of `tenant` for `usage`; a new one at the first call.
    pub fn get(&self, tenant: &str, usage: &str) -> Result<u16, AgentError> {
        let mut given = self.lock();
        let key = format!("{tenant}/{usage}");
        match given.get(&key) {
            Some(&port) => Ok(port),
            None => self.assign(&mut given, key),
        }
    }

    /// Another port instead of the one that `tenant` has for `usage`, because something else listens on it.
    pub fn replace(&self, tenant: &str, usage: &str) -> Result<u16, AgentError> {
        self.assign(&mut self.lock(), format!("{tenant}/{usage}"))
    }

    /// Takes back all ports of `tenant`.
    pub fn release(&self, tenant: &str) -> Result<(), AgentError> {
        let mut given = self.lock();
        let prefix = format!("{tenant}/");
        let before = given.len();
        given.retain(|key, _| !key.starts_with(&prefix));
        if given.len() == before {
            Ok(())
        } else {
            self.save(&given)
        }
    }

    /// Whether `port` can be listened on right now.
    pub fn is_free(&self, port: u16) -> bool {
        TcpListener::bind(SocketAddr::new(self.address, port)).is_ok()
    }

    fn assign(&self, given: &mut BTreeMap<String, u16>, key: String) -> Result<u16, AgentError> {
        let taken: BTreeSet<u16> = given.values().copied().collect();
        let PortRange { first, last } = self.range;
        let port = (first..=last).find(|port| !taken.contains(port) && self.is_free(*port));
        let port = port.ok_or(AgentError::NoPort { first, last })?;
        given.insert(key, port);
        self.save(given)?;
        Ok(port)
    }

    fn save(&self, given: &BTreeMap<String, u16>) -> Result<(), AgentError> {
        let text = serde_json::to_vec_pretty(given).map_err(|error| AgentError::Malformed {
            what: "port book",
            fault: error.to_string(),
        })?;
        files::write_atomic(&self.path, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn ports_are_kept_unique_and_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ports.json");
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        // A port that something else uses, and a few above it.
        let busy = TcpListener::bind((address, 0)).unwrap();
        let first = busy.local_addr().unwrap().port();
        let range = PortRange {
            first,
            last: first.saturating_add(200),
        };
        let open = || PortBook::open(path.clone(), address, range).unwrap();
        let book = open();
        let a = book.get("a", "api").unwrap();
        let b = book.get("b", "api").unwrap();
        assert!(a != b && a != first && b != first);
        assert_eq!(open().get("a", "api").unwrap(), a, "kept over a restart");
        let other = book.replace("a", "api").unwrap();
        assert_ne!(other, a);
        assert_eq!(book.get("a", "api").unwrap(), other);
        book.release("a").unwrap();
        assert_eq!(open().get("b", "api").unwrap(), b);
        assert!(!book.is_free(first));
        let none = PortBook::open(dir.path().join("x"), address, PortRange { first, last: first }).unwrap();
        assert!(matches!(none.get("a", "api"), Err(AgentError::NoPort { .. })));
    }
}
