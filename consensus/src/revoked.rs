//! Keys of servers that were removed: nobody listens to those any more, whatever their certificates say.
//!
//! Which keys these are stands in the registry, above the log; who runs the node tells it ([`crate::Node::revoke`]). A removed
//! server may still ask how the others are: that is how it learns that it was removed.

use hanse_runtime::pki::{PkiError, cert_key_sha256};
use parking_lot::RwLock;
use rustls::pki_types::CertificateDer;
use std::collections::BTreeSet;
use std::sync::Arc;
use tonic::{Request, Status};

/// Hashes ([`cert_key_sha256`]) of keys that are refused. Cheap to clone: all clones are one list.
#[derive(Clone, Debug, Default)]
pub struct Revoked(Arc<RwLock<BTreeSet<String>>>);

impl Revoked {
    /// From now on these, and no others.
    pub fn set(&self, keys: BTreeSet<String>) {
        let known = *self.0.read() == keys;
        if !known {
            *self.0.write() = keys;
        }
    }

    /// Whether a certificate is for one of them. One whose key cannot be read is nobody's.
    pub fn has(&self, cert: &CertificateDer<'_>) -> bool {
        cert_key_sha256(cert).is_ok_and(|key| self.0.read().contains(&key))
    }
}

/// Who calls over a connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Nothing where the port is open to anybody.
    key: Option<Arc<str>>,
    /// The server that its certificate names, where certificates name servers.
    name: Option<Arc<str>>,
    revoked: Revoked,
}

impl Caller {
    /// The holder of a certificate, which names the server `name`.
    pub(crate) fn of(cert: &CertificateDer<'_>, name: Option<String>, revoked: &Revoked) -> Result<Self, PkiError> {
        Ok(Self {
            key: Some(cert_key_sha256(cert)?.into()),
            name: name.map(Into::into),
            revoked: revoked.clone(),
        })
    }

    /// Anybody.
    pub(crate) fn anybody() -> Self {
        Self {
            key: None,
            name: None,
            revoked: Revoked::default(),
        }
    }

    /// The server that it is, by its certificate.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether he is still listened to.
    pub(crate) fn is_heard(&self) -> bool {
        self.key
            .as_deref()
            .is_none_or(|key| !self.revoked.0.read().contains(key))
    }

    /// The same, as an answer.
    pub(crate) fn check(&self) -> Result<(), Status> {
        if self.is_heard() {
            return Ok(());
        }
        Err(Status::permission_denied(
            "the server with this key was removed from the cluster",
        ))
    }
}

/// Who makes a call, if he is listened to. Connections outlive a removal, so every call asks.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    let caller = caller.ok_or_else(|| Status::internal("it is not known who calls"))?;
    caller.check()?;
    Ok(caller.clone())
}
