//! What there is: `/api`, `/apis` and what is below, in the old form and in the aggregated one.

use super::negotiation::Form;
use super::special::{self, Special};
use crate::kinds::{KINDS, Kind};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Media type of the aggregated form.
pub(crate) const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The document at a discovery path, if it is one.
pub(crate) fn document(path: &str, form: Form) -> Option<Value> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    match (parts.as_slice(), form) {
        (["api"], Form::Discovery) => Some(aggregated(&[""])),
        (["apis"], Form::Discovery) => Some(aggregated(&groups())),
        (["api"], _) => Some(json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })),
        (["apis"], _) => {
            let groups: Vec<Value> = groups().into_iter().map(group).collect();
            Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        (["api", "v1"], _) => Some(resources("", "v1")),
        (["apis", name], _) if groups().contains(name) => {
            let mut group = group(name);
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            Some(group)
        }
        (["apis", name, version @ "v1"], _) if groups().contains(name) => Some(resources(name, version)),
        ([], _) => Some(json!({ "paths": paths() })),
        _ => None,
    }
}

/// All groups but core.
pub(crate) fn groups() -> Vec<&'static str> {
    let kinds = KINDS.iter().map(|k| k.names().group);
    let all: BTreeSet<&str> = kinds
        .chain(special::ALL.iter().map(|s| s.group))
        .filter(|g| !g.is_empty())
        .collect();
    all.into_iter().collect()
}

fn paths() -> Vec<String> {
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis", "/openapi/v2", "/openapi/v3", "/version"]
        .map(str::to_owned)
        .into();
    paths.extend(
        groups()
            .into_iter()
            .flat_map(|g| [format!("/apis/{g}"), format!("/apis/{g}/v1")]),
    );
    paths.sort();
    paths
}

fn group(name: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
    json!({ "name": name, "versions": [version], "preferredVersion": version })
}

fn kinds_of(group: &str) -> impl Iterator<Item = &'static dyn Kind> {
    KINDS.iter().copied().filter(move |k| k.names().group == group)
}

fn specials_of(group: &str) -> impl Iterator<Item = &'static Special> {
    special::ALL.iter().filter(move |s| s.group == group)
}

fn resources(group: &str, version: &str) -> Value {
    let mut list = Vec::new();
    for kind in kinds_of(group) {
        let names = kind.names();
        list.push(json!({
            "name": names.plural, "singularName": kind.singular(), "namespaced": names.namespaced, "kind": names.kind,
            "verbs": kind.verbs(), "shortNames": kind.short_names(),
        }));
        let entry = |sub: &str, kind: &str, verbs: &[&str]| {
            json!({
                "name": format!("{}/{sub}", names.plural), "singularName": "", "namespaced": names.namespaced, "kind": kind,
                "verbs": verbs,
            })
        };
        if kind.has_status() {
            list.push(entry("status", names.kind, STATUS_VERBS));
        }
        list.extend(kind.subresources().iter().map(|s| entry(s.name, s.kind, s.verbs)));
    }
    list.extend(specials_of(group).map(|s| {
        json!({ "name": s.plural, "singularName": s.singular, "namespaced": false, "kind": s.kind, "verbs": s.verbs })
    }));
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list })
}

/// Verbs of `/status`.
pub(crate) const STATUS_VERBS: &[&str] = &["get", "patch", "update"];

fn aggregated(groups: &[&str]) -> Value {
    let items: Vec<Value> = groups.iter().map(|g| aggregated_group(g)).collect();
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items })
}

fn aggregated_group(group: &str) -> Value {
    let kind_of = |kind: &str| json!({ "group": group, "version": "v1", "kind": kind });
    let mut resources = Vec::new();
    for kind in kinds_of(group) {
        let names = kind.names();
        let sub = |name: &str, of: &str, verbs: &[&str]| json!({ "subresource": name, "responseKind": kind_of(of), "verbs": verbs });
        let mut subresources: Vec<Value> = kind
            .subresources()
            .iter()
            .map(|s| sub(s.name, s.kind, s.verbs))
            .collect();
        if kind.has_status() {
            subresources.push(sub("status", names.kind, STATUS_VERBS));
        }
        resources.push(json!({
            "resource": names.plural,
            "responseKind": kind_of(names.kind),
            "scope": if names.namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": kind.singular(),
            "verbs": kind.verbs(),
            "shortNames": kind.short_names(),
            "subresources": subresources,
        }));
    }
    resources.extend(specials_of(group).map(|s| {
        json!({
            "resource": s.plural, "responseKind": kind_of(s.kind), "scope": "Cluster", "singularResource": s.singular,
            "verbs": s.verbs,
        })
    }));
    let metadata = if group.is_empty() {
        json!({})
    } else {
        json!({ "name": group })
    };
    json!({ "metadata": metadata, "versions": [{ "version": "v1", "resources": resources, "freshness": "Current" }] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_every_kind() {
        for kind in KINDS {
            let names = kind.names();
            let path = if names.group.is_empty() {
                "/api/v1".to_owned()
            } else {
                format!("/apis/{}/v1", names.group)
            };
            let old = document(&path, Form::Objects).unwrap();
            let listed = old["resources"]
                .as_array()
                .unwrap()
                .iter()
                .any(|r| r["name"] == names.plural);
            assert!(listed, "{}", names.plural);
            let root = if names.group.is_empty() { "/api" } else { "/apis" };
            let new = document(root, Form::Discovery).unwrap();
            assert!(
                new.to_string().contains(&format!("\"resource\":\"{}\"", names.plural)),
                "{}",
                names.plural
            );
        }
    }

    #[test]
    fn other_paths_are_no_documents() {
        for path in ["/apis/other.dev", "/apis/hanse.dev/v2", "/api/v2", "/x"] {
            assert!(document(path, Form::Objects).is_none(), "{path}");
        }
        assert_eq!(document("/apis/hanse.dev", Form::Objects).unwrap()["kind"], "APIGroup");
    }
}
