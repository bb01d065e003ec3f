//! What the clients of the tests write: config maps of a tenant, projects of the management API; and what is there of them.

use crate::load::{Load, Outcome};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

/// What came of a request that makes something.
fn outcome<T>(result: kube::Result<T>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Outcome::Exists,
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

fn config_maps(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "default")
}

/// Makes one config map after the other in a tenant, `prefix-0`, `prefix-1`, ...
pub fn tenant_writes(client: &Client, prefix: &str) -> Load {
    let api = config_maps(client);
    let write = move |name: String| {
        let api = api.clone();
        async move {
            let mut object = ConfigMap::default();
            object.metadata.name = Some(name);
            outcome(api.create(&PostParams::default(), &object).await)
        }
        .boxed()
    };
    Load::start("tenant writes", prefix, Box::new(write))
}

/// The config maps of the namespace that [`tenant_writes`] writes to.
pub async fn config_map_names(client: &Client) -> kube::Result<Vec<String>> {
    let list = config_maps(client).list(&ListParams::default()).await?;
    Ok(list.items.iter().map(ResourceExt::name_any).collect())
}

fn projects(client: &Client) -> (ApiResource, Api<DynamicObject>) {
    let resource = ApiResource {
        group: "management.loft.sh".into(),
        version: "v1".into(),
        api_version: "management.loft.sh/v1".into(),
        kind: "Project".into(),
        plural: "projects".into(),
    };
    (resource.clone(), Api::all_with(client.clone(), &resource))
}

/// Makes one project after the other, `prefix-0`, `prefix-1`, ...
pub fn management_writes(client: &Client, prefix: &str) -> Load {
    let (resource, api) = projects(client);
    let write = move |name: String| {
        let (api, resource) = (api.clone(), resource.clone());
        async move {
            let object = DynamicObject::new(&name, &resource).data(json!({ "spec": {} }));
            outcome(api.create(&PostParams::default(), &object).await)
        }
        .boxed()
    };
    Load::start("management writes", prefix, Box::new(write))
}

/// The projects there are.
pub async fn project_names(client: &Client) -> kube::Result<Vec<String>> {
    let (_, api) = projects(client);
    let list = api.list(&ListParams::default()).await?;
    Ok(list.items.iter().map(ResourceExt::name_any).collect())
}
