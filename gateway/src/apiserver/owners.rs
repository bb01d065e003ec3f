//! Who may say what an object goes with. A reference is a way to have an object deleted, and one that blocks is a way to keep
//! another from going: neither is given with the right to update (as by Kubernetes' `OwnerReferencesPermissionEnforcement`).

use super::object::{meta_text, name};
use crate::authz::Asker;
use crate::kinds::{KINDS, Kind};
use hanse_api::kinds::KindName;
use hanse_api::ownership::{OwnerReference, owners};
use hanse_api::status::Status;
use serde_json::Value;

/// The kind that a reference names, if it is one of those served here.
pub(crate) fn kind_of(reference: &OwnerReference) -> Option<&'static dyn Kind> {
    let (group, version) = reference.group_version();
    KINDS.iter().copied().find(|kind| {
        let names = kind.names();
        (names.group, names.version, names.kind) == (group, version, reference.kind.as_str())
    })
}

/// Refuses a change of references unless the caller may delete the object, and a reference that makes an owner wait unless he
/// may change the owner's finalizers.
pub(crate) async fn admit(
    asker: Asker<'_>,
    kind: &KindName,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), Box<Status>> {
    let had = old.map(|old| owners(&old["metadata"])).unwrap_or_default();
    let has = owners(&new["metadata"]);
    if had == has {
        return Ok(());
    }
    let namespace = meta_text(new, "namespace");
    if old.is_some() {
        asker
            .require("delete", kind, None, (namespace, Some(name(new))))
            .await?;
    }
    let blocked = |r: &&OwnerReference| r.blocks() && !had.iter().any(|h| h.uid == r.uid && h.blocks());
    for reference in has.iter().filter(blocked) {
        // An owner of a kind that is not served here never waits.
        let Some(owner) = kind_of(reference).map(|kind| kind.names()) else {
            continue;
        };
        let namespace = if owner.namespaced { namespace } else { "" };
        let place = (namespace, Some(reference.name.as_str()));
        asker.require("update", owner, Some("finalizers"), place).await?;
    }
    Ok(())
}
