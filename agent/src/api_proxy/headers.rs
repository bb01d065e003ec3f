//! Header maps of proxied requests and answers, built anew.
//!
//! The gateway passes on an allow-list; this end drops again what must never reach an API server from outside, and adds
//! the caller's identity last, so that nothing in the request can take it away (Kubernetes user impersonation).

use hanse_api::access::Principal;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, SEC_WEBSOCKET_PROTOCOL, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt::Write as _;
use std::net::IpAddr;

/// Headers about one hop, or that carry credentials or addresses; dropped by name.
const DROPPED: [&str; 16] = [
    "authorization",
    "connection",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-forwarded-for",
    "x-real-ip",
    "x-user",
];
/// Dropped by the start of their names.
const DROPPED_PREFIXES: [&str; 5] = ["impersonate-", "proxy-", "x-remote-", "x-forwarded-", "x-hanse-"];
/// A browser's token travels as a subprotocol of this form; it is for the gateway only.
const BEARER_PROTOCOL: &str = "base64url.bearer.";
/// Longest key of an extra attribute.
const EXTRA_KEY_MAX: usize = 256;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Why a request cannot be passed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// An attribute of the caller cannot be a header.
    #[error("the caller's {attribute} cannot be passed on: it holds characters that a header must not have")]
    Identity {
        /// Which attribute.
        attribute: &'static str,
    },
    /// The length is no number, or there are several.
    #[error("the Content-Length of the request is malformed")]
    Length,
    /// The protocol to switch to is missing or not one that Kubernetes uses.
    #[error("only the protocols SPDY/3.1 and websocket can be switched to")]
    Protocol,
}

impl ForwardError {
    /// Whether the same request may succeed later.
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Identity { .. } | Self::Length | Self::Protocol => false,
        }
    }
}

/// The headers of the request to the API server: what `from` may say, and who `principal` is.
pub fn request_headers(from: &HeaderMap, principal: &Principal) -> Result<HeaderMap, ForwardError> {
    let named = named_by_connection(from);
    let mut headers = HeaderMap::with_capacity(from.len() + principal.groups.len() + 4);
    for (name, value) in from {
        if !is_dropped(name) && !named.contains(&name.as_str().to_owned()) && *name != SEC_WEBSOCKET_PROTOCOL {
            headers.append(name.clone(), value.clone());
        }
    }
    check_length(&headers)?;
    for value in from.get_all(SEC_WEBSOCKET_PROTOCOL) {
        if let Some(value) = without_bearer(value) {
            headers.append(SEC_WEBSOCKET_PROTOCOL, value);
        }
    }
    // The gateway's word on where the caller is; the API server writes it into its audit log.
    if let Some(address) = single_address(from) {
        headers.insert(FORWARDED_FOR, address);
    }
    impersonate(&mut headers, principal)?;
    Ok(headers)
}

fn named_by_connection(from: &HeaderMap) -> Vec<String> {
    let values = from.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|token| token.trim().to_ascii_lowercase())
        .collect()
}

fn is_dropped(name: &HeaderName) -> bool {
    let name = name.as_str();
    // `X_Remote_User` and `X-Remote-User` are the same to some servers.
    name.contains('_') || DROPPED.contains(&name) || DROPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn check_length(headers: &HeaderMap) -> Result<(), ForwardError> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(length), None) if length.to_str().is_ok_and(|text| text.parse::<u64>().is_ok()) => Ok(()),
        _ => Err(ForwardError::Length),
    }
}

fn without_bearer(value: &HeaderValue) -> Option<HeaderValue> {
    let text = value.to_str().ok()?;
    let kept: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|p| !p.starts_with(BEARER_PROTOCOL))
        .collect();
    let kept = kept.join(", ");
    if kept.is_empty() {
        None
    } else {
        HeaderValue::from_str(&kept).ok()
    }
}

fn single_address(from: &HeaderMap) -> Option<HeaderValue> {
    let mut values = from.get_all(FORWARDED_FOR).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let address: IpAddr = value.to_str().ok()?.parse().ok()?;
    HeaderValue::from_str(&address.to_string()).ok()
}

fn impersonate(headers: &mut HeaderMap, principal: &Principal) -> Result<(), ForwardError> {
    let value = |attribute: &'static str, text: &str| {
        HeaderValue::from_bytes(text.as_bytes()).map_err(|_bad| ForwardError::Identity { attribute })
    };
    headers.insert(
        HeaderName::from_static("impersonate-user"),
        value("user name", &principal.user)?,
    );
    if !principal.uid.is_empty() {
        headers.insert(
            HeaderName::from_static("impersonate-uid"),
            value("uid", &principal.uid)?,
        );
    }
    for group in &principal.groups {
        headers.append(HeaderName::from_static("impersonate-group"), value("group", group)?);
    }
    for (key, values) in &principal.extra {
        let name = extra_name(key)?;
        for text in values {
            headers.append(name.clone(), value("extra attribute", text)?);
        }
    }
    Ok(())
}

/// `Impersonate-Extra-` and the key in lower case, everything that a header's name cannot hold as `%XX`.
fn extra_name(key: &str) -> Result<HeaderName, ForwardError> {
    let bad = ForwardError::Identity {
        attribute: "extra attribute",
    };
    if key.is_empty() || key.len() > EXTRA_KEY_MAX {
        return Err(bad);
    }
    let mut name = String::from("impersonate-extra-");
    for byte in key.to_lowercase().bytes() {
        // `tchar` of RFC 9110 5.6.2, but for the escape character itself.
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            name.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ok = write!(name, "%{byte:02x}").is_ok();
        }
    }
    HeaderName::from_bytes(name.as_bytes()).map_err(|_bad| bad)
}

/// The protocol that `headers` ask to switch to, if it is one of Kubernetes'.
pub fn upgrade_protocol(headers: &HeaderMap) -> Result<&'static str, ForwardError> {
    let mut asked = headers.get_all(UPGRADE).iter();
    let (Some(asked), None) = (asked.next(), asked.next()) else {
        return Err(ForwardError::Protocol);
    };
    let known = ["SPDY/3.1", "websocket"].into_iter();
    let mut known = known.filter(|name| asked.as_bytes().eq_ignore_ascii_case(name.as_bytes()));
    known.next().ok_or(ForwardError::Protocol)
}

/// The headers of an answer that are the caller's business.
pub fn response_headers(from: &HeaderMap) -> HeaderMap {
    let named = named_by_connection(from);
    let hop = [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, SET_COOKIE, HOST];
    let mut headers = HeaderMap::with_capacity(from.len());
    for (name, value) in from {
        let text = name.as_str();
        let hop = hop.contains(name) || text == "keep-alive" || text.starts_with("proxy-");
        if !hop && !text.starts_with("access-control-") && !named.contains(&text.to_owned()) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn map(entries: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in entries {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        map
    }

    fn ann() -> Principal {
        Principal {
            user: "ann".into(),
            uid: "u1".into(),
            groups: vec!["a".into(), "b".into()],
            extra: BTreeMap::from([("Example.com/Scope%".into(), vec!["x".into(), "y".into()])]),
            ..Principal::default()
        }
    }

    fn built(entries: &[(&str, &str)]) -> Vec<(String, String)> {
        let headers = request_headers(&map(entries), &ann()).unwrap();
        headers
            .iter()
            .map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned()))
            .collect()
    }

    fn identity() -> Vec<(String, String)> {
        let pairs = [
            ("impersonate-user", "ann"),
            ("impersonate-uid", "u1"),
            ("impersonate-group", "a"),
            ("impersonate-group", "b"),
            ("impersonate-extra-example.com%2fscope%25", "x"),
            ("impersonate-extra-example.com%2fscope%25", "y"),
        ];
        pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec()
    }

    #[test]
    fn identity_comes_from_the_assertion_only() {
        let evil = [
            ("Impersonate-User", "root"),
            ("Impersonate-Group", "system:masters"),
            ("Impersonate-Uid", "0"),
            ("Impersonate-Extra-Scopes", "all"),
            ("impersonate_user", "root"),
            ("X-Remote-User", "root"),
            ("X_Remote_User", "root"),
            ("Authorization", "Bearer stolen"),
            ("Proxy-Authorization", "x"),
            ("Cookie", "x"),
            ("Connection", "Impersonate-User, Impersonate-Group"),
            ("Upgrade", "h2c"),
            ("Te", "trailers"),
            ("Transfer-Encoding", "chunked"),
            ("Forwarded", "for=1.2.3.4"),
            ("X-Forwarded-For", "1.2.3.4, 5.6.7.8"),
            ("X-Forwarded-Host", "evil"),
            ("Host", "evil"),
        ];
        assert_eq!(built(&evil), identity());
    }

    #[test]
    fn connection_cannot_take_the_identity_away_nor_keep_what_it_names() {
        let mut wanted = vec![("accept".to_owned(), "application/json".to_owned())];
        wanted.extend(identity());
        let sent = [
            ("Connection", "Impersonate-User, X-Secret"),
            ("X-Secret", "1"),
            ("Accept", "application/json"),
        ];
        assert_eq!(built(&sent), wanted);
    }

    #[test]
    fn what_clients_need_passes() {
        let pass = [
            ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"),
            ("content-type", "application/vnd.kubernetes.protobuf"),
            ("content-length", "5"),
            ("audit-id", "r1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("sec-websocket-key", "k"),
        ];
        let found = built(&pass);
        for (name, value) in pass {
            assert!(found.contains(&(name.to_owned(), value.to_owned())), "{name}");
        }
        let protocols = "base64url.bearer.authorization.k8s.io.c2VjcmV0, v5.channel.k8s.io,v4.channel.k8s.io";
        let found = built(&[("sec-websocket-protocol", protocols), ("x-forwarded-for", "10.0.0.1")]);
        assert!(found.contains(&(
            "sec-websocket-protocol".into(),
            "v5.channel.k8s.io, v4.channel.k8s.io".into()
        )));
        assert!(found.contains(&("x-forwarded-for".into(), "10.0.0.1".into())));
    }

    #[test]
    fn names_that_are_no_headers_are_refused() {
        let evil = Principal {
            user: "ann\r\nImpersonate-Group: system:masters".into(),
            ..Principal::default()
        };
        assert_eq!(
            request_headers(&HeaderMap::new(), &evil),
            Err(ForwardError::Identity { attribute: "user name" })
        );
        let utf8 = Principal {
            user: "Änne".into(),
            ..Principal::default()
        };
        assert!(request_headers(&HeaderMap::new(), &utf8).is_ok());
        for lengths in [
            &[("content-length", "x")][..],
            &[("content-length", "1"), ("content-length", "2")],
        ] {
            assert_eq!(request_headers(&map(lengths), &ann()), Err(ForwardError::Length));
        }
    }

    #[test]
    fn only_protocols_of_kubernetes_are_switched_to() {
        for (value, expected) in [
            ("spdy/3.1", Ok("SPDY/3.1")),
            ("WebSocket", Ok("websocket")),
            ("h2c", Err(())),
        ] {
            assert_eq!(upgrade_protocol(&map(&[("upgrade", value)])).map_err(|_| ()), expected);
        }
        assert!(upgrade_protocol(&HeaderMap::new()).is_err());
        assert!(upgrade_protocol(&map(&[("upgrade", "websocket"), ("upgrade", "spdy/3.1")])).is_err());
        assert!(upgrade_protocol(&map(&[("upgrade", "websocket, h2c")])).is_err());
    }

    #[test]
    fn answers_lose_what_is_about_the_hop() {
        let from = map(&[
            ("content-type", "application/json"),
            ("set-cookie", "a"),
            ("connection", "close, x-odd"),
            ("x-odd", "1"),
            ("access-control-allow-origin", "*"),
            ("warning", "299 - old"),
            ("audit-id", "r1"),
        ]);
        let names: Vec<String> = response_headers(&from).keys().map(ToString::to_string).collect();
        assert_eq!(names, ["content-type", "warning", "audit-id"]);
    }
}
