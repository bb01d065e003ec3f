//! Who a process id belongs to. A number alone is worth nothing after a crash: another process may have it by then, so
//! a process is named by number, start time and boot, and signals go through a descriptor of just that process.

use crate::error::{Error, Kind, Result};
use hanse_runtime::clock::Clock;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How often the end of a process is looked for.
const POLL: Duration = Duration::from_millis(20);
/// After SIGKILL only the kernel stands in the way.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A process that ran at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Number.
    pub(crate) pid: i32,
    /// Start time in clock ticks since the boot: field 22 of `/proc/PID/stat`, proc(5).
    pub(crate) start: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub(crate) boot: String,
}

/// How far a process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Running,
    /// It was killed, and its first thread is a zombie; another one still writes to the disk, say. Until that one has
    /// ended too, the process keeps its ports and its locks.
    Ending,
    /// Nothing is left but its number.
    Ended,
}

/// What state it is in, and its start time, in the text of `/proc/PID/stat`. The command, in brackets, may hold anything.
fn parse_stat(text: &str) -> Option<(Life, u64)> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // `state` is field 3, `num_threads` field 20, `starttime` field 22.
    let threads: u64 = fields.nth(16)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    let life = match state {
        'Z' | 'X' if threads > 1 => Life::Ending,
        'Z' | 'X' => Life::Ended,
        _ => Life::Running,
    };
    Some((life, start))
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|t| t.trim().to_owned())
        .unwrap_or_default()
}

impl Identity {
    /// Of the process that has the number `pid` now, unless it has ended (zombies have).
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let (life, identity) = Self::look(pid)?;
        (life != Life::Ended).then_some(identity)
    }

    fn look(pid: i32) -> Option<(Life, Self)> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (life, start) = parse_stat(&text)?;
        let boot = boot_id();
        Some((life, Self { pid, start, boot }))
    }

    /// Of this process.
    pub(crate) fn own() -> Option<Self> {
        i32::try_from(std::process::id()).ok().and_then(Self::of)
    }

    /// Whether this very process was killed and keeps its ports for a moment yet.
    pub(crate) fn is_ending(&self) -> bool {
        Self::look(self.pid).is_some_and(|(life, found)| life == Life::Ending && found == *self)
    }

    /// Waits while it [is ending](Self::is_ending): for the kernel only, and not for long.
    pub(crate) async fn ended(&self, clock: &dyn Clock) {
        if self.is_ending() {
            let _whoever_wants_its_ports_is_told = self.wait(clock, KILL_LIMIT).await;
        }
    }

    /// Whether anything of this very process is left, its ports for instance.
    pub(crate) fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Sends `signal`; `false` when the process is gone.
    pub(crate) fn signal(&self, signal: Signal) -> Result<bool> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(false);
        };
        let sent = match pidfd_open(pid, PidfdFlags::empty()) {
            // The descriptor names whoever has the number now: check after it was opened, not before.
            Ok(fd) if self.is_alive() => pidfd_send_signal(fd, signal),
            Ok(_) | Err(Errno::SRCH) => return Ok(false),
            // A kernel without pidfd: a short race remains.
            Err(Errno::NOSYS) if self.is_alive() => kill_process(pid, signal),
            Err(Errno::NOSYS) => return Ok(false),
            Err(error) => Err(error),
        };
        match sent {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(Error::failed(format!("cannot signal process {}: {error}", self.pid))
                .hint("it belongs to another user? try as that user")),
        }
    }

    /// Ends it: asks, waits for `grace`, then kills. `false` when it was gone before.
    pub(crate) async fn stop(&self, clock: &dyn Clock, grace: Duration) -> Result<bool> {
        if !self.signal(Signal::TERM)? {
            return Ok(false);
        }
        if self.wait(clock, grace).await {
            return Ok(true);
        }
        self.kill(clock).await
    }

    /// Kills it. `false` when it was gone before.
    pub(crate) async fn kill(&self, clock: &dyn Clock) -> Result<bool> {
        if !self.signal(Signal::KILL)? {
            return Ok(false);
        }
        if self.wait(clock, KILL_LIMIT).await {
            return Ok(true);
        }
        let message = format!("process {} does not end after SIGKILL", self.pid);
        Err(Error::new(Kind::TimedOut, message).hint("it hangs in the kernel: look at the disk and at `dmesg`"))
    }

    /// Waits until it has ended; `false` when it has not within `limit`.
    pub(crate) async fn wait(&self, clock: &dyn Clock, limit: Duration) -> bool {
        let end = clock.mono() + limit;
        while self.is_alive() {
            if clock.mono() >= end {
                return false;
            }
            clock.sleep(POLL).await;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::clock::SystemClock;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    #[test]
    fn a_command_name_cannot_forge_fields() {
        let tail = "R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 1 18 4711 20";
        for command in ["(a)", "(a b)", "() Z 1)", "(a) R 1 2)"] {
            assert_eq!(
                parse_stat(&format!("12 {command} {tail}")),
                Some((Life::Running, 4711)),
                "{command}"
            );
        }
        for bad in ["", "12 (a", "12 (a) R 1 2"] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_process_has_ended_when_its_last_thread_has() {
        for (state, threads, life) in [
            ("R", 1, Life::Running),
            ("S", 9, Life::Running),
            ("Z", 2, Life::Ending),
            ("Z", 1, Life::Ended),
        ] {
            let line = format!("12 (a) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 {threads} 18 4711 20");
            assert_eq!(parse_stat(&line), Some((life, 4711)), "{line}");
        }
    }

    #[test]
    fn another_start_time_or_boot_is_another_process() {
        let own = Identity::own().unwrap();
        assert!(own.is_alive());
        for other in [
            Identity {
                start: own.start + 1,
                ..own.clone()
            },
            Identity {
                boot: "x".into(),
                ..own.clone()
            },
        ] {
            assert!(!other.is_alive());
            // If this went by number alone, the test would end here.
            assert!(!other.signal(Signal::KILL).unwrap());
        }
    }

    #[tokio::test]
    async fn a_stubborn_process_is_killed_and_a_zombie_counts_as_gone() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        let identity = Identity::of(i32::try_from(child.id()).unwrap()).unwrap();
        let clock = SystemClock::new();
        assert!(identity.stop(&clock, Duration::from_millis(100)).await.unwrap());
        assert!(!identity.is_alive(), "not yet reaped, and gone all the same");
        assert!(!identity.stop(&clock, Duration::ZERO).await.unwrap());
        child.wait().unwrap();
        assert!(!identity.signal(Signal::TERM).unwrap());
    }
}
