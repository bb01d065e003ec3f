//! Watch: many watches on one stream, answered in one order.
//!
//! A stream is a state machine that is polled by its reader: it waits for the next message of the client or the next item of
//! any watch, and puts answers into one queue. So a reader that does not read holds nothing but its own watches back, and a
//! progress answer can never overtake an event.

use super::{Etcd, access};
use crate::error::StoreError;
use crate::pb::watch_create_request::FilterType;
use crate::pb::watch_request::RequestUnion;
use crate::pb::{self, watch_server};
use crate::store::{Access, WatchItem, WatchRequest};
use crate::watch::Watch;
use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio_stream::StreamMap;
use tonic::{Request, Response, Status, Streaming};

/// Most watches of one stream.
const MAX_WATCHES: usize = 10_000;
/// Watch id of answers that belong to no watch (etcd's `InvalidWatchID`).
const NO_WATCH: i64 = -1;
/// Fragments are cut at this size: what etcd's clients take at least.
const FRAGMENT_BYTES: usize = 1_572_864;
/// How often a stream that asked for a leader looks whether there is one.
const LEADER_CHECK: Duration = Duration::from_millis(500);
/// Without a leader for so many looks, such a stream ends, so that its client goes elsewhere.
const LEADER_MISSES: u32 = 6;

/// What was asked of one watch beside its range.
#[derive(Clone, Copy)]
struct Wish {
    fragment: bool,
    progress: bool,
}

struct WatchStream {
    etcd: Etcd,
    access: Access,
    inbound: Streaming<pb::WatchRequest>,
    watches: StreamMap<i64, Watch>,
    wishes: BTreeMap<i64, Wish>,
    queue: VecDeque<pb::WatchResponse>,
    next_id: i64,
    needs_leader: bool,
    misses: u32,
}

enum Wake {
    Inbound(Result<Option<pb::WatchRequest>, Status>),
    Item(i64, WatchItem),
    LeaderCheck,
}

#[tonic::async_trait]
impl watch_server::Watch for Etcd {
    type WatchStream = BoxStream<'static, Result<pb::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let access = access(&request)?;
        let needs_leader = request.metadata().get("hasleader").is_some_and(|value| value == "true");
        if needs_leader && !self.store.has_leader() {
            return Err(StoreError::NoLeader.status());
        }
        let state = WatchStream {
            etcd: self.clone(),
            access,
            inbound: request.into_inner(),
            watches: StreamMap::new(),
            wishes: BTreeMap::new(),
            queue: VecDeque::new(),
            next_id: 0,
            needs_leader,
            misses: 0,
        };
        let answers = stream::try_unfold(state, |mut state| async move {
            let answer = state.next().await?;
            Ok(answer.map(|answer| (answer, state)))
        });
        Ok(Response::new(answers.boxed()))
    }
}

impl WatchStream {
    /// The next answer; none when the client has ended the stream.
    async fn next(&mut self) -> Result<Option<pb::WatchResponse>, Status> {
        loop {
            if let Some(answer) = self.queue.pop_front() {
                return Ok(Some(answer));
            }
            match self.wake().await {
                Wake::Inbound(message) => match message? {
                    Some(message) => self.take(message).await?,
                    None => return Ok(None),
                },
                Wake::Item(id, item) => self.item(id, item)?,
                Wake::LeaderCheck => self.check_leader()?,
            }
        }
    }

    async fn wake(&mut self) -> Wake {
        let Self { etcd, inbound, watches, needs_leader, .. } = self;
        tokio::select! {
            message = inbound.message() => Wake::Inbound(message),
            Some((id, item)) = watches.next(), if !watches.is_empty() => Wake::Item(id, item),
            () = etcd.clock.sleep(LEADER_CHECK), if *needs_leader => Wake::LeaderCheck,
        }
    }

    fn check_leader(&mut self) -> Result<(), Status> {
        self.misses = if self.etcd.store.has_leader() { 0 } else { self.misses + 1 };
        if self.misses >= LEADER_MISSES { Err(StoreError::NoLeader.status()) } else { Ok(()) }
    }

    async fn take(&mut self, message: pb::WatchRequest) -> Result<(), Status> {
        match message.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => {
                if self.watches.remove(&cancel.watch_id).is_some() {
                    self.wishes.remove(&cancel.watch_id);
                    let header = self.etcd.header(None);
                    let watch_id = cancel.watch_id;
                    self.queue.push_back(pb::WatchResponse { header, watch_id, canceled: true, ..Default::default() });
                }
                Ok(())
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                self.progress_on_request();
                Ok(())
            }
            // A union member of a newer client: etcd ignores it as well.
            None => Ok(()),
        }
    }

    /// One answer for all watches, or silence while one of them has events to come: the client asks again.
    fn progress_on_request(&mut self) {
        let mut revision = self.etcd.store.revision();
        for watch in self.watches.values() {
            match watch.progress() {
                Some(progress) => revision = revision.min(progress),
                None => return,
            }
        }
        let header = self.etcd.header_at(revision);
        self.queue.push_back(pb::WatchResponse { header, watch_id: NO_WATCH, ..Default::default() });
    }

    async fn create(&mut self, create: pb::WatchCreateRequest) -> Result<(), Status> {
        let Some(id) = self.choose_id(create.watch_id) else {
            self.refuse("etcdserver: duplicate watch ID provided on the WatchStream");
            return Ok(());
        };
        if self.watches.len() >= MAX_WATCHES {
            self.refuse("etcdserver: too many watches on one stream");
            return Ok(());
        }
        if create.start_revision < 0 {
            self.refuse(StoreError::Compacted { floor: 0 }.status().message());
            return Ok(());
        }
        let wish = Wish { fragment: create.fragment, progress: create.progress_notify };
        match self.etcd.store.watch(&self.access, request(&create)).await {
            Ok(watch) => {
                self.created(id, watch.created());
                self.watches.insert(id, watch);
                self.wishes.insert(id, wish);
            }
            Err(StoreError::Compacted { floor }) => {
                self.created(id, self.etcd.store.revision());
                self.compacted(id, floor);
            }
            Err(error) => return Err(error.status()),
        }
        Ok(())
    }

    fn choose_id(&mut self, asked: i64) -> Option<i64> {
        if asked != 0 {
            return (!self.wishes.contains_key(&asked)).then_some(asked);
        }
        while self.wishes.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    fn created(&mut self, watch_id: i64, revision: i64) {
        let header = self.etcd.header_at(revision);
        self.queue.push_back(pb::WatchResponse { header, watch_id, created: true, ..Default::default() });
    }

    fn refuse(&mut self, reason: &str) {
        self.queue.push_back(pb::WatchResponse {
            header: self.etcd.header(None),
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: reason.to_owned(),
            ..Default::default()
        });
    }

    fn compacted(&mut self, watch_id: i64, floor: i64) {
        self.queue.push_back(pb::WatchResponse {
            header: self.etcd.header(None),
            watch_id,
            canceled: true,
            compact_revision: floor,
            cancel_reason: StoreError::Compacted { floor }.status().message().to_owned(),
            ..Default::default()
        });
    }

    fn item(&mut self, id: i64, item: WatchItem) -> Result<(), Status> {
        let wish = self.wishes.get(&id).copied().unwrap_or(Wish { fragment: false, progress: false });
        match item {
            WatchItem::Events { revision, events } => {
                let header = self.etcd.header_at(revision.max(self.etcd.store.revision()));
                let answer = pb::WatchResponse { header, watch_id: id, events, ..Default::default() };
                if wish.fragment { self.queue.extend(fragments(answer)) } else { self.queue.push_back(answer) }
            }
            WatchItem::Progress { revision } if wish.progress => {
                let header = self.etcd.header_at(revision);
                self.queue.push_back(pb::WatchResponse { header, watch_id: id, ..Default::default() });
            }
            WatchItem::Progress { .. } => {}
            WatchItem::Compacted { revision } => {
                self.watches.remove(&id);
                self.wishes.remove(&id);
                self.compacted(id, revision);
            }
            // The client's library resumes every watch of the stream from where it was.
            WatchItem::Lagged => return Err(Status::unavailable("etcdserver: watch fell behind, resume it")),
        }
        Ok(())
    }
}

fn request(create: &pb::WatchCreateRequest) -> WatchRequest {
    // An empty key means all keys from the first one on.
    let key = if create.key.is_empty() { bytes::Bytes::from_static(b"\0") } else { create.key.clone() };
    WatchRequest {
        key,
        range_end: create.range_end.clone(),
        start_revision: create.start_revision,
        prev_kv: create.prev_kv,
        no_put: create.filters().any(|filter| filter == FilterType::Noput),
        no_delete: create.filters().any(|filter| filter == FilterType::Nodelete),
        progress: create.progress_notify,
    }
}

/// Cuts an answer into parts that are not larger than [`FRAGMENT_BYTES`] as far as single events allow it; all but the last say
/// that more follows.
fn fragments(answer: pb::WatchResponse) -> Vec<pb::WatchResponse> {
    let (mut parts, mut part, mut size) = (Vec::new(), Vec::new(), 0);
    let empty = pb::WatchResponse { events: Vec::new(), ..answer.clone() };
    for event in answer.events {
        let length = event.encoded_len();
        if size + length > FRAGMENT_BYTES && !part.is_empty() {
            let events = std::mem::take(&mut part);
            parts.push(pb::WatchResponse { events, fragment: true, ..empty.clone() });
            size = 0;
        }
        size += length;
        part.push(event);
    }
    parts.push(pb::WatchResponse { events: part, ..empty });
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(size: usize) -> pb::Event {
        let kv = pb::KeyValue { value: vec![0; size].into(), ..Default::default() };
        pb::Event { kv: Some(kv), ..Default::default() }
    }

    #[test]
    fn fragments_keep_all_events_in_order_and_mark_all_but_the_last() {
        let events: Vec<_> = [1_000_000, 1_000_000, 10, 2_000_000, 5].map(event).into();
        let answer = pb::WatchResponse { watch_id: 7, events: events.clone(), ..Default::default() };
        let parts = fragments(answer);
        assert_eq!(parts.iter().map(|p| p.events.len()).collect::<Vec<_>>(), [1, 2, 1, 1]);
        assert_eq!(parts.iter().map(|p| p.fragment).collect::<Vec<_>>(), [true, true, true, false]);
        assert!(parts.iter().all(|p| p.watch_id == 7));
        assert_eq!(parts.into_iter().flat_map(|p| p.events).collect::<Vec<_>>(), events);
    }

    #[test]
    fn a_small_answer_is_one_part() {
        let answer = pb::WatchResponse { events: vec![event(1)], ..Default::default() };
        assert_eq!(fragments(answer.clone()), [answer]);
    }
}
