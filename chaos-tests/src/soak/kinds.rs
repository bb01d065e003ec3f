//! The kinds that are written through kube-apiserver.

use crate::api_server::{ApiServer, definitions, make};
use anyhow::Result;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use serde_json::{Value, json};
use std::time::Duration;

/// Everything is in a namespace of its own.
pub(super) const NAMESPACE: &str = "soak";
/// How long what it makes lives when nobody renews it.
pub(super) const EVENT_TTL: Duration = Duration::from_secs(20);
/// Between two compactions of the store's history, much more often than usual.
pub(super) const COMPACTION: &str = "30s";

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    ConfigMap,
    Lease,
    /// Of a CustomResourceDefinition that is made for it.
    Widget,
    /// With a time to live: nobody deletes them.
    Event,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::ConfigMap, Self::Lease, Self::Widget, Self::Event];

    pub(super) const fn plural(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmaps",
            Self::Lease => "leases",
            Self::Widget => "widgets",
            Self::Event => "events",
        }
    }

    fn resource(self) -> ApiResource {
        let (group, kind) = match self {
            Self::ConfigMap => ("", "ConfigMap"),
            Self::Lease => ("coordination.k8s.io", "Lease"),
            Self::Widget => ("soak.hanse.dev", "Widget"),
            Self::Event => ("", "Event"),
        };
        let api_version = if group.is_empty() {
            "v1".to_owned()
        } else {
            format!("{group}/v1")
        };
        ApiResource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            api_version,
            kind: kind.to_owned(),
            plural: self.plural().to_owned(),
        }
    }

    pub(super) fn api(self, client: &Client) -> Api<DynamicObject> {
        Api::namespaced_with(client.clone(), NAMESPACE, &self.resource())
    }

    /// The object called so by its writer, with content number `n`.
    pub(super) fn object(self, name: &str, writer: &str, n: u64) -> DynamicObject {
        const FILLER: usize = 256;
        let filler = "x".repeat(FILLER);
        let data = match self {
            Self::ConfigMap => json!({ "data": { "n": n.to_string(), "filler": filler } }),
            Self::Lease => {
                json!({ "spec": { "holderIdentity": writer, "leaseDurationSeconds": 40, "leaseTransitions": n } })
            }
            Self::Widget => json!({ "spec": { "n": n, "filler": filler } }),
            Self::Event => json!({
                "involvedObject": { "kind": "Widget", "namespace": NAMESPACE, "name": writer },
                "reason": "Soaked", "message": filler, "type": "Normal", "count": n,
            }),
        };
        let mut object = DynamicObject::new(name, &self.resource()).data(data);
        object.metadata.labels = Some([("writer".to_owned(), writer.to_owned())].into());
        object
    }

    /// Content number of an object.
    pub(super) fn number(self, object: &DynamicObject) -> Option<u64> {
        match self {
            Self::ConfigMap => object.data["data"]["n"].as_str()?.parse().ok(),
            Self::Lease => object.data["spec"]["leaseTransitions"].as_u64(),
            Self::Widget => object.data["spec"]["n"].as_u64(),
            Self::Event => object.data["count"].as_u64(),
        }
    }
}

/// Makes namespace and kinds, and waits until they are served.
pub(super) async fn define(server: &mut ApiServer) -> Result<()> {
    let namespaces = ApiResource {
        group: String::new(),
        version: "v1".into(),
        api_version: "v1".into(),
        kind: "Namespace".into(),
        plural: "namespaces".into(),
    };
    let namespace = DynamicObject::new(NAMESPACE, &namespaces);
    let kind = DynamicObject::new("widgets.soak.hanse.dev", &definitions()).data(definition());
    server
        .settle(async |client| {
            make(client, &namespaces, &namespace).await?;
            make(client, &definitions(), &kind).await?;
            for kind in Kind::ALL {
                kind.api(client).list(&ListParams::default()).await?;
            }
            Ok(())
        })
        .await
}

fn definition() -> Value {
    let schema = json!({
        "type": "object",
        "properties": { "spec": {
            "type": "object",
            "properties": { "n": { "type": "integer" }, "filler": { "type": "string" } },
        } },
    });
    json!({ "spec": {
        "group": "soak.hanse.dev", "scope": "Namespaced",
        "names": { "plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList" },
        "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }],
    } })
}
