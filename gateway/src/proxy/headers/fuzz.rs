//! Any headers: none of those that speak for the caller, or of one connection only, gets through.

use super::*;
use crate::fuzzing::cases;
use proptest::prelude::*;

const NAMES: &[&str] = &[
    "Impersonate-User",
    "Impersonate-Group",
    "Impersonate-Uid",
    "Impersonate-Extra-Scopes",
    "X-Remote-User",
    "X-Remote-Group",
    "X-Remote-Extra-a",
    "X-Remote-Uid",
    "Authorization",
    "Cookie",
    "Connection",
    "Keep-Alive",
    "Proxy-Connection",
    "Proxy-Authorization",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
    "HTTP2-Settings",
    "Content-Length",
    "Host",
    "Expect",
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Client-Cert",
    "X-Real-IP",
    "Via",
    "Audit-Id",
    "X-Hanse-Principal",
    "X_Remote_User",
    "Impersonate_User",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Extensions",
    "X-Stream-Protocol-Version",
    "Accept",
    "Content-Type",
    "User-Agent",
    "X-Custom",
    "X-Secret",
    "Range",
    "Set-Cookie",
    "Alt-Svc",
    "Access-Control-Allow-Origin",
    "Warning",
];
/// Of one connection, whatever it says of them itself.
const HOPS: [&str; 8] = [
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "http2-settings",
    "proxy-authenticate",
];
const WORDS: &[&str] = &[
    "close",
    "Upgrade",
    "keep-alive",
    "X-Secret",
    "x-custom",
    "ACCEPT",
    "User-Agent",
    "Warning",
];

fn in_any_case(name: &str, how: u64) -> String {
    let turned = |(at, c): (usize, char)| {
        if how >> (at % 64) & 1 == 1 {
            c.to_ascii_uppercase()
        } else {
            c.to_ascii_lowercase()
        }
    };
    name.chars().enumerate().map(turned).collect()
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::collection::vec(prop::sample::select(WORDS), 1..4);
    prop_oneof![
        "[ -~]{0,12}".prop_map(String::into_bytes),
        words.clone().prop_map(|w| w.join(", ").into_bytes()),
        // With a byte that is no ASCII.
        words.prop_map(|w| [w.join(",").as_bytes(), b", \xff"].concat()),
        Just(b"v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0".to_vec()),
    ]
}

fn any_headers() -> impl Strategy<Value = HeaderMap> {
    let known = (prop::sample::select(NAMES), any::<u64>()).prop_map(|(n, how)| in_any_case(n, how));
    let name = prop_oneof![4 => known, 1 => "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}"];
    prop::collection::vec((name, value()), 0..24).prop_map(|pairs| {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(&value).unwrap(),
            );
        }
        map
    })
}

/// Names in `Connection`, read by hand.
fn named(headers: &HeaderMap) -> Vec<String> {
    let mut names = vec![String::new()];
    for value in headers.get_all("connection") {
        for byte in value.as_bytes() {
            match byte {
                b',' => names.push(String::new()),
                b' ' | b'\t' => {}
                other => names.last_mut().unwrap().push(char::from(other.to_ascii_lowercase())),
            }
        }
        names.push(String::new());
    }
    names
}

fn facts(upgrade: Option<Protocol>, app_proxy: bool) -> Facts<'static> {
    Facts {
        audit_id: "ours",
        client: "10.0.0.9".parse().unwrap(),
        upgrade,
        app_proxy,
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn nobody_is_spoken_for(
        incoming in any_headers(),
        upgrade in prop::sample::select(&[None, Some(Protocol::Websocket), Some(Protocol::Spdy)][..]),
        app in any::<bool>(),
    ) {
        let out = outgoing(&incoming, &facts(upgrade, app));
        let named = named(&incoming);
        for (name, value) in &out {
            let text = name.as_str();
            let of_ours = ["audit-id", "x-forwarded-for", "connection", "upgrade"].contains(&text);
            prop_assert!(of_ours || !named.iter().any(|n| n == text), "{text} belongs to the connection");
            prop_assert!(!HOPS.contains(&text), "{text}");
            for prefix in ["impersonate", "x-remote", "x-hanse-", "proxy-"] {
                prop_assert!(!text.replace('_', "-").starts_with(prefix), "{text}");
            }
            for bad in ["authorization", "cookie", "host", "content-length", "forwarded", "via", "x-real-ip", "expect"] {
                prop_assert_ne!(text, bad);
            }
            prop_assert!(!text.contains('_'), "{text}");
            prop_assert!(!value.as_bytes().windows(6).any(|w| w == b"bearer") || text != "sec-websocket-protocol");
        }
        let one = |name: &str| out.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>();
        prop_assert_eq!(one("audit-id"), ["ours"]);
        prop_assert_eq!(one("x-forwarded-for"), ["10.0.0.9"]);
        let (connection, token) = upgrade.map_or((vec![], vec![]), |p| (vec!["Upgrade"], vec![p.token()]));
        prop_assert_eq!(one("connection"), connection);
        prop_assert_eq!(one("upgrade"), token);
    }

    #[test]
    fn answers_keep_to_their_connection(upstream in any_headers()) {
        let out = returned(&upstream);
        let named = named(&upstream);
        for (name, _) in &out {
            let text = name.as_str();
            prop_assert!(!named.iter().any(|n| n == text), "{text} belongs to the connection");
            for bad in ["connection", "upgrade", "set-cookie", "alt-svc"] {
                prop_assert_ne!(text, bad);
            }
            prop_assert!(!text.starts_with("access-control-"), "{text}");
            prop_assert!(text == "proxy-authorization" || !HOPS.contains(&text), "{text}");
        }
        // The rest is all there, as often as it came and in order.
        for name in ["x-real-ip", "content-type", "x-secret"].iter().filter(|n| !named.iter().any(|c| c == *n)) {
            prop_assert!(out.get_all(*name).iter().eq(upstream.get_all(*name).iter()));
        }
    }
}
