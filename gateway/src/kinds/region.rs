//! Regions.

use super::{Column, Kind, Subresource, cell, check, column};
use crate::apiserver::backend::Backend;
use crate::apiserver::schema::Parts;
use async_trait::async_trait;
use hanse_api::kinds::{ANNOTATION_REGION, CLUSTERS, KindName, REGIONS};
use hanse_api::resources::region;
use hanse_api::status::{Cause, Status};
use hanse_state::objects::{Op, Stored};
use serde_json::{Value, json};

pub(super) struct Regions;

#[async_trait]
impl Kind for Regions {
    fn names(&self) -> &'static KindName {
        &REGIONS
    }

    fn singular(&self) -> &'static str {
        "region"
    }

    fn about(&self) -> &'static str {
        "A region: servers and connected clusters with a failure domain of their own. Cannot go while it has connected clusters."
    }

    fn example(&self) -> Value {
        json!({ "metadata": { "name": "north" }, "spec": { "displayName": "North" } })
    }

    fn subresources(&self) -> &'static [Subresource] {
        &[Subresource {
            name: "jointoken",
            kind: "JoinToken",
            verbs: &["create"],
            about: "A token with which one server joins the region. Shown once; for administrators.",
        }]
    }

    fn schemas(&self) -> Parts {
        Parts::of::<hanse_api::resources::RegionSpec, hanse_api::resources::RegionStatus>()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[column("Coordinator", "Server that runs its controllers")];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![cell(object, "/status/coordinator")]
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        check(object, region::validate)
    }

    async fn admit_delete(&self, backend: &Backend, old: &Stored, _object: &Value) -> Result<Vec<Op>, Box<Status>> {
        let there = |cluster: &Value| cluster["metadata"]["annotations"][ANNOTATION_REGION] == old.name.as_str();
        let refusal = format!("region {:?} still has connected clusters", old.name);
        backend.refuse_while_used(&CLUSTERS, &refusal, there).await?;
        Ok(Vec::new())
    }
}
