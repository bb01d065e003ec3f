//! Where the agent keeps what, below its data directory.
//!
//! ```text
//! agent.crt, agent.key      identity of the agent
//! journal.json              last intent, with keys of tenants
//! ports.json                ports that were given out
//! s/<hash>.sock             store socket of a tenant (short: Unix allows 107 bytes)
//! tenants/<id>/pki          keys and certificates
//! tenants/<id>/conf         kubeconfigs, configuration of kwok
//! tenants/<id>/log          output of processes
//! tenants/<id>/run          records of processes
//! tenants/<id>/home         HOME of processes, empty
//! ```

use hanse_runtime::pki::sha256_hex;
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket: `sun_path` has 108 bytes with the final zero (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;
/// Characters of the hash in a socket's name: 48 bits, ample for the tenants of one host.
const SOCKET_HASH: usize = 12;

/// The data directory of an agent.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Of the data directory `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The data directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The agent's certificate.
    pub fn cert(&self) -> PathBuf {
        self.root.join("agent.crt")
    }

    /// The agent's private key.
    pub fn key(&self) -> PathBuf {
        self.root.join("agent.key")
    }

    /// The last intent.
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal.json")
    }

    /// Ports that were given out.
    pub fn ports(&self) -> PathBuf {
        self.root.join("ports.json")
    }

    /// Directory of the sockets.
    pub fn sockets(&self) -> PathBuf {
        self.root.join("s")
    }

    /// The store socket of `tenant`.
    pub fn socket(&self, tenant: &str) -> PathBuf {
        let mut name = sha256_hex(tenant.as_bytes());
        name.truncate(SOCKET_HASH);
        name.push_str(".sock");
        self.sockets().join(name)
    }

    /// Directory of all tenants.
    pub fn tenants(&self) -> PathBuf {
        self.root.join("tenants")
    }

    /// Directory of `tenant`, whose id was checked.
    pub fn tenant(&self, tenant: &str) -> TenantDir {
        TenantDir {
            root: self.tenants().join(tenant),
        }
    }
}

/// The directory of one tenant.
#[derive(Clone, Debug)]
pub struct TenantDir {
    root: PathBuf,
}

impl TenantDir {
    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Keys and certificates.
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// Kubeconfigs and other configuration.
    pub fn conf(&self) -> PathBuf {
        self.root.join("conf")
    }

    /// Output of processes.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// Records of processes.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// HOME of processes.
    pub fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// All directories that must exist, outermost first.
    pub fn all(&self) -> [PathBuf; 6] {
        [
            self.root.clone(),
            self.pki(),
            self.conf(),
            self.log(),
            self.run(),
            self.home(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_short_and_their_own() {
        let layout = Layout::new(Path::new("/d"));
        let (a, b) = (layout.socket("tenant-a"), layout.socket(&"b".repeat(200)));
        assert_ne!(a, b);
        assert_eq!(b.as_os_str().len(), "/d/s/".len() + 12 + ".sock".len());
    }
}
