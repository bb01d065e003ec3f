//! Headers of a proxied exchange. The outgoing set is built from a list of what is allowed, never by editing the incoming
//! one: no header that a caller sends can stand where the gateway's or the agent's own words belong.

use super::upgrade::Protocol;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use std::net::IpAddr;

/// Longest `User-Agent` that is passed on.
const MAX_USER_AGENT: usize = 256;
/// Name prefix of the WebSocket subprotocol in which browsers carry a bearer token.
const BEARER_SUBPROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// Header of the audit id, which an API server takes over and echoes.
pub(crate) const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Headers that an API server needs from a client.
const ALLOWED: [&str; 14] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "content-type",
    "content-encoding",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "kubectl-command",
    "kubectl-session",
    "range",
    "traceparent",
    "tracestate",
    "cache-control",
];
const WEBSOCKET: [&str; 3] = ["sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions"];
const SPDY: [&str; 1] = ["x-stream-protocol-version"];

/// Never passed on to an application behind the API server either, where everything else is.
const REFUSED_FOR_APPS: [&str; 20] = [
    "authorization",
    "cookie",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "forwarded",
    "x-real-ip",
    "via",
    "audit-id",
    "te",
    "trailer",
    "transfer-encoding",
    "keep-alive",
    "connection",
    "upgrade",
    "expect",
    "http2-settings",
    "content-length",
    "host",
    "user-agent",
];
const REFUSED_PREFIXES: [&str; 6] = [
    "impersonate-",
    "x-remote-",
    "proxy-",
    "x-forwarded-",
    "x-hanse-",
    "sec-websocket-",
];

/// What the gateway adds to a request by its own knowledge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// Fresh id of this request.
    pub(crate) audit_id: &'a str,
    /// Address of the peer of the TCP connection.
    pub(crate) client: IpAddr,
    /// Upgrade that is asked for.
    pub(crate) upgrade: Option<Protocol>,
    /// Whether an application behind the API server is the target.
    pub(crate) app_proxy: bool,
}

/// Headers to send upstream.
pub(crate) fn outgoing(incoming: &HeaderMap, facts: &Facts<'_>) -> HeaderMap {
    let named = of_the_connection(incoming);
    let passed = |name: &str| !named.iter().any(|n| n == name);
    let mut out = HeaderMap::with_capacity(incoming.len());
    let mut copy = |names: &[&'static str]| {
        for name in names.iter().filter(|name| passed(name)) {
            for value in incoming.get_all(*name) {
                out.append(HeaderName::from_static(name), value.clone());
            }
        }
    };
    copy(&ALLOWED);
    match facts.upgrade {
        Some(Protocol::Websocket) => copy(&WEBSOCKET),
        Some(Protocol::Spdy) => copy(&SPDY),
        None => {}
    }
    if facts.app_proxy {
        for (name, value) in incoming
            .iter()
            .filter(|(name, _)| fit_for_apps(name) && passed(name.as_str()))
        {
            out.append(name.clone(), value.clone());
        }
    }
    if let Some(agent) = incoming.get(header::USER_AGENT).filter(|_| passed("user-agent")) {
        let bytes = &agent.as_bytes()[..agent.len().min(MAX_USER_AGENT)];
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            out.insert(header::USER_AGENT, value);
        }
    }
    if facts.upgrade == Some(Protocol::Websocket) && passed("sec-websocket-protocol") {
        subprotocols(incoming, &mut out);
    }
    ours(facts, &mut out);
    out
}

/// Set last and by `insert`, so that nothing copied above can stand beside it.
fn ours(facts: &Facts<'_>, out: &mut HeaderMap) {
    if let Ok(id) = HeaderValue::from_str(facts.audit_id) {
        out.insert(AUDIT_ID, id);
    }
    if let Ok(client) = HeaderValue::from_str(&facts.client.to_string()) {
        out.insert(FORWARDED_FOR, client);
    }
    if let Some(protocol) = facts.upgrade {
        out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        out.insert(header::UPGRADE, HeaderValue::from_static(protocol.token()));
    }
}

fn fit_for_apps(name: &HeaderName) -> bool {
    let name = name.as_str();
    !ALLOWED.contains(&name)
        && !WEBSOCKET.contains(&name)
        && !REFUSED_FOR_APPS.contains(&name)
        && !REFUSED_PREFIXES.iter().any(|p| name.starts_with(p))
        // Some servers read `X_Auth` and `X-Auth` as one.
        && !name.contains('_')
}

/// Passes the offered subprotocols without the one that carries a token.
fn subprotocols(incoming: &HeaderMap, out: &mut HeaderMap) {
    let offered = incoming.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let kept: Vec<&str> = offered
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
        .filter(|p| !p.is_empty() && !p.starts_with(BEARER_SUBPROTOCOL))
        .collect();
    if let (false, Ok(value)) = (kept.is_empty(), HeaderValue::from_str(&kept.join(", "))) {
        out.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
}

/// Headers of an answer that belong to one connection.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-authenticate",
    "http2-settings",
];
/// Headers by which a tenant's server could act on the gateway's origin in a browser.
const ORIGIN_BOUND: [&str; 6] = [
    "set-cookie",
    "set-cookie2",
    "alt-svc",
    "strict-transport-security",
    "clear-site-data",
    "public-key-pins",
];

/// Names in `Connection`: headers that are for the next hop only (RFC 9110, 7.6.1). Read as bytes, so that a strange one
/// does not hide the others.
fn of_the_connection(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::CONNECTION).iter();
    let names = values.flat_map(|v| v.as_bytes().split(|b| *b == b','));
    let text = |name: &[u8]| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase();
    names.map(text).collect()
}

/// Headers of an upstream answer that the caller may see. For an upgrade the gateway adds its own afterwards.
pub(crate) fn returned(upstream: &HeaderMap) -> HeaderMap {
    let named = of_the_connection(upstream);
    let mut out = HeaderMap::with_capacity(upstream.len());
    for (name, value) in upstream {
        let text = name.as_str();
        let kept = !HOP_BY_HOP.contains(&text)
            && !ORIGIN_BOUND.contains(&text)
            && !text.starts_with("access-control-")
            && !named.iter().any(|n| n == text);
        if kept {
            out.append(name.clone(), value.clone());
        }
    }
    out
}

#[cfg(test)]
mod fuzz;

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

    fn facts(upgrade: Option<Protocol>, app_proxy: bool) -> Facts<'static> {
        Facts {
            audit_id: "id-1",
            client: "10.0.0.9".parse().unwrap(),
            upgrade,
            app_proxy,
        }
    }

    fn hostile() -> HeaderMap {
        headers(&[
            ("authorization", "Bearer x"),
            ("cookie", "a=b"),
            ("impersonate-user", "root"),
            ("impersonate-uid", "1"),
            ("impersonate-extra-scopes", "x"),
            ("x-remote-user", "root"),
            ("x-remote-group", "system:masters"),
            ("x-forwarded-for", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("via", "x"),
            ("x-real-ip", "1.2.3.4"),
            ("proxy-authorization", "x"),
            ("audit-id", "forged"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("keep-alive", "5"),
            ("expect", "100-continue"),
            ("http2-settings", "x"),
            ("x_remote_user", "root"),
            ("impersonate_user", "root"),
            ("x-hanse-principal", "root"),
            ("host", "evil"),
        ])
    }

    #[test]
    fn nothing_hostile_goes_upstream() {
        for app in [false, true] {
            let out = outgoing(&hostile(), &facts(None, app));
            let names: Vec<&str> = out.keys().map(HeaderName::as_str).collect();
            assert_eq!(names, ["audit-id", "x-forwarded-for"], "app: {app}");
            assert_eq!(out["audit-id"], "id-1");
            assert_eq!(out["x-forwarded-for"], "10.0.0.9");
        }
    }

    #[test]
    fn what_an_api_server_needs_goes() {
        let incoming = headers(&[
            ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"),
            ("content-type", "application/merge-patch+json"),
            ("accept-encoding", "gzip"),
            ("kubectl-command", "kubectl get"),
            ("x-custom", "1"),
        ]);
        let out = outgoing(&incoming, &facts(None, false));
        assert_eq!(out["accept"], incoming["accept"]);
        assert_eq!(out["content-type"], incoming["content-type"]);
        assert_eq!(out["accept-encoding"], "gzip");
        assert!(!out.contains_key("x-custom"));
        assert_eq!(outgoing(&incoming, &facts(None, true))["x-custom"], "1");
        assert_eq!(
            outgoing(&incoming, &facts(None, true)).get_all("accept").iter().count(),
            1
        );
    }

    #[test]
    fn what_the_caller_says_is_for_this_hop_stays_here() {
        let mut incoming = headers(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("x-custom", "1"),
            ("range", "bytes=0-1"),
        ]);
        incoming.append("connection", HeaderValue::from_bytes(b"range,\xff").unwrap());
        let out = outgoing(&incoming, &facts(None, true));
        assert!(out.contains_key("x-custom") && !out.contains_key("x-secret") && !out.contains_key("range"));
        let out = returned(&incoming);
        assert!(out.contains_key("x-custom") && !out.contains_key("x-secret") && !out.contains_key("range"));
    }

    #[test]
    fn a_long_user_agent_is_cut() {
        let mut incoming = HeaderMap::new();
        incoming.insert("user-agent", HeaderValue::from_str(&"a".repeat(1000)).unwrap());
        assert_eq!(
            outgoing(&incoming, &facts(None, true))["user-agent"].len(),
            MAX_USER_AGENT
        );
    }

    #[test]
    fn upgrade_headers_only_with_an_upgrade() {
        let incoming = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "k"),
            ("sec-websocket-version", "13"),
            (
                "sec-websocket-protocol",
                "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0",
            ),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ]);
        let plain = outgoing(&incoming, &facts(None, true));
        for name in ["connection", "upgrade", "sec-websocket-key", "sec-websocket-protocol"] {
            assert!(!plain.contains_key(name), "{name}");
        }
        let out = outgoing(&incoming, &facts(Some(Protocol::Websocket), false));
        assert_eq!(out["upgrade"], "websocket");
        assert_eq!(out["connection"], "Upgrade");
        assert_eq!(out["sec-websocket-key"], "k");
        assert_eq!(out["sec-websocket-protocol"], "v5.channel.k8s.io");
        assert!(!out.contains_key("x-stream-protocol-version"));
        let out = outgoing(&incoming, &facts(Some(Protocol::Spdy), false));
        assert_eq!(out["upgrade"], "SPDY/3.1");
        assert_eq!(out["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert!(!out.contains_key("sec-websocket-key"));
    }

    #[test]
    fn answers_lose_what_is_not_theirs() {
        let upstream = headers(&[
            ("content-type", "application/json"),
            ("audit-id", "x"),
            ("warning", "299 - \"old\""),
            ("retry-after", "1"),
            ("x-kubernetes-pf-flowschema-uid", "u"),
            ("set-cookie", "a=b"),
            ("access-control-allow-origin", "*"),
            ("alt-svc", "h3=\":1\""),
            ("transfer-encoding", "chunked"),
            ("connection", "close, x-secret"),
            ("x-secret", "1"),
        ]);
        let out = returned(&upstream);
        let mut names: Vec<&str> = out.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "audit-id",
                "content-type",
                "retry-after",
                "warning",
                "x-kubernetes-pf-flowschema-uid"
            ]
        );
    }
}
