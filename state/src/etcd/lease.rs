//! Lease: grants, and one answer per keep-alive on a stream.

use super::{Etcd, access};
use crate::pb::{self, lease_server::Lease};
use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

#[tonic::async_trait]
impl Lease for Etcd {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        let access = access(&request)?;
        let req = request.into_inner();
        let mut answer = self.store.lease_grant(&access, req.id, req.ttl).await.map_err(|error| error.status())?;
        answer.header = self.header(answer.header);
        Ok(Response::new(answer))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let access = access(&request)?;
        let id = request.into_inner().id;
        let revision = self.store.lease_revoke(&access, id).await.map_err(|error| error.status())?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: self.header_at(revision) }))
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let access = access(&request)?;
        let state = (self.clone(), access, request.into_inner());
        // One at a time: the next message is read when the last one was answered.
        let answers = stream::try_unfold(state, |(etcd, access, mut inbound)| async move {
            let Some(message) = inbound.message().await? else { return Ok(None) };
            let mut answer =
                etcd.store.lease_keep_alive(&access, message.id).await.map_err(|error| error.status())?;
            answer.header = etcd.header(answer.header);
            Ok(Some((answer, (etcd, access, inbound))))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let access = access(&request)?;
        let req = request.into_inner();
        let answer = self.store.lease_time_to_live(&access, req.id, req.keys).await;
        let mut answer = answer.map_err(|error| error.status())?;
        answer.header = self.header(answer.header);
        Ok(Response::new(answer))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        let access = access(&request)?;
        let ids = self.store.leases(&access).await.map_err(|error| error.status())?;
        let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse { header: self.header(None), leases }))
    }
}
