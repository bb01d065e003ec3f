//! KV: a Put and a DeleteRange are transactions of one operation.

use super::{Etcd, access};
use crate::error::StoreError;
use crate::pb::request_op::Request as Op;
use crate::pb::response_op::Response as Done;
use crate::pb::{self, kv_server::Kv};
use crate::store::Access;
use tonic::{Request, Response, Status};

impl Etcd {
    async fn one(&self, access: &Access, op: Op) -> Result<(Option<pb::ResponseHeader>, Done), Status> {
        let success = vec![pb::RequestOp { request: Some(op) }];
        let req = pb::TxnRequest { success, ..Default::default() };
        let mut answer = self.store.txn(access, req).await.map_err(|error| error.status())?;
        let done = answer.responses.pop().and_then(|response| response.response);
        let done = done.ok_or_else(|| StoreError::Corrupt("a transaction without its answer".to_owned()).status())?;
        Ok((self.header(answer.header), done))
    }
}

fn mismatch() -> Status {
    StoreError::Corrupt("an operation was answered by another's answer".to_owned()).status()
}

#[tonic::async_trait]
impl Kv for Etcd {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let access = access(&request)?;
        let answer = self.store.range(&access, request.into_inner()).await;
        let mut answer = answer.map_err(|error| error.status())?;
        answer.header = self.header(answer.header);
        Ok(Response::new(answer))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let access = access(&request)?;
        let (header, done) = self.one(&access, Op::RequestPut(request.into_inner())).await?;
        let Done::ResponsePut(answer) = done else { return Err(mismatch()) };
        Ok(Response::new(pb::PutResponse { header, ..answer }))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let access = access(&request)?;
        let (header, done) = self.one(&access, Op::RequestDeleteRange(request.into_inner())).await?;
        let Done::ResponseDeleteRange(answer) = done else { return Err(mismatch()) };
        Ok(Response::new(pb::DeleteRangeResponse { header, ..answer }))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let access = access(&request)?;
        let mut answer = self.store.txn(&access, request.into_inner()).await.map_err(|error| error.status())?;
        answer.header = self.header(answer.header);
        Ok(Response::new(answer))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let access = access(&request)?;
        let revision = request.into_inner().revision;
        let revision = self.store.compact(&access, revision).await.map_err(|error| error.status())?;
        Ok(Response::new(pb::CompactionResponse { header: self.header_at(revision) }))
    }
}
