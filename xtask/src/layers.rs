//! Which crate may use which: the table, and the test that Cargo.toml files obey it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::tidy::Finding;

struct Crate {
    name: &'static str,
    /// Product crates that it may name, in any kind of dependency.
    may_use: &'static [&'static str],
    /// Outside packages it must never name. A final `*` matches any ending.
    never: &'static [&'static str],
}

const API: &str = "hanse-api";
const RUNTIME: &str = "hanse-runtime";
const STATE: &str = "hanse-state";
const TUNNEL: &str = "hanse-tunnel";
const CONSENSUS: &str = "hanse-consensus";
const GATEWAY: &str = "hanse-gateway";
const REGIONS: &str = "hanse-regions";
const AGENT: &str = "hanse-agent";
const SERVER: &str = "hanse-server";

/// From the bottom up. A new edge is a design decision: note it in docs/design
/// before it comes in here.
const CRATES: &[Crate] = &[
    Crate {
        name: API,
        may_use: &[],
        // Types and rules only: no runtime, no input or output.
        never: &[
            "tokio*",
            "async-std",
            "mio",
            "hyper*",
            "axum*",
            "tonic",
            "reqwest",
            "kube*",
            "rustix",
        ],
    },
    Crate {
        name: RUNTIME,
        may_use: &[API],
        never: &["axum*"],
    },
    Crate {
        name: STATE,
        may_use: &[API, RUNTIME],
        never: &["axum*"],
    },
    Crate {
        name: TUNNEL,
        may_use: &[API, RUNTIME],
        never: &["axum*"],
    },
    Crate {
        name: CONSENSUS,
        may_use: &[API, RUNTIME, STATE],
        never: &[],
    },
    Crate {
        name: GATEWAY,
        may_use: &[API, RUNTIME, STATE, TUNNEL],
        never: &[],
    },
    Crate {
        name: REGIONS,
        may_use: &[API, RUNTIME, STATE, TUNNEL],
        never: &[],
    },
    Crate {
        name: AGENT,
        may_use: &[API, RUNTIME, TUNNEL],
        never: &[],
    },
    Crate {
        name: SERVER,
        may_use: &[API, RUNTIME, STATE, TUNNEL, CONSENSUS, GATEWAY, REGIONS],
        never: &[],
    },
    Crate {
        name: "hanse",
        may_use: &[API, RUNTIME, TUNNEL, AGENT, SERVER],
        never: &[],
    },
    Crate {
        name: "hanse-chaos-tests",
        may_use: &[API, RUNTIME, STATE],
        never: &[],
    },
    Crate {
        name: "xtask",
        may_use: &[],
        never: &["tokio*"],
    },
];

/// Packages that exactly one crate may name, so that they can be replaced there.
pub(crate) const OWNED: &[(&str, &str)] = &[("openraft*", CONSENSUS), ("rocksdb", STATE), ("quinn*", TUNNEL)];

/// Reads the manifests through cargo and compares them with the table.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let output = Command::new(crate::cargo())
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let graph: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let packages = graph["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut findings = Vec::new();
    for package in packages {
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let text = fs::read_to_string(manifest).with_context(|| format!("read {manifest}"))?;
        let shown = Path::new(manifest).strip_prefix(root).unwrap_or(Path::new(manifest));
        let name = package["name"].as_str().unwrap_or_default();
        let used = package["dependencies"].as_array().into_iter().flatten();
        let used = used.filter_map(|d| d["name"].as_str()).collect::<Vec<_>>();
        let members = packages.iter().filter_map(|p| p["name"].as_str()).collect::<Vec<_>>();
        findings.extend(
            check_crate(name, &used, &members)
                .into_iter()
                .map(|(used, text_of)| Finding {
                    file: shown.to_owned(),
                    line: line_of(&text, used),
                    rule: "layers",
                    text: text_of,
                }),
        );
    }
    Ok(findings)
}

/// The dependencies of one crate that break a rule, each with what to do.
fn check_crate<'a>(name: &str, used: &[&'a str], members: &[&str]) -> Vec<(&'a str, String)> {
    let Some(entry) = CRATES.iter().find(|c| c.name == name) else {
        return vec![("", format!("{name} has no place yet: add it to xtask/src/layers.rs"))];
    };
    let mut findings = Vec::new();
    for dependency in used {
        let owner = OWNED.iter().find(|(pattern, _)| matches(pattern, dependency));
        if members.contains(dependency) && *dependency != name {
            if !entry.may_use.contains(dependency) {
                findings.push((
                    *dependency,
                    format!("{name} must not use {dependency}: move what it needs to a crate both may use, or decide on the edge in docs/design and add it to xtask/src/layers.rs"),
                ));
            }
        } else if let Some((_, owner)) = owner.filter(|(_, owner)| *owner != name) {
            findings.push((
                *dependency,
                format!("only {owner} may name {dependency}: use what {owner} offers"),
            ));
        } else if entry.never.iter().any(|pattern| matches(pattern, dependency)) {
            findings.push((
                *dependency,
                format!("{name} must stay free of {dependency}: do this in a higher crate"),
            ));
        }
    }
    findings
}

pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

fn line_of(manifest: &str, dependency: &str) -> usize {
    let starts = |line: &str| {
        let rest = line.trim_start().strip_prefix(dependency);
        !dependency.is_empty() && rest.is_some_and(|r| r.starts_with([' ', '.', '=']))
    };
    manifest.lines().position(starts).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Vec<&'static str> {
        CRATES.iter().map(|c| c.name).collect()
    }

    #[test]
    fn table_has_no_cycle() {
        for (index, entry) in CRATES.iter().enumerate() {
            for used in entry.may_use {
                let below = CRATES[..index].iter().any(|c| c.name == *used);
                assert!(below, "{} uses {used}, which is not below it", entry.name);
            }
        }
    }

    #[test]
    fn edge_outside_the_table_is_found() {
        let found = check_crate(GATEWAY, &[STATE, CONSENSUS, "axum"], &members());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, CONSENSUS);
        assert!(check_crate(AGENT, &[STATE], &members()).len() == 1);
        assert!(check_crate("hanse", &[STATE], &members()).len() == 1);
    }

    #[test]
    fn owned_package_has_one_home() {
        assert!(check_crate(CONSENSUS, &["openraft", "openraft-multi"], &members()).is_empty());
        assert_eq!(check_crate(SERVER, &["openraft-multi"], &members()).len(), 1);
        assert_eq!(check_crate(GATEWAY, &["rocksdb", "quinn-proto"], &members()).len(), 2);
    }

    #[test]
    fn api_stays_free_of_io() {
        assert_eq!(check_crate(API, &["tokio", "serde", "tokio-util"], &members()).len(), 2);
    }

    #[test]
    fn unknown_crate_is_asked_to_take_its_place() {
        assert_eq!(check_crate("hanse-new", &[], &members()).len(), 1);
    }

    #[test]
    fn finding_points_at_the_line() {
        let manifest = "[dependencies]\nkube-runtime = \"1\"\nkube.workspace = true\n";
        assert_eq!(line_of(manifest, "kube"), 3);
        assert_eq!(line_of(manifest, "absent"), 1);
    }
}
