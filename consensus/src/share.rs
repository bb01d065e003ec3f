//! How many writes of one space may be under way while other spaces write as well.
//!
//! What is in the log cannot be overtaken: a quiet space's write waits for whatever a loud one has put there before it. How much of that
//! is too much depends on disks, processors and distances, so it is not a number but a time: a loud space gets as many as keep a
//! write's time at one and a half times what it is when hardly anything else is under way. Each batch of times moves the number by their ratio, and up
//! by one (a gradient limit, as in Netflix's concurrency-limits; TCP Vegas is its ancestor). Unlike there, the time at rest is learned
//! only from writes that had (almost) no company: so a load that goes on for hours does not become the measure of itself. If rest
//! itself gets slower, the number sinks to its least, and rest is learned anew: from what is under way then if one space writes.
//! Where several do, each with its least, nobody is ever without company; but company of so many cannot make a write take more
//! than so many times its time at rest. If that is what it takes at the least number, it is the log that has become slower.
//!
//! Pure: times are arguments.

use std::time::Duration;

/// A write under way with no more than so many, itself included, shows what one takes at rest.
pub(crate) const COMPANY: usize = 4;
/// A space may always have so many, however slow it is.
const LEAST: usize = COMPANY;
/// Times from which the number is moved.
const BATCH: u32 = 16;
/// How many times its time at rest a write may take, on average: less than twice, because the slowest ones spread wider.
const STRETCH: f64 = 1.5;
/// How many times its time at rest a single write may count for when that is learned.
const OUTLIER: f64 = 4.0;
/// The weight of one more write at rest.
const LEARN: f64 = 1.0 / 32.0;
/// First writes at rest of which only the fastest counts: one that waited for the first leader would be the measure for long.
const FIRST: u32 = 16;
/// Batches at the least number after which that is taken for a log that has become slower.
const STUCK: u32 = 8;

/// The number, and what it is moved by.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    limit: f64,
    most: f64,
    /// Seconds of a write at rest.
    rest: Option<f64>,
    /// Writes at rest so far, up to [`FIRST`].
    seen: u32,
    /// Batches in a row at the least number, up to [`STUCK`].
    stuck: u32,
    /// Seconds of the batch so far.
    sum: f64,
    /// The company of its writes, added up.
    company: f64,
    count: u32,
}

impl Share {
    /// Begins with `limit`; never more than `most`.
    pub(crate) fn new(limit: usize, most: usize) -> Self {
        Self {
            limit: limit.clamp(1, most.max(1)) as f64,
            most: most.max(1) as f64,
            rest: None,
            seen: 0,
            stuck: 0,
            sum: 0.0,
            company: 0.0,
            count: 0,
        }
    }

    /// How many now.
    pub(crate) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// A write took so long. `company`: how many were under way when it began, itself included.
    pub(crate) fn took(&mut self, time: Duration, company: usize) {
        let time = time.as_secs_f64();
        if company <= COMPANY {
            self.rested(time);
        }
        self.sum += time;
        self.company += company as f64;
        self.count += 1;
        let Some(rest) = self.rest.filter(|_| self.count >= BATCH) else {
            return;
        };
        let (mean, company) = (self.sum / f64::from(self.count), self.company / f64::from(self.count));
        (self.sum, self.company, self.count) = (0.0, 0.0, 0);
        // A batch that was all at once would say it takes no time: a ratio of any size means no more than that there is room.
        let ratio = (STRETCH * rest / mean.max(f64::MIN_POSITIVE)).clamp(0.5, 1.0);
        let least = self.most.min(LEAST as f64);
        let wanted = self.limit * ratio + 1.0;
        self.limit = wanted.clamp(least, self.most);
        self.stuck = if wanted < least + 1.0 {
            (self.stuck + 1).min(STUCK)
        } else {
            0
        };
        if self.stuck == STUCK && mean > rest * company {
            self.rest = Some(mean);
            self.stuck = 0;
        }
    }

    fn rested(&mut self, time: f64) {
        let rest = self.rest.unwrap_or(time);
        if self.seen < FIRST {
            self.seen += 1;
            self.rest = Some(rest.min(time));
            return;
        }
        // One that waited for a leader says nothing of the log at rest.
        self.rest = Some(rest + (time.min(rest * OUTLIER) - rest) * LEARN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A log on which a write takes so many milliseconds, and so much longer for every other that is under way.
    #[derive(Clone, Copy, Debug)]
    struct Log {
        alone: f64,
        each: f64,
    }

    impl Log {
        fn time(self, under_way: usize) -> Duration {
            Duration::from_secs_f64((self.alone + self.each * under_way as f64) / 1000.0)
        }

        /// A loud space has all it may, and now and then another writes.
        fn goes_on(self, share: &mut Share, writes: usize) {
            for _ in 0..writes {
                let company = share.limit() + 1;
                share.took(self.time(company), company);
            }
        }

        fn rests(self, share: &mut Share) {
            for _ in 0..100 {
                share.took(self.time(1), 1);
            }
        }

        /// How many times longer it takes beside the loud space.
        fn stretch(self, share: &Share) -> f64 {
            self.time(share.limit() + 1).as_secs_f64() / self.time(1).as_secs_f64()
        }
    }

    #[test]
    fn it_stays_what_it_was_until_rest_is_known() {
        let mut share = Share::new(64, 1024);
        for _ in 0..1000 {
            share.took(Duration::from_secs(1), 500);
        }
        assert_eq!(share.limit(), 64);
        assert_eq!(Share::new(64, 10).limit(), 10);
        assert_eq!(Share::new(0, 0).limit(), 1);
    }

    #[test]
    fn a_far_log_takes_many_and_a_busy_one_few() {
        // 80 ms of way, and hardly any work; one that is next door and has to work for each.
        let (far, near) = (
            Log {
                alone: 80.0,
                each: 0.05,
            },
            Log { alone: 1.5, each: 0.15 },
        );
        for (log, wanted) in [(far, 700..=900), (near, 4..=8)] {
            let mut share = Share::new(64, 1024);
            log.rests(&mut share);
            log.goes_on(&mut share, 50_000);
            assert!(wanted.contains(&share.limit()), "{log:?}: {}", share.limit());
        }
    }

    #[test]
    fn when_rest_gets_slower_that_is_learned() {
        let (fast, slow) = (Log { alone: 1.0, each: 0.01 }, Log { alone: 30.0, each: 0.3 });
        let mut share = Share::new(64, 1024);
        fast.rests(&mut share);
        fast.goes_on(&mut share, 10_000);
        let before = share.limit();
        slow.goes_on(&mut share, 64);
        assert!(share.limit() < before / 2, "{} after {before}", share.limit());
        // Its least, plus the quiet one, has no company that counts only now and then: half of the writes here.
        for n in 0..2_000 {
            let company = share.limit().min(4 + n % 2);
            share.took(slow.time(share.limit()), company);
        }
        slow.goes_on(&mut share, 50_000);
        assert!(share.limit() > 30, "{}", share.limit());
    }

    #[test]
    fn two_loud_spaces_get_on_when_rest_gets_slower() {
        let (fast, slow) = (Log { alone: 1.0, each: 0.01 }, Log { alone: 30.0, each: 0.3 });
        let mut share = Share::new(64, 1024);
        fast.rests(&mut share);
        fast.goes_on(&mut share, 10_000);
        for _ in 0..50_000 {
            // Both have all they may: nobody is ever without company.
            let company = share.limit() * 2;
            share.took(slow.time(company), company);
        }
        assert!(share.limit() > 15, "{}", share.limit());
    }

    #[test]
    fn many_loud_spaces_are_not_the_measure() {
        let (log, mut share) = (Log { alone: 1.5, each: 0.15 }, Share::new(64, 1024));
        log.rests(&mut share);
        for _ in 0..50_000 {
            let company = share.limit() * 20;
            share.took(log.time(company), company);
        }
        assert_eq!(share.limit(), LEAST);
    }

    #[test]
    fn a_first_write_that_waited_for_a_leader_is_not_the_measure() {
        let (log, mut share) = (Log { alone: 1.5, each: 0.15 }, Share::new(64, 1024));
        share.took(Duration::from_secs(5), 1);
        log.rests(&mut share);
        log.goes_on(&mut share, 10_000);
        assert!(share.limit() <= 8, "{}", share.limit());
    }

    proptest! {
        /// However slow a log is for one and for each, the stretch comes out as it should where the bounds allow it.
        #[test]
        fn it_finds_the_number(alone in 0.2..100.0_f64, each in 0.01..2.0_f64, begin in 1..1024_usize) {
            let (log, mut share) = (Log { alone, each }, Share::new(begin, 1024));
            log.rests(&mut share);
            log.goes_on(&mut share, 100_000);
            let stretch = log.stretch(&share);
            let limit = share.limit();
            prop_assert!(stretch < 2.1 || limit <= LEAST + 2, "{stretch} with {limit}");
            prop_assert!(stretch > 1.3 || limit == 1024, "{stretch} with {limit}");
        }

        #[test]
        fn it_keeps_its_bounds(times in prop::collection::vec((0..10_000_000_u64, 1..2000_usize), 0..400), most in 1..100_usize) {
            let mut share = Share::new(64, most);
            for (micros, company) in times {
                share.took(Duration::from_micros(micros), company);
                prop_assert!((1..=most).contains(&share.limit()));
            }
        }
    }
}
