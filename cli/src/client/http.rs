//! One HTTP exchange over a connection of its own, driven inside the caller's task.

use super::tls::{self, Trust};
use super::url::BaseUrl;
use crate::error::{Error, Kind, Result};
use ::http::{Method, Request, StatusCode, header};
use bytes::Bytes;
use hanse_runtime::clock::{self, SharedClock};
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Body, Frame};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Largest answer that is read.
const BODY_MAX: usize = 64 * 1024 * 1024;
/// For the way to the server and the TLS handshake.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// For the whole exchange.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(30);

/// How long a streamed answer may bring nothing.
const STALL_LIMIT: Duration = Duration::from_secs(90);
/// Largest refusal that is read.
const REFUSAL_MAX: usize = 1024 * 1024;

/// Takes a streamed answer, piece by piece.
pub(crate) type Sink<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// Holds a stream to so many bytes in a second. What a slow server left unused is not made up for later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    per_second: u64,
    /// When what was taken so far has had its time.
    paid: Duration,
}

impl Pace {
    /// From now on.
    pub(crate) const fn new(per_second: u64, now: Duration) -> Self {
        Self { per_second, paid: now }
    }

    /// How long to wait after a piece that was taken at `now`.
    fn pause(&mut self, now: Duration, bytes: usize) -> Duration {
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.per_second.max(1));
        self.paid = self.paid.max(now) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.paid.saturating_sub(now)
    }
}

/// How far an exchange came before it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The name did not resolve.
    Resolve,
    /// Nobody listens.
    Refused,
    /// The way there failed otherwise.
    Connect,
    /// The server's certificate is not trusted or not for this name.
    Untrusted,
    /// The TLS handshake failed otherwise.
    Handshake,
    /// The request may have reached the server.
    Exchange,
}

impl Stage {
    /// Whether the request certainly did not reach the server.
    pub(crate) const fn before_request(self) -> bool {
        match self {
            Self::Resolve | Self::Refused | Self::Connect | Self::Untrusted | Self::Handshake => true,
            Self::Exchange => false,
        }
    }

    /// Whether the next try may fare better within seconds.
    pub(crate) const fn passing(self) -> bool {
        match self {
            Self::Connect | Self::Handshake | Self::Exchange => true,
            Self::Resolve | Self::Refused | Self::Untrusted => false,
        }
    }
}

/// An exchange without an answer.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) stage: Stage,
    pub(crate) why: String,
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Option<Bytes>,
}

impl Call {
    /// A GET of `path`.
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            body: None,
        }
    }

    fn whole_body(&self) -> Full<Bytes> {
        Full::new(self.body.clone().unwrap_or_default())
    }
}

/// A body that is sent while it is read.
pub(crate) struct Upload {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    /// Pieces that the connection has taken.
    taken: Arc<AtomicU64>,
}

impl Upload {
    /// Of pieces that somebody reads.
    pub(crate) fn new(pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        let taken = Arc::default();
        Self { pieces, taken }
    }
}

/// A client of one gateway.
#[derive(Clone)]
pub(crate) struct Http {
    base: BaseUrl,
    address: Option<std::net::SocketAddr>,
    tls: Arc<rustls::ClientConfig>,
    bearer: Option<header::HeaderValue>,
    clock: SharedClock,
}

impl Http {
    /// Of the gateway at `base`, with `token` as credentials.
    pub(crate) fn new(base: BaseUrl, trust: &Trust, token: Option<&str>, clock: SharedClock) -> Result<Self> {
        let bearer = match token {
            None => None,
            Some(token) => {
                let mut value = header::HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                    Error::usage("the access key holds characters that no key has")
                        .hint("copy it again, without line breaks and blanks")
                })?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            base,
            address: None,
            tls: tls::client_config(trust)?,
            bearer,
            clock,
        })
    }

    /// Where it connects to.
    pub(crate) const fn base(&self) -> &BaseUrl {
        &self.base
    }

    /// Its clock.
    pub(crate) const fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// One exchange, without repeats.
    pub(crate) async fn once(&self, call: &Call) -> std::result::Result<Reply, Fault> {
        let connection = match clock::timeout(&*self.clock, CONNECT_LIMIT, self.connect()).await {
            Ok(connection) => connection?,
            Err(late) => {
                return Err(Fault {
                    stage: Stage::Connect,
                    why: late.to_string(),
                });
            }
        };
        match clock::timeout(&*self.clock, EXCHANGE_LIMIT, self.exchange(connection, call)).await {
            Ok(reply) => reply,
            Err(late) => Err(Fault {
                stage: Stage::Exchange,
                why: late.to_string(),
            }),
        }
    }

    /// A TLS connection to the gateway.
    pub(crate) async fn connect(&self) -> std::result::Result<TlsStream<TcpStream>, Fault> {
        let tcp = match self.address {
            Some(address) => TcpStream::connect(address).await,
            None => {
                let found = tokio::net::lookup_host((self.base.host(), self.base.port())).await;
                let addresses: Vec<_> = found
                    .map_err(|e| Fault {
                        stage: Stage::Resolve,
                        why: e.to_string(),
                    })?
                    .collect();
                TcpStream::connect(&addresses[..]).await
            }
        };
        let tcp = tcp.map_err(|error| {
            let refused = error.kind() == io::ErrorKind::ConnectionRefused;
            let why = if refused {
                "connection refused".to_owned()
            } else {
                error.to_string()
            };
            Fault {
                stage: if refused { Stage::Refused } else { Stage::Connect },
                why,
            }
        })?;
        // Small requests must not wait for more to send; a socket that refuses the option still works.
        let _quick = tcp.set_nodelay(true).is_ok();
        let name = ServerName::try_from(self.base.host().to_owned()).map_err(|e| Fault {
            stage: Stage::Resolve,
            why: e.to_string(),
        })?;
        TlsConnector::from(self.tls.clone())
            .connect(name, tcp)
            .await
            .map_err(|error| handshake_fault(&error))
    }

    fn request<B>(&self, call: &Call, body: B) -> std::result::Result<Request<B>, Fault> {
        let mut builder = Request::builder()
            .method(call.method.clone())
            .uri(&call.path)
            .header(header::HOST, self.base.authority())
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("hanse/", env!("CARGO_PKG_VERSION")));
        if let Some(bearer) = &self.bearer {
            builder = builder.header(header::AUTHORIZATION, bearer);
        }
        if call.body.is_some() {
            builder = builder.header(header::CONTENT_TYPE, "application/json");
        }
        builder.body(body).map_err(|e| Fault {
            stage: Stage::Resolve,
            why: e.to_string(),
        })
    }

    async fn exchange(&self, stream: TlsStream<TcpStream>, call: &Call) -> std::result::Result<Reply, Fault> {
        let broken = |e: hyper::Error| Fault {
            stage: Stage::Exchange,
            why: chain(&e),
        };
        let request = self.request(call, call.whole_body())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let answer = async move {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
            let body = body.map_err(|e| Fault {
                stage: Stage::Exchange,
                why: chain(e.as_ref()),
            })?;
            Ok(Reply {
                status,
                body: body.to_bytes(),
            })
        };
        let mut answer = std::pin::pin!(answer);
        let connection = std::pin::pin!(connection);
        tokio::select! {
            biased;
            reply = &mut answer => reply,
            // The connection ended; what it had received is still in the answer's hands.
            _ended = connection => answer.await,
        }
    }

    /// Makes a request whose answer goes to `sink` piece by piece and no faster than `pace`, without repeats. An answer that breaks
    /// off is a failure; one that is no success is handed back.
    pub(crate) async fn download(&self, call: &Call, pace: Option<Pace>, sink: &mut Sink<'_>) -> Result<Option<Reply>> {
        self.stream(call, call.whole_body(), &mut || false, pace, sink).await
    }

    /// The same for a request whose body is sent piece by piece.
    pub(crate) async fn upload(&self, call: &Call, body: Upload, sink: &mut Sink<'_>) -> Result<Option<Reply>> {
        let Upload { mut pieces, taken } = body;
        let (counter, mut known) = (Arc::clone(&taken), 0);
        let pieces = futures::stream::poll_fn(move |cx| {
            pieces.poll_recv(cx).map(|piece| {
                counter.fetch_add(1, Ordering::Relaxed);
                piece.map(|piece| piece.map(Frame::data))
            })
        });
        let mut moves = || {
            let now = taken.load(Ordering::Relaxed);
            std::mem::replace(&mut known, now) != now
        };
        self.stream(call, StreamBody::new(pieces), &mut moves, None, sink).await
    }

    /// `moves` says whether more of the request was sent since it was last asked.
    async fn stream<B>(
        &self,
        call: &Call,
        body: B,
        moves: &mut (dyn FnMut() -> bool + Send),
        mut pace: Option<Pace>,
        sink: &mut Sink<'_>,
    ) -> Result<Option<Reply>>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let connection = clock::timeout(&*self.clock, CONNECT_LIMIT, self.connect()).await;
        let connection = connection.unwrap_or_else(|late| {
            Err(Fault {
                stage: Stage::Connect,
                why: late.to_string(),
            })
        });
        let connection = connection.map_err(|fault| self.explain(&fault))?;
        let broken = |why: String| {
            let message = format!("{} broke the answer off: {why}", self.base);
            Error::new(Kind::Unreachable, message).hint("try again; `hanse status` shows which regions answer")
        };
        let request = self.request(call, body).map_err(|fault| self.explain(&fault))?;
        let shaken = http1::handshake(TokioIo::new(connection)).await;
        let (mut sender, connection) = shaken.map_err(|e| broken(chain(&e)))?;
        let answer = async move {
            let mut sent = std::pin::pin!(sender.send_request(request));
            let response = loop {
                match clock::timeout(&*self.clock, STALL_LIMIT, &mut sent).await {
                    Ok(response) => break response,
                    Err(_) if moves() => {}
                    Err(late) => return Err(broken(late.to_string())),
                }
            };
            let mut response = response.map_err(|e| broken(chain(&e)))?;
            if !response.status().is_success() {
                let status = response.status();
                let body = Limited::new(response.into_body(), REFUSAL_MAX).collect().await;
                let body = body.map_err(|e| broken(chain(e.as_ref())))?.to_bytes();
                return Ok(Some(Reply { status, body }));
            }
            loop {
                let frame = clock::timeout(&*self.clock, STALL_LIMIT, response.frame()).await;
                match frame.map_err(|late| broken(late.to_string()))? {
                    None => return Ok(None),
                    Some(frame) => {
                        let frame = frame.map_err(|e| broken(chain(&e)))?;
                        if let Ok(piece) = frame.into_data() {
                            sink(&piece)?;
                            if let Some(pace) = &mut pace {
                                // What is not read waits in the connection, and the server behind it.
                                self.clock.sleep(pace.pause(self.clock.mono(), piece.len())).await;
                            }
                        }
                    }
                }
            }
        };
        let mut answer = std::pin::pin!(answer);
        let connection = std::pin::pin!(connection);
        tokio::select! {
            biased;
            done = &mut answer => done,
            _ended = connection => answer.await,
        }
    }

    /// What a fault means to the user.
    pub(crate) fn explain(&self, fault: &Fault) -> Error {
        let at = &self.base;
        let why = &fault.why;
        match fault.stage {
            Stage::Resolve => Error::new(Kind::Unreachable, format!("cannot find {at}: {why}"))
                .hint("check the address, or log in elsewhere with `hanse login URL`"),
            Stage::Refused => Error::new(Kind::Unreachable, format!("cannot reach {at}: {why}"))
                .hint("is it running? `hanse up` starts the installation of this machine"),
            Stage::Untrusted => Error::failed(format!("the certificate of {at} is not trusted: {why}"))
                .hint("name the authority with `hanse login URL --ca-file FILE`, or take the risk with --insecure"),
            Stage::Connect => Error::new(Kind::Unreachable, format!("cannot reach {at}: {why}"))
                .hint("check the address and the way there; `hanse status` shows which regions answer"),
            // A front door takes the connection and has nobody to pass it on to.
            Stage::Handshake => Error::new(Kind::Unreachable, format!("no gateway answers behind {at}: {why}"))
                .hint("`hanse up` starts those of this machine's installation"),
            Stage::Exchange => Error::new(Kind::Unreachable, format!("{at} gave no whole answer: {why}"))
                .hint("try again; `hanse status` shows which regions answer"),
        }
    }
}

fn handshake_fault(error: &io::Error) -> Fault {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    let stage = match inner {
        Some(rustls::Error::InvalidCertificate(_)) => Stage::Untrusted,
        _ => Stage::Handshake,
    };
    Fault {
        stage,
        why: error.to_string(),
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    hanse_runtime::supervisor::chain(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::clock::SystemClock;

    fn client(port: u16) -> Http {
        let base = BaseUrl::parse(&format!("https://127.0.0.1:{port}")).unwrap();
        Http::new(base, &Trust::Anybody, Some("id.secret"), SystemClock::shared()).unwrap()
    }

    #[test]
    fn a_paced_stream_takes_its_time_and_makes_up_for_nothing() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(1000, second);
        let mut now = second;
        for bytes in [100, 0, 900, 2000] {
            now += pace.pause(now, bytes);
        }
        assert_eq!(now, 4 * second);
        // Slower than it may be for a while: no burst afterwards.
        now += 10 * second;
        assert_eq!(pace.pause(now, 500), second / 2);
        // Waiting too short only shifts the rest.
        assert_eq!(pace.pause(now, 500), second);
    }

    #[tokio::test]
    async fn a_closed_port_asks_whether_it_runs() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let http = client(port);
        let fault = http.once(&Call::get("/readyz")).await.unwrap_err();
        assert_eq!(fault.stage, Stage::Refused);
        let error = http.explain(&fault);
        assert!(error.remedy().unwrap().contains("hanse up"));
        assert!(error.to_string().contains(&port.to_string()));
    }

    #[tokio::test]
    async fn a_peer_that_is_no_tls_server_is_before_the_request() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut peer, b"SSH-2.0-x\r\n")
                .await
                .unwrap();
        });
        let fault = client(port).once(&Call::get("/")).await.unwrap_err();
        assert!(fault.stage.before_request(), "{fault:?}");
        server.await.unwrap();
    }

    #[test]
    fn a_key_with_a_line_break_is_refused_without_showing_it() {
        let base = BaseUrl::parse("https://a").unwrap();
        let error = Http::new(base, &Trust::Anybody, Some("se\ncret"), SystemClock::shared())
            .err()
            .unwrap();
        assert!(!error.to_string().contains("cret\"") && error.remedy().is_some());
    }
}
