//! The etcd API over a real connection: what does not need a real etcd to compare with.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::Fixture;
use hanse_runtime::clock::{SystemClock, timeout};
use hanse_state::pb::{
    self, cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient, watch_client::WatchClient, watch_request::RequestUnion,
};
use hanse_state::{Access, etcd};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

async fn serve() -> (Fixture, Channel) {
    let fixture = Fixture::memory();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let end = fixture.supervisor.shutdown_token();
    let store = fixture.store.clone();
    let serve = etcd::serve_plain(listener, store, Access::tenant("api"), async move {
        end.cancelled().await;
    });
    tokio::spawn(serve);
    let channel = Endpoint::from_shared(address).unwrap().connect().await.unwrap();
    (fixture, channel)
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    }
}

struct Watching {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: tonic::Streaming<pb::WatchResponse>,
}

impl Watching {
    async fn open(channel: &Channel, create: pb::WatchCreateRequest) -> Self {
        let (requests, stream) = mpsc::channel(16);
        let this = RequestUnion::CreateRequest(create);
        let request = pb::WatchRequest {
            request_union: Some(this),
        };
        requests.send(request).await.unwrap();
        let answers = WatchClient::new(channel.clone())
            .max_decoding_message_size(usize::MAX)
            .watch(ReceiverStream::new(stream))
            .await
            .unwrap()
            .into_inner();
        let mut this = Self { requests, answers };
        assert!(this.next().await.created);
        this
    }

    async fn send(&self, request: RequestUnion) {
        let request = pb::WatchRequest {
            request_union: Some(request),
        };
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> pb::WatchResponse {
        let clock = SystemClock::new();
        let next = timeout(&clock, Duration::from_secs(20), self.answers.next()).await;
        next.expect("an answer in time").unwrap().unwrap()
    }
}

fn all() -> pb::WatchCreateRequest {
    pb::WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        prev_kv: true,
        ..Default::default()
    }
}

#[tokio::test]
async fn calls_without_access_are_refused() {
    let fixture = Fixture::memory();
    let routes = etcd::routes(fixture.store.clone());
    let status = KvClient::new(routes.clone())
        .range(pb::RangeRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let status = MaintenanceClient::new(routes)
        .status(pb::StatusRequest {})
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    fixture.stop().await;
}

#[tokio::test]
async fn what_clients_look_for_first() {
    let (fixture, channel) = serve().await;
    let status = MaintenanceClient::new(channel.clone())
        .status(pb::StatusRequest {})
        .await;
    let status = status.unwrap().into_inner();
    assert!(status.version.starts_with("3.6.") && status.leader != 0 && status.errors.is_empty());
    let list = pb::MemberListRequest::default();
    let members = ClusterClient::new(channel.clone()).member_list(list).await.unwrap();
    assert_eq!(members.into_inner().members.len(), 1);
    let header = KvClient::new(channel.clone()).put(put("a", "1")).await.unwrap();
    let header = header.into_inner().header.unwrap();
    assert_eq!((header.revision, header.member_id), (2, 1));
    // A method that this service does not have: clients fall back on exactly this code.
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/etcdserverpb.Auth/UserList");
    let codec = tonic_prost::ProstCodec::<pb::RangeRequest, pb::RangeResponse>::default();
    let request = tonic::Request::new(pb::RangeRequest::default());
    let answer = client.unary(request, path, codec).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
    fixture.stop().await;
}

#[tokio::test]
async fn progress_never_overtakes_events() {
    let (fixture, channel) = serve().await;
    let mut kv = KvClient::new(channel.clone());
    let mut watching = Watching::open(&channel, all()).await;
    let create = pb::WatchCreateRequest {
        key: "other".into(),
        ..Default::default()
    };
    watching.send(RequestUnion::CreateRequest(create)).await;
    assert_eq!(watching.next().await.watch_id, 1);
    let mut seen = 1;
    for round in 0..200 {
        let revision = kv.put(put("k", &round.to_string())).await.unwrap();
        let revision = revision.into_inner().header.unwrap().revision;
        while seen < revision {
            watching
                .send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))
                .await;
            let answer = watching.next().await;
            let at = answer.header.unwrap().revision;
            if answer.watch_id == -1 {
                assert!(answer.events.is_empty());
                assert!(at <= seen, "progress {at} although only {seen} was seen");
            } else {
                for event in answer.events {
                    seen = event.kv.unwrap().mod_revision;
                }
            }
        }
    }
    // All is seen: now progress must say so.
    loop {
        watching
            .send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))
            .await;
        let answer = watching.next().await;
        assert_eq!(answer.watch_id, -1);
        if answer.header.unwrap().revision == seen {
            break;
        }
    }
    fixture.stop().await;
}

#[tokio::test]
async fn fragments_and_cancelled_watches() {
    let (fixture, channel) = serve().await;
    let mut kv = KvClient::new(channel.clone());
    let value = "x".repeat(900_000);
    for key in ["a", "b", "c"] {
        kv.put(put(key, &value)).await.unwrap();
    }
    let create = pb::WatchCreateRequest {
        start_revision: 2,
        fragment: true,
        ..all()
    };
    let mut watching = Watching::open(&channel, create).await;
    let mut events = 0;
    let mut answers = 0;
    while events < 3 {
        let answer = watching.next().await;
        events += answer.events.len();
        answers += 1;
        assert_eq!(answer.events.len(), 1, "two of these are more than a fragment");
    }
    assert_eq!(answers, 3);
    watching
        .send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 }))
        .await;
    let answer = watching.next().await;
    assert!(answer.canceled && answer.watch_id == 0 && answer.compact_revision == 0);
    kv.put(put("a", "2")).await.unwrap();
    watching.send(RequestUnion::CreateRequest(all())).await;
    let answer = watching.next().await;
    assert!(
        answer.created && answer.watch_id == 1,
        "an id is not used again: {answer:?}"
    );
    fixture.stop().await;
}

#[tokio::test]
async fn a_lease_is_kept_alive_on_one_stream() {
    let (fixture, channel) = serve().await;
    let mut lease = LeaseClient::new(channel);
    let grant = pb::LeaseGrantRequest { ttl: 60, id: 0 };
    let id = lease.lease_grant(grant).await.unwrap().into_inner().id;
    let (requests, stream) = mpsc::channel(4);
    for id in [id, 4711] {
        requests.send(pb::LeaseKeepAliveRequest { id }).await.unwrap();
    }
    let answers = lease.lease_keep_alive(ReceiverStream::new(stream)).await;
    let mut answers = answers.unwrap().into_inner();
    let first = answers.next().await.unwrap().unwrap();
    assert_eq!((first.id, first.ttl), (id, 60));
    let unknown = answers.next().await.unwrap().unwrap();
    assert_eq!((unknown.id, unknown.ttl), (4711, 0));
    drop((requests, answers, lease));
    fixture.stop().await;
}
