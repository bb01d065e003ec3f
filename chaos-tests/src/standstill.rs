//! Times at which the machine gave this process no time: no server can do anything about those.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Without the processor for so long, this process stood still, and so may have the servers.
const STANDSTILL: Duration = Duration::from_millis(500);
/// How long a standstill is felt: the deadlines of connections that it broke.
const AFTERMATH: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(25);

/// Notes standstills for as long as it is there.
#[derive(Debug)]
pub struct Standstills(Arc<Mutex<Vec<Instant>>>);

impl Standstills {
    /// Begins.
    pub fn watch() -> Self {
        let times = Arc::default();
        note(Arc::downgrade(&times));
        Self(times)
    }

    /// Whether what failed at `failed`, begun at most `limit` earlier, may have failed for that.
    pub fn excuse(&self, failed: Instant, limit: Duration) -> bool {
        let times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let long = limit + AFTERMATH;
        times
            .iter()
            .any(|at| *at <= failed && failed.duration_since(*at) < long)
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    #[cfg(test)]
    pub(crate) fn set(&self, times: Vec<Instant>) {
        *self.0.lock().unwrap() = times;
    }
}

/// A thread: tests block those of the runtime.
fn note(times: Weak<Mutex<Vec<Instant>>>) {
    std::thread::spawn(move || {
        loop {
            let before = Instant::now();
            std::thread::sleep(PAUSE);
            let Some(times) = times.upgrade() else { return };
            if before.elapsed() > STANDSTILL {
                times
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(Instant::now());
            }
        }
    });
}
