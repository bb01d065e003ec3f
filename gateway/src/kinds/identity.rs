//! Identities: who somebody of an identity provider is here. A first login makes one where users may come by themselves;
//! elsewhere, and for those that shall be a user who exists already, an administrator does.

use super::{Column, Kind, cell, check, column};
use crate::apiserver::schema::Parts;
use crate::authz::Asker;
use crate::oidc::identity_name;
use async_trait::async_trait;
use hanse_api::kinds::{IDENTITIES, KindName, USERS};
use hanse_api::resources::{Identity, IdentitySpec, identity};
use hanse_api::status::{Cause, Status};
use serde_json::{Value, json};

pub(super) struct Identities;

#[async_trait]
impl Kind for Identities {
    fn names(&self) -> &'static KindName {
        &IDENTITIES
    }

    fn singular(&self) -> &'static str {
        "identity"
    }

    fn about(&self) -> &'static str {
        "Who somebody of an identity provider is here. Its name follows from issuer and subject."
    }

    fn example(&self) -> Value {
        {
            let (issuer, subject) = ("https://id.example.com", "8f1");
            json!({
                "metadata": { "name": identity_name(issuer, subject) },
                "spec": { "issuer": issuer, "subject": subject, "user": "ann" },
            })
        }
    }

    fn has_status(&self) -> bool {
        false
    }

    fn schemas(&self) -> Parts {
        Parts::of::<IdentitySpec, ()>()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            column("User", "User that he is here"),
            column("Issuer", "Where he comes from"),
            column("Subject", "Who he is there"),
        ];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        ["user", "issuer", "subject"]
            .map(|field| cell(object, &format!("/spec/{field}")))
            .into()
    }

    /// The name is found from issuer and subject at each login: another would never be.
    fn validate(&self, object: &Value) -> Vec<Cause> {
        check(object, |identity: &Identity| {
            let mut faults = identity::validate(identity);
            let name = identity_name(&identity.spec.issuer, &identity.spec.subject);
            if faults.is_empty() && identity.metadata.name != name {
                faults.push(Cause {
                    reason: "FieldValueInvalid".into(),
                    message: format!(
                        "Invalid value: {:?}: the name for this issuer and subject is {name}",
                        identity.metadata.name
                    ),
                    field: "metadata.name".into(),
                });
            }
            faults
        })
    }

    /// Whoever can say that he is a user can be that user.
    async fn admit_change(&self, asker: Asker<'_>, old: Option<&Value>, new: &Value) -> Result<(), Box<Status>> {
        if old.is_some_and(|old| old["spec"] == new["spec"]) {
            return Ok(());
        }
        let user = new["spec"]["user"].as_str().unwrap_or_default();
        asker.require("impersonate", &USERS, None, ("", Some(user))).await
    }
}
