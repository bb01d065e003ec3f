//! The store socket between a gRPC client and a gRPC server that are not ours.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use hanse_agent::store_socket::StoreSocket;
use hanse_runtime::supervisor::Supervisor;
use hanse_tunnel::{Body, StoreHead, TunnelError, Uplink};
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::net::UnixStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

fn text(text: &str) -> Text {
    Text { text: text.into() }
}

/// A store that answers texts by texts.
struct Store;

impl tonic::server::UnaryService<Text> for Store {
    type Response = Text;
    type Future = futures::future::BoxFuture<'static, Result<tonic::Response<Text>, Status>>;

    fn call(&mut self, request: tonic::Request<Text>) -> Self::Future {
        Box::pin(async move {
            match request.into_inner().text.as_str() {
                "stale" => Err(Status::permission_denied("hanse: host epoch 3 is fenced off by 4")),
                "compacted" => Err(Status::out_of_range(
                    "etcdserver: mvcc: required revision has been compacted",
                )),
                asked => Ok(tonic::Response::new(text(&format!("{asked}!")))),
            }
        })
    }
}

impl tonic::server::StreamingService<Text> for Store {
    type Response = Text;
    type ResponseStream = BoxStream<'static, Result<Text, Status>>;
    type Future = futures::future::BoxFuture<'static, Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<tonic::Streaming<Text>>) -> Self::Future {
        Box::pin(async move {
            let asked = request.into_inner();
            let answers = asked.map(|asked| asked.map(|asked| text(&format!("{}!", asked.text))));
            Ok(tonic::Response::new(answers.boxed()))
        })
    }
}

#[derive(Default)]
struct Loopback {
    seen: Mutex<Vec<(StoreHead, HeaderMap)>>,
}

#[async_trait]
impl Uplink for Loopback {
    async fn store_call(&self, head: StoreHead, body: Body) -> Result<Response<Body>, TunnelError> {
        self.seen.lock().unwrap().push((head.clone(), head.headers.clone()));
        let peer = || "eu-1".to_owned();
        match head.path.as_str() {
            "/down" => return Err(TunnelError::NotConnected { peer: peer() }),
            "/lost" => {
                return Err(TunnelError::Lost {
                    peer: peer(),
                    fault: "gone".into(),
                });
            }
            _ => {}
        }
        let body = body.map_err(|error| Status::unavailable(error.to_string()));
        let mut request = Request::new(tonic::body::Body::new(body));
        *request.headers_mut() = head.headers;
        let codec: ProstCodec<Text, Text> = ProstCodec::default();
        let mut grpc = tonic::server::Grpc::new(codec);
        let response = match head.path.as_str() {
            "/unary" => grpc.unary(Store, request).await,
            _ => grpc.streaming(Store, request).await,
        };
        let (parts, body) = response.into_parts();
        let body = body.map_err(|error| TunnelError::Body(error.into()));
        let body = match head.path.as_str() {
            // The connection dies after the first frame.
            "/breaks" => {
                let frames = http_body_util::BodyStream::new(body).take(1);
                let broken = futures::stream::once(async move {
                    Err(TunnelError::Lost {
                        peer: peer(),
                        fault: "gone".into(),
                    })
                });
                http_body_util::StreamBody::new(frames.chain(broken)).boxed_unsync()
            }
            _ => body.boxed_unsync(),
        };
        Ok(Response::from_parts(parts, body))
    }

    fn report(&self, _report: Bytes) {}
}

struct Setup {
    dir: tempfile::TempDir,
    uplink: Arc<Loopback>,
    socket: StoreSocket,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uplink = Arc::new(Loopback::default());
        let path = dir.path().join("s/a.sock");
        let socket = StoreSocket::open(path, "t1", 3, uplink.clone(), &Supervisor::default()).unwrap();
        Self { dir, uplink, socket }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("s/a.sock")
    }

    async fn client(&self) -> Grpc<Channel> {
        let mut client = Grpc::new(connect(self.path()).await);
        client.ready().await.unwrap();
        client
    }
}

async fn connect(path: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://store")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

async fn ask(client: &mut Grpc<Channel>, path: &'static str, question: &str) -> Result<String, Status> {
    let mut request = tonic::Request::new(text(question));
    for (name, value) in [("hasleader", "true"), ("source", "cache"), ("x-other", "1")] {
        request.metadata_mut().insert(name, MetadataValue::from_static(value));
    }
    request.set_timeout(std::time::Duration::from_secs(10));
    let codec: ProstCodec<Text, Text> = ProstCodec::default();
    client.ready().await.unwrap();
    let answer = client.unary(request, PathAndQuery::from_static(path), codec).await?;
    Ok(answer.into_inner().text)
}

#[tokio::test]
async fn a_call_carries_tenant_epoch_and_metadata() {
    let setup = Setup::new();
    let mut client = setup.client().await;
    assert_eq!(ask(&mut client, "/unary", "hi").await.unwrap(), "hi!");
    setup.socket.set_epoch(9);
    assert_eq!(ask(&mut client, "/unary", "ho").await.unwrap(), "ho!");
    let seen = setup.uplink.seen.lock().unwrap();
    let epochs: Vec<(&str, u64)> = seen
        .iter()
        .map(|(head, _)| (head.tenant.as_str(), head.epoch))
        .collect();
    assert_eq!(epochs, [("t1", 3), ("t1", 9)]);
    let headers = &seen[0].1;
    for (name, value) in [
        ("hasleader", "true"),
        ("source", "cache"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    assert!(headers.contains_key("grpc-timeout") && !headers.contains_key("x-other"));
}

#[tokio::test]
async fn statuses_of_the_store_arrive_word_for_word() {
    let setup = Setup::new();
    let mut client = setup.client().await;
    let status = ask(&mut client, "/unary", "compacted").await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange);
    assert_eq!(
        status.message(),
        "etcdserver: mvcc: required revision has been compacted"
    );
    assert!(!setup.socket.fenced());
}

#[tokio::test]
async fn a_stale_epoch_is_noticed_and_forgotten_with_the_next() {
    let setup = Setup::new();
    let mut client = setup.client().await;
    let status = ask(&mut client, "/unary", "stale").await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
    assert!(setup.socket.fenced());
    ask(&mut client, "/unary", "taken again").await.unwrap();
    assert!(!setup.socket.fenced());
    ask(&mut client, "/unary", "stale").await.unwrap_err();
    assert!(setup.socket.fenced());
    setup.socket.set_epoch(5);
    assert!(!setup.socket.fenced());
}

#[tokio::test]
async fn streams_flow_both_ways_at_once() {
    let setup = Setup::new();
    let mut client = setup.client().await;
    let (send, questions) = tokio::sync::mpsc::channel(1);
    let codec: ProstCodec<Text, Text> = ProstCodec::default();
    let request = tonic::Request::new(ReceiverStream::new(questions));
    let answers = client
        .streaming(request, PathAndQuery::from_static("/stream"), codec)
        .await
        .unwrap();
    let mut answers = answers.into_inner();
    for n in 0..100 {
        send.send(text(&n.to_string())).await.unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap().text, format!("{n}!"));
    }
    drop(send);
    assert_eq!(answers.message().await.unwrap(), None);
}

#[tokio::test]
async fn failures_become_statuses_that_etcd_clients_understand() {
    let setup = Setup::new();
    let mut client = setup.client().await;
    // Certainly not delivered: etcd's client repeats even a Txn.
    let down = ask(&mut client, "/down", "x").await.unwrap_err();
    assert_eq!(
        (down.code(), down.message()),
        (tonic::Code::Unavailable, "there is no connection available")
    );
    // Perhaps delivered: it must not.
    let lost = ask(&mut client, "/lost", "x").await.unwrap_err();
    assert_eq!(lost.code(), tonic::Code::Unavailable);
    assert_eq!(
        lost.message(),
        "etcdserver: request timed out, possibly due to connection lost"
    );
    // The connection of a watch dies: the stream ends with a status, it is not torn.
    let codec: ProstCodec<Text, Text> = ProstCodec::default();
    let questions = futures::stream::iter([text("a")]).chain(futures::stream::pending());
    let request = tonic::Request::new(questions);
    client.ready().await.unwrap();
    let answers = client
        .streaming(request, PathAndQuery::from_static("/breaks"), codec)
        .await
        .unwrap();
    let mut answers = answers.into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().text, "a!");
    assert_eq!(answers.message().await.unwrap_err().code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn as_many_connections_as_kube_apiserver_opens() {
    let setup = Setup::new();
    let clients = futures::future::join_all((0..150).map(|_| setup.client())).await;
    let asked = clients.into_iter().map(|mut client| async move {
        let first = ask(&mut client, "/unary", "a").await.unwrap();
        (client, first)
    });
    let answered = futures::future::join_all(asked).await;
    assert!(answered.iter().all(|(_, answer)| answer == "a!"));
    assert_eq!(setup.socket.connections(), 150);
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_its_owner() {
    let setup = Setup::new();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&setup.path()), mode(setup.path().parent().unwrap())),
        (0o600, 0o700)
    );
    let Setup { dir, socket, uplink } = setup;
    let path = dir.path().join("s/a.sock");
    drop(socket);
    assert!(!path.exists());
    // A socket that a killed agent left behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let again = StoreSocket::open(path.clone(), "t1", 3, uplink.clone(), &Supervisor::default()).unwrap();
    let mut client = Grpc::new(connect(path).await);
    assert_eq!(ask(&mut client, "/unary", "hi").await.unwrap(), "hi!");
    drop(again);
    let long = dir.path().join("x".repeat(100));
    let error = StoreSocket::open(long, "t1", 3, uplink, &Supervisor::default()).unwrap_err();
    let text = hanse_runtime::supervisor::chain(&error);
    assert!(text.contains("107 bytes") && text.contains("data_dir"), "{text}");
}
