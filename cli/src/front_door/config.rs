//! `front-door.toml`.

use hanse_runtime::config::{ConfigErrors, Validate};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FrontDoorConfig {
    /// Address to listen on.
    pub(crate) listen: SocketAddr,
    /// Certificate of the authority of the gateways, PEM.
    pub(crate) ca: PathBuf,
    /// Gateways behind it.
    #[serde(rename = "backend", default)]
    pub(crate) backends: Vec<BackendConfig>,
}

/// One gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackendConfig {
    /// For people.
    pub(crate) name: String,
    /// Its address.
    pub(crate) address: SocketAddr,
}

/// Most gateways of one front door.
const BACKENDS_MAX: usize = 64;

impl Validate for FrontDoorConfig {
    fn validate(&self, errors: &mut ConfigErrors) {
        errors.require(!self.backends.is_empty(), "backend", "needs at least one [[backend]]");
        errors.require(
            self.backends.len() <= BACKENDS_MAX,
            "backend",
            "has more than 64 entries",
        );
        let own = self.backends.iter().any(|b| b.address == self.listen);
        errors.require(!own, "backend", "one has the front door's own address");
    }
}
