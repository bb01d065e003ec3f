//! Writes of this member that wait for their outcome.
//!
//! A proposal carries a name that only its proposer knows, and every member applies every entry. So the proposer learns the
//! outcome from its own apply, whatever happens to the leader meanwhile; and once an entry of a later term is applied here, a
//! proposal made in an earlier term that has not shown up never will, and may be made again.

use crate::types::{Proposal, ProposalId};
use bytes::Bytes;
use hanse_runtime::rng::Rng;
use hanse_state::pb::Outcome;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{oneshot, watch};

/// How far this member has applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries applied: last index + 1.
    pub next: u64,
    /// Term of the last applied entry.
    pub term: u64,
    /// Snapshots installed since the start: each may have hidden entries from this member.
    pub installs: u64,
}

/// The waiting writes of one group on one member.
#[derive(Debug)]
pub struct Pending {
    origin: u64,
    sequence: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Outcome>>>,
    progress: watch::Sender<Progress>,
}

/// A write that waits. Dropping it gives up waiting, not the write.
#[derive(Debug)]
pub struct Waiter {
    pending: Arc<Pending>,
    id: ProposalId,
    outcome: oneshot::Receiver<Outcome>,
}

impl Pending {
    /// Nothing waits yet.
    pub fn new(rng: &dyn Rng) -> Arc<Self> {
        let mut origin = [0; 8];
        rng.fill(&mut origin);
        Arc::new(Self {
            origin: u64::from_le_bytes(origin),
            sequence: AtomicU64::new(0),
            waiting: Mutex::default(),
            progress: watch::Sender::new(Progress::default()),
        })
    }

    /// Names a write and waits for it.
    pub fn register(self: &Arc<Self>) -> Waiter {
        let id = ProposalId {
            origin: self.origin,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
        };
        let (sender, outcome) = oneshot::channel();
        self.waiting.lock().insert(id.sequence, sender);
        Waiter {
            pending: Arc::clone(self),
            id,
            outcome,
        }
    }

    /// How many writes wait.
    pub fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Whether no write waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands the outcome of an applied entry to its waiter; gives it back when nobody here waits for it.
    pub fn resolve(&self, id: ProposalId, outcome: Outcome) -> Option<Outcome> {
        if id.origin != self.origin {
            return Some(outcome);
        }
        match self.waiting.lock().remove(&id.sequence) {
            Some(waiter) => waiter.send(outcome).err(),
            None => Some(outcome),
        }
    }

    /// Entries up to this one are applied, and their waiters resolved.
    pub fn applied(&self, term: u64, index: u64) {
        self.progress.send_modify(|progress| {
            progress.next = index + 1;
            progress.term = term;
        });
    }

    /// The state was replaced by that of a snapshot.
    pub fn installed(&self, term: u64, index: u64) {
        self.progress.send_modify(|progress| {
            *progress = Progress {
                next: index + 1,
                term,
                installs: progress.installs + 1,
            };
        });
    }

    /// Follows how far this member has applied.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }
}

/// What became of a write whose proposal got lost on the way.
#[derive(Debug)]
pub enum Fate {
    /// It was applied.
    Applied(Outcome),
    /// It never will be; it may be proposed again.
    Dead,
    /// Nobody here can tell.
    Unknown,
}

impl Waiter {
    /// The write as an entry.
    pub fn proposal(&self, command: Bytes) -> Proposal {
        Proposal { id: self.id, command }
    }

    /// Its outcome, once applied here. Cancel safe.
    pub async fn outcome(&mut self) -> Option<Outcome> {
        (&mut self.outcome).await.ok()
    }

    /// Waits until it is certain what became of a proposal made in `term`. `installs` is the count from before the proposal.
    pub async fn fate(&mut self, term: u64, installs: u64) -> Fate {
        let mut progress = self.pending.progress();
        let decided = progress.wait_for(|now| now.term > term || now.installs > installs);
        tokio::select! {
            biased;
            outcome = &mut self.outcome => outcome.map_or(Fate::Unknown, Fate::Applied),
            now = decided => match now.map(|now| *now) {
                // Apply resolves its waiters before it reports progress, so what is not there now is not in the log.
                Ok(now) => match self.outcome.try_recv() {
                    Ok(outcome) => Fate::Applied(outcome),
                    Err(_) if now.installs > installs => Fate::Unknown,
                    Err(_) => Fate::Dead,
                },
                Err(_) => Fate::Unknown,
            },
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.pending.waiting.lock().remove(&self.id.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::rng::SeededRng;

    fn pending() -> Arc<Pending> {
        Pending::new(&SeededRng::new(1))
    }

    #[tokio::test]
    async fn an_applied_write_finds_its_waiter_only_at_its_proposer() {
        let (here, there) = (pending(), Pending::new(&SeededRng::new(2)));
        let mut waiter = here.register();
        assert!(
            there.resolve(waiter.id, Outcome::default()).is_some(),
            "another member's"
        );
        assert!(here.resolve(waiter.id, Outcome::default()).is_none());
        assert!(waiter.outcome().await.is_some());
        assert!(
            here.resolve(waiter.id, Outcome::default()).is_some(),
            "nobody waits any more"
        );
        drop(waiter);
        assert!(here.is_empty());
        drop(here.register());
        assert!(here.is_empty(), "a waiter that gave up leaves nothing behind");
    }

    #[tokio::test]
    async fn a_later_term_settles_what_did_not_show_up() {
        let here = pending();
        let mut waiter = here.register();
        here.applied(3, 10);
        assert!(
            futures::FutureExt::now_or_never(waiter.fate(3, 0)).is_none(),
            "the same term may still bring it"
        );
        here.applied(4, 11);
        assert!(matches!(waiter.fate(3, 0).await, Fate::Dead));
    }

    #[tokio::test]
    async fn an_outcome_wins_over_the_later_term() {
        let here = pending();
        let mut waiter = here.register();
        here.resolve(waiter.id, Outcome::default());
        here.applied(4, 11);
        assert!(matches!(waiter.fate(3, 0).await, Fate::Applied(_)));
    }

    #[tokio::test]
    async fn a_snapshot_hides_what_it_contains() {
        let here = pending();
        let mut waiter = here.register();
        here.installed(9, 100);
        assert!(matches!(waiter.fate(3, 0).await, Fate::Unknown));
        let mut later = here.register();
        here.applied(10, 101);
        assert!(
            matches!(later.fate(9, 1).await, Fate::Dead),
            "a proposal made after the snapshot is not in it"
        );
    }
}
