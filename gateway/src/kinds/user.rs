//! Users, read only. Every caller may look at himself; the `vcluster` CLI does so when it logs in.

use super::{Column, Kind, cell, column};
use crate::apiserver::schema::Parts;
use hanse_api::kinds::{KindName, USERS};
use hanse_api::status::Cause;
use serde_json::Value;

pub(super) struct Users;

impl Kind for Users {
    fn names(&self) -> &'static KindName {
        &USERS
    }

    fn singular(&self) -> &'static str {
        "user"
    }

    fn verbs(&self) -> &'static [&'static str] {
        &["get"]
    }

    fn has_status(&self) -> bool {
        false
    }

    fn schemas(&self) -> Parts {
        Parts::of::<hanse_api::resources::UserSpec, ()>()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[column("Username", "Login name")];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![cell(object, "/spec/username")]
    }

    fn validate(&self, _object: &Value) -> Vec<Cause> {
        Vec::new()
    }
}
