//! Waiting times between tries: exponential with full jitter, so that a crowd does not come back in step.

use crate::rng::Rng;
use std::time::Duration;

/// The wait before try n is uniform between zero and `min * 2^n`, capped at `max` (never below a tenth of that bound,
/// so that it cannot spin).
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    /// `min` must not exceed `max`; if it does, `max` counts.
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, tries: 0 }
    }

    /// The next wait.
    pub fn next(&mut self, rng: &dyn Rng) -> Duration {
        let bound = self.min.saturating_mul(1 << self.tries.min(20)).min(self.max);
        self.tries = self.tries.saturating_add(1);
        bound.mul_f64(0.1 + 0.9 * rng.unit())
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.tries = 0;
    }

    /// How many waits were handed out since the last reset.
    pub fn tries(&self) -> u32 {
        self.tries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::SeededRng;

    #[test]
    fn grows_to_its_bound_and_starts_over() {
        let rng = SeededRng::new(1);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        for n in 0..40u32 {
            let bound = Duration::from_millis(100 << n.min(10)).min(Duration::from_secs(5));
            let wait = backoff.next(&rng);
            assert!(wait <= bound && wait >= bound / 11, "try {n}: {wait:?} of {bound:?}");
        }
        backoff.reset();
        assert!(backoff.next(&rng) <= Duration::from_millis(100));
    }
}
