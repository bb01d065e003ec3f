//! The executor's pure core: from what a tenant should be and what it is to the next steps.
//!
//! One tenant at a time: tenants share nothing but the host. The plan is level-based: it looks at the present state
//! only, so that it does not matter whether the agent just started, was cut off, or missed an intent.

use std::collections::BTreeMap;
use std::time::Duration;

/// A process of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager.
    ControllerManager,
    /// kube-scheduler.
    Scheduler,
    /// kwok, for simulated nodes.
    Kwok,
}

impl Part {
    /// All, in the order in which they are started.
    pub const ALL: [Self; 4] = [Self::ApiServer, Self::ControllerManager, Self::Scheduler, Self::Kwok];

    /// Name of the program and of its files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kwok => "kwok",
        }
    }

    /// The part whose files have this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }

    /// Clients of the API server are stopped before it: open watches would hold up its end.
    pub const fn stop_rank(self) -> u8 {
        match self {
            Self::ApiServer => 0,
            Self::ControllerManager | Self::Scheduler | Self::Kwok => 1,
        }
    }
}

/// What a tenant should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Host epoch for calls to the store.
    pub epoch: u64,
    /// Digest of the files that must be there.
    pub files: String,
    /// Digest of what each process runs.
    pub parts: BTreeMap<Part, String>,
}

/// One process of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartState {
    /// It runs what this digest says.
    Running(String),
    /// It ended; not to be started before this time.
    Backoff(Duration),
}

/// What a tenant is. A part that is not named does not run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Digest of the files that are there.
    pub files: Option<String>,
    /// Host epoch that the store socket passes on, when the socket is open.
    pub socket: Option<u64>,
    /// Processes.
    pub parts: BTreeMap<Part, PartState>,
    /// Whether the API server serves requests (`/readyz` is good).
    pub serving: bool,
    /// Whether the tenant's directory is gone.
    pub removed: bool,
}

/// One effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Bring files in line.
    WriteFiles,
    /// Open the store socket, or let it pass on another epoch.
    OpenSocket(u64),
    /// Start a process.
    Start(Part),
    /// Stop processes and wait for their end.
    Stop(Vec<Part>),
    /// Close the store socket.
    CloseSocket,
    /// Remove the tenant's directory and give its ports back.
    Remove,
}

/// What to do now, and when to look again if nothing else happens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order; look again afterwards.
    pub steps: Vec<Step>,
    /// Time (monotonic) at which something is due.
    pub wake: Option<Duration>,
}

/// The next steps for one tenant. `wanted` is nothing when the tenant should not be on this host.
pub fn plan(wanted: Option<&Wanted>, observed: &Observed, now: Duration) -> Plan {
    match wanted {
        Some(wanted) => towards(wanted, observed, now),
        None => away(observed),
    }
}

fn running(observed: &Observed) -> impl Iterator<Item = (Part, &str)> {
    observed.parts.iter().filter_map(|(part, state)| match state {
        PartState::Running(spec) => Some((*part, spec.as_str())),
        PartState::Backoff(_) => None,
    })
}

fn away(observed: &Observed) -> Plan {
    let stop: Vec<Part> = running(observed).map(|(part, _)| part).collect();
    let steps = if !stop.is_empty() {
        vec![Step::Stop(stop)]
    } else if observed.socket.is_some() {
        // Only now: a process that stops still finishes its writes.
        vec![Step::CloseSocket]
    } else if !observed.removed {
        vec![Step::Remove]
    } else {
        Vec::new()
    };
    Plan { steps, wake: None }
}

fn towards(wanted: &Wanted, observed: &Observed, now: Duration) -> Plan {
    // Outdated processes go before the files change under them.
    let outdated = running(observed).filter(|(part, spec)| wanted.parts.get(part).is_none_or(|wanted| wanted != spec));
    let outdated: Vec<Part> = outdated.map(|(part, _)| part).collect();
    if !outdated.is_empty() {
        return Plan {
            steps: vec![Step::Stop(outdated)],
            wake: None,
        };
    }
    let mut plan = Plan::default();
    if observed.files.as_ref() != Some(&wanted.files) {
        plan.steps.push(Step::WriteFiles);
    }
    if observed.socket != Some(wanted.epoch) {
        plan.steps.push(Step::OpenSocket(wanted.epoch));
    }
    let api_runs = matches!(observed.parts.get(&Part::ApiServer), Some(PartState::Running(_)));
    for part in wanted.parts.keys().copied() {
        let due = match observed.parts.get(&part) {
            Some(PartState::Running(_)) => continue,
            Some(PartState::Backoff(until)) => *until,
            None => Duration::ZERO,
        };
        if due > now {
            plan.wake = Some(plan.wake.map_or(due, |wake| wake.min(due)));
        } else if part == Part::ApiServer || (api_runs && observed.serving) {
            // Its clients would only wait, take the processor from it, and give up after ten seconds.
            plan.steps.push(Step::Start(part));
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn wanted(parts: &[Part]) -> Wanted {
        let parts = parts.iter().map(|part| (*part, "v1".to_owned())).collect();
        Wanted {
            epoch: 7,
            files: "f1".into(),
            parts,
        }
    }

    fn observed(parts: &[(Part, PartState)]) -> Observed {
        Observed {
            files: Some("f1".into()),
            socket: Some(7),
            parts: parts.iter().cloned().collect(),
            serving: true,
            removed: false,
        }
    }

    fn runs(spec: &str) -> PartState {
        PartState::Running(spec.into())
    }

    struct Case {
        name: &'static str,
        wanted: Wanted,
        observed: Observed,
        steps: Vec<Step>,
        wake: Option<Duration>,
    }

    fn case(name: &'static str, wanted: Wanted, observed: Observed, steps: Vec<Step>, wake: Option<Duration>) -> Case {
        Case {
            name,
            wanted,
            observed,
            steps,
            wake,
        }
    }

    fn check(cases: Vec<Case>) {
        for Case {
            name,
            wanted,
            observed,
            steps,
            wake,
        } in cases
        {
            assert_eq!(plan(Some(&wanted), &observed, NOW), Plan { steps, wake }, "{name}");
        }
    }

    use Part::{ApiServer, ControllerManager, Kwok, Scheduler};

    #[test]
    fn towards_a_tenant() {
        let most = [ApiServer, ControllerManager, Scheduler];
        let later = NOW + Duration::from_secs(3);
        let soon = NOW + Duration::from_secs(1);
        let ends = |until| PartState::Backoff(until);
        check(vec![
            case(
                "a new tenant",
                wanted(&most),
                Observed::default(),
                vec![Step::WriteFiles, Step::OpenSocket(7), Step::Start(ApiServer)],
                None,
            ),
            case(
                "the API server does not serve yet",
                wanted(&most),
                Observed {
                    serving: false,
                    ..observed(&[(ApiServer, runs("v1"))])
                },
                vec![],
                None,
            ),
            case(
                "it serves",
                wanted(&most),
                observed(&[(ApiServer, runs("v1"))]),
                vec![Step::Start(ControllerManager), Step::Start(Scheduler)],
                None,
            ),
            case(
                "all runs",
                wanted(&[ApiServer]),
                observed(&[(ApiServer, runs("v1"))]),
                vec![],
                None,
            ),
            case(
                "ended processes wait for their time, the earliest counts",
                wanted(&most),
                observed(&[
                    (ApiServer, runs("v1")),
                    (ControllerManager, ends(later)),
                    (Scheduler, ends(soon)),
                ]),
                vec![],
                Some(soon),
            ),
            case(
                "their time has come",
                wanted(&most),
                observed(&[
                    (ApiServer, ends(NOW)),
                    (ControllerManager, runs("v1")),
                    (Scheduler, runs("v1")),
                ]),
                vec![Step::Start(ApiServer)],
                None,
            ),
        ]);
    }

    #[test]
    fn changes_of_a_tenant() {
        check(vec![
            case(
                "nodes are no longer wanted",
                wanted(&[ApiServer]),
                observed(&[(ApiServer, runs("v1")), (Kwok, runs("v1"))]),
                vec![Step::Stop(vec![Kwok])],
                None,
            ),
            case(
                "a new version: stop first, then files, then start",
                wanted(&[ApiServer]),
                Observed {
                    files: None,
                    ..observed(&[(ApiServer, runs("v0"))])
                },
                vec![Step::Stop(vec![ApiServer])],
                None,
            ),
            case(
                "another epoch restarts nothing",
                wanted(&[ApiServer]),
                Observed {
                    socket: Some(6),
                    ..observed(&[(ApiServer, runs("v1"))])
                },
                vec![Step::OpenSocket(7)],
                None,
            ),
        ]);
    }

    #[test]
    fn away_from_a_tenant() {
        let mut now = observed(&[
            (Part::ApiServer, runs("v1")),
            (Part::Kwok, runs("v1")),
            (Part::Scheduler, PartState::Backoff(NOW)),
        ]);
        let step = |observed: &Observed| plan(None, observed, NOW).steps;
        assert_eq!(step(&now), [Step::Stop(vec![Part::ApiServer, Part::Kwok])]);
        now.parts.clear();
        assert_eq!(step(&now), [Step::CloseSocket]);
        now.socket = None;
        assert_eq!(step(&now), [Step::Remove]);
        now.removed = true;
        assert_eq!(step(&now), []);
    }

    #[test]
    fn carrying_out_plans_always_ends() {
        let want = wanted(&Part::ALL);
        let mut now = Observed {
            serving: true,
            ..Observed::default()
        };
        for (wanted, rounds) in [(Some(&want), 3), (None, 4)] {
            for _ in 0..rounds {
                for step in plan(wanted, &now, NOW).steps {
                    apply(&mut now, step, &want);
                }
            }
            assert_eq!(plan(wanted, &now, NOW), Plan::default());
        }
        assert!(now.removed && now.parts.is_empty());
    }

    fn apply(now: &mut Observed, step: Step, want: &Wanted) {
        match step {
            Step::WriteFiles => now.files = Some(want.files.clone()),
            Step::OpenSocket(epoch) => now.socket = Some(epoch),
            Step::Start(part) => {
                now.parts.insert(part, runs("v1"));
            }
            Step::Stop(parts) => parts.iter().for_each(|part| {
                now.parts.remove(part);
            }),
            Step::CloseSocket => now.socket = None,
            Step::Remove => now.removed = true,
        }
    }

    #[test]
    fn names_lead_back_to_parts() {
        for part in Part::ALL {
            assert_eq!(Part::by_name(part.name()), Some(part));
        }
        assert_eq!(Part::by_name("etcd"), None);
    }
}
