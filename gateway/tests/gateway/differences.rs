//! What this gateway answers otherwise than kube-apiserver on purpose. Each rule has a name, by which
//! `docs/design/0018-differences.md` gives the reason, and is as narrow as it can be: it makes one pair of answers equal, and
//! what is not equal then is a fault.

use crate::oracle_kinds::{Request, SEEDED};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Edits the answer of this gateway to what the other one would be if they differed in this alone.
type Rule = fn(&Request, have: &mut Value, want: &Value);

const RULES: [(&str, Rule); 11] = [
    ("a failed JSON patch", failed_patch),
    ("JSON that cannot be read", unreadable),
    ("an unknown media type", media_type),
    ("a revision that is none, of a list", list_revision),
    ("a limit that is no number", limit),
    ("a selector that cannot be read", selector),
    ("an object of another uid", other_uid),
    ("an object without a kind", no_kind),
    ("a new object with a revision", new_with_revision),
    ("a name that is no label", label_name),
    ("the status of a kind that has none", no_status),
];

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Differences {
    used: BTreeSet<&'static str>,
}

impl Differences {
    /// Whether the answers are equal, or differ only as the rules say.
    pub fn explain(&mut self, request: &Request, have: &Value, want: &Value) -> bool {
        if have == want {
            return true;
        }
        for (name, rule) in RULES {
            let mut evened = have.clone();
            rule(request, &mut evened, want);
            if evened == *want {
                self.used.insert(name);
                return true;
            }
        }
        false
    }

    /// Rules that explained nothing.
    pub fn unused(&self) -> Vec<&'static str> {
        let names = RULES.iter().map(|(name, _)| *name);
        names.filter(|name| !self.used.contains(name)).collect()
    }
}

fn message(answer: &Value) -> &str {
    answer["body"]["message"].as_str().unwrap_or_default()
}

/// Here the answer says which operation failed, there only that one did.
fn failed_patch(request: &Request, have: &mut Value, want: &Value) {
    let general = "the server rejected our request due to an error in our request";
    let says_more = message(have)
        .strip_prefix(general)
        .is_some_and(|more| more.starts_with(": "));
    if request.media == "application/json-patch+json" && message(want) == general && says_more {
        have["body"]["message"] = general.into();
    }
}

/// Both say that it is no object; why, in the words of their parser.
fn unreadable(_: &Request, have: &mut Value, want: &Value) {
    let both = "the object provided is unrecognized (must be of type ";
    if message(have).starts_with(both) && message(want).starts_with(both) {
        have["body"]["message"] = message(want).into();
    }
}

/// Here the answer says what it got as well.
fn media_type(request: &Request, have: &mut Value, _: &Value) {
    if have["code"] == 415 {
        let shorter = message(have).replacen(&format!(" ({})", request.media), "", 1);
        have["body"]["message"] = shorter.into();
    }
}

/// Two words for one fault: here `ours`, there `theirs`.
fn in_other_words(have: &mut Value, want: &Value, ours: &[&str], theirs: &str) {
    let is_ours = ours.iter().any(|words| message(have).starts_with(words));
    if is_ours && message(want).starts_with(theirs) {
        have["body"]["message"] = message(want).into();
    }
}

fn list_revision(_: &Request, have: &mut Value, want: &Value) {
    let theirs = "invalid resource version: resourceVersion: Invalid value: ";
    in_other_words(have, want, &["invalid resource version "], theirs);
}

fn limit(_: &Request, have: &mut Value, want: &Value) {
    in_other_words(have, want, &["invalid limit "], "strconv.ParseInt: parsing ");
}

fn selector(_: &Request, have: &mut Value, want: &Value) {
    let ours = [
        "unable to parse requirement: ",
        "invalid label value ",
        "invalid label key ",
    ];
    in_other_words(have, want, &ours, "unable to parse requirement: ");
}

/// There the words are those of the storage, with its keys.
fn other_uid(request: &Request, have: &mut Value, want: &Value) {
    let is_other = message(want).contains("Precondition failed: UID in precondition: other, UID in object meta: ");
    if request.method == "PUT" && is_other && message(have).contains("the object has been modified") {
        have["body"]["message"] = message(want).into();
    }
}

/// Here the URL says the kind, as for kinds that are built in; typed clients of vCluster Platform send none.
fn no_kind(request: &Request, have: &mut Value, want: &Value) {
    let goes_on = have["code"] == 201 || message(have).ends_with(" already exists");
    let is_dry = request.method == "POST" && request.rest.contains("dryRun=All");
    if is_dry && goes_on && message(want).contains(": Object 'Kind' is missing in ") {
        *have = want.clone();
    }
}

/// There it is told as a fault of the server.
fn new_with_revision(_: &Request, have: &mut Value, want: &Value) {
    let same = "resourceVersion should not be set on objects to be created";
    let codes = (&have["code"], &want["code"]) == (&json!(400), &json!(500));
    if codes && message(have) == same && message(want) == same {
        *have = want.clone();
    }
}

/// Names of some kinds become parts of longer names, so they may hold no dots.
fn label_name(_: &Request, have: &mut Value, want: &Value) {
    let fault = |answer: &Value| {
        let causes = answer["body"]["details"]["causes"].as_array()?;
        let message = causes[0]["message"].as_str().unwrap_or_default();
        let words = ["RFC 1123 label must", "RFC 1123 subdomain must"];
        (causes.len() == 1 && causes[0]["field"] == "metadata.name").then(|| words.map(|words| message.contains(words)))
    };
    if have["code"] == 422 && (fault(have), fault(want)) == (Some([true, false]), Some([false, true])) {
        *have = want.clone();
    }
}

/// There the endpoint is there, and the answer names the object.
fn no_status(request: &Request, have: &mut Value, want: &Value) {
    let named = want["body"]["details"]["name"].as_str().unwrap_or("?");
    let is_of = request.rest.starts_with(&format!("/{named}/status?"));
    let unserved = message(have) == "the server could not find the requested resource";
    if is_of && unserved && have["code"] == 404 && want["code"] == 404 {
        *have = want.clone();
    }
}

/// Both sides without what says the same in two ways.
pub fn as_clients_write(answer: &mut Value) {
    // kube-apiserver checks metadata twice in an update, and says what it finds twice.
    let causes = answer.pointer_mut("/body/details/causes").and_then(Value::as_array_mut);
    if let Some(causes) = causes {
        causes.dedup();
        // Conflicts come in any order there.
        if causes.iter().all(|cause| cause["reason"] == "FieldManagerConflict") {
            causes.sort_by_key(Value::to_string);
        }
    }
    // Revisions that are quoted differ.
    if let Some((before, _)) = message(answer).split_once("in record (") {
        answer["body"]["message"] = before.into();
    }
}

/// Takes out what this gateway makes up or fills in by itself.
pub fn even_out(value: &mut Value) {
    if let Some(items) = value.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().for_each(even_out);
    }
    let Some(map) = value.as_object_mut() else { return };
    let name = map.get("metadata").and_then(|m| m["name"].as_str()).unwrap_or_default();
    if SEEDED.iter().any(|(_, seeded)| *seeded == name) {
        let name = name.to_owned();
        *map = serde_json::Map::from_iter([("name".to_owned(), name.into())]);
        return;
    }
    let kind = map.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    let status = map.get_mut("status").and_then(Value::as_object_mut);
    if kind == "User" {
        map.remove("status");
    } else if let Some(status) = status.filter(|_| kind == "VirtualClusterInstance") {
        status.retain(|key, value| key != "phase" || value != "Pending");
        if status.is_empty() {
            map.remove("status");
        }
    }
}
