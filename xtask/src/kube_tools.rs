//! Kubernetes, kwok and etcd, built from pinned Go modules, once per machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::packages::on_path;
use crate::step::Step;
use crate::{cache, root};

/// One program that behaves as any of [`KUBE_LINKS`], by the name it is called.
const KUBE_PROGRAM: &str = "kube-multicall";
const KUBE_LINKS: &[&str] = &["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"];
const OTHER_PROGRAMS: &[&str] = &["kwok", "etcd", "etcdctl"];
/// kwok does nothing without these; paths inside its module.
const KWOK_STAGES: &[&str] = &[
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
    "pod/fast/pod-delete.yaml",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Versions {
    kubernetes: String,
    kwok: String,
    etcd: String,
    /// Of a client; no part of what `up` needs.
    pub(crate) vcluster: String,
    /// Of etcd's own load.
    etcd_benchmark: String,
    recipe: u32,
}

impl Versions {
    pub(crate) fn read() -> Result<Self> {
        let path = folder().join("versions.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is malformed", path.display()))
    }

    fn key(&self) -> String {
        let Self {
            kubernetes,
            kwok,
            etcd,
            vcluster: _,
            etcd_benchmark: _,
            recipe,
        } = self;
        cache::file_name(&format!("kubernetes-{kubernetes}-kwok-{kwok}-etcd-{etcd}-r{recipe}"))
    }

    /// Key of etcd's own tests.
    pub(crate) fn etcd_suite_key(&self) -> String {
        cache::file_name(&format!("etcd-suite-{}", self.etcd))
    }

    /// Key of etcd's own load.
    pub(crate) fn etcd_benchmark_key(&self) -> String {
        cache::file_name(&format!("etcd-benchmark-{}", self.etcd_benchmark))
    }

    /// Key of the clients that only tests run.
    pub(crate) fn clients_key(&self) -> String {
        cache::file_name(&format!("clients-vcluster-{}-r{}", self.vcluster, self.recipe))
    }
}

pub(crate) fn folder() -> PathBuf {
    root().join("deploy/kube-tools")
}

/// Finds the tools or builds them, and leads the link `current` to them.
/// `None` means that the user asked for the programs on PATH.
pub(crate) fn ensure() -> Result<Option<PathBuf>> {
    let step = Step::start("Kubernetes tools", "");
    if let Some(choice) = std::env::var_os("HANSE_KUBE_TOOLS").filter(|c| !c.is_empty()) {
        let dir = given(Path::new(&choice))?;
        step.finish(&match &dir {
            Some(dir) => format!("given by HANSE_KUBE_TOOLS: {}", dir.display()),
            None => "those on PATH, as HANSE_KUBE_TOOLS says".to_owned(),
        });
        return Ok(dir);
    }
    let versions = Versions::read()?;
    let parent = cache::root()?.join("kube-tools");
    let key = versions.key();
    let mut how = "found";
    if !missing(&parent.join(&key)).is_empty() {
        let entry = cache::Entry::lock(&parent, &key, || step.say("another build runs, waiting"))?;
        if !missing(entry.dir()).is_empty() {
            let log = parent.join(format!("{key}.log"));
            step.say(&format!("building, 8 minutes on two cores; log: {}", log.display()));
            step.log_to(&log);
            let built = build(&step, &versions, entry.scratch()?)?;
            let lacks = missing(&built);
            if !lacks.is_empty() {
                bail!("the build left no {}", lacks.join(", "));
            }
            entry.publish(&built)?;
            how = "built";
        }
    }
    // The program needs no key: it follows this link.
    cache::relink(&parent.join("current"), Path::new(&key))?;
    let dir = parent.join(key);
    step.finish(&format!("{how} {}", dir.display()));
    Ok(Some(dir))
}

/// The tools if they need no build; says nothing.
pub(crate) fn find() -> Result<Option<PathBuf>> {
    if let Some(choice) = std::env::var_os("HANSE_KUBE_TOOLS").filter(|c| !c.is_empty()) {
        return given(Path::new(&choice));
    }
    let dir = cache::root()?.join("kube-tools").join(Versions::read()?.key());
    Ok(missing(&dir).is_empty().then_some(dir))
}

/// What `HANSE_KUBE_TOOLS` names: a folder, or the word PATH.
fn given(choice: &Path) -> Result<Option<PathBuf>> {
    if choice == Path::new("PATH") {
        let names = KUBE_LINKS.iter().chain(OTHER_PROGRAMS).copied();
        let lacks = names.filter(|n| on_path(n).is_none()).collect::<Vec<_>>();
        if lacks.is_empty() {
            return Ok(None);
        }
        bail!(
            "HANSE_KUBE_TOOLS is PATH, but PATH has no {}: install them or unset the variable",
            lacks.join(", ")
        );
    }
    let lacks = missing(choice);
    if lacks.is_empty() {
        return Ok(Some(choice.to_owned()));
    }
    bail!(
        "HANSE_KUBE_TOOLS names {}, which lacks {}: complete it or unset the variable",
        choice.display(),
        lacks.join(", ")
    )
}

fn missing(dir: &Path) -> Vec<String> {
    let programs = KUBE_LINKS.iter().chain(OTHER_PROGRAMS).map(|n| format!("bin/{n}"));
    let stages = KWOK_STAGES.iter().map(|s| format!("kwok-stages/{}", file_name(s)));
    programs
        .chain(stages)
        .filter(|path| !dir.join(path).is_file())
        .collect()
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn build(step: &Step, versions: &Versions, scratch: &Path) -> Result<PathBuf> {
    let out = scratch.join("out");
    let bin = out.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
    let kube = folder().join("kube");
    let etcd = folder().join("etcd");
    let stamp = version_stamp(&versions.kubernetes)?;
    step.say("kube-apiserver, kube-controller-manager, kube-scheduler, kubectl (1 of 4)");
    step.run(&mut go_build(&kube, &stamp, &bin.join(KUBE_PROGRAM), "."))?;
    for name in KUBE_LINKS {
        cache::relink(&bin.join(name), Path::new(KUBE_PROGRAM))?;
    }
    step.say("kwok (2 of 4)");
    step.run(&mut go_build(&kube, "", &bin.join("kwok"), "sigs.k8s.io/kwok/cmd/kwok"))?;
    step.say("etcd (3 of 4)");
    step.run(&mut go_build(&etcd, "", &bin.join("etcd"), "go.etcd.io/etcd/server/v3"))?;
    step.say("etcdctl (4 of 4)");
    step.run(&mut go_build(
        &etcd,
        "",
        &bin.join("etcdctl"),
        "go.etcd.io/etcd/etcdctl/v3",
    ))?;
    copy_stages(&kube, &out.join("kwok-stages"))?;
    Ok(out)
}

/// Programs from pinned modules in a folder of their own, built once per machine when something asks for them.
pub(crate) struct Apart<'a> {
    /// Of the folder in the cache, with the versions.
    pub(crate) key: &'a str,
    /// What must be in its `bin`.
    pub(crate) programs: &'a [&'a str],
    /// How long a build takes, for whoever waits.
    pub(crate) takes: &'a str,
}

impl Apart<'_> {
    fn lacks(&self, dir: &Path) -> bool {
        !self.programs.iter().all(|name| dir.join("bin").join(name).is_file())
    }

    /// Finds the programs, or has them built into the folder that `build` is given. Answers their folder and which it was.
    pub(crate) fn ensure(
        &self,
        step: &Step,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<(PathBuf, &'static str)> {
        let parent = cache::root()?.join("kube-tools");
        let dir = parent.join(self.key);
        if !self.lacks(&dir) {
            return Ok((dir, "found"));
        }
        let entry = cache::Entry::lock(&parent, self.key, || step.say("another build runs, waiting"))?;
        if !self.lacks(entry.dir()) {
            return Ok((dir, "found"));
        }
        let log = parent.join(format!("{}.log", self.key));
        let takes = self.takes;
        step.say(&format!("building, {takes} on two cores; log: {}", log.display()));
        step.log_to(&log);
        let out = entry.scratch()?.join("out");
        let bin = out.join("bin");
        fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
        build(&bin)?;
        if self.lacks(&out) {
            bail!("the build left not all of {}", self.programs.join(", "));
        }
        Ok((entry.publish(&out)?, "built"))
    }
}

pub(crate) fn go_build(module: &Path, stamp: &str, out: &Path, package: &str) -> Command {
    let mut go = Command::new("go");
    go.current_dir(module).env("CGO_ENABLED", "0").env_remove("GOFLAGS");
    go.args(["build", "-v", "-mod=readonly", "-trimpath", "-ldflags"]);
    go.arg(format!("-s -w {stamp}")).arg("-o").arg(out).arg(package);
    go
}

/// Without these the programs call themselves v0.0.0-master.
fn version_stamp(version: &str) -> Result<String> {
    let mut parts = version.trim_start_matches('v').split('.');
    let (Some(major), Some(minor)) = (parts.next(), parts.next()) else {
        bail!("versions.toml: kubernetes = \"{version}\" is not of the form v1.2.3");
    };
    let set = |name: &str, value: &str| format!("-X k8s.io/component-base/version.{name}={value}");
    Ok([
        set("gitVersion", version),
        set("gitMajor", major),
        set("gitMinor", minor),
        set("gitTreeState", "clean"),
        // Not known from a module; the default is an unexpanded `$Format`.
        set("gitCommit", "unknown"),
    ]
    .join(" "))
}

fn copy_stages(module: &Path, to: &Path) -> Result<()> {
    let list = Command::new("go")
        .current_dir(module)
        .args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"])
        .output()
        .context("run go list")?;
    let dir = String::from_utf8_lossy(&list.stdout).trim().to_owned();
    if dir.is_empty() {
        let why = String::from_utf8_lossy(&list.stderr).trim().to_owned();
        return Err(anyhow!("go list does not know where kwok's module lies: {why}"));
    }
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    for stage in KWOK_STAGES {
        let from = Path::new(&dir).join("kustomize/stage").join(stage);
        // Read and written anew: a copy would keep the read-only mode of the module cache.
        let text = fs::read_to_string(&from).with_context(|| format!("read {}", from.display()))?;
        fs::write(to.join(file_name(stage)), text).context("write a kwok stage")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_pin_the_versions_of_the_key() {
        let versions = Versions::read().unwrap();
        let kube = fs::read_to_string(folder().join("kube/go.mod")).unwrap();
        let etcd = fs::read_to_string(folder().join("etcd/go.mod")).unwrap();
        assert!(kube.contains(&format!("k8s.io/kubernetes {}\n", versions.kubernetes)));
        assert!(kube.contains(&format!("sigs.k8s.io/kwok {} ", versions.kwok)));
        for part in ["server", "etcdctl"] {
            assert!(etcd.contains(&format!("go.etcd.io/etcd/{part}/v3 {}", versions.etcd)));
        }
        let suite = fs::read_to_string(folder().join("etcd-suite/go.mod")).unwrap();
        for part in ["tests", "etcdutl"] {
            assert!(suite.contains(&format!("go.etcd.io/etcd/{part}/v3 {}", versions.etcd)));
        }
        let load = fs::read_to_string(folder().join("etcd-benchmark/go.mod")).unwrap();
        assert!(load.contains(&format!("go.etcd.io/etcd/v3 {}", versions.etcd_benchmark)));
        // The libraries of release v1.x.y are published as v0.x.y.
        let libraries = versions.kubernetes.replacen("v1.", "v0.", 1);
        let replaced = kube.lines().filter(|l| l.contains(" => "));
        assert!(replaced.clone().count() > 30);
        assert!(replaced.clone().all(|l| l.ends_with(&libraries)));
    }

    #[test]
    fn key_is_a_file_name_with_every_version() {
        let versions = Versions {
            kubernetes: "v1.2.3".into(),
            kwok: "v0.4.0".into(),
            etcd: "v3.5.6".into(),
            vcluster: "v0.1.0".into(),
            etcd_benchmark: "v3.5.0".into(),
            recipe: 7,
        };
        assert_eq!(versions.key(), "kubernetes-v1.2.3-kwok-v0.4.0-etcd-v3.5.6-r7");
    }

    #[test]
    fn incomplete_folder_is_refused_with_what_it_lacks() {
        let error = given(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(
            error.contains("bin/kube-apiserver") && error.contains("pod-ready.yaml"),
            "{error}"
        );
    }
}
