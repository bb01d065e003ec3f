//! One connection to one server, from its greeting to its end.

use super::{ConnectionInfo, Inner, ServerAddress, watchdog};
use crate::api::Upgraded;
use crate::code::Code;
use crate::error::TunnelError;
use crate::exchange::reader::FrameReader;
use crate::exchange::server::{self, Head};
use crate::exchange::writer::FrameWriter;
use crate::frame::{self, Grammar, Item, Kind};
use crate::hub::PRIORITY_CONTROL;
use crate::identity::Protocol;
use crate::quic::{Conn, QuicRecv, QuicSend, StreamGuard};
use crate::wire::{self, Drain, Hello, Welcome};
use bytes::Bytes;
use hanse_api::Timestamp;
use hanse_runtime::clock::timeout;
use hanse_runtime::supervisor::TaskKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// A connection that has been greeted.
pub(super) struct Link {
    pub(super) id: u64,
    pub(super) server: String,
    pub(super) protocol: Protocol,
    pub(super) conn: Conn,
    pub(super) suspect: AtomicBool,
    draining: AtomicBool,
    stay_away_millis: AtomicU32,
    // By the monotonic clock.
    avoid_until_millis: AtomicU64,
    since: Timestamp,
    version: String,
    probe: Notify,
}

/// How a connection ended.
pub(super) struct LinkEnd {
    /// For people.
    pub(super) text: String,
    /// How long the server wants to be left alone.
    pub(super) stay_away: Duration,
    /// Whether another agent with the same identity took over.
    pub(super) superseded: bool,
}

/// The control stream.
pub(super) type ControlStream = (FrameWriter<QuicSend>, FrameReader<QuicRecv>);

impl Link {
    pub(super) fn info(&self) -> ConnectionInfo {
        ConnectionInfo {
            server: self.server.clone(),
            protocol: self.protocol,
            since: self.since,
            rtt: self.conn.rtt(),
            draining: self.is_draining(),
            suspect: self.is_suspect(),
            version: self.version.clone(),
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// Prefers others until then.
    pub(super) fn avoid_until(&self, mono: Duration) {
        let millis = u64::try_from(mono.as_millis()).unwrap_or(u64::MAX);
        self.avoid_until_millis.store(millis, Ordering::Relaxed);
    }

    pub(super) fn is_avoided(&self, mono: Duration) -> bool {
        mono.as_millis() < u128::from(self.avoid_until_millis.load(Ordering::Relaxed))
    }
}

/// Connects and greets.
pub(super) async fn connect(
    dialer: &Inner,
    server: &ServerAddress,
    protocol: Protocol,
) -> Result<(Arc<Link>, ControlStream), TunnelError> {
    let greeted = async {
        let conn = dialer
            .connector
            .connect(&server.name, &server.address, protocol)
            .await?;
        let (welcome, control) = greet(dialer, &conn).await?;
        Ok::<_, TunnelError>((conn, welcome, control))
    };
    let (conn, welcome, control) = timeout(&*dialer.parts.clock, dialer.settings.dial, greeted)
        .await
        .map_err(|_elapsed| {
            let fault = "no answer; check the address and that UDP is not blocked on the way".to_owned();
            TunnelError::Connect {
                server: server.name.clone(),
                fault,
            }
        })??;
    let link = Link {
        id: dialer.next_link.fetch_add(1, Ordering::Relaxed),
        server: server.name.clone(),
        protocol,
        conn,
        suspect: AtomicBool::new(false),
        draining: AtomicBool::new(false),
        stay_away_millis: AtomicU32::new(0),
        avoid_until_millis: AtomicU64::new(0),
        since: dialer.parts.clock.wall(),
        version: welcome.version,
        probe: Notify::new(),
    };
    Ok((Arc::new(link), control))
}

async fn greet(dialer: &Inner, conn: &Conn) -> Result<(Welcome, ControlStream), TunnelError> {
    let (send, recv) = conn.open(PRIORITY_CONTROL).await?;
    let mut writer = FrameWriter::new(send, conn.peer());
    let mut reader = FrameReader::new(recv, Grammar::Control, conn.peer(), Code::None);
    let hello = Hello {
        version: dialer.version.clone(),
        boot_id: dialer.boot_id.clone(),
    };
    wire::put(Kind::Hello, &hello, writer.buffer())?;
    writer.flush().await?;
    let (_, bytes) = reader.message(&[Kind::Welcome]).await?;
    Ok((wire::read(Kind::Welcome, bytes)?, (writer, reader)))
}

/// Serves the connection until it ends.
pub(super) async fn serve(dialer: &Arc<Inner>, link: &Arc<Link>, (writer, reader): ControlStream) -> LinkEnd {
    let work = async {
        let outcome = tokio::select! {
            outcome = listen(dialer, link, reader) => outcome,
            outcome = accept(dialer, link) => outcome,
            outcome = answer_probes(dialer, link, writer) => outcome,
            () = watch(dialer, link) => Ok(()),
        };
        match outcome {
            Ok(()) => link.conn.close(Code::None, "the session is over"),
            Err(error) => link.conn.close(error.code(), &error.to_string()),
        }
        // The reason is what the connection says, not what a stream saw of it.
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        biased;
        ended = link.conn.closed() => Some(ended),
        () = work => None,
    };
    let dead = ended.as_ref().is_some_and(|ended| ended.silent) || link.is_suspect();
    if dead && link.protocol == Protocol::Store {
        for control in dialer
            .links_of(Protocol::Control)
            .iter()
            .filter(|control| control.server == link.server)
        {
            control.probe.notify_one();
        }
    }
    LinkEnd {
        superseded: ended.as_ref().is_some_and(|ended| ended.code == Some(Code::Superseded)),
        text: if link.is_suspect() {
            "no sign of life".into()
        } else {
            ended.map_or(String::new(), |ended| ended.text)
        },
        stay_away: Duration::from_millis(link.stay_away_millis.load(Ordering::Relaxed).into()),
    }
}

async fn watch(dialer: &Inner, link: &Link) {
    match link.protocol {
        Protocol::Store => watchdog::watch(dialer, link).await,
        Protocol::Control | Protocol::Enrol => std::future::pending().await,
    }
}

/// Reads the control stream.
async fn listen(dialer: &Inner, link: &Link, mut reader: FrameReader<QuicRecv>) -> Result<(), TunnelError> {
    loop {
        match reader.next().await? {
            Some(Item::Message(Kind::Intent, intent)) if link.protocol == Protocol::Control => {
                dialer.events.intent(&link.server, intent);
            }
            Some(Item::Message(Kind::Drain, bytes)) => {
                let drain: Drain = wire::read(Kind::Drain, bytes)?;
                let most = u32::try_from(dialer.settings.backoff.1.as_millis()).unwrap_or(u32::MAX);
                link.stay_away_millis
                    .store(drain.reconnect_after_millis.min(most), Ordering::Relaxed);
                link.draining.store(true, Ordering::Relaxed);
                tracing::info!(
                    server = link.server,
                    closes_in_millis = drain.close_in_millis,
                    "the server drains"
                );
                dialer.bump();
            }
            Some(Item::Message(Kind::Ping, _)) => {}
            Some(_) => return Err(TunnelError::malformed("control stream", "an unexpected message")),
            None => return Ok(()),
        }
    }
}

/// Checks the other end on demand: sends something that must be acknowledged.
async fn answer_probes(dialer: &Inner, link: &Link, mut writer: FrameWriter<QuicSend>) -> Result<(), TunnelError> {
    loop {
        link.probe.notified().await;
        frame::put(Kind::Ping, &[], writer.buffer())?;
        writer.flush().await?;
        let before = link.conn.received();
        dialer.parts.clock.sleep(dialer.settings.life_wait).await;
        if link.conn.received() == before {
            link.suspect.store(true, Ordering::Relaxed);
            link.conn.close(Code::Silent, "no sign of life");
        }
    }
}

/// Takes in the requests that the server passes. How many at a time is the stream limit's business.
async fn accept(dialer: &Arc<Inner>, link: &Arc<Link>) -> Result<(), TunnelError> {
    loop {
        let (streams, guard) = link.conn.accept(dialer.settings.streams_max).await?;
        let (dialer, link) = (Arc::clone(dialer), Arc::clone(link));
        let supervisor = dialer.parts.supervisor.clone();
        supervisor.spawn(TaskKind::Session, "tunnel exchange", async move {
            if let Err(error) = request(&dialer, &link, streams, guard).await {
                tracing::debug!(server = link.server, %error, "an exchange with a server failed");
            }
            Ok(())
        });
    }
}

async fn request(
    dialer: &Inner,
    link: &Link,
    streams: (QuicSend, QuicRecv),
    _guard: StreamGuard,
) -> Result<(), TunnelError> {
    let clock = &*dialer.parts.clock;
    let accepting = server::accept(streams, link.conn.peer());
    let (head, exchange) = timeout(clock, dialer.settings.handshake, accepting)
        .await
        .map_err(TunnelError::deadline("the head of a request"))??;
    match head {
        Head::Request(head) if head.upgrade => {
            let handler: futures::future::BoxFuture<'_, Upgraded> = dialer.events.upgrade(&link.server, head);
            exchange.answer_upgrade(clock, handler).await
        }
        Head::Request(head) => {
            exchange
                .answer(|body| dialer.events.request(&link.server, head, body))
                .await
        }
        Head::Store(_) => Err(TunnelError::malformed("stream", "a store call where a request must be")),
    }
}

/// Hands a report over and waits until it is taken.
pub(super) async fn report(dialer: &Inner, link: &Link, report: &Bytes) -> Result<(), TunnelError> {
    let exchange = async {
        let (send, recv) = link.conn.open(0).await?;
        let mut writer = FrameWriter::new(send, link.conn.peer());
        let mut reader = FrameReader::new(recv, Grammar::Report, link.conn.peer(), Code::None);
        frame::put(Kind::Report, report, writer.buffer())?;
        writer.finish().await?;
        reader.message(&[Kind::Ack]).await.map(|_ack| ())
    };
    timeout(&*dialer.parts.clock, dialer.settings.life_wait, exchange)
        .await
        .map_err(TunnelError::deadline("a report's acknowledgement"))?
}
