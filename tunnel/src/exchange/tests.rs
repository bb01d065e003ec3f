use super::{client, server};
use crate::api::{Body, Upgraded, empty_body, full_body, refuse};
use crate::code::Code;
use crate::error::TunnelError;
use crate::frame::{self, Kind};
use crate::memory::{MemoryRecv, MemorySend, streams};
use crate::stream::SendHalf;
use crate::wire::{RequestHead, Target};
use bytes::{Bytes, BytesMut};
use hanse_runtime::clock::SystemClock;
use hanse_runtime::supervisor::Supervisor;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

fn head(upgrade: bool) -> BytesMut {
    let mut out = BytesMut::new();
    let head = RequestHead {
        request_id: "r".into(),
        target: Target::Cluster,
        assertion: vec![],
        method: Method::POST,
        path_and_query: "/x".parse().unwrap(),
        headers: HeaderMap::new(),
        upgrade,
    };
    head.put(&mut out).unwrap();
    out
}

/// A body that the test feeds.
fn fed_body() -> (mpsc::Sender<Result<Frame<Bytes>, TunnelError>>, Body) {
    let (feed, fed) = mpsc::channel(1);
    let stream = futures::stream::unfold(fed, |mut fed| async move { Some((fed.recv().await?, fed)) });
    (feed, StreamBody::new(stream).boxed_unsync())
}

fn data(text: &'static str) -> Result<Frame<Bytes>, TunnelError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

async fn answer<F, A>(streams: (MemorySend, MemoryRecv), handler: F) -> Result<(), TunnelError>
where
    F: FnOnce(Body) -> A,
    A: Future<Output = Response<Body>>,
{
    let (_, exchange) = server::accept(streams, "client").await?;
    exchange.answer(handler).await
}

#[tokio::test]
async fn bodies_and_trailers_go_both_ways() {
    let (ours, theirs) = streams();
    let supervisor = Supervisor::default();
    let serving = answer(theirs, |body| async {
        let got = body.collect().await.unwrap();
        assert_eq!(got.trailers().unwrap()["t"], "1");
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let body = full_body(got.to_bytes())
            .with_trailers(async { Some(Ok(trailers)) })
            .boxed_unsync();
        Response::builder().status(201).header("a", "b").body(body).unwrap()
    });
    let asking = async {
        let mut trailers = HeaderMap::new();
        trailers.insert("t", HeaderValue::from_static("1"));
        let big = Bytes::from(vec![7; 300_000]);
        let body = full_body(big.clone())
            .with_trailers(async { Some(Ok(trailers)) })
            .boxed_unsync();
        let response = client::call(ours, "server", head(false), body, &supervisor)
            .await
            .unwrap();
        assert_eq!(
            (response.status(), &response.headers()["a"]),
            (StatusCode::CREATED, &HeaderValue::from_static("b"))
        );
        let got = response.into_body().collect().await.unwrap();
        assert_eq!(got.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(got.to_bytes(), big);
    };
    let (served, ()) = tokio::join!(serving, asking);
    served.unwrap();
}

#[tokio::test]
async fn the_answer_may_begin_and_end_while_the_request_goes_on() {
    let (ours, theirs) = streams();
    let supervisor = Supervisor::default();
    let (feed, body) = fed_body();
    let serving = tokio::spawn(answer(theirs, |mut body| async move {
        let echo = async_echo(&mut body).await;
        Response::new(full_body(echo))
    }));
    feed.send(data("first")).await.unwrap();
    let response = client::call(ours, "server", head(false), body, &supervisor)
        .await
        .unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "first");
    serving.await.unwrap().unwrap();
    // Nobody holds the answer any more, so nobody goes on uploading.
    feed.closed().await;
}

async fn async_echo(body: &mut Body) -> Bytes {
    body.frame().await.unwrap().unwrap().into_data().unwrap()
}

#[tokio::test]
async fn each_failure_reaches_the_other_end_by_its_class() {
    let supervisor = Supervisor::default();
    let refusals: [(fn() -> TunnelError, bool); 4] = [
        (
            || TunnelError::NotDialed {
                peer: "x".into(),
                fault: "refused".into(),
            },
            true,
        ),
        (
            || TunnelError::PolicyDenied {
                peer: "x".into(),
                fault: "no".into(),
            },
            true,
        ),
        (|| TunnelError::Deadline { what: "x".into() }, false),
        (|| TunnelError::UpstreamReset { peer: "x".into() }, false),
    ];
    for (error, undelivered) in refusals {
        let (ours, theirs) = streams();
        let serving = answer(theirs, |_body| async { refuse(error()) });
        let asking = client::call(ours, "server", head(false), empty_body(), &supervisor);
        let (served, asked) = tokio::join!(serving, asking);
        assert!(served.is_err());
        let got = asked.unwrap_err();
        assert_eq!(std::mem::discriminant(&got), std::mem::discriminant(&error()), "{got}");
        assert_eq!(got.certainly_not_delivered(), undelivered);
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_and_not_an_end() {
    let supervisor = Supervisor::default();
    let (ours, theirs) = streams();
    let (feed, body) = fed_body();
    let serving = tokio::spawn(answer(theirs, |_body| async { Response::new(body) }));
    let response = client::call(ours, "server", head(false), empty_body(), &supervisor)
        .await
        .unwrap();
    let mut body = response.into_body();
    feed.send(data("some")).await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "some");
    feed.send(Err(TunnelError::Body("pipe broke".into()))).await.unwrap();
    let fault = body.frame().await.unwrap().unwrap_err();
    assert!(matches!(fault, TunnelError::UpstreamReset { .. }), "{fault}");
    assert!(body.frame().await.is_none());
    assert!(serving.await.unwrap().is_err());
}

#[tokio::test]
async fn giving_up_is_seen_by_the_handler_at_every_stage() {
    let supervisor = Supervisor::default();
    let dropped = || {
        let (alive, gone) = mpsc::channel::<()>(1);
        (alive, gone)
    };
    // Before the head of the answer.
    let (ours, theirs) = streams();
    let (alive, mut gone) = dropped();
    let serving = tokio::spawn(answer(theirs, |_body| async move {
        let _alive = alive;
        std::future::pending().await
    }));
    {
        let asking = client::call(ours, "server", head(false), empty_body(), &supervisor);
        tokio::pin!(asking);
        tokio::select! {
            _never = &mut asking => panic!("there is no answer"),
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(gone.recv().await.is_none());
    assert!(matches!(
        serving.await.unwrap().unwrap_err(),
        TunnelError::Cancelled { .. }
    ));
    // In the middle of the body of the answer.
    let (ours, theirs) = streams();
    let (feed, body) = fed_body();
    let serving = tokio::spawn(answer(theirs, |_body| async { Response::new(body) }));
    let response = client::call(ours, "server", head(false), empty_body(), &supervisor)
        .await
        .unwrap();
    feed.send(data("x")).await.unwrap();
    drop(response);
    feed.closed().await;
    assert!(matches!(
        serving.await.unwrap().unwrap_err(),
        TunnelError::Cancelled { .. }
    ));
}

#[tokio::test]
async fn heads_over_the_limit_are_refused_at_both_ends() {
    let supervisor = Supervisor::default();
    // A server that does not know its own limits.
    let (ours, mut theirs) = streams();
    let mut wire = vec![Kind::ResponseHead as u8, 0, 0x20, 0, 0];
    wire.extend_from_slice(&[0; 100]);
    theirs.0.write_all(&wire).await.unwrap();
    let fault = client::call(ours, "server", head(false), empty_body(), &supervisor)
        .await
        .unwrap_err();
    assert!(
        matches!(
            fault,
            TunnelError::TooLarge {
                limit: frame::HEAD_MAX,
                ..
            }
        ),
        "{fault}"
    );
    // A client that does not know them.
    let (mut ours, theirs) = streams();
    ours.0
        .write_all(&[Kind::RequestHead as u8, 0, 0x20, 0, 0])
        .await
        .unwrap();
    assert!(matches!(
        server::accept(theirs, "client").await,
        Err(TunnelError::TooLarge { .. })
    ));
    let told = ours.0.stopped().await;
    assert_eq!(told, crate::stream::StreamFault::Stopped(Code::TooLarge));
    // A handler whose headers do not fit.
    let (ours, theirs) = streams();
    let serving = answer(theirs, |_body| async {
        Response::builder()
            .header("x", "y".repeat(frame::HEAD_MAX))
            .body(empty_body())
            .unwrap()
    });
    let (served, asked) = tokio::join!(
        serving,
        client::call(ours, "server", head(false), empty_body(), &supervisor)
    );
    assert!(matches!(served, Err(TunnelError::TooLarge { .. })));
    assert!(matches!(asked, Err(TunnelError::TooLarge { .. })));
}

#[tokio::test]
async fn a_switch_is_raw_and_half_closes_both_ways() {
    let (ours, theirs) = streams();
    let (upstream, mut far) = tokio::io::duplex(64);
    let clock = Arc::new(SystemClock::new());
    let serving = tokio::spawn(async move {
        let (_, exchange) = server::accept(theirs, "client").await?;
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let io = crate::api::TunnelIo::new(upstream);
        exchange
            .answer_upgrade(&*clock, async { Upgraded::Switched { response, io } })
            .await
    });
    let Upgraded::Switched { response, mut io } = client::upgrade(ours, "server", head(true)).await.unwrap() else {
        panic!("not switched")
    };
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    far.write_all(b"banner").await.unwrap();
    let mut six = [0; 6];
    io.read_exact(&mut six).await.unwrap();
    assert_eq!(&six, b"banner");
    io.write_all(b"last words").await.unwrap();
    io.shutdown().await.unwrap();
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"last words");
    far.write_all(b"answer after the half-close").await.unwrap();
    far.shutdown().await.unwrap();
    let mut heard = Vec::new();
    io.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"answer after the half-close");
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_switch_that_is_refused_is_an_ordinary_answer() {
    let (ours, theirs) = streams();
    let serving = tokio::spawn(async move {
        let (_, exchange) = server::accept(theirs, "client").await?;
        let response = Response::builder().status(403).body(full_body("no")).unwrap();
        exchange
            .answer_upgrade(&SystemClock::new(), async { Upgraded::Answered(response) })
            .await
    });
    let Upgraded::Answered(response) = client::upgrade(ours, "server", head(true)).await.unwrap() else {
        panic!("switched")
    };
    assert_eq!(response.status(), 403);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "no");
    serving.await.unwrap().unwrap();
    // And an answer that claims to have switched, where nobody asked, is not passed on.
    let (ours, theirs) = streams();
    let supervisor = Supervisor::default();
    let serving = answer(theirs, |_body| async {
        Response::builder().status(101).body(empty_body()).unwrap()
    });
    let (served, asked) = tokio::join!(
        serving,
        client::call(ours, "server", head(false), empty_body(), &supervisor)
    );
    assert!(served.is_err() && asked.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_of_a_peer_make_either_end_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0u8..16) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut framed = BytesMut::new();
            framed.extend_from_slice(&[kind, 0, 0, 0, u8::try_from(bytes.len().min(255)).unwrap()]);
            framed.extend_from_slice(&bytes);
            for wire in [bytes.clone(), framed.to_vec()] {
                let supervisor = Supervisor::default();
                let (ours, mut theirs) = streams();
                theirs.0.write_all(&wire).await.unwrap();
                theirs.0.shutdown().await.unwrap();
                if let Ok(response) = client::call(ours, "p", head(false), empty_body(), &supervisor).await {
                    let _outcome = response.into_body().collect().await.is_ok();
                }
                let (mut ours, theirs) = streams();
                ours.0.write_all(&wire).await.unwrap();
                ours.0.shutdown().await.unwrap();
                let _outcome = answer(theirs, |body| async {
                    let whole = body.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
                    Response::new(full_body(whole))
                }).await.is_ok();
            }
        });
    }
}
