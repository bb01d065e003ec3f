//! Where an object lives: namespace and name. Controllers use it as the key of their work, never as data.

use std::fmt;

use hanse_api::kinds::KindName;
use hanse_state::objects::ObjectKey;

/// Namespace (empty for cluster-scoped kinds) and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Address {
    /// Of an object in a namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// Of an object of a cluster-scoped kind.
    pub fn global(name: impl Into<String>) -> Self {
        Self::new("", name)
    }

    /// The store's key of the object of `kind` at this address.
    pub fn key(&self, kind: KindName) -> ObjectKey {
        ObjectKey {
            kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
