//! `server.toml`: everything one server needs to know. Unknown keys are faults; every fault is told at once.

use hanse_gateway::{AuditSettings, OidcIssuer};
use hanse_runtime::config::{ConfigErrors, Validate};
use hanse_runtime::telemetry::Format;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Name, a DNS label, unique among all servers.
    pub name: String,
    /// Raft node id, from 1, unique among all servers there ever were.
    pub id: u64,
    /// Region, a DNS label.
    pub region: String,
    /// Holds everything that the server keeps.
    pub data_dir: PathBuf,
    /// Form of log lines.
    #[serde(default)]
    pub log_format: Format,
    /// Keys and certificates.
    pub tls: TlsConfig,
    /// HTTPS front door.
    pub gateway: GatewaySection,
    /// Raft between servers.
    pub raft: RaftSection,
    /// QUIC endpoint for agents.
    pub tunnel: TunnelSection,
    /// Servers that the system starts with: the same list on each of them. Who joins or leaves later stands in the log.
    #[serde(rename = "member", default)]
    pub members: Vec<MemberConfig>,
    /// First administrator.
    #[serde(default)]
    pub bootstrap: BootstrapSection,
    /// Identity providers by which people log in: the same list on each server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub oidc: Vec<OidcIssuer>,
    /// What is kept of the audit trail, and who else is given it.
    #[serde(default)]
    pub audit: AuditSettings,
}

/// Files with keys and certificates. Keys must be readable by the owner only.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificate of the system's authority, PEM.
    pub ca: PathBuf,
    /// Key of the system's authority, PEM: servers sign the certificates of agents.
    pub ca_key: PathBuf,
    /// This server's certificate, PEM; names `hanse://server/<name>` as URI.
    pub cert: PathBuf,
    /// This server's key, PEM.
    pub key: PathBuf,
    /// 32 random bytes with which secrets are sealed; the same on every server.
    pub seal_key: PathBuf,
}

/// HTTPS front door.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewaySection {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// HTTPS base that clients use, such as that of the load balancer.
    pub external_url: String,
    /// How long the access key of a login by an identity provider holds, in seconds; groups are asked for again then.
    #[serde(default = "default_login_seconds")]
    pub login_seconds: u64,
    /// Credentials that do not hold, and refused logins, from one address in a minute; further ones are answered 429. Where a load
    /// balancer hides addresses, all behind it are one.
    #[serde(default = "default_failed_logins")]
    pub failed_logins_per_minute: u32,
    /// Steps of logins by identity providers from one address in a minute; further ones are answered 429.
    #[serde(default = "default_login_steps")]
    pub login_steps_per_minute: u32,
}

pub(crate) const fn default_failed_logins() -> u32 {
    30
}

pub(crate) const fn default_login_steps() -> u32 {
    300
}

pub(crate) const fn default_login_seconds() -> u64 {
    86_400
}

/// Raft between servers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaftSection {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Time between heartbeats of a leader, in milliseconds: a third of the election timeout or less.
    #[serde(default = "default_heartbeat_ms")]
    pub heartbeat_ms: u64,
    /// Shortest time without a heartbeat after which a follower stands for election, in milliseconds: ten times the
    /// longest round trip between servers or more. The longest is twice this, and after a leader's death the others wait the longest
    /// and a random time on top: 1.2 to 1.6 s by default.
    #[serde(default = "default_election_ms")]
    pub election_ms: u64,
    /// MiB of a snapshot that are sent to one server in a second, so that other traffic between regions keeps its share; 0: as many
    /// as go through.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub snapshot_mib_per_second: u32,
    /// Whether this server came to a system that was there (`hanse server join`): it then never forms one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joins: bool,
    /// Whether this server comes back under a new id by itself when it finds that it lost log entries; otherwise it stops, and its
    /// operator does that.
    #[serde(default = "default_rejoin", skip_serializing_if = "Clone::clone")]
    pub rejoin: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

pub(crate) const fn default_rejoin() -> bool {
    true
}

const fn default_heartbeat_ms() -> u64 {
    100
}

const fn default_election_ms() -> u64 {
    400
}

/// QUIC endpoint for agents.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelSection {
    /// UDP address to listen on.
    pub listen: SocketAddr,
}

/// One server of the system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// Raft node id.
    pub id: u64,
    /// Name.
    pub name: String,
    /// Region.
    pub region: String,
    /// HTTPS base of its gateway.
    pub gateway: String,
    /// `host:port` of its Raft service.
    pub raft: String,
    /// `host:port` (UDP) of its tunnel endpoint.
    pub tunnel: String,
}

/// First administrator: an access key whose secret only its owner has.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootstrapSection {
    /// Public id of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_key_id: Option<String>,
    /// SHA-256 of the key's secret, in lower-case hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_key_sha256: Option<String>,
}

impl ServerConfig {
    /// This server's own entry in the list of members.
    pub fn own_member(&self) -> Option<&MemberConfig> {
        self.members.iter().find(|m| m.id == self.id)
    }
}

impl Validate for ServerConfig {
    fn validate(&self, errors: &mut ConfigErrors) {
        for (key, name) in [("name", &self.name), ("region", &self.region)] {
            if let Err(why) = hanse_api::name::check_label(name) {
                errors.add(key, format!("{name:?}: {why}"));
            }
        }
        errors.require(self.id > 0, "id", "must be 1 or more");
        errors.require(self.raft.heartbeat_ms >= 10, "raft.heartbeat_ms", "must be 10 or more");
        let enough = self.raft.election_ms >= self.raft.heartbeat_ms.saturating_mul(3);
        errors.require(
            enough,
            "raft.election_ms",
            "must be three times raft.heartbeat_ms or more",
        );
        let https = self.gateway.external_url.starts_with("https://");
        errors.require(https, "gateway.external_url", "must begin with https://");
        let life = (60..=LOGIN_SECONDS_MAX).contains(&self.gateway.login_seconds);
        errors.require(life, "gateway.login_seconds", "must be from 60 to 31536000 (a year)");
        let (failed, steps) = (
            self.gateway.failed_logins_per_minute,
            self.gateway.login_steps_per_minute,
        );
        for (key, rate) in [("failed_logins_per_minute", failed), ("login_steps_per_minute", steps)] {
            let good = (1..=60_000).contains(&rate);
            errors.require(good, &format!("gateway.{key}"), "must be from 1 to 60000");
        }
        self.validate_members(errors);
        self.validate_bootstrap(errors);
        self.validate_oidc(errors);
        for (key, fault) in self.audit.faults() {
            errors.add(format!("audit.{key}"), fault);
        }
    }
}

/// Longest time that the key of a login may hold.
const LOGIN_SECONDS_MAX: u64 = 365 * 86_400;
/// Most identity providers of an installation.
const OIDC_MAX: usize = 32;

impl ServerConfig {
    fn validate_members(&self, errors: &mut ConfigErrors) {
        match self.own_member() {
            None => errors.add("member", format!("no entry has this server's id {}", self.id)),
            Some(own) => {
                let same = own.name == self.name && own.region == self.region;
                errors.require(
                    same,
                    "member",
                    "the entry with this server's id has another name or region",
                );
            }
        }
        let ids: BTreeSet<_> = self.members.iter().map(|m| m.id).collect();
        errors.require(
            ids.len() == self.members.len(),
            "member",
            "two entries have the same id",
        );
        let names: BTreeSet<_> = self.members.iter().map(|m| &m.name).collect();
        errors.require(
            names.len() == self.members.len(),
            "member",
            "two entries have the same name",
        );
    }

    fn validate_oidc(&self, errors: &mut ConfigErrors) {
        errors.require(self.oidc.len() <= OIDC_MAX, "oidc", "there may be at most 32 of them");
        for issuer in &self.oidc {
            for (key, fault) in issuer.faults() {
                errors.add(format!("oidc {:?}: {key}", issuer.id), fault);
            }
        }
        let ids: BTreeSet<_> = self.oidc.iter().map(|o| &o.id).collect();
        errors.require(ids.len() == self.oidc.len(), "oidc", "two entries have the same id");
        // An ID token names its issuer only: two entries would be two answers to who somebody is.
        let issuers: BTreeSet<_> = self.oidc.iter().map(|o| &o.issuer).collect();
        errors.require(
            issuers.len() == self.oidc.len(),
            "oidc",
            "two entries have the same issuer",
        );
    }

    fn validate_bootstrap(&self, errors: &mut ConfigErrors) {
        let (id, hash) = (&self.bootstrap.admin_key_id, &self.bootstrap.admin_key_sha256);
        let both = id.is_some() == hash.is_some();
        errors.require(both, "bootstrap", "admin_key_id and admin_key_sha256 go together");
        if let Some(hash) = hash {
            let hex = hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            errors.require(hex, "bootstrap.admin_key_sha256", "must be 64 lower-case hex digits");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::config::parse_text;
    use std::path::Path;

    const GOOD: &str = r#"
        name = "eu-1"
        id = 1
        region = "eu"
        data_dir = "data"
        [tls]
        ca = "a"
        ca_key = "b"
        cert = "c"
        key = "d"
        seal_key = "e"
        [gateway]
        listen = "127.0.1.1:8443"
        external_url = "https://127.0.0.1:8443"
        [raft]
        listen = "127.0.1.1:8444"
        [tunnel]
        listen = "127.0.1.1:8445"
        [[member]]
        id = 1
        name = "eu-1"
        region = "eu"
        gateway = "https://127.0.1.1:8443"
        raft = "127.0.1.1:8444"
        tunnel = "127.0.1.1:8445"
    "#;

    fn parse(text: &str) -> Result<ServerConfig, ConfigErrors> {
        parse_text(text, Path::new("server.toml"))
    }

    #[test]
    fn a_good_file_is_taken_and_written_back_the_same() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.raft.election_ms, 400);
        let again = parse(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(format!("{config:?}"), format!("{again:?}"));
    }

    #[test]
    fn identity_providers_are_checked_one_by_one_and_together() {
        let issuer = |id: &str, url: &str| format!("[[oidc]]\nid = {id:?}\nissuer = {url:?}\nclient_id = \"hanse\"\n");
        let two = issuer("corp", "https://id.example.com") + &issuer("other", "https://other.example.com");
        let config = parse(&format!("{GOOD}{two}")).unwrap();
        assert_eq!((config.oidc.len(), config.gateway.login_seconds), (2, 86_400));
        let again = parse(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again.oidc, config.oidc);
        let same = issuer("corp", "https://id.example.com") + &issuer("corp", "https://id.example.com");
        let bad = format!("{GOOD}{same}{}", issuer("device", "http://id.example.com"));
        let faults = parse(&bad).unwrap_err().to_string();
        for part in [
            "the same id",
            "the same issuer",
            "oidc \"device\": id",
            "oidc \"device\": issuer",
        ] {
            assert!(faults.contains(part), "{part}: {faults}");
        }
    }

    #[test]
    fn the_audit_and_its_sinks_are_checked() {
        let sinks = r#"
        [audit]
        keep_days = 7
        [[audit.sink]]
        name = "disk"
        file = { path = "/var/log/hanse/audit.log" }
        [[audit.sink]]
        name = "siem"
        webhook = { url = "https://siem.example.com/audit", token_file = "/etc/hanse/siem.token" }
        "#;
        let config = parse(&format!("{GOOD}{sinks}")).unwrap();
        assert_eq!((config.audit.keep_days, config.audit.sinks.len()), (7, 2));
        let again = parse(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again.audit, config.audit);
        let bad = sinks.replace("https://siem", "http://siem").replace("= 7", "= 0");
        let faults = parse(&format!("{GOOD}{bad}")).unwrap_err().to_string();
        for part in [
            "audit.keep_days: must be",
            "audit.sink \"siem\": webhook.url: must begin",
        ] {
            assert!(faults.contains(part), "{part}: {faults}");
        }
    }

    #[test]
    fn every_fault_is_named() {
        let bad = GOOD
            .replace("name = \"eu-1\"\n        id = 1", "name = \"EU\"\n        id = 7")
            .replace("https://127.0.0.1", "127.0.0.1");
        let faults = parse(&bad).unwrap_err().to_string();
        for part in [
            "name: \"EU\"",
            "gateway.external_url",
            "no entry has this server's id 7",
        ] {
            assert!(faults.contains(part), "{faults}");
        }
        let unknown = parse(&GOOD.replace("[raft]", "[raft]\nelection = 1"))
            .unwrap_err()
            .to_string();
        assert!(unknown.contains("election") && unknown.contains("line"), "{unknown}");
    }
}
