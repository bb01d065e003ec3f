//! Requests, bodies, switches, aborts.

use super::*;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

const MIB: usize = 1 << 20;

/// Megabytes of zeros; counts what was taken out.
fn megabytes(count: u64, taken: Arc<AtomicU64>) -> Body {
    let chunks = futures::stream::unfold(0, move |n| {
        let taken = Arc::clone(&taken);
        async move {
            taken.fetch_add(u64::from(n < count), Ordering::Relaxed);
            (n < count).then(|| (Ok(Frame::data(Bytes::from(vec![0; MIB]))), n + 1))
        }
    });
    StreamBody::new(chunks).boxed_unsync()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_through_with_bodies_and_trailers() {
    let world = World::new();
    let server = world.server("s1");
    let handler: Handler = Box::new(|head, body| {
        Box::pin(async move {
            let got = body.collect().await.unwrap();
            let mut trailers = got.trailers().cloned().unwrap_or_default();
            trailers.insert("seen", head.request_id.parse().unwrap());
            let body = full_body(got.to_bytes()).with_trailers(async { Some(Ok(trailers)) });
            Response::builder()
                .status(202)
                .header("x", "y")
                .body(body.boxed_unsync())
                .unwrap()
        })
    });
    let agent = world.agent("eu", &[("s1", server.address)], handler);
    server.agents(&["eu"]).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("sent", "1".parse().unwrap());
    let body = full_body(vec![5; 3 * MIB])
        .with_trailers(async { Some(Ok(trailers)) })
        .boxed_unsync();
    let head = RequestHead {
        method: Method::POST,
        ..request("/api/v1/pods?dryRun=All")
    };
    let response = soon("answer", server.hub.request("eu", head, body)).await.unwrap();
    assert_eq!(response.status(), 202);
    assert_eq!(response.headers()["x"], "y");
    let got = soon("body", response.into_body().collect()).await.unwrap();
    let trailers = got.trailers().unwrap();
    assert_eq!(
        (&trailers["sent"], &trailers["seen"]),
        (&"1".parse().unwrap(), &"r-1".parse().unwrap())
    );
    assert_eq!(got.to_bytes().len(), 3 * MIB);
    let info = server.hub.sessions().remove(0);
    assert_eq!((info.version.as_str(), info.cluster.as_str()), ("v-agent", "eu"));
    assert!(agent.dialer.connections().iter().all(|c| c.version == "v-test"));
    let unknown = server.hub.request("us", request("/"), empty_body()).await.unwrap_err();
    assert!(matches!(unknown, TunnelError::NotConnected { .. }) && unknown.certainly_not_delivered());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_back_its_own_stream_only() {
    let world = World::new();
    let server = world.server("s1");
    let taken = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&taken);
    let handler: Handler = Box::new(move |head, _| {
        let body = if head.path_and_query == "/big" {
            megabytes(64, Arc::clone(&counted))
        } else {
            full_body("small")
        };
        Box::pin(async move { Response::new(body) })
    });
    let _agent = world.agent("eu", &[("s1", server.address)], handler);
    server.agents(&["eu"]).await;
    let mut big = soon("head", server.hub.request("eu", request("/big"), empty_body()))
        .await
        .unwrap()
        .into_body();
    let mut got = big.frame().await.unwrap().unwrap().into_data().unwrap().len();
    // Others go on while nobody reads the big one.
    for _ in 0..50 {
        let small = soon("small", server.hub.request("eu", request("/small"), empty_body()))
            .await
            .unwrap();
        assert_eq!(
            soon("small body", small.into_body().collect())
                .await
                .unwrap()
                .to_bytes(),
            "small"
        );
    }
    let ahead = taken.load(Ordering::Relaxed);
    assert!(ahead < 40, "{ahead} MiB were sent to somebody who does not read");
    while let Some(frame) = soon("rest", big.frame()).await {
        got += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(got, 64 * MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_stream_too() {
    let world = World::new();
    let server = world.server("s1");
    let _agent = world.agent("eu", &[("s1", server.address)], echo());
    server.agents(&["eu"]).await;
    let body = megabytes(10, Arc::default());
    let response = soon("answer", server.hub.request("eu", request("/up"), body))
        .await
        .unwrap();
    assert_eq!(response.headers()["what"], format!("GET /up {}", 10 * MIB).as_str());
    assert_eq!(
        soon("body", response.into_body().collect())
            .await
            .unwrap()
            .to_bytes()
            .len(),
        10 * MIB
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switched_connections_carry_both_ways_and_half_close() {
    let world = World::new();
    let server = world.server("s1");
    let _agent = world.agent("eu", &[("s1", server.address)], echo());
    server.agents(&["eu"]).await;
    let refused = soon("refusal", server.hub.upgrade("eu", request("/other")))
        .await
        .unwrap();
    let Upgraded::Answered(refused) = refused else {
        panic!("switched")
    };
    assert_eq!(refused.status(), 403);
    assert_eq!(
        soon("text", refused.into_body().collect()).await.unwrap().to_bytes(),
        "no"
    );
    let switched = soon("switch", server.hub.upgrade("eu", request("/switch")))
        .await
        .unwrap();
    let Upgraded::Switched { response, io } = switched else {
        panic!("not switched")
    };
    assert_eq!(response.headers()["upgrade"], "echo");
    let (mut read, mut write) = tokio::io::split(io);
    let sent = vec![9; MIB];
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut heard = Vec::new();
    soon("echo", read.read_to_end(&mut heard)).await.unwrap();
    assert!(heard == expected);
    writing.await.unwrap();
}

/// Says when it is dropped.
struct Tell(String, mpsc::Sender<String>);

impl Drop for Tell {
    fn drop(&mut self) {
        self.1.try_send(format!("ended {}", self.0)).unwrap();
    }
}

/// Answers `/never` never, `/hang` with a body that does not end, and `/break` with one that breaks off when told to.
fn breaking(told: mpsc::Sender<String>, when: Arc<Notify>) -> Handler {
    Box::new(move |head, _| {
        let when = Arc::clone(&when);
        let path = head.path_and_query.to_string();
        told.try_send(format!("began {path}")).unwrap();
        let tell = Tell(path.clone(), told.clone());
        Box::pin(async move {
            if path == "/never" {
                let _tell = tell;
                return std::future::pending().await;
            }
            let breaks = path == "/break";
            let frames = futures::stream::unfold((tell, 0), move |(tell, n)| {
                let when = Arc::clone(&when);
                async move {
                    match n {
                        0 => Some((Ok(Frame::data(Bytes::from_static(b"some"))), (tell, 1))),
                        1 if breaks => {
                            when.notified().await;
                            Some((Err(TunnelError::Body("broke".into())), (tell, 2)))
                        }
                        _ => std::future::pending().await,
                    }
                }
            });
            Response::new(StreamBody::new(frames).boxed_unsync())
        })
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborts_and_cancels_are_seen_by_the_other_end() {
    let world = World::new();
    let server = world.server("s1");
    let (told, mut events) = mpsc::channel(4096);
    // A reset may overtake what was sent before it: break only after that was read.
    let now = Arc::new(Notify::new());
    let when = Arc::clone(&now);
    let handler = breaking(told, when);
    let _agent = world.agent("eu", &[("s1", server.address)], handler);
    server.agents(&["eu"]).await;
    let mut expect = async |want: &str| assert_eq!(soon(want, events.recv()).await.unwrap(), want);
    // The upstream breaks in the middle: no clean end.
    let mut body = soon("head", server.hub.request("eu", request("/break"), empty_body()))
        .await
        .unwrap()
        .into_body();
    body.frame().await.unwrap().unwrap();
    now.notify_one();
    let whole = async {
        while body.frame().await.transpose()?.is_some() {}
        Ok::<_, TunnelError>(())
    };
    let outcome = soon("end", whole).await;
    assert!(matches!(outcome, Err(TunnelError::UpstreamReset { .. })), "{outcome:?}");
    expect("began /break").await;
    expect("ended /break").await;
    // The reader goes away in the middle.
    let mut body = soon("head", server.hub.request("eu", request("/hang"), empty_body()))
        .await
        .unwrap()
        .into_body();
    body.frame().await.unwrap().unwrap();
    expect("began /hang").await;
    drop(body);
    expect("ended /hang").await;
    // The caller goes away before there is an answer.
    let hub = server.hub.clone();
    let asking = tokio::spawn(async move { hub.request("eu", request("/never"), empty_body()).await.is_ok() });
    expect("began /never").await;
    asking.abort();
    expect("ended /never").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_does_not_fit_is_refused_before_it_is_sent() {
    let world = World::new();
    let server = world.server("s1");
    let _agent = world.agent("eu", &[("s1", server.address)], echo());
    server.agents(&["eu"]).await;
    let big = RequestHead {
        assertion: vec![0; 2 * MIB],
        ..request("/")
    };
    let fault = server.hub.request("eu", big, empty_body()).await.unwrap_err();
    assert!(matches!(fault, TunnelError::TooLarge { .. }), "{fault}");
}
