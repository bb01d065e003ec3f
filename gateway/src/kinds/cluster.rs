//! Connected clusters.

use super::{Column, Kind, Subresource, cell, check, column, wide};
use crate::apiserver::backend::Backend;
use crate::apiserver::schema::Parts;
use async_trait::async_trait;
use hanse_api::kinds::{ANNOTATION_REGION, CLUSTERS, KindName, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::resources::cluster;
use hanse_api::status::{Cause, Status};
use hanse_state::objects::{Op, Stored};
use serde_json::{Value, json};

pub(super) struct Clusters;

#[async_trait]
impl Kind for Clusters {
    fn names(&self) -> &'static KindName {
        &CLUSTERS
    }

    fn singular(&self) -> &'static str {
        "cluster"
    }

    fn about(&self) -> &'static str {
        "A connected cluster: where control planes of tenant clusters run. Its agent enrols with a token (subresource `enrolmenttoken`) and dials out."
    }

    fn example(&self) -> Value {
        json!({
            "metadata": { "name": "lab", "annotations": { ANNOTATION_REGION: "eu" } },
            "spec": { "displayName": "Lab", "networkPeer": true },
        })
    }

    fn subresources(&self) -> &'static [Subresource] {
        const fn sub(
            name: &'static str,
            kind: &'static str,
            verbs: &'static [&'static str],
            about: &'static str,
        ) -> Subresource {
            Subresource {
                name,
                kind,
                verbs,
                about,
            }
        }
        const SUBRESOURCES: &[Subresource] = &[
            sub(
                "accesskey",
                "ClusterAccessKey",
                &["get"],
                "The key with which its agent speaks. Makes one where there is none.",
            ),
            sub(
                "agentconfig",
                "ClusterAgentConfig",
                &["get"],
                "What its agent needs to know.",
            ),
            sub(
                "enrolmenttoken",
                "EnrolmentToken",
                &["create"],
                "A token with which its agent enrols. Shown once.",
            ),
            sub(
                "members",
                "ClusterMembers",
                &["get"],
                "Users and teams that have rights there.",
            ),
        ];
        SUBRESOURCES
    }

    fn schemas(&self) -> Parts {
        Parts::of::<hanse_api::resources::ClusterSpec, hanse_api::resources::ClusterStatus>()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            column("Region", "Region that it belongs to"),
            column("Phase", "Whether an agent runs there"),
            column("Online", "Whether its agent is connected"),
            wide("Message", "What is wrong"),
        ];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        let region = object["metadata"]["annotations"][ANNOTATION_REGION]
            .as_str()
            .unwrap_or_default();
        vec![
            region.into(),
            cell(object, "/status/phase"),
            cell(object, "/status/online"),
            cell(object, "/status/message"),
        ]
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        check(object, cluster::validate)
    }

    async fn admit_delete(&self, backend: &Backend, old: &Stored, _object: &Value) -> Result<Vec<Op>, Box<Status>> {
        let hosted = |tenant: &Value| tenant["spec"]["clusterRef"]["cluster"] == old.name.as_str();
        let refusal = format!("cluster {:?} still hosts tenant clusters", old.name);
        backend
            .refuse_while_used(&VIRTUAL_CLUSTER_INSTANCES, &refusal, hosted)
            .await?;
        Ok(Vec::new())
    }
}
