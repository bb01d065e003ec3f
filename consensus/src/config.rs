//! Settings of a consensus node and their defaults.

use crate::error::ConsensusError;
use crate::fair;
use crate::purge;
use crate::tls::{TlsPem, Trust};
use crate::types::{Member, NodeId};
use openraft::SnapshotPolicy;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Timing and sizes. The defaults are for servers on one machine or in one city.
///
/// Between regions, `election_min` must be ten round trips or more and `heartbeat` a third of it or less: for 80 ms, heartbeat
/// 250 ms and elections 1500 to 3000 ms. After the leader falls silent, the others wait `election_max` plus a random time between
/// `election_min` and `election_max` before one of them stands for election; one whose process is gone they need not wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often a leader tells its followers that it lives.
    pub heartbeat: Duration,
    /// Shortest random wait before an election.
    pub election_min: Duration,
    /// Longest random wait before an election; also how long a follower trusts its leader's last word.
    pub election_max: Duration,
    /// A replication stream without an answer for so long is made anew.
    pub append_timeout: Duration,
    /// To reach another server.
    pub connect_timeout: Duration,
    /// A write or a linearizable read that found no leader, or no answer, for so long fails.
    pub request_timeout: Duration,
    /// For asking other servers how they are.
    pub status_timeout: Duration,
    /// A snapshot is given up when nothing more of it goes out for so long; its installation at the other end counts as such.
    pub snapshot_timeout: Duration,
    /// A member that does not say for so long how far a snapshot came is asked again.
    pub snapshot_stall: Duration,
    /// Bytes of a snapshot that are sent to one member in a second; 0: as many as go through.
    pub snapshot_rate: u64,
    /// Log entries after which older ones may be purged.
    pub snapshot_every: u64,
    /// Purgeable entries that are kept nevertheless: a member that comes back within them replays instead of taking a snapshot.
    pub keep_entries: u64,
    /// Bytes of log that are kept at most in the same way.
    pub keep_bytes: u64,
    /// Bytes that a leader keeps at most for a member that is behind; of entries, four times `keep_entries`.
    pub hold_bytes: u64,
    /// Entries purged at once.
    pub purge_stride: u64,
    /// Whose writes go into the log next, when there are many.
    pub turns: fair::Limits,
    /// How servers know each other. `hanse server` never uses another than the first.
    pub trust: Trust,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(350),
            election_max: Duration::from_millis(700),
            append_timeout: Duration::from_millis(700),
            connect_timeout: Duration::from_millis(500),
            request_timeout: Duration::from_secs(5),
            status_timeout: Duration::from_millis(1500),
            snapshot_timeout: Duration::from_secs(600),
            snapshot_stall: Duration::from_secs(10),
            snapshot_rate: 0,
            snapshot_every: 50_000,
            keep_entries: 50_000,
            keep_bytes: 128 << 20,
            hold_bytes: 1 << 30,
            purge_stride: 10_000,
            turns: fair::Limits::default(),
            trust: Trust::Names,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Settings {
    /// As openraft wants them.
    pub(crate) fn raft(&self, cluster_name: String) -> Result<openraft::Config, ConsensusError> {
        let election_max = millis(self.election_max);
        let config = openraft::Config {
            cluster_name,
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: election_max,
            // openraft hands out three quarters of it as the limit that the network keeps.
            install_snapshot_timeout: millis(self.snapshot_timeout).saturating_mul(4) / 3,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            // The rest is `purge`'s, which knows who is behind.
            max_in_snapshot_log_to_keep: self.keep_entries.saturating_mul(purge::HOLD),
            purge_batch_size: self.purge_stride,
            // A follower whose entries are still there replays them, however far behind: a snapshot costs far more.
            replication_lag_threshold: u64::MAX / 2,
            enable_pre_vote: Some(true),
            // An old leader without a quorum must stop renewing its followers' trust (openraft #2080).
            quorum_loss_probe_interval: Some(election_max.saturating_mul(2)),
            // Apply is not synced, so a leader that restarts could serve older state than it acknowledged.
            enable_leader_restore: Some(false),
            ..openraft::Config::default()
        };
        config.validate().map_err(|error| ConsensusError::Config {
            field: "consensus",
            fault: error.to_string(),
        })
    }
}

/// What a node needs to know of itself and of the others.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its id, never used by another server, nor again after its data was lost.
    pub id: NodeId,
    /// Its name, as in its certificate (`hanse://server/<name>`).
    pub name: String,
    /// `host:port` to listen on.
    pub listen: String,
    /// Where marks and received snapshots go; the engine's data may lie in a folder of it.
    pub data_dir: PathBuf,
    /// Certificates and key.
    pub tls: TlsPem,
    /// All servers that form the cluster at first, this one included, the same on each. Later changes are in the log; but what
    /// is said here of a member's address goes before what the log says, so that servers can be moved.
    pub members: BTreeMap<NodeId, Member>,
    /// Where this server, and only this one, finds others; `host:port`. Usually empty.
    pub addresses: BTreeMap<NodeId, String>,
    /// Timing and sizes.
    pub settings: Settings,
    /// Version of the program, for the status.
    pub version: String,
}

impl NodeConfig {
    /// Of a server called `name` that is no member yet: enough to ask others. Nobody's id is taken for anybody's, as some
    /// may have come back under others.
    pub(crate) fn stranger(name: &str, tls: &TlsPem, settings: &Settings) -> Self {
        Self {
            id: 0,
            name: name.to_owned(),
            listen: String::new(),
            data_dir: PathBuf::new(),
            tls: tls.clone(),
            members: BTreeMap::new(),
            addresses: BTreeMap::new(),
            settings: settings.clone(),
            version: String::new(),
        }
    }

    /// Whether it can work.
    pub fn check(&self) -> Result<(), ConsensusError> {
        let fault = |field, fault: String| Err(ConsensusError::Config { field, fault });
        let Some(me) = self.members.get(&self.id) else {
            return fault(
                "members",
                format!("server {} is not in the member list: add it with its address", self.id),
            );
        };
        if me.name != self.name {
            return fault(
                "name",
                format!(
                    "server {} is called {:?} in the member list: make them equal",
                    self.id, me.name
                ),
            );
        }
        for (id, member) in &self.members {
            if member.name.is_empty() || member.address.rsplit_once(':').is_none() {
                return fault(
                    "members",
                    format!("member {id} needs a name and an address of the form host:port"),
                );
            }
        }
        if let Some((id, address)) = self
            .addresses
            .iter()
            .find(|(_, address)| address.rsplit_once(':').is_none())
        {
            return fault(
                "addresses",
                format!("{address:?} of member {id} is not of the form host:port"),
            );
        }
        self.settings.raft(String::new()).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NodeConfig {
        let member = Member {
            name: "eu".into(),
            address: "127.0.1.1:8444".into(),
        };
        NodeConfig {
            id: 1,
            name: "eu".into(),
            listen: "127.0.1.1:8444".into(),
            data_dir: PathBuf::new(),
            tls: TlsPem {
                ca: String::new(),
                cert: String::new(),
                key: String::new(),
            },
            members: BTreeMap::from([(1, member)]),
            addresses: BTreeMap::new(),
            settings: Settings::default(),
            version: String::new(),
        }
    }

    #[test]
    fn what_cannot_work_is_named() {
        assert!(config().check().is_ok());
        let refused = |change: fn(&mut NodeConfig), word: &str| {
            let mut config = config();
            change(&mut config);
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        refused(|c| c.id = 2, "not in the member list");
        refused(|c| c.name = "us".into(), "make them equal");
        refused(
            |c| c.members.get_mut(&1).unwrap().address = "nowhere".into(),
            "host:port",
        );
        refused(
            |c| c.settings.election_min = Duration::from_millis(50),
            "field consensus",
        );
    }
}
