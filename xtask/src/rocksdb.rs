//! The static store library, built once per machine.
//!
//! The crate compiles 343 C++ files one by one in each profile of each target
//! folder. The same sources as a unity build take a third of the time, and one
//! archive serves every profile and checkout. `.cargo/local.toml` leads cargo
//! to it; whenever it is absent, or this build fails, the crate builds its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::step::Step;
use crate::{cache, root};

/// Part of the key: raise it when the flags below change.
const RECIPE: u32 = 1;
/// Files per unity unit; 16 took a third longer than 48.
const UNITY_BATCH: u32 = 48;
/// Features of the sys crate that need nothing from the C++ build.
const NEUTRAL_FEATURES: &[&str] = &[
    "default",
    "static",
    "bindgen-runtime",
    "bindgen-static",
    "lz4",
    "lz4-sys",
    "mt_static",
];

const CARGO_CONFIG: &str = ".cargo/local.toml";

struct Sources {
    version: String,
    dir: PathBuf,
    /// Where lz4.h lies, if the crate is used with LZ4.
    lz4: Option<PathBuf>,
}

/// Makes the library ready for every cargo call in this checkout.
/// Never fails for want of it: then cargo builds it from source.
pub(crate) fn ensure() -> Result<()> {
    let step = Step::start("store library", "");
    match locate_or_build(&step) {
        Ok((dir, how)) => {
            write_cargo_config(Some(&dir))?;
            step.finish(&format!("{how} {}", dir.display()));
        }
        Err(error) if configured_library().is_some_and(|dir| complete(&dir)) => {
            // Such as a manifest in the middle of an edit: what worked before still does.
            step.finish("kept as it was");
            eprintln!("    because: {error:#}");
        }
        Err(error) => {
            write_cargo_config(None)?;
            step.finish("not prebuilt, cargo will build it (10 to 20 minutes)");
            eprintln!("    because: {error:#}");
        }
    }
    Ok(())
}

fn locate_or_build(step: &Step) -> Result<(PathBuf, &'static str)> {
    if cfg!(not(target_os = "linux")) {
        bail!("only Linux has a recipe for the quick build");
    }
    let sources = sources()?;
    let cpu = cpu_baseline(std::env::consts::ARCH, &cpu_flags());
    let compression = if sources.lz4.is_some() { "lz4" } else { "plain" };
    let key = cache::file_name(&format!(
        "{}-{}-{cpu}-{compression}-r{RECIPE}",
        sources.version,
        compiler()?
    ));
    let parent = cache::root()?.join("rocksdb");
    if complete(&parent.join(&key)) {
        return Ok((parent.join(&key), "found"));
    }
    let entry = cache::Entry::lock(&parent, &key, || step.say("another build runs, waiting"))?;
    if complete(entry.dir()) {
        return Ok((entry.dir().to_owned(), "found"));
    }
    let log = parent.join(format!("{key}.log"));
    step.say(&format!("building, 6 minutes on two cores; log: {}", log.display()));
    let built = build(step, &sources, cpu, entry.scratch()?, &log)?;
    Ok((entry.publish(&built)?, "built"))
}

fn complete(dir: &Path) -> bool {
    dir.join("lib/librocksdb.a").is_file() && dir.join("include/rocksdb/c.h").is_file()
}

/// Asks cargo, which also fetches the sources if need be.
fn sources() -> Result<Sources> {
    let output = Command::new(crate::cargo())
        .args(["metadata", "--format-version", "1"])
        .current_dir(root())
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed ({})", output.status);
    }
    let graph: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let (version, dir) =
        package(&graph, "librocksdb-sys").ok_or_else(|| anyhow!("no crate of the workspace uses librocksdb-sys"))?;
    for feature in features(&graph, "librocksdb-sys") {
        if !NEUTRAL_FEATURES.contains(&feature.as_str()) {
            bail!("the quick build knows no feature `{feature}` of librocksdb-sys");
        }
    }
    let lz4 = package(&graph, "lz4-sys").map(|(_, dir)| dir.join("liblz4/lib"));
    Ok(Sources {
        version,
        dir: dir.join("rocksdb"),
        lz4,
    })
}

fn package(graph: &Value, name: &str) -> Option<(String, PathBuf)> {
    let package = graph["packages"].as_array()?.iter().find(|p| p["name"] == name)?;
    let manifest = Path::new(package["manifest_path"].as_str()?);
    Some((package["version"].as_str()?.to_owned(), manifest.parent()?.to_owned()))
}

fn features(graph: &Value, name: &str) -> Vec<String> {
    let package = graph["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|p| p["name"] == name);
    let nodes = graph["resolve"]["nodes"].as_array().into_iter().flatten();
    let of = |node: &&Value| package.is_some_and(|p| p["id"] == node["id"]);
    let features = nodes.filter(of).flat_map(|n| n["features"].as_array()).flatten();
    features.filter_map(|f| f.as_str().map(str::to_owned)).collect()
}

/// `gcc-12.2.0`: objects of another compiler must not be mixed up with these.
fn compiler() -> Result<String> {
    let program = cxx();
    let ask = |arg: &[&str]| -> Result<String> {
        let output = Command::new(&program)
            .args(arg)
            .output()
            .with_context(|| format!("run the C++ compiler `{program}`"))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let family = if ask(&["--version"])?.contains("clang") {
        "clang"
    } else {
        "gcc"
    };
    Ok(format!("{family}-{}", ask(&["-dumpfullversion", "-dumpversion"])?))
}

fn cxx() -> String {
    std::env::var("CXX")
        .ok()
        .filter(|c| !c.is_empty())
        .unwrap_or_else(|| "c++".to_owned())
}

fn cpu_flags() -> String {
    fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

/// The oldest processor the library has to run on: new enough for CRC32C in
/// hardware, old enough that the archive is worth sharing between machines.
fn cpu_baseline(arch: &str, cpuinfo: &str) -> &'static str {
    let has = |flag: &str| cpuinfo.split_whitespace().any(|word| word == flag);
    match arch {
        "x86_64" if ["avx2", "bmi1", "bmi2", "fma", "pclmulqdq"].iter().all(|f| has(f)) => "haswell",
        "x86_64" if has("sse4_2") && has("pclmulqdq") => "westmere",
        // On arm64 the build turns CRC on by itself.
        _ => "1",
    }
}

fn build(step: &Step, sources: &Sources, cpu: &str, scratch: &Path, log: &Path) -> Result<PathBuf> {
    step.log_to(log);
    // A copy: the build writes files beside its sources, and the registry's are not ours.
    let source = scratch.join("src");
    let copy = |from: &Path, to: &Path| step.run(Command::new("cp").arg("-r").arg(from).arg(to));
    copy(&sources.dir, &source)?;
    let mut flags = "-O2 -DNDEBUG -ffunction-sections -fdata-sections".to_owned();
    if let Some(headers) = &sources.lz4 {
        // Only the headers: the archive of the crate lz4-sys is linked.
        let lz4 = scratch.join("lz4");
        fs::create_dir(&lz4).context("create a folder for lz4.h")?;
        for name in ["lz4.h", "lz4hc.h"] {
            copy(&headers.join(name), &lz4)?;
        }
        flags.push_str(&format!(" -DLZ4 -I{}", lz4.display()));
    }
    let build = scratch.join("build");
    let mut cmake = Command::new("cmake");
    cmake.arg("-S").arg(&source).arg("-B").arg(&build).args(["-G", "Ninja"]);
    cmake.args([
        "-DCMAKE_BUILD_TYPE=Release",
        "-DROCKSDB_BUILD_SHARED=0",
        "-DFAIL_ON_WARNINGS=0",
    ]);
    cmake
        .arg(format!("-DCMAKE_CXX_FLAGS_RELEASE={flags}"))
        .arg(format!("-DPORTABLE={cpu}"));
    cmake.arg("-DCMAKE_UNITY_BUILD=ON");
    cmake.arg(format!("-DCMAKE_UNITY_BUILD_BATCH_SIZE={UNITY_BATCH}"));
    for part in [
        "GFLAGS",
        "TESTS",
        "ALL_TESTS",
        "TOOLS",
        "BENCHMARK_TOOLS",
        "CORE_TOOLS",
        "TRACE_TOOLS",
    ] {
        cmake.arg(format!("-DWITH_{part}=0"));
    }
    step.run(&mut cmake)?;
    step.run(Command::new("ninja").arg("-C").arg(&build).arg("rocksdb"))?;
    let out = scratch.join("out");
    fs::create_dir_all(out.join("lib")).context("create the folder of the library")?;
    fs::rename(build.join("librocksdb.a"), out.join("lib/librocksdb.a")).context("the build left no librocksdb.a")?;
    fs::rename(source.join("include"), out.join("include")).context("keep the headers")?;
    Ok(out)
}

/// The folder that `.cargo/local.toml` names now.
fn configured_library() -> Option<PathBuf> {
    let text = fs::read_to_string(root().join(CARGO_CONFIG)).ok()?;
    let config: toml::Table = text.parse().ok()?;
    Some(
        Path::new(config.get("env")?.get("ROCKSDB_LIB_DIR")?.as_str()?)
            .parent()?
            .to_owned(),
    )
}

/// Every cargo call in the checkout reads this file, a developer's own as well.
/// It is written only when it changes, since a change makes cargo look again.
fn write_cargo_config(dir: Option<&Path>) -> Result<()> {
    let path = root().join(CARGO_CONFIG);
    let Some(dir) = dir else {
        return match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        };
    };
    let quoted = |p: PathBuf| toml::Value::String(p.display().to_string()).to_string();
    let text = format!(
        "# Written by `cargo xtask rocksdb`. Delete it and cargo builds the library from source.\n\
         [env]\nROCKSDB_LIB_DIR = {}\nROCKSDB_INCLUDE_DIR = {}\nROCKSDB_STATIC = \"1\"\n",
        quoted(dir.join("lib")),
        quoted(dir.join("include")),
    );
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn baseline_follows_the_processor() {
        let new = "flags : sse4_2 avx2 bmi1 bmi2 fma pclmulqdq";
        assert_eq!(cpu_baseline("x86_64", new), "haswell");
        assert_eq!(cpu_baseline("x86_64", "flags : sse4_2 pclmulqdq"), "westmere");
        assert_eq!(cpu_baseline("x86_64", "flags : sse2"), "1");
        assert_eq!(cpu_baseline("aarch64", ""), "1");
    }

    #[test]
    fn features_come_from_the_resolved_graph() {
        let graph = serde_json::json!({
            "packages": [{"name": "librocksdb-sys", "id": "x", "version": "1",
                          "manifest_path": "/r/librocksdb-sys-1/Cargo.toml"}],
            "resolve": {"nodes": [{"id": "y", "features": ["zstd"]},
                                  {"id": "x", "features": ["lz4", "bindgen-runtime"]}]},
        });
        assert_eq!(features(&graph, "librocksdb-sys"), ["lz4", "bindgen-runtime"]);
        let (version, dir) = package(&graph, "librocksdb-sys").unwrap();
        assert_eq!((version.as_str(), dir), ("1", PathBuf::from("/r/librocksdb-sys-1")));
    }
}
