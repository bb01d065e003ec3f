//! Programs and libraries of the system that the builds need.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step::Step;

/// What must be there, how to see it, and the Debian package that brings it.
struct Need {
    what: &'static str,
    package: &'static str,
    present: fn() -> bool,
}

const NEEDS: &[Need] = &[
    Need {
        what: "C++ compiler",
        package: "g++",
        present: || on_path("c++").is_some(),
    },
    Need {
        what: "C compiler",
        package: "gcc",
        present: || on_path("cc").is_some(),
    },
    Need {
        what: "cmake",
        package: "cmake",
        present: || on_path("cmake").is_some(),
    },
    Need {
        what: "ninja",
        package: "ninja-build",
        present: || on_path("ninja").is_some(),
    },
    Need {
        what: "libclang",
        package: "libclang-dev",
        present: has_libclang,
    },
    Need {
        what: "git",
        package: "git",
        present: || on_path("git").is_some(),
    },
    Need {
        what: "go",
        package: "golang-go",
        present: has_go,
    },
];

/// Installs what is missing, and nothing if nothing is.
pub(crate) fn install() -> Result<()> {
    let missing = NEEDS.iter().filter(|n| !(n.present)()).collect::<Vec<_>>();
    if missing.is_empty() {
        Step::start("system packages", "").finish("all there");
        return Ok(());
    }
    let packages = missing.iter().map(|n| n.package).collect::<Vec<_>>().join(" ");
    let step = Step::start("system packages", &format!("installing {packages}"));
    let prefix = match installer() {
        Ok(prefix) => prefix,
        Err(why) => {
            let what = missing.iter().map(|n| n.what).collect::<Vec<_>>().join(", ");
            bail!("missing: {what}\n{why}; install them, on Debian: apt-get install {packages}")
        }
    };
    step.run(&mut apt(&prefix, &["update"]))
        .context("refresh the package lists")?;
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(missing.iter().map(|n| n.package));
    step.run(&mut apt(&prefix, &args)).context("install packages")?;
    if let Some(need) = missing.iter().find(|n| !(n.present)()) {
        bail!(
            "{} is still missing after the package {} was installed{}",
            need.what,
            need.package,
            if need.what == "go" {
                ": install Go 1.26 or newer from https://go.dev/dl"
            } else {
                ""
            }
        );
    }
    step.finish(&format!("installed {packages}"));
    Ok(())
}

/// The words before `apt-get`, or why it cannot be called.
fn installer() -> Result<Vec<&'static str>> {
    if on_path("apt-get").is_none() {
        bail!("this system has no apt-get");
    }
    let id = Command::new("id").arg("-u").output().context("run id")?;
    if id.stdout.trim_ascii() == b"0" {
        return Ok(vec![]);
    }
    // -n: a password prompt would hang a run without a terminal.
    let sudo = Command::new("sudo").args(["-n", "true"]).output();
    if sudo.is_ok_and(|o| o.status.success()) {
        return Ok(vec!["sudo", "-n"]);
    }
    bail!("not root, and sudo asks for a password")
}

fn apt(prefix: &[&str], args: &[&str]) -> Command {
    let words = [prefix, &["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"], args].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// The first file of that name on PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// bindgen loads libclang at build time, from one of these places.
fn has_libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let mut dirs = vec![PathBuf::from("/usr/lib64"), PathBuf::from("/usr/local/lib")];
    for entry in std::fs::read_dir("/usr/lib").into_iter().flatten().flatten() {
        dirs.push(entry.path());
        dirs.push(entry.path().join("lib"));
    }
    dirs.iter().any(|dir| holds_libclang(dir))
}

fn holds_libclang(dir: &Path) -> bool {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    names.map(|e| e.file_name()).any(|n| is_libclang(&n.to_string_lossy()))
}

/// `libclang.so.1`, `libclang-14.so.1`; but libclang-cpp, which comes with many packages, is another library.
fn is_libclang(file: &str) -> bool {
    let numbered = |rest: &str| rest.starts_with(|first: char| first.is_ascii_digit()) && rest.contains(".so");
    file.starts_with("libclang.so") || file.strip_prefix("libclang-").is_some_and(numbered)
}

/// From Go 1.21 on, an older Go fetches the toolchain that a module asks for.
fn has_go() -> bool {
    let Ok(output) = Command::new("go").arg("version").output() else {
        return false;
    };
    go_is_new_enough(&String::from_utf8_lossy(&output.stdout))
}

fn go_is_new_enough(version: &str) -> bool {
    let number = version.split_whitespace().nth(2).and_then(|w| w.strip_prefix("go"));
    let mut parts = number.unwrap_or_default().split('.').map(|p| p.parse::<u32>().ok());
    matches!((parts.next().flatten(), parts.next().flatten()), (Some(1), Some(minor)) if minor >= 21)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_library_of_clang_is_not_libclang() {
        for (name, is) in [
            ("libclang-cpp.so.14", false),
            ("libclang-cpp.so", false),
            ("libclang-14.a", false),
            ("libclangBasic.so", false),
            ("libclang-14.so.1", true),
            ("libclang-14.so.14.0.6", true),
            ("libclang.so.1", true),
            ("libclang.so", true),
        ] {
            assert_eq!(is_libclang(name), is, "{name}");
        }
    }

    #[test]
    fn old_go_is_not_enough() {
        assert!(go_is_new_enough("go version go1.26.8 linux/amd64"));
        assert!(!go_is_new_enough("go version go1.19.8 linux/amd64"));
        assert!(!go_is_new_enough(""));
    }
}
