//! Proxied bodies, failures on the way and repeated attempts.

use crate::world::{DEMO, World, plain, soon};
use bytes::Bytes;
use hanse_api::kinds::{PROJECTS, TENANT_STORES};
use hanse_gateway::Limits;
use hanse_runtime::shutdown::Phase;
use hanse_tunnel::{TunnelError, refuse};
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

fn lost() -> TunnelError {
    TunnelError::Lost {
        peer: "agent eu".into(),
        fault: "gone".into(),
    }
}

fn not_dialed() -> TunnelError {
    TunnelError::NotDialed {
        peer: "agent eu".into(),
        fault: "starting".into(),
    }
}

/// A body that the test feeds.
fn fed(world: &World) -> mpsc::Sender<Result<&'static str, TunnelError>> {
    let (sender, receiver) = mpsc::channel::<Result<&'static str, TunnelError>>(8);
    let receiver = parking_lot::Mutex::new(Some(receiver));
    world.agent.answer(move |_, _| {
        let mut receiver: mpsc::Receiver<Result<&'static str, TunnelError>> = receiver.lock().take().unwrap();
        let stream = futures::stream::poll_fn(move |cx| {
            receiver
                .poll_recv(cx)
                .map(|item| item.map(|item| item.map(|text| Frame::data(Bytes::from_static(text.as_bytes())))))
        });
        Response::new(BodyExt::boxed_unsync(StreamBody::new(stream)))
    });
    sender
}

#[tokio::test]
async fn chunks_pass_one_by_one_and_a_clean_end_stays_clean() {
    let world = World::start().await;
    let feed = fed(&world);
    let admin = world.admin();
    let response = admin
        .open(admin.request(
            "GET",
            &format!("{DEMO}/api/v1/namespaces/a/pods/p/log?follow=true"),
            &[],
            "",
        ))
        .await;
    let mut body = response.into_body();
    for text in ["one", "two"] {
        feed.send(Ok(text)).await.unwrap();
        let frame = soon(body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), text);
    }
    drop(feed);
    assert!(soon(body.frame()).await.is_none());
}

#[tokio::test]
async fn a_broken_stream_breaks_off() {
    let world = World::start().await;
    let feed = fed(&world);
    let admin = world.admin();
    let response = admin
        .open(admin.request(
            "GET",
            &format!("{DEMO}/api/v1/namespaces/a/pods/p/log?follow=true"),
            &[],
            "",
        ))
        .await;
    feed.send(Ok("one")).await.unwrap();
    feed.send(Err(lost())).await.unwrap();
    // No clean end: that would look as if the container had finished.
    assert!(soon(response.into_body().collect()).await.is_err());
}

#[tokio::test]
async fn bodies_go_out_as_they_came() {
    let world = World::start().await;
    let admin = world.admin();
    let large = "x".repeat(4 << 20);
    let path = format!("{DEMO}/api/v1/namespaces/a/configmaps");
    let request = admin.request(
        "POST",
        &path,
        &[("content-type", "application/vnd.kubernetes.protobuf")],
        large.clone(),
    );
    assert_eq!(admin.send(request).await.code, 200);
    let seen = world.agent.last();
    assert_eq!((seen.body.len(), seen.head.method.as_str()), (large.len(), "POST"));
    assert_eq!(seen.head.headers["content-type"], "application/vnd.kubernetes.protobuf");
    let h2 = admin.send_h2(admin.request("PUT", &path, &[], "small")).await;
    assert_eq!((h2.code.as_u16(), h2.text.as_str()), (200, "ok"));
    assert_eq!(world.agent.last().body, "small");
}

#[tokio::test]
async fn what_was_not_sent_is_sent_again() {
    let world = World::start().await;
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    world.agent.answer(move |_, _| {
        if counted.fetch_add(1, Ordering::SeqCst) < 2 {
            refuse(not_dialed())
        } else {
            plain(201, "made")
        }
    });
    let admin = world.admin();
    // The agent of this test reads bodies first, so only an empty one is untouched.
    let create = || admin.send(admin.request("POST", &format!("{DEMO}/api/v1/namespaces/a/pods"), &[], ""));
    let answer = create().await;
    assert_eq!((answer.code.as_u16(), tries.load(Ordering::SeqCst)), (201, 3));
    world.agent.answer(|_, _| refuse(not_dialed()));
    let answer = create().await;
    answer.fails(503);
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn what_may_have_been_carried_out_is_not_repeated_blindly() {
    let world = World::start().await;
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    world.agent.answer(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        refuse(lost())
    });
    let admin = world.admin();
    let answer = admin
        .send(admin.request("DELETE", &format!("{DEMO}/api/v1/namespaces/a/pods/p"), &[], ""))
        .await;
    answer.fails(504);
    assert!(!answer.headers.contains_key("retry-after"), "client-go would repeat it");
    assert_eq!(tries.swap(0, Ordering::SeqCst), 1);
    let answer = admin.get(&format!("{DEMO}/api/v1/namespaces/a/pods/p")).await;
    answer.fails(504);
    assert_eq!(tries.load(Ordering::SeqCst), 2, "a read is tried once more");
}

#[tokio::test]
async fn an_agent_that_is_away_is_said_so() {
    let world = World::start().await;
    world.hub.disconnect("eu");
    let answer = world.admin().get(&format!("{DEMO}/version")).await;
    let status = answer.fails(503);
    assert_eq!(answer.headers["retry-after"], "1");
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains("tenant cluster \"demo\"") && message.contains("eu"),
        "{message}"
    );
    world
        .put(
            &TENANT_STORES,
            "p-default",
            "demo",
            json!({ "tenant": "t", "cluster": "", "epoch": 0, "sealedPki": "" }),
        )
        .await;
    let status = world.admin().get(&format!("{DEMO}/version")).await.fails(503);
    assert!(status["message"].as_str().unwrap().contains("no host yet"));
}

#[tokio::test]
async fn short_requests_have_a_deadline_and_their_number_a_bound() {
    let limits = Limits {
        proxy_head: Duration::from_millis(50),
        requests: 2,
        streams: 1,
        ..Limits::default()
    };
    let world = World::with(|parts| parts.limits = limits).await;
    let admin = world.admin();
    world.agent.stalls.store(true, Ordering::SeqCst);
    let late = admin.get(&format!("{DEMO}/version")).await;
    late.fails(504);
    assert!(!late.headers.contains_key("retry-after"));
    world.agent.stalls.store(false, Ordering::SeqCst);
    // One long-running request has the only place.
    let feed = fed(&world);
    let logs = format!("{DEMO}/api/v1/namespaces/a/pods/p/log?follow=true");
    let first = admin.open(admin.request("GET", &logs, &[], "")).await;
    let refused = admin.get(&logs).await;
    refused.fails(429);
    assert_eq!(refused.headers["retry-after"], "1");
    drop((first, feed));
    world.agent.answer(|_, _| plain(200, "free"));
    soon(async {
        while admin.get(&logs).await.code != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn rights_that_end_break_streams_off_and_a_drain_ends_watches_cleanly() {
    let world = World::start().await;
    let member = json!({ "kind": "User", "name": "bob", "clusterRole": "loft-management-project-admin" });
    world
        .put(&PROJECTS, "", "default", json!({ "members": [member] }))
        .await;
    let bob = world.bob();
    let feed = fed(&world);
    let response = bob
        .open(bob.request("GET", &format!("{DEMO}/api/v1/pods?watch=1"), &[], ""))
        .await;
    feed.send(Ok("event\n")).await.unwrap();
    world.put(&PROJECTS, "", "default", json!({ "members": [] })).await;
    assert!(soon(response.into_body().collect()).await.is_err());
    let feed = fed(&world);
    let admin = world.admin();
    let response = admin
        .open(admin.request("GET", &format!("{DEMO}/api/v1/pods?watch=1"), &[], ""))
        .await;
    feed.send(Ok("event\n")).await.unwrap();
    let mut body = response.into_body();
    assert!(soon(body.frame()).await.unwrap().is_ok());
    world.supervisor.shutdown_token().begin(Phase::Drain);
    assert!(soon(body.frame()).await.is_none(), "a clean end");
}

/// The agent goes while an answer is under way in a test of its own would need a network; here its body fails.
#[tokio::test]
async fn head_requests_and_empty_answers() {
    let world = World::start().await;
    world.agent.answer(|_, _| plain(204, ""));
    let admin = world.admin();
    let answer = admin
        .send(admin.request("HEAD", &format!("{DEMO}/api/v1/namespaces/a"), &[], ""))
        .await;
    assert_eq!((answer.code.as_u16(), answer.text.as_str()), (204, ""));
}
