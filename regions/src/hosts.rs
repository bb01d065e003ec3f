//! Which cluster hosts which tenant, and by which epoch: the early refusal of a store call from the wrong host.
//!
//! The fence in the store is the guarantee: it refuses a stale epoch whatever this says. But the fence does not know
//! who calls; this check does, as the tunnel names the cluster by its certificate. What it knows may be a moment old,
//! so what it does not know is refused for now, and the caller may ask again or elsewhere.

use std::sync::Arc;

use crate::feed::SharedView;

/// Why a cluster may not use a tenant's key space.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostRefusal {
    /// No such tenant, as far as this server knows.
    #[error("tenant {tenant} has no host, as far as this server knows")]
    Unknown {
        /// The tenant.
        tenant: String,
    },
    /// Another cluster hosts it.
    #[error("tenant {tenant} is not hosted by cluster {cluster}")]
    NotTheHost {
        /// The tenant.
        tenant: String,
        /// Who called.
        cluster: String,
    },
    /// The caller hosts it by an older right.
    #[error("tenant {tenant}: epoch {called} is over, {current} counts now")]
    Stale {
        /// The tenant.
        tenant: String,
        /// Epoch of the call.
        called: u64,
        /// Epoch that counts.
        current: u64,
    },
    /// The caller knows more than this server.
    #[error("tenant {tenant}: this server does not know epoch {called} yet")]
    Ahead {
        /// The tenant.
        tenant: String,
        /// Epoch of the call.
        called: u64,
    },
}

impl HostRefusal {
    /// Whether the same call may be allowed later or by another server.
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Unknown { .. } | Self::Ahead { .. } => true,
            Self::NotTheHost { .. } | Self::Stale { .. } => false,
        }
    }
}

/// Hosts of all tenants, from this server's view.
#[derive(Clone, Debug)]
pub struct Hosts {
    view: Arc<SharedView>,
}

impl Hosts {
    /// As `view` knows them.
    pub fn new(view: Arc<SharedView>) -> Self {
        Self { view }
    }

    /// Cluster and epoch of the host of `tenant`.
    pub fn host(&self, tenant: &str) -> Option<(String, u64)> {
        self.view.read(|view| {
            view.host_of(tenant)
                .map(|s| (s.object.spec.cluster.clone(), s.object.spec.epoch))
        })
    }

    /// Whether `cluster` may use the key space of `tenant` by `epoch`.
    pub fn check(&self, cluster: &str, tenant: &str, epoch: u64) -> Result<(), HostRefusal> {
        let tenant_owned = || tenant.to_owned();
        let Some((host, current)) = self.host(tenant) else {
            return Err(HostRefusal::Unknown { tenant: tenant_owned() });
        };
        if epoch > current {
            return Err(HostRefusal::Ahead {
                tenant: tenant_owned(),
                called: epoch,
            });
        }
        if host != cluster {
            return Err(HostRefusal::NotTheHost {
                tenant: tenant_owned(),
                cluster: cluster.to_owned(),
            });
        }
        if epoch < current {
            return Err(HostRefusal::Stale {
                tenant: tenant_owned(),
                called: epoch,
                current,
            });
        }
        Ok(())
    }
}
