//! Requests whose ends two readers could see in different places, written byte by byte to a real gateway: they are refused and
//! the connection ends, or the agent gets one request with just the body that was meant.

use crate::world::{DEMO, World, soon};
use hanse_gateway::access_key;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Most bytes that an answer of these tests has.
const ANSWER_MAX: usize = 1 << 20;

/// Writes bytes to a connection of its own and reads until it ends, or until `enough` answers have begun.
async fn raw(world: &World, bytes: &[u8], enough: usize) -> String {
    let mut stream = world.admin().tls(b"http/1.1").await;
    // A gateway that has refused may have gone already.
    let written = stream.write_all(bytes).await.and(stream.flush().await);
    let (mut text, mut part) = (Vec::new(), [0; 4096]);
    let heads = |text: &[u8]| String::from_utf8_lossy(text).matches("HTTP/1.1 ").count();
    while heads(&text) < enough && text.len() < ANSWER_MAX {
        match soon(stream.read(&mut part)).await {
            Ok(0) | Err(_) => break,
            Ok(n) => text.extend_from_slice(&part[..n]),
        }
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(written.is_ok() || !text.is_empty(), "{written:?}");
    text
}

/// A request of the administrator with these lines after the usual ones.
fn post(lines: &str, body: &str) -> String {
    let key = access_key("admin", "admin-secret");
    format!(
        "POST {DEMO}/api/v1/namespaces HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n{lines}\r\n\r\n{body}"
    )
}

/// Ends that readers differ about: refused, and nothing of it, nor what comes after it, goes anywhere.
#[tokio::test]
async fn requests_with_two_ends_go_nowhere() {
    let world = World::start().await;
    let second = format!("GET {DEMO}/smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n");
    for lines in [
        "Content-Length: 0\r\nContent-Length: 5",
        "Content-Length: 5, 0",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Content-Length : 5",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding:\r\n chunked",
        "X: y\r\n folded",
        "X: a\rTransfer-Encoding: chunked",
        "X\0: y",
        "X: a\0b",
        " X: y",
        ": y",
    ] {
        let answer = raw(&world, post(lines, &second).as_bytes(), 2).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{lines:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{lines:?}: {answer}");
        assert_eq!(world.agent.count(), 0, "{lines:?}");
    }
}

/// A length beside chunks (RFC 9112, 6.3): refused, or the chunks alone count and the length goes no further.
#[tokio::test]
async fn a_length_beside_chunks_does_not_count() {
    let world = World::start().await;
    for lines in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
    ] {
        let before = world.agent.count();
        let answer = raw(&world, post(lines, "3\r\nabc\r\n0\r\n\r\n").as_bytes(), 1).await;
        if answer.starts_with("HTTP/1.1 400") {
            assert_eq!(world.agent.count(), before, "{lines:?}");
            continue;
        }
        assert!(answer.starts_with("HTTP/1.1 200"), "{lines:?}: {answer}");
        let seen = world.agent.last();
        assert_eq!(world.agent.count(), before + 1);
        for name in ["content-length", "transfer-encoding"] {
            let header = seen.head.headers.get(name);
            assert!(header.is_none_or(|value| value == "3"), "{lines:?}: {name}: {header:?}");
        }
    }
}

/// Chunks that are none end the request as broken: it is never carried out with half a body, nor is what follows read anew.
#[tokio::test]
async fn broken_chunks_end_the_connection() {
    let world = World::start().await;
    let second = format!("GET {DEMO}/smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n");
    for body in [
        "zz\r\nabc\r\n",
        "-1\r\n\r\n",
        "fffffffffffffffff\r\nabc\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3 3\r\nabc\r\n",
    ] {
        let bytes = post("Transfer-Encoding: chunked", &format!("{body}{second}"));
        let answer = raw(&world, bytes.as_bytes(), 2).await;
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{body:?}: {answer}");
        if world.agent.count() > 0 {
            assert!(
                !world.agent.last().head.path_and_query.as_str().contains("smuggled"),
                "{body:?}"
            );
        }
    }
}

/// Targets and first lines that name another place than the path.
#[tokio::test]
async fn odd_first_lines_go_nowhere() {
    let world = World::start().await;
    let key = access_key("admin", "admin-secret");
    for first in [
        "CONNECT 127.0.0.1:22 HTTP/1.1",
        &format!("GET {DEMO}/version HTTP/2.0"),
        &format!("GET {DEMO}/version HTTP/0.9"),
        &format!("GET  {DEMO}/version HTTP/1.1"),
        &format!("GET {DEMO}/ver sion HTTP/1.1"),
        &format!("GE\tT {DEMO}/version HTTP/1.1"),
        "PRI * HTTP/2.0",
        "OPTIONS * HTTP/1.1",
    ] {
        let bytes = format!("{first}\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n\r\n");
        let answer = raw(&world, bytes.as_bytes(), 1).await;
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 505");
        assert!(refused, "{first}: {answer}");
        assert_eq!(world.agent.count(), 0, "{first}");
    }
    // Another host in the target changes nothing: where a request goes is in its path.
    let bytes = format!(
        "GET https://evil.example{DEMO}/version HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\n\r\n"
    );
    let answer = raw(&world, bytes.as_bytes(), 1).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
    if world.agent.count() == 1 {
        assert_eq!(world.agent.last().head.path_and_query, "/version");
    }
}

/// HTTP/2 without TLS's word for it: asked for in a header it is not granted, and spoken anyway it is no request.
#[tokio::test]
async fn http_2_comes_by_alpn_only() {
    let world = World::start().await;
    let key = access_key("admin", "admin-secret");
    for path in [DEMO, "/kubernetes/management/version", "/healthz"] {
        let bytes = format!(
            "GET {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n\r\n"
        );
        let answer = raw(&world, bytes.as_bytes(), 1).await;
        assert!(
            !answer.is_empty() && !answer.starts_with("HTTP/1.1 101"),
            "{path}: {answer}"
        );
    }
    let answer = raw(&world, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", 1).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 505"),
        "{answer}"
    );
    assert_eq!(world.agent.count(), 0);
}
