//! Credentials for one tenant cluster or one connected cluster: made when they are asked for, shown once, kept as hashes, and
//! never more than the caller has himself.

use super::backend::{Backend, failed};
use super::keys::{self, KEY_LIFE_MAX, Way};
use super::{object, unknown};
use crate::authz;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hanse_api::access::{Principal, Target};
use hanse_api::kinds::{CLUSTERS, LOFT_GROUP, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::name::{PROJECT_NAMESPACE_PREFIX, project_of_namespace};
use hanse_api::resources::Cluster;
use hanse_api::status::{Cause, Reason, Status};
use hanse_state::objects::ObjectKey;
use http::Uri;
use http::header::{HOST, HeaderMap};
use http::uri::Authority;
use serde_json::{Value, json};

/// Life of the key in a kubeconfig, in seconds, unless another one is asked for.
const KUBECONFIG_LIFE: i64 = 24 * 3600;
/// Life of the key of a tenant cluster's own programs, in seconds.
const INSTANCE_KEY_LIFE: i64 = 30 * 24 * 3600;

/// A tenant cluster that credentials are for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tenant<'a> {
    project: &'a str,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Tenant<'a> {
    /// The one of that name; 404 where there can be none.
    pub(super) fn new(namespace: &'a str, name: &'a str) -> Result<Self, Box<Status>> {
        let project = project_of_namespace(namespace).ok_or_else(unknown)?;
        Ok(Self {
            project,
            namespace,
            name,
        })
    }

    /// Refuses unless the caller may enter it. Under a scope no key is made, as the new one would outlive the scope's.
    pub(super) async fn admit(&self, backend: &Backend, principal: &Principal) -> Result<(), Box<Status>> {
        let (project, name) = (self.project, self.name);
        authz::authorize(backend, principal, &["use"], &Target::Tenant { project, name }).await?;
        if principal.scope.is_everything() {
            return Ok(());
        }
        let message = "a scoped access key makes no other keys; use one without a scope";
        Err(Box::new(Status::new(Reason::Forbidden, message)))
    }

    async fn there(&self, backend: &Backend) -> Result<(), Box<Status>> {
        let kind = &VIRTUAL_CLUSTER_INSTANCES;
        let key = ObjectKey::new(kind, self.namespace, self.name);
        let stored = backend.objects.get(&key).await.map_err(|e| failed(&e))?;
        let stored = stored.ok_or_else(|| Box::new(Status::not_found(kind.group, kind.plural, self.name)))?;
        if object::is_terminating(&Backend::parse(&stored)?) {
            let message = format!(
                "tenant cluster {:?} is being deleted; no credentials are made for it",
                self.name
            );
            return Err(Box::new(Status::new(Reason::Conflict, message)));
        }
        Ok(())
    }

    /// A key of the caller for just this tenant cluster.
    async fn key(
        &self,
        backend: &Backend,
        principal: &Principal,
        (about, life, roles): (&str, i64, &[&str]),
    ) -> Result<Value, Box<Status>> {
        let roles: Vec<Value> = roles.iter().map(|role| json!({ "role": role })).collect();
        let wanted = json!({ "spec": {
            "displayName": format!("{about} of {}/{}", self.project, self.name),
            "ttl": life,
            "scope": { "roles": roles, "virtualClusters": [{ "project": self.project, "virtualCluster": self.name }] },
        }});
        let mut made = keys::create_key(backend, principal, Way::Owned, &wanted).await?;
        Ok(made["spec"]["key"].take())
    }
}

fn fault(field: &str, message: String) -> Box<Status> {
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message,
        field: format!("spec.{field}"),
    };
    Box::new(Status::invalid(
        LOFT_GROUP,
        "VirtualClusterInstanceKubeConfig",
        "",
        vec![cause],
    ))
}

/// The address by which the caller reached this server.
pub(super) fn address(headers: &HeaderMap, uri: &Uri) -> Result<String, Box<Status>> {
    let named = headers.get(HOST).and_then(|h| h.to_str().ok());
    let named = named
        .or_else(|| uri.authority().map(Authority::as_str))
        .unwrap_or_default();
    match named.parse::<Authority>() {
        Ok(host) if !host.as_str().contains('@') => Ok(format!("https://{host}")),
        _ => Err(Box::new(Status::new(
            Reason::BadRequest,
            "the request does not say by which address it came (Host)",
        ))),
    }
}

/// What `spec` asks for: the life of the key, and the server that the kubeconfig names.
fn asked(tenant: &Tenant<'_>, address: &str, spec: &Value) -> Result<(i64, String), Box<Status>> {
    if spec["clientCert"] == true {
        let message =
            "Invalid value: true: there are no client certificates of tenant clusters; leave it out for a token";
        return Err(fault("clientCert", message.into()));
    }
    let life = match &spec["certificateTTL"] {
        Value::Null => KUBECONFIG_LIFE,
        value => match value.as_i64() {
            Some(0) => KUBECONFIG_LIFE,
            Some(seconds) if (1..=KEY_LIFE_MAX).contains(&seconds) => seconds,
            _ => {
                let message = format!("Invalid value: {value}: must be from 0 to {KEY_LIFE_MAX} seconds");
                return Err(fault("certificateTTL", message));
            }
        },
    };
    let server = spec["server"].as_str().unwrap_or_default();
    if server.is_empty() {
        let Tenant { project, name, .. } = tenant;
        return Ok((
            life,
            format!("{address}/kubernetes/project/{project}/virtualcluster/{name}"),
        ));
    }
    let is_good = server.parse::<Uri>().is_ok_and(|uri| {
        let plain = uri.query().is_none() && uri.authority().is_some_and(|a| !a.as_str().contains('@'));
        uri.scheme_str() == Some("https") && plain
    });
    if is_good {
        Ok((life, server.to_owned()))
    } else {
        let message = format!("Invalid value: {server:?}: must be an https address without user and query");
        Err(fault("server", message))
    }
}

/// A kubeconfig by which the caller enters a tenant cluster as himself, and goes nowhere else.
pub(super) async fn kubeconfig(
    backend: &Backend,
    principal: &Principal,
    tenant: Tenant<'_>,
    address: &str,
    wanted: &Value,
) -> Result<Value, Box<Status>> {
    tenant.there(backend).await?;
    let (life, server) = asked(&tenant, address, &wanted["spec"])?;
    let key = tenant.key(backend, principal, ("kubeconfig", life, &[])).await?;
    let name = format!("hanse_{}_{}", tenant.project, tenant.name);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": name, "cluster": {
            "server": server,
            "certificate-authority-data": STANDARD.encode(&backend.ca_pem),
        }}],
        "users": [{ "name": name, "user": { "token": key } }],
        "contexts": [{ "name": name, "context": { "cluster": name, "user": name } }],
        "current-context": name,
    });
    Ok(json!({
        "kind": "VirtualClusterInstanceKubeConfig",
        "apiVersion": "management.loft.sh/v1",
        "metadata": { "name": tenant.name, "namespace": tenant.namespace },
        "spec": wanted.get("spec").cloned().unwrap_or_else(|| json!({})),
        // JSON is YAML.
        "status": { "kubeConfig": format!("{config:#}\n") },
    }))
}

/// A key for programs that belong to a tenant cluster.
pub(super) async fn instance_key(
    backend: &Backend,
    principal: &Principal,
    tenant: Tenant<'_>,
) -> Result<Value, Box<Status>> {
    tenant.there(backend).await?;
    let about = ("access key", INSTANCE_KEY_LIFE, &["vcluster"][..]);
    let key = tenant.key(backend, principal, about).await?;
    Ok(json!({
        "kind": "VirtualClusterAccessKey",
        "apiVersion": "management.loft.sh/v1",
        "metadata": { "name": tenant.name, "namespace": tenant.namespace },
        "accessKey": key,
    }))
}

/// What an agent needs to join as the one of a connected cluster: a token that is used up by it.
pub(super) async fn cluster_key(backend: &Backend, cluster: &str, address: &str) -> Result<Value, Box<Status>> {
    let mut made = keys::enrolment(backend, cluster, &json!({})).await?;
    Ok(json!({
        "kind": "ClusterAccessKey",
        "apiVersion": "management.loft.sh/v1",
        "metadata": { "name": cluster },
        "accessKey": made["status"]["token"].take(),
        "loftHost": address,
        "insecure": false,
        "caCert": STANDARD.encode(&backend.ca_pem),
    }))
}

/// What an agent is told about the installation. Nothing of it is secret.
pub(super) async fn agent_config(backend: &Backend, cluster: &str, address: &str) -> Result<Value, Box<Status>> {
    let found: Cluster = super::special::typed(backend, &CLUSTERS, cluster).await?;
    Ok(json!({
        "kind": "ClusterAgentConfig",
        "apiVersion": "management.loft.sh/v1",
        "metadata": { "name": cluster },
        "cluster": found.metadata.name,
        "loftHost": address,
        "projectNamespacePrefix": PROJECT_NAMESPACE_PREFIX,
        "tokenCaCert": STANDARD.encode(&backend.ca_pem),
        "analyticsSpec": {},
        "authenticateVersionEndpoint": false,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> Tenant<'static> {
        Tenant::new("p-default", "demo").unwrap()
    }

    #[test]
    fn what_a_kubeconfig_may_ask_for() {
        let asked = |spec: Value| asked(&demo(), "https://h:1", &spec).map_err(|e| e.message);
        let own = "https://h:1/kubernetes/project/default/virtualcluster/demo".to_owned();
        assert_eq!(asked(json!({})), Ok((KUBECONFIG_LIFE, own.clone())));
        assert_eq!(
            asked(json!({ "certificateTTL": 0 })),
            Ok((KUBECONFIG_LIFE, own.clone()))
        );
        assert_eq!(
            asked(json!({ "certificateTTL": 60, "clientCert": false })),
            Ok((60, own))
        );
        let other = "https://other.example:8443/x";
        assert_eq!(
            asked(json!({ "server": other })),
            Ok((KUBECONFIG_LIFE, other.to_owned()))
        );
        for (bad, field) in [
            (json!({ "certificateTTL": -1 }), "spec.certificateTTL"),
            (json!({ "certificateTTL": "1h" }), "spec.certificateTTL"),
            (json!({ "certificateTTL": KEY_LIFE_MAX + 1 }), "spec.certificateTTL"),
            (json!({ "clientCert": true }), "spec.clientCert"),
            (json!({ "server": "http://plain.example" }), "spec.server"),
            (json!({ "server": "https://me:pw@h.example" }), "spec.server"),
            (json!({ "server": "https://h.example/?a=b" }), "spec.server"),
            (json!({ "server": "nonsense" }), "spec.server"),
        ] {
            let told = asked(bad.clone()).unwrap_err();
            assert!(told.contains(field), "{bad}: {told}");
        }
        assert!(Tenant::new("kube-system", "demo").is_err());
    }

    #[test]
    fn the_address_is_that_of_the_request() {
        let address = |host: Option<&str>, uri: &str| {
            let mut headers = HeaderMap::new();
            headers.extend(host.map(|h| (HOST, h.parse().unwrap())));
            address(&headers, &uri.parse().unwrap()).ok()
        };
        assert_eq!(address(Some("h.example:443"), "/x").unwrap(), "https://h.example:443");
        assert_eq!(address(None, "https://h2.example/x").unwrap(), "https://h2.example");
        assert_eq!(address(None, "/x"), None);
        assert_eq!(address(Some("u@h.example"), "/x"), None);
    }
}
