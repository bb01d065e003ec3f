//! Roles that administrators define.

use super::{Column, Kind, cell, check, column, wide};
use crate::apiserver::object;
use crate::apiserver::schema::Parts;
use crate::authz::Asker;
use async_trait::async_trait;
use hanse_api::access::PolicyRule;
use hanse_api::kinds::{CLUSTER_ROLE_TEMPLATES, KindName};
use hanse_api::resources::{ClusterRoleTemplate, ClusterRoleTemplateSpec};
use hanse_api::status::{Cause, Reason, Status};
use serde_json::{Value, json};

pub(super) struct ClusterRoleTemplates;

#[async_trait]
impl Kind for ClusterRoleTemplates {
    fn names(&self) -> &'static KindName {
        &CLUSTER_ROLE_TEMPLATES
    }

    fn singular(&self) -> &'static str {
        "clusterroletemplate"
    }

    fn about(&self) -> &'static str {
        "A role: rules as in Kubernetes, to be given to users and teams, or (labelled `loft.sh/project-role=true`) to members of projects. Nobody defines one that can do more than he can."
    }

    fn example(&self) -> Value {
        json!({
            "metadata": { "name": "reader" },
            "spec": {
                "management": true,
                "clusterRoleTemplate": {
                    "rules": [{ "apiGroups": ["management.loft.sh"], "resources": ["clusters"], "verbs": ["get", "list"] }],
                },
            },
        })
    }

    fn has_status(&self) -> bool {
        false
    }

    fn schemas(&self) -> Parts {
        Parts::of::<ClusterRoleTemplateSpec, ()>()
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[
            column("Management", "Whether it is a role of the management API"),
            wide("Display Name", "Name for people"),
        ];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![cell(object, "/spec/management"), cell(object, "/spec/displayName")]
    }

    fn validate(&self, object: &Value) -> Vec<Cause> {
        check(object, |_: &ClusterRoleTemplate| Vec::new())
    }

    /// Nobody defines a role that can do more than he can, unless he has the right to escalate.
    async fn admit_change(&self, asker: Asker<'_>, _old: Option<&Value>, new: &Value) -> Result<(), Box<Status>> {
        let name = object::name(new);
        let escalates = asker.require("escalate", &CLUSTER_ROLE_TEMPLATES, None, ("", Some(name)));
        if asker.is_admin() || escalates.await.is_ok() {
            return Ok(());
        }
        let rules = &new["spec"]["clusterRoleTemplate"]["rules"];
        let rules: Vec<PolicyRule> = serde_json::from_value(rules.clone()).unwrap_or_default();
        for rule in &rules {
            if !asker.holds(rule).await {
                let message = format!(
                    "User {:?} cannot define a role with rights that he does not have: {}",
                    asker.principal.user,
                    serde_json::to_string(rule).unwrap_or_default()
                );
                return Err(Box::new(Status::new(Reason::Forbidden, message)));
            }
        }
        Ok(())
    }
}
