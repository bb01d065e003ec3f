//! Store calls: which connection takes one, and what is safe to repeat.
//!
//! A call whose connection dies is asked again on another when it changes nothing (a read), or when the server certainly has not
//! seen it. Anything else fails with an error that says that the outcome is unknown. Reads do not wait for a connection to be
//! declared dead: as soon as it is suspect they are asked elsewhere too, and the first answer counts.

use super::Inner;
use super::link::Link;
use crate::api::{Body, full_body};
use crate::error::TunnelError;
use crate::exchange::client;
use crate::identity::Protocol;
use crate::wire::StoreHead;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hanse_runtime::clock::timeout;
use http_body_util::{BodyExt, Limited};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Largest message of a call that is kept for asking again; etcd takes 1.5 MiB.
const UNARY_MAX: usize = 8 << 20;
/// How many connections one call tries at most.
const ATTEMPTS_MAX: usize = 3;
/// How long a call waits for a free stream before it tries another connection.
const STREAM_WAIT: Duration = Duration::from_secs(1);

/// How long a server whose store could not serve comes after the others.
const AVOID: Duration = Duration::from_secs(5);

/// What may be done with a call whose connection fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallClass {
    /// One message each way, changes nothing: may be asked again, and of two servers at once.
    Read,
    /// One message each way, may change something: asked again only when certainly not delivered.
    Write,
    /// Many messages: ends with its connection.
    Stream,
}

/// The class of a gRPC method of etcd's API. Unknown methods count as streams: nothing is assumed of them.
pub fn classify_call(path: &str) -> CallClass {
    match path {
        "/etcdserverpb.KV/Range"
        | "/etcdserverpb.Maintenance/Status"
        | "/etcdserverpb.Maintenance/Hash"
        | "/etcdserverpb.Maintenance/HashKV"
        | "/etcdserverpb.Lease/LeaseTimeToLive"
        | "/etcdserverpb.Lease/LeaseLeases"
        | "/etcdserverpb.Cluster/MemberList" => CallClass::Read,
        "/etcdserverpb.KV/Put"
        | "/etcdserverpb.KV/DeleteRange"
        | "/etcdserverpb.KV/Txn"
        | "/etcdserverpb.KV/Compact"
        | "/etcdserverpb.Lease/LeaseGrant"
        | "/etcdserverpb.Lease/LeaseRevoke" => CallClass::Write,
        _ => CallClass::Stream,
    }
}

/// What the choice of a connection depends on.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    preferred: bool,
    suspect: bool,
    avoided: bool,
    draining: bool,
    rtt: Duration,
}

/// The best of `candidates`: alive before suspect, serving before not serving, preferred before others, near before far; never
/// one that drains.
fn choose(candidates: &[Candidate]) -> Option<usize> {
    let usable = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| !candidate.draining);
    usable
        .min_by_key(|(_, c)| (c.suspect, c.avoided, !c.preferred, c.rtt))
        .map(|(index, _)| index)
}

/// Whether the whole answer is gRPC's UNAVAILABLE: the server is there, but its store has no leader or is behind.
fn says_unavailable<B>(response: &http::Response<B>) -> bool {
    response
        .headers()
        .get("grpc-status")
        .is_some_and(|status| status == "14")
}

/// Completes at the next change after which no connection that was asked shows signs of life.
async fn all_suspect(asked: &[Arc<Link>], changed: &mut watch::Receiver<u64>) {
    loop {
        if changed.changed().await.is_err() {
            // The dialer is gone, and so are its connections: their calls are about to fail.
            std::future::pending::<()>().await;
        }
        if asked.iter().all(|link| link.is_suspect() || link.conn.is_closed()) {
            return;
        }
    }
}

impl Inner {
    /// The best store connection that is not among `tried`.
    fn pick(&self, tried: &BTreeSet<u64>) -> Option<Arc<Link>> {
        let mut links = self.links_of(Protocol::Store);
        links.retain(|link| !tried.contains(&link.id) && !link.conn.is_closed());
        let candidates: Vec<Candidate> = links
            .iter()
            .map(|link| Candidate {
                preferred: self.prefers(link),
                suspect: link.is_suspect(),
                avoided: link.is_avoided(self.parts.clock.mono()),
                draining: link.is_draining(),
                rtt: link.conn.rtt(),
            })
            .collect();
        choose(&candidates).map(|index| links.swap_remove(index))
    }

    /// The same; waits for one to come up.
    async fn pick_or_wait(&self, tried: &BTreeSet<u64>) -> Result<Arc<Link>, TunnelError> {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            loop {
                if let Some(link) = self.pick(tried) {
                    return Some(link);
                }
                if changed.changed().await.is_err() {
                    return None;
                }
            }
        };
        let found = timeout(&*self.parts.clock, self.settings.connect_wait, waiting).await;
        found.ok().flatten().ok_or_else(|| TunnelError::NotConnected {
            peer: "any server".into(),
        })
    }

    pub(super) async fn store_call(&self, head: StoreHead, body: Body) -> Result<http::Response<Body>, TunnelError> {
        let class = classify_call(&head.path);
        let mut frame = BytesMut::new();
        head.put(&mut frame)?;
        if class == CallClass::Stream {
            return self.stream(frame, body).await;
        }
        let message =
            Limited::new(body, UNARY_MAX)
                .collect()
                .await
                .map_err(|error| match error.downcast::<TunnelError>() {
                    Ok(error) => *error,
                    Err(_too_long) => TunnelError::TooLarge {
                        what: "the message of a store call",
                        limit: UNARY_MAX,
                    },
                })?;
        let message = message.to_bytes();
        match class {
            CallClass::Read => self.read(frame, message).await,
            CallClass::Write | CallClass::Stream => self.write(frame, message).await,
        }
    }

    /// Once, on the best connection that has a free stream.
    async fn stream(&self, frame: BytesMut, body: Body) -> Result<http::Response<Body>, TunnelError> {
        let mut tried = BTreeSet::new();
        loop {
            let link = self.pick_or_wait(&tried).await?;
            match self.open(&link).await {
                Ok(streams) => {
                    return client::call(streams, link.conn.peer(), frame, body, &self.parts.supervisor).await;
                }
                Err(error) if tried.len() + 1 >= ATTEMPTS_MAX => return Err(error),
                Err(_try_next) => tried.insert(link.id),
            };
        }
    }

    /// One after the other, for as long as each certainly has not been delivered.
    async fn write(&self, frame: BytesMut, message: Bytes) -> Result<http::Response<Body>, TunnelError> {
        let mut tried = BTreeSet::new();
        loop {
            let link = self.pick_or_wait(&tried).await?;
            tried.insert(link.id);
            match self.attempt(&link, frame.clone(), message.clone()).await {
                Err(error) if error.certainly_not_delivered() && error.retryable() && tried.len() < ATTEMPTS_MAX => {
                    tracing::debug!(server = link.server, %error, "a store call goes to the next server");
                }
                outcome => return outcome,
            }
        }
    }

    /// The first good answer of up to [`ATTEMPTS_MAX`] connections; a further one is asked when the asked ones fail, are suspect,
    /// let one wait, or say that their store cannot serve now.
    async fn read(&self, frame: BytesMut, message: Bytes) -> Result<http::Response<Body>, TunnelError> {
        let mut changed = self.changed.subscribe();
        let mut tried = BTreeSet::new();
        let mut asked: Vec<Arc<Link>> = Vec::new();
        let mut running = FuturesUnordered::new();
        let mut worse = None;
        loop {
            if asked.len() < ATTEMPTS_MAX {
                let next = match (running.is_empty(), &worse) {
                    (true, None | Some(Err(_))) => Some(self.pick_or_wait(&tried).await),
                    // There is an answer already, if a poor one: no waiting for a connection to come up.
                    (true, Some(Ok(_))) | (false, _) => self.pick(&tried).map(Ok),
                };
                match next {
                    Some(Ok(link)) => {
                        tried.insert(link.id);
                        running.push(self.attempt_owned(Arc::clone(&link), frame.clone(), message.clone()));
                        asked.push(link);
                    }
                    Some(Err(error)) => return worse.unwrap_or(Err(error)),
                    None => {}
                }
            }
            if running.is_empty() {
                return worse.unwrap_or_else(|| {
                    Err(TunnelError::NotConnected {
                        peer: "any server".into(),
                    })
                });
            }
            tokio::select! {
                biased;
                Some(outcome) = running.next() => match outcome {
                    Err(error) if error.retryable() => worse = worse.or(Some(Err(error))),
                    Ok(response) if says_unavailable(&response) => worse = Some(Ok(response)),
                    answer => return answer,
                },
                () = all_suspect(&asked, &mut changed) => {}
                () = self.parts.clock.sleep(self.settings.hedge_after), if asked.len() < 2 => {}
            }
        }
    }

    async fn attempt_owned(
        &self,
        link: Arc<Link>,
        frame: BytesMut,
        message: Bytes,
    ) -> Result<http::Response<Body>, TunnelError> {
        self.attempt(&link, frame, message).await
    }

    async fn attempt(&self, link: &Link, frame: BytesMut, message: Bytes) -> Result<http::Response<Body>, TunnelError> {
        let streams = self.open(link).await?;
        client::call(
            streams,
            link.conn.peer(),
            frame,
            full_body(message),
            &self.parts.supervisor,
        )
        .await
        .inspect(|response| {
            if says_unavailable(response) {
                link.avoid_until(self.parts.clock.mono() + AVOID);
            }
        })
    }

    async fn open(&self, link: &Link) -> Result<(crate::quic::QuicSend, crate::quic::QuicRecv), TunnelError> {
        timeout(&*self.parts.clock, STREAM_WAIT, link.conn.open(0))
            .await
            .map_err(|_elapsed| TunnelError::Busy {
                peer: link.conn.peer().to_owned(),
            })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_are_asked_twice() {
        assert_eq!(classify_call("/etcdserverpb.KV/Range"), CallClass::Read);
        assert_eq!(classify_call("/etcdserverpb.Maintenance/Status"), CallClass::Read);
        assert_eq!(classify_call("/etcdserverpb.KV/Txn"), CallClass::Write);
        assert_eq!(classify_call("/etcdserverpb.KV/Compact"), CallClass::Write);
        assert_eq!(classify_call("/etcdserverpb.Watch/Watch"), CallClass::Stream);
        assert_eq!(classify_call("/etcdserverpb.KV/Range2"), CallClass::Stream);
        assert_eq!(classify_call("/x/Range"), CallClass::Stream);
    }

    #[test]
    fn the_best_connection() {
        let ms = Duration::from_millis;
        let c = |flags: &str, rtt| Candidate {
            preferred: flags.contains('p'),
            suspect: flags.contains('s'),
            avoided: flags.contains('a'),
            draining: flags.contains('d'),
            rtt: ms(rtt),
        };
        let cases: [(&[Candidate], Option<usize>); 8] = [
            (&[], None),
            (&[c("", 80), c("", 20)], Some(1)),
            (&[c("p", 80), c("", 20)], Some(0)),
            (&[c("ps", 1), c("", 20)], Some(1)),
            (&[c("pa", 1), c("", 20)], Some(1)),
            (&[c("s", 1), c("a", 20)], Some(1)),
            (&[c("ps", 1), c("d", 20)], Some(0)),
            (&[c("pd", 1)], None),
        ];
        for (candidates, want) in cases {
            assert_eq!(choose(candidates), want, "{candidates:?}");
        }
    }
}
