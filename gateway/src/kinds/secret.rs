//! Secrets of a project and of the whole installation: named values, stored sealed ([`crate::apiserver::sealed`]).

use super::project::inside_project;
use super::{Column, Kind, admit_grants, cell, check, column, fill_owner, keep_owner, wide};
use crate::apiserver::backend::Backend;
use crate::apiserver::schema::Parts;
use crate::authz::Asker;
use async_trait::async_trait;
use hanse_api::access::Principal;
use hanse_api::kinds::{KindName, PLATFORM_NAMESPACE, PROJECT_SECRETS, SHARED_SECRETS};
use hanse_api::name::project_of_namespace;
use hanse_api::resources::{ProjectSecret, SecretSpec, secret};
use hanse_api::status::{Cause, Status};
use hanse_state::objects::Op;
use serde_json::Value;

/// Where values are.
const FIELD: &str = "data";

/// Secrets of a project, in its namespace.
pub(super) struct ProjectSecrets;
/// Secrets of the installation, in the namespace that vCluster Platform's clients look into.
pub(super) struct SharedSecrets;

const COLUMNS: &[Column] = &[
    column("Keys", "Names of its values"),
    wide("Display Name", "Name for people"),
];

/// Names of the values, never the values.
fn cells(object: &Value) -> Vec<Value> {
    let names: Vec<&str> = object["spec"][FIELD]
        .as_object()
        .map(|data| data.keys().map(String::as_str).collect())
        .unwrap_or_default();
    vec![names.join(",").into(), cell(object, "/spec/displayName")]
}

fn validate(object: &Value) -> Vec<Cause> {
    check(object, |object: &ProjectSecret| secret::validate(&object.spec))
}

#[async_trait]
impl Kind for ProjectSecrets {
    fn names(&self) -> &'static KindName {
        &PROJECT_SECRETS
    }

    fn singular(&self) -> &'static str {
        "projectsecret"
    }

    fn has_status(&self) -> bool {
        false
    }

    fn secret_field(&self) -> Option<&'static str> {
        Some(FIELD)
    }

    fn project<'a>(&self, namespace: &'a str, _name: &'a str) -> Option<&'a str> {
        project_of_namespace(namespace)
    }

    fn schemas(&self) -> Parts {
        Parts::of::<SecretSpec, ()>()
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        cells(object)
    }

    fn prepare(&self, object: &mut Value, caller: &Principal) {
        fill_owner(object, caller);
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        keep_owner(old, new);
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        validate(object)
    }

    async fn admit_change(&self, asker: Asker<'_>, old: Option<&Value>, new: &Value) -> Result<(), Box<Status>> {
        admit_grants(asker, &PROJECT_SECRETS, old, new).await
    }

    async fn admit_create(&self, backend: &Backend, object: &Value) -> Result<Vec<Op>, Box<Status>> {
        inside_project(backend, object).await
    }
}

#[async_trait]
impl Kind for SharedSecrets {
    fn names(&self) -> &'static KindName {
        &SHARED_SECRETS
    }

    fn singular(&self) -> &'static str {
        "sharedsecret"
    }

    fn has_status(&self) -> bool {
        false
    }

    fn secret_field(&self) -> Option<&'static str> {
        Some(FIELD)
    }

    fn schemas(&self) -> Parts {
        Parts::of::<SecretSpec, ()>()
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        cells(object)
    }

    fn prepare(&self, object: &mut Value, caller: &Principal) {
        fill_owner(object, caller);
    }

    fn prepare_update(&self, old: &Value, new: &mut Value) {
        keep_owner(old, new);
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        validate(object)
    }

    async fn admit_change(&self, asker: Asker<'_>, old: Option<&Value>, new: &Value) -> Result<(), Box<Status>> {
        admit_grants(asker, &SHARED_SECRETS, old, new).await
    }

    async fn admit_create(&self, _backend: &Backend, object: &Value) -> Result<Vec<Op>, Box<Status>> {
        match crate::apiserver::object::meta_text(object, "namespace") {
            PLATFORM_NAMESPACE => Ok(Vec::new()),
            other => Err(Box::new(Status::not_found("", "namespaces", other))),
        }
    }
}
