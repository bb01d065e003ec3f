//! Which object goes with which: an index of references, kept for the objects that have some or wait for their dependents. Pure.

use hanse_api::ownership::{OwnerReference, Stage};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Address of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id {
    /// Place of its kind among those that are followed.
    pub(super) kind: usize,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What is read of a stored object.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Seen {
    #[serde(default)]
    pub(super) metadata: SeenMeta,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SeenMeta {
    pub(super) uid: String,
    deletion_timestamp: Option<String>,
    finalizers: Vec<String>,
    owner_references: Vec<OwnerReference>,
}

impl SeenMeta {
    /// Where the object is on its way out.
    pub(super) fn stage(&self) -> Stage {
        let finalizers = self.finalizers.iter().map(String::as_str);
        Stage::of(self.deletion_timestamp.is_some(), finalizers)
    }
}

#[derive(Debug)]
struct Node {
    uid: String,
    stage: Stage,
    owners: Vec<OwnerReference>,
    revision: i64,
}

/// What the index knows about an object that is to be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) uid: String,
    pub(super) stage: Stage,
    /// Revision of the change that was heard of last.
    pub(super) revision: i64,
    pub(super) has_dependents: bool,
    pub(super) is_blocked: bool,
    pub(super) in_circle: bool,
    /// Those who must forget it, when that is what it waits for.
    pub(super) dependents: Vec<Id>,
}

/// The index. It is as large as the part of the registry that has owners.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: BTreeMap<Id, Node>,
    /// By uid of the owner.
    dependents: HashMap<String, BTreeSet<Id>>,
    /// Objects that wait for their dependents, by uid.
    waiting: HashMap<String, Id>,
}

impl Graph {
    /// An object was made or changed. Gives the objects that are to be looked at.
    pub(super) fn put(&mut self, id: Id, meta: SeenMeta, revision: i64) -> Vec<Id> {
        let mut wake = match self.nodes.get(&id).map(|node| node.uid.clone()) {
            Some(uid) if uid != meta.uid => self.remove(&id, &uid),
            _ => Vec::new(),
        };
        let before = self.take(&id);
        let stage = meta.stage();
        let SeenMeta {
            uid,
            owner_references: owners,
            ..
        } = meta;
        let became = |wanted: Stage| stage == wanted && before.as_ref().is_none_or(|b| b.stage != wanted);
        if became(Stage::Waits) {
            wake.extend(self.dependents_of(&uid));
        }
        if let Some(before) = before.as_ref().filter(|b| b.owners != owners) {
            wake.extend(self.waiting_among(&before.owners));
        }
        let is_concerned = !owners.is_empty() || matches!(stage, Stage::Waits | Stage::Orphans);
        if !is_concerned {
            return wake;
        }
        if before.is_none_or(|b| b.owners != owners || b.stage != stage) {
            wake.push(id.clone());
        }
        for owner in &owners {
            let dependents = self.dependents.entry(owner.uid.clone()).or_default();
            dependents.insert(id.clone());
        }
        if stage == Stage::Waits {
            self.waiting.insert(uid.clone(), id.clone());
        }
        let node = Node {
            uid,
            stage,
            owners,
            revision,
        };
        self.nodes.insert(id, node);
        wake
    }

    /// An object is gone. Gives the objects that are to be looked at.
    pub(super) fn remove(&mut self, id: &Id, uid: &str) -> Vec<Id> {
        let node = self.take(id);
        let mut wake: Vec<Id> = self.dependents_of(uid).collect();
        if let Some(node) = node {
            wake.extend(self.waiting_among(&node.owners));
        }
        wake
    }

    /// Every object with something to judge.
    pub(super) fn all(&self) -> impl Iterator<Item = &Id> {
        self.nodes.keys()
    }

    /// What is known of an object; none if there is nothing to judge.
    pub(super) fn known(&self, id: &Id) -> Option<Known> {
        let node = self.nodes.get(id)?;
        let of = || self.dependents.get(&node.uid).into_iter().flatten();
        // Nothing waits for itself.
        let nodes = || of().filter(|d| *d != id).filter_map(|d| self.nodes.get(d));
        let blocks = |d: &Node| d.owners.iter().any(|o| o.uid == node.uid && o.blocks());
        Some(Known {
            uid: node.uid.clone(),
            stage: node.stage,
            revision: node.revision,
            has_dependents: of().next().is_some(),
            is_blocked: nodes().any(blocks),
            in_circle: nodes().any(|d| d.stage == Stage::Waits),
            dependents: match node.stage {
                Stage::Orphans => of().cloned().collect(),
                _ => Vec::new(),
            },
        })
    }

    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = Id> + use<'_> {
        self.dependents.get(uid).into_iter().flatten().cloned()
    }

    fn waiting_among<'a>(&'a self, owners: &'a [OwnerReference]) -> impl Iterator<Item = Id> + use<'a> {
        owners.iter().filter_map(|o| self.waiting.get(&o.uid)).cloned()
    }

    fn take(&mut self, id: &Id) -> Option<Node> {
        let node = self.nodes.remove(id)?;
        for owner in &node.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(id);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        if self.waiting.get(&node.uid) == Some(id) {
            self.waiting.remove(&node.uid);
        }
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn id(name: &str) -> Id {
        Id {
            kind: 0,
            namespace: String::new(),
            name: name.to_owned(),
        }
    }

    /// An object whose uid is its name.
    fn meta(name: &str, owners: &[&str], finalizers: &[&str]) -> SeenMeta {
        let reference = |owner: &&str| {
            let (owner, blocks) = owner.strip_suffix('!').map_or((*owner, false), |o| (o, true));
            json!({ "apiVersion": "v1", "kind": "K", "name": owner, "uid": owner, "blockOwnerDeletion": blocks })
        };
        let owners: Vec<_> = owners.iter().map(reference).collect();
        let mut meta = json!({ "uid": name, "ownerReferences": owners, "finalizers": finalizers });
        if !finalizers.is_empty() {
            meta["deletionTimestamp"] = "now".into();
        }
        serde_json::from_value(meta).unwrap()
    }

    fn names(ids: Vec<Id>) -> Vec<String> {
        let names: BTreeSet<String> = ids.into_iter().map(|i| i.name).collect();
        names.into_iter().collect()
    }

    #[test]
    fn the_end_of_an_owner_wakes_its_dependents_even_if_nothing_else_is_known_of_it() {
        let mut graph = Graph::default();
        assert_eq!(names(graph.put(id("owner"), meta("owner", &[], &[]), 1)), [""; 0]);
        assert!(graph.known(&id("owner")).is_none());
        assert_eq!(names(graph.put(id("a"), meta("a", &["owner"], &[]), 2)), ["a"]);
        // The same once more, as after a change of its status.
        assert_eq!(names(graph.put(id("a"), meta("a", &["owner"], &[]), 3)), [""; 0]);
        assert_eq!(names(graph.remove(&id("owner"), "owner")), ["a"]);
        assert_eq!(names(graph.remove(&id("a"), "a")), [""; 0]);
        assert!(graph.nodes.is_empty() && graph.dependents.is_empty() && graph.waiting.is_empty());
    }

    #[test]
    fn one_that_waits_is_looked_at_when_a_dependent_goes_or_lets_it_go() {
        let mut graph = Graph::default();
        graph.put(id("a"), meta("a", &["owner!"], &[]), 1);
        graph.put(id("b"), meta("b", &["owner!"], &[]), 2);
        graph.put(id("c"), meta("c", &["owner"], &[]), 3);
        let waits = meta("owner", &[], &["foregroundDeletion"]);
        assert_eq!(names(graph.put(id("owner"), waits, 4)), ["a", "b", "c", "owner"]);
        assert!(graph.known(&id("owner")).unwrap().is_blocked);
        assert_eq!(names(graph.remove(&id("a"), "a")), ["owner"]);
        assert!(graph.known(&id("owner")).unwrap().is_blocked);
        assert_eq!(names(graph.put(id("b"), meta("b", &["owner"], &[]), 5)), ["b", "owner"]);
        let known = graph.known(&id("owner")).unwrap();
        assert!(!known.is_blocked && known.has_dependents && known.revision == 4);
    }

    #[test]
    fn those_who_must_forget_are_named_and_circles_are_seen() {
        let mut graph = Graph::default();
        graph.put(id("a"), meta("a", &["b!"], &["foregroundDeletion"]), 1);
        graph.put(id("b"), meta("b", &["a!"], &[]), 2);
        assert!(graph.known(&id("b")).unwrap().in_circle);
        assert!(!graph.known(&id("a")).unwrap().in_circle);
        graph.put(id("b"), meta("b", &["a!"], &["orphan"]), 3);
        assert_eq!(names(graph.known(&id("b")).unwrap().dependents), ["a"]);
    }

    #[test]
    fn another_object_of_the_same_name_is_another_owner() {
        let mut graph = Graph::default();
        graph.put(id("owner"), meta("old", &["x"], &[]), 1);
        graph.put(id("a"), meta("a", &["old"], &[]), 2);
        assert_eq!(
            names(graph.put(id("owner"), meta("new", &["x"], &[]), 3)),
            ["a", "owner"]
        );
        assert!(!graph.known(&id("owner")).unwrap().has_dependents);
    }
}
