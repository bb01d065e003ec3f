//! Which exchanges may be repeated. Pure: it sees a method and an outcome and says yes or no.

use super::http::{Call, Fault, Http, Reply};
use ::http::{Method, StatusCode};
use hanse_runtime::backoff::Backoff;
use hanse_runtime::rng::SystemRng;
use std::time::Duration;

/// How long a command bears faults that pass: longer than a region's fail-over takes.
pub(crate) const BUDGET: Duration = Duration::from_secs(8);

/// Whether the exchange may be made again without the risk of doing something twice.
pub(crate) fn may_repeat(method: &Method, outcome: &Result<Reply, Fault>) -> bool {
    // A repeated DELETE finds nothing to do.
    let harmless = matches!(*method, Method::GET | Method::HEAD | Method::DELETE);
    match outcome {
        Err(fault) => fault.stage.passing() && (harmless || fault.stage.before_request()),
        Ok(reply) => match reply.status {
            StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::GATEWAY_TIMEOUT => harmless || had_no_effect(reply),
            _ => false,
        },
    }
}

/// The server sets this detail only where the request certainly had no effect.
fn had_no_effect(reply: &Reply) -> bool {
    serde_json::from_slice::<serde_json::Value>(&reply.body)
        .is_ok_and(|status| status.pointer("/details/retryAfterSeconds").is_some())
}

/// Makes the exchange, again and again while that is safe and the budget lasts. The flag says whether it was repeated.
pub(crate) async fn send(http: &Http, call: &Call) -> (Result<Reply, Fault>, bool) {
    let clock = http.clock();
    let end = clock.mono() + BUDGET;
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        let outcome = http.once(call).await;
        if !may_repeat(&call.method, &outcome) || clock.mono() >= end {
            return (outcome, backoff.tries() > 0);
        }
        clock.sleep(backoff.next(&SystemRng)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::http::Stage;
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_create_is_repeated_only_when_it_had_no_effect() {
        let fault = |stage| {
            Err(Fault {
                stage,
                why: String::new(),
            })
        };
        let reply = |status: u16, body: &'static str| {
            Ok(Reply {
                status: StatusCode::from_u16(status).unwrap(),
                body: Bytes::from_static(body.as_bytes()),
            })
        };
        let no_effect = r#"{"details":{"retryAfterSeconds":1}}"#;
        for (outcome, get, post) in [
            (fault(Stage::Refused), false, false),
            (fault(Stage::Untrusted), false, false),
            (fault(Stage::Connect), true, true),
            (fault(Stage::Handshake), true, true),
            (fault(Stage::Exchange), true, false),
            (reply(200, ""), false, false),
            (reply(404, ""), false, false),
            (reply(409, ""), false, false),
            (reply(500, ""), false, false),
            (reply(503, ""), true, false),
            (reply(503, no_effect), true, true),
            (reply(429, no_effect), true, true),
        ] {
            assert_eq!(may_repeat(&Method::GET, &outcome), get, "GET {outcome:?}");
            assert_eq!(may_repeat(&Method::DELETE, &outcome), get, "DELETE {outcome:?}");
            assert_eq!(may_repeat(&Method::POST, &outcome), post, "POST {outcome:?}");
        }
    }
}
