//! Requests to identity providers: HTTPS only, no redirects, bounded in time and bytes.

use crate::error::GatewayError;
use futures::FutureExt;
use futures::future::BoxFuture;
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::pki::load_certs;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

/// Most bytes of an answer; key sets and user infos have some kilobytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// Time for one exchange, connecting included.
const EXCHANGE: Duration = Duration::from_secs(20);
/// Exchanges with one provider at once; further logins wait for their turn.
const AT_ONCE: usize = 32;

/// Why a provider gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct HttpError(String);

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = HttpError;
    type Future = BoxFuture<'c, Result<HttpResponse, HttpError>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        self.send(request).boxed()
    }
}

/// A client of one provider.
pub(super) struct Http {
    tls: TlsConnector,
    clock: SharedClock,
    places: Semaphore,
}

impl Http {
    /// That trusts the authorities in `ca` (PEM), or the system's.
    pub(super) fn new(id: &str, ca: Option<&str>, clock: SharedClock) -> Result<Self, GatewayError> {
        let fault = |fault: String| GatewayError::IdentityProvider {
            id: id.to_owned(),
            fault,
        };
        let mut roots = RootCertStore::empty();
        let certs = match ca {
            Some(pem) => load_certs(pem).map_err(|e| fault(format!("ca_file: {e}")))?,
            // Whatever of the system's store cannot be read is missing; none at all is told below.
            None => rustls_native_certs::load_native_certs().certs,
        };
        let (added, _passed_over) = roots.add_parsable_certificates(certs);
        if added == 0 {
            let text = "there is no authority to trust: name one with ca_file, or install the system's bundle";
            return Err(fault(text.to_owned()));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(GatewayError::Certificate)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            clock,
            places: Semaphore::new(AT_ONCE),
        })
    }

    /// One exchange. What is told of a fault holds neither the query nor the body: codes and secrets are in them.
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let named = |why: String| HttpError(format!("{host}{}: {why}", request.uri().path()));
        let work = async {
            let _place = self.places.acquire().await.map_err(|e| e.to_string())?;
            self.exchange(request.clone()).await
        };
        match timeout(self.clock.as_ref(), EXCHANGE, work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => Err(named(why)),
            Err(_) => Err(named(format!("no answer within {} s", EXCHANGE.as_secs()))),
        }
    }

    async fn exchange(&self, request: HttpRequest) -> Result<HttpResponse, String> {
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
        let chain = |e: &(dyn std::error::Error + 'static)| hanse_runtime::supervisor::chain(e);
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
        head.headers.insert(http::header::HOST, value);
        let request = http::Request::from_parts(head, Full::new(bytes::Bytes::from(body)));
        let answer = async move {
            let answer = sender.send_request(request).await.map_err(|e| chain(&e))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER)
                .collect()
                .await
                .map_err(|e| chain(e.as_ref()))?;
            Ok(http::Response::from_parts(head, body.to_bytes().to_vec()))
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
