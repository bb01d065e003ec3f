//! Secrets of a project and of the whole installation: named values, stored sealed ([`crate::apiserver::sealed`]).

use super::project::inside_project;
use super::{Column, Kind, admit_grants, cell, check, column, fill_owner, keep_owner, wide};
use crate::apiserver::backend::Backend;
use crate::apiserver::object::meta_text;
use crate::apiserver::schema::Parts;
use crate::authz::Asker;
use async_trait::async_trait;
use hanse_api::access::Principal;
use hanse_api::kinds::{KindName, PLATFORM_NAMESPACE, PROJECT_SECRETS, SHARED_SECRETS};
use hanse_api::name::project_of_namespace;
use hanse_api::resources::{ProjectSecret, SecretSpec, secret};
use hanse_api::status::{Cause, Status};
use hanse_state::objects::Op;
use serde_json::{Value, json};

/// Where values are.
const FIELD: &str = "data";

/// Secrets of one reach.
pub(super) struct Secrets {
    names: &'static KindName,
    singular: &'static str,
}

/// Secrets of a project, in its namespace.
pub(super) static PROJECT: Secrets = Secrets {
    names: &PROJECT_SECRETS,
    singular: "projectsecret",
};
/// Secrets of the installation, in the namespace that vCluster Platform's clients look into.
pub(super) static SHARED: Secrets = Secrets {
    names: &SHARED_SECRETS,
    singular: "sharedsecret",
};

const COLUMNS: &[Column] = &[
    column("Keys", "Names of its values"),
    wide("Display Name", "Name for people"),
];

#[async_trait]
impl Kind for Secrets {
    fn names(&self) -> &'static KindName {
        self.names
    }

    fn singular(&self) -> &'static str {
        self.singular
    }

    fn about(&self) -> &'static str {
        match self.singular {
            "projectsecret" => "Named values of a project, stored sealed.",
            _ => "Named values of the installation, stored sealed, in the namespace `vcluster-platform`.",
        }
    }

    fn example(&self) -> Value {
        json!({
            "metadata": {
                "name": "mail",
                "namespace": if self.names == &PROJECT_SECRETS { "p-default" } else { PLATFORM_NAMESPACE },
            },
            "spec": { "displayName": "Mail", "data": { "password": "c2VjcmV0" } },
        })
    }

    fn has_status(&self) -> bool {
        false
    }

    fn secret_field(&self) -> Option<&'static str> {
        Some(FIELD)
    }

    /// Shared ones are in a namespace of no project.
    fn project<'a>(&self, namespace: &'a str, _name: &'a str) -> Option<&'a str> {
        project_of_namespace(namespace)
    }

    fn schemas(&self) -> Parts {
        Parts::of::<SecretSpec, ()>()
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    /// Names of the values, never the values.
    fn cells(&self, object: &Value) -> Vec<Value> {
        let names: Vec<&str> = object["spec"][FIELD]
            .as_object()
            .map(|data| data.keys().map(String::as_str).collect())
            .unwrap_or_default();
        vec![names.join(",").into(), cell(object, "/spec/displayName")]
    }

    fn prepare(&self, object: &mut Value, caller: &Principal) {
        fill_owner(object, caller);
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        keep_owner(old, new);
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        check(object, |object: &ProjectSecret| secret::validate(&object.spec))
    }

    async fn admit_change(&self, asker: Asker<'_>, old: Option<&Value>, new: &Value) -> Result<(), Box<Status>> {
        admit_grants(asker, self.names, old, new).await
    }

    async fn admit_create(&self, backend: &Backend, object: &Value) -> Result<Vec<Op>, Box<Status>> {
        if self.names == &PROJECT_SECRETS {
            return inside_project(backend, object).await;
        }
        match meta_text(object, "namespace") {
            PLATFORM_NAMESPACE => Ok(Vec::new()),
            other => Err(Box::new(Status::not_found("", "namespaces", other))),
        }
    }
}
