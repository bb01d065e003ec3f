//! Heads and messages as they travel (protobuf), and their translation to and from `http` types.
//!
//! Everything that comes in is checked here once: what a head holds afterwards is a valid method, path and header map.

use crate::error::TunnelError;
use crate::frame::{self, Kind};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use prost::Message;

/// Longest id of a request, tenant or session; longest name.
const NAME_MAX: usize = 256;
/// Most headers in one head.
const HEADERS_MAX: usize = 2000;

/// Where at the agent a request goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The API server of the connected cluster itself.
    Cluster,
    /// The API server of one tenant cluster.
    Tenant {
        /// Id of the tenant's key space.
        id: String,
    },
}

/// Head of a Kubernetes API request that a server passes to an agent.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// Id of the request in logs and audit.
    pub request_id: String,
    /// Which API server.
    pub target: Target,
    /// Signed identity of the caller (`assertion`).
    pub assertion: Vec<u8>,
    /// Method.
    pub method: Method,
    /// Path and query.
    pub path_and_query: http::uri::PathAndQuery,
    /// Headers, from an allow-list.
    pub headers: HeaderMap,
    /// Whether the connection is to be switched to another protocol.
    pub upgrade: bool,
}

/// Head of a gRPC call of an agent to a tenant's store.
#[derive(Clone, Debug)]
pub struct StoreHead {
    /// Id of the tenant's key space.
    pub tenant: String,
    /// Host epoch by which the agent hosts the tenant.
    pub epoch: u64,
    /// gRPC path, such as `/etcdserverpb.KV/Range`.
    pub path: String,
    /// Request headers.
    pub headers: HeaderMap,
}

#[derive(Clone, PartialEq, Message)]
struct WireHeader {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct WireRequest {
    #[prost(string, tag = "1")]
    request_id: String,
    /// Empty: the cluster itself.
    #[prost(string, tag = "2")]
    tenant: String,
    #[prost(bytes = "vec", tag = "3")]
    assertion: Vec<u8>,
    #[prost(string, tag = "4")]
    method: String,
    #[prost(string, tag = "5")]
    path_and_query: String,
    #[prost(message, repeated, tag = "6")]
    headers: Vec<WireHeader>,
    #[prost(bool, tag = "7")]
    upgrade: bool,
}

#[derive(Clone, PartialEq, Message)]
struct WireStore {
    #[prost(string, tag = "1")]
    tenant: String,
    #[prost(uint64, tag = "2")]
    epoch: u64,
    #[prost(string, tag = "3")]
    path: String,
    #[prost(message, repeated, tag = "4")]
    headers: Vec<WireHeader>,
}

#[derive(Clone, PartialEq, Message)]
struct WireResponse {
    #[prost(uint32, tag = "1")]
    status: u32,
    #[prost(message, repeated, tag = "2")]
    headers: Vec<WireHeader>,
}

#[derive(Clone, PartialEq, Message)]
struct WireTrailers {
    #[prost(message, repeated, tag = "1")]
    headers: Vec<WireHeader>,
}

/// First message of an agent on a connection.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Hello {
    /// Version of the agent's program.
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    /// Drawn once per start of the agent: tells a reconnect from a second agent.
    #[prost(string, tag = "2")]
    pub(crate) boot_id: String,
}

/// The server's answer to [`Hello`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Welcome {
    /// Version of the server's program.
    #[prost(string, tag = "1")]
    pub(crate) version: String,
}

/// The server shuts down.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Drain {
    /// When it will close the connection.
    #[prost(uint32, tag = "1")]
    pub(crate) close_in_millis: u32,
    /// How long to wait at least before dialing it again.
    #[prost(uint32, tag = "2")]
    pub(crate) reconnect_after_millis: u32,
}

/// Token and certificate request. No `Debug`: the token is a secret.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(crate) struct EnrolRequest {
    #[prost(string, tag = "1")]
    pub(crate) token: String,
    #[prost(string, tag = "2")]
    pub(crate) csr_pem: String,
    /// Not empty: no agent but a server asks, and this is what it says of itself, in a form that the tunnel does not know.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) newcomer: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct EnrolAnswer {
    /// Not empty: refused, and why.
    #[prost(string, tag = "1")]
    pub(crate) refusal: String,
    #[prost(string, tag = "2")]
    pub(crate) cert_pem: String,
    #[prost(string, tag = "3")]
    pub(crate) ca_pem: String,
    #[prost(string, tag = "4")]
    pub(crate) cluster: String,
    /// The name of the server that was taken in, and its place; where a server asked.
    #[prost(string, tag = "5")]
    pub(crate) server: String,
    #[prost(bytes = "bytes", tag = "6")]
    pub(crate) place: Bytes,
}

/// Appends `message` as a frame.
pub(crate) fn put(kind: Kind, message: &impl Message, out: &mut BytesMut) -> Result<(), TunnelError> {
    let len = message.encoded_len();
    frame::put_header(kind, len, out)?;
    out.reserve(len);
    message
        .encode(out)
        .map_err(|error| TunnelError::malformed(kind.name(), error))
}

/// Reads a message of the session's own talk.
pub(crate) fn read<M: Message + Default>(kind: Kind, bytes: Bytes) -> Result<M, TunnelError> {
    M::decode(bytes).map_err(|error| TunnelError::malformed(kind.name(), error))
}

fn wire_headers(headers: &HeaderMap) -> Vec<WireHeader> {
    headers
        .iter()
        .map(|(name, value)| WireHeader {
            name: name.as_str().to_owned(),
            value: Bytes::copy_from_slice(value.as_bytes()),
        })
        .collect()
}

fn header_map(kind: Kind, headers: Vec<WireHeader>) -> Result<HeaderMap, TunnelError> {
    if headers.len() > HEADERS_MAX {
        return Err(TunnelError::malformed(
            kind.name(),
            format!("more than {HEADERS_MAX} headers"),
        ));
    }
    let mut map = HeaderMap::with_capacity(headers.len());
    for header in headers {
        let name = HeaderName::from_bytes(header.name.as_bytes())
            .map_err(|_bad| TunnelError::malformed(kind.name(), "a header has a bad name"))?;
        let value = HeaderValue::from_maybe_shared(header.value)
            .map_err(|_bad| TunnelError::malformed(kind.name(), format!("the value of header {name} is bad")))?;
        map.append(name, value);
    }
    Ok(map)
}

fn check_name(kind: Kind, what: &str, name: &str) -> Result<(), TunnelError> {
    let fine = name.len() <= NAME_MAX && name.bytes().all(|b| b.is_ascii_graphic());
    if fine {
        return Ok(());
    }
    Err(TunnelError::malformed(
        kind.name(),
        format!("{what} must be up to {NAME_MAX} visible ASCII characters"),
    ))
}

impl RequestHead {
    /// Appends the head as a frame.
    pub(crate) fn put(&self, out: &mut BytesMut) -> Result<(), TunnelError> {
        let tenant = match &self.target {
            Target::Cluster => "",
            Target::Tenant { id } => id,
        };
        let wire = WireRequest {
            request_id: self.request_id.clone(),
            tenant: tenant.to_owned(),
            assertion: self.assertion.clone(),
            method: self.method.as_str().to_owned(),
            path_and_query: self.path_and_query.as_str().to_owned(),
            headers: wire_headers(&self.headers),
            upgrade: self.upgrade,
        };
        put(Kind::RequestHead, &wire, out)
    }

    /// Reads a head.
    pub(crate) fn read(bytes: Bytes) -> Result<Self, TunnelError> {
        let kind = Kind::RequestHead;
        let wire: WireRequest = read(kind, bytes)?;
        check_name(kind, "the request id", &wire.request_id)?;
        check_name(kind, "the tenant", &wire.tenant)?;
        let method =
            Method::from_bytes(wire.method.as_bytes()).map_err(|_bad| TunnelError::malformed(kind.name(), "method"))?;
        let path_and_query: http::uri::PathAndQuery = wire
            .path_and_query
            .parse()
            .map_err(|_bad| TunnelError::malformed(kind.name(), "path"))?;
        if !path_and_query.as_str().starts_with('/') {
            return Err(TunnelError::malformed(kind.name(), "the path does not start with /"));
        }
        let target = if wire.tenant.is_empty() {
            Target::Cluster
        } else {
            Target::Tenant { id: wire.tenant }
        };
        Ok(Self {
            request_id: wire.request_id,
            target,
            assertion: wire.assertion,
            method,
            path_and_query,
            headers: header_map(kind, wire.headers)?,
            upgrade: wire.upgrade,
        })
    }
}

impl StoreHead {
    /// Appends the head as a frame.
    pub(crate) fn put(&self, out: &mut BytesMut) -> Result<(), TunnelError> {
        let wire = WireStore {
            tenant: self.tenant.clone(),
            epoch: self.epoch,
            path: self.path.clone(),
            headers: wire_headers(&self.headers),
        };
        put(Kind::StoreHead, &wire, out)
    }

    /// Reads a head.
    pub(crate) fn read(bytes: Bytes) -> Result<Self, TunnelError> {
        let kind = Kind::StoreHead;
        let wire: WireStore = read(kind, bytes)?;
        check_name(kind, "the tenant", &wire.tenant)?;
        check_name(kind, "the path", &wire.path)?;
        if wire.tenant.is_empty() || !wire.path.starts_with('/') {
            return Err(TunnelError::malformed(kind.name(), "tenant or path is missing"));
        }
        let headers = header_map(kind, wire.headers)?;
        Ok(Self {
            tenant: wire.tenant,
            epoch: wire.epoch,
            path: wire.path,
            headers,
        })
    }
}

/// Appends the head of a response.
pub(crate) fn put_response(status: StatusCode, headers: &HeaderMap, out: &mut BytesMut) -> Result<(), TunnelError> {
    put(
        Kind::ResponseHead,
        &WireResponse {
            status: status.as_u16().into(),
            headers: wire_headers(headers),
        },
        out,
    )
}

/// Reads the head of a response.
pub(crate) fn read_response(bytes: Bytes) -> Result<http::Response<()>, TunnelError> {
    let kind = Kind::ResponseHead;
    let wire: WireResponse = read(kind, bytes)?;
    let status = u16::try_from(wire.status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| TunnelError::malformed(kind.name(), "no such status"))?;
    let mut response = http::Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = header_map(kind, wire.headers)?;
    Ok(response)
}

/// Appends the end of a body.
pub(crate) fn put_trailers(trailers: &HeaderMap, out: &mut BytesMut) -> Result<(), TunnelError> {
    put(
        Kind::Trailers,
        &WireTrailers {
            headers: wire_headers(trailers),
        },
        out,
    )
}

/// Reads the end of a body.
pub(crate) fn read_trailers(bytes: Bytes) -> Result<HeaderMap, TunnelError> {
    let wire: WireTrailers = read(Kind::Trailers, bytes)?;
    header_map(Kind::Trailers, wire.headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::HEADER_LEN;
    use proptest::prelude::*;

    fn head(path: &str) -> RequestHead {
        let mut headers = HeaderMap::new();
        headers.append("accept", HeaderValue::from_static("application/json"));
        headers.append("accept", HeaderValue::from_bytes(b"\xc3\xa4").unwrap());
        RequestHead {
            request_id: "r-1".into(),
            target: Target::Tenant { id: "t1".into() },
            assertion: vec![1, 2],
            method: Method::PATCH,
            path_and_query: path.parse().unwrap(),
            headers,
            upgrade: true,
        }
    }

    #[test]
    fn heads_round_trip() {
        let mut out = BytesMut::new();
        head("/api/v1/pods?watch=1").put(&mut out).unwrap();
        let back = RequestHead::read(out.split_off(HEADER_LEN).freeze()).unwrap();
        assert_eq!(back.path_and_query.as_str(), "/api/v1/pods?watch=1");
        assert_eq!(back.headers.get_all("accept").iter().count(), 2);
        assert_eq!((back.method, back.upgrade), (Method::PATCH, true));
        assert_eq!(back.target, Target::Tenant { id: "t1".into() });
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut big = head("/");
        big.assertion = vec![0; crate::frame::HEAD_MAX];
        assert!(matches!(
            big.put(&mut BytesMut::new()),
            Err(TunnelError::TooLarge { .. })
        ));
        for wire in [
            WireRequest {
                method: "GE T".into(),
                path_and_query: "/".into(),
                ..Default::default()
            },
            WireRequest {
                method: "GET".into(),
                path_and_query: "*".into(),
                ..Default::default()
            },
            WireRequest {
                method: "GET".into(),
                path_and_query: "/ x".into(),
                ..Default::default()
            },
            WireRequest {
                method: "GET".into(),
                path_and_query: "/".into(),
                tenant: "a b".into(),
                ..Default::default()
            },
            WireRequest {
                method: "GET".into(),
                path_and_query: "/".into(),
                headers: vec![WireHeader {
                    name: "x".into(),
                    value: Bytes::from_static(b"a\r\nb: c"),
                }],
                ..Default::default()
            },
        ] {
            assert!(RequestHead::read(wire.encode_to_vec().into()).is_err(), "{wire:?}");
        }
        let nameless = WireStore {
            path: "/x".into(),
            ..Default::default()
        };
        assert!(StoreHead::read(nameless.encode_to_vec().into()).is_err());
        assert!(
            read_response(
                WireResponse {
                    status: 70_000,
                    headers: vec![]
                }
                .encode_to_vec()
                .into()
            )
            .is_err()
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = Bytes::from(bytes);
            let _request = RequestHead::read(bytes.clone()).is_ok();
            let _store = StoreHead::read(bytes.clone()).is_ok();
            let _response = read_response(bytes.clone()).is_ok();
            let _trailers = read_trailers(bytes.clone()).is_ok();
            let _hello = read::<Hello>(Kind::Hello, bytes.clone()).is_ok();
            let _answer = read::<EnrolAnswer>(Kind::EnrolAnswer, bytes).is_ok();
        }
    }
}
