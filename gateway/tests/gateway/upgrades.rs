//! Protocol upgrades through the proxy.

use crate::world::{DEMO, World, plain, soon};
use hanse_api::kinds::ACCESS_KEYS;
use hanse_gateway::access_key;
use hanse_tunnel::{TunnelIo, Upgraded};
use http::Response;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

const EXEC: &str = "/api/v1/namespaces/a/pods/p/exec?command=sh";
const WEBSOCKET: [(&str, &str); 5] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("sec-websocket-version", "13"),
    (
        "sec-websocket-protocol",
        "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0",
    ),
];

/// The agent switches with the given head; the test gets the other end of the stream.
fn switching(world: &World, head: impl Fn() -> Response<()> + Send + Sync + 'static) -> mpsc::Receiver<DuplexStream> {
    let (sender, receiver) = mpsc::channel(4);
    world.agent.switch(move |_| {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        sender.try_send(theirs).unwrap();
        Upgraded::Switched {
            response: head(),
            io: TunnelIo::new(ours),
        }
    });
    receiver
}

fn granted(protocol: &'static str) -> Response<()> {
    Response::builder()
        .status(101)
        .header("connection", "Upgrade")
        .header("upgrade", protocol)
        .header("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        .header("sec-websocket-protocol", "v5.channel.k8s.io")
        .header("set-cookie", "evil=1")
        .body(())
        .unwrap()
}

#[tokio::test]
async fn bytes_flow_both_ways_after_a_101() {
    let world = World::start().await;
    let admin = world.admin();
    for (headers, protocol) in [
        (&WEBSOCKET[..], "websocket"),
        (
            &[
                ("connection", "Upgrade"),
                ("upgrade", "SPDY/3.1"),
                ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ][..],
            "SPDY/3.1",
        ),
    ] {
        let mut ends = switching(&world, move || granted(protocol));
        let mut response = admin
            .open(admin.request("GET", &format!("{DEMO}{EXEC}"), headers, ""))
            .await;
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["upgrade"], protocol);
        assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        assert!(!response.headers().contains_key("set-cookie"));
        let seen = world.agent.last();
        assert!(seen.head.upgrade);
        assert_eq!(seen.head.headers["upgrade"], protocol);
        assert!(
            !format!("{:?}", seen.head.headers).contains("c2VjcmV0"),
            "the token in the subprotocol stays here"
        );
        let mut pod = soon(ends.recv()).await.unwrap();
        let upgraded = soon(hyper::upgrade::on(&mut response)).await.unwrap();
        let mut client = TokioIo::new(upgraded);
        client.write_all(b"ls\n").await.unwrap();
        let mut buffer = [0; 3];
        soon(pod.read_exact(&mut buffer)).await.unwrap();
        assert_eq!(&buffer, b"ls\n");
        pod.write_all(b"file").await.unwrap();
        drop(pod);
        // Everything that was said is delivered before the end.
        let mut rest = Vec::new();
        client.shutdown().await.unwrap();
        soon(client.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"file");
    }
}

/// CVE-2018-1002105: after an upgrade that failed the connection must not reach the API server with the proxy's rights.
#[tokio::test]
async fn a_failed_upgrade_is_an_ordinary_answer_and_the_end() {
    let world = World::start().await;
    let admin = world.admin();
    for code in [200, 400, 403, 500] {
        world.agent.switch(move |_| Upgraded::Answered(plain(code, "no")));
        let mut stream = admin.tls(b"http/1.1").await;
        let token = admin.token.clone().unwrap();
        let request = format!(
            "GET {DEMO}{EXEC} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\nGET /api/v1/secrets HTTP/1.1\r\nHost: g\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        // The peer may close without a TLS goodbye.
        let _end = soon(stream.read_to_end(&mut text)).await;
        let text = String::from_utf8_lossy(&text);
        assert!(text.starts_with(&format!("HTTP/1.1 {code}")), "{text}");
        assert!(text.to_ascii_lowercase().contains("connection: close"), "{text}");
        assert_eq!(
            text.matches("HTTP/1.1").count(),
            1,
            "nothing is answered behind it: {text}"
        );
    }
    assert_eq!(world.agent.count(), 4);
}

#[tokio::test]
async fn only_what_was_asked_for_is_granted() {
    let world = World::start().await;
    let admin = world.admin();
    let bad: [fn() -> Response<()>; 3] = [
        || granted("h2c"),
        || Response::builder().status(101).body(()).unwrap(),
        || {
            Response::builder()
                .status(200)
                .header("connection", "Upgrade")
                .header("upgrade", "websocket")
                .body(())
                .unwrap()
        },
    ];
    for head in bad {
        let mut ends = switching(&world, head);
        admin
            .send(admin.request("GET", &format!("{DEMO}{EXEC}"), &WEBSOCKET, ""))
            .await
            .fails(502);
        let mut end = ends.recv().await.unwrap();
        assert_eq!(
            soon(end.read(&mut [0; 1])).await.unwrap_or(0),
            0,
            "the stream was dropped"
        );
    }
    world.agent.switch(|_| Upgraded::Answered(plain(101, "")));
    admin
        .send(admin.request("GET", &format!("{DEMO}{EXEC}"), &WEBSOCKET, ""))
        .await
        .fails(502);
    let redirect = || {
        Response::builder()
            .status(302)
            .header("location", "https://evil/")
            .body(hanse_tunnel::empty_body())
            .unwrap()
    };
    world.agent.switch(move |_| Upgraded::Answered(redirect()));
    admin
        .send(admin.request("GET", &format!("{DEMO}{EXEC}"), &WEBSOCKET, ""))
        .await
        .fails(502);
}

#[tokio::test]
async fn odd_upgrades_do_not_leave_the_gateway() {
    let world = World::start().await;
    let admin = world.admin();
    let exec = format!("{DEMO}{EXEC}");
    let h2c = [
        ("connection", "Upgrade, HTTP2-Settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQ"),
    ];
    admin.send(admin.request("GET", &exec, &h2c, "")).await.fails(400);
    let two = [("connection", "Upgrade"), ("upgrade", "websocket, SPDY/3.1")];
    admin.send(admin.request("GET", &exec, &two, "")).await.fails(400);
    admin
        .send(admin.request("GET", &exec, &[("upgrade", "websocket")], ""))
        .await
        .fails(400);
    // Upgrades only where they make sense.
    for path in [
        "/version",
        "/api/v1/namespaces/a/secrets",
        "/api/v1/namespaces/a/pods/p/log",
    ] {
        admin
            .send(admin.request("GET", &format!("{DEMO}{path}"), &WEBSOCKET, ""))
            .await
            .fails(400);
    }
    let management = "/kubernetes/management/apis/management.loft.sh/v1/projects?watch=1";
    admin
        .send(admin.request("GET", management, &WEBSOCKET, ""))
        .await
        .fails(400);
    // Who may only look, may not run (exec over WebSocket is a GET).
    let bob = world.bob();
    bob.send(bob.request("GET", &exec, &WEBSOCKET, "")).await.fails(403);
    bob.send(bob.request("GET", &format!("{DEMO}/api/v1/nodes/n/proxy/run/x"), &[], ""))
        .await
        .fails(403);
    assert_eq!(world.agent.count(), 0);
}

#[tokio::test]
async fn a_shell_ends_with_the_key_that_opened_it() {
    let world = World::start().await;
    world.key("second", "admin").await;
    let client = world.client(Some(access_key("second", "second-secret")));
    let mut ends = switching(&world, || granted("websocket"));
    let mut response = client
        .open(client.request("GET", &format!("{DEMO}{EXEC}"), &WEBSOCKET, ""))
        .await;
    assert_eq!(response.status(), 101);
    let mut pod = soon(ends.recv()).await.unwrap();
    let upgraded = soon(hyper::upgrade::on(&mut response)).await.unwrap();
    pod.write_all(b"$").await.unwrap();
    let mut client = TokioIo::new(upgraded);
    soon(client.read_exact(&mut [0; 1])).await.unwrap();
    world.remove(&ACCESS_KEYS, "", "second").await;
    assert_eq!(soon(client.read(&mut [0; 1])).await.unwrap_or(0), 0);
    assert_eq!(soon(pod.read(&mut [0; 1])).await.unwrap_or(0), 0);
}
