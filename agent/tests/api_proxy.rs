//! The API proxy between a tunnel and an API server that writes down what reaches it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/keys.rs"]
mod keys;

use bytes::Bytes;
use hanse_agent::api_proxy::{ApiProxy, ApiTarget, Targets};
use hanse_api::Timestamp;
use hanse_api::access::Principal;
use hanse_api::intent::TenantPki;
use hanse_runtime::clock::{Clock, SystemClock};
use hanse_runtime::pki::{Ca, LeafSpec, load_certs, load_key};
use hanse_runtime::supervisor::Supervisor;
use hanse_tunnel::assertion::{Claims, Signer, Verifier};
use hanse_tunnel::testing::TestPki;
use hanse_tunnel::{Body, RequestHead, Target, TunnelError, Upgraded, empty_body, full_body, take_refusal};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keys::tenant_keys;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const TENANT: &str = "t1";

#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<(Method, String, HeaderMap, Bytes)>>,
    connections: AtomicUsize,
    client: Mutex<String>,
}

/// An API server with the tenant's certificates, which echoes.
async fn api_server(pki: &TenantPki, ca: &Ca) -> (SocketAddr, Arc<Seen>) {
    let now = SystemClock::new().wall();
    let spec = LeafSpec {
        common_name: "kube-apiserver".into(),
        ips: vec![Ipv4Addr::LOCALHOST.into()],
        server: true,
        days: 1,
        ..LeafSpec::default()
    };
    let leaf = ca.issue(&spec, now).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(load_certs(&pki.ca.cert).unwrap().remove(0)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(load_certs(&leaf.cert).unwrap(), load_key(&leaf.key).unwrap())
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let shared = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, seen) = (acceptor.clone(), shared.clone());
            seen.connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let alpn = stream
                    .get_ref()
                    .1
                    .alpn_protocol()
                    .map(|p| String::from_utf8_lossy(p).into_owned());
                *seen.client.lock().unwrap() = alpn.unwrap_or_default();
                let service = service_fn(move |request| serve(request, seen.clone()));
                let http = hyper::server::conn::http1::Builder::new();
                let _ended = http
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await
                    .is_ok();
            });
        }
    });
    (address, seen)
}

async fn serve(mut request: Request<Incoming>, seen: Arc<Seen>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().to_string();
    if path.starts_with("/switch") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 5];
            io.read_exact(&mut word).await.unwrap();
            io.write_all(&word).await.unwrap();
            io.shutdown().await.unwrap();
        });
        let protocol = if path == "/switch-other" { "h2c" } else { "SPDY/3.1" };
        note(&seen, request).await;
        let response = Response::builder()
            .status(101)
            .header("Connection", "Upgrade")
            .header("Upgrade", protocol);
        return Ok(response
            .header("X-Stream-Protocol-Version", "v4.channel.k8s.io")
            .body(empty_body())
            .unwrap());
    }
    note(&seen, request).await;
    let response = Response::builder();
    Ok(match path.as_str() {
        "/redirect" => response
            .status(302)
            .header("Location", "https://evil/")
            .body(empty_body())
            .unwrap(),
        "/forever" => {
            let first = futures::stream::once(async { Ok(hyper::body::Frame::data(Bytes::from_static(b"event\n"))) });
            let stream = futures::StreamExt::chain(first, futures::stream::pending());
            response
                .body(BodyExt::boxed_unsync(http_body_util::StreamBody::new(stream)))
                .unwrap()
        }
        _ => response
            .header("Set-Cookie", "a")
            .header("Audit-Id", "1")
            .body(full_body("hello"))
            .unwrap(),
    })
}

async fn note(seen: &Seen, request: Request<Incoming>) {
    let (parts, body) = request.into_parts();
    let body = if parts.uri.path().starts_with("/switch") {
        Bytes::new()
    } else {
        body.collect().await.unwrap().to_bytes()
    };
    seen.requests
        .lock()
        .unwrap()
        .push((parts.method, parts.uri.to_string(), parts.headers, body));
}

struct Setup {
    proxy: ApiProxy,
    signer: Signer,
    seen: Arc<Seen>,
    targets: Arc<Targets>,
    now: Timestamp,
}

async fn setup() -> Setup {
    let clock = SystemClock::shared();
    let now = clock.wall();
    let system = TestPki::new(now).unwrap();
    let (ca, pki) = tenant_keys(now);
    let (address, seen) = api_server(&pki, &ca).await;
    let targets = Arc::new(Targets::default());
    let target = ApiTarget::new(TENANT, address, &pki, clock.clone(), Supervisor::default()).unwrap();
    targets.set(target).open();
    let proxy = ApiProxy::new(
        "eu",
        Verifier::new(&system.ca().unwrap()).unwrap(),
        targets.clone(),
        clock,
    );
    Setup {
        proxy,
        signer: Signer::new(&system.server("eu-1").unwrap()).unwrap(),
        seen,
        targets,
        now,
    }
}

fn ann() -> Principal {
    Principal {
        user: "ann".into(),
        uid: "7".into(),
        groups: vec!["system:authenticated".into(), "hanse:tenant-admins".into()],
        extra: BTreeMap::from([("Scopes".into(), vec!["a".into()])]),
        ..Principal::default()
    }
}

impl Setup {
    fn head(&self, principal: Principal, target: Target, path: &str, headers: &[(&str, &str)]) -> RequestHead {
        let claims = Claims {
            principal,
            cluster: "eu".into(),
            target: target.clone(),
            request_id: "r1".into(),
            not_after: self.now.plus(Duration::from_secs(30)),
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        RequestHead {
            request_id: "r1".into(),
            target,
            assertion: self.signer.sign(&claims).unwrap(),
            method: Method::GET,
            path_and_query: path.parse().unwrap(),
            headers: map,
            upgrade: false,
        }
    }

    fn get(&self, path: &str) -> RequestHead {
        self.head(ann(), tenant(), path, &[])
    }

    fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    fn requests(&self) -> usize {
        self.seen.requests.lock().unwrap().len()
    }
}

fn tenant() -> Target {
    Target::Tenant { id: TENANT.into() }
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn a_request_arrives_with_the_callers_identity_and_nothing_else() {
    let setup = setup().await;
    let evil = [
        ("accept", "application/json"),
        ("content-type", "application/json"),
        ("content-length", "2"),
        ("authorization", "Bearer x"),
        ("impersonate-user", "root"),
        ("impersonate-group", "system:masters"),
        ("connection", "impersonate-user"),
        ("cookie", "c"),
        ("x-remote-user", "root"),
        ("host", "evil"),
    ];
    let mut head = setup.head(ann(), tenant(), "/api/v1/namespaces?x=%2F", &evil);
    head.method = Method::POST;
    let response = setup.proxy.request(head, full_body("{}")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers().contains_key("audit-id") && !response.headers().contains_key("set-cookie"));
    assert_eq!(text(response).await, "hello");
    let requests = setup.seen.requests.lock().unwrap();
    let (method, uri, headers, body) = &requests[0];
    assert_eq!(
        (method, uri.as_str(), &body[..]),
        (&Method::POST, "/api/v1/namespaces?x=%2F", &b"{}"[..])
    );
    let mut found: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    found.retain(|(name, _)| *name != "host");
    found.sort_unstable();
    let mut expected = vec![
        ("accept", "application/json"),
        ("content-length", "2"),
        ("content-type", "application/json"),
        ("impersonate-extra-scopes", "a"),
        ("impersonate-group", "hanse:tenant-admins"),
        ("impersonate-group", "system:authenticated"),
        ("impersonate-uid", "7"),
        ("impersonate-user", "ann"),
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert!(headers["host"].to_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(*setup.seen.client.lock().unwrap(), "http/1.1");
}

#[tokio::test]
async fn identities_that_do_not_hold_or_are_reserved_go_no_further() {
    let setup = setup().await;
    let with = |principal: Principal| setup.head(principal, tenant(), "/api", &[]);
    let group = |group: &str| Principal {
        groups: vec![group.into()],
        ..ann()
    };
    let mut unsigned = setup.get("/api");
    unsigned.assertion.clear();
    let mut forged = setup.get("/api");
    if let Some(byte) = forged.assertion.get_mut(20) {
        *byte ^= 1;
    }
    let mut replayed = setup.get("/api");
    replayed.request_id = "r2".into();
    let mut elsewhere = setup.get("/api");
    elsewhere.target = Target::Tenant { id: "t2".into() };
    let refused = [
        unsigned,
        forged,
        replayed,
        elsewhere,
        with(group("system:masters")),
        with(group("system:nodes")),
        with(group("system:kube-x")),
        with(Principal {
            user: "system:node:n".into(),
            ..ann()
        }),
        with(Principal {
            user: String::new(),
            ..ann()
        }),
    ];
    for (n, head) in refused.into_iter().enumerate() {
        let response = setup.proxy.request(head, empty_body()).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "case {n}");
        assert!(text(response).await.contains("\"kind\":\"Status\""), "case {n}");
    }
    assert_eq!(setup.requests(), 0);
    assert_eq!(setup.connections(), 0);
}

#[tokio::test]
async fn connections_are_used_again_and_watches_starve_nobody() {
    let setup = setup().await;
    for _ in 0..5 {
        assert_eq!(
            text(setup.proxy.request(setup.get("/a"), empty_body()).await).await,
            "hello"
        );
    }
    assert_eq!(setup.connections(), 1);
    let mut watches = Vec::new();
    for _ in 0..120 {
        let mut watch = setup.proxy.request(setup.get("/forever"), empty_body()).await;
        let first = watch.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "event\n");
        watches.push(watch);
    }
    assert_eq!(
        text(setup.proxy.request(setup.get("/a"), empty_body()).await).await,
        "hello"
    );
    assert_eq!(setup.connections(), 121);
    // A caller that goes away takes its watch along.
    let target = setup.targets.get(TENANT).unwrap();
    drop(watches);
    while target.connections() > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_was_not_sent_may_be_repeated_and_what_was_lost_may_not() {
    let setup = setup().await;
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let now = setup.now;
    let (ca, pki) = tenant_keys(now);
    let clock = SystemClock::shared();
    setup
        .targets
        .set(ApiTarget::new(TENANT, free, &pki, clock.clone(), Supervisor::default()).unwrap())
        .open();
    let response = setup.proxy.request(setup.get("/a"), empty_body()).await;
    assert_eq!(
        (response.status(), &response.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &HeaderValue::from(1))
    );
    // An API server that takes the request and hangs up.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let spec = LeafSpec {
        ips: vec![Ipv4Addr::LOCALHOST.into()],
        server: true,
        days: 1,
        ..LeafSpec::default()
    };
    let leaf = ca.issue(&spec, now).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(load_certs(&leaf.cert).unwrap(), load_key(&leaf.key).unwrap())
        .unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = TlsAcceptor::from(Arc::new(tls)).accept(stream).await.unwrap();
        let mut some = [0; 16];
        stream.read_exact(&mut some).await.unwrap();
    });
    setup
        .targets
        .set(ApiTarget::new(TENANT, address, &pki, clock, Supervisor::default()).unwrap())
        .open();
    let mut response = setup.proxy.request(setup.get("/a"), empty_body()).await;
    let refusal = take_refusal(&mut response);
    assert!(
        matches!(refusal, Some(TunnelError::UpstreamReset { .. })),
        "{refusal:?}"
    );
}

#[tokio::test]
async fn nothing_gets_to_an_api_server_that_is_not_open_yet() {
    let setup = setup().await;
    let open = setup.targets.get(TENANT).unwrap();
    let (_, pki) = tenant_keys(setup.now);
    let clock = SystemClock::shared();
    let shut = ApiTarget::new(TENANT, open.address(), &pki, clock, Supervisor::default()).unwrap();
    setup.targets.set(shut);
    let response = setup.proxy.request(setup.get("/a"), empty_body()).await;
    let upgrade = setup.head(ann(), tenant(), "/switch", &SPDY);
    let Upgraded::Answered(upgrade) = setup.proxy.upgrade(upgrade).await else {
        panic!("switched")
    };
    for response in [response, upgrade] {
        assert_eq!(
            (response.status(), &response.headers()["retry-after"]),
            (StatusCode::SERVICE_UNAVAILABLE, &HeaderValue::from(1))
        );
        assert!(text(response).await.contains("is being started"));
    }
    assert_eq!(setup.connections(), 0);
}

#[tokio::test]
async fn redirects_are_not_followed_and_hosts_without_an_api_say_so() {
    let setup = setup().await;
    let response = setup.proxy.request(setup.get("/redirect"), empty_body()).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    let response = setup
        .proxy
        .request(setup.head(ann(), Target::Cluster, "/api", &[]), empty_body())
        .await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert!(text(response).await.contains("plain host"));
    let other = Target::Tenant { id: "t9".into() };
    let response = setup
        .proxy
        .request(setup.head(ann(), other, "/api", &[]), empty_body())
        .await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

const SPDY: [(&str, &str); 2] = [
    ("upgrade", "SPDY/3.1"),
    ("x-stream-protocol-version", "v4.channel.k8s.io"),
];

#[tokio::test]
async fn after_a_101_bytes_flow_both_ways_on_a_connection_of_its_own() {
    let setup = setup().await;
    let head = setup.head(ann(), tenant(), "/switch", &SPDY);
    let Upgraded::Switched { response, mut io } = setup.proxy.upgrade(head).await else {
        panic!("not switched")
    };
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    for (name, value) in [
        ("upgrade", "SPDY/3.1"),
        ("connection", "Upgrade"),
        ("x-stream-protocol-version", "v4.channel.k8s.io"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    io.write_all(b"hello").await.unwrap();
    let mut echo = Vec::new();
    io.read_to_end(&mut echo).await.unwrap();
    assert_eq!(echo, b"hello");
    let headers = setup.seen.requests.lock().unwrap()[0].2.clone();
    assert_eq!(
        (&headers["connection"], &headers["impersonate-user"]),
        (&HeaderValue::from_static("Upgrade"), &HeaderValue::from_static("ann"))
    );
    // The next request does not get the switched connection.
    assert_eq!(
        text(setup.proxy.request(setup.get("/a"), empty_body()).await).await,
        "hello"
    );
    assert_eq!(setup.connections(), 2);
}

#[tokio::test]
async fn nothing_is_spliced_without_the_right_101() {
    let setup = setup().await;
    let answered = async |head: RequestHead| match setup.proxy.upgrade(head).await {
        Upgraded::Answered(response) => response.status(),
        Upgraded::Switched { .. } => panic!("switched"),
    };
    assert_eq!(
        answered(setup.head(ann(), tenant(), "/plain", &SPDY)).await,
        StatusCode::OK
    );
    assert_eq!(
        answered(setup.head(ann(), tenant(), "/switch-other", &SPDY)).await,
        StatusCode::BAD_GATEWAY
    );
    assert_eq!(
        answered(setup.head(ann(), tenant(), "/redirect", &SPDY)).await,
        StatusCode::BAD_GATEWAY
    );
    let before = setup.connections();
    assert_eq!(
        answered(setup.head(ann(), tenant(), "/switch", &[("upgrade", "h2c")])).await,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        answered(setup.head(ann(), tenant(), "/switch", &[])).await,
        StatusCode::BAD_REQUEST
    );
    let masters = Principal {
        groups: vec!["system:masters".into()],
        ..ann()
    };
    assert_eq!(
        answered(setup.head(masters, tenant(), "/switch", &SPDY)).await,
        StatusCode::FORBIDDEN
    );
    assert_eq!(setup.connections(), before);
}
