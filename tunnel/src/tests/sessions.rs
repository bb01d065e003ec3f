//! Who gets in, who stays, and what happens when either end goes away.

use super::relay::Relay;
use super::*;
use crate::code::Code;
use crate::identity::Protocol;
use crate::quic::Connector;
use http_body_util::BodyExt;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_impostors_stay_outside() {
    let world = World::new();
    let server = world.server("s1");
    let address = server.address.to_string();
    let other = TestPki::new(SystemClock::new().wall()).unwrap();
    let ours = world.pki.agent("eu").unwrap();
    let theirs = other.agent("eu").unwrap();
    let connect = async |credentials: Credentials, name: &str| {
        let connector = Connector::new(&credentials, &world.settings, None).unwrap();
        let conn = connector.connect(name, &address, Protocol::Control).await?;
        // The server checks the client after the client's own handshake is over: use the connection.
        let ended = soon("verdict", conn.closed()).await;
        Err::<(), _>(TunnelError::lost("server", ended.text))
    };
    // Of another system: we do not believe the server.
    let fault = connect(theirs.clone(), "s1").await.unwrap_err();
    assert!(fault.to_string().contains("BadSignature"), "{fault}");
    // Believes the server, but shows a certificate of another system.
    let forged = Credentials {
        ca: ours.ca.clone(),
        ..theirs
    };
    let fault = connect(forged, "s1").await.unwrap_err();
    assert!(
        matches!(fault, TunnelError::Lost { .. }) && fault.to_string().contains("handshake failed"),
        "{fault}"
    );
    // A server's certificate does not make an agent.
    let fault = connect(world.pki.server("s2").unwrap(), "s1").await.unwrap_err();
    assert!(fault.to_string().contains("must not connect as an agent"), "{fault}");
    // Another server answers than the one that was dialed.
    let fault = connect(ours, "s2").await.unwrap_err();
    assert!(matches!(fault, TunnelError::Identity { .. }), "{fault}");
    assert!(server.hub.sessions().is_empty());
    // Without any certificate only enrolment is spoken: see `enrolment`.
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_session_of_an_agent_wins() {
    let world = World::new();
    let server = world.server("s1");
    let who = |name: &'static str| -> Handler {
        Box::new(move |_, _| Box::pin(async move { Response::new(full_body(name)) }))
    };
    let old = world.agent("eu", &[("s1", server.address)], who("old"));
    server.agents(&["eu"]).await;
    old.connected(2).await;
    let first = server.hub.sessions().remove(0).boot_id;
    let new = world.agent("eu", &[("s1", server.address)], who("new"));
    new.connected(2).await;
    let mut changes = server.hub.changes();
    soon("take-over", async {
        while server
            .hub
            .sessions()
            .first()
            .is_none_or(|session| session.boot_id == first)
        {
            changes.changed().await.unwrap();
        }
    })
    .await;
    let response = soon("answer", server.hub.request("eu", request("/"), empty_body()))
        .await
        .unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "new");
    // The old one keeps away for a while instead of taking the session back at once.
    old.connected(0).await;
    assert_eq!(server.hub.sessions().len(), 1);
    server.hub.disconnect("eu");
    new.connected(0).await;
    new.connected(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn intents_reach_the_agent_and_the_latest_counts() {
    let world = World::new();
    let server = world.server("s1");
    assert!(!server.hub.send_intent("eu", Bytes::from_static(b"early")));
    let mut agent = world.agent("eu", &[("s1", server.address)], echo());
    server.agents(&["eu"]).await;
    let large = Bytes::from(vec![1; 3 << 20]);
    assert!(server.hub.send_intent("eu", large.clone()));
    let (from, got) = soon("intent", agent.intents.recv()).await.unwrap();
    assert!(from == "s1" && got == large);
    for n in 0..100u32 {
        assert!(server.hub.send_intent("eu", Bytes::from(n.to_string())));
    }
    let mut last = Bytes::new();
    let mut seen = 0;
    while last != "99" {
        last = soon("intent", agent.intents.recv()).await.unwrap().1;
        seen += 1;
    }
    assert!(seen <= 100, "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_go_to_the_preferred_server_and_else_to_another() {
    let mut world = World::new();
    let (one, two) = (world.server("s1"), world.server("s2"));
    let agent = world.agent("eu", &[("s1", one.address), ("s2", two.address)], echo());
    agent.connected(4).await;
    use crate::api::Uplink;
    agent.dialer.report(Bytes::from_static(b"a"));
    let got = soon("report", world.reports.recv()).await.unwrap();
    assert_eq!(got, ("s1".into(), "eu".into(), Bytes::from_static(b"a")));
    one.supervisor.shut_down(Duration::from_secs(5)).await;
    agent.dialer.report(Bytes::from_static(b"b"));
    let got = soon("report", world.reports.recv()).await.unwrap();
    assert_eq!(got, ("s2".into(), "eu".into(), Bytes::from_static(b"b")));
    // With no server left it is kept until one is there.
    two.supervisor.shut_down(Duration::from_secs(5)).await;
    agent.connected(0).await;
    agent.dialer.report(Bytes::from_static(b"c"));
    let address = two.address;
    drop(two);
    let _two = world.server_again("s2", address).await;
    let got = soon("report", world.reports.recv()).await.unwrap();
    assert_eq!(got.2, "c");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_come_back_after_a_clean_restart() {
    let world = World::new();
    let server = world.server("s1");
    let agent = world.agent("eu", &[("s1", server.address)], echo());
    server.agents(&["eu"]).await;
    agent.connected(2).await;
    server.supervisor.shut_down(Duration::from_secs(5)).await;
    assert!(
        server.supervisor.running().is_empty(),
        "{:?}",
        server.supervisor.running()
    );
    let refused = server.hub.request("eu", request("/"), empty_body()).await.unwrap_err();
    assert!(matches!(refused, TunnelError::Draining { .. }) && refused.certainly_not_delivered());
    let address = server.address;
    drop(server);
    let again = world.server_again("s1", address).await;
    again.agents(&["eu"]).await;
    soon("answer", again.hub.request("eu", request("/"), empty_body()))
        .await
        .unwrap();
    agent.supervisor.shut_down(Duration::from_secs(5)).await;
    assert!(
        agent.supervisor.running().is_empty(),
        "{:?}",
        agent.supervisor.running()
    );
    again.agents(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_come_back_at_once_after_a_crash() {
    let world = World::new();
    let credentials = world.pki.server("s1").unwrap();
    let server = world.server_of(credentials.clone());
    let relay = Relay::to(server.address).await;
    let agent = world.agent("eu", &[("s1", relay.address)], echo());
    agent.connected(2).await;
    // The next process of the same server knows nothing of the old connections, and says so by stateless resets.
    let next = world.server_of(credentials);
    relay.turn_to(next.address);
    let began = tokio::time::Instant::now();
    next.agents(&["eu"]).await;
    let took = began.elapsed();
    println!("an agent was back {took:?} after a crashed server's successor listened");
    assert!(took < Duration::from_secs(3), "{took:?}");
    soon("answer", next.hub.request("eu", request("/"), empty_body()))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_to_an_agent_that_fell_silent_fails_soon() {
    let world = World::new();
    let server = world.server("s1");
    let relay = Relay::to(server.address).await;
    let agent = world.agent("eu", &[("s1", relay.address)], echo());
    server.agents(&["eu"]).await;
    agent.connected(2).await;
    relay.cut();
    let began = tokio::time::Instant::now();
    let fault = soon("failure", server.hub.request("eu", request("/"), empty_body()))
        .await
        .unwrap_err();
    let took = began.elapsed();
    assert!(
        matches!(fault, TunnelError::Lost { .. }) && !fault.certainly_not_delivered(),
        "{fault}"
    );
    println!("agent silent: a request failed after {took:?}");
    assert!(took < Duration::from_secs(12), "{took:?}");
    server.agents(&[]).await;
    let fault = server.hub.request("eu", request("/"), empty_body()).await.unwrap_err();
    assert!(fault.certainly_not_delivered());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_streams_are_allowed_when_they_are_used() {
    let mut world = World::new();
    world.settings.request_streams = 8;
    let server = world.server("s1");
    let (arrived_in, mut arrived) = mpsc::channel(4096);
    let handler: Handler = Box::new(move |_, _| {
        arrived_in.try_send(()).unwrap();
        Box::pin(std::future::pending())
    });
    let _agent = world.agent("eu", &[("s1", server.address)], handler);
    server.agents(&["eu"]).await;
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let hub = server.hub.clone();
            tokio::spawn(async move { hub.request("eu", request("/"), empty_body()).await.is_ok() })
        })
        .collect();
    for _ in &waiting {
        soon("all requests at the agent", arrived.recv()).await.unwrap();
    }
    for task in waiting {
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_breaks_the_protocol_is_closed() {
    let world = World::new();
    let server = world.server("s1");
    let connector = Connector::new(&world.pki.agent("eu").unwrap(), &world.settings, None).unwrap();
    let conn = connector
        .connect("s1", &server.address.to_string(), Protocol::Control)
        .await
        .unwrap();
    let (mut send, _recv) = conn.open(0).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut send, b"GET / HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let ended = soon("end", conn.closed()).await;
    assert_eq!(ended.code, Some(Code::Malformed), "{}", ended.text);
    assert!(server.hub.sessions().is_empty());
}

/// Connection id that the sender of a QUIC packet with a long header chose for its peer (RFC 9000, 17.2). New with each attempt.
fn chosen_id(packet: &[u8]) -> Option<&[u8]> {
    let length = usize::from(*packet.get(5)?);
    (packet[0] & 0x80 != 0).then(|| packet.get(6..6 + length)).flatten()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_dialed_anew_before_the_attempt_grows_slow() {
    let mut world = World::new();
    world.settings.dial = Duration::from_millis(300);
    let never = Duration::from_secs(600);
    world.settings.handshake = never;
    (world.settings.control.idle, world.settings.store.idle) = (never, never);
    let silent = tokio::net::UdpSocket::bind(any_port()).await.unwrap();
    let address = silent.local_addr().unwrap();
    let agent = world.agent("eu", &[("s1", address)], echo());
    // One attempt each of the control and the store connection, and then others.
    let mut attempts = std::collections::BTreeSet::new();
    let mut packet = [0; 2048];
    while attempts.len() < 4 {
        let length = soon("another attempt", silent.recv(&mut packet)).await.unwrap();
        attempts.extend(chosen_id(&packet[..length]).map(<[u8]>::to_vec));
    }
    drop(silent);
    let server = world.server_at("s1", address, echo_store("s1"));
    server.agents(&["eu"]).await;
    agent.connected(2).await;
}
