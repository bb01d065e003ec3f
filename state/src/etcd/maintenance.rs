//! `etcdserverpb.Maintenance` and `etcdserverpb.Cluster`: as much as tells a client that it talks to a healthy store.

use super::{Service, VERSION, refused};
use crate::pb::{self, alarm_request::AlarmAction, cluster_server::Cluster, maintenance_server::Maintenance};
use crate::store::Role;
use tonic::{Request, Response, Status};

/// Format of stored data that clients see; goes with [`VERSION`].
const STORAGE_VERSION: &str = "3.6.0";
/// Name of the one member that clients see.
const MEMBER_NAME: &str = "hanse";

impl Service {
    async fn space_hash(&self, access: &crate::Access) -> Result<(u32, crate::store::SpaceHash), Status> {
        let found = self.store.hash(access).await.map_err(refused)?;
        let folded = (found.hash >> 32) ^ (found.hash & u64::from(u32::MAX));
        Ok((u32::try_from(folded).unwrap_or(u32::MAX), found))
    }
}

#[tonic::async_trait]
impl Maintenance for Service {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        self.access(&request)?;
        if request.into_inner().action == i32::from(AlarmAction::Activate) {
            return Err(Status::unimplemented("hanse: alarms are raised by the store itself"));
        }
        Ok(Response::new(pb::AlarmResponse {
            header: Some(self.store.header()),
            alarms: Vec::new(),
        }))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        self.access(&request)?;
        let status = self.store.status();
        let db_size = i64::try_from(status.db_size).unwrap_or(i64::MAX);
        let errors = if status.leader.is_none() {
            vec!["etcdserver: no leader".to_owned()]
        } else {
            Vec::new()
        };
        Ok(Response::new(pb::StatusResponse {
            header: Some(self.store.header()),
            version: VERSION.to_owned(),
            db_size,
            leader: status.leader.unwrap_or_default(),
            raft_index: status.last_index,
            raft_term: status.term,
            raft_applied_index: status.applied_index,
            errors,
            db_size_in_use: db_size,
            is_learner: status.role == Role::Learner,
            storage_version: STORAGE_VERSION.to_owned(),
        }))
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let access = self.access(&request)?;
        let (hash, found) = self.space_hash(&access).await?;
        Ok(Response::new(pb::HashResponse {
            header: self.header_at(found.revision),
            hash,
        }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        let access = self.access(&request)?;
        let asked = request.into_inner().revision;
        let (hash, found) = self.space_hash(&access).await?;
        if asked > found.revision {
            return Err(crate::StoreError::FutureRevision {
                current: found.revision,
            }
            .status());
        }
        if asked > 0 && asked != found.revision {
            return Err(Status::unimplemented(
                "hanse: checksums are taken of the present revision only",
            ));
        }
        Ok(Response::new(pb::HashKvResponse {
            header: self.header_at(found.revision),
            hash,
            compact_revision: found.floor,
            hash_revision: found.revision,
        }))
    }

    /// The engine gives space back by itself, so there is nothing left to do for it here.
    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        self.access(&request)?;
        let header = Some(self.store.header());
        Ok(Response::new(pb::DefragmentResponse { header }))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        self.access(&request)?;
        let Some(operator) = &self.operator else {
            return Err(Status::permission_denied(
                "hanse: leadership is the operators' business",
            ));
        };
        let to = request.into_inner().target_id;
        operator.move_leader(to).await.map_err(super::MoveRefused::status)?;
        let header = Some(self.store.header());
        Ok(Response::new(pb::MoveLeaderResponse { header }))
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        self.access(&request)?;
        let header = self.store.header();
        if let Some(operator) = &self.operator {
            return Ok(Response::new(pb::MemberListResponse {
                header: Some(header),
                members: operator.members().await,
            }));
        }
        // Clients are not to find other members by themselves: whoever took their call in does.
        let member = pb::Member {
            id: header.member_id,
            name: MEMBER_NAME.to_owned(),
            ..Default::default()
        };
        Ok(Response::new(pb::MemberListResponse {
            header: Some(header),
            members: vec![member],
        }))
    }
}
