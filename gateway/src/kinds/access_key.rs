//! Access keys, for those who administer them. They are made at [`crate::apiserver::keys`], which alone knows a secret, and
//! once; here they are looked at, disabled, renamed and deleted. Nobody ever sees the hash.

use super::{Column, Kind, cell, check, column, wide};
use crate::apiserver::object;
use crate::apiserver::schema::Parts;
use hanse_api::kinds::{ACCESS_KEYS, KindName, STORAGE_ACCESS_KEYS};
use hanse_api::resources::{AccessKey, AccessKeySpec};
use hanse_api::status::Cause;
use hanse_state::objects::ObjectKey;
use serde_json::{Value, json};

/// Where the hash of the secret is.
const HASH: &str = "secretSha256";
/// What a key is, which never changes: whoever could change it could take it over.
const FIXED: [&str; 6] = ["user", "team", "type", "scope", "expires", HASH];

pub(super) struct AccessKeys;

impl Kind for AccessKeys {
    fn names(&self) -> &'static KindName {
        &STORAGE_ACCESS_KEYS
    }

    fn singular(&self) -> &'static str {
        "accesskey"
    }

    fn about(&self) -> &'static str {
        "An access key of a user or a team. The key itself is in the answer to its creation, in `spec.key`, and nowhere afterwards; what it stands for never changes."
    }

    fn example(&self) -> Value {
        json!({ "metadata": { "name": "ci" }, "spec": { "displayName": "CI", "user": "ann", "ttl": 3600 } })
    }

    fn has_status(&self) -> bool {
        false
    }

    fn schemas(&self) -> Parts {
        Parts::of::<AccessKeySpec, ()>()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            column("User", "User that it speaks for"),
            column("Team", "Team that it speaks for"),
            column("Disabled", "Whether it is refused"),
            column("Expires", "When it ends"),
            wide("Display Name", "Name for people"),
        ];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        ["user", "team", "disabled", "expires", "displayName"]
            .map(|field| cell(object, &format!("/spec/{field}")))
            .into()
    }

    fn stored_as(&self) -> &'static KindName {
        &ACCESS_KEYS
    }

    fn key(&self, _namespace: &str, name: &str) -> Option<ObjectKey> {
        Some(ObjectKey::new(&ACCESS_KEYS, "", name))
    }

    fn conceal(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            spec.remove(HASH);
        }
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        let spec = object::member_mut(new, "spec");
        for field in FIXED {
            if let (Some(old), None) = (old["spec"].get(field), spec.get(field)) {
                spec.insert(field.to_owned(), old.clone());
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        check(object, |_: &AccessKey| Vec::new())
    }

    fn validate_update(&self, old: &Value, new: &Value) -> Vec<Cause> {
        let mut faults = self.validate(new);
        let changed = FIXED.into_iter().filter(|f| old["spec"].get(f) != new["spec"].get(f));
        faults.extend(changed.map(|field| Cause {
            reason: "FieldValueInvalid".into(),
            message: "Invalid value: field is immutable; make another key".into(),
            field: format!("spec.{field}"),
        }));
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stays_what_it_is_and_never_shows_its_hash() {
        let old = json!({ "metadata": { "name": "a" }, "spec": { "user": "ann", "secretSha256": "h" } });
        let mut shown = old.clone();
        AccessKeys.conceal(&mut shown);
        assert!(!shown.to_string().contains("ecretSha256"));
        shown["spec"]["disabled"] = true.into();
        AccessKeys.prepare_update(&old, &mut shown);
        assert!(AccessKeys.validate_update(&old, &shown).is_empty());
        assert_eq!(shown["spec"]["secretSha256"], "h");
        for (field, value) in [
            ("user", json!("eve")),
            ("secretSha256", json!("x")),
            ("scope", json!({})),
        ] {
            let mut taken = old.clone();
            taken["spec"][field] = value;
            assert_eq!(AccessKeys.validate_update(&old, &taken).len(), 1, "{field}");
        }
    }
}
