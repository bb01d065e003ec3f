//! `grpc.health.v1.Health`.

use super::Service;
use crate::pb::health::health_check_response::ServingStatus;
use crate::pb::health::{HealthCheckRequest, HealthCheckResponse, health_server::Health};
use futures::stream::{BoxStream, StreamExt};
use std::time::Duration;
use tonic::{Request, Response, Status};

/// How often a watched status is looked at.
const LOOK: Duration = Duration::from_secs(1);

impl Service {
    fn serving(&self) -> ServingStatus {
        if self.store.has_leader() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    }
}

#[tonic::async_trait]
impl Health for Service {
    /// Healthy is who hears of a leader; as with etcd, the name of the service does not matter.
    async fn check(&self, _request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse {
            status: self.serving().into(),
        }))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    /// The status now, and whenever it has changed.
    async fn watch(&self, _request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let statuses = futures::stream::unfold((self.clone(), None), |(service, told)| async move {
            loop {
                let status = service.serving();
                if told != Some(status) {
                    let answer = HealthCheckResponse { status: status.into() };
                    return Some((Ok(answer), (service, Some(status))));
                }
                service.clock.sleep(LOOK).await;
            }
        });
        Ok(Response::new(statuses.boxed()))
    }
}
