//! The members of a `hanse store` cluster: as the etcd API's operators see and change them, and how a new one finds its place.

use crate::error::ServerError;
use async_trait::async_trait;
use hanse_consensus::{
    Change, ConsensusError, Discovery, Member, MemberStatus, Node, NodeConfig, NodeId, Refusal, Roster, identity,
};
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::pki::sha256_hex;
use hanse_runtime::rng::SharedRng;
use hanse_runtime::supervisor::chain;
use hanse_state::engine::SharedEngine;
use hanse_state::etcd::{MemberChange, MemberFault, MemberRefused, MoveRefused, Operator};
use hanse_state::pb;
use hanse_state::{GroupId, StoreError};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a joining member looks for itself among the members of the running cluster.
const DISCOVERY: Duration = Duration::from_secs(30);

/// How long the members must have been together before their number changes; etcd's rule. What makes members fail at their start
/// shows by then.
const TOGETHER: Duration = Duration::from_secs(5);

/// The cluster as the etcd API's operators see it.
pub(crate) struct Members {
    pub(crate) node: Node,
    pub(crate) clock: SharedClock,
    pub(crate) rng: SharedRng,
    /// Of peer URLs.
    pub(crate) scheme: &'static str,
    /// For handing leadership over.
    pub(crate) limit: Duration,
    /// Since when this member serves, on the clock's `mono`.
    pub(crate) since: Duration,
    /// Whether [`TOGETHER`] counts.
    pub(crate) strict: bool,
    /// URLs for clients, as members told last: one that is down keeps its own.
    pub(crate) urls: Mutex<BTreeMap<NodeId, Vec<String>>>,
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// In the API's words.
fn store_error(error: ConsensusError) -> StoreError {
    match error {
        ConsensusError::Store(error) => error,
        ConsensusError::Timeout { .. } => StoreError::Timeout,
        other => {
            tracing::warn!(error = chain(&other), "the members could not be asked or changed");
            StoreError::Timeout
        }
    }
}

fn refused(error: ConsensusError) -> MemberRefused {
    let refusal = match error {
        ConsensusError::Refused(refusal) => refusal,
        other => return store_error(other).into(),
    };
    tracing::warn!(%refusal, "a change of the members is refused");
    let fault = match &refusal {
        Refusal::NoSuchMember { .. } | Refusal::Gone { .. } | Refusal::Foreign { .. } => MemberFault::NotFound,
        Refusal::IdUsed { .. } => MemberFault::IdExists,
        Refusal::AddressTaken { .. } => MemberFault::UrlExists,
        Refusal::NotLearner { .. } => MemberFault::NotLearner,
        Refusal::Behind { .. } => MemberFault::NotReady,
        Refusal::TooManyLearners => MemberFault::TooManyLearners,
        Refusal::Unstarted { .. } => MemberFault::NotEnoughStarted,
        Refusal::Unreachable { .. } | Refusal::Alive { .. } => MemberFault::Unhealthy,
    };
    MemberRefused::fault(fault, refusal)
}

/// The address in the one URL of a member. Pure.
fn address(scheme: &str, urls: &[String]) -> Result<String, MemberRefused> {
    let bad = |reason: String| Err(MemberRefused::fault(MemberFault::BadUrls, reason));
    let [url] = urls else {
        return bad(format!("a member has one peer URL, not {}", urls.len()));
    };
    let url = url.trim();
    let Some((found, address)) = url.split_once("://") else {
        return bad(format!("{url:?} is not of the form {scheme}://host:port"));
    };
    if found != "http" && found != "https" {
        return bad(format!("{url:?} has a scheme other than http and https"));
    }
    if found != scheme {
        // etcd takes such a URL, too; it could not reach anybody there.
        tracing::warn!(
            url,
            scheme,
            "the members of this cluster meet by another scheme, which is used"
        );
    }
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok() => {
            Ok(address.to_owned())
        }
        _ => bad(format!("{url:?} is not of the form {scheme}://host:port")),
    }
}

/// The first 64 bits of a hash. Zero is no id in etcd's API.
pub(crate) fn id_of(text: &str) -> NodeId {
    let hash = sha256_hex(text.as_bytes());
    u64::from_str_radix(&hash[..16], 16).map_or(1, |id| id.max(1))
}

impl Members {
    /// An id that was never used: nobody draws the same bits twice.
    fn new_id(&self, address: &str) -> NodeId {
        let mut salt = [0; 16];
        self.rng.fill(&mut salt);
        id_of(&format!("{address}\n{salt:?}"))
    }

    async fn list(&self) -> Vec<pb::Member> {
        let statuses = self.node.cluster_status().await;
        let roster = self.node.roster();
        let voting = roster.voting();
        let mut urls = self.urls.lock().unwrap_or_else(PoisonError::into_inner);
        urls.retain(|id, _| roster.seats.contains_key(id));
        for status in statuses.iter().filter(|status| !status.extra.is_empty()) {
            let told = String::from_utf8_lossy(&status.extra);
            urls.insert(status.id, told.split(',').map(str::to_owned).collect());
        }
        let member = |status: &MemberStatus| pb::Member {
            id: status.id,
            name: status.name.clone(),
            peer_ur_ls: vec![format!("{}://{}", self.scheme, status.address)],
            client_ur_ls: urls.get(&status.id).cloned().unwrap_or_default(),
            is_learner: !voting.contains(&status.id),
        };
        statuses.iter().map(member).collect()
    }

    /// Refuses to change the number of voters, and to add learners, right after a start. One member alone may always grow.
    fn check_together(&self, change: &Change) -> Result<(), MemberRefused> {
        let roster = self.node.roster();
        let voting = roster.voting();
        // That a member was never started is said first, as by etcd.
        let unstarted = roster.seats.values().any(|seat| seat.awaits_vote && !seat.held);
        let counts = match change {
            Change::Add { .. } => true,
            Change::Remove(id) => voting.contains(id),
            Change::Promote(_) | Change::Update { .. } => false,
        };
        let age = self.clock.mono().saturating_sub(self.since);
        if !self.strict || !counts || unstarted || voting.len() < 2 || age >= TOGETHER {
            return Ok(());
        }
        let reason = format!(
            "this member serves for {} s only: members must have been together for {} s before one is added or removed",
            age.as_secs(),
            TOGETHER.as_secs()
        );
        Err(MemberRefused::fault(MemberFault::Unhealthy, reason))
    }

    fn wanted(&self, change: MemberChange) -> Result<Change, MemberRefused> {
        Ok(match change {
            MemberChange::Add { peer_urls, learner } => {
                let address = address(self.scheme, &peer_urls)?;
                Change::Add {
                    id: self.new_id(&address),
                    // Nobody knows its name before it is there.
                    member: Member {
                        name: String::new(),
                        address,
                    },
                    learner,
                }
            }
            MemberChange::Remove(id) => Change::Remove(id),
            MemberChange::Promote(id) => Change::Promote(id),
            MemberChange::Update { id, peer_urls } => Change::Update {
                id,
                address: address(self.scheme, &peer_urls)?,
            },
        })
    }
}

fn subject(change: &Change) -> NodeId {
    match change {
        Change::Add { id, .. } | Change::Promote(id) | Change::Remove(id) | Change::Update { id, .. } => *id,
    }
}

#[async_trait]
impl Operator for Members {
    async fn members(&self, linearizable: bool) -> Result<Vec<pb::Member>, StoreError> {
        if linearizable {
            self.node.catch_up().await.map_err(store_error)?;
        }
        Ok(self.list().await)
    }

    async fn change_members(
        &self,
        change: MemberChange,
    ) -> Result<(Option<pb::Member>, Vec<pb::Member>), MemberRefused> {
        let change = self.wanted(change)?;
        self.check_together(&change)?;
        self.node.change(change.clone()).await.map_err(refused)?;
        let id = subject(&change);
        // One that has left is told nothing any more, and answers by what it knew.
        if change != Change::Remove(self.node.id()) {
            self.node.catch_up().await.map_err(refused)?;
        }
        let mut members = self.list().await;
        if matches!(change, Change::Remove(_)) {
            members.retain(|member| member.id != id);
        }
        Ok((members.iter().find(|member| member.id == id).cloned(), members))
    }

    async fn move_leader(&self, to: u64) -> Result<(), MoveRefused> {
        let group = GroupId::COUNCIL;
        let mut leadership = self.node.leadership(group).ok_or(MoveRefused::NotLeader)?;
        if !leadership.borrow().here {
            return Err(MoveRefused::NotLeader);
        }
        let Roster { voters, .. } = self.node.roster();
        if !voters.contains(&to) {
            return Err(MoveRefused::BadTransferee);
        }
        if to == self.node.id() {
            return Ok(());
        }
        if let Err(error) = self.node.transfer_leadership(group, to).await {
            tracing::warn!(error = chain(&error), "leadership could not be handed over");
            return Err(MoveRefused::Timeout);
        }
        let taken = leadership.wait_for(|now| now.leader == Some(to));
        match timeout(self.clock.as_ref(), self.limit, taken).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(MoveRefused::Timeout),
        }
    }
}

/// Completes the configuration of a member by who it is: the directory says so where there is one already; of a cluster that
/// runs (`existing`), a new member learns it from the others; else it is as `config` has it.
pub(crate) async fn settle_identity(
    mut config: NodeConfig,
    existing: bool,
    engine: &SharedEngine,
    clock: &SharedClock,
) -> Result<NodeConfig, ServerError> {
    let fault = |error| ServerError::part("finding this member's place in the cluster", error);
    let stored = identity::stored_id(&config.data_dir).map_err(fault)?;
    if let Some(id) = stored.filter(|id| *id != config.id)
        && let Some(me) = config.members.remove(&config.id)
    {
        config.members.insert(id, me);
        config.id = id;
    }
    if !existing || identity::has_data(engine).map_err(fault)? {
        return Ok(config);
    }
    let address = config.members.get(&config.id).map(|me| me.address.clone());
    let others = config.members.iter().filter(|(id, _)| **id != config.id);
    let discovery = Discovery {
        name: config.name.clone(),
        address: address.unwrap_or_default(),
        others: others.map(|(_, member)| member.address.clone()).collect(),
        tls: config.tls.clone(),
        settings: config.settings.clone(),
    };
    let joined = discovery.run(clock, DISCOVERY).await.map_err(fault)?;
    tracing::info!(
        id = format!("{:x}", joined.id),
        members = joined.members.len(),
        "this member's place was found"
    );
    config.id = joined.id;
    config.members = joined.members;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_one_url() {
        let urls = |all: &[&str]| -> Vec<String> { all.iter().map(|url| (*url).to_owned()).collect() };
        assert_eq!(
            address("http", &urls(&["http://127.0.0.1:2380"])).unwrap(),
            "127.0.0.1:2380"
        );
        assert_eq!(address("https", &urls(&[" https://[::1]:1 "])).unwrap(), "[::1]:1");
        assert_eq!(address("https", &urls(&["http://h:1"])).unwrap(), "h:1");
        let bad: [&[&str]; 8] = [
            &[],
            &["http://a:1", "http://b:1"],
            &["a:1"],
            &["ftp://a:1"],
            &["http://a"],
            &["http://:1"],
            &["http://a:1/"],
            &["http://a:port"],
        ];
        for all in bad {
            assert!(address("http", &urls(all)).is_err(), "{all:?}");
        }
    }
}
