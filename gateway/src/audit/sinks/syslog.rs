//! Events to a syslog daemon: RFC 5424, one event a message, as datagrams (Unix socket, UDP as in RFC 5426) or counted octets
//! on a TCP connection (RFC 6587).
//!
//! Syslog confirms nothing. What the system has taken counts as delivered, so what was under way when a TCP connection broke may
//! be missing, and of UDP anything.

use super::Way;
use crate::audit::settings::{Address, SyslogSink};
use async_trait::async_trait;
use serde_json::Value;
use std::io;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket, UnixDatagram};

/// Severity "informational".
const INFORMATIONAL: u8 = 6;
/// Severity "notice": of what was refused.
const NOTICE: u8 = 5;

/// A daemon, and as whom it knows this server.
#[derive(Clone, Debug)]
pub(super) struct Daemon {
    address: Address,
    facility: u8,
    server: String,
}

impl Daemon {
    pub(super) fn new(settings: &SyslogSink, server: &str) -> Result<Self, String> {
        Ok(Self {
            address: Address::parse(&settings.address).ok_or("syslog.address cannot be read")?,
            facility: settings.facility,
            server: server.to_owned(),
        })
    }

    /// An event as a message. Pure.
    fn message(&self, event: &Value) -> String {
        let refused = event["annotations"]["authorization.k8s.io/decision"] == "forbid";
        let priority = self.facility * 8 + if refused { NOTICE } else { INFORMATIONAL };
        let at = event["stageTimestamp"].as_str().unwrap_or("-");
        format!("<{priority}>1 {at} {} hanse - audit - {event}", self.server)
    }
}

enum Socket {
    Unix(UnixDatagram),
    Udp(UdpSocket),
    Tcp(TcpStream),
}

/// Way to a daemon.
pub(super) struct ToSyslog {
    daemon: Daemon,
    socket: Option<Socket>,
}

impl ToSyslog {
    pub(super) fn new(daemon: Daemon) -> Self {
        Self { daemon, socket: None }
    }

    async fn connect(&self) -> io::Result<Socket> {
        Ok(match &self.daemon.address {
            Address::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                Socket::Unix(socket)
            }
            Address::Tcp(place) => Socket::Tcp(TcpStream::connect(place).await?),
            Address::Udp(place) => {
                let to = tokio::net::lookup_host(place).await?.next();
                let to = to.ok_or_else(|| io::Error::other("the host has no address"))?;
                let any: &str = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).await?;
                socket.connect(to).await?;
                Socket::Udp(socket)
            }
        })
    }

    async fn send(&mut self, events: &[Value]) -> io::Result<()> {
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => self.connect().await?,
        };
        let messages = events.iter().map(|event| self.daemon.message(event));
        match &mut socket {
            Socket::Unix(unix) => {
                for message in messages {
                    unix.send(message.as_bytes()).await?;
                }
            }
            Socket::Udp(udp) => {
                for message in messages {
                    udp.send(message.as_bytes()).await?;
                }
            }
            Socket::Tcp(stream) => {
                refuse_closed(stream)?;
                let frames: String = messages.map(|message| format!("{} {message}", message.len())).collect();
                stream.write_all(frames.as_bytes()).await?;
                stream.flush().await?;
            }
        }
        self.socket = Some(socket);
        Ok(())
    }
}

/// A daemon that went away has closed its end, which the next write alone would not tell.
fn refuse_closed(stream: &TcpStream) -> io::Result<()> {
    match stream.try_read(&mut [0; 64]) {
        Ok(0) => Err(io::Error::new(
            io::ErrorKind::ConnectionReset,
            "the connection was closed",
        )),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

#[async_trait]
impl Way for ToSyslog {
    async fn deliver(&mut self, events: &[Value]) -> Result<(), String> {
        self.send(events)
            .await
            .map_err(|e| format!("{:?}: {e}", self.daemon.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_are_of_rfc_5424() {
        let daemon = Daemon {
            address: Address::Tcp("h:1".into()),
            facility: 13,
            server: "eu-1".into(),
        };
        let event = json!({ "stageTimestamp": "2023-11-14T22:13:20.500000Z", "verb": "get" });
        let header = "1 2023-11-14T22:13:20.500000Z eu-1 hanse - audit - ";
        assert_eq!(daemon.message(&event), format!("<110>{header}{event}"));
        let mut refused = event;
        refused["annotations"] = json!({ "authorization.k8s.io/decision": "forbid" });
        assert_eq!(daemon.message(&refused), format!("<109>{header}{refused}"));
    }
}
