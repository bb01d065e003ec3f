//! The audit trail: how events are chained, and how a chain is checked.
//!
//! An event is a JSON text in the shape of `audit.k8s.io/v1` Event, *canonical*: keys sorted, no white space, as
//! `jq -cS .` prints it. Each gets a [`Link`], which holds the hash of the link before, so that no event can be changed,
//! taken out or put in between without a trace in all that follow. The hash is over a text ([`Link::sealed`]), so that
//! anybody can compute it with everyday tools.
//!
//! Links are made where the order of changes is known, in the state machine: their form is part of the replicated state and
//! changes with a feature level only.

use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// First line of what is hashed; another form gets another.
const FORM: &str = "hanse-audit-1";
/// What the first event of a chain holds as the hash before it.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Name of the object that says where a chain ends.
pub const HEAD: &str = "head";
/// Name of the object that says where a chain begins, once its oldest events were taken out by age or number.
pub const ANCHOR: &str = "anchor";
/// Digits of a sequence number in names, so that the order of names is that of events.
const DIGITS: usize = 20;
/// Annotations that carry the link of an event that left the system.
const EXPORTED: &str = "audit.hanse.dev/";

/// SHA-256 in lower-case hex; whoever has a library for it gives it.
pub type Digest = fn(&[u8]) -> String;

/// A place in a chain: the event with this number has this hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Group whose changes the chain is of.
    pub group: u32,
    /// Hash of the event.
    pub hash: String,
    /// Number of the event, 0 before the first.
    pub sequence: u64,
}

/// What chains one event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// When the change was applied, in milliseconds, by the store's time, which never runs backwards.
    pub at: i64,
    /// Group whose changes the chain is of.
    pub group: u32,
    /// Hash of this event and of everything else here.
    pub hash: String,
    /// Hash of the event before.
    pub previous: String,
    /// Revision of the change, with which the event was written.
    pub revision: i64,
    /// Number of the event, from 1, without gaps.
    pub sequence: u64,
}

impl Head {
    /// Before the first event.
    pub fn start(group: u32) -> Self {
        Self {
            group,
            hash: GENESIS.to_owned(),
            sequence: 0,
        }
    }

    /// Chains `event`, which is canonical JSON.
    pub fn chain(&self, revision: i64, at: i64, event: &str, digest: Digest) -> Link {
        let mut link = Link {
            at,
            group: self.group,
            hash: String::new(),
            previous: self.hash.clone(),
            revision,
            sequence: self.sequence.saturating_add(1),
        };
        link.hash = digest(link.sealed(event).as_bytes());
        link
    }

    /// As an object of kind AuditChain.
    pub fn object(&self, name: &str) -> String {
        let Self { group, hash, sequence } = self;
        format!(
            r#"{{"apiVersion":"hanse.dev/v1","kind":"AuditChain","metadata":{{"name":"{name}"}},"spec":{{"group":{group},"hash":"{hash}","sequence":{sequence}}}}}"#
        )
    }

    /// Reads such an object.
    pub fn of_object(object: &[u8]) -> Option<Self> {
        let object: Value = serde_json::from_slice(object).ok()?;
        Self::deserialize(&object["spec"]).ok()
    }
}

impl Link {
    /// The text whose hash the link holds.
    pub fn sealed(&self, event: &str) -> String {
        let Self {
            at,
            group,
            previous,
            revision,
            sequence,
            ..
        } = self;
        format!("{FORM}\n{group}\n{sequence}\n{revision}\n{at}\n{previous}\n{event}")
    }

    /// The place of this event.
    pub fn head(&self) -> Head {
        Head {
            group: self.group,
            hash: self.hash.clone(),
            sequence: self.sequence,
        }
    }

    /// Name of the event's object.
    pub fn name(&self) -> String {
        name(self.sequence)
    }

    /// The event as an object of kind Event of the management API.
    pub fn object(&self, event: &str) -> String {
        let Self {
            at,
            group,
            hash,
            previous,
            revision,
            sequence,
        } = self;
        let (name, created) = (self.name(), Timestamp::from_millis(*at));
        format!(
            r#"{{"apiVersion":"management.loft.sh/v1","kind":"Event","metadata":{{"creationTimestamp":"{created}","name":"{name}"}},"spec":{{"at":{at},"group":{group},"hash":"{hash}","previous":"{previous}","revision":{revision},"sequence":{sequence}}},"status":{event}}}"#
        )
    }
}

/// Name of an event's object.
pub fn name(sequence: u64) -> String {
    format!("{sequence:0DIGITS$}")
}

/// An event of the management API as one of `audit.k8s.io/v1`, with its link in annotations.
pub fn export(object: &Value) -> Value {
    let mut event = object["status"].clone();
    let link = object["spec"].as_object().cloned().unwrap_or_default();
    let mut annotations = event["annotations"].as_object().cloned().unwrap_or_default();
    for (field, value) in link {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        annotations.insert(format!("{EXPORTED}{field}"), text.into());
    }
    if let Some(event) = event.as_object_mut() {
        event.insert("annotations".into(), annotations.into());
    }
    event
}

/// Reads back what [`export`] made: the link, and the event in canonical form.
pub fn import(mut exported: Value) -> Option<(Link, String)> {
    let annotations = exported.get_mut("annotations")?.as_object_mut()?;
    let mut link = Map::new();
    annotations.retain(|name, value| match name.strip_prefix(EXPORTED) {
        Some(field) => {
            let text = value.as_str().unwrap_or_default();
            let number = text
                .parse::<i64>()
                .ok()
                .filter(|_| !matches!(field, "hash" | "previous"));
            link.insert(field.to_owned(), number.map_or_else(|| text.into(), Value::from));
            false
        }
        None => true,
    });
    let link = Link::deserialize(Value::Object(link)).ok()?;
    Some((link, exported.to_string()))
}

/// What is wrong with a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Events are not there.
    #[error("events {from} to {to} are missing")]
    Missing {
        /// First of them.
        from: u64,
        /// Last of them.
        to: u64,
    },
    /// An event is not what was hashed.
    #[error("event {0} was changed: it does not have the hash that is written in it")]
    Changed(u64),
    /// An event was made anew, with a hash of its own.
    #[error("event {0} was replaced: the event after it, or the end of the chain, holds another hash")]
    Replaced(u64),
    /// An event stands where it does not belong.
    #[error("event {0} stands out of order, or was put in")]
    OutOfOrder(u64),
    /// Something is no event.
    #[error("{0:?} is no event of a chain")]
    NoEvent(String),
}

/// Follows a chain from its begin, one event after the other.
#[derive(Clone, Debug)]
pub struct Verifier {
    digest: Digest,
    last: Option<Head>,
    revision: i64,
    at: i64,
    count: u64,
}

impl Verifier {
    /// From behind `anchor`; without one the first event is believed to be the begin.
    pub fn new(anchor: Option<Head>, digest: Digest) -> Self {
        Self {
            digest,
            last: anchor,
            revision: i64::MIN,
            at: i64::MIN,
            count: 0,
        }
    }

    /// Events that were followed.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The last of them.
    pub fn last(&self) -> Option<&Head> {
        self.last.as_ref()
    }

    /// Follows an object of the management API.
    pub fn object(&mut self, object: &Value) -> Result<(), Fault> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let no_event = || Fault::NoEvent(name.to_owned());
        let link = Link::deserialize(&object["spec"]).map_err(|_| no_event())?;
        if link.name() != name {
            return Err(Fault::OutOfOrder(link.sequence));
        }
        let version = object["metadata"]["resourceVersion"].as_str();
        if version.is_some_and(|version| version != link.revision.to_string()) {
            return Err(Fault::Changed(link.sequence));
        }
        self.event(&link, &object["status"].to_string())
    }

    /// Follows one event.
    pub fn event(&mut self, link: &Link, event: &str) -> Result<(), Fault> {
        if let Some(last) = &self.last {
            let next = last.sequence.saturating_add(1);
            if link.sequence > next {
                let to = link.sequence.saturating_sub(1);
                return Err(Fault::Missing { from: next, to });
            }
            if link.sequence < next || link.group != last.group {
                return Err(Fault::OutOfOrder(link.sequence));
            }
        }
        if (self.digest)(link.sealed(event).as_bytes()) != link.hash {
            return Err(Fault::Changed(link.sequence));
        }
        if let Some(last) = self.last.as_ref().filter(|last| last.hash != link.previous) {
            return Err(Fault::Replaced(last.sequence));
        }
        if link.revision < self.revision || link.at < self.at {
            return Err(Fault::OutOfOrder(link.sequence));
        }
        (self.revision, self.at) = (link.revision, link.at);
        self.last = Some(link.head());
        self.count += 1;
        Ok(())
    }

    /// Whether the chain ends where it should.
    pub fn finish(&self, head: &Head) -> Result<(), Fault> {
        let (sequence, hash) = match &self.last {
            Some(last) => (last.sequence, last.hash.as_str()),
            None => (0, GENESIS),
        };
        if sequence < head.sequence {
            let (from, to) = (sequence + 1, head.sequence);
            return Err(Fault::Missing { from, to });
        }
        if sequence > head.sequence {
            return Err(Fault::OutOfOrder(sequence));
        }
        if hash != head.hash {
            return Err(Fault::Replaced(sequence));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    /// Any function of the bytes will do here.
    fn digest(bytes: &[u8]) -> String {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        format!("{:064x}", hasher.finish())
    }

    fn chain(events: u32) -> (Vec<Value>, Head) {
        let mut head = Head::start(0);
        let mut objects = Vec::new();
        for n in 0..events {
            let event = json!({ "verb": "create", "n": n, "annotations": { "a": "b" } }).to_string();
            let link = head.chain(10 + i64::from(n), 1000 + i64::from(n), &event, digest);
            let mut object: Value = serde_json::from_str(&link.object(&event)).unwrap();
            object["metadata"]["resourceVersion"] = link.revision.to_string().into();
            objects.push(object);
            head = link.head();
        }
        (objects, head)
    }

    fn verify(objects: &[Value], anchor: Option<Head>, head: &Head) -> Result<u64, Fault> {
        let mut verifier = Verifier::new(anchor, digest);
        for object in objects {
            verifier.object(object)?;
        }
        verifier.finish(head).map(|()| verifier.count())
    }

    #[test]
    fn a_whole_chain_holds_from_its_start_and_from_an_anchor() {
        let (objects, head) = chain(5);
        assert_eq!(verify(&objects, Some(Head::start(0)), &head), Ok(5));
        let anchor = Link::deserialize(&objects[1]["spec"]).unwrap().head();
        assert_eq!(verify(&objects[2..], Some(anchor.clone()), &head), Ok(3));
        assert_eq!(Head::of_object(anchor.object(ANCHOR).as_bytes()), Some(anchor));
        assert_eq!(verify(&[], Some(Head::start(0)), &Head::start(0)), Ok(0));
    }

    #[test]
    fn whatever_is_done_to_a_chain_is_found() {
        let (objects, head) = chain(5);
        let start = || Some(Head::start(0));
        let mut changed = objects.clone();
        changed[2]["status"]["verb"] = "get".into();
        assert_eq!(verify(&changed, start(), &head), Err(Fault::Changed(3)));
        let mut forged = changed.clone();
        let mut link = Link::deserialize(&forged[2]["spec"]).unwrap();
        link.hash = digest(link.sealed(&forged[2]["status"].to_string()).as_bytes());
        forged[2]["spec"] = serde_json::to_value(&link).unwrap();
        assert_eq!(verify(&forged, start(), &head), Err(Fault::Replaced(3)));
        let mut shorter = objects.clone();
        shorter.remove(2);
        assert_eq!(verify(&shorter, start(), &head), Err(Fault::Missing { from: 3, to: 3 }));
        assert_eq!(
            verify(&objects[..3], start(), &head),
            Err(Fault::Missing { from: 4, to: 5 })
        );
        assert_eq!(
            verify(&objects[1..], start(), &head),
            Err(Fault::Missing { from: 1, to: 1 })
        );
        let mut swapped = objects.clone();
        swapped.swap(1, 2);
        assert!(verify(&swapped, start(), &head).is_err());
        let mut renamed = objects.clone();
        renamed[0]["metadata"]["name"] = name(9).into();
        assert_eq!(verify(&renamed, start(), &head), Err(Fault::OutOfOrder(1)));
        let mut moved = objects;
        moved[4]["metadata"]["resourceVersion"] = "99".into();
        assert_eq!(verify(&moved, start(), &head), Err(Fault::Changed(5)));
    }

    #[test]
    fn what_was_exported_can_be_checked_without_the_system() {
        let (objects, head) = chain(3);
        let mut verifier = Verifier::new(None, digest);
        for object in &objects {
            let exported = export(object);
            assert_eq!(exported["verb"], "create");
            let (link, event) = import(exported).unwrap();
            verifier.event(&link, &event).unwrap();
        }
        assert_eq!(verifier.finish(&head), Ok(()));
        assert_eq!(import(json!({ "annotations": {} })), None);
    }
}
