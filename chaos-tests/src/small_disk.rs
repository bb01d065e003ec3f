//! A small file system for one command, in a mount namespace of its own: nobody else sees it, and it goes with the
//! command. Needs the right to mount, which root has on most machines.

use anyhow::{Context as _, Result};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Seconds for the command, which is to end by itself.
const COMMAND_LIMIT: &str = "60";

/// `$1` place, `$2` size, `$3` bytes that are taken, `$4` list of files that are left; then the command.
const SCRIPT: &str = r#"
mount -t tmpfs -o "size=$2" none "$1" || exit 99
head -c "$3" /dev/zero > "$1/taken" 2>/dev/null
place=$1 list=$4
shift 4
timeout "$0" "$@"
code=$?
find "$place" -mindepth 1 ! -name taken > "$list"
exit $code
"#;

/// What a command did on a small file system.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended, and what it said.
    pub output: Output,
    /// Paths that it left there.
    pub left: Vec<String>,
}

/// Whether this user may mount.
pub fn can_mount() -> bool {
    let tried = Command::new("unshare")
        .args(["--mount", "mount", "-t", "tmpfs", "none", "/tmp"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

/// Runs `command` while `place`, a folder, is a file system of `size` bytes of which `taken` are used already.
pub fn run_on(place: &Path, size: u64, taken: u64, command: &Command) -> Result<Outcome> {
    let list = tempfile::NamedTempFile::new().context("make a file")?;
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-c", SCRIPT, COMMAND_LIMIT]).arg(place);
    shell.args([size.to_string(), taken.to_string()]).arg(list.path());
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let output = shell.stdin(Stdio::null()).output().context("run unshare")?;
    let left = std::fs::read_to_string(list.path()).context("read what was left")?;
    let left = left.lines().map(str::to_owned).collect();
    Ok(Outcome { output, left })
}
