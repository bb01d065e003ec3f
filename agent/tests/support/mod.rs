//! A real etcd behind the store socket, and a front that lets kubectl talk to the agent's end of the proxy.

use async_trait::async_trait;
use bytes::Bytes;
use hanse_api::access::Principal;
use hanse_api::intent::{KeyPair, TenantPki};
use hanse_runtime::clock::{Clock, SystemClock};
use hanse_runtime::pki::{Ca, LeafSpec, generate_key_pair};
use hanse_tunnel::assertion::{Claims, Signer};
use hanse_tunnel::{
    AgentEvents, Body, RequestHead, StoreHead, Target, TunnelError, Upgraded, Uplink, empty_body, refuse,
};
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// An etcd of our own, killed when dropped.
pub(crate) struct Etcd {
    child: Child,
    address: SocketAddr,
}

impl Etcd {
    pub(crate) async fn start(program: &Path, dir: &Path) -> Self {
        let port = || {
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .unwrap()
                .local_addr()
                .unwrap()
                .port()
        };
        let (client, peer) = (port(), port());
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let log = std::fs::File::create(dir.join("etcd.log")).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, client));
        let etcd = Self {
            address,
            child: Command::new(program)
                .args(["--name", "a", "--unsafe-no-fsync", "--log-level", "warn", "--data-dir"])
                .arg(dir.join("etcd"))
                .args([
                    "--listen-client-urls",
                    &url(client),
                    "--advertise-client-urls",
                    &url(client),
                ])
                .args([
                    "--listen-peer-urls",
                    &url(peer),
                    "--initial-advertise-peer-urls",
                    &url(peer),
                ])
                .args(["--initial-cluster", &format!("a={}", url(peer))])
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap(),
        };
        for _ in 0..500 {
            if TcpStream::connect(address).await.is_ok() {
                return etcd;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("etcd does not listen");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Calls etcd directly, where the tunnel would be.
pub(crate) struct EtcdUplink {
    sender: SendRequest<Body>,
    address: SocketAddr,
}

impl EtcdUplink {
    pub(crate) async fn new(etcd: &Etcd) -> Self {
        let stream = TcpStream::connect(etcd.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut http = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        http.initial_stream_window_size(1 << 20)
            .initial_connection_window_size(64 << 20)
            .initial_max_send_streams(10_000);
        let (sender, connection) = http.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self {
            sender,
            address: etcd.address,
        }
    }
}

#[async_trait]
impl Uplink for EtcdUplink {
    async fn store_call(&self, head: StoreHead, body: Body) -> Result<Response<Body>, TunnelError> {
        let mut request = Request::post(format!("http://{}{}", self.address, head.path))
            .body(body)
            .unwrap();
        request.headers_mut().extend(head.headers);
        let lost = |error: hyper::Error| TunnelError::Lost {
            peer: "etcd".into(),
            fault: error.to_string(),
        };
        let response = self.sender.clone().send_request(request).await.map_err(lost)?;
        Ok(response.map(|body| body.map_err(lost).boxed_unsync()))
    }

    fn report(&self, _report: Bytes) {}
}

/// Keys of a tenant as the control plane makes them.
pub(crate) fn tenant_pki() -> TenantPki {
    let now = SystemClock::new().wall();
    let ca = Ca::generate("tenant", 1, now).unwrap();
    let leaf = |name: &str, groups: &[&str]| -> KeyPair {
        let organizations = groups.iter().map(|group| (*group).to_owned()).collect();
        let spec = LeafSpec {
            common_name: name.into(),
            organizations,
            client: true,
            days: 1,
            ..LeafSpec::default()
        };
        ca.issue(&spec, now).unwrap()
    };
    TenantPki {
        ca: ca.key_pair(),
        admin: leaf("hanse:proxy", &["system:masters"]),
        controller_manager: leaf("system:kube-controller-manager", &[]),
        scheduler: leaf("system:kube-scheduler", &[]),
        kubelet_client: leaf("kube-apiserver-kubelet-client", &["system:masters"]),
        service_account: generate_key_pair().unwrap(),
    }
}

/// Stands for the gateway: plain HTTP in, signed requests of `principal` to the agent out. Does not keep the agent.
pub(crate) async fn front(
    agent: Weak<dyn AgentEvents>,
    signer: Signer,
    tenant: &str,
    principal: Principal,
) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = Arc::new(Gateway {
        agent,
        signer,
        target: Target::Tenant { id: tenant.into() },
        principal,
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let gateway = gateway.clone();
            let service = service_fn(move |request| serve(gateway.clone(), request));
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
        }
    });
    address
}

struct Gateway {
    agent: Weak<dyn AgentEvents>,
    signer: Signer,
    target: Target,
    principal: Principal,
}

impl Gateway {
    fn head<B>(&self, request: &Request<B>, upgrade: bool) -> RequestHead {
        let claims = Claims {
            principal: self.principal.clone(),
            cluster: "eu".into(),
            target: self.target.clone(),
            request_id: "r".into(),
            not_after: SystemClock::new().wall().plus(Duration::from_secs(30)),
        };
        RequestHead {
            request_id: "r".into(),
            target: self.target.clone(),
            assertion: self.signer.sign(&claims).unwrap(),
            method: request.method().clone(),
            path_and_query: Uri::path_and_query(request.uri()).unwrap().clone(),
            headers: request.headers().clone(),
            upgrade,
        }
    }
}

async fn serve(gateway: Arc<Gateway>, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let Some(agent) = gateway.agent.upgrade() else {
        return Ok(refuse(TunnelError::NotConnected { peer: "eu".into() }));
    };
    if !request.headers().contains_key("upgrade") {
        let head = gateway.head(&request, false);
        let body = request
            .into_body()
            .map_err(|error| TunnelError::Body(error.into()))
            .boxed_unsync();
        return Ok(agent.request("eu-1", head, body).await);
    }
    let head = gateway.head(&request, true);
    match agent.upgrade("eu-1", head).await {
        Upgraded::Answered(response) => Ok(response),
        Upgraded::Switched { response, mut io } => {
            let client = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut client = TokioIo::new(client.await.unwrap());
                let _ended = tokio::io::copy_bidirectional(&mut client, &mut io).await.is_ok();
            });
            Ok(response.map(|()| empty_body()))
        }
    }
}
