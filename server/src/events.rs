//! What the tunnel asks of the rest of the server: take a report, answer a tenant's store call, enrol an agent, take a server in.

use crate::joining::Door;
use async_trait::async_trait;
use bytes::Bytes;
use hanse_regions::{HostRefusal, Regions};
use hanse_runtime::clock::SharedClock;
use hanse_runtime::pki::Ca;
use hanse_runtime::supervisor::chain;
use hanse_state::objects::Objects;
use hanse_state::{Access, StoreError};
use hanse_tunnel::enrol::EnrolmentToken;
use hanse_tunnel::{Admitted, Body, Enrolled, ServerEvents, StoreHead, TunnelError};
use http_body_util::BodyExt;
use std::sync::OnceLock;
use tonic::service::Routes;
use tower::ServiceExt;

/// The tunnel's way into a server.
pub struct Events {
    /// The etcd v3 service on the tenants' group, called in process.
    pub etcd: Routes,
    /// The registry.
    pub objects: Objects,
    /// Signs the certificates of agents.
    pub ca: Ca,
    /// Time.
    pub clock: SharedClock,
    /// Set once the controllers run; they need the tunnel, which needs this.
    pub regions: OnceLock<Regions>,
    /// Takes new servers in.
    pub(crate) door: Door,
}

impl Events {
    /// Whether this cluster hosts that tenant; otherwise the answer that refuses the call.
    fn admit(&self, cluster: &str, head: &StoreHead) -> Result<(), Box<http::Response<Body>>> {
        let elsewhere = |fault: String| {
            let error = TunnelError::NotDialed {
                peer: "this server".to_owned(),
                fault,
            };
            Box::new(hanse_tunnel::refuse(error))
        };
        let Some(regions) = self.regions.get() else {
            return Err(elsewhere("it is starting".to_owned()));
        };
        let Err(refusal) = regions.hosts().check(cluster, &head.tenant, head.epoch) else {
            return Ok(());
        };
        tracing::warn!(cluster, tenant = head.tenant, %refusal, "a store call was refused");
        Err(match refusal {
            // Nothing was done, and this server may only be behind: the call may go to another one.
            HostRefusal::Unknown { .. } | HostRefusal::Ahead { .. } => elsewhere(refusal.to_string()),
            HostRefusal::NotTheHost { .. } | HostRefusal::Stale { .. } => {
                let fence = regions.hosts().host(&head.tenant).map_or(0, |(_, epoch)| epoch);
                let fenced = StoreError::Fenced {
                    tenant: head.tenant.clone(),
                    epoch: head.epoch,
                    fence,
                };
                Box::new(grpc_status(fenced.status()))
            }
        })
    }

    async fn call_etcd(&self, head: StoreHead, body: Body) -> Result<http::Response<Body>, http::Error> {
        let mut request = http::Request::builder()
            .method("POST")
            .uri(&head.path)
            .body(tonic::body::Body::new(body))?;
        *request.headers_mut() = head.headers;
        *request.version_mut() = http::Version::HTTP_2;
        request
            .extensions_mut()
            .insert(Access::tenant(head.tenant).with_epoch(head.epoch));
        let response = match self.etcd.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        Ok(response.map(|body| body.map_err(|error| TunnelError::Body(error.into())).boxed_unsync()))
    }
}

/// A gRPC answer that holds only a status.
fn grpc_status(status: tonic::Status) -> http::Response<Body> {
    status
        .into_http::<tonic::body::Body>()
        .map(|_| hanse_tunnel::empty_body())
}

#[async_trait]
impl ServerEvents for Events {
    async fn report(&self, cluster: &str, report: Bytes) {
        let Some(regions) = self.regions.get() else { return };
        if let Err(error) = regions.reports().receive(cluster, &report).await {
            tracing::warn!(cluster, error = chain(&error), "a report could not be taken in");
        }
    }

    async fn store_call(&self, cluster: &str, head: StoreHead, body: Body) -> http::Response<Body> {
        if let Err(refusal) = self.admit(cluster, &head) {
            return *refusal;
        }
        match self.call_etcd(head, body).await {
            Ok(response) => response,
            Err(error) => grpc_status(tonic::Status::invalid_argument(error.to_string())),
        }
    }

    async fn enrol(&self, token: &str, csr_pem: &str) -> Result<Enrolled, String> {
        let token = EnrolmentToken::parse(token).map_err(|error| error.to_string())?;
        let secret = format!("{}.{}", token.id(), token.secret());
        let now = self.clock.wall();
        match hanse_regions::enrol(&self.objects, &self.ca, &secret, csr_pem, now).await {
            Ok(enrolled) => Ok(Enrolled {
                cert_pem: enrolled.cert_pem,
                ca_pem: enrolled.ca_pem,
                cluster: enrolled.cluster,
            }),
            Err(error) => {
                tracing::warn!(token = token.id(), error = chain(&error), "an enrolment was refused");
                Err(error.to_string())
            }
        }
    }

    async fn admit(&self, token: &str, csr_pem: &str, newcomer: Bytes) -> Result<Admitted, String> {
        let token = EnrolmentToken::parse(token).map_err(|error| error.to_string())?;
        let admitted = self.door.admit(&self.ca, &token, csr_pem, &newcomer).await;
        admitted.inspect_err(|why| tracing::warn!(token = token.id(), why, "a server was not taken in"))
    }
}
