//! HTTPS requests to others, such as identity providers: no redirects, bounded in time and bytes.

use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::pki::load_certs;
use hanse_runtime::supervisor::chain;
use http::header::HOST;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Most bytes of an answer; key sets and user infos have some kilobytes.
const MAX_ANSWER: usize = 1024 * 1024;

/// A client that trusts certain authorities. Each exchange has a connection of its own.
pub(crate) struct Https {
    tls: TlsConnector,
    clock: SharedClock,
}

impl Https {
    /// That trusts the authorities in `ca` (PEM), or the system's. The fault is for whoever wrote the configuration.
    pub(crate) fn new(ca: Option<&str>, clock: SharedClock) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let certs = match ca {
            Some(pem) => load_certs(pem).map_err(|e| format!("ca_file: {e}"))?,
            // Whatever of the system's store cannot be read is missing; none at all is told below.
            None => rustls_native_certs::load_native_certs().certs,
        };
        let (added, _passed_over) = roots.add_parsable_certificates(certs);
        if added == 0 {
            return Err("there is no authority to trust: name one with ca_file, or install the system's bundle".into());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            clock,
        })
    }

    /// One exchange within `limit`, connecting included. What is told of a fault names neither address nor body: there may be
    /// secrets in them.
    pub(crate) async fn exchange(
        &self,
        request: Request<Vec<u8>>,
        limit: Duration,
    ) -> Result<Response<Vec<u8>>, String> {
        match timeout(self.clock.as_ref(), limit, self.send(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
        }
    }

    async fn send(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, String> {
        let uri = request.uri().clone();
        if uri.scheme_str() != Some("https") {
            return Err("it is not https".into());
        }
        let authority = uri.authority().ok_or("the address has no host")?.clone();
        // A host may be written [::1]; names of certificates and sockets are without brackets.
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let stream = TcpStream::connect((host.as_str(), authority.port_u16().unwrap_or(443))).await;
        let stream = stream.map_err(|e| e.to_string())?;
        let name = ServerName::try_from(host).map_err(|e| e.to_string())?;
        let stream = self.tls.connect(name, stream).await.map_err(|e| e.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| chain(&e))?;
        let (mut head, body) = request.into_parts();
        head.uri = uri
            .path_and_query()
            .map_or("/", |p| p.as_str())
            .parse()
            .map_err(|e| format!("{e}"))?;
        let value = authority.as_str().parse().map_err(|_| "the host is no header")?;
        head.headers.insert(HOST, value);
        let request = Request::from_parts(head, Full::new(bytes::Bytes::from(body)));
        let answer = async move {
            let answer = sender.send_request(request).await.map_err(|e| chain(&e))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER)
                .collect()
                .await
                .map_err(|e| chain(e.as_ref()))?;
            Ok(Response::from_parts(head, body.to_bytes().to_vec()))
        };
        let (mut answer, connection) = (std::pin::pin!(answer), std::pin::pin!(connection));
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            // The connection ended; what it had received is still in the answer's hands.
            _ended = connection => answer.await,
        }
    }
}
