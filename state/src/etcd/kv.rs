//! `etcdserverpb.KV`.

use super::{Service, range_stream, refused};
use crate::machine::{check_delete, check_put, check_range, check_txn, growth};
use crate::pb::{self, kv_server::Kv, request_op, response_op};
use crate::store::Access;
use tonic::{Request, Response, Status};

impl Service {
    /// Does one operation as a transaction of its own.
    async fn single(&self, access: &Access, op: request_op::Request) -> Result<response_op::Response, Status> {
        let op = pb::RequestOp { request: Some(op) };
        let txn = pb::TxnRequest {
            success: vec![op],
            ..Default::default()
        };
        self.check_room(access, growth(&txn)).await?;
        let answer = self.store.txn(access, txn).await.map_err(refused)?;
        let response = answer
            .responses
            .into_iter()
            .next()
            .and_then(|response| response.response);
        response.ok_or_else(|| Status::internal("hanse: a transaction of one operation has no answer"))
    }
}

#[tonic::async_trait]
impl Kv for Service {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let access = self.access(&request)?;
        let request = request.into_inner();
        check_range(&request).map_err(refused)?;
        let mut answer = self.store.range(&access, request).await.map_err(refused)?;
        self.complete(&mut answer.header);
        Ok(Response::new(answer))
    }

    type RangeStreamStream = range_stream::Parts;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let access = self.access(&request)?;
        let request = request.into_inner();
        check_range(&request).map_err(refused)?;
        Ok(Response::new(range_stream::parts(self.clone(), access, request)?))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let access = self.access(&request)?;
        let request = request.into_inner();
        check_put(&request).map_err(refused)?;
        match self.single(&access, request_op::Request::RequestPut(request)).await? {
            response_op::Response::ResponsePut(mut answer) => {
                self.complete(&mut answer.header);
                Ok(Response::new(answer))
            }
            _ => Err(Status::internal("hanse: a put was not answered as one")),
        }
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let access = self.access(&request)?;
        let request = request.into_inner();
        check_delete(&request).map_err(refused)?;
        match self
            .single(&access, request_op::Request::RequestDeleteRange(request))
            .await?
        {
            response_op::Response::ResponseDeleteRange(mut answer) => {
                self.complete(&mut answer.header);
                Ok(Response::new(answer))
            }
            _ => Err(Status::internal("hanse: a deletion was not answered as one")),
        }
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let access = self.access(&request)?;
        let request = request.into_inner();
        check_txn(&request).map_err(refused)?;
        self.check_room(&access, growth(&request)).await?;
        let mut answer = self.store.txn(&access, request).await.map_err(refused)?;
        self.complete(&mut answer.header);
        Ok(Response::new(answer))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let access = self.access(&request)?;
        let pb::CompactionRequest {
            revision: floor,
            physical,
        } = request.into_inner();
        let revision = self.store.compact(&access, floor).await.map_err(refused)?;
        if physical {
            self.store.machine().pruned(&access, floor).await.map_err(refused)?;
        }
        Ok(Response::new(pb::CompactionResponse {
            header: self.header_at(revision),
        }))
    }
}
