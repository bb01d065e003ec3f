//! Conditions of tenant clusters: their names, how they are set, and how phase, reason and message follow from them.

use hanse_api::meta::{Condition, set_condition};
use hanse_api::resources::{Phase, VciStatus};
use hanse_api::{Timestamp, meta::ObjectMeta};

/// A host was chosen.
pub const SCHEDULED: &str = "Scheduled";
/// The spec was understood and reached the host's agent.
pub const SYNCED: &str = "VirtualClusterSynced";
/// The host's agent runs the control plane.
pub const DEPLOYED: &str = "VirtualClusterDeployed";
/// The API server answers on its host.
pub const READY: &str = "VirtualClusterReady";
/// The API server can be reached through the agent.
pub const ONLINE: &str = "VirtualClusterOnline";
/// Every key, file and process of the tenant is gone. Only while it is being deleted.
pub const CLEANED_UP: &str = "CleanedUp";
/// A controller does its work. Set to `False` when one gave up; absent otherwise.
pub const RECONCILED: &str = "Reconciled";

/// Its store is limited; says to what. Absent without limits.
pub const STORE_LIMITED: &str = "StoreLimited";

/// In the order in which a tenant cluster passes them; the first that is not `True` gives reason and message.
const ORDER: [&str; 7] = [CLEANED_UP, RECONCILED, SCHEDULED, SYNCED, DEPLOYED, READY, ONLINE];
/// Longest message, in bytes; the rest is cut.
const MESSAGE_MAX: usize = 1024;

/// What is observed, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Type of the condition.
    pub kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

impl Observed {
    /// It holds.
    pub fn yes(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: "True",
            reason,
            message: message.into(),
        }
    }

    /// It does not hold.
    pub fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: "False",
            reason,
            message: message.into(),
        }
    }

    /// Nobody can say.
    pub fn unknown(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            status: "Unknown",
            reason,
            message: message.into(),
        }
    }

    /// Whether it holds.
    pub fn holds(&self) -> bool {
        self.status == "True"
    }
}

/// Sets `observed` among `conditions`.
pub fn set(conditions: &mut Vec<Condition>, generation: i64, now: Timestamp, observed: Observed) {
    let mut message = observed.message;
    if message.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX)
            .rev()
            .find(|at| message.is_char_boundary(*at))
            .unwrap_or(0);
        message.truncate(end);
    }
    set_condition(
        conditions,
        Condition {
            kind: observed.kind.to_owned(),
            status: observed.status.to_owned(),
            observed_generation: generation,
            last_transition_time: now,
            reason: observed.reason.to_owned(),
            message,
        },
    );
}

/// Removes the condition of `kind`.
pub fn clear(conditions: &mut Vec<Condition>, kind: &str) {
    conditions.retain(|c| c.kind != kind);
}

/// Sets `observed` on a tenant cluster and derives phase, reason and message from all its conditions. `broken` says
/// that what is wrong needs somebody.
pub fn conclude(status: &mut VciStatus, meta: &ObjectMeta, now: Timestamp, observed: Vec<Observed>, broken: bool) {
    for condition in observed {
        set(&mut status.conditions, meta.generation, now, condition);
    }
    let needed = |kind: &str| !matches!(kind, CLEANED_UP | RECONCILED);
    let first_fault = ORDER
        .iter()
        .find_map(|kind| status.conditions.iter().find(|c| c.kind == **kind && !c.is_true()));
    let complete = ORDER
        .iter()
        .filter(|kind| needed(kind))
        .all(|kind| status.conditions.iter().any(|c| c.kind == **kind && c.is_true()));
    (status.reason, status.message) =
        first_fault.map_or_else(Default::default, |fault| (fault.reason.clone(), fault.message.clone()));
    status.phase = match (broken, complete && first_fault.is_none()) {
        (true, _) => Phase::Failed,
        (false, true) => Phase::Ready,
        (false, false) => Phase::Pending,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(observed: Vec<Observed>, broken: bool) -> VciStatus {
        let mut status = VciStatus::default();
        conclude(
            &mut status,
            &ObjectMeta::default(),
            Timestamp::default(),
            observed,
            broken,
        );
        status
    }

    #[test]
    fn phase_reason_and_message_follow_from_the_first_fault() {
        let all = || {
            [SCHEDULED, SYNCED, DEPLOYED, READY, ONLINE]
                .map(|kind| Observed::yes(kind, "Ok", ""))
                .to_vec()
        };
        assert_eq!(after(all(), false).phase, Phase::Ready);
        assert_eq!(
            after(all()[..4].to_vec(), false).phase,
            Phase::Pending,
            "one is missing"
        );
        let mut two = all();
        two[4] = Observed::no(ONLINE, "Late", "late");
        two[2] = Observed::no(DEPLOYED, "Early", "early");
        let status = after(two.clone(), false);
        assert_eq!(
            (status.phase, status.reason.as_str(), status.message.as_str()),
            (Phase::Pending, "Early", "early")
        );
        assert_eq!(after(two, true).phase, Phase::Failed);
    }
}
