//! The one driver for both sides: HTTP/2 over TLS, as client-go speaks, with a bearer token.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Windows for what the server sends. Go's client has the same for a stream; for a connection it has more than anything fills.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 256 << 20;
/// For an answer: a request that hangs must show in the figures.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a refusal that are shown.
const SHOWN: usize = 300;

/// A server, and who asks it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// Certificate of its authority, PEM.
    pub ca_pem: String,
    /// Who asks.
    pub token: String,
    /// Before all paths of the API.
    pub prefix: &'static str,
}

/// A request of a client.
#[derive(Clone, Debug)]
pub struct Call {
    /// Verb of HTTP.
    pub method: Method,
    /// Below the prefix, with its query.
    pub path: String,
    /// Of the body.
    pub media: &'static str,
    /// Empty for none.
    pub body: String,
}

impl Call {
    /// A read.
    pub fn get(path: String) -> Self {
        Self {
            method: Method::GET,
            path,
            media: "",
            body: String::new(),
        }
    }
}

/// A connection; copies share it.
#[derive(Clone, Debug)]
pub struct Connection {
    sender: http2::SendRequest<Full<Bytes>>,
    base: String,
    authorization: String,
}

impl Connection {
    /// A new one.
    pub async fn open(target: &Target) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for cert in hanse_runtime::pki::load_certs(&target.ca_pem)? {
            roots.add(cert).context("take the server's authority")?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("configure TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(target.address).await.context("connect")?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        let name = ServerName::from(target.address.ip());
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let stream = stream.context("TLS")?;
        ensure!(
            stream.get_ref().1.alpn_protocol() == Some(b"h2"),
            "the server speaks no HTTP/2"
        );
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .context("HTTP/2")?;
        // Its end is seen by those whose requests fail.
        tokio::spawn(connection);
        Ok(Self {
            sender,
            base: format!("https://{}{}", target.address, target.prefix),
            authorization: format!("Bearer {}", target.token),
        })
    }

    /// Sends it; gives the answer before its body, whatever it is.
    async fn begin(&mut self, call: Call) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(call.method)
            .uri(format!("{}{}", self.base, call.path))
            .header("authorization", &self.authorization)
            .header("accept", "application/json");
        if !call.media.is_empty() {
            request = request.header("content-type", call.media);
        }
        let request = request.body(Full::new(Bytes::from(call.body))).context("a request")?;
        let sent = tokio::time::timeout(PATIENCE, self.sender.send_request(request)).await;
        sent.context("no answer")?.context("send")
    }

    /// Sends it and reads a good answer.
    pub async fn send(&mut self, call: Call) -> Result<Bytes> {
        let (code, body) = self.outcome(call).await?;
        ensure!(code.is_success(), "{code}: {}", shown(&body));
        Ok(body)
    }

    /// Sends it and reads the answer, whatever it is.
    pub async fn outcome(&mut self, call: Call) -> Result<(StatusCode, Bytes)> {
        let (head, body) = self.begin(call).await?.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await;
        Ok((head.status, body.context("half an answer")?.context("read")?.to_bytes()))
    }

    /// Begins to watch; gives the stream of events.
    pub async fn watch(&mut self, path: String) -> Result<Incoming> {
        let (head, body) = self.begin(Call::get(path)).await?.into_parts();
        if head.status.is_success() {
            return Ok(body);
        }
        let body = body.collect().await.context("read")?.to_bytes();
        anyhow::bail!("{}: {}", head.status, shown(&body))
    }
}

fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).into_owned()
}
