//! Store calls, and what becomes of them when a server dies.

use super::relay::Relay;
use super::*;
use crate::api::Uplink;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::time::Instant;

const READ: &str = "KV/Range";
const WRITE: &str = "KV/Txn";
const WATCH: &str = "Watch/Watch";

async fn ask(agent: &AgentHandle, method: &str) -> Result<String, TunnelError> {
    let response = agent.dialer.store_call(store_call(method), full_body("q")).await?;
    let server = response.headers()["server"].to_str().unwrap().to_owned();
    assert_eq!(response.headers()["tenant"], "t1");
    assert_eq!(response.into_body().collect().await?.to_bytes(), "q");
    Ok(server)
}

/// A watch: echoes each message, for as long as messages come.
fn streaming(name: &'static str) -> StoreHandler {
    Box::new(move |_, body| {
        Box::pin(async move {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            Response::builder()
                .header("server", name)
                .body(body.with_trailers(async { Some(Ok(trailers)) }).boxed_unsync())
                .unwrap()
        })
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_run_both_ways_and_end_with_trailers() {
    let world = World::new();
    let server = world.server_at("s1", any_port(), streaming("s1"));
    let agent = world.agent("eu", &[("s1", server.address)], echo());
    agent.connected(2).await;
    let (feed, fed) = mpsc::channel(1);
    let fed = futures::stream::unfold(fed, |mut fed| async move { Some((fed.recv().await?, fed)) });
    let body = StreamBody::new(fed).boxed_unsync();
    feed.send(Ok(Frame::data(Bytes::from_static(b"first")))).await.unwrap();
    let call = agent.dialer.store_call(store_call(WATCH), body);
    let mut answer = soon("head", call).await.unwrap().into_body();
    let first = soon("first", answer.frame()).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "first");
    for n in 0..20 {
        let message = Bytes::from(format!("event {n}"));
        feed.send(Ok(Frame::data(message.clone()))).await.unwrap();
        assert_eq!(
            soon("event", answer.frame())
                .await
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap(),
            message
        );
    }
    drop(feed);
    let last = soon("trailers", answer.frame()).await.unwrap().unwrap();
    assert_eq!(last.into_trailers().unwrap()["grpc-status"], "0");
    assert!(answer.frame().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watches_fit_at_once() {
    let mut world = World::new();
    world.settings.store_streams = 16;
    let server = world.server_at("s1", any_port(), streaming("s1"));
    let agent = world.agent("eu", &[("s1", server.address)], echo());
    agent.connected(2).await;
    let mut watches = Vec::new();
    for _ in 0..400 {
        let first = futures::stream::iter([Ok(Frame::data(Bytes::from_static(b"w")))]);
        let body = StreamBody::new(futures::StreamExt::chain(first, futures::stream::pending())).boxed_unsync();
        let mut answer = soon("head", agent.dialer.store_call(store_call(WATCH), body))
            .await
            .unwrap()
            .into_body();
        soon("first", answer.frame()).await.unwrap().unwrap();
        watches.push(answer);
    }
    let one_more = soon("head", agent.dialer.store_call(store_call(READ), full_body("x")))
        .await
        .unwrap();
    assert_eq!(
        soon("body", one_more.into_body().collect()).await.unwrap().to_bytes(),
        "x"
    );
}

struct Three {
    _world: World,
    servers: Vec<ServerHandle>,
    relays: Vec<Relay>,
    agent: AgentHandle,
}

async fn three() -> Three {
    let world = World::new();
    let names = ["s1", "s2", "s3"];
    let servers: Vec<ServerHandle> = names.iter().map(|name| world.server(name)).collect();
    let mut relays = Vec::new();
    for server in &servers {
        relays.push(Relay::to(server.address).await);
    }
    let addresses: Vec<_> = names
        .into_iter()
        .zip(relays.iter().map(|relay| relay.address))
        .collect();
    let agent = world.agent("eu", &addresses, echo());
    agent.connected(6).await;
    Three {
        _world: world,
        servers,
        relays,
        agent,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_server_falls_silent_calls_go_on_elsewhere_within_seconds() {
    let three = three().await;
    assert_eq!(ask(&three.agent, READ).await.unwrap(), "s1");
    let watch_body = StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, TunnelError>>()).boxed_unsync();
    let hanging = StoreHead {
        path: "/etcdserverpb.Watch/Watch".into(),
        ..store_call(WATCH)
    };
    let dialer = three.agent.dialer.clone();
    let watch = tokio::spawn(async move { dialer.store_call(hanging, watch_body).await.map(|_| ()) });
    three.relays[0].cut();
    let began = Instant::now();
    let (read, write) = tokio::join!(
        async { (soon("read", ask(&three.agent, READ)).await, began.elapsed()) },
        async { (soon("write", ask(&three.agent, WRITE)).await, began.elapsed()) },
    );
    // The read was repeated elsewhere; nobody can know of the write.
    assert_ne!(read.0.unwrap(), "s1");
    let fault = write.0.unwrap_err();
    assert!(!fault.certainly_not_delivered() && fault.retryable(), "{fault}");
    assert_eq!(fault.grpc().0, 14);
    let lost = soon("watch", watch).await.unwrap().unwrap_err();
    assert!(lost.retryable(), "{lost}");
    // Anything new goes to a live server at once.
    let began_again = Instant::now();
    assert_ne!(soon("write", ask(&three.agent, WRITE)).await.unwrap(), "s1");
    let (again, read, write) = (began_again.elapsed(), read.1, write.1);
    println!("server silent: read answered after {read:?}, write failed after {write:?}, next write took {again:?}");
    assert!(read < Duration::from_secs(3), "{read:?}");
    assert!(write < Duration::from_secs(5), "{write:?}");
    assert!(again < Duration::from_secs(2), "{again:?}");
    // It comes back, and is preferred again.
    three.relays[0].turn_to(three.servers[0].address);
    three.agent.connected(6).await;
    assert_eq!(soon("read", ask(&three.agent, READ)).await.unwrap(), "s1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_drains_loses_no_call() {
    let three = three().await;
    let (served_in, mut served) = mpsc::channel(4096);
    let dialer = three.agent.dialer.clone();
    let calling = tokio::spawn(async move {
        // Ends when nobody listens any more.
        loop {
            let response = dialer.store_call(store_call(WRITE), full_body("q")).await.unwrap();
            let server = response.headers()["server"].to_str().unwrap().to_owned();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "q");
            if served_in.send(server).await.is_err() {
                return;
            }
        }
    });
    for _ in 0..50 {
        assert_eq!(soon("call", served.recv()).await.unwrap(), "s1");
    }
    three.servers[0].supervisor.shut_down(Duration::from_secs(5)).await;
    three.agent.connected(4).await;
    soon("another server", async {
        while served.recv().await.unwrap() == "s1" {}
    })
    .await;
    for _ in 0..50 {
        assert_ne!(soon("call", served.recv()).await.unwrap(), "s1");
    }
    drop(served);
    soon("caller", calling).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_store_cannot_serve_is_passed_over() {
    let world = World::new();
    let cut_off: StoreHandler = Box::new(|_, _| {
        let response = Response::builder()
            .header("server", "s1")
            .header("tenant", "t1")
            .header("grpc-status", "14");
        Box::pin(async move { response.body(full_body("q")).unwrap() })
    });
    let one = world.server_at("s1", any_port(), cut_off);
    let lonely = world.agent("us", &[("s1", one.address)], echo());
    lonely.connected(2).await;
    // With nobody else to ask, the poor answer is the answer.
    assert_eq!(soon("read", ask(&lonely, READ)).await.unwrap(), "s1");
    let two = world.server("s2");
    let agent = world.agent("eu", &[("s1", one.address), ("s2", two.address)], echo());
    agent.connected(4).await;
    // A write is not repeated: the store may have done it all the same. But others go elsewhere for a while.
    assert_eq!(soon("write", ask(&agent, WRITE)).await.unwrap(), "s1");
    assert_eq!(soon("write", ask(&agent, WRITE)).await.unwrap(), "s2");
    let agent = world.agent("ap", &[("s1", one.address), ("s2", two.address)], echo());
    agent.connected(4).await;
    assert_eq!(soon("read", ask(&agent, READ)).await.unwrap(), "s2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_was_turned_away_goes_to_the_next_server() {
    let world = World::new();
    let behind: StoreHandler = Box::new(|_, _| {
        let error = TunnelError::NotDialed {
            peer: "s1".into(),
            fault: "behind".into(),
        };
        Box::pin(async move { crate::api::refuse(error) })
    });
    let one = world.server_at("s1", any_port(), behind);
    let two = world.server("s2");
    let agent = world.agent("eu", &[("s1", one.address), ("s2", two.address)], echo());
    agent.connected(4).await;
    for method in [READ, WRITE] {
        assert_eq!(soon("call", ask(&agent, method)).await.unwrap(), "s2");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_server_a_call_fails_as_undelivered() {
    let mut world = World::new();
    world.settings.connect_wait = Duration::from_millis(100);
    let nobody = std::net::UdpSocket::bind(any_port()).unwrap();
    let agent = world.agent("eu", &[("s1", nobody.local_addr().unwrap())], echo());
    for method in [READ, WRITE, WATCH] {
        let fault = soon("failure", ask(&agent, method)).await.unwrap_err();
        assert!(fault.certainly_not_delivered(), "{fault}");
        assert_eq!(fault.grpc(), (14, "there is no connection available"));
    }
}
