//! What `/proc` says about processes (proc(5)).

use std::fs;
use std::io;

/// A process that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// Whether all its threads ended already and it only waits for its parent.
    pub(super) ended: bool,
    /// When it started, in clock ticks since boot: with the pid it names a process for one boot.
    pub(super) start_ticks: u64,
}

/// Tells one boot of the machine from another.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The process `pid`, if there is one.
pub(super) fn stat(pid: i32) -> io::Result<Option<Stat>> {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(text) => parse_stat(&text)
            .map(Some)
            .ok_or_else(|| io::Error::other(format!("cannot parse /proc/{pid}/stat"))),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_gone(error: &io::Error) -> bool {
    // ESRCH: it ended between open and read.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the program's name in parentheses and may hold anything, parentheses too.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    // `state` is field 3, the number of threads field 20, the start time field 22.
    let threads: u64 = fields.nth(16)?.parse().ok()?;
    let start_ticks = fields.nth(1)?.parse().ok()?;
    Some(Stat {
        // The first thread can be a zombie while another one still holds the process's ports and locks.
        ended: matches!(state, "Z" | "X" | "x") && threads <= 1,
        start_ticks,
    })
}

/// Whether the environment of `pid` holds `entry` (`NAME=value`). Processes of other users count as strangers.
pub(super) fn environ_has(pid: i32, entry: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|bytes| bytes.split(|byte| *byte == 0).any(|found| found == entry.as_bytes()))
}

/// All processes that carry `entry` in their environment.
pub(super) fn find_by_environ(entry: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let name = process?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if environ_has(pid, entry) && stat(pid)?.is_some_and(|stat| !stat.ended) {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let line = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 987654 1 2 3";
        assert_eq!(
            parse_stat(line),
            Some(Stat {
                ended: false,
                start_ticks: 987_654
            })
        );
        let line = "42 (x) Z 1 42 42 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 5";
        assert_eq!(
            parse_stat(line),
            Some(Stat {
                ended: true,
                start_ticks: 5
            })
        );
        assert_eq!(parse_stat("42 (x"), None);
    }

    #[test]
    fn this_process_is_there() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(!stat(me).unwrap().unwrap().ended);
        assert_eq!(stat(i32::MAX).unwrap(), None);
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
