//! Who else is given the audit trail: files, syslog daemons, webhooks.
//!
//! - [`feed`]: reads the trail and keeps the cursor, the same for all of them.
//! - [`file`], [`syslog`], [`webhook`]: the ways in which events leave the system.

mod feed;
mod file;
mod syslog;
mod webhook;

pub(super) use feed::Cursor;

use super::settings::AuditSink;
use crate::error::GatewayError;
use async_trait::async_trait;
use hanse_runtime::clock::SharedClock;
use hanse_runtime::rng::SharedRng;
use hanse_runtime::shutdown::{Phase, Shutdown};
use hanse_runtime::supervisor::{Supervisor, TaskKind};
use hanse_runtime::telemetry::Metrics;
use hanse_state::objects::Objects;
use serde_json::Value;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Time for one delivery.
const DELIVERY: Duration = Duration::from_secs(30);

/// Contents of the files that an [`AuditSink`] names.
#[derive(Clone, Default)]
pub struct AuditSinkFiles {
    /// Token of a webhook.
    pub token: Option<String>,
    /// Certificates of the authority of a webhook, PEM.
    pub ca: Option<String>,
}

impl fmt::Debug for AuditSinkFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuditSinkFiles(..)")
    }
}

/// The sinks of an installation. Cheap to clone.
#[derive(Clone, Default)]
pub struct AuditSinks {
    sinks: Vec<Sink>,
}

impl fmt::Debug for AuditSinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl AuditSinks {
    /// As the server of this name feeds them while it leads. The settings hold: [`super::settings::AuditSettings::faults`].
    pub fn new(
        server: &str,
        sinks: Vec<(AuditSink, AuditSinkFiles)>,
        clock: &SharedClock,
    ) -> Result<Self, GatewayError> {
        let make = |(settings, files): (AuditSink, AuditSinkFiles)| {
            let name = settings.name.clone();
            Sink::new(server, settings, files, clock).map_err(|fault| GatewayError::AuditSink { name, fault })
        };
        let sinks = sinks.into_iter().map(make).collect::<Result<_, _>>()?;
        Ok(Self { sinks })
    }

    /// Names of the sinks.
    pub(crate) fn names(&self) -> Vec<String> {
        self.sinks.iter().map(|sink| sink.name.clone()).collect()
    }
}

/// One of them, before anything was opened.
#[derive(Clone)]
struct Sink {
    name: String,
    to: To,
}

#[derive(Clone)]
enum To {
    File(file::Log),
    Syslog(syslog::Daemon),
    Webhook(Arc<webhook::Webhook>),
}

impl Sink {
    fn new(server: &str, settings: AuditSink, files: AuditSinkFiles, clock: &SharedClock) -> Result<Self, String> {
        let to = match (settings.file, settings.syslog, settings.webhook) {
            (Some(file), ..) => To::File(file::Log::new(file, Arc::clone(clock))),
            (_, Some(syslog), _) => To::Syslog(syslog::Daemon::new(&syslog, server)?),
            (.., Some(webhook)) => To::Webhook(Arc::new(webhook::Webhook::new(&webhook, &files, Arc::clone(clock))?)),
            (None, None, None) => return Err("it is neither file nor syslog nor webhook".into()),
        };
        let name = settings.name;
        Ok(Self { name, to })
    }

    /// A new way there.
    fn way(&self) -> Box<dyn Way> {
        match &self.to {
            To::File(log) => Box::new(file::ToFile::new(log.clone())),
            To::Syslog(daemon) => Box::new(syslog::ToSyslog::new(daemon.clone())),
            To::Webhook(webhook) => Box::new(webhook::ToWebhook(Arc::clone(webhook))),
        }
    }
}

/// A way out of the system. It is thrown away after a fault, and when this server leads no more.
#[async_trait]
trait Way: Send {
    /// Returns once the other side has all of `events`, as `audit.k8s.io/v1` has them, in order. The fault is for the log.
    async fn deliver(&mut self, events: &[Value]) -> Result<(), String>;
}

/// Feeds all sinks until the shutdown reaches the controllers.
pub(crate) fn start(
    sinks: &AuditSinks,
    objects: &Objects,
    (clock, rng): (&SharedClock, &SharedRng),
    metrics: &Metrics,
    supervisor: &Supervisor,
    stop: &Shutdown,
) {
    if sinks.sinks.is_empty() {
        return;
    }
    let meters = feed::Meters::new(metrics);
    for sink in &sinks.sinks {
        let feed = feed::Feed {
            objects: objects.clone(),
            clock: Arc::clone(clock),
            rng: Arc::clone(rng),
            name: sink.name.clone(),
            meters: meters.of(&sink.name),
        };
        let (name, sink) = (format!("audit sink {}", sink.name), sink.clone());
        let run = feed.run(move || sink.way(), stop.phase(Phase::Controllers));
        supervisor.spawn(TaskKind::Controller, name, run);
    }
}
