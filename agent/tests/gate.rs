//! When requests are let through to an API server, which is played here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/keys.rs"]
mod keys;

use bytes::Bytes;
use hanse_agent::api_proxy::{ApiTarget, Targets};
use hanse_agent::tenant::health::{Health, Probe};
use hanse_agent::tenant::nodes::Wanted;
use hanse_runtime::clock::{Clock, SystemClock};
use hanse_runtime::pki::{Ca, LeafSpec, load_certs, load_key};
use hanse_runtime::supervisor::Supervisor;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keys::tenant_keys;
use serde_json::json;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

const STARTING: &str = "[+]ping ok\n[-]poststarthook/rbac/bootstrap-roles failed: not finished\nreadyz check failed";
const NO_STORE: &str = "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed";

/// What the API server answers, and what it was asked.
#[derive(Default)]
struct Part {
    /// Nothing when it is good.
    readyz: &'static str,
    /// Reviews of the admins' rights before they have them, counted from the time when they are bound.
    lag: usize,
    /// Status of the answer to their binding, 201 unless set.
    binding: u16,
    target: Option<Arc<ApiTarget>>,
    /// Whether it was open, at each look.
    looks: Vec<bool>,
    reviews: usize,
    bindings: usize,
}

type Shared = Arc<Mutex<Part>>;

fn answer(part: &mut Part, method: &Method, path: &str) -> (u16, String) {
    match (method, path) {
        (&Method::GET, "/readyz") => {
            part.looks
                .push(part.target.as_ref().is_some_and(|target| target.is_open()));
            let status = if part.readyz.is_empty() { 200 } else { 500 };
            (status, part.readyz.into())
        }
        (&Method::POST, "/apis/authorization.k8s.io/v1/subjectaccessreviews") => {
            part.reviews += 1;
            let bound = part.bindings > 0 && matches!(part.binding, 0 | 409);
            let allowed = bound && part.lag == 0;
            part.lag -= usize::from(bound && !allowed);
            let review = json!({ "metadata": {}, "spec": {}, "status": { "allowed": allowed } });
            (201, review.to_string())
        }
        (&Method::POST, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings") => {
            part.bindings += 1;
            let object = json!({ "metadata": { "name": "x" }, "roleRef": { "apiGroup": "", "kind": "", "name": "" } });
            match part.binding {
                0 => (201, object.to_string()),
                code => (code, status(code)),
            }
        }
        _ => (500, status(500)),
    }
}

fn status(code: u16) -> String {
    json!({ "kind": "Status", "status": "Failure", "message": "no", "reason": "No", "code": code }).to_string()
}

async fn serve(part: Shared, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let _read = body.collect().await.is_ok();
    let (code, text) = answer(&mut part.lock().unwrap(), &head.method, head.uri.path());
    Ok(Response::builder().status(code).body(Full::from(text)).unwrap())
}

async fn api_server(ca: &Ca, part: Shared) -> SocketAddr {
    let spec = LeafSpec {
        common_name: "kube-apiserver".into(),
        ips: vec![Ipv4Addr::LOCALHOST.into()],
        server: true,
        days: 1,
        ..LeafSpec::default()
    };
    let leaf = ca.issue(&spec, SystemClock::new().wall()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(load_certs(&leaf.cert).unwrap(), load_key(&leaf.key).unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, part) = (acceptor.clone(), part.clone());
            tokio::spawn(async move {
                // The probe's first connection only sees whether somebody listens.
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = service_fn(move |request| serve(part.clone(), request));
                let http = hyper::server::conn::http1::Builder::new();
                let _ended = http.serve_connection(TokioIo::new(stream), service).await.is_ok();
            });
        }
    });
    address
}

struct Setup {
    part: Shared,
    target: Arc<ApiTarget>,
    _nodes: watch::Sender<Wanted>,
    _health: watch::Receiver<Health>,
}

async fn probed(known: bool, part: Part) -> Setup {
    let clock = SystemClock::shared();
    let (ca, pki) = tenant_keys(clock.wall());
    let part = Arc::new(Mutex::new(part));
    let address = api_server(&ca, part.clone()).await;
    let target = ApiTarget::new("t", address, &pki, clock.clone(), Supervisor::default()).unwrap();
    let target = Targets::default().set(target);
    part.lock().unwrap().target = Some(target.clone());
    let (nodes, nodes_seen) = watch::channel(Wanted::default());
    let (tell, health) = watch::channel(Health::default());
    let probe = Probe {
        target: target.clone(),
        known,
        pki,
        clock,
        nodes: nodes_seen,
    };
    tokio::spawn(probe.run(tell));
    Setup {
        part,
        target,
        _nodes: nodes,
        _health: health,
    }
}

impl Setup {
    fn now(&self, change: impl FnOnce(&mut Part)) {
        change(&mut self.part.lock().unwrap());
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self, &Part) -> bool) {
        let start = Instant::now();
        while !holds(self, &self.part.lock().unwrap()) {
            assert!(start.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn opens(&self) {
        self.until("it opens", |setup, _| setup.target.is_open()).await;
    }

    /// Sees it looked at, twice more, and shut all the time.
    async fn stays_shut(&self) {
        let before = self.part.lock().unwrap().looks.len();
        self.until("two more looks", |setup, part| {
            assert!(!setup.target.is_open());
            part.looks.len() >= before + 2
        })
        .await;
    }
}

#[tokio::test]
async fn a_started_api_server_opens_when_its_start_is_over_and_the_admins_binding_is_in_force() {
    let setup = probed(
        false,
        Part {
            readyz: STARTING,
            lag: 3,
            ..Part::default()
        },
    )
    .await;
    setup.stays_shut().await;
    setup.now(|part| part.readyz = NO_STORE);
    setup.stays_shut().await;
    assert_eq!(setup.part.lock().unwrap().reviews, 0);
    setup.now(|part| part.readyz = "");
    setup.opens().await;
    let part = setup.part.lock().unwrap();
    assert!(
        part.reviews >= 5 && part.lag == 0,
        "one before the binding, three too early"
    );
}

#[tokio::test]
async fn one_that_was_good_before_opens_after_one_look() {
    let good = probed(
        true,
        Part {
            bindings: 1,
            ..Part::default()
        },
    )
    .await;
    let cut_off = probed(
        true,
        Part {
            bindings: 1,
            readyz: NO_STORE,
            ..Part::default()
        },
    )
    .await;
    for setup in [good, cut_off] {
        setup.until("a second look", |_, part| part.looks.len() > 1).await;
        let part = setup.part.lock().unwrap();
        assert_eq!((&part.looks[..2], part.reviews), (&[false, true][..], 1));
    }
}

#[tokio::test]
async fn one_that_an_earlier_agent_had_only_just_started_is_not_opened_too_early() {
    let setup = probed(
        true,
        Part {
            readyz: STARTING,
            ..Part::default()
        },
    )
    .await;
    setup.stays_shut().await;
    setup.now(|part| part.readyz = "");
    setup.opens().await;
}

#[tokio::test]
async fn a_tenant_that_refuses_the_binding_is_not_locked_out_and_one_that_cannot_take_it_yet_waits() {
    let refuses = probed(
        false,
        Part {
            binding: 403,
            ..Part::default()
        },
    )
    .await;
    refuses.opens().await;
    let cannot = probed(
        false,
        Part {
            binding: 500,
            ..Part::default()
        },
    )
    .await;
    cannot.stays_shut().await;
    cannot.now(|part| part.binding = 0);
    cannot.opens().await;
}
