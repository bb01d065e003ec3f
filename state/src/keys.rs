//! The only place that builds keys: of the registry, of key spaces inside a group, and of the engine.
//!
//! Every engine key starts with the group (4 bytes, big endian), so that all groups of a server share one engine.
//! Below the group a key space has a prefix of its own; no space's prefix is the prefix of another's.
//!
//! | family | key after the group |
//! |---|---|
//! | `key` | space, escaped key, inverted revision: newest version first |
//! | `rev` | space, revision, sub-revision: the events of a space in order |
//! | `lease` | space, lease id |
//! | `meta` | a name |

use crate::error::StoreError;
use bytes::Bytes;
use hanse_api::kinds::{AUDIT_CHAINS, AUDIT_EVENTS, KindName};
use std::fmt;

/// Longest tenant id in bytes; its length must fit one byte of the prefix.
pub const MAX_TENANT_ID: usize = 253;

/// A Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

impl GroupId {
    /// Group 0: the management store.
    pub const COUNCIL: Self = Self(0);
    /// Group 1: the first store of tenants' key spaces.
    pub const TENANTS: Self = Self(1);

    /// What every engine key of the group starts with.
    pub const fn prefix(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whose keys are meant. Keys of different spaces never meet, though spaces of one group share its revisions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeySpace {
    /// Objects of the management API; group 0.
    Registry,
    /// The store of one tenant cluster; group 1.
    Tenant(String),
}

impl KeySpace {
    /// The group that holds the space.
    pub fn group(&self) -> GroupId {
        match self {
            Self::Registry => GroupId::COUNCIL,
            Self::Tenant(_) => GroupId::TENANTS,
        }
    }

    /// The name in a command: the tenant, empty for the registry.
    pub fn tenant(&self) -> &str {
        match self {
            Self::Registry => "",
            Self::Tenant(id) => id,
        }
    }

    /// Reads the name in a command.
    pub fn from_tenant(tenant: &str) -> Result<Self, StoreError> {
        if tenant.is_empty() {
            return Ok(Self::Registry);
        }
        let space = Self::Tenant(tenant.to_owned());
        space.check()?;
        Ok(space)
    }

    /// Whether the space can exist.
    pub fn check(&self) -> Result<(), StoreError> {
        match self {
            Self::Tenant(id) if id.is_empty() || id.len() > MAX_TENANT_ID => Err(StoreError::InvalidTenant(id.clone())),
            Self::Registry | Self::Tenant(_) => Ok(()),
        }
    }

    /// What the keys of the space start with inside the families `key`, `rev` and `lease`, group included.
    pub(crate) fn engine_prefix(&self) -> Vec<u8> {
        let mut out = self.group().prefix().to_vec();
        match self {
            Self::Registry => out.push(b'r'),
            Self::Tenant(id) => {
                out.push(b't');
                // `check` bounds the length; a longer id could not have been stored.
                out.push(u8::try_from(id.len()).unwrap_or(u8::MAX));
                out.extend_from_slice(id.as_bytes());
            }
        }
        out
    }

    /// Splits what [`KeySpace::engine_prefix`] made off an engine key.
    pub(crate) fn split(key: &[u8]) -> Option<(Self, &[u8])> {
        let rest = key.get(4..)?;
        match rest.first()? {
            b'r' => Some((Self::Registry, &rest[1..])),
            b't' => {
                let len = usize::from(*rest.get(1)?);
                let id = std::str::from_utf8(rest.get(2..2 + len)?).ok()?;
                Some((Self::Tenant(id.to_owned()), &rest[2 + len..]))
            }
            _ => None,
        }
    }
}

/// The first key after all that start with `prefix`; empty when there is none.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    end
}

/// Key in family `meta`: a group's own record of this name. `state` uses names that start with [`META_MACHINE`];
/// consensus takes `raft/`.
pub fn meta_key(group: GroupId, name: &[u8]) -> Vec<u8> {
    [group.prefix().as_slice(), name].concat()
}

/// Start of the names of all records in family `meta` that belong to a group's machine, and so to its snapshots.
pub const META_MACHINE: &[u8] = b"m/";
/// Name of the group's state record in family `meta`.
pub(crate) const META_STATE: &[u8] = b"m/state";
/// Name of the marker of the last applied batch in family `meta`.
pub const META_MARKER: &[u8] = b"m/marker";
/// Name of the group's feature level in family `meta`.
pub(crate) const META_LEVEL: &[u8] = b"m/level";
/// Start of the names of the space records in family `meta`; the tenant follows.
pub(crate) const META_SPACE: &[u8] = b"m/space/";

/// Key in family `meta` of a space's record.
pub(crate) fn space_meta_key(space: &KeySpace) -> Vec<u8> {
    let mut name = META_SPACE.to_vec();
    name.extend_from_slice(space.tenant().as_bytes());
    meta_key(space.group(), &name)
}

/// Key in family `key` of one version of a user key. Zero bytes are escaped and the key is closed by two of them, so
/// that engine order is the order of user keys whatever revision follows.
pub(crate) fn version_key(space_prefix: &[u8], key: &[u8], revision: i64) -> Vec<u8> {
    let mut out = Vec::with_capacity(space_prefix.len() + key.len() + 12);
    out.extend_from_slice(space_prefix);
    for &byte in key {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&(!revision.cast_unsigned()).to_be_bytes());
    out
}

/// Reads what follows the space's prefix in family `key`: user key and revision.
pub(crate) fn split_version_key(rest: &[u8]) -> Option<(Bytes, i64)> {
    let cut = rest.len().checked_sub(10)?;
    let (escaped, tail) = rest.split_at(cut);
    let revision = u64::from_be_bytes(tail.get(2..)?.try_into().ok()?);
    if tail[..2] != [0, 0] {
        return None;
    }
    let mut key = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.iter();
    while let Some(&byte) = bytes.next() {
        key.push(byte);
        if byte == 0 && bytes.next() != Some(&0xff) {
            return None;
        }
    }
    Some((key.into(), (!revision).cast_signed()))
}

/// Key in family `rev` of one event.
pub(crate) fn event_key(space_prefix: &[u8], revision: i64, sub: u32) -> Vec<u8> {
    [space_prefix, &revision.to_be_bytes(), &sub.to_be_bytes()].concat()
}

/// Reads what follows the space's prefix in family `rev`.
pub(crate) fn split_event_key(rest: &[u8]) -> Option<(i64, u32)> {
    let (revision, sub) = rest.split_at_checked(8)?;
    Some((
        i64::from_be_bytes(revision.try_into().ok()?),
        u32::from_be_bytes(sub.try_into().ok()?),
    ))
}

/// Key in family `lease`.
pub(crate) fn lease_key(space_prefix: &[u8], id: i64) -> Vec<u8> {
    [space_prefix, &id.to_be_bytes()].concat()
}

/// Reads what follows the space's prefix in family `lease`.
pub(crate) fn split_lease_key(rest: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(rest.try_into().ok()?))
}

/// What the keys of all objects of a kind start with.
pub fn kind_prefix(kind: &KindName) -> String {
    format!("/registry/{}/{}/", kind.group, kind.plural)
}

/// What the keys of a kind's objects in one namespace start with.
pub fn namespace_prefix(kind: &KindName, namespace: &str) -> String {
    format!("/registry/{}/{}/{namespace}/", kind.group, kind.plural)
}

/// Key of an object: `/registry/<group>/<resource>/<namespace>/<name>`, without namespace for cluster-scoped kinds.
pub fn object_key(kind: &KindName, namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        kind_prefix(kind) + name
    } else {
        namespace_prefix(kind, namespace) + name
    }
}

/// Namespace (empty for cluster-scoped kinds) and name in an object's key.
pub fn split_object_key<'a>(kind: &KindName, key: &'a [u8]) -> Option<(&'a str, &'a str)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(&kind_prefix(kind))?;
    if kind.namespaced {
        rest.split_once('/')
    } else {
        Some(("", rest))
    }
}

/// Key of an audit event.
pub(crate) fn audit_event_key(name: &str) -> String {
    object_key(&AUDIT_EVENTS, "", name)
}

/// Key of what says where the audit's chain begins or ends.
pub(crate) fn audit_chain_key(name: &str) -> String {
    object_key(&AUDIT_CHAINS, "", name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_api::kinds::{PROJECTS, VIRTUAL_CLUSTER_INSTANCES};
    use proptest::prelude::*;

    #[test]
    fn prefix_end_is_the_next_key_that_does_not_match() {
        assert_eq!(prefix_end(b"ab"), b"ac");
        assert_eq!(prefix_end(&[b'a', 0xff]), b"b");
        assert_eq!(prefix_end(&[0xff, 0xff]), b"");
    }

    #[test]
    fn object_keys_round_trip() {
        let key = object_key(&VIRTUAL_CLUSTER_INSTANCES, "p-default", "demo");
        assert_eq!(
            key,
            "/registry/management.loft.sh/virtualclusterinstances/p-default/demo"
        );
        assert_eq!(
            split_object_key(&VIRTUAL_CLUSTER_INSTANCES, key.as_bytes()),
            Some(("p-default", "demo"))
        );
        let key = object_key(&PROJECTS, "", "default");
        assert_eq!(split_object_key(&PROJECTS, key.as_bytes()), Some(("", "default")));
        assert_eq!(split_object_key(&PROJECTS, b"/registry/other/x"), None);
    }

    #[test]
    fn no_space_is_the_prefix_of_another() {
        let spaces = ["a", "ab", "b", "r"].map(|id| KeySpace::Tenant(id.into()));
        for one in &spaces {
            for other in &spaces {
                assert_eq!(other.engine_prefix().starts_with(&one.engine_prefix()), one == other);
            }
            let key = [one.engine_prefix().as_slice(), b"rest"].concat();
            assert_eq!(KeySpace::split(&key), Some((one.clone(), b"rest".as_slice())));
        }
        assert!(KeySpace::from_tenant(&"x".repeat(254)).is_err());
    }

    proptest! {
        #[test]
        fn version_keys_sort_as_keys_then_newest_first(
            a in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()], 0..5),
            b in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()], 0..5),
            ra in 1i64..1000, rb in 1i64..1000,
        ) {
            let (ka, kb) = (version_key(b"p", &a, ra), version_key(b"p", &b, rb));
            prop_assert_eq!(ka.cmp(&kb), a.cmp(&b).then(rb.cmp(&ra)));
            prop_assert_eq!(split_version_key(&ka[1..]), Some((Bytes::from(a), ra)));
        }
    }
}
