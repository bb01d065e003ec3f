use super::backends::Health;
use super::config::BackendConfig;
use super::*;
use hanse_api::Timestamp;
use hanse_runtime::clock::SystemClock;
use hanse_runtime::pki::{Ca, LeafSpec, load_certs, load_key};
use rustls::ServerConfig;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// A gateway that answers `/readyz` over TLS and `name` to everybody else who says `?`, in clear.
struct Gateway {
    address: SocketAddr,
    ready: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

fn ca() -> Ca {
    Ca::generate("test", 1, SystemClock::shared().wall()).unwrap()
}

fn acceptor(ca: &Ca, now: Timestamp) -> TlsAcceptor {
    let spec = LeafSpec {
        ips: vec!["127.0.0.1".parse().unwrap()],
        server: true,
        days: 1,
        ..Default::default()
    };
    let leaf = ca.issue(&spec, now).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(load_certs(&leaf.cert).unwrap(), load_key(&leaf.key).unwrap())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

impl Gateway {
    async fn start(ca: &Ca, name: &'static str, address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let ready = Arc::new(AtomicBool::new(true));
        let acceptor = acceptor(ca, SystemClock::shared().wall());
        let seen = ready.clone();
        let task = tokio::spawn(async move {
            // Ends all connections with the task.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, acceptor.clone(), name, seen.clone()));
            }
        });
        Self { address, ready, task }
    }

    async fn kill(self) -> SocketAddr {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
        self.address
    }
}

async fn serve(mut stream: TcpStream, acceptor: TlsAcceptor, name: &'static str, ready: Arc<AtomicBool>) {
    let mut first = [0];
    if stream.peek(&mut first).await.unwrap() == 1 && first[0] == 0x16 {
        let Ok(mut tls) = acceptor.accept(stream).await else {
            return;
        };
        let mut buffer = [0; 4096];
        while tls.read(&mut buffer).await.is_ok_and(|n| n > 0) {
            let status = if ready.load(Ordering::SeqCst) {
                "200 OK"
            } else {
                "503 Not Ready"
            };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
            if tls.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
        return;
    }
    let mut byte = [0];
    while stream.read(&mut byte).await.is_ok_and(|n| n > 0) {
        let answer = if byte[0] == b'?' { name.as_bytes() } else { &byte[..] };
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
    // The client has ended its side; this side still speaks.
    let _sent = stream.write_all(b"goodbye").await.is_ok();
}

struct Door {
    address: SocketAddr,
    backends: Backends,
    _supervisor: Supervisor,
}

async fn door(ca: &Ca, gateways: &[SocketAddr]) -> Door {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = FrontDoorConfig {
        listen: address,
        ca: "unused".into(),
        backends: gateways
            .iter()
            .map(|a| BackendConfig {
                name: a.to_string(),
                address: *a,
            })
            .collect(),
    };
    let supervisor = Supervisor::default();
    let backends = start(listener, &config, ca.cert_pem(), &supervisor, &SystemClock::shared()).unwrap();
    Door {
        address,
        backends,
        _supervisor: supervisor,
    }
}

impl Door {
    async fn becomes(&self, number: usize, health: Health) {
        let clock = SystemClock::shared();
        let end = clock.mono() + Duration::from_secs(10);
        while self.backends.get(number).health() != health {
            assert!(
                clock.mono() < end,
                "backend {number} is {:?}, not {health:?}",
                self.backends.get(number).health()
            );
            clock.sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ask(&self) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.write_all(b"?").await?;
        let mut name = [0; 1];
        stream.read_exact(&mut name).await?;
        Ok(String::from_utf8_lossy(&name).into_owned())
    }
}

#[tokio::test]
async fn requests_go_on_when_a_gateway_dies_and_spread_again_when_it_is_back() {
    let ca = ca();
    let (a, b) = (
        Gateway::start(&ca, "a", "127.0.0.1:0").await,
        Gateway::start(&ca, "b", "127.0.0.1:0").await,
    );
    let door = door(&ca, &[a.address, b.address]).await;
    door.becomes(0, Health::Ready).await;
    door.becomes(1, Health::Ready).await;
    let mut both: Vec<String> = vec![door.ask().await.unwrap(), door.ask().await.unwrap()];
    both.sort();
    assert_eq!(both, ["a", "b"]);
    let address = a.kill().await;
    for _ in 0..8 {
        assert_eq!(door.ask().await.unwrap(), "b", "not one request is lost");
    }
    door.becomes(0, Health::Dead).await;
    let _again = Gateway::start(&ca, "a", &address.to_string()).await;
    door.becomes(0, Health::Ready).await;
    let mut both: Vec<String> = vec![door.ask().await.unwrap(), door.ask().await.unwrap()];
    both.sort();
    assert_eq!(both, ["a", "b"]);
}

#[tokio::test]
async fn a_gateway_that_is_not_ready_gets_nothing_new_but_keeps_what_it_has() {
    let ca = ca();
    let (a, b) = (
        Gateway::start(&ca, "a", "127.0.0.1:0").await,
        Gateway::start(&ca, "b", "127.0.0.1:0").await,
    );
    let door = door(&ca, &[a.address, b.address]).await;
    b.ready.store(false, Ordering::SeqCst);
    door.becomes(0, Health::Ready).await;
    door.becomes(1, Health::NotReady).await;
    let mut held = TcpStream::connect(door.address).await.unwrap();
    held.write_all(b"?").await.unwrap();
    let mut byte = [0];
    held.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"a");
    a.ready.store(false, Ordering::SeqCst);
    b.ready.store(true, Ordering::SeqCst);
    door.becomes(0, Health::NotReady).await;
    door.becomes(1, Health::Ready).await;
    assert_eq!(door.ask().await.unwrap(), "b");
    held.write_all(b"?").await.unwrap();
    held.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"a");
}

#[tokio::test]
async fn an_end_of_one_side_is_passed_on_and_the_other_side_still_speaks() {
    let ca = ca();
    let a = Gateway::start(&ca, "a", "127.0.0.1:0").await;
    let door = door(&ca, &[a.address]).await;
    let mut stream = TcpStream::connect(door.address).await.unwrap();
    stream.write_all(b"xyz").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "xyzgoodbye");
}

#[tokio::test]
async fn connections_of_a_gateway_that_hangs_are_closed() {
    let ca = ca();
    let a = Gateway::start(&ca, "a", "127.0.0.1:0").await;
    // Takes connections, as the kernel does for a stopped process, and never answers.
    let hung = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = door(&ca, &[hung.local_addr().unwrap()]).await;
    let mut stream = TcpStream::connect(door.address).await.unwrap();
    stream.write_all(b"?").await.unwrap();
    let mut byte = [0];
    let got = stream.read(&mut byte).await;
    assert!(matches!(got, Ok(0) | Err(_)), "{got:?}");
    door.becomes(0, Health::Dead).await;
    drop(a);
}

#[tokio::test]
async fn nobody_there_means_closed_not_hanging() {
    let ca = ca();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let door = door(&ca, &[gone]).await;
    assert!(door.ask().await.is_err());
}

#[tokio::test]
async fn a_gateway_of_another_authority_is_not_used() {
    let (ours, theirs) = (ca(), ca());
    let (a, b) = (
        Gateway::start(&theirs, "a", "127.0.0.1:0").await,
        Gateway::start(&ours, "b", "127.0.0.1:0").await,
    );
    let door = door(&ours, &[a.address, b.address]).await;
    door.becomes(0, Health::Dead).await;
    door.becomes(1, Health::Ready).await;
    for _ in 0..4 {
        assert_eq!(door.ask().await.unwrap(), "b");
    }
}
