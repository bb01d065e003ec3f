//! A connection of another server to the Raft port: through TLS, or in the clear where that was asked for.

use crate::tls::{self, Trust};
use hanse_runtime::BoxError;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// The connection.
#[derive(Debug)]
pub enum PeerStream {
    /// Encrypted, the caller known by its certificate.
    Secure(Box<TlsStream<TcpStream>>),
    /// In the clear.
    Open(TcpStream),
}

impl PeerStream {
    /// TLS has checked who signed the certificate; here we check that it is a server's.
    pub fn secure(stream: TlsStream<TcpStream>, trust: Trust) -> Result<Self, BoxError> {
        let certs = stream.get_ref().1.peer_certificates().unwrap_or_default();
        match (trust, certs.first()) {
            (Trust::Names, cert) if cert.and_then(tls::server_name).is_none() => {
                Err("a client without a server's certificate wanted to use the Raft port".into())
            }
            (_, None) => Err("a client without a certificate wanted to use the Raft port".into()),
            (_, Some(_)) => Ok(Self::Secure(Box::new(stream))),
        }
    }
}

impl Connected for PeerStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for PeerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Secure(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Open(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Secure(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Open(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Open(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Secure(stream) => stream.is_write_vectored(),
            Self::Open(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Secure(stream) => Pin::new(stream).poll_flush(cx),
            Self::Open(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Open(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
