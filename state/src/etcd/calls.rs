//! Counts calls by method and outcome, under the names that etcd's gRPC library gives them.
//!
//! Labels come from a fixed table, never from what a caller sends, so there is a bounded number of them and counting takes no
//! lock.

use bytes::Bytes;
use hanse_runtime::meter::{Family, Kind};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status};

const UNARY: &str = "unary";
const SERVER: &str = "server_stream";
const BIDI: &str = "bidi_stream";

/// Service, method, type.
const METHODS: &[(&str, &str, &str)] = &[
    ("etcdserverpb.KV", "Range", UNARY),
    ("etcdserverpb.KV", "RangeStream", SERVER),
    ("etcdserverpb.KV", "Put", UNARY),
    ("etcdserverpb.KV", "DeleteRange", UNARY),
    ("etcdserverpb.KV", "Txn", UNARY),
    ("etcdserverpb.KV", "Compact", UNARY),
    ("etcdserverpb.Watch", "Watch", BIDI),
    ("etcdserverpb.Lease", "LeaseGrant", UNARY),
    ("etcdserverpb.Lease", "LeaseRevoke", UNARY),
    ("etcdserverpb.Lease", "LeaseKeepAlive", BIDI),
    ("etcdserverpb.Lease", "LeaseTimeToLive", UNARY),
    ("etcdserverpb.Lease", "LeaseLeases", UNARY),
    ("etcdserverpb.Cluster", "MemberAdd", UNARY),
    ("etcdserverpb.Cluster", "MemberRemove", UNARY),
    ("etcdserverpb.Cluster", "MemberUpdate", UNARY),
    ("etcdserverpb.Cluster", "MemberList", UNARY),
    ("etcdserverpb.Cluster", "MemberPromote", UNARY),
    ("etcdserverpb.Maintenance", "Alarm", UNARY),
    ("etcdserverpb.Maintenance", "Status", UNARY),
    ("etcdserverpb.Maintenance", "Defragment", UNARY),
    ("etcdserverpb.Maintenance", "Hash", UNARY),
    ("etcdserverpb.Maintenance", "HashKV", UNARY),
    ("etcdserverpb.Maintenance", "Snapshot", SERVER),
    ("etcdserverpb.Maintenance", "MoveLeader", UNARY),
    ("etcdserverpb.Maintenance", "Downgrade", UNARY),
    ("v3lockpb.Lock", "Lock", UNARY),
    ("v3lockpb.Lock", "Unlock", UNARY),
    ("v3electionpb.Election", "Campaign", UNARY),
    ("v3electionpb.Election", "Proclaim", UNARY),
    ("v3electionpb.Election", "Leader", UNARY),
    ("v3electionpb.Election", "Observe", SERVER),
    ("v3electionpb.Election", "Resign", UNARY),
    ("grpc.health.v1.Health", "Check", UNARY),
    ("grpc.health.v1.Health", "Watch", SERVER),
];

/// Names of the codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

#[derive(Debug, Default)]
struct Method {
    started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

/// The calls of one door.
#[derive(Debug)]
pub struct CallMeters {
    methods: Vec<Method>,
}

impl Default for CallMeters {
    fn default() -> Self {
        Self {
            methods: METHODS.iter().map(|_| Method::default()).collect(),
        }
    }
}

impl CallMeters {
    fn handled(&self, method: usize, code: Code) {
        let handled = self.methods.get(method).map(|method| &method.handled);
        if let Some(count) = handled.and_then(|handled| handled.get(code as usize)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// As they are shown: methods that were called, with the codes that they were answered with.
    pub fn families(&self) -> [Family; 2] {
        let help = "Calls that came in.";
        let mut started = Family::new("grpc_server_started_total", help, Kind::Counter);
        let help = "Calls that ended, by code; watches and the like when they end.";
        let mut handled = Family::new("grpc_server_handled_total", help, Kind::Counter);
        for ((service, method, kind), counts) in METHODS.iter().zip(&self.methods) {
            let labels = || {
                vec![
                    ("grpc_method", (*method).to_owned()),
                    ("grpc_service", (*service).to_owned()),
                    ("grpc_type", (*kind).to_owned()),
                ]
            };
            let count = counts.started.load(Ordering::Relaxed);
            if count == 0 {
                continue;
            }
            started = started.and(labels(), count);
            for (code, count) in CODES.iter().zip(&counts.handled) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let code = vec![("grpc_code", (*code).to_owned())];
                    handled = handled.and([code, labels()].concat(), count);
                }
            }
        }
        [started, handled]
    }
}

/// A service whose calls are counted.
#[derive(Clone, Debug)]
pub(super) struct Counted<S> {
    inner: S,
    meters: Arc<CallMeters>,
}

impl<S> Counted<S> {
    pub(super) fn new(inner: S, meters: &Arc<CallMeters>) -> Self {
        Self {
            inner,
            meters: Arc::clone(meters),
        }
    }
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

fn method_of(path: &str) -> Option<usize> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    METHODS.iter().position(|known| (known.0, known.1) == (service, method))
}

impl<S> tower::Service<http::Request<Body>> for Counted<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = futures::future::BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = method_of(request.uri().path());
        let answer = self.inner.call(request);
        let Some(method) = method else {
            return Box::pin(answer);
        };
        if let Some(counts) = self.meters.methods.get(method) {
            counts.started.fetch_add(1, Ordering::Relaxed);
        }
        let mut call = Call {
            meters: Some(Arc::clone(&self.meters)),
            method,
        };
        Box::pin(async move {
            let response = answer.await?;
            // An error without a body has its code in the head.
            if let Some(status) = Status::from_header_map(response.headers()) {
                call.end(status.code());
                return Ok(response);
            }
            Ok(response.map(|body| Body::new(CountedBody { body, call })))
        })
    }
}

/// A call that goes on; one that is dropped was given up by the caller.
struct Call {
    meters: Option<Arc<CallMeters>>,
    method: usize,
}

impl Call {
    fn end(&mut self, code: Code) {
        if let Some(meters) = self.meters.take() {
            meters.handled(self.method, code);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

struct CountedBody {
    body: Body,
    call: Call,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                    this.call.end(status.code());
                }
            }
            Some(Err(status)) => this.call.end(status.code()),
            None => this.call.end(Code::Ok),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
