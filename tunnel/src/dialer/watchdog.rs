//! Decides when a silent connection is suspect, and when it is dead. Pure, except for the loop that asks.

use super::Inner;
use super::link::Link;
use crate::code::Code;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How many round trips of silence are nothing unusual: a keep-alive, its acknowledgement, and one loss.
const ROUND_TRIPS: u32 = 3;

/// After how much silence a connection is suspect: as configured, or more where the round trip is long. It is dead after twice that.
pub fn suspect_after(configured: Duration, keep_alive: Duration, rtt: Duration) -> Duration {
    configured.max(keep_alive + rtt * ROUND_TRIPS)
}

/// What silence means so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Alive,
    Suspect,
    Dead,
}

/// Counts steps without a sign of life.
#[derive(Debug, Default)]
struct Silence {
    received: u64,
    steps: u32,
}

impl Silence {
    /// Takes in what has been received by now; `limit` is the silence that makes suspect.
    fn step(&mut self, received: u64, step: Duration, limit: Duration) -> Health {
        if received != self.received {
            self.received = received;
            self.steps = 0;
            return Health::Alive;
        }
        self.steps = self.steps.saturating_add(1);
        let silent = step * self.steps;
        if silent >= limit * 2 {
            Health::Dead
        } else if silent >= limit {
            Health::Suspect
        } else {
            Health::Alive
        }
    }
}

/// Watches a store connection until it is dead, and closes it then.
pub(super) async fn watch(dialer: &Inner, link: &Link) {
    let settings = &dialer.settings;
    let mut silence = Silence::default();
    loop {
        dialer.parts.clock.sleep(settings.watchdog_step).await;
        let limit = suspect_after(settings.suspect_after, settings.store.keep_alive, link.conn.rtt());
        let health = silence.step(link.conn.received(), settings.watchdog_step, limit);
        let suspect = health != Health::Alive;
        if link.suspect.swap(suspect, Ordering::Relaxed) != suspect {
            dialer.bump();
        }
        if health == Health::Dead {
            link.conn.close(Code::Silent, "no sign of life");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(200);
    const LIMIT: Duration = Duration::from_secs(1);

    #[test]
    fn silence_makes_suspect_then_dead_and_a_sign_of_life_resets() {
        let mut silence = Silence::default();
        assert_eq!(silence.step(1, STEP, LIMIT), Health::Alive);
        let seen: Vec<Health> = (0..10).map(|_| silence.step(1, STEP, LIMIT)).collect();
        assert!(seen[..4].iter().all(|health| *health == Health::Alive));
        assert!(seen[4..9].iter().all(|health| *health == Health::Suspect));
        assert_eq!(seen[9], Health::Dead);
        assert_eq!(silence.step(2, STEP, LIMIT), Health::Alive);
        assert_eq!(silence.step(2, STEP, LIMIT), Health::Alive);
    }

    #[test]
    fn long_paths_get_more_patience() {
        let keep_alive = Duration::from_millis(400);
        assert_eq!(suspect_after(LIMIT, keep_alive, Duration::from_millis(80)), LIMIT);
        assert_eq!(
            suspect_after(LIMIT, keep_alive, Duration::from_millis(400)),
            Duration::from_millis(1600)
        );
    }
}
