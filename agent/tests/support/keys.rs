//! A tenant's authority and the keys that its API server's clients have.

use hanse_api::Timestamp;
use hanse_api::intent::TenantPki;
use hanse_runtime::pki::{Ca, LeafSpec};

/// With an administrator's key and no others.
pub(crate) fn tenant_keys(now: Timestamp) -> (Ca, TenantPki) {
    let ca = Ca::generate("tenant", 1, now).unwrap();
    let admin = LeafSpec {
        common_name: "hanse:proxy".into(),
        organizations: vec!["system:masters".into()],
        client: true,
        days: 1,
        ..LeafSpec::default()
    };
    let pki = TenantPki {
        ca: ca.key_pair(),
        admin: ca.issue(&admin, now).unwrap(),
        ..TenantPki::default()
    };
    (ca, pki)
}
