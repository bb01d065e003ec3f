//! `etcdserverpb.Maintenance`: as much as tells a client that it talks to a healthy store.

use super::{STORAGE_VERSION, Service, VERSION, refused, snapshot};
use crate::pb::{self, alarm_request::AlarmAction, maintenance_server::Maintenance};
use crate::store::Role;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// etcd's checksums have 32 bits.
fn folded(hash: u64) -> u32 {
    let folded = (hash >> 32) ^ (hash & u64::from(u32::MAX));
    u32::try_from(folded).unwrap_or(u32::MAX)
}

#[tonic::async_trait]
impl Maintenance for Service {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let access = self.access(&request)?;
        let pb::AlarmRequest {
            action,
            member_id,
            alarm,
        } = request.into_inner();
        let machine = self.store.machine();
        let named = pb::AlarmMember { member_id, alarm };
        let alarms = match AlarmAction::try_from(action) {
            Ok(AlarmAction::Activate) if alarm != i32::from(pb::AlarmType::None) => {
                let set = self.store.set_alarm(&access, member_id, alarm, true);
                set.await.map_err(refused)?;
                vec![named]
            }
            Ok(AlarmAction::Deactivate) => {
                let raised = machine.alarms(&access).map_err(refused)?.contains(&named);
                let set = self.store.set_alarm(&access, member_id, alarm, false);
                set.await.map_err(refused)?;
                if raised { vec![named] } else { Vec::new() }
            }
            Ok(AlarmAction::Get) => {
                self.catch_up(&access).await?;
                let mut alarms = machine.alarms(&access).map_err(refused)?;
                let all = alarm == i32::from(pb::AlarmType::None);
                alarms.retain(|one| all || one.alarm == alarm);
                alarms
            }
            Ok(AlarmAction::Activate) | Err(_) => Vec::new(),
        };
        Ok(Response::new(pb::AlarmResponse {
            header: Some(self.store.header()),
            alarms,
        }))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let access = self.access(&request)?;
        let status = self.store.status();
        let machine = self.store.machine();
        let usage = machine.usage(&access).map_err(refused)?;
        let used = usage.bytes;
        let quota = self.settings.quota.unwrap_or(usage.limits.bytes);
        // What the whole server holds is no business of a tenant.
        let size = self.operator.as_ref().map_or(used, |_| status.db_size.max(used));
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut errors = Vec::new();
        if status.leader.is_none() {
            errors.push("etcdserver: no leader".to_owned());
        }
        for pb::AlarmMember { member_id, alarm } in machine.alarms(&access).map_err(refused)? {
            let kind = pb::AlarmType::try_from(alarm).map_or("UNKNOWN", |kind| kind.as_str_name());
            errors.push(format!("memberID:{member_id} alarm:{kind}"));
        }
        Ok(Response::new(pb::StatusResponse {
            header: Some(self.store.header()),
            version: VERSION.to_owned(),
            db_size: number(size),
            leader: status.leader.unwrap_or_default(),
            raft_index: status.last_index,
            raft_term: status.term,
            raft_applied_index: status.applied_index,
            errors,
            db_size_in_use: number(used),
            db_size_quota: number(quota),
            is_learner: status.role == Role::Learner,
            storage_version: STORAGE_VERSION.to_owned(),
        }))
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let access = self.access(&request)?;
        let found = self.store.hash(&access).await.map_err(refused)?;
        Ok(Response::new(pb::HashResponse {
            header: self.header_at(found.revision),
            hash: folded(found.hash),
        }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        let access = self.access(&request)?;
        let revision = request.into_inner().revision;
        let machine = Arc::clone(self.store.machine());
        let work = tokio::task::spawn_blocking(move || machine.hash_at(&access, revision));
        let found = work.await.unwrap_or(Err(crate::StoreError::Stopped)).map_err(refused)?;
        Ok(Response::new(pb::HashKvResponse {
            header: Some(self.store.header()),
            hash: folded(found.hash),
            compact_revision: found.floor,
            hash_revision: found.revision,
        }))
    }

    type SnapshotStream = snapshot::Blobs;

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let access = self.access(&request)?;
        Ok(Response::new(self.take_snapshot(access).await?))
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
