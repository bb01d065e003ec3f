//! `etcdserverpb.Watch`: one stream of requests and answers that carries many watches.
//!
//! Everything that is to be sent goes through one queue, and a watch counts as up to date only when what it yielded
//! before is in that queue: so a progress answer never overtakes an event.

use super::watches::{Tagged, Watches};
use super::{Service, refused};
use crate::StoreError;
use crate::pb::{self, watch_request::RequestUnion, watch_server::Watch as WatchApi};
use crate::store::{Access, WatchItem, WatchRequest};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use prost::Message;
use std::collections::VecDeque;
use std::time::Duration;
use tonic::{Request, Response, Status, Streaming};

/// Watches of one stream. kube-apiserver has one for each resource and client.
const MAX_WATCHES: usize = 100_000;
/// Revisions of one watch that go into one answer.
const MAX_JOINED: usize = 128;
/// Bytes of events from which an answer is sent off or, if the client wants it so, cut into fragments.
const FRAGMENT_BYTES: usize = crate::machine::MAX_REQUEST_BYTES;
/// How often a stream that depends on a leader looks whether there is one.
const LEADER_ROUND: Duration = Duration::from_secs(1);
/// Rounds without a leader after which such a stream ends.
const LEADERLESS_ROUNDS: u32 = 3;
/// Id in answers that belong to no watch.
const NO_WATCH: i64 = -1;

#[tonic::async_trait]
impl WatchApi for Service {
    type WatchStream = BoxStream<'static, Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let access = self.access(&request)?;
        let needs_leader = request.metadata().get("hasleader").is_some_and(|value| value == "true");
        let session = Session {
            service: self.clone(),
            access,
            requests: request.into_inner(),
            watches: Watches::default(),
            out: VecDeque::new(),
            needs_leader,
            leaderless: 0,
            round: self.clock.sleep(LEADER_ROUND),
            ended: false,
        };
        let answers = futures::stream::unfold(session, |mut session| async move {
            let answer = session.next().await?;
            Some((answer, session))
        });
        Ok(Response::new(answers.boxed()))
    }
}

struct Session {
    service: Service,
    access: Access,
    requests: Streaming<pb::WatchRequest>,
    watches: Watches,
    out: VecDeque<Result<pb::WatchResponse, Status>>,
    needs_leader: bool,
    leaderless: u32,
    round: BoxFuture<'static, ()>,
    ended: bool,
}

impl Session {
    async fn next(&mut self) -> Option<Result<pb::WatchResponse, Status>> {
        loop {
            if let Some(answer) = self.out.pop_front() {
                self.ended |= answer.is_err();
                return Some(answer);
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                request = self.requests.next() => match request {
                    Some(Ok(request)) => self.request(request).await,
                    // The client is gone, or its connection is.
                    Some(Err(_)) | None => return None,
                },
                Some(tagged) = self.watches.next() => self.items(tagged),
                () = &mut self.round, if self.needs_leader => self.look_for_leader(),
            }
        }
    }

    fn look_for_leader(&mut self) {
        self.round = self.service.clock.sleep(LEADER_ROUND);
        self.leaderless = if self.service.store.has_leader() {
            0
        } else {
            self.leaderless + 1
        };
        if self.leaderless >= LEADERLESS_ROUNDS {
            self.out.push_back(Err(StoreError::NoLeader.status()));
        }
    }

    async fn request(&mut self, request: pb::WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => {
                if let Some(revision) = self.watches.progress() {
                    let header = self.service.header_at(revision);
                    self.push(pb::WatchResponse {
                        header,
                        watch_id: NO_WATCH,
                        ..empty()
                    });
                }
            }
            None => {}
        }
    }

    fn cancel(&mut self, watch_id: i64) {
        if self.watches.remove(watch_id) {
            let header = Some(self.service.store.header());
            self.push(pb::WatchResponse {
                header,
                watch_id,
                canceled: true,
                ..empty()
            });
        }
    }

    fn push(&mut self, answer: pb::WatchResponse) {
        self.out.push_back(Ok(answer));
    }

    fn refuse(&mut self, reason: impl Into<String>) {
        let header = Some(self.service.store.header());
        let cancel_reason = reason.into();
        let answer = pb::WatchResponse {
            header,
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            ..empty()
        };
        self.push(pb::WatchResponse {
            cancel_reason,
            ..answer
        });
    }

    async fn create(&mut self, create: pb::WatchCreateRequest) {
        let request = match watch_request(&create) {
            Ok(request) => request,
            Err(reason) => return self.refuse(reason),
        };
        if self.watches.len() >= MAX_WATCHES {
            return self.refuse(StoreError::Overloaded.status().message());
        }
        let Some(id) = self.watches.free_id(create.watch_id) else {
            return self.refuse("mvcc: duplicate watch ID provided on the WatchStream");
        };
        match self.service.store.watch(&self.access, request).await {
            Ok(watch) => {
                let header = self.service.header_at(watch.created());
                self.push(pb::WatchResponse {
                    header,
                    watch_id: id,
                    created: true,
                    ..empty()
                });
                self.watches.insert(id, watch, create.fragment);
            }
            Err(error @ (StoreError::Fenced { .. } | StoreError::WrongGroup { .. } | StoreError::InvalidTenant(_))) => {
                self.out.push_back(Err(refused(error)));
            }
            Err(error) => self.refuse(error.status().message()),
        }
    }

    fn items(&mut self, tagged: Tagged) {
        let Tagged { id, fragment, item } = tagged;
        match item {
            WatchItem::Events { revision, events } => self.events(id, fragment, revision, events),
            WatchItem::Progress { revision } => {
                let header = self.service.header_at(revision);
                self.push(pb::WatchResponse {
                    header,
                    watch_id: id,
                    ..empty()
                });
            }
            WatchItem::Compacted { revision } => {
                self.watches.remove(id);
                let header = Some(self.service.store.header());
                // The revision is the reason: etcd gives no other.
                let answer = pb::WatchResponse {
                    header,
                    watch_id: id,
                    canceled: true,
                    ..empty()
                };
                self.push(pb::WatchResponse {
                    compact_revision: revision,
                    ..answer
                });
            }
            // The end of the whole stream lets the client's library go on by itself, with all its watches, from
            // where each of them was; a cancelled watch would not.
            WatchItem::Lagged => self.out.push_back(Err(StoreError::Stopped.status())),
        }
    }

    fn events(&mut self, id: i64, fragment: bool, mut revision: i64, mut events: Vec<pb::Event>) {
        let mut bytes = size(&events);
        for _ in 1..MAX_JOINED {
            if bytes >= FRAGMENT_BYTES {
                break;
            }
            match self.watches.ready(id) {
                Some(WatchItem::Events {
                    revision: next,
                    events: mut more,
                }) => {
                    bytes += size(&more);
                    events.append(&mut more);
                    revision = next;
                }
                Some(other) => {
                    self.answer(id, fragment, revision, events, bytes);
                    return self.items(Tagged {
                        id,
                        fragment,
                        item: other,
                    });
                }
                None => break,
            }
        }
        self.answer(id, fragment, revision, events, bytes);
    }

    fn answer(&mut self, id: i64, fragment: bool, revision: i64, events: Vec<pb::Event>, bytes: usize) {
        let header = self.service.header_at(revision);
        if !fragment || bytes < FRAGMENT_BYTES {
            return self.push(pb::WatchResponse {
                header,
                watch_id: id,
                events,
                ..empty()
            });
        }
        let mut part = Vec::new();
        let mut bytes = 0;
        let mut parts = Vec::new();
        for event in events {
            let len = event.encoded_len();
            if bytes + len >= FRAGMENT_BYTES && !part.is_empty() {
                parts.push(std::mem::take(&mut part));
                bytes = 0;
            }
            bytes += len;
            part.push(event);
        }
        for events in parts {
            self.push(pb::WatchResponse {
                header,
                watch_id: id,
                fragment: true,
                events,
                ..empty()
            });
        }
        self.push(pb::WatchResponse {
            header,
            watch_id: id,
            events: part,
            ..empty()
        });
    }
}

fn empty() -> pb::WatchResponse {
    pb::WatchResponse::default()
}

fn size(events: &[pb::Event]) -> usize {
    events.iter().map(Message::encoded_len).sum()
}

/// What a client asks for, or why it cannot be had.
fn watch_request(create: &pb::WatchCreateRequest) -> Result<WatchRequest, String> {
    use pb::watch_create_request::FilterType;
    if create.start_revision < 0 {
        return Err(StoreError::Compacted { floor: 0 }.status().message().to_owned());
    }
    let key = if create.key.is_empty() {
        Bytes::from_static(&[0])
    } else {
        create.key.clone()
    };
    let range_end = create.range_end.clone();
    if !range_end.is_empty() && range_end.as_ref() != [0] && key >= range_end {
        return Err("mvcc: watcher range is empty".to_owned());
    }
    let filters = |kind: FilterType| create.filters.contains(&i32::from(kind));
    Ok(WatchRequest {
        key,
        range_end,
        start_revision: create.start_revision,
        prev_kv: create.prev_kv,
        no_put: filters(FilterType::Noput),
        no_delete: filters(FilterType::Nodelete),
        progress: create.progress_notify,
    })
}
