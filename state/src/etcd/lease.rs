//! `etcdserverpb.Lease`.

use super::{Service, refused, room};
use crate::pb::{self, lease_server::Lease};
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

#[tonic::async_trait]
impl Lease for Service {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let access = self.access(&request)?;
        let pb::LeaseGrantRequest { ttl, id } = request.into_inner();
        self.check_room(&access, room::LEASE_BYTES).await?;
        let mut answer = self.store.lease_grant(&access, id, ttl).await.map_err(refused)?;
        self.complete(&mut answer.header);
        Ok(Response::new(answer))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let access = self.access(&request)?;
        let revision = self
            .store
            .lease_revoke(&access, request.into_inner().id)
            .await
            .map_err(refused)?;
        Ok(Response::new(pb::LeaseRevokeResponse {
            header: self.header_at(revision),
        }))
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let access = self.access(&request)?;
        let service = self.clone();
        // One after the other: the client asks again only after an answer, so there is nothing to buffer.
        let answers = request.into_inner().then(move |request| {
            let (service, access) = (service.clone(), access.clone());
            async move {
                let id = request?.id;
                let mut answer = service.store.lease_keep_alive(&access, id).await.map_err(refused)?;
                service.complete(&mut answer.header);
                Ok(answer)
            }
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let access = self.access(&request)?;
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let mut answer = self
            .store
            .lease_time_to_live(&access, id, keys)
            .await
            .map_err(refused)?;
        self.complete(&mut answer.header);
        Ok(Response::new(answer))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let access = self.access(&request)?;
        let ids = self.store.leases(&access).await.map_err(refused)?;
        let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        let header = self.header_at(self.store.revision());
        Ok(Response::new(pb::LeaseLeasesResponse { header, leases }))
    }
}
