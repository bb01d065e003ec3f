//! `v3electionpb.Election`: elections for clients that do not wait in line by themselves. Who is first in line leads.

use super::{Service, queue, refused};
use crate::error::StoreError;
use crate::pb;
use crate::pb::election::election_server::Election;
use crate::pb::election::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse,
};
use crate::pb::request_op::Request as Op;
use crate::store::{Access, WatchItem, WatchRequest};
use crate::watch::Watch;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use std::collections::VecDeque;
use tonic::{Request, Response, Status};

fn required(leader: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    leader.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))
}

fn not_leader() -> Status {
    Status::unknown("election: not leader")
}

fn expired() -> Status {
    Status::unknown("election: session is expired")
}

fn put(key: &Bytes, value: Bytes, lease: i64) -> Op {
    Op::RequestPut(pb::PutRequest {
        key: key.clone(),
        value,
        lease,
        ..Default::default()
    })
}

#[tonic::async_trait]
impl Election for Service {
    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        let access = self.access(&request)?;
        let CampaignRequest { name, lease, value } = request.into_inner();
        let lease = self.session(&access, lease).await?;
        let place = self.join(&access, queue::prefix(&name), lease, value.clone()).await?;
        if place.value.as_ref().is_some_and(|before| *before != value) {
            let put = put(&place.key, value, place.lease);
            let changed = self.if_held(&access, &place.key, place.revision, put).await?;
            changed.ok_or_else(expired)?;
        }
        let mut held = self.turn(&access, &place).await?.ok_or_else(expired)?;
        self.complete(&mut held.header);
        let leader = LeaderKey {
            name,
            key: place.key,
            rev: place.revision,
            lease,
        };
        Ok(Response::new(CampaignResponse {
            header: held.header,
            leader: Some(leader),
        }))
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let access = self.access(&request)?;
        let ProclaimRequest { leader, value } = request.into_inner();
        let LeaderKey { key, rev, lease, .. } = required(leader)?;
        let header = self.if_held(&access, &key, rev, put(&key, value, lease)).await?;
        let header = Some(header.ok_or_else(not_leader)?);
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let access = self.access(&request)?;
        let found = self.first(&access, &queue::prefix(&request.into_inner().name)).await?;
        let Some(kv) = found.kvs.into_iter().next() else {
            return Err(Status::unknown("election: no leader"));
        };
        Ok(Response::new(LeaderResponse {
            header: found.header,
            kv: Some(kv),
        }))
    }

    type ObserveStream = BoxStream<'static, Result<LeaderResponse, Status>>;

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let access = self.access(&request)?;
        let observer = Observer {
            service: self.clone(),
            access,
            prefix: queue::prefix(&request.into_inner().name),
            leader: None,
            told: VecDeque::new(),
            ended: false,
        };
        let leaders = futures::stream::unfold(observer, |mut observer| async move {
            if observer.ended {
                return None;
            }
            let leader = observer.next().await;
            observer.ended |= leader.is_err();
            Some((leader, observer))
        });
        Ok(Response::new(leaders.boxed()))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let access = self.access(&request)?;
        let LeaderKey { key, rev, .. } = required(request.into_inner().leader)?;
        let delete = Op::RequestDeleteRange(pb::DeleteRangeRequest {
            key: key.clone(),
            ..Default::default()
        });
        let header = self.if_held(&access, &key, rev, delete).await?;
        // Who does not lead any more has nothing to give up.
        let header = header.or_else(|| Some(self.store.header()));
        Ok(Response::new(ResignResponse { header }))
    }
}

/// Follows who leads and what they proclaim.
struct Observer {
    service: Service,
    access: Access,
    prefix: Bytes,
    /// Changes of the leader's key, while it leads.
    leader: Option<Watch>,
    told: VecDeque<LeaderResponse>,
    ended: bool,
}

impl Observer {
    async fn watch(&mut self, key: Bytes, range_end: Bytes, from: i64) -> Result<Watch, Status> {
        let request = WatchRequest {
            key,
            range_end,
            start_revision: from,
            ..Default::default()
        };
        self.service.store.watch(&self.access, request).await.map_err(refused)
    }

    async fn next(&mut self) -> Result<LeaderResponse, Status> {
        loop {
            if let Some(told) = self.told.pop_front() {
                return Ok(told);
            }
            match &mut self.leader {
                Some(watch) => match watch.next().await {
                    Some(WatchItem::Events { revision, events }) => self.changed(revision, events),
                    Some(WatchItem::Progress { .. }) => {}
                    Some(WatchItem::Compacted { .. }) => self.leader = None,
                    Some(WatchItem::Lagged) | None => return Err(refused(StoreError::Stopped)),
                },
                None => self.look().await?,
            }
        }
    }

    fn changed(&mut self, revision: i64, events: Vec<pb::Event>) {
        for event in events {
            if event.r#type == i32::from(pb::event::EventType::Delete) {
                self.leader = None;
                return;
            }
            let header = self.service.header_at(revision);
            self.told.push_back(LeaderResponse { header, kv: event.kv });
        }
    }

    /// Finds the leader, or waits for a change in the line.
    async fn look(&mut self) -> Result<(), Status> {
        let found = self.service.first(&self.access, &self.prefix).await?;
        let from = found.header.as_ref().map_or(0, |header| header.revision) + 1;
        let Some(kv) = found.kvs.into_iter().next() else {
            let end = crate::keys::prefix_end(&self.prefix).into();
            let mut watch = self.watch(self.prefix.clone(), end, from).await?;
            // Whatever comes, the line is looked at anew; a watch that was cut yields an item too.
            return match watch.next().await {
                Some(WatchItem::Lagged) | None => Err(refused(StoreError::Stopped)),
                Some(_) => Ok(()),
            };
        };
        self.leader = Some(self.watch(kv.key.clone(), Bytes::new(), from).await?);
        self.told.push_back(LeaderResponse {
            header: found.header,
            kv: Some(kv),
        });
        Ok(())
    }
}
