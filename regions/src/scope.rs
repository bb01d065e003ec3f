//! What one coordinator is responsible for: a region, or what belongs to no region.

use std::fmt;

use crate::address::Address;
use hanse_api::kinds::REGION_LEASES;
use hanse_state::objects::ObjectKey;

/// Name of the fleet's lease. It has a dot, so no region (a DNS label) can be named like it.
const FLEET_LEASE: &str = "fleet.placement";
/// Appended to a lease's name: the object that its holder touches to show that it lives.
const RENEWAL_SUFFIX: &str = ".renewal";

/// The share of the fleet that one lease covers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Placement of new tenants, and everything that belongs to no (known) region.
    Fleet,
    /// The clusters of one region and the tenants on them.
    Region(String),
}

impl Scope {
    /// Name of the lease object.
    pub fn lease_name(&self) -> &str {
        match self {
            Self::Fleet => FLEET_LEASE,
            Self::Region(region) => region,
        }
    }

    /// Name of the renewal object.
    pub fn renewal_name(&self) -> String {
        format!("{}{RENEWAL_SUFFIX}", self.lease_name())
    }

    /// Key of the lease object. Its mod revision is the fencing token.
    pub fn lease_key(&self) -> ObjectKey {
        Address::global(self.lease_name()).key(REGION_LEASES)
    }

    /// Key of the renewal object.
    pub fn renewal_key(&self) -> ObjectKey {
        Address::global(self.renewal_name()).key(REGION_LEASES)
    }

    /// The region, unless this is the fleet.
    pub fn region(&self) -> Option<&str> {
        match self {
            Self::Fleet => None,
            Self::Region(region) => Some(region),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fleet => f.write_str("fleet"),
            Self::Region(region) => write!(f, "region {region}"),
        }
    }
}
