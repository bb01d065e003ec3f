//! A connection of another server to the Raft port: through TLS, or in the clear where that was asked for.

use crate::network::Peers;
use crate::revoked::Caller;
use crate::tls::{self, Trust};
use hanse_runtime::BoxError;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// The connection. When it is gone, [`Peers::losses`] counts it.
#[derive(Debug)]
pub struct PeerStream {
    wire: Wire,
    caller: Caller,
    peers: Peers,
}

#[derive(Debug)]
enum Wire {
    /// Encrypted, the caller known by its certificate.
    Secure(Box<TlsStream<TcpStream>>),
    /// In the clear.
    Open(TcpStream),
}

impl PeerStream {
    /// TLS has checked who signed the certificate; here we check that it is a server's.
    pub fn secure(stream: TlsStream<TcpStream>, trust: Trust, peers: Peers) -> Result<Self, BoxError> {
        let certs = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let named = certs
            .first()
            .and_then(tls::server_name)
            .filter(|_| trust == Trust::Names);
        match (trust, certs.first()) {
            (Trust::Names, _) if named.is_none() => {
                Err("a client without a server's certificate wanted to use the Raft port".into())
            }
            (_, None) => Err("a client without a certificate wanted to use the Raft port".into()),
            (_, Some(cert)) => {
                let caller = Caller::of(cert, named, peers.revoked())?;
                let wire = Wire::Secure(Box::new(stream));
                Ok(Self { wire, caller, peers })
            }
        }
    }

    /// In the clear, where that was asked for.
    pub fn open(stream: TcpStream, peers: Peers) -> Self {
        let (wire, caller) = (Wire::Open(stream), Caller::anybody());
        Self { wire, caller, peers }
    }
}

impl Drop for PeerStream {
    fn drop(&mut self) {
        self.peers.note_loss();
    }
}

impl Connected for PeerStream {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().wire {
            Wire::Secure(stream) => Pin::new(stream).poll_read(cx, buf),
            Wire::Open(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().wire {
            Wire::Secure(stream) => Pin::new(stream).poll_write(cx, buf),
            Wire::Open(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().wire {
            Wire::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Wire::Open(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::Secure(stream) => stream.is_write_vectored(),
            Wire::Open(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().wire {
            Wire::Secure(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Open(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().wire {
            Wire::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Open(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
