//! Who a server is: the id in its data directory, or the one that the running cluster has given to its address.

use crate::codec::{self, Applied};
use crate::config::{NodeConfig, Settings};
use crate::error::ConsensusError;
use crate::high_water::sync_dir;
use crate::network::{Lane, Peers};
use crate::roster::Roster;
use crate::tls::{Tls, TlsPem};
use crate::types::{GROUPS, GroupId, Member, NodeId};
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_state::StoreError;
use hanse_state::engine::{Cf, SharedEngine};
use hanse_state::keys::{META_MARKER, meta_key, prefix_end};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The file, in the folder of marks and received snapshots.
const FILE: &str = "server-id";
/// First line of the file.
const HEADER: &str = "hanse server id 1";
/// Between two rounds of questions.
const ASK_AGAIN: Duration = Duration::from_millis(200);

fn fault(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ConsensusError {
    let path = path.display().to_string();
    move |source| ConsensusError::File { what, path, source }
}

/// The id that the data in `data_dir` ([`NodeConfig::data_dir`]) belongs to; nothing where no server has started yet.
pub fn stored_id(data_dir: &Path) -> Result<Option<NodeId>, ConsensusError> {
    let path = data_dir.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault("read the server's id in", &path)(error)),
    };
    let mut lines = text.lines();
    let id = (lines.next() == Some(HEADER)).then(|| lines.next()).flatten();
    let id = id.and_then(|line| NodeId::from_str_radix(line, 16).ok());
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "not a server's id, or a damaged one");
    id.map(Some)
        .ok_or_else(|| fault("read the server's id in", &path)(damaged()))
}

/// Groups of which nothing is stored: neither entries nor state.
pub(crate) fn empty_groups(engine: &SharedEngine) -> Result<BTreeSet<GroupId>, ConsensusError> {
    let mut empty = BTreeSet::new();
    for id in GROUPS {
        let marker = engine
            .get(Cf::Meta, &meta_key(id, META_MARKER))
            .map_err(StoreError::from)?;
        let prefix = id.prefix();
        let last = engine
            .last(Cf::Log, &prefix, &prefix_end(&prefix))
            .map_err(StoreError::from)?;
        if last.is_none() && Applied::decode(marker)?.last.is_none() {
            empty.insert(id);
        }
    }
    Ok(empty)
}

/// Whether this server was part of a cluster, and so needs nobody to tell it who the members are.
pub fn has_data(engine: &SharedEngine) -> Result<bool, ConsensusError> {
    Ok(!empty_groups(engine)?.contains(&GroupId::COUNCIL))
}

/// Checks that the data directory is this server's; makes a new one, and marks it as such.
pub(crate) fn claim(data_dir: &Path, id: NodeId) -> Result<(), ConsensusError> {
    fs::create_dir_all(data_dir).map_err(fault("create the directory", data_dir))?;
    match stored_id(data_dir)? {
        Some(found) if found == id => return Ok(()),
        Some(found) => {
            let path = data_dir.display().to_string();
            return Err(ConsensusError::ForeignData { path, found, id });
        }
        None => {}
    }
    let path = data_dir.join(FILE);
    let write = || {
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        writeln!(file, "{HEADER}\n{id:x}")?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        sync_dir(&path)
    };
    write().map_err(fault("write the server's id to", &path))
}

/// A search for the id that a running cluster has given to this server's address.
#[derive(Debug)]
pub struct Discovery {
    /// This server's name, as in its certificate.
    pub name: String,
    /// Its address, as it was added.
    pub address: String,
    /// Addresses of running members.
    pub others: Vec<String>,
    /// Certificates and key.
    pub tls: TlsPem,
    /// Timing, and how servers know each other.
    pub settings: Settings,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// This server's id.
    pub id: NodeId,
    /// All members, this one by its own name included.
    pub members: BTreeMap<NodeId, Member>,
}

/// This server among the members, if it is there. Pure.
fn find(roster: &Roster, name: &str, address: &str) -> Option<Joined> {
    let seats = roster.seats.iter().map(|(id, seat)| (*id, seat.member.clone()));
    let mut members: BTreeMap<NodeId, Member> = seats.collect();
    let (id, me) = members.iter_mut().find(|(_, member)| member.address == address)?;
    let id = *id;
    name.clone_into(&mut me.name);
    Some(Joined { id, members })
}

impl Discovery {
    /// Asks the others until one has this server among its members, or `limit` has passed.
    pub async fn run(&self, clock: &SharedClock, limit: Duration) -> Result<Joined, ConsensusError> {
        let deadline = clock.mono() + limit;
        let tls = Tls::by(self.settings.trust, &self.tls, &self.name)?;
        let (numbered, config) = self.strangers();
        let peers = Peers::new(&config, tls, Arc::clone(clock));
        loop {
            let mut answered = false;
            for (id, member) in &numbered {
                let Some(roster) = self.ask(&peers, *id, member).await else {
                    continue;
                };
                answered = true;
                if let Some(found) = find(&roster, &self.name, &self.address) {
                    return Ok(found);
                }
            }
            if clock.mono() >= deadline {
                return Err(if answered {
                    let address = self.address.clone();
                    ConsensusError::NotAdded { address }
                } else {
                    ConsensusError::Timeout {
                        group: GroupId::COUNCIL,
                        what: "an answer of a running member",
                        seconds: limit.as_secs(),
                    }
                });
            }
            clock.sleep(ASK_AGAIN).await;
        }
    }

    /// Members whose ids are not known, numbered to tell them apart here.
    fn strangers(&self) -> (BTreeMap<NodeId, Member>, NodeConfig) {
        let member = |address: &String| Member {
            name: String::new(),
            address: address.clone(),
        };
        let numbered = (1..).zip(self.others.iter().map(member)).collect();
        let config = NodeConfig::stranger(&self.name, &self.tls, &self.settings);
        (numbered, config)
    }

    async fn ask(&self, peers: &Peers, id: NodeId, member: &Member) -> Option<Roster> {
        let mut client = peers.client(id, member, Lane::Control).ok()?;
        let call = client.status(codec::pb::StatusRequest {});
        let reply = timeout(peers.clock().as_ref(), self.settings.status_timeout, call).await;
        let groups = reply.ok()?.ok()?.into_inner().groups;
        let council = groups.into_iter().find(|status| status.group == GroupId::COUNCIL.0)?;
        let membership = codec::membership_from_pb(council.membership?).ok()?;
        Some(Roster::of(&membership)).filter(|roster| !roster.seats.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Seat;

    #[test]
    fn a_directory_belongs_to_one_server() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(stored_id(dir.path()).unwrap(), None);
        claim(dir.path(), 0xfeed).unwrap();
        assert_eq!(stored_id(dir.path()).unwrap(), Some(0xfeed));
        claim(dir.path(), 0xfeed).unwrap();
        let error = claim(dir.path(), 7).unwrap_err().to_string();
        assert!(error.contains("feed") && error.contains("id 7"), "{error}");
        fs::write(dir.path().join(FILE), "x\n").unwrap();
        assert!(
            stored_id(dir.path()).is_err(),
            "damage is not taken for a new directory"
        );
    }

    #[test]
    fn a_server_finds_itself_by_its_address() {
        let seat = |name: &str, address: &str| {
            Seat::of(Member {
                name: name.into(),
                address: address.into(),
            })
        };
        let roster = Roster {
            seats: BTreeMap::from([(1, seat("a", "h:1")), (9, seat("", "h:9"))]),
            voters: [1].into(),
            joint: false,
        };
        let found = find(&roster, "b", "h:9").unwrap();
        assert_eq!(
            (found.id, found.members[&9].name.as_str(), found.members.len()),
            (9, "b", 2)
        );
        assert_eq!(find(&roster, "b", "h:2"), None);
    }
}
