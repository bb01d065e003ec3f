//! QUIC (RFC 9000) through the one library that this file alone names.
//!
//! Streams come out as [`SendHalf`] and [`RecvHalf`]; everything above knows no more than that. Why these numbers: stream limits
//! are low because the library allocates for every allowed stream at once; windows are bounded per connection so that slow
//! readers cannot fill a server's memory; the key of stateless resets is derived from the server's own, so that a restarted
//! server tells the peers of its dead connections at once that they are gone.
//!
//! Known cost: of each stream that this end breaks off itself while somebody waits in `stopped`, the library (0.11.12) keeps about
//! a hundred bytes until the connection ends.

use crate::code::Code;
use crate::error::TunnelError;
use crate::identity::{
    AgentVerifier, Chains, Credentials, Identity, Protocol, ServerChains, ServerTrust, ServerVerifier, admit, provider,
};
use crate::settings::{Congestion, Liveness, Settings};
use crate::stream::{RecvHalf, SendHalf, StreamFault};
use aws_lc_rs::hmac;
use futures::future::BoxFuture;
use hanse_runtime::clock::Clock;
use hanse_runtime::rng::SharedRng;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, VarInt};
use rustls_pki_types::CertificateDer;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Streams that a stranger may open before he is known: the control stream and a few reports.
const STREAMS_AT_FIRST: u32 = 4;
/// Unread bytes per stream: 100 Mbit/s at 330 ms.
const STREAM_WINDOW: u32 = 4 << 20;
/// Unread bytes per connection.
const CONNECTION_WINDOW: u32 = 48 << 20;
/// Unread bytes per connection of somebody who is not known yet.
const STRANGER_WINDOW: u32 = 256 << 10;
/// Unacknowledged bytes per connection.
const SEND_WINDOW: u64 = 16 << 20;
/// Wished size of the socket's buffers; the kernel may give less.
const SOCKET_BUFFER: usize = 7 << 20;
/// Length of connection ids, enough that nobody guesses one.
const CONNECTION_ID_LEN: usize = 8;
/// Name in the TLS handshake. Not checked: identities are (see `identity`).
const SERVER_NAME: &str = "server.hanse.internal";
/// How long a closing endpoint waits for its peers to learn of it.
const FAREWELL: Duration = Duration::from_secs(1);

fn credentials_fault<E: fmt::Display>(what: &'static str) -> impl Fn(E) -> TunnelError {
    move |error| TunnelError::Credentials {
        what,
        fault: error.to_string(),
    }
}

fn transport(settings: &Settings, liveness: Liveness, streams: u32, keep_alive: bool) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(keep_alive.then_some(liveness.keep_alive))
        .max_idle_timeout(quinn::IdleTimeout::try_from(liveness.idle).ok());
    match settings.congestion {
        Congestion::Bbr => transport.congestion_controller_factory(Arc::new(quinn::congestion::BbrConfig::default())),
        Congestion::Cubic => {
            transport.congestion_controller_factory(Arc::new(quinn::congestion::CubicConfig::default()))
        }
    };
    transport
}

/// Binds a UDP socket with large buffers.
fn socket(address: SocketAddr) -> Result<UdpSocket, TunnelError> {
    let bound = UdpSocket::bind(address).map_err(|source| TunnelError::Bind {
        address: address.to_string(),
        source,
    })?;
    let sized = rustix::net::sockopt::set_socket_recv_buffer_size(&bound, SOCKET_BUFFER)
        .and_then(|()| rustix::net::sockopt::set_socket_send_buffer_size(&bound, SOCKET_BUFFER));
    let got = rustix::net::sockopt::socket_recv_buffer_size(&bound).unwrap_or(0);
    if sized.is_err() || got < SOCKET_BUFFER {
        tracing::debug!(
            got,
            wished = SOCKET_BUFFER,
            "the kernel limits UDP buffers; raise net.core.rmem_max for long paths"
        );
    }
    Ok(bound)
}

/// Draws connection ids from the process's own source of randomness.
struct ConnectionIds(SharedRng);

impl quinn::ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        let mut bytes = [0; CONNECTION_ID_LEN];
        self.0.fill(&mut bytes);
        quinn::ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// A server's UDP port.
pub(crate) struct Listener {
    endpoint: quinn::Endpoint,
}

impl Listener {
    /// Binds `address`.
    pub(crate) fn bind(
        address: SocketAddr,
        credentials: &Credentials,
        settings: &Settings,
        rng: SharedRng,
    ) -> Result<Self, TunnelError> {
        let what = "preparing the tunnel's server side";
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(credentials_fault(what))?
            .with_client_cert_verifier(Arc::new(AgentVerifier(Chains::new(&credentials.ca)?)))
            .with_cert_resolver(Arc::new(ServerChains::new(credentials)?));
        tls.alpn_protocols = Protocol::ALL.iter().map(|protocol| protocol.alpn().to_vec()).collect();
        // No resumption: a full handshake costs less than keeping track of whose ticket outlives whose certificate.
        tls.send_tls13_tickets = 0;
        tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        let tls = QuicServerConfig::try_from(tls).map_err(credentials_fault(what))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let mut transport = transport(settings, settings.control, STREAMS_AT_FIRST, false);
        transport.receive_window(VarInt::from_u32(STRANGER_WINDOW));
        config.transport_config(Arc::new(transport));
        config.max_incoming(settings.handshakes_max.saturating_mul(2));
        let master = hmac::Key::new(hmac::HMAC_SHA256, credentials.key.secret_der());
        let reset_key = hmac::sign(&master, b"hanse tunnel, stateless resets, version 1");
        let reset_key = hmac::Key::new(hmac::HMAC_SHA256, reset_key.as_ref());
        let mut endpoint = quinn::EndpointConfig::new(Arc::new(reset_key));
        endpoint.cid_generator(move || Box::new(ConnectionIds(Arc::clone(&rng))));
        let endpoint = quinn::Endpoint::new(endpoint, Some(config), socket(address)?, Arc::new(quinn::TokioRuntime))
            .map_err(|source| TunnelError::Bind {
                address: address.to_string(),
                source,
            })?;
        Ok(Self { endpoint })
    }

    pub(crate) fn local_addr(&self) -> Result<SocketAddr, TunnelError> {
        self.endpoint.local_addr().map_err(TunnelError::Io)
    }

    /// The next attempt to connect; `None` after [`Listener::close`].
    pub(crate) async fn next(&self) -> Option<Arriving> {
        self.endpoint.accept().await.map(Arriving)
    }

    /// Takes no new connections; those that are there go on.
    pub(crate) fn refuse_new(&self) {
        self.endpoint.set_server_config(None);
    }

    /// Closes all connections and waits a moment, so that the peers learn of it.
    pub(crate) async fn close(&self, code: Code, reason: &str, clock: &dyn Clock) {
        close_endpoint(&self.endpoint, code, reason, clock).await;
    }
}

async fn close_endpoint(endpoint: &quinn::Endpoint, code: Code, reason: &str, clock: &dyn Clock) {
    endpoint.close(VarInt::from_u32(code.number()), reason.as_bytes());
    if hanse_runtime::clock::timeout(clock, FAREWELL, endpoint.wait_idle())
        .await
        .is_err()
    {
        tracing::debug!("some peers were not there any more to take leave of");
    }
}

/// Somebody who wants to connect.
pub(crate) struct Arriving(quinn::Incoming);

impl Arriving {
    /// Lets through, sends back to prove its address, or refuses, by how busy the door is.
    pub(crate) fn screen(self, in_progress: usize, settings: &Settings) -> Option<Self> {
        if in_progress >= settings.handshakes_max {
            self.0.refuse();
            return None;
        }
        if in_progress >= settings.retry_above && !self.0.remote_address_validated() && self.0.may_retry() {
            if let Err(error) = self.0.retry() {
                error.into_incoming().refuse();
            }
            return None;
        }
        Some(self)
    }

    /// Completes the handshake. The connection is closed again when the peer may not speak what it asked for.
    pub(crate) async fn handshake(self) -> Result<(Conn, Protocol, Option<String>), TunnelError> {
        let remote = self.0.remote_address();
        let connection = self
            .0
            .await
            .map_err(|error| TunnelError::lost(&remote.to_string(), describe(&error)))?;
        let alpn = alpn(&connection);
        let cert = peer_cert(&connection);
        match admit(alpn.as_deref(), cert.as_ref()) {
            Ok((protocol, cluster)) => {
                let peer = match &cluster {
                    Some(cluster) => {
                        connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW));
                        Identity::Agent(cluster.clone()).to_string()
                    }
                    None => remote.to_string(),
                };
                Ok((Conn::new(connection, peer, STREAMS_AT_FIRST), protocol, cluster))
            }
            Err(error) => {
                connection.close(
                    VarInt::from_u32(Code::PolicyDenied.number()),
                    error.to_string().as_bytes(),
                );
                Err(error)
            }
        }
    }
}

fn alpn(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

fn peer_cert(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let certs = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    certs.into_iter().next()
}

/// Dials servers, from one UDP port.
pub(crate) struct Connector {
    endpoint: quinn::Endpoint,
    control: quinn::ClientConfig,
    store: quinn::ClientConfig,
    streams: u32,
}

impl Connector {
    /// For an agent with its certificate. `local` is the address to dial from, any when it is not given.
    pub(crate) fn new(
        credentials: &Credentials,
        settings: &Settings,
        local: Option<IpAddr>,
    ) -> Result<Self, TunnelError> {
        let verifier = || {
            Ok::<_, TunnelError>(ServerVerifier::new(ServerTrust::Authority(Chains::new(
                &credentials.ca,
            )?)))
        };
        let config = |protocol: Protocol, liveness, streams| {
            let tls = client_tls(verifier()?)?
                .with_client_auth_cert(credentials.chain.clone(), credentials.key.clone_key())
                .map_err(credentials_fault("preparing the tunnel's client side"))?;
            client_config(tls, protocol, transport(settings, liveness, streams, true))
        };
        Ok(Self {
            control: config(Protocol::Control, settings.control, settings.request_streams)?,
            store: config(Protocol::Store, settings.store, STREAMS_AT_FIRST)?,
            endpoint: client_endpoint(local)?,
            streams: settings.request_streams,
        })
    }

    /// Connects to the server at `address` and checks that it is `name`.
    pub(crate) async fn connect(&self, name: &str, address: &str, protocol: Protocol) -> Result<Conn, TunnelError> {
        let (config, streams) = match protocol {
            Protocol::Control => (&self.control, self.streams),
            Protocol::Store | Protocol::Enrol => (&self.store, STREAMS_AT_FIRST),
        };
        let connection = dial(&self.endpoint, config, address).await?;
        let identity = peer_cert(&connection).as_ref().map(Identity::of).transpose()?;
        match identity {
            Some(Identity::Server(found)) if found == name => {
                Ok(Conn::new(connection, Identity::Server(found).to_string(), streams))
            }
            other => {
                connection.close(
                    VarInt::from_u32(Code::PolicyDenied.number()),
                    b"not the server that was dialed",
                );
                let found = other.map_or("nobody".to_owned(), |identity| identity.to_string());
                Err(TunnelError::Identity {
                    fault: format!("at {address} is {found}, not server {name}"),
                })
            }
        }
    }

    /// Closes all connections and waits a moment, so that the peers learn of it.
    pub(crate) async fn close(&self, clock: &dyn Clock) {
        close_endpoint(&self.endpoint, Code::None, "the agent stops", clock).await;
    }
}

/// Connects to a server of which only the checksum of its authority is known, without a certificate of one's own.
pub(crate) async fn connect_to_enrol(address: &str, ca_pin: &str, settings: &Settings) -> Result<Conn, TunnelError> {
    connect_without_certificate(address, ServerTrust::Pin(ca_pin.to_owned()), Protocol::Enrol, settings).await
}

/// The same for any protocol. Servers accept none but enrolment.
pub(crate) async fn connect_without_certificate(
    address: &str,
    trust: ServerTrust,
    protocol: Protocol,
    settings: &Settings,
) -> Result<Conn, TunnelError> {
    let tls = client_tls(ServerVerifier::new(trust))?.with_no_client_auth();
    let liveness = Liveness {
        keep_alive: settings.handshake,
        idle: settings.handshake,
    };
    let config = client_config(tls, protocol, transport(settings, liveness, 0, false))?;
    let endpoint = client_endpoint(None)?;
    let connection = dial(&endpoint, &config, address).await?;
    Ok(Conn::new(connection, format!("server at {address}"), 0))
}

fn client_tls(
    verifier: ServerVerifier,
) -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>, TunnelError> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(credentials_fault("preparing the tunnel's client side"))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)))
}

fn client_config(
    mut tls: rustls::ClientConfig,
    protocol: Protocol,
    transport: quinn::TransportConfig,
) -> Result<quinn::ClientConfig, TunnelError> {
    tls.alpn_protocols = vec![protocol.alpn().to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let tls = QuicClientConfig::try_from(tls).map_err(credentials_fault("preparing the tunnel's client side"))?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn client_endpoint(local: Option<IpAddr>) -> Result<quinn::Endpoint, TunnelError> {
    // The unspecified IPv6 address takes IPv4 as well, except where IPv6 is switched off.
    let endpoint = |ip: IpAddr| {
        let address = SocketAddr::new(ip, 0);
        quinn::Endpoint::new(
            quinn::EndpointConfig::default(),
            None,
            socket(address)?,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(|source| TunnelError::Bind {
            address: address.to_string(),
            source,
        })
    };
    match local {
        Some(ip) => endpoint(ip),
        None => endpoint(Ipv6Addr::UNSPECIFIED.into()).or_else(|_no_ipv6| endpoint(Ipv4Addr::UNSPECIFIED.into())),
    }
}

async fn dial(
    endpoint: &quinn::Endpoint,
    config: &quinn::ClientConfig,
    address: &str,
) -> Result<quinn::Connection, TunnelError> {
    let fault = |fault: String| TunnelError::Connect {
        server: address.to_owned(),
        fault,
    };
    let mut found = tokio::net::lookup_host(address)
        .await
        .map_err(|error| fault(error.to_string()))?;
    let target = found.next().ok_or_else(|| fault("the name has no address".into()))?;
    let dialing = endpoint
        .connect_with(config.clone(), target, SERVER_NAME)
        .map_err(|error| fault(error.to_string()))?;
    dialing.await.map_err(|error| fault(describe(&error)))
}

/// Why a connection ended, for people.
fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let code = Code::from_number(close.error_code.into_inner());
            let reason = String::from_utf8_lossy(&close.reason);
            if reason.is_empty() {
                code.to_string()
            } else {
                format!("{code}: {reason}")
            }
        }
        ConnectionError::TimedOut => "no sign of life from the other end".to_owned(),
        ConnectionError::Reset => "the other end has restarted".to_owned(),
        ConnectionError::LocallyClosed => "closed by this end".to_owned(),
        other => other.to_string(),
    }
}

/// Why and how a connection ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    /// The other end's code, when it took leave.
    pub(crate) code: Option<Code>,
    /// Whether the other end just fell silent.
    pub(crate) silent: bool,
    /// For people.
    pub(crate) text: String,
}

impl From<ConnectionError> for Ended {
    fn from(error: ConnectionError) -> Self {
        let code = match &error {
            ConnectionError::ApplicationClosed(close) => Some(Code::from_number(close.error_code.into_inner())),
            _ => None,
        };
        let silent = matches!(error, ConnectionError::TimedOut | ConnectionError::Reset);
        Self {
            code,
            silent,
            text: describe(&error),
        }
    }
}

/// An established connection. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Conn {
    inner: quinn::Connection,
    peer: Arc<str>,
    allowed: Arc<AtomicU32>,
    in_use: Arc<AtomicU32>,
}

/// One stream that the peer has opened; counts against the limit for as long as it lives.
pub(crate) struct StreamGuard(Arc<AtomicU32>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Conn {
    fn new(inner: quinn::Connection, peer: String, allowed: u32) -> Self {
        Self {
            inner,
            peer: peer.into(),
            allowed: Arc::new(AtomicU32::new(allowed)),
            in_use: Arc::default(),
        }
    }

    /// The other end, for messages.
    pub(crate) fn peer(&self) -> &str {
        &self.peer
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    pub(crate) fn rtt(&self) -> Duration {
        self.inner.rtt()
    }

    /// How many datagrams have come in: what proves that the other end lives.
    pub(crate) fn received(&self) -> u64 {
        self.inner.stats().udp_rx.datagrams
    }

    /// Opens a stream; waits while all allowed ones are in use.
    pub(crate) async fn open(&self, priority: i32) -> Result<(QuicSend, QuicRecv), TunnelError> {
        let (send, recv) = self.inner.open_bi().await.map_err(|error| TunnelError::NotDialed {
            peer: self.peer.to_string(),
            fault: describe(&error),
        })?;
        let send = QuicSend {
            inner: send,
            over: false,
        };
        send.prioritise(priority);
        Ok((send, QuicRecv { inner: recv }))
    }

    /// The next stream that the other end opens.
    pub(crate) async fn accept(&self, streams_max: u32) -> Result<((QuicSend, QuicRecv), StreamGuard), TunnelError> {
        let (send, recv) = self
            .inner
            .accept_bi()
            .await
            .map_err(|error| TunnelError::lost(&self.peer, describe(&error)))?;
        let in_use = self.in_use.fetch_add(1, Ordering::Relaxed) + 1;
        let allowed = self.allowed.load(Ordering::Relaxed);
        if in_use.saturating_mul(4) > allowed.saturating_mul(3) && allowed < streams_max {
            self.allow(allowed.saturating_mul(2).min(streams_max));
        }
        let guard = StreamGuard(Arc::clone(&self.in_use));
        Ok((
            (
                QuicSend {
                    inner: send,
                    over: false,
                },
                QuicRecv { inner: recv },
            ),
            guard,
        ))
    }

    /// Lets the other end open this many streams at a time.
    pub(crate) fn allow(&self, streams: u32) {
        self.allowed.store(streams, Ordering::Relaxed);
        self.inner.set_max_concurrent_bi_streams(VarInt::from_u32(streams));
    }

    pub(crate) fn close(&self, code: Code, reason: &str) {
        self.inner.close(VarInt::from_u32(code.number()), reason.as_bytes());
    }

    /// Completes when the connection has ended.
    pub(crate) async fn closed(&self) -> Ended {
        self.inner.closed().await.into()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.inner.close_reason().is_some()
    }
}

fn fault_of_write(error: quinn::WriteError) -> io::Error {
    match error {
        quinn::WriteError::Stopped(code) => StreamFault::Stopped(Code::from_number(code.into_inner())).into(),
        quinn::WriteError::ConnectionLost(error) => StreamFault::Lost(describe(&error)).into(),
        other => io::Error::new(io::ErrorKind::NotConnected, other),
    }
}

fn fault_of_read(error: quinn::ReadError) -> io::Error {
    match error {
        quinn::ReadError::Reset(code) => StreamFault::Reset(Code::from_number(code.into_inner())).into(),
        quinn::ReadError::ConnectionLost(error) => StreamFault::Lost(describe(&error)).into(),
        other => io::Error::new(io::ErrorKind::NotConnected, other),
    }
}

/// Sending direction of a QUIC stream.
pub(crate) struct QuicSend {
    inner: quinn::SendStream,
    over: bool,
}

impl QuicSend {
    /// Puts the stream before (or behind) others of its connection; 0 is where all begin.
    pub(crate) fn prioritise(&self, priority: i32) {
        if priority != 0 && self.inner.set_priority(priority).is_err() {
            tracing::trace!("a stream was over before it was used");
        }
    }
}

impl AsyncWrite for QuicSend {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf).map_err(fault_of_write)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.over = true;
        Poll::Ready(
            self.inner
                .finish()
                .map_err(|closed| io::Error::new(io::ErrorKind::NotConnected, closed)),
        )
    }
}

impl SendHalf for QuicSend {
    fn reset(&mut self, code: Code) {
        self.over = true;
        if self.inner.reset(VarInt::from_u32(code.number())).is_err() {
            tracing::trace!("a stream was over before it could be broken off");
        }
    }

    fn stopped(&self) -> BoxFuture<'static, StreamFault> {
        let stopped = self.inner.stopped();
        Box::pin(async move {
            match stopped.await {
                Ok(code) => StreamFault::Stopped(code.map_or(Code::None, |code| Code::from_number(code.into_inner()))),
                Err(quinn::StoppedError::ConnectionLost(error)) => StreamFault::Lost(describe(&error)),
                Err(other) => StreamFault::Lost(other.to_string()),
            }
        })
    }
}

impl Drop for QuicSend {
    fn drop(&mut self) {
        // The library would end the stream cleanly, and a body that was cut short would look whole.
        if !self.over {
            self.reset(Code::Cancelled);
        }
    }
}

/// Receiving direction of a QUIC stream.
pub(crate) struct QuicRecv {
    inner: quinn::RecvStream,
}

impl AsyncRead for QuicRecv {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.inner.poll_read_buf(cx, buf)).map_err(fault_of_read)?;
        Poll::Ready(Ok(()))
    }
}

impl RecvHalf for QuicRecv {
    fn stop(&mut self, code: Code) {
        if self.inner.stop(VarInt::from_u32(code.number())).is_err() {
            tracing::trace!("a stream was over before it could be stopped");
        }
    }
}
