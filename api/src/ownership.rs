//! What an object goes with: references to its owners, and what becomes of it when they go.
//!
//! The rules are those of Kubernetes' API server and garbage collector (`metav1.OwnerReference`, `DeleteOptions`), as pure
//! functions. Who reads the facts and acts on the verdicts is the gateway's collector.

use crate::status::Cause;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Finalizer of an object that goes after its dependents.
pub const FINALIZER_FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents must forget it before it goes.
pub const FINALIZER_ORPHAN: &str = "orphan";
/// Most owners of one object: each is looked up when the object is judged.
pub const MAX_OWNERS: usize = 64;
/// Where references are, for faults.
const FIELD: &str = "metadata.ownerReferences";

/// `metav1.OwnerReference`. The owner is in the namespace of its dependent, or in none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Group and version of the owner.
    pub api_version: String,
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// The owner's uid: another object of that name is no owner.
    pub uid: String,
    /// Whether the owner is the one that manages the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    /// Whether an owner that is deleted in the foreground waits for this dependent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

impl OwnerReference {
    /// Whether the owner waits for this dependent.
    pub fn blocks(&self) -> bool {
        self.block_owner_deletion == Some(true)
    }

    /// Group and version; both empty when there are none to be read.
    pub fn group_version(&self) -> (&str, &str) {
        match self.api_version.split_once('/') {
            None => ("", &self.api_version),
            Some((_, version)) if version.contains('/') => ("", ""),
            Some(parts) => parts,
        }
    }
}

/// The references of an object, by its `metadata`. What cannot be read is none: it was refused when it was written.
pub fn owners(metadata: &Value) -> Vec<OwnerReference> {
    let items = metadata["ownerReferences"].as_array().map(Vec::as_slice);
    let read = |item: &Value| OwnerReference::deserialize(item).ok();
    items.unwrap_or_default().iter().filter_map(read).collect()
}

/// What happens to dependents when an object is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
    /// They stay and forget it.
    Orphan,
}

impl Propagation {
    /// The policy of that name in `DeleteOptions`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "Background" => Some(Self::Background),
            "Foreground" => Some(Self::Foreground),
            "Orphan" => Some(Self::Orphan),
            _ => None,
        }
    }
}

fn is_policy(finalizer: &str) -> bool {
    finalizer == FINALIZER_FOREGROUND || finalizer == FINALIZER_ORPHAN
}

/// The finalizers that an object has once its deletion was asked for. Without a policy the object's own finalizer says
/// which, and without that the dependents go in the background.
pub fn finalizers_for(existing: &[&str], policy: Option<Propagation>) -> Vec<String> {
    let own = existing.iter().copied().find(|f| is_policy(f));
    let wanted = match policy {
        Some(Propagation::Background) => None,
        Some(Propagation::Foreground) => Some(FINALIZER_FOREGROUND),
        Some(Propagation::Orphan) => Some(FINALIZER_ORPHAN),
        None => own,
    };
    let policies: Vec<&str> = existing.iter().copied().filter(|f| is_policy(f)).collect();
    if wanted.is_some_and(|wanted| policies == [wanted]) || (wanted.is_none() && policies.is_empty()) {
        return existing.iter().map(|f| (*f).to_owned()).collect();
    }
    let others = existing.iter().copied().filter(|f| !is_policy(f));
    others.chain(wanted).map(str::to_owned).collect()
}

/// Every fault of `metadata.ownerReferences`, in the words of Kubernetes.
pub fn faults(references: &Value) -> Vec<Cause> {
    let fault = |part: &str, message: String| Cause {
        reason: "FieldValueInvalid".into(),
        message,
        field: format!("{FIELD}{part}"),
    };
    let items = match references {
        Value::Null => return Vec::new(),
        Value::Array(items) => items,
        _ => return vec![fault("", "Invalid value: must be a list of references".into())],
    };
    if items.len() > MAX_OWNERS {
        return vec![fault(
            "",
            format!("Too many: {}: must have at most {MAX_OWNERS} items", items.len()),
        )];
    }
    let (mut faults, mut read) = (Vec::new(), Vec::with_capacity(items.len()));
    for item in items {
        match OwnerReference::deserialize(item) {
            Ok(reference) if item.is_object() => read.push(reference),
            Ok(_) => faults.push(fault("", "Invalid value: each must be an object".into())),
            Err(error) => faults.push(fault("", format!("Invalid value: {error}"))),
        }
    }
    faults.extend(read.iter().flat_map(|reference| reference_faults(reference, &fault)));
    let name = |of: &OwnerReference| format!("{}/{}", of.kind, of.name);
    let mut controllers = read.iter().filter(|r| r.controller == Some(true));
    if let Some(first) = controllers.next().map(name) {
        let more = controllers.map(|more| {
            format!(
                "Invalid value: {}: Only one reference can have Controller set to true. Found \"true\" in references for \
                 {first} and {}",
                shown(&read),
                name(more)
            )
        });
        faults.extend(more.map(|message| fault("", message)));
    }
    faults
}

/// As JSON, with the fields in Kubernetes' order.
fn shown(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn reference_faults(reference: &OwnerReference, fault: &dyn Fn(&str, String) -> Cause) -> Vec<Cause> {
    let mut faults = Vec::new();
    let (group, version) = reference.group_version();
    if version.is_empty() {
        let message = format!("Invalid value: {:?}: version must not be empty", reference.api_version);
        faults.push(fault(".apiVersion", message));
    }
    let texts = [
        ("kind", &reference.kind),
        ("name", &reference.name),
        ("uid", &reference.uid),
    ];
    let missing = texts.into_iter().filter(|(_, text)| text.is_empty());
    faults.extend(missing.map(|(key, _)| fault(&format!(".{key}"), "Invalid value: \"\": must not be empty".into())));
    if (group, version, reference.kind.as_str()) == ("", "v1", "Event") {
        let message = format!(
            "Invalid value: {}: /v1, Kind=Event is disallowed from being an owner",
            shown(reference)
        );
        faults.push(fault("", message));
    }
    faults
}

/// Takes references out that are there before in just the same words; gives their uids.
pub fn deduplicate(references: &mut Vec<Value>) -> Vec<String> {
    let (mut kept, mut twice) = (Vec::<Value>::with_capacity(references.len()), Vec::new());
    for item in references.drain(..) {
        if kept.contains(&item) {
            twice.push(item["uid"].as_str().unwrap_or_default().to_owned());
        } else {
            kept.push(item);
        }
    }
    *references = kept;
    twice
}

/// How far an object is on its way out, as far as its dependents are concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Its deletion was not asked for.
    #[default]
    Lives,
    /// Its dependents must forget it first.
    Orphans,
    /// Its dependents must go first.
    Waits,
    /// Others hold it.
    Dying,
}

impl Stage {
    /// By whether its deletion was asked for, and its finalizers.
    pub fn of<'a>(dying: bool, finalizers: impl IntoIterator<Item = &'a str>) -> Self {
        if !dying {
            return Self::Lives;
        }
        let mut stage = Self::Dying;
        for finalizer in finalizers {
            match finalizer {
                FINALIZER_ORPHAN => return Self::Orphans,
                FINALIZER_FOREGROUND => stage = Self::Waits,
                _ => {}
            }
        }
        stage
    }
}

/// What became of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// It is there.
    Solid,
    /// It is there and waits for its dependents to go.
    Waits,
    /// There is none of that name, or one with another uid.
    Absent,
    /// Nobody here knows its kind, or no owner of it could be meant. It may be there.
    Unknown,
}

/// What is known of an object that is judged.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// Where the object is.
    pub stage: Stage,
    /// Which policy its finalizers ask for.
    pub policy: Option<Propagation>,
    /// Uids of its owners and what became of them.
    pub owners: &'a [(String, OwnerState)],
    /// Whether it has dependents.
    pub has_dependents: bool,
    /// Whether there is a dependent that it waits for.
    pub is_blocked: bool,
    /// Whether a dependent of it waits for its own dependents: there may be a circle.
    pub in_circle: bool,
}

/// What is to be done with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// It forgets these owners.
    Forget(Vec<String>),
    /// It goes, by this policy; first, if `unblock`, no owner waits for it any more.
    Delete {
        /// What happens to its dependents.
        policy: Propagation,
        /// Whether a circle of waiting has to be opened.
        unblock: bool,
    },
    /// Its dependents forget it, then its finalizer goes.
    Orphan,
    /// All dependents that it waited for are gone, so its finalizer goes.
    Release,
}

/// Decides.
pub fn judge(of: &Situation<'_>) -> Verdict {
    match of.stage {
        Stage::Orphans => return Verdict::Orphan,
        Stage::Waits if of.is_blocked => return Verdict::Keep,
        Stage::Waits => return Verdict::Release,
        // Only forward: it goes when its finalizers do.
        Stage::Dying => return Verdict::Keep,
        Stage::Lives => {}
    }
    let uids = |wanted: &[OwnerState]| {
        let of_state = of.owners.iter().filter(|(_, state)| wanted.contains(state));
        of_state.map(|(uid, _)| uid.clone()).collect::<Vec<String>>()
    };
    let any = |state: OwnerState| of.owners.iter().any(|(_, s)| *s == state);
    if of.owners.is_empty() || any(OwnerState::Unknown) {
        return Verdict::Keep;
    }
    if any(OwnerState::Solid) {
        // Forgetting an owner that waits lets it go.
        let gone = uids(&[OwnerState::Absent, OwnerState::Waits]);
        return if gone.is_empty() {
            Verdict::Keep
        } else {
            Verdict::Forget(gone)
        };
    }
    if any(OwnerState::Waits) && of.has_dependents {
        return Verdict::Delete {
            policy: Propagation::Foreground,
            unblock: of.in_circle,
        };
    }
    Verdict::Delete {
        policy: of.policy.unwrap_or(Propagation::Background),
        unblock: false,
    }
}

/// The policy that an object's finalizers ask for.
pub fn policy_of<'a>(finalizers: impl IntoIterator<Item = &'a str>) -> Option<Propagation> {
    let mut policy = None;
    for finalizer in finalizers {
        match finalizer {
            FINALIZER_ORPHAN => return Some(Propagation::Orphan),
            FINALIZER_FOREGROUND => policy = Some(Propagation::Foreground),
            _ => {}
        }
    }
    policy
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policies_become_finalizers() {
        use Propagation::{Background, Foreground, Orphan};
        for (existing, policy, want) in [
            (vec![], None, vec![]),
            (vec!["x"], Some(Background), vec!["x"]),
            (vec!["x"], Some(Foreground), vec!["x", "foregroundDeletion"]),
            (
                vec!["foregroundDeletion", "x"],
                Some(Foreground),
                vec!["foregroundDeletion", "x"],
            ),
            (vec!["foregroundDeletion", "x"], Some(Orphan), vec!["x", "orphan"]),
            (vec!["orphan", "x"], None, vec!["orphan", "x"]),
            (vec!["orphan", "x"], Some(Background), vec!["x"]),
        ] {
            assert_eq!(finalizers_for(&existing, policy), want, "{existing:?} {policy:?}");
        }
    }

    #[test]
    fn references_are_checked_as_kubernetes_checks_them() {
        let good = json!([
            { "apiVersion": "v1", "kind": "A", "name": "a", "uid": "1", "controller": true },
            { "apiVersion": "g/v1", "kind": "B", "name": "b", "uid": "2", "blockOwnerDeletion": true },
        ]);
        assert_eq!(faults(&good), []);
        assert_eq!(faults(&Value::Null), []);
        let fields = |bad: Value| faults(&bad).into_iter().map(|f| f.field).collect::<Vec<_>>();
        let empty = json!([{ "apiVersion": "a/b/c" }]);
        let named = |part: &str| format!("metadata.ownerReferences.{part}");
        assert_eq!(fields(empty), ["apiVersion", "kind", "name", "uid"].map(named));
        let whole = ["metadata.ownerReferences"];
        assert_eq!(fields(json!({})), whole);
        assert_eq!(fields(json!(["x"])), whole);
        assert_eq!(
            fields(json!([{ "apiVersion": "v1", "kind": 5, "name": "a", "uid": "1" }])),
            whole
        );
        assert_eq!(
            fields(json!([{ "apiVersion": "v1", "kind": "Event", "name": "a", "uid": "1" }])),
            whole
        );
        let controllers =
            |kind: &str| json!({ "apiVersion": "v1", "kind": kind, "name": "n", "uid": kind, "controller": true });
        let two = faults(&json!([controllers("A"), controllers("B")]));
        assert!(two[0].message.ends_with("for A/n and B/n"), "{two:?}");
        assert_eq!(fields(Value::Array(vec![controllers("A"); MAX_OWNERS + 1])), whole);
    }

    #[test]
    fn what_is_there_twice_is_kept_once() {
        let (a, b) = (json!({ "uid": "1", "name": "a" }), json!({ "uid": "1", "name": "b" }));
        let mut references = vec![a.clone(), b.clone(), a.clone()];
        assert_eq!(deduplicate(&mut references), ["1"]);
        assert_eq!(references, [a, b]);
    }

    fn situation(owners: &[(String, OwnerState)]) -> Situation<'_> {
        Situation {
            stage: Stage::Lives,
            policy: None,
            owners,
            has_dependents: false,
            is_blocked: false,
            in_circle: false,
        }
    }

    fn named(states: &[OwnerState]) -> Vec<(String, OwnerState)> {
        states.iter().enumerate().map(|(n, s)| (n.to_string(), *s)).collect()
    }

    #[test]
    fn an_object_goes_when_no_owner_is_left() {
        use OwnerState::{Absent, Solid, Unknown, Waits};
        let background = Verdict::Delete {
            policy: Propagation::Background,
            unblock: false,
        };
        for (states, want) in [
            (vec![], Verdict::Keep),
            (vec![Solid], Verdict::Keep),
            (vec![Absent], background.clone()),
            (vec![Absent, Absent], background.clone()),
            (vec![Waits], background.clone()),
            (
                vec![Solid, Absent, Waits],
                Verdict::Forget(vec!["1".into(), "2".into()]),
            ),
            // Whoever is not known may be there.
            (vec![Absent, Unknown], Verdict::Keep),
        ] {
            assert_eq!(judge(&situation(&named(&states))), want, "{states:?}");
        }
    }

    #[test]
    fn waiting_goes_on_from_owner_to_dependent_and_circles_are_opened() {
        let owners = named(&[OwnerState::Waits]);
        let foreground = |unblock| Verdict::Delete {
            policy: Propagation::Foreground,
            unblock,
        };
        let deep = Situation {
            has_dependents: true,
            ..situation(&owners)
        };
        assert_eq!(judge(&deep), foreground(false));
        let circle = Situation {
            in_circle: true,
            ..deep
        };
        assert_eq!(judge(&circle), foreground(true));
    }

    #[test]
    fn an_object_on_its_way_out_only_waits_for_its_dependents() {
        let owners = named(&[OwnerState::Absent]);
        let at = |stage, is_blocked| {
            judge(&Situation {
                stage,
                is_blocked,
                ..situation(&owners)
            })
        };
        assert_eq!(at(Stage::Dying, false), Verdict::Keep);
        assert_eq!(at(Stage::Waits, true), Verdict::Keep);
        assert_eq!(at(Stage::Waits, false), Verdict::Release);
        assert_eq!(at(Stage::Orphans, false), Verdict::Orphan);
    }

    #[test]
    fn an_objects_own_finalizer_decides_what_becomes_of_its_dependents() {
        let owners = named(&[OwnerState::Absent]);
        let held = Situation {
            policy: policy_of(["x", FINALIZER_ORPHAN]),
            ..situation(&owners)
        };
        let want = Verdict::Delete {
            policy: Propagation::Orphan,
            unblock: false,
        };
        assert_eq!(judge(&held), want);
        assert_eq!(Stage::of(true, ["x"]), Stage::Dying);
        assert_eq!(Stage::of(true, ["x", FINALIZER_FOREGROUND]), Stage::Waits);
        assert_eq!(
            Stage::of(true, [FINALIZER_FOREGROUND, FINALIZER_ORPHAN]),
            Stage::Orphans
        );
        assert_eq!(Stage::of(false, [FINALIZER_ORPHAN]), Stage::Lives);
    }
}
