//! The table of kinds that the management API serves. One file per kind says everything that is particular to it; the
//! machinery in [`crate::apiserver`] knows none by name.

mod access_key;
mod audit;
mod cluster;
mod cluster_role_template;
mod events;
mod identity;
mod namespace;
mod oidc;
mod project;
mod read_only;
mod region;
mod secret;
mod server;
mod team;
mod user;
mod virtual_cluster_instance;

use crate::apiserver::backend::Backend;
use crate::apiserver::object::{member_mut, meta_text};
use crate::apiserver::schema::Parts;
use crate::authz::Asker;
use async_trait::async_trait;
use hanse_api::Timestamp;
use hanse_api::access::{GROUP_TEAM_PREFIX, ObjectAccess, Principal, changes_grants};
use hanse_api::kinds::KindName;
use hanse_api::status::{Cause, Status};
use hanse_state::objects::{ObjectKey, Op, Stored};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Verbs of a kind that clients may do everything with.
pub(crate) const ALL_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// Verbs of a kind that clients may only look at.
pub(crate) const READ_VERBS: &[&str] = &["get", "list", "watch"];

/// A column of a kind's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    /// Heading.
    pub(crate) name: &'static str,
    /// `string`, `integer`, `boolean` or `date`.
    pub(crate) of: &'static str,
    /// 0 is always shown, 1 with `-o wide` only.
    pub(crate) priority: i32,
    /// What it says.
    pub(crate) about: &'static str,
}

/// A column that is always shown.
pub(crate) const fn column(name: &'static str, about: &'static str) -> Column {
    Column {
        name,
        of: "string",
        priority: 0,
        about,
    }
}

/// A column of `-o wide`.
pub(crate) const fn wide(name: &'static str, about: &'static str) -> Column {
    Column {
        name,
        of: "string",
        priority: 1,
        about,
    }
}

/// A part of an object with an endpoint of its own, for discovery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subresource {
    /// Last segment of its path.
    pub(crate) name: &'static str,
    /// Kind of what it takes and gives.
    pub(crate) kind: &'static str,
    /// Verbs.
    pub(crate) verbs: &'static [&'static str],
    /// What it is, in a sentence.
    pub(crate) about: &'static str,
}

/// Who asks, as far as a kind needs to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller<'a> {
    /// The verified identity.
    pub(crate) principal: &'a Principal,
    /// Whether computed fields are wanted (`?extended=true`).
    pub(crate) extended: bool,
}

/// Everything particular to one kind.
#[async_trait]
pub(crate) trait Kind: Send + Sync + 'static {
    /// Names.
    fn names(&self) -> &'static KindName;

    /// Name of one object, in lower case.
    fn singular(&self) -> &'static str;

    /// What its objects are, in sentences.
    fn about(&self) -> &'static str;

    /// What a client makes, for the reference: an object that is whole, but for its type. Null where clients make none.
    fn example(&self) -> Value {
        Value::Null
    }

    /// Further names for people.
    fn short_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// What clients may do.
    fn verbs(&self) -> &'static [&'static str] {
        ALL_VERBS
    }

    /// Whether there is a `/status` endpoint that alone writes the status.
    fn has_status(&self) -> bool {
        true
    }

    /// Endpoints below an object beside `/status`.
    fn subresources(&self) -> &'static [Subresource] {
        &[]
    }

    /// Schemas of `spec` and `status`.
    fn schemas(&self) -> Parts {
        Parts::default()
    }

    /// Whether objects have more parts than metadata, `spec` and `status`.
    fn open(&self) -> bool {
        false
    }

    /// Columns between the name and the age.
    fn columns(&self) -> &'static [Column];

    /// Values of [`Kind::columns`].
    fn cells(&self, object: &Value) -> Vec<Value>;

    /// The kind under which objects are stored, when it is not this one.
    fn stored_as(&self) -> &'static KindName {
        self.names()
    }

    /// Key of the object that a client calls `name`; `None` when no such name can exist.
    fn key(&self, namespace: &str, name: &str) -> Option<ObjectKey> {
        Some(ObjectKey {
            kind: *self.stored_as(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The project that a stored object is part of, for kinds of which a caller may see a part.
    fn project<'a>(&self, _namespace: &'a str, _name: &'a str) -> Option<&'a str> {
        None
    }

    /// The field of `spec` that is stored sealed ([`crate::apiserver::sealed`]).
    fn secret_field(&self) -> Option<&'static str> {
        None
    }

    /// What clients see of a stored object.
    fn present(&self, object: Value) -> Value {
        object
    }

    /// Takes out what is stored and never shown, from an object that is about to be.
    fn conceal(&self, _object: &mut Value) {}

    /// Fills in what a new object leaves out.
    fn prepare(&self, _object: &mut Value, _caller: &Principal) {}

    /// Fills in what an update leaves out.
    fn prepare_update(&self, _old: &Value, _new: &mut Value) {}

    /// Every fault of an object.
    fn validate(&self, object: &Value) -> Vec<Cause>;

    /// Every fault of an update.
    fn validate_update(&self, _old: &Value, new: &Value) -> Vec<Cause> {
        self.validate(new)
    }

    /// Whether the caller may make just this change: by it nobody gets or gives rights that he does not hold. That he may
    /// write objects of this kind is known.
    async fn admit_change(&self, _asker: Asker<'_>, _old: Option<&Value>, _new: &Value) -> Result<(), Box<Status>> {
        Ok(())
    }

    /// What must hold elsewhere for the object to be made. The operations go into the same transaction; when one of them
    /// fails there, this is asked again.
    async fn admit_create(&self, _backend: &Backend, _object: &Value) -> Result<Vec<Op>, Box<Status>> {
        Ok(Vec::new())
    }

    /// What must hold elsewhere for the object to go. As [`Kind::admit_create`].
    async fn admit_delete(&self, _backend: &Backend, _old: &Stored, _object: &Value) -> Result<Vec<Op>, Box<Status>> {
        Ok(Vec::new())
    }

    /// Carries a deletion out that is more than taking an object away. True: the object goes by what was done.
    async fn delete_whole(&self, _backend: &Backend, _object: &Value) -> Result<bool, Box<Status>> {
        Ok(false)
    }

    /// Adds computed fields to objects that are about to be shown.
    async fn decorate(&self, _backend: &Backend, _caller: Caller<'_>, _objects: &mut [Value]) {}
}

/// All kinds, in the order of discovery.
pub(crate) static KINDS: &[&dyn Kind] = &[
    &namespace::Namespaces,
    &events::EVENTS,
    &project::Projects,
    &cluster::Clusters,
    &virtual_cluster_instance::VirtualClusterInstances,
    &secret::PROJECT,
    &secret::SHARED,
    &user::Users,
    &team::Teams,
    &cluster_role_template::ClusterRoleTemplates,
    &access_key::AccessKeys,
    &identity::Identities,
    &oidc::Clients,
    &oidc::GRANTS,
    &oidc::KEYS,
    &audit::EVENTS,
    &audit::CHAINS,
    &audit::SINKS,
    &region::Regions,
    &server::Servers,
];

/// The kind that serves `plural` of a group and version.
pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static dyn Kind> {
    KINDS.iter().copied().find(|k| {
        let names = k.names();
        names.group == group && names.version == version && names.plural == plural
    })
}

/// Makes the caller the owner of a new object that names none: clients of vCluster Platform leave him out and rely on him
/// afterwards.
pub(crate) fn fill_owner(object: &mut Value, caller: &Principal) {
    let spec = member_mut(object, "spec");
    if spec
        .get("owner")
        .is_none_or(|o| o.as_object().is_none_or(Map::is_empty))
    {
        let owner = match caller.user.strip_prefix(GROUP_TEAM_PREFIX) {
            Some(team) => json!({ "team": team }),
            None => json!({ "user": caller.user }),
        };
        spec.insert("owner".into(), owner);
    }
}

/// An update that names no owner changes none.
pub(crate) fn keep_owner(old: &Value, new: &mut Value) {
    if let (None, Some(owner)) = (new["spec"].get("owner"), old["spec"].get("owner")) {
        member_mut(new, "spec").insert("owner".into(), owner.clone());
    }
}

/// Refuses an object made for somebody else, and a change of who may do what with one, unless the caller may do that.
pub(crate) async fn admit_grants(
    asker: Asker<'_>,
    kind: &KindName,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), Box<Status>> {
    let (namespace, grants) = (meta_text(new, "namespace"), Some("access"));
    match old {
        None if ObjectAccess::of(&new["spec"]).owner.is(asker.principal) => Ok(()),
        None => asker.require("create", kind, grants, (namespace, None)).await,
        Some(old) if changes_grants(&old["spec"], &new["spec"]) => {
            let place = (namespace, Some(meta_text(new, "name")));
            asker.require("update", kind, grants, place).await
        }
        Some(_) => Ok(()),
    }
}

/// `group/version`, or the version alone for core.
pub(crate) fn api_version(names: &KindName) -> String {
    if names.group.is_empty() {
        names.version.to_owned()
    } else {
        names.api_version()
    }
}

/// Reads an object as its type; the fault names what does not fit.
pub(crate) fn typed<T: DeserializeOwned>(object: &Value) -> Result<T, Cause> {
    T::deserialize(object).map_err(|e| Cause {
        reason: "FieldValueTypeInvalid".into(),
        message: format!("Invalid value: {e}"),
        field: "spec".into(),
    })
}

/// The faults that `check` finds in an object that can be read at all.
pub(crate) fn check<T: DeserializeOwned>(object: &Value, check: impl FnOnce(&T) -> Vec<Cause>) -> Vec<Cause> {
    typed(object).map_or_else(|fault| vec![fault], |object| check(&object))
}

/// A text for a cell, from a JSON pointer.
pub(crate) fn cell(object: &Value, pointer: &str) -> Value {
    match object.pointer(pointer) {
        Some(Value::String(text)) => text.as_str().into(),
        Some(Value::Null) | None => "".into(),
        Some(other) => other.to_string().into(),
    }
}

/// Age of an object in at most two units, as kubectl's users know it.
pub(crate) fn age(object: &Value, now: Timestamp) -> String {
    let created: Option<Timestamp> = serde_json::from_value(object["metadata"]["creationTimestamp"].clone()).ok();
    created.map_or_else(|| "<unknown>".to_owned(), |created| human(now.since(created)))
}

fn human(age: Duration) -> String {
    let s = age.as_secs();
    let (m, h, d) = (s / 60, s / 3600, s / 86_400);
    let pair = |big: u64, unit: char, small: u64, small_unit: char| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{small_unit}"),
    };
    match s {
        0..120 => format!("{s}s"),
        120..600 => pair(m, 'm', s % 60, 's'),
        600..10_800 => format!("{m}m"),
        10_800..28_800 => pair(h, 'h', m % 60, 'm'),
        28_800..172_800 => format!("{h}h"),
        172_800..691_200 => pair(d, 'd', h % 24, 'h'),
        691_200..63_072_000 => format!("{d}d"),
        _ => pair(d / 365, 'y', d % 365, 'd'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_like_kubectls() {
        let table = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (86_400, "24h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (864_000, "10d"),
            (63_072_000, "2y"),
        ];
        for (seconds, want) in table {
            assert_eq!(human(Duration::from_secs(seconds)), want, "{seconds}");
        }
    }

    #[test]
    fn names_are_unique_and_rows_fit_their_columns() {
        for (i, kind) in KINDS.iter().enumerate() {
            let cells = kind.cells(&serde_json::json!({}));
            assert_eq!(cells.len(), kind.columns().len(), "{}", kind.names().kind);
            for other in &KINDS[..i] {
                assert_ne!(
                    (kind.names().group, kind.names().plural),
                    (other.names().group, other.names().plural)
                );
            }
        }
    }
}
