//! What an agent observed, in the compact form that is kept in the council.
//!
//! An agent reports every few seconds to one server, and that server need not be the one that coordinates its region.
//! So the server that gets a report stores this object, but only when something a controller looks at has changed: a
//! heartbeat costs no write. Every coordinator reads it from its own view, before and after a take-over alike.

use hanse_api::Timestamp;
use hanse_api::intent::{AgentReport, TenantReport};
use hanse_api::kinds::{HANSE_GROUP, KindName};
use hanse_api::meta::Object;
use serde::{Deserialize, Serialize};

/// Last stored observation of each connected cluster; the object's name is the cluster's. Never served.
pub const OBSERVATIONS: KindName = KindName {
    group: HANSE_GROUP,
    version: "v1",
    kind: "Observation",
    plural: "observations",
    namespaced: false,
};

/// Longest message of one tenant that is stored, in bytes.
pub const MESSAGE_MAX: usize = 256;
/// Most tenants of one report, and of one cluster: with them the largest observation and the largest intent stay below
/// what one transaction may carry (1.5 MiB).
pub const TENANTS_MAX: usize = 2_000;
/// An older report than the stored one is ignored, unless it is this much older: then the agent's clock was set back.
const CLOCK_SET_BACK_MILLIS: i64 = 60_000;

/// An observation as stored.
pub type Observation = Object<ObservationSpec, ()>;

/// What the agent of one cluster observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObservationSpec {
    /// Version of the agent's program.
    pub version: String,
    /// Epoch of the intent that the agent works on.
    pub intent_epoch: i64,
    /// Revision of the intent that the agent works on.
    pub intent_revision: i64,
    /// When it was observed, by the agent's clock. Not a change by itself.
    pub observed_at: Timestamp,
    /// One entry per tenant on the host, by tenant id.
    pub tenants: Vec<TenantReport>,
}

impl ObservationSpec {
    /// The compact form of a report: sorted, bounded, without what changes with every heartbeat.
    pub fn compact(report: &AgentReport) -> Self {
        let mut tenants: Vec<TenantReport> = report.tenants.iter().take(TENANTS_MAX).map(compact_tenant).collect();
        tenants.sort_by(|a, b| a.tenant.cmp(&b.tenant));
        tenants.dedup_by(|a, b| a.tenant == b.tenant);
        Self {
            version: shorten(&report.version, MESSAGE_MAX),
            intent_epoch: report.intent_epoch,
            intent_revision: report.intent_revision,
            observed_at: report.observed_at,
            tenants,
        }
    }

    /// What the agent observed of `tenant`.
    pub fn tenant(&self, tenant: &str) -> Option<&TenantReport> {
        self.tenants
            .binary_search_by(|t| t.tenant.as_str().cmp(tenant))
            .ok()
            .map(|at| &self.tenants[at])
    }

    /// How `new` differs from this stored observation.
    pub fn compare(&self, new: &Self) -> Difference {
        let set_back = self.observed_at.as_millis() - new.observed_at.as_millis() > CLOCK_SET_BACK_MILLIS;
        let older = (new.intent_epoch, new.intent_revision) < (self.intent_epoch, self.intent_revision)
            || new.observed_at < self.observed_at && !same_second(new.observed_at, self.observed_at);
        if older && !set_back {
            return Difference::Older;
        }
        if self.without_words() != new.without_words() {
            return Difference::Facts;
        }
        if self.tenants != new.tenants {
            Difference::Words
        } else {
            Difference::None
        }
    }

    fn without_words(&self) -> Self {
        let tenants = self
            .tenants
            .iter()
            .map(|t| TenantReport {
                message: String::new(),
                ..t.clone()
            })
            .collect();
        Self {
            observed_at: Timestamp::default(),
            tenants,
            ..self.clone()
        }
    }
}

/// How a new observation differs from the stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Not at all, but for its time.
    None,
    /// Only in messages for people.
    Words,
    /// In something a controller acts on.
    Facts,
    /// It was overtaken by the stored one on another way.
    Older,
}

/// Stored times have whole seconds, so within one second the later arrival counts.
fn same_second(a: Timestamp, b: Timestamp) -> bool {
    a.as_millis().div_euclid(1000) == b.as_millis().div_euclid(1000)
}

fn compact_tenant(report: &TenantReport) -> TenantReport {
    TenantReport {
        message: shorten(&report.message, MESSAGE_MAX),
        kubernetes_version: shorten(&report.kubernetes_version, MESSAGE_MAX),
        restarts: 0,
        ..report.clone()
    }
}

fn shorten(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_api::intent::TenantState;

    fn report(at: i64, revision: i64, state: TenantState, message: &str) -> ObservationSpec {
        let tenant = |id: &str| TenantReport {
            tenant: id.into(),
            state,
            message: message.into(),
            restarts: u32::try_from(at / 1000).unwrap(),
            ..Default::default()
        };
        ObservationSpec::compact(&AgentReport {
            intent_epoch: 1,
            intent_revision: revision,
            observed_at: Timestamp::from_millis(at),
            tenants: vec![tenant("b"), tenant("a")],
            ..Default::default()
        })
    }

    #[test]
    fn a_heartbeat_is_no_change_and_an_overtaken_report_is_ignored() {
        use TenantState::{Ready, Starting};
        let stored = report(10_000, 5, Starting, "x");
        for (new, expected) in [
            (report(15_000, 5, Starting, "x"), Difference::None),
            (report(15_000, 5, Starting, "y"), Difference::Words),
            (report(15_000, 5, Ready, "y"), Difference::Facts),
            (report(15_000, 6, Starting, "x"), Difference::Facts),
            (report(15_000, 4, Ready, "x"), Difference::Older),
            (report(9_000, 5, Ready, "x"), Difference::Older),
            (report(10_500, 5, Ready, "x"), Difference::Facts),
        ] {
            assert_eq!(stored.compare(&new), expected, "{new:?}");
        }
        let later = report(100_000, 5, Starting, "x");
        assert_eq!(
            later.compare(&report(20_000, 5, Ready, "x")),
            Difference::Facts,
            "a clock that was set back"
        );
    }

    #[test]
    fn tenants_are_found_and_messages_are_bounded() {
        let long = "ä".repeat(MESSAGE_MAX);
        let spec = report(0, 1, TenantState::Failed, &long);
        assert_eq!(spec.tenant("a").unwrap().message.len(), MESSAGE_MAX);
        assert!(spec.tenant("c").is_none());
    }
}
