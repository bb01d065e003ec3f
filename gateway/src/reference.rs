//! The reference of the management API, `docs/api`, written from what the server serves: the table of kinds, their schemas,
//! and, for what a client must say and may leave out, the code that fills in and refuses.

mod fields;

use crate::apiserver::discovery::{STATUS_VERBS, groups};
use crate::apiserver::object;
use crate::apiserver::special::{self, Special};
use crate::kinds::{KINDS, Kind, Subresource, api_version};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The command that writes the files.
const COMMAND: &str = "cargo xtask api-docs";
/// Where the management API is.
const ROOT: &str = "/kubernetes/management";
const COMMON: &str = include_str!("reference/common.md");

/// The files of the reference by name, and what is in them.
pub fn api_reference() -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, String> = all_groups()
        .into_iter()
        .map(|group| (file_of(group), page(group)))
        .collect();
    files.insert("README.md".to_owned(), index());
    files
}

fn all_groups() -> Vec<&'static str> {
    std::iter::once("").chain(groups()).collect()
}

fn file_of(group: &str) -> String {
    format!("{}-v1.md", if group.is_empty() { "core" } else { group })
}

fn version_of(group: &str) -> String {
    if group.is_empty() {
        "v1".to_owned()
    } else {
        format!("{group}/v1")
    }
}

fn note() -> String {
    format!("<!-- Written by `{COMMAND}` from the types that the server serves. Change those, not this file. -->\n\n")
}

fn kinds_of(group: &str) -> impl Iterator<Item = &'static dyn Kind> {
    KINDS.iter().copied().filter(move |k| k.names().group == group)
}

fn specials_of(group: &str) -> impl Iterator<Item = &'static Special> {
    special::ALL.iter().filter(move |s| s.group == group)
}

fn index() -> String {
    let mut text = note() + COMMON + "\n## Kinds\n\n| kind | what it is |\n|---|---|\n";
    for group in all_groups() {
        let rows = kinds_of(group).map(|k| (k.names().kind, k.names().plural, k.about()));
        for (kind, plural, about) in rows.chain(specials_of(group).map(|s| (s.kind, s.plural, s.about))) {
            let (version, file) = (version_of(group), file_of(group));
            text += &format!("| [`{version}` {kind}]({file}#{plural}) | {} |\n", cell(about));
        }
    }
    text
}

fn page(group: &str) -> String {
    let mut text = note() + &format!("# `{}`\n", version_of(group));
    for kind in kinds_of(group) {
        text += &section(kind);
    }
    for special in specials_of(group) {
        text += &special_section(special);
    }
    text
}

/// One kind: where it is, what can be done with it, its fields, and a request.
fn section(kind: &dyn Kind) -> String {
    let names = kind.names();
    let base = base(kind);
    let mut text = format!("\n## {}\n\n{}\n\n", names.plural, kind.about());
    let scope = if names.namespaced {
        "in a namespace"
    } else {
        "cluster wide"
    };
    text += &format!("- Kind `{}`, {scope}, `{base}`\n", names.kind);
    text += &format!("- Verbs: {}\n", list(kind.verbs()));
    if !kind.short_names().is_empty() {
        text += &format!("- Short names: {}\n", list(kind.short_names()));
    }
    text += &subresources(kind, &base);
    text += &fields::table(kind);
    let path = base.replace("{namespace}", example_namespace(kind));
    text += &match request_body(kind) {
        Value::Null => curl("GET", &path, None),
        body => curl("POST", &path, Some(&body)),
    };
    text
}

fn special_section(special: &Special) -> String {
    let base = format!("{ROOT}/apis/{}/v1/{}", special.group, special.plural);
    let mut text = format!("\n## {}\n\n{}\n\n", special.plural, special.about);
    text += &format!("- Kind `{}`, cluster wide, `{base}`\n", special.kind);
    text += &format!("- Verbs: {}\n", list(special.verbs));
    let spec: Value = serde_json::from_str(special.example).unwrap_or_default();
    let body = json!({ "apiVersion": version_of(special.group), "kind": special.kind, "spec": spec });
    text + &curl("POST", &base, Some(&body))
}

fn subresources(kind: &dyn Kind, base: &str) -> String {
    let names = kind.names();
    let status = kind.has_status().then_some(Subresource {
        name: "status",
        kind: names.kind,
        verbs: STATUS_VERBS,
        about: "Its status, which nothing else writes.",
    });
    let all: Vec<Subresource> = status.into_iter().chain(kind.subresources().iter().copied()).collect();
    if all.is_empty() {
        return String::new();
    }
    let mut text = "\n| subresource | kind | verbs | what it is |\n|---|---|---|---|\n".to_owned();
    for sub in all {
        let (verbs, about) = (list(sub.verbs), cell(sub.about));
        text += &format!(
            "| `{base}/{{name}}/{}` | {} | {verbs} | {about} |\n",
            sub.name, sub.kind
        );
    }
    text
}

fn base(kind: &dyn Kind) -> String {
    let names = kind.names();
    let root = if names.group.is_empty() { "api" } else { "apis" };
    let space = if names.namespaced {
        "namespaces/{namespace}/"
    } else {
        ""
    };
    format!("{ROOT}/{root}/{}/{space}{}", version_of(names.group), names.plural)
}

fn example_namespace(kind: &dyn Kind) -> &'static str {
    match kind.example()["metadata"]["namespace"].as_str() {
        Some("vcluster-platform") => "vcluster-platform",
        _ => "p-default",
    }
}

/// What a client sends to make the example of a kind.
fn request_body(kind: &dyn Kind) -> Value {
    let example = kind.example();
    if example.is_null() {
        return Value::Null;
    }
    json!({
        "apiVersion": api_version(kind.names()), "kind": kind.names().kind,
        "metadata": example["metadata"], "spec": example["spec"],
    })
}

/// A request by `curl`. The key is in a file: arguments are for everybody on a machine to see.
fn curl(method: &str, path: &str, body: Option<&Value>) -> String {
    let mut text = "\n```sh\ncurl --cacert ca.crt --header @key".to_owned();
    if let Some(body) = body {
        let body = serde_json::to_string_pretty(body).unwrap_or_default();
        text += &format!(" --request {method} \"$HANSE{path}\" \\\n");
        text += &format!("  --header 'Content-Type: application/json' --data '{body}'\n```\n");
    } else {
        text += &format!(" \"$HANSE{path}\"\n```\n");
    }
    text
}

fn list(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    names.join(", ")
}

/// Text for a cell of a table.
fn cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

/// An example as the store would get it, filled in for a caller of this name.
fn prepared(kind: &dyn Kind, mut object: Value, caller: &str) -> Value {
    let caller = hanse_api::access::Principal {
        user: caller.to_owned(),
        ..Default::default()
    };
    object::member_mut(&mut object, "spec");
    kind.prepare(&mut object, &caller);
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::schema;

    /// The gateway's tests send every example to a real one; here it is that there are any.
    #[test]
    fn what_clients_make_has_an_example_that_is_valid() {
        for kind in KINDS {
            assert!(!kind.about().is_empty(), "{}", kind.names().plural);
            let body = request_body(*kind);
            let made = kind.verbs().contains(&"create");
            assert_eq!(made, !body.is_null(), "{}", kind.names().plural);
            if made {
                assert_eq!(schema::unknown_fields(&schema::of(*kind).root, &body), [""; 0]);
                let faults = kind.validate(&prepared(*kind, body, "ann"));
                assert!(faults.is_empty(), "{faults:?}");
            }
        }
        for special in special::ALL {
            let spec: Value = serde_json::from_str(special.example).unwrap();
            assert!(spec.is_object() && !special.about.is_empty(), "{}", special.plural);
        }
    }
}
