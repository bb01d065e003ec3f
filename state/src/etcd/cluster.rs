//! `etcdserverpb.Cluster`: the members, and changes of them where the caller is an operator.

use super::{MemberChange, MemberRefused, Service};
use crate::pb::{self, cluster_server::Cluster};
use tonic::{Request, Response, Status};

/// Name of the one member that clients without an operator see.
const MEMBER_NAME: &str = "hanse";

impl Service {
    /// Without a revision, as etcd has it in these answers.
    fn cluster_header(&self) -> pb::ResponseHeader {
        pb::ResponseHeader {
            revision: 0,
            ..self.store.header()
        }
    }

    async fn change_members(&self, change: MemberChange) -> Result<(Option<pb::Member>, Vec<pb::Member>), Status> {
        let Some(operator) = &self.operator else {
            return Err(Status::permission_denied("hanse: members are the operators' business"));
        };
        operator.change_members(change).await.map_err(MemberRefused::status)
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        self.access(&request)?;
        let request = request.into_inner();
        let change = MemberChange::Add {
            peer_urls: request.peer_ur_ls,
            learner: request.is_learner,
        };
        let (member, members) = self.change_members(change).await?;
        Ok(Response::new(pb::MemberAddResponse {
            header: Some(self.cluster_header()),
            member,
            members,
        }))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        self.access(&request)?;
        let change = MemberChange::Remove(request.into_inner().id);
        let (_, members) = self.change_members(change).await?;
        Ok(Response::new(pb::MemberRemoveResponse {
            header: Some(self.cluster_header()),
            members,
        }))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        self.access(&request)?;
        let request = request.into_inner();
        let change = MemberChange::Update {
            id: request.id,
            peer_urls: request.peer_ur_ls,
        };
        let (_, members) = self.change_members(change).await?;
        Ok(Response::new(pb::MemberUpdateResponse {
            header: Some(self.cluster_header()),
            members,
        }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        self.access(&request)?;
        let change = MemberChange::Promote(request.into_inner().id);
        let (_, members) = self.change_members(change).await?;
        Ok(Response::new(pb::MemberPromoteResponse {
            header: Some(self.cluster_header()),
            members,
        }))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        self.access(&request)?;
        let header = self.cluster_header();
        let members = match &self.operator {
            Some(operator) => {
                let members = operator.members(request.into_inner().linearizable).await;
                members.map_err(|error| error.status())?
            }
            // Clients are not to find other members by themselves: whoever took their call in does.
            None => vec![pb::Member {
                id: header.member_id,
                name: MEMBER_NAME.to_owned(),
                ..Default::default()
            }],
        };
        Ok(Response::new(pb::MemberListResponse {
            header: Some(header),
            members,
        }))
    }
}
