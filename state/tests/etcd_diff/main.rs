//! The same calls to a real etcd and to this store give the same answers: generated sequences of every form of the KV,
//! Lease and Watch services, revision by revision and error text by error text.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod sequences;

use common::Fixture;
use common::peer::{Etcd, wait_until_ready};
use hanse_runtime::clock::{Clock as _, SystemClock, timeout};
use hanse_runtime::rng::{Rng, SeededRng};
use hanse_state::pb::{self, compare, request_op::Request, response_op::Response};
use hanse_state::pb::{
    kv_client::KvClient, lease_client::LeaseClient, watch_client::WatchClient, watch_request::RequestUnion,
};
use hanse_state::{Access, etcd};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

const KEYS: [&str; 9] = ["a", "b", "c", "ab", "abc", "b\0", "b\0c", "zz", "m"];
const LEASES: [i64; 3] = [11, 12, 13];
/// Granted for a moment, so that its end is not a matter of timing.
const SHORT_LEASE: i64 = 90;
const OPERATIONS: usize = 2500;

struct Random(SeededRng);

impl Random {
    fn below(&self, n: usize) -> usize {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        u32::from_le_bytes(bytes) as usize % n
    }

    fn chance(&self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Clone>(&self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn number(&self, n: usize) -> i64 {
        i64::try_from(self.below(n)).unwrap()
    }

    fn key(&self) -> bytes::Bytes {
        if self.chance(2) {
            bytes::Bytes::new()
        } else {
            self.pick(&KEYS).into()
        }
    }

    fn end(&self) -> bytes::Bytes {
        match self.below(10) {
            0..5 => bytes::Bytes::new(),
            5..9 => self.pick(&KEYS).into(),
            _ => "\0".into(),
        }
    }

    fn revision(&self, now: i64) -> i64 {
        match self.below(10) {
            0..6 => 0,
            6 => now + self.number(4) - 1,
            _ => (now - self.number(30)).max(-1),
        }
    }

    fn range(&self, now: i64) -> pb::RangeRequest {
        let sorted = self.chance(25);
        let filtered = self.chance(15);
        let bound = |percent| {
            if filtered && self.chance(percent) {
                (now - self.number(40)).max(0)
            } else {
                0
            }
        };
        pb::RangeRequest {
            key: self.key(),
            range_end: self.end(),
            limit: if self.chance(30) { self.number(5) } else { 0 },
            revision: self.revision(now),
            sort_order: if sorted {
                i32::try_from(self.below(3)).unwrap()
            } else {
                0
            },
            sort_target: if sorted {
                i32::try_from(self.below(5)).unwrap()
            } else {
                0
            },
            serializable: self.chance(30),
            keys_only: self.chance(15),
            count_only: self.chance(10),
            min_mod_revision: bound(50),
            max_mod_revision: bound(30),
            min_create_revision: bound(30),
            max_create_revision: bound(30),
        }
    }

    fn put(&self) -> pb::PutRequest {
        pb::PutRequest {
            key: self.key(),
            value: if self.chance(90) {
                format!("v{}", self.below(6)).into()
            } else {
                bytes::Bytes::new()
            },
            lease: if self.chance(15) { self.pick(&LEASES) } else { 0 },
            prev_kv: self.chance(30),
            ignore_value: self.chance(8),
            ignore_lease: self.chance(8),
        }
    }

    fn delete(&self) -> pb::DeleteRangeRequest {
        let range_end = if self.chance(70) {
            bytes::Bytes::new()
        } else {
            self.end()
        };
        pb::DeleteRangeRequest {
            key: self.key(),
            range_end,
            prev_kv: self.chance(50),
        }
    }

    /// etcd takes the end "all keys from here on" for an empty range when it looks for keys that a transaction changes
    /// twice, and so lets those pass. This store refuses them.
    fn bounded_delete(&self) -> pb::DeleteRangeRequest {
        let delete = self.delete();
        if delete.range_end == "\0" {
            pb::DeleteRangeRequest {
                range_end: "zzz".into(),
                ..delete
            }
        } else {
            delete
        }
    }

    fn compare(&self, now: i64) -> pb::Compare {
        use compare::TargetUnion as U;
        let revision = || {
            if self.chance(30) {
                0
            } else {
                (now - self.number(20)).max(0)
            }
        };
        let target = self.below(5);
        let union = match target {
            0 => U::Version(self.number(4)),
            1 => U::CreateRevision(revision()),
            2 => U::ModRevision(revision()),
            3 => U::Value(format!("v{}", self.below(6)).into()),
            _ => U::Lease(if self.chance(50) { 0 } else { self.pick(&LEASES) }),
        };
        pb::Compare {
            result: i32::try_from(self.below(4)).unwrap(),
            target: i32::try_from(target).unwrap(),
            key: self.key(),
            target_union: (!self.chance(5)).then_some(union),
            range_end: if self.chance(20) {
                self.end()
            } else {
                bytes::Bytes::new()
            },
        }
    }

    fn txn(&self, now: i64, depth: usize) -> pb::TxnRequest {
        let ops = |most: usize| -> Vec<pb::RequestOp> {
            let op = |_| {
                let request = match self.below(10) {
                    0..3 => Request::RequestRange(self.range(now)),
                    3..7 => Request::RequestPut(self.put()),
                    7..9 => Request::RequestDeleteRange(self.bounded_delete()),
                    _ if depth > 0 => Request::RequestTxn(self.txn(now, depth - 1)),
                    _ => Request::RequestPut(self.put()),
                };
                pb::RequestOp {
                    request: (!self.chance(1)).then_some(request),
                }
            };
            (0..self.below(most + 1)).map(op).collect()
        };
        let compare = (0..self.below(3)).map(|_| self.compare(now)).collect();
        pb::TxnRequest {
            compare,
            success: ops(4),
            failure: ops(3),
        }
    }
}

/// A store behind the API.
#[derive(Clone)]
struct Side {
    channel: Channel,
}

/// What does not depend on which server answered.
#[derive(Debug, PartialEq)]
enum Answer {
    Range(pb::RangeResponse),
    Put(pb::PutResponse),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Revision(i64),
    Lease(i64, i64, Vec<bytes::Bytes>),
    Leases(Vec<i64>),
    Refused(tonic::Code, String),
}

fn plain(header: &mut Option<pb::ResponseHeader>) {
    if let Some(header) = header {
        *header = pb::ResponseHeader {
            revision: header.revision,
            ..Default::default()
        };
    }
}

/// etcd's sort leaves equals in any order, so they are put into the order of keys here. What a limit cuts off among
/// equals is any of them, so only the rest is compared.
fn normal_range(req: &pb::RangeRequest, answer: &mut pb::RangeResponse) {
    plain(&mut answer.header);
    if req.keys_only {
        // etcd 3.7 leaves the lease out here; 3.6, which this store says it is, does not.
        answer.kvs.iter_mut().for_each(|kv| kv.lease = 0);
    }
    let by: fn(&pb::KeyValue) -> (i64, bytes::Bytes) = match req.sort_target {
        1 => |kv| (kv.version, bytes::Bytes::new()),
        2 => |kv| (kv.create_revision, bytes::Bytes::new()),
        3 => |kv| (kv.mod_revision, bytes::Bytes::new()),
        4 => |kv| (0, kv.value.clone()),
        _ => return,
    };
    if answer.more || req.keys_only {
        let last = answer.kvs.last().map(by);
        answer.kvs.retain(|kv| Some(by(kv)) != last);
    }
    let mut from = 0;
    while from < answer.kvs.len() {
        let equal = answer.kvs[from..]
            .iter()
            .take_while(|kv| by(kv) == by(&answer.kvs[from]))
            .count();
        answer.kvs[from..from + equal].sort_by(|a, b| a.key.cmp(&b.key));
        from += equal;
    }
}

fn normal_txn(req: &pb::TxnRequest, answer: &mut pb::TxnResponse) {
    plain(&mut answer.header);
    let ops = if answer.succeeded { &req.success } else { &req.failure };
    for (op, response) in ops.iter().zip(&mut answer.responses) {
        match (&op.request, &mut response.response) {
            (Some(Request::RequestRange(req)), Some(Response::ResponseRange(answer))) => normal_range(req, answer),
            (Some(Request::RequestTxn(req)), Some(Response::ResponseTxn(answer))) => normal_txn(req, answer),
            (_, Some(Response::ResponsePut(answer))) => plain(&mut answer.header),
            (_, Some(Response::ResponseDeleteRange(answer))) => plain(&mut answer.header),
            _ => {}
        }
    }
}

#[derive(Clone, Debug)]
enum Call {
    Range(pb::RangeRequest),
    /// The same list in parts.
    Parts(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(i64),
    Grant(i64, i64),
    Revoke(i64),
    TimeToLive(i64),
    Leases,
}

fn call(random: &Random, now: i64) -> Call {
    match random.below(100) {
        0..25 => Call::Range(random.range(now)),
        25..30 => Call::Parts(random.range(now)),
        30..55 => Call::Put(random.put()),
        55..65 => Call::Delete(random.delete()),
        65..90 => Call::Txn(random.txn(now, 2)),
        90..92 => Call::Compact(now - random.number(25)),
        92..94 => Call::Grant(random.pick(&LEASES), random.pick(&[600, 600, 9_000_000_001])),
        94 => Call::Grant(SHORT_LEASE, random.pick(&[0, 1, -1])),
        95..97 => Call::Revoke(random.pick(&LEASES)),
        97..99 => Call::TimeToLive(random.pick(&LEASES)),
        _ => Call::Leases,
    }
}

impl Side {
    async fn run(&self, call: Call) -> Answer {
        match self.answer(call).await {
            Ok(answer) => answer,
            Err(status) => Answer::Refused(status.code(), status.message().to_owned()),
        }
    }

    async fn answer(&self, call: Call) -> Result<Answer, tonic::Status> {
        let mut kv = KvClient::new(self.channel.clone());
        let mut lease = LeaseClient::new(self.channel.clone());
        Ok(match call {
            Call::Range(req) => {
                let mut answer = kv.range(req.clone()).await?.into_inner();
                normal_range(&req, &mut answer);
                Answer::Range(answer)
            }
            Call::Parts(req) => {
                let mut answer = pb::RangeResponse::default();
                let mut parts = kv.range_stream(req.clone()).await?.into_inner();
                while let Some(part) = parts.message().await? {
                    let part = part.range_response.unwrap();
                    answer.kvs.extend(part.kvs);
                    (answer.header, answer.more, answer.count) = (part.header, part.more, part.count);
                }
                normal_range(&req, &mut answer);
                Answer::Range(answer)
            }
            Call::Put(req) => {
                let mut answer = kv.put(req).await?.into_inner();
                plain(&mut answer.header);
                Answer::Put(answer)
            }
            Call::Delete(req) => {
                let mut answer = kv.delete_range(req).await?.into_inner();
                plain(&mut answer.header);
                Answer::Delete(answer)
            }
            Call::Txn(req) => {
                let mut answer = kv.txn(req.clone()).await?.into_inner();
                normal_txn(&req, &mut answer);
                Answer::Txn(answer)
            }
            Call::Compact(revision) => {
                let answer = kv
                    .compact(pb::CompactionRequest {
                        revision,
                        // Waiting for the removal takes its time; sometimes is enough.
                        physical: revision % 8 == 0,
                    })
                    .await?
                    .into_inner();
                Answer::Revision(answer.header.unwrap().revision)
            }
            Call::Grant(id, ttl) => {
                let answer = lease.lease_grant(pb::LeaseGrantRequest { id, ttl }).await?.into_inner();
                Answer::Lease(answer.id, answer.ttl, vec![])
            }
            Call::Revoke(id) => {
                let answer = lease.lease_revoke(pb::LeaseRevokeRequest { id }).await?.into_inner();
                Answer::Revision(answer.header.unwrap().revision)
            }
            Call::TimeToLive(id) => {
                let req = pb::LeaseTimeToLiveRequest { id, keys: true };
                let mut answer = lease.lease_time_to_live(req).await?.into_inner();
                answer.keys.sort();
                // Time passes between the two.
                Answer::Lease(answer.granted_ttl, answer.ttl.min(1), answer.keys)
            }
            Call::Leases => {
                let answer = lease.lease_leases(pb::LeaseLeasesRequest {}).await?.into_inner();
                let mut ids: Vec<_> = answer.leases.iter().map(|lease| lease.id).collect();
                ids.sort_unstable();
                Answer::Leases(ids)
            }
        })
    }

    async fn now(&self) -> i64 {
        let req = pb::RangeRequest {
            key: "x".into(),
            ..Default::default()
        };
        KvClient::new(self.channel.clone())
            .range(req)
            .await
            .unwrap()
            .into_inner()
            .header
            .unwrap()
            .revision
    }
}

/// A watch stream; what is read is normalised as far as the two may differ.
struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: tonic::Streaming<pb::WatchResponse>,
    /// Watches that were created and not cancelled since. Without one etcd tells no progress.
    open: usize,
}

/// For progress that etcd does not tell; what came until then is compared.
const PATIENCE: Duration = Duration::from_secs(10);

impl Stream {
    /// Opens a stream with its first watch: etcd sends the head of its answer only together with the first message.
    async fn open(side: &Side, create: pb::WatchCreateRequest) -> Self {
        let (requests, stream) = mpsc::channel(16);
        let first = pb::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        requests.send(first).await.unwrap();
        let mut client = WatchClient::new(side.channel.clone());
        let answers = client.watch(ReceiverStream::new(stream)).await.unwrap().into_inner();
        Self {
            requests,
            answers,
            open: 0,
        }
    }

    async fn send(&self, request: RequestUnion) {
        self.requests
            .send(pb::WatchRequest {
                request_union: Some(request),
            })
            .await
            .unwrap();
    }

    async fn answer(&mut self) -> pb::WatchResponse {
        let clock = SystemClock::new();
        let answer = timeout(&clock, Duration::from_secs(20), self.answers.message())
            .await
            .expect("an answer in time");
        let answer = answer.unwrap().expect("an open stream");
        self.count(&answer);
        answer
    }

    fn count(&mut self, answer: &pb::WatchResponse) {
        self.open += usize::from(answer.created);
        self.open = self.open.saturating_sub(usize::from(answer.canceled));
    }

    /// Reads until everything up to `revision` has come. Answers what came, in order.
    async fn collect(&mut self, revision: i64) -> Vec<pb::WatchResponse> {
        let clock = SystemClock::new();
        let mut all = Vec::new();
        let end = clock.mono() + PATIENCE;
        while self.open > 0 && clock.mono() < end {
            self.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))
                .await;
            let Ok(answer) = timeout(&clock, Duration::from_millis(100), self.answers.message()).await else {
                continue;
            };
            let answer = answer.unwrap().expect("an open stream");
            if answer.watch_id == -1 && !answer.created {
                assert!(answer.events.is_empty());
                if answer.header.unwrap().revision >= revision {
                    return all;
                }
                continue;
            }
            self.count(&answer);
            all.push(answer);
        }
        all
    }

    /// The same as [`show`] shows it: what was created, cancelled and seen.
    async fn drain(&mut self, revision: i64) -> Vec<String> {
        let mut seen = Vec::new();
        for answer in self.collect(revision).await {
            show(&answer, &mut seen);
        }
        seen
    }
}

fn show(answer: &pb::WatchResponse, seen: &mut Vec<String>) {
    let id = answer.watch_id;
    if answer.created || answer.canceled {
        let (created, canceled, compacted) = (answer.created, answer.canceled, answer.compact_revision);
        seen.push(format!(
            "{id}: created {created} canceled {canceled} compacted {compacted} {}",
            answer.cancel_reason
        ));
    }
    for event in &answer.events {
        seen.push(format!("{id}: {event:?}"));
    }
}

async fn both() -> Option<(Etcd, Fixture, [Side; 2])> {
    let Some(etcd) = Etcd::start().await else {
        println!("skipped: no etcd program; `cargo xtask kube-tools` builds it");
        return None;
    };
    let fixture = Fixture::memory();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let end = fixture.supervisor.shutdown_token();
    let serve = etcd::serve_plain(listener, fixture.store.clone(), Access::tenant("diff"), async move {
        end.cancelled().await;
    });
    tokio::spawn(serve);
    let channel = Endpoint::from_shared(address).unwrap().connect_lazy();
    wait_until_ready(channel.clone()).await;
    let sides = [
        Side {
            channel: etcd.channel.clone(),
        },
        Side { channel },
    ];
    Some((etcd, fixture, sides))
}

fn create(random: &Random, now: i64) -> pb::WatchCreateRequest {
    let mut filters = Vec::new();
    for kind in [0, 1] {
        if random.chance(15) {
            filters.push(kind);
        }
    }
    pb::WatchCreateRequest {
        key: random.key(),
        range_end: random.end(),
        start_revision: match random.below(10) {
            0..2 => 0,
            2 => now + random.number(3),
            3 => -random.number(3),
            _ => (now - random.number(400)).max(1),
        },
        filters,
        prev_kv: random.chance(70),
        watch_id: if random.chance(20) { random.number(6) } else { 0 },
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_calls_have_etcds_answers() {
    let Some((_etcd, _fixture, [theirs, ours])) = both().await else {
        return;
    };
    let random = Random(SeededRng::new(20_261_121));
    let req = pb::WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        prev_kv: true,
        ..Default::default()
    };
    let mut live = Vec::new();
    for side in [&theirs, &ours] {
        let mut stream = Stream::open(side, req.clone()).await;
        assert!(stream.answer().await.created);
        live.push(stream);
    }
    let mut now = 1;
    for index in 0..OPERATIONS {
        let call = call(&random, now);
        let want = theirs.run(call.clone()).await;
        let have = ours.run(call.clone()).await;
        assert_eq!(have, want, "call {index} (ours is left, etcd's right): {call:?}");
        if let Call::Grant(SHORT_LEASE, _) = call {
            let revoke = Call::Revoke(SHORT_LEASE);
            assert_eq!(ours.run(revoke.clone()).await, theirs.run(revoke).await);
        }
        now = theirs.now().await;
        assert_eq!(ours.now().await, now, "revision after call {index}: {call:?}");
    }
    let want = live[0].drain(now).await;
    let have = live[1].drain(now).await;
    assert!(want.len() > OPERATIONS / 4, "{} events", want.len());
    for (index, (have, want)) in have.iter().zip(&want).enumerate() {
        assert_eq!(have, want, "event {index}");
    }
    assert_eq!(have.len(), want.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_watches_have_etcds_answers() {
    let Some((_etcd, _fixture, [theirs, ours])) = both().await else {
        return;
    };
    let random = Random(SeededRng::new(7));
    let mut now = 1;
    for _ in 0..600 {
        let call = match random.below(4) {
            0 => Call::Delete(random.delete()),
            1 => Call::Txn(random.txn(now, 1)),
            _ => Call::Put(random.put()),
        };
        let (have, want) = (ours.run(call.clone()).await, theirs.run(call.clone()).await);
        assert_eq!(have, want, "ours is left, etcd's right: {call:?}");
        now = theirs.now().await;
    }
    let floor = Call::Compact(now - 250);
    assert_eq!(ours.run(floor.clone()).await, theirs.run(floor).await);
    for index in 0..150 {
        let create = create(&random, now);
        let mut answers = Vec::new();
        for side in [&theirs, &ours] {
            let mut stream = Stream::open(side, create.clone()).await;
            let mut seen = Vec::new();
            let first = stream.answer().await;
            show(&first, &mut seen);
            let compacted = create.start_revision > 0 && create.start_revision < now - 250;
            if compacted && !first.canceled {
                show(&stream.answer().await, &mut seen);
            } else if !first.canceled && create.start_revision <= now {
                seen.extend(stream.drain(now).await);
            }
            // A second one of the same id, and the end of the first.
            stream
                .send(RequestUnion::CreateRequest(pb::WatchCreateRequest {
                    watch_id: 5,
                    ..create.clone()
                }))
                .await;
            stream
                .send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 5 }))
                .await;
            answers.push(seen);
        }
        assert_eq!(
            answers[1], answers[0],
            "watch {index} (ours is left, etcd's right): {create:?}"
        );
    }
}
