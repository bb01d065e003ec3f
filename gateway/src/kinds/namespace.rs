//! Core namespaces, read only: one for each project, made up from it. kubectl asks for them before it creates something
//! in one.

use super::{Column, Kind, READ_VERBS, cell, column};
use crate::apiserver::object;
use hanse_api::kinds::{KindName, PROJECTS};
use hanse_api::name::{project_namespace, project_of_namespace};
use hanse_api::status::Cause;
use hanse_state::objects::ObjectKey;
use serde_json::{Value, json};

const NAMESPACES: KindName = KindName {
    group: "",
    version: "v1",
    kind: "Namespace",
    plural: "namespaces",
    namespaced: false,
};

pub(super) struct Namespaces;

impl Kind for Namespaces {
    fn names(&self) -> &'static KindName {
        &NAMESPACES
    }

    fn singular(&self) -> &'static str {
        "namespace"
    }

    fn about(&self) -> &'static str {
        "A project, as clients of Kubernetes look for it: the namespace `p-NAME` of the project NAME. Made up, never stored."
    }

    fn short_names(&self) -> &'static [&'static str] {
        &["ns"]
    }

    fn verbs(&self) -> &'static [&'static str] {
        READ_VERBS
    }

    fn has_status(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        const COLUMNS: &[Column] = &[column("Status", "Active or Terminating")];
        COLUMNS
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        vec![cell(object, "/status/phase")]
    }

    fn stored_as(&self) -> &'static KindName {
        &PROJECTS
    }

    fn key(&self, _namespace: &str, name: &str) -> Option<ObjectKey> {
        let project = project_of_namespace(name)?;
        Some(ObjectKey {
            kind: PROJECTS,
            namespace: String::new(),
            name: project.to_owned(),
        })
    }

    fn present(&self, project: Value) -> Value {
        let name = project_namespace(object::name(&project));
        let phase = if object::is_terminating(&project) {
            "Terminating"
        } else {
            "Active"
        };
        let meta = &project["metadata"];
        let mut metadata = json!({
            "name": name,
            "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"],
            "creationTimestamp": meta["creationTimestamp"],
            "labels": { "kubernetes.io/metadata.name": name, "loft.sh/project": meta["name"] },
        });
        if let Some(deleted) = meta.get("deletionTimestamp") {
            metadata["deletionTimestamp"] = deleted.clone();
        }
        json!({ "metadata": metadata, "spec": {}, "status": { "phase": phase } })
    }

    fn validate(&self, _object: &Value) -> Vec<Cause> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_from_projects() {
        let project =
            json!({ "metadata": { "name": "x", "uid": "u", "resourceVersion": "7" }, "spec": { "secret": 1 } });
        let namespace = Namespaces.present(project);
        assert_eq!(namespace["metadata"]["name"], "p-x");
        assert_eq!(namespace["metadata"]["resourceVersion"], "7");
        assert_eq!(namespace["status"]["phase"], "Active");
        assert_eq!(namespace["spec"], json!({}));
        assert_eq!(Namespaces.key("", "p-x").unwrap().name, "x");
        assert!(Namespaces.key("", "kube-system").is_none());
    }
}
