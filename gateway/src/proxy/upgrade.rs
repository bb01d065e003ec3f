//! Which requests ask for a protocol upgrade, and whether an upstream really granted it.
//!
//! Recognising is wide (anything that smells of an upgrade counts), accepting is narrow: exactly one of two protocols, over
//! HTTP/1.1, by exact tokens. What lies between is refused, because two parsers might read it in two ways.

use http::header::{CONNECTION, HeaderMap, UPGRADE};
use http::{StatusCode, Version};

/// A protocol that the gateway hands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// RFC 6455.
    Websocket,
    /// What kubectl spoke before.
    Spdy,
}

impl Protocol {
    /// The token of the `Upgrade` header.
    pub(crate) const fn token(self) -> &'static str {
        match self {
            Self::Websocket => "websocket",
            Self::Spdy => "SPDY/3.1",
        }
    }

    fn of(token: &str) -> Option<Self> {
        [Self::Websocket, Self::Spdy]
            .into_iter()
            .find(|p| p.token().eq_ignore_ascii_case(token))
    }
}

/// Tokens that a `Connection` header may hold. Any other is an attempt to have a header of the outgoing request removed.
const CONNECTION_TOKENS: [&str; 5] = ["close", "keep-alive", "upgrade", "te", "http2-settings"];

/// Reads what upgrade a request asks for. `Err` says why the request is refused.
pub(crate) fn wanted(headers: &HeaderMap, version: Version) -> Result<Option<Protocol>, String> {
    let connection = tokens(headers, &CONNECTION)?;
    if let Some(odd) = connection.iter().find(|t| !CONNECTION_TOKENS.contains(&t.as_str())) {
        return Err(format!(
            "the Connection header names {odd:?}; only {} are accepted",
            CONNECTION_TOKENS.join(", ")
        ));
    }
    let asked = connection.iter().any(|t| t == "upgrade");
    let protocols = tokens(headers, &UPGRADE)?;
    match (asked, protocols.as_slice()) {
        (false, []) => Ok(None),
        (true, [one]) if version == Version::HTTP_11 => Protocol::of(one)
            .map(Some)
            .ok_or_else(|| format!("upgrade to {one:?} is not supported; use websocket or SPDY/3.1")),
        (true, [_]) => Err("Upgrade request required over HTTP/1.1".to_owned()),
        (true, []) => Err("Connection asks for an upgrade but there is no Upgrade header".to_owned()),
        (false, _) => Err("an Upgrade header without Connection: Upgrade".to_owned()),
        (true, _) => Err("more than one protocol in the Upgrade header".to_owned()),
    }
}

/// Whether `status` and `headers` grant exactly `protocol`.
pub(crate) fn granted(status: StatusCode, headers: &HeaderMap, protocol: Protocol) -> bool {
    let one_of =
        |name, token: &str| tokens(headers, name).is_ok_and(|t| t.iter().any(|x| x.eq_ignore_ascii_case(token)));
    let protocols = tokens(headers, &UPGRADE).unwrap_or_default();
    status == StatusCode::SWITCHING_PROTOCOLS
        && one_of(&CONNECTION, "upgrade")
        && matches!(protocols.as_slice(), [one] if Protocol::of(one) == Some(protocol))
}

fn tokens(headers: &HeaderMap, name: &http::HeaderName) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for value in headers.get_all(name) {
        let text = value.to_str().map_err(|_| format!("the {name} header is not ASCII"))?;
        all.extend(
            text.split(',')
                .map(|t| t.trim().to_ascii_lowercase())
                .filter(|t| !t.is_empty()),
        );
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn what_is_asked() {
        let ask = |pairs: &[(&'static str, &'static str)]| wanted(&headers(pairs), Version::HTTP_11);
        assert_eq!(ask(&[]), Ok(None));
        assert_eq!(ask(&[("connection", "keep-alive")]), Ok(None));
        assert_eq!(
            ask(&[("connection", "Upgrade"), ("upgrade", "websocket")]),
            Ok(Some(Protocol::Websocket))
        );
        assert_eq!(
            ask(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]),
            Ok(Some(Protocol::Websocket))
        );
        assert_eq!(
            ask(&[("connection", "upgrade"), ("upgrade", "SPDY/3.1")]),
            Ok(Some(Protocol::Spdy))
        );
        for bad in [
            &[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")][..],
            &[("connection", "Upgrade"), ("upgrade", "websocket, h2c")],
            &[
                ("connection", "Upgrade"),
                ("upgrade", "websocket"),
                ("upgrade", "SPDY/3.1"),
            ],
            &[("connection", "Upgrade")],
            &[("upgrade", "websocket")],
            &[("connection", "xupgradex"), ("upgrade", "websocket")],
            &[("connection", "close, Impersonate-User")],
            &[("connection", "Authorization")],
        ] {
            assert!(ask(bad).is_err(), "{bad:?}");
        }
        let h2 = wanted(
            &headers(&[("connection", "Upgrade"), ("upgrade", "websocket")]),
            Version::HTTP_2,
        );
        assert!(h2.unwrap_err().contains("HTTP/1.1"));
    }

    #[test]
    fn only_an_exact_101_grants() {
        let good = headers(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert!(granted(StatusCode::SWITCHING_PROTOCOLS, &good, Protocol::Websocket));
        assert!(!granted(StatusCode::SWITCHING_PROTOCOLS, &good, Protocol::Spdy));
        assert!(!granted(StatusCode::OK, &good, Protocol::Websocket));
        assert!(!granted(
            StatusCode::SWITCHING_PROTOCOLS,
            &headers(&[("upgrade", "websocket")]),
            Protocol::Websocket
        ));
        assert!(!granted(
            StatusCode::SWITCHING_PROTOCOLS,
            &HeaderMap::new(),
            Protocol::Websocket
        ));
    }
}
