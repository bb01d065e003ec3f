//! Times at which the machine gave this process no time, or did not write what it was to keep: no server can do anything
//! about those.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Without the processor for so long, this process stood still, and so may have the servers.
const STANDSTILL: Duration = Duration::from_millis(500);
/// A sync of a few bytes that takes so long: RocksDB and Raft stand still for as long.
const STALL: Duration = Duration::from_millis(1500);
/// How long a standstill is felt: the deadlines of connections that it broke.
const AFTERMATH: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(25);
/// Between two syncs.
const SYNC_PAUSE: Duration = Duration::from_millis(500);

/// What one thread does again and again to see whether the machine works.
#[derive(Debug)]
struct Pulse {
    /// A beat that takes longer is a standstill.
    longest: Duration,
    /// When the last beat ended.
    last: Instant,
    /// Standstills, from their beginnings to their ends.
    stills: Vec<(Instant, Instant)>,
}

impl Pulse {
    fn new(longest: Duration) -> Self {
        Self {
            longest,
            last: Instant::now(),
            stills: Vec::new(),
        }
    }

    /// Standstills so far, one that has not ended included: whoever asks may run again before the thread does.
    fn stills(&self, now: Instant) -> impl Iterator<Item = (Instant, Instant)> {
        let lasts = now.duration_since(self.last) > self.longest;
        self.stills.iter().copied().chain(lasts.then_some((self.last, now)))
    }

    fn beat(&mut self, now: Instant) {
        if now.duration_since(self.last) > self.longest {
            self.stills.push((self.last, now));
        }
        self.last = now;
    }
}

type Shared = Mutex<[Pulse; 2]>;

/// Notes standstills for as long as it is there.
#[derive(Debug)]
pub struct Standstills(Arc<Shared>);

impl Standstills {
    /// Begins.
    pub fn watch() -> Self {
        let pulses = Arc::new(Mutex::new([Pulse::new(STANDSTILL), Pulse::new(STALL + SYNC_PAUSE)]));
        run(Arc::downgrade(&pulses), 0, || std::thread::sleep(PAUSE));
        // Homes of tests are on this file system. Where no file can be made there, stalls are not seen, and nothing is excused for them.
        if let Ok(mut file) = tempfile::tempfile() {
            run(Arc::downgrade(&pulses), 1, move || {
                std::thread::sleep(SYNC_PAUSE);
                let _a_full_disk_is_no_stall = sync(&mut file);
            });
        } else {
            lock(&pulses)[1].longest = Duration::MAX;
        }
        Self(pulses)
    }

    /// Whether what failed at `failed`, begun at most `limit` earlier, may have failed for that.
    pub fn excuse(&self, failed: Instant, limit: Duration) -> bool {
        let (now, felt) = (Instant::now(), limit + AFTERMATH);
        lock(&self.0)
            .iter()
            .flat_map(|pulse| pulse.stills(now))
            .any(|(from, until)| from <= failed && failed < until + felt)
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        lock(&self.0).iter().map(|pulse| pulse.stills.len()).sum()
    }

    /// Only these, from now on.
    #[cfg(test)]
    pub(crate) fn only(times: &[Instant]) -> Self {
        let mut pulses = [Pulse::new(Duration::MAX), Pulse::new(Duration::MAX)];
        pulses[0].stills = times.iter().map(|at| (*at, *at)).collect();
        Self(Arc::new(Mutex::new(pulses)))
    }
}

fn lock(pulses: &Shared) -> std::sync::MutexGuard<'_, [Pulse; 2]> {
    pulses.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sync(file: &mut File) -> std::io::Result<()> {
    file.rewind()?;
    file.write_all(b"still there")?;
    file.sync_data()
}

/// A thread: tests block those of the runtime.
fn run(pulses: Weak<Shared>, which: usize, mut work: impl FnMut() + Send + 'static) {
    std::thread::spawn(move || {
        loop {
            work();
            let Some(pulses) = pulses.upgrade() else { return };
            lock(&pulses)[which].beat(Instant::now());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_in_a_standstill_or_shortly_after_is_excused() {
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        let mut pulse = Pulse::new(second);
        pulse.last = begun;
        pulse.beat(begun + second);
        assert_eq!(pulse.stills(begun + second).count(), 0);
        let lasting = pulse.stills(begun + second * 3).next();
        assert_eq!(
            lasting,
            Some((begun + second, begun + second * 3)),
            "seen before it has ended"
        );
        pulse.beat(begun + second * 4);
        assert_eq!(pulse.stills(begun + second * 4).count(), 1);
        let all = Standstills(Arc::new(Mutex::new([pulse, Pulse::new(Duration::MAX)])));
        for (failed, excused) in [(0, false), (1, true), (2, true), (4, true), (14, true), (15, false)] {
            assert_eq!(all.excuse(begun + second * failed, second), excused, "{failed}");
        }
    }
}
