//! What an administrator says about the audit trail: how much is kept, and who else is given it.

use super::policy::{AuditPolicy, AuditRule};
use hanse_api::name::check_label;
use http::Uri;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// Most sinks of an installation.
const MAX_SINKS: usize = 16;
/// How many events may be kept. Each costs some hundred bytes of memory on every server.
const KEEP_EVENTS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
/// Most rules of an installation: each request is held against them.
const MAX_RULES: usize = 256;
/// Bytes of an object in an event. What the store takes of an event is not much more.
const BODY_BYTES: std::ops::RangeInclusive<usize> = 0..=12_288;
/// Days that events may be kept.
const KEEP_DAYS: std::ops::RangeInclusive<u32> = 1..=3_650;

/// Section `[audit]` of `server.toml`: the same on every server, but for paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSettings {
    /// Events that are kept at most.
    pub keep_events: u64,
    /// Age of an event at most, in days.
    pub keep_days: u32,
    /// Bytes of an object, sent or stored, that is shown in an event where a rule wants it.
    pub max_body_bytes: usize,
    /// How much is told of which requests: the first rule that fits counts.
    #[serde(rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<AuditRule>,
    /// Who else is given every event, in order.
    #[serde(rename = "sink", skip_serializing_if = "Vec::is_empty")]
    pub sinks: Vec<AuditSink>,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self {
            keep_events: 100_000,
            keep_days: 90,
            max_body_bytes: 4_096,
            rules: Vec::new(),
            sinks: Vec::new(),
        }
    }
}

/// Somebody who is given every event: exactly one of the ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditSink {
    /// Name, a DNS label: what it was given is remembered under it.
    pub name: String,
    /// A file on the server that leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileSink>,
    /// A daemon that takes RFC 5424.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syslog: Option<SyslogSink>,
    /// An HTTPS endpoint that takes `audit.k8s.io/v1` EventLists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookSink>,
}

/// A file with one event in each line, and the older ones beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSink {
    /// Absolute path. Its folder must be there.
    pub path: PathBuf,
    /// Size from which on a new one is begun, in MiB.
    #[serde(default = "default_max_mib")]
    pub max_mib: u64,
    /// Older ones that are kept at most.
    #[serde(default = "default_max_files")]
    pub max_files: usize,
    /// How long older ones are kept at most, in days; 0: by number only.
    #[serde(default = "default_max_days")]
    pub max_days: u32,
}

const fn default_max_mib() -> u64 {
    100
}

const fn default_max_files() -> usize {
    10
}

const fn default_max_days() -> u32 {
    30
}

/// A syslog daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyslogSink {
    /// `unix:<path>`, `tcp://<host>:<port>` or `udp://<host>:<port>`.
    pub address: String,
    /// Number of the facility: 13, "log audit", by default.
    #[serde(default = "default_facility")]
    pub facility: u8,
}

const fn default_facility() -> u8 {
    13
}

/// An HTTPS endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSink {
    /// `https://...`, without secrets.
    pub url: String,
    /// File of mode 0600 with the token that is sent as `Authorization: Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// File with the certificates of the authority that the endpoint's certificate comes from; the system's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// How much of the audit trail is kept. What comes first counts.
#[derive(Clone, Debug)]
pub struct AuditKept {
    /// Events at most.
    pub events: u64,
    /// Age of an event at most.
    pub age: Duration,
}

impl Default for AuditKept {
    fn default() -> Self {
        AuditSettings::default().kept()
    }
}

/// Where a syslog daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
    /// `host:port`.
    Udp(String),
}

impl Address {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return path.starts_with('/').then(|| Self::Unix(path.into()));
        }
        let (way, place) = text.split_once("://")?;
        let (host, port) = place.rsplit_once(':')?;
        if host.is_empty() || !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return None;
        }
        match way {
            "tcp" => Some(Self::Tcp(place.to_owned())),
            "udp" => Some(Self::Udp(place.to_owned())),
            _ => None,
        }
    }
}

impl AuditSettings {
    /// What is kept.
    pub fn kept(&self) -> AuditKept {
        AuditKept {
            events: self.keep_events,
            age: Duration::from_secs(u64::from(self.keep_days) * 86_400),
        }
    }

    /// The rules.
    pub fn policy(&self) -> AuditPolicy {
        AuditPolicy::new(self.rules.clone(), self.max_body_bytes)
    }

    /// Every fault: key and text.
    pub fn faults(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        let mut require = |holds: bool, key: &str, fault: &str| {
            if !holds {
                faults.push((key.to_owned(), fault.to_owned()));
            }
        };
        let (events, days) = (&self.keep_events, &self.keep_days);
        require(
            KEEP_EVENTS.contains(events),
            "keep_events",
            "must be from 1000 to 1000000",
        );
        require(KEEP_DAYS.contains(days), "keep_days", "must be from 1 to 3650");
        let body = BODY_BYTES.contains(&self.max_body_bytes);
        require(body, "max_body_bytes", "must be from 0 to 12288");
        require(
            self.rules.len() <= MAX_RULES,
            "rule",
            "there may be at most 256 of them",
        );
        require(self.sinks.len() <= MAX_SINKS, "sink", "there may be at most 16 of them");
        let names: BTreeSet<_> = self.sinks.iter().map(|sink| &sink.name).collect();
        require(
            names.len() == self.sinks.len(),
            "sink",
            "two entries have the same name",
        );
        let files: Vec<_> = self.sinks.iter().filter_map(|s| s.file.as_ref()).collect();
        let paths: BTreeSet<_> = files.iter().map(|file| &file.path).collect();
        require(paths.len() == files.len(), "sink", "two entries have the same file");
        for (n, rule) in self.rules.iter().enumerate() {
            let of = |(key, fault): (&str, &str)| (format!("rule {}: {key}", n + 1), fault.to_owned());
            faults.extend(rule.faults().into_iter().map(of));
        }
        for sink in &self.sinks {
            let of = |(key, fault): (&str, String)| (format!("sink {:?}: {key}", sink.name), fault);
            faults.extend(sink.faults().into_iter().map(of));
        }
        faults
    }
}

impl AuditSink {
    fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if let Err(why) = check_label(&self.name) {
            faults.push(("name", format!("{:?}: {why}", self.name)));
        }
        let ways = [self.file.is_some(), self.syslog.is_some(), self.webhook.is_some()];
        if ways.iter().filter(|there| **there).count() != 1 {
            faults.push(("file, syslog, webhook", "exactly one of them must be there".to_owned()));
        }
        let mut require = |holds: bool, key: &'static str, fault: &str| {
            if !holds {
                faults.push((key, fault.to_owned()));
            }
        };
        if let Some(file) = &self.file {
            let named = file.path.is_absolute() && file.path.file_name().is_some();
            require(named, "file.path", "must be the absolute path of a file");
            require(
                (1..=10_000).contains(&file.max_mib),
                "file.max_mib",
                "must be from 1 to 10000",
            );
            require(
                (1..=1_000).contains(&file.max_files),
                "file.max_files",
                "must be from 1 to 1000",
            );
            require(
                file.max_days <= 3_650,
                "file.max_days",
                "must be from 0 (no limit) to 3650",
            );
        }
        if let Some(syslog) = &self.syslog {
            require(syslog.facility <= 23, "syslog.facility", "must be from 0 to 23");
            let form = "must be unix:<path>, tcp://<host>:<port> or udp://<host>:<port>";
            require(Address::parse(&syslog.address).is_some(), "syslog.address", form);
        }
        if let Some(webhook) = &self.webhook {
            let good = webhook.url.parse::<Uri>().is_ok_and(|url| {
                url.scheme_str() == Some("https") && url.authority().is_some_and(|a| !a.as_str().contains('@'))
            });
            let fault = "must begin with https://, name a host, and hold no user or password";
            require(good, "webhook.url", fault);
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn faults(settings: Value) -> Vec<String> {
        let settings: AuditSettings = serde_json::from_value(settings).unwrap();
        settings.faults().into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn what_is_right_is_taken() {
        assert_eq!(faults(json!({})), [""; 0]);
        let good = json!({ "keep_events": 5000, "keep_days": 7, "sink": [
            { "name": "a", "file": { "path": "/var/log/hanse/audit.log" } },
            { "name": "b", "syslog": { "address": "unix:/dev/log" } },
            { "name": "c", "syslog": { "address": "udp://log.example.com:514", "facility": 4 } },
            { "name": "d", "webhook": { "url": "https://siem.example.com/x", "token_file": "/t" } },
        ]});
        assert_eq!(faults(good), [""; 0]);
    }

    #[test]
    fn addresses() {
        assert_eq!(Address::parse("unix:/dev/log"), Some(Address::Unix("/dev/log".into())));
        assert_eq!(Address::parse("tcp://h:1"), Some(Address::Tcp("h:1".into())));
        assert_eq!(
            Address::parse("udp://[::1]:514"),
            Some(Address::Udp("[::1]:514".into()))
        );
        for bad in [
            "",
            "unix:log",
            "tcp://h",
            "tcp://:1",
            "udp://h:0",
            "udp://h:x",
            "tls://h:1",
            "h:1",
        ] {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_fault_names_its_key() {
        let rule = json!({ "level": "Request", "nonResourceURLs": ["x"] });
        let bad = json!({ "keep_events": 1, "keep_days": 0, "max_body_bytes": 20000, "rule": [rule], "sink": [
            { "name": "A", "file": { "path": "audit.log", "max_mib": 0, "max_files": 0, "max_days": 9999 } },
            { "name": "b" },
            { "name": "b", "syslog": { "address": "log:514", "facility": 24 }, "webhook": { "url": "http://x/" } },
            { "name": "c", "webhook": { "url": "https://me:secret@x/" } },
            { "name": "d", "file": { "path": "/x" } },
            { "name": "e", "file": { "path": "/x" } },
        ]});
        let want = [
            "keep_events",
            "keep_days",
            "max_body_bytes",
            "sink",
            "sink",
            "rule 1: nonResourceURLs",
            "sink \"A\": name",
            "sink \"A\": file.path",
            "sink \"A\": file.max_mib",
            "sink \"A\": file.max_files",
            "sink \"A\": file.max_days",
            "sink \"b\": file, syslog, webhook",
            "sink \"b\": file, syslog, webhook",
            "sink \"b\": syslog.facility",
            "sink \"b\": syslog.address",
            "sink \"b\": webhook.url",
            "sink \"c\": webhook.url",
        ];
        assert_eq!(faults(bad), want);
        let unknown = json!({ "sink": [{ "name": "a", "file": { "path": "/x", "max_size": 1 } }] });
        assert!(serde_json::from_value::<AuditSettings>(unknown).is_err());
    }
}
