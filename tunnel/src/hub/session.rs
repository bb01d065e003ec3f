//! One connection of an agent, from its greeting to its end.

use super::{Inner, PRIORITY_CONTROL};
use crate::api::SessionInfo;
use crate::code::Code;
use crate::error::TunnelError;
use crate::exchange::reader::FrameReader;
use crate::exchange::server::{self, Head};
use crate::exchange::writer::FrameWriter;
use crate::frame::{self, Grammar, Kind};
use crate::identity::Protocol;
use crate::quic::{Conn, Ended, QuicRecv, QuicSend, StreamGuard};
use crate::wire::{self, Drain, Hello, Welcome};
use bytes::Bytes;
use futures::future::BoxFuture;
use hanse_runtime::clock::timeout;
use hanse_runtime::supervisor::TaskKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::{Notify, watch};

/// How long a sent-away agent should stay away at least.
const RECONNECT_AFTER_MILLIS: u32 = 1000;

/// An agent's connection that has been greeted.
pub(super) struct Session {
    id: u64,
    protocol: Protocol,
    pub(super) conn: Conn,
    pub(super) info: SessionInfo,
    pub(super) intents: watch::Sender<Option<Bytes>>,
    /// Asks for a check that the agent lives.
    pub(super) probe: Notify,
}

type ControlStream = (FrameWriter<QuicSend>, FrameReader<QuicRecv>);

/// Greets the agent and serves it until the connection ends.
pub(super) async fn run(hub: &Arc<Inner>, conn: Conn, protocol: Protocol, cluster: String) -> Result<(), TunnelError> {
    let clock = &*hub.parts.clock;
    let greeted = timeout(clock, hub.settings.handshake, greet(hub, &conn)).await;
    let (hello, control) = match greeted.map_err(TunnelError::deadline("an agent's greeting")) {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) | Err(error) => {
            conn.close(error.code(), &error.to_string());
            return Err(error);
        }
    };
    let info = SessionInfo {
        cluster,
        since: hub.parts.clock.wall(),
        remote: conn.remote(),
        version: hello.version,
        boot_id: hello.boot_id,
    };
    let session = Arc::new(Session {
        id: hub.next_session.fetch_add(1, Ordering::Relaxed),
        protocol,
        conn,
        info,
        intents: watch::Sender::new(None),
        probe: Notify::new(),
    });
    hub.enter(&session)?;
    tracing::info!(cluster = session.info.cluster, protocol = protocol.name(), remote = %session.info.remote, "agent connected");
    let ended = serve(hub, &session, control).await;
    hub.leave(&session, &ended);
    tracing::info!(
        cluster = session.info.cluster,
        protocol = protocol.name(),
        why = ended.text,
        "agent disconnected"
    );
    Ok(())
}

async fn greet(hub: &Inner, conn: &Conn) -> Result<(Hello, ControlStream), TunnelError> {
    let ((send, recv), guard) = conn.accept(0).await?;
    // The control stream does not count as use.
    drop(guard);
    send.prioritise(PRIORITY_CONTROL);
    let mut reader = FrameReader::new(recv, Grammar::Control, conn.peer(), Code::None);
    let mut writer = FrameWriter::new(send, conn.peer());
    let (_, bytes) = reader.message(&[Kind::Hello]).await?;
    let hello: Hello = wire::read(Kind::Hello, bytes)?;
    wire::put(
        Kind::Welcome,
        &Welcome {
            version: hub.version.clone(),
        },
        writer.buffer(),
    )?;
    writer.flush().await?;
    Ok((hello, (writer, reader)))
}

impl Inner {
    /// Makes `session` the one of its agent; an older one is closed.
    fn enter(&self, session: &Arc<Session>) -> Result<(), TunnelError> {
        let mut sessions = self.sessions.write();
        if !sessions.contains_key(&session.info.cluster) && sessions.len() >= self.settings.sessions_max {
            session
                .conn
                .close(Code::Busy, "this server has all the agents it takes");
            return Err(TunnelError::Busy {
                peer: format!("server {}", self.name),
            });
        }
        let slots = sessions.entry(session.info.cluster.clone()).or_default();
        let older = slots.of(session.protocol).replace(Arc::clone(session));
        if let Some(older) = older.filter(|older| !older.conn.is_closed()) {
            if older.info.boot_id != session.info.boot_id {
                let fight =
                    slots.pushed_out.replace(older.info.boot_id.clone()).as_ref() == Some(&session.info.boot_id);
                if fight {
                    tracing::error!(
                        cluster = session.info.cluster,
                        "two agents use the certificate of this cluster in turn; stop one of them"
                    );
                }
            }
            older
                .conn
                .close(Code::Superseded, "a newer session of this agent took over");
        }
        drop(sessions);
        if session.protocol == Protocol::Store {
            session.conn.allow(self.settings.store_streams);
        } else {
            self.changes.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    fn leave(&self, session: &Arc<Session>, ended: &Ended) {
        let mut sessions = self.sessions.write();
        let Some(slots) = sessions.get_mut(&session.info.cluster) else {
            return;
        };
        let slot = slots.of(session.protocol);
        if slot.as_ref().is_none_or(|current| current.id != session.id) {
            return;
        }
        *slot = None;
        if let (Protocol::Store, true, Some(control)) = (session.protocol, ended.silent, &slots.control) {
            // The path or the agent is dead. Users' requests should not have to find out.
            control.probe.notify_one();
        }
        if slots.control.is_none() && slots.store.is_none() && slots.pushed_out.is_none() {
            sessions.remove(&session.info.cluster);
        }
        drop(sessions);
        if session.protocol == Protocol::Control {
            self.changes.send_modify(|n| *n += 1);
        }
    }
}

async fn serve(hub: &Arc<Inner>, session: &Arc<Session>, (writer, reader): ControlStream) -> Ended {
    let talk = async {
        let outcome = tokio::select! {
            outcome = talk(hub, session, writer) => outcome,
            outcome = listen(reader) => outcome,
            outcome = accept(hub, session) => outcome,
        };
        if let Err(error) = outcome {
            session.conn.close(error.code(), &error.to_string());
        } else {
            session.conn.close(Code::None, "the session is over");
        }
        // The reason is what the connection says, not what a stream saw of it.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        ended = session.conn.closed() => ended,
        () = talk => Ended { code: None, silent: false, text: String::new() },
    }
}

/// Writes the control stream.
async fn talk(hub: &Inner, session: &Session, mut writer: FrameWriter<QuicSend>) -> Result<(), TunnelError> {
    let mut intents = session.intents.subscribe();
    // One may have been set before anybody subscribed.
    intents.mark_changed();
    let mut told = false;
    let (mut verdict, mut before) = (None, 0);
    loop {
        tokio::select! {
            changed = intents.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let intent = intents.borrow_and_update().clone();
                let put = intent.map_or(Ok(()), |intent| frame::put(Kind::Intent, &intent, writer.buffer()));
                if let Err(error) = put {
                    tracing::error!(cluster = session.info.cluster, %error, "an intent cannot be sent");
                }
            }
            () = hub.draining.cancelled(), if !told => {
                told = true;
                let close_in_millis = u32::try_from(hub.settings.drain_grace.as_millis()).unwrap_or(u32::MAX);
                let drain = Drain { close_in_millis, reconnect_after_millis: RECONNECT_AFTER_MILLIS };
                wire::put(Kind::Drain, &drain, writer.buffer())?;
            }
            () = session.probe.notified(), if verdict.is_none() => {
                frame::put(Kind::Ping, &[], writer.buffer())?;
                before = session.conn.received();
                verdict = Some(hub.parts.clock.sleep(hub.settings.life_wait));
            }
            () = due(&mut verdict) => {
                verdict = None;
                if session.conn.received() == before {
                    session.conn.close(Code::Silent, "no sign of life");
                }
            }
        }
        writer.flush().await?;
    }
}

/// Completes when the time has come, if there is one.
async fn due(time: &mut Option<BoxFuture<'static, ()>>) {
    match time {
        Some(time) => time.await,
        None => std::future::pending().await,
    }
}

/// Reads the control stream: nothing that matters comes, but its end does.
async fn listen(mut reader: FrameReader<QuicRecv>) -> Result<(), TunnelError> {
    loop {
        match reader.next().await? {
            Some(frame::Item::Message(Kind::Ping, _)) => {}
            Some(_) => return Err(TunnelError::malformed("control stream", "only pings may come")),
            None => return Ok(()),
        }
    }
}

/// Takes in what the agent opens: reports, or store calls. How many at a time is the stream limit's business.
async fn accept(hub: &Arc<Inner>, session: &Arc<Session>) -> Result<(), TunnelError> {
    // A report is small and rare; more of its streams would only help an agent that misbehaves.
    let most = if session.protocol == Protocol::Store {
        hub.settings.streams_max
    } else {
        0
    };
    loop {
        let (streams, guard) = session.conn.accept(most).await?;
        if hub.draining.is_cancelled() {
            server::turn_away(streams, Code::Draining);
            continue;
        }
        if hub.exchanges.len() >= hub.settings.exchanges_max {
            server::turn_away(streams, Code::Busy);
            continue;
        }
        let (hub, session) = (Arc::clone(hub), Arc::clone(session));
        let tracker = hub.exchanges.clone();
        let supervisor = hub.parts.supervisor.clone();
        let task = async move {
            let outcome = match session.protocol {
                Protocol::Store => store_call(&hub, &session, streams, guard).await,
                Protocol::Control | Protocol::Enrol => report(&hub, &session, streams, guard).await,
            };
            if let Err(error) = outcome {
                tracing::debug!(cluster = session.info.cluster, %error, "an exchange with an agent failed");
            }
            Ok(())
        };
        supervisor.spawn(TaskKind::Session, "tunnel exchange", tracker.track_future(task));
    }
}

async fn store_call(
    hub: &Inner,
    session: &Session,
    streams: (QuicSend, QuicRecv),
    _guard: StreamGuard,
) -> Result<(), TunnelError> {
    let accepting = server::accept(streams, session.conn.peer());
    let (head, exchange) = timeout(&*hub.parts.clock, hub.settings.handshake, accepting)
        .await
        .map_err(TunnelError::deadline("the head of a store call"))??;
    match head {
        Head::Store(head) => {
            exchange
                .answer(|body| hub.events.store_call(&session.info.cluster, head, body))
                .await
        }
        Head::Request(_) => Err(TunnelError::malformed("stream", "a request where a store call must be")),
    }
}

async fn report(
    hub: &Inner,
    session: &Session,
    (send, recv): (QuicSend, QuicRecv),
    _guard: StreamGuard,
) -> Result<(), TunnelError> {
    let peer = session.conn.peer();
    let mut reader = FrameReader::new(recv, Grammar::Report, peer, Code::None);
    let mut writer = FrameWriter::new(send, peer);
    let reading = timeout(
        &*hub.parts.clock,
        hub.settings.handshake,
        reader.message(&[Kind::Report]),
    );
    let (_, report) = reading.await.map_err(TunnelError::deadline("a report"))??;
    hub.events.report(&session.info.cluster, report).await;
    frame::put(Kind::Ack, &[], writer.buffer())?;
    writer.finish().await
}
