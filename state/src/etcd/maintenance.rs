//! Maintenance and Cluster, as far as a client of one key space may see them.

use super::{ETCD_VERSION, Etcd, access};
use crate::pb::alarm_request::AlarmAction;
use crate::pb::{self, cluster_server::Cluster, maintenance_server::Maintenance};
use crate::store::Role;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl Maintenance for Etcd {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        access(&request)?;
        match request.into_inner().action() {
            AlarmAction::Get => {
                Ok(Response::new(pb::AlarmResponse { header: self.header(None), alarms: Vec::new() }))
            }
            AlarmAction::Activate | AlarmAction::Deactivate => {
                Err(Status::unimplemented("alarms are raised and cleared by the system"))
            }
        }
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        access(&request)?;
        let status = self.store.status();
        let size = i64::try_from(status.db_size).unwrap_or(i64::MAX);
        let errors = if self.store.has_leader() { Vec::new() } else { vec!["etcdserver: no leader".to_owned()] };
        Ok(Response::new(pb::StatusResponse {
            header: Some(pb::ResponseHeader {
                cluster_id: status.cluster_id,
                member_id: status.member_id,
                revision: status.revision,
                raft_term: status.term,
            }),
            version: ETCD_VERSION.to_owned(),
            db_size: size,
            leader: status.leader.unwrap_or(0),
            raft_index: status.last_index,
            raft_term: status.term,
            raft_applied_index: status.applied_index,
            errors,
            db_size_in_use: size,
            is_learner: status.role == Role::Learner,
            storage_version: "3.6.0".to_owned(),
        }))
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        access(&request)?;
        Err(Status::unimplemented("the hash of a whole member is not served; use HashKV"))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        let access = access(&request)?;
        if request.into_inner().revision != 0 {
            return Err(Status::unimplemented("the hash is served at the present revision only (revision 0)"));
        }
        let hash = self.store.hash(&access).await.map_err(|error| error.status())?;
        // Clients compare members only; folding 64 bits into etcd's 32 keeps that.
        #[expect(clippy::cast_possible_truncation, reason = "both halves are folded in")]
        let folded = (hash.hash ^ (hash.hash >> 32)) as u32;
        Ok(Response::new(pb::HashKvResponse {
            header: self.header_at(hash.revision),
            hash: folded,
            compact_revision: hash.floor,
            hash_revision: hash.revision,
        }))
    }
}

#[tonic::async_trait]
impl Cluster for Etcd {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        access(&request)?;
        let header = self.header(None);
        let id = header.map_or(0, |header| header.member_id);
        // Addresses of servers are none of a tenant's business.
        let member = pb::Member { id, name: "hanse".to_owned(), ..Default::default() };
        Ok(Response::new(pb::MemberListResponse { header, members: vec![member] }))
    }
}
