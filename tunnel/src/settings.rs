//! Numbers of the transport. The defaults are the product's; tests and unusual networks change them.

use serde::Deserialize;
use std::time::Duration;

/// How fast a sender goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// By measured bandwidth: keeps its speed on long paths that lose a packet now and then.
    #[default]
    Bbr,
    /// By loss, like most TCP: fairer to others on narrow paths.
    Cubic,
}

/// Liveness of one kind of connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// The agent sends a sign of life after this much silence. The server never does: one side is enough.
    pub keep_alive: Duration,
    /// Either end takes the connection for dead after this much silence.
    pub idle: Duration,
}

/// All settings of hub and dialer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Congestion control of what this end sends.
    pub congestion: Congestion,
    /// Connections that carry users' requests. They live through short faults of the network, and so do users' shells.
    pub control: Liveness,
    /// Connections that carry store calls. Here a dead server must be noticed fast, so that calls move to another.
    pub store: Liveness,
    /// After this much silence, counted in steps of [`Settings::watchdog_step`], new store calls avoid a connection, and reads in
    /// flight are asked again elsewhere. After twice as much it is closed, which ends all calls on it.
    /// Longer paths get more: see [`crate::dialer::suspect_after`].
    pub suspect_after: Duration,
    /// How often silence is looked at. A process that was stopped itself counts at most one step for all the time it slept.
    pub watchdog_step: Duration,
    /// A read that got no answer for so long is asked of a second server as well.
    pub hedge_after: Duration,
    /// How long a store call or a request waits for a connection or a free stream.
    pub connect_wait: Duration,
    /// A request without an answer for so long makes the server check, again and again, that the agent lives.
    pub probe_after: Duration,
    /// How long the far end may take to acknowledge anything at all before a connection is given up.
    pub life_wait: Duration,
    /// Limit of handshakes, greetings and heads.
    pub handshake: Duration,
    /// How long an agent tries to reach a server before it dials anew. Within one attempt QUIC waits twice as long before each
    /// repetition (RFC 9002, 6.2), so a long one would notice late that a silent server is back.
    pub dial: Duration,
    /// Least and greatest bound of the wait before dialing again.
    pub backoff: (Duration, Duration),
    /// A connection that lived so long lets the next backoff start over.
    pub stable_after: Duration,
    /// How long a draining server lets exchanges go on.
    pub drain_grace: Duration,
    /// Streams that an agent lets a server open at first. Doubled while nearly all are in use, up to `streams_max`.
    pub request_streams: u32,
    /// Store calls that a server lets an agent open at first; a kube-apiserver holds about 130 watches.
    pub store_streams: u32,
    /// Most streams of a connection.
    pub streams_max: u32,
    /// Most store calls and reports in progress on a server; more are turned away unread.
    pub exchanges_max: usize,
    /// Most sessions of a server.
    pub sessions_max: usize,
    /// Handshakes in progress above which strangers must first prove their address.
    pub retry_above: usize,
    /// Most handshakes in progress.
    pub handshakes_max: usize,
    /// Most enrolments in progress.
    pub enrolments_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            congestion: Congestion::Bbr,
            control: Liveness {
                keep_alive: Duration::from_secs(15),
                idle: Duration::from_secs(45),
            },
            store: Liveness {
                keep_alive: Duration::from_millis(400),
                idle: Duration::from_secs(5),
            },
            suspect_after: Duration::from_millis(1000),
            watchdog_step: Duration::from_millis(200),
            hedge_after: Duration::from_millis(1500),
            connect_wait: Duration::from_secs(3),
            probe_after: Duration::from_secs(1),
            life_wait: Duration::from_secs(3),
            handshake: Duration::from_secs(10),
            dial: Duration::from_secs(5),
            backoff: (Duration::from_millis(200), Duration::from_secs(3)),
            stable_after: Duration::from_secs(30),
            drain_grace: Duration::from_secs(2),
            request_streams: 256,
            store_streams: 512,
            streams_max: 8192,
            exchanges_max: 200_000,
            sessions_max: 16_384,
            retry_above: 50,
            handshakes_max: 200,
            enrolments_max: 16,
        }
    }
}
