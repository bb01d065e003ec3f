//! Who somebody of an identity provider is here.

use super::invalid;
use crate::meta::Object;
use crate::name;
use crate::status::Cause;
use crate::time::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Binds somebody at an identity provider to a user. Its name follows from issuer and subject, so there is one for each.
pub type Identity = Object<IdentitySpec, ()>;

/// Somebody at an identity provider, and the user that he is here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IdentitySpec {
    /// Issuer, exactly as in the `iss` of its tokens.
    pub issuer: String,
    /// Subject, exactly as in the `sub` of its tokens: an address or a login name may be given to somebody else one day.
    pub subject: String,
    /// Name of the user.
    pub user: String,
    /// Uid of the user. With it, a later user of the same name is not meant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_uid: String,
}

/// Faults of an identity.
pub fn validate(identity: &Identity) -> Vec<Cause> {
    let mut faults = Vec::new();
    if !identity.spec.issuer.starts_with("https://") {
        let text = format!("Invalid value: {:?}: must begin with https://", identity.spec.issuer);
        faults.push(invalid("spec.issuer", text));
    }
    if identity.spec.subject.is_empty() {
        faults.push(invalid(
            "spec.subject",
            "Required value: the sub of the issuer's tokens",
        ));
    }
    if let Err(why) = name::check_subdomain(&identity.spec.user) {
        faults.push(invalid(
            "spec.user",
            format!("Invalid value: {:?}: {why}", identity.spec.user),
        ));
    }
    faults
}

/// Somebody's word in a browser that a waiting program may log in as him. Never served.
pub type LoginGrant = Object<LoginGrantSpec, ()>;

/// Who gave his word, and until when it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoginGrantSpec {
    /// Name of the user.
    pub user: String,
    /// Uid of the user.
    pub user_uid: String,
    /// Refused after this time.
    pub expires: Timestamp,
}

/// A login, or a code from one, that was used and must not be again. Never served; its name begins with the time at which
/// it may be forgotten, so that the oldest come first.
pub type SpentLogin = Object<SpentLoginSpec, ()>;

/// When it may be forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SpentLoginSpec {
    /// What was used is refused by its own expiry after this time.
    pub expires: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_named() {
        let mut identity = Identity::default();
        let fields = |identity: &Identity| validate(identity).into_iter().map(|c| c.field).collect::<Vec<_>>();
        assert_eq!(fields(&identity), ["spec.issuer", "spec.subject", "spec.user"]);
        identity.spec.issuer = "https://id.example.com".into();
        identity.spec.subject = "8f1".into();
        identity.spec.user = "ann".into();
        assert!(fields(&identity).is_empty());
    }
}
