//! Processor time and memory of the servers while something goes on.

use std::time::Duration;

/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(100);

/// What servers used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Processor time of all of them.
    pub cpu: Duration,
    /// The most that they had resident at one time, all together, MiB.
    pub memory_mib: u64,
}

fn sum(processes: &[u32], read: impl Fn(u32) -> Option<u64>) -> u64 {
    processes.iter().filter_map(|process| read(*process)).sum()
}

/// Processor time of all `processes` so far.
pub fn cpu(processes: &[u32]) -> Duration {
    let ticks = sum(processes, |process| {
        let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
        let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(user + system)
    });
    // A tick is 10 ms on every Linux that this runs on (USER_HZ, proc(5)).
    Duration::from_millis(ticks * 10)
}

/// Resident memory of all `processes` now, MiB.
pub fn memory_mib(processes: &[u32]) -> u64 {
    let kib = sum(processes, |process| {
        let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    });
    kib / 1024
}

/// Waits for `what`, and says what `processes` used meanwhile.
pub async fn during<T>(processes: &[u32], what: impl Future<Output = T>) -> (T, Used) {
    let before = cpu(processes);
    let mut peak = memory_mib(processes);
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut what = std::pin::pin!(what);
    let done = loop {
        tokio::select! {
            done = &mut what => break done,
            _ = looks.tick() => peak = peak.max(memory_mib(processes)),
        }
    };
    let used = Used {
        cpu: cpu(processes).saturating_sub(before),
        memory_mib: peak.max(memory_mib(processes)),
    };
    (done, used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn work_and_memory_of_a_process_are_seen() {
        let own = [std::process::id()];
        let before = memory_mib(&own);
        let (filled, used) = during(&own, async {
            // Longer than a tick, whatever else the machine does: counted is what this process got.
            let (begun, mut filled) = (Instant::now(), 0_u64);
            while cpu(&own) < Duration::from_millis(50) && begun.elapsed() < Duration::from_secs(60) {
                filled += vec![1_u8; 1 << 20].iter().map(|byte| u64::from(*byte)).sum::<u64>();
            }
            filled
        })
        .await;
        assert!(filled > 0 && cpu(&own) >= Duration::from_millis(50));
        assert!(before > 0 && used.memory_mib >= before, "{used:?} after {before} MiB");
        assert_eq!(memory_mib(&[u32::MAX]), 0, "nobody has that number");
    }
}
