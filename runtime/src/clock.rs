//! Time as an argument. `wall` says *when* (stored), `mono` says *how long* (never stored).

use futures::future::{BoxFuture, FutureExt};
use hanse_api::Timestamp;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of time. All code outside this crate takes one.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time.
    fn wall(&self) -> Timestamp;
    /// Time since an arbitrary start; never runs backwards.
    fn mono(&self) -> Duration;
    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// A clock that is handed around.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's own clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose `mono` starts now.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// The same, ready to be handed around.
    pub fn shared() -> SharedClock {
        Arc::new(Self::new())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    fn mono(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(duration).boxed()
    }
}

/// What [`timeout`] answers when time ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed(pub Duration);

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer within {:?}", self.0)
    }
}

impl std::error::Error for Elapsed {}

/// Runs `future` for at most `limit`.
pub async fn timeout<F: Future>(clock: &dyn Clock, limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    tokio::select! {
        biased;
        output = future => Ok(output),
        () = clock.sleep(limit) => Err(Elapsed(limit)),
    }
}

/// A clock for tests, moved by hand.
pub mod testing {
    use super::{BoxFuture, Clock, Duration, FutureExt, Timestamp};
    use std::sync::Arc;
    use tokio::sync::watch;

    /// Time stands still until [`ManualClock::advance`].
    #[derive(Clone, Debug)]
    pub struct ManualClock {
        now: Arc<watch::Sender<Duration>>,
        start: Timestamp,
    }

    impl ManualClock {
        /// A clock that shows `start`.
        pub fn new(start: Timestamp) -> Self {
            Self {
                now: Arc::new(watch::Sender::new(Duration::ZERO)),
                start,
            }
        }

        /// Moves time on; sleepers whose time has come wake.
        pub fn advance(&self, by: Duration) {
            self.now.send_modify(|now| *now += by);
        }
    }

    impl Default for ManualClock {
        fn default() -> Self {
            Self::new(Timestamp::from_millis(1_700_000_000_000))
        }
    }

    impl Clock for ManualClock {
        fn wall(&self) -> Timestamp {
            self.start.plus(self.mono())
        }

        fn mono(&self) -> Duration {
            *self.now.borrow()
        }

        fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
            let mut now = self.now.subscribe();
            let until = self.mono() + duration;
            async move {
                // The sender lives as long as the clock; a dropped clock ends the sleep, as no time can come.
                let _ended = now.wait_for(|now| *now >= until).await.is_err();
            }
            .boxed()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::ManualClock;
    use super::*;

    #[tokio::test]
    async fn manual_time_wakes_sleepers_in_due_time_only() {
        let clock = ManualClock::default();
        let mut sleep = clock.sleep(Duration::from_secs(5));
        clock.advance(Duration::from_secs(4));
        assert!(futures::poll!(&mut sleep).is_pending());
        clock.advance(Duration::from_secs(1));
        sleep.await;
        assert_eq!(clock.wall().as_millis(), 1_700_000_005_000);
    }

    #[tokio::test]
    async fn timeout_prefers_an_answer() {
        let clock = SystemClock::new();
        assert_eq!(timeout(&clock, Duration::ZERO, async { 1 }).await, Ok(1));
        let never = timeout(&clock, Duration::from_millis(1), futures::future::pending::<()>()).await;
        assert_eq!(never, Err(Elapsed(Duration::from_millis(1))));
    }
}
