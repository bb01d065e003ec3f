//! `v3lockpb.Lock`: locks for clients that do not wait in line by themselves.

use super::{Service, queue, refused};
use crate::machine::check_delete;
use crate::pb;
use crate::pb::lock::lock_server::Lock;
use crate::pb::lock::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use bytes::Bytes;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Lock for Service {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let access = self.access(&request)?;
        let LockRequest { name, lease } = request.into_inner();
        let lease = self.session(&access, lease).await?;
        let place = self.join(&access, queue::prefix(&name), lease, Bytes::new()).await?;
        let held = self.turn(&access, &place).await?;
        let mut held = held.ok_or_else(|| Status::unknown("mutex: session is expired"))?;
        self.complete(&mut held.header);
        Ok(Response::new(LockResponse {
            header: held.header,
            key: place.key,
        }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let access = self.access(&request)?;
        let key = request.into_inner().key;
        let delete = pb::DeleteRangeRequest {
            key: key.clone(),
            ..Default::default()
        };
        check_delete(&delete).map_err(refused)?;
        let header = self.leave(&access, key).await?;
        Ok(Response::new(UnlockResponse { header }))
    }
}
