//! `grpc.health.v1.Health`.

use super::Service;
use crate::pb::health::health_check_response::ServingStatus;
use crate::pb::health::{HealthCheckRequest, HealthCheckResponse, health_server::Health};
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Health for Service {
    /// Healthy is who hears of a leader; as with etcd, the name of the service does not matter.
    async fn check(&self, _request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status = if self.store.has_leader() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }
}
