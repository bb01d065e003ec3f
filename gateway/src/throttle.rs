//! Logins that fail, by address and by account, and how soon more of them are looked at. Pure: time is an argument.
//!
//! Who shows what holds is let in, whatever others at his address or with his key's id have tried: ids are no secrets, and a
//! throttle that shuts out the owner would be a weapon. Access keys and tokens cannot be guessed, so what is throttled is the
//! work that failures make, and the room that they take in the audit trail. Steps of a login, which make work before anything is
//! known, are counted whether they succeed or not.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Addresses, and accounts, that are remembered. Of more, those that have failed least are forgotten.
const MAX_REMEMBERED: usize = 10_000;

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In a minute, on and on.
    pub per_minute: u32,
    /// At once, after a pause.
    pub burst: u32,
}

impl Rate {
    fn interval(self) -> Duration {
        Duration::from_secs(60) / self.per_minute.max(1)
    }
}

/// Bounds of logins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginLimits {
    /// Failures from one address.
    pub by_address: Rate,
    /// Failures with one account.
    pub by_account: Rate,
    /// Steps of logins from one address.
    pub steps: Rate,
}

impl Default for LoginLimits {
    fn default() -> Self {
        Self {
            by_address: Rate {
                per_minute: 30,
                burst: 30,
            },
            by_account: Rate {
                per_minute: 10,
                burst: 10,
            },
            steps: Rate {
                per_minute: 300,
                burst: 300,
            },
        }
    }
}

/// What is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMany {
    /// `address`, `account` or `steps`.
    pub(crate) of: &'static str,
    /// When to come again.
    pub(crate) wait: Duration,
}

/// What has failed lately.
#[derive(Debug)]
pub(crate) struct Throttle {
    limits: LoginLimits,
    addresses: Buckets<IpAddr>,
    accounts: Buckets<String>,
    steps: Buckets<IpAddr>,
}

impl Throttle {
    pub(crate) fn new(limits: LoginLimits) -> Self {
        Self {
            limits,
            addresses: Buckets::default(),
            accounts: Buckets::default(),
            steps: Buckets::default(),
        }
    }

    /// Notes a failure. Says whether it is one too many, for its address or for the account that was named; if it is not, how
    /// many it stands for: itself, and those of its address that were too many since the last one that was not.
    pub(crate) fn failed(&mut self, address: IpAddr, account: Option<&str>, now: Duration) -> Result<u64, TooMany> {
        let by_address = self.addresses.take(network(address), self.limits.by_address, now);
        let by_account = match account {
            Some(account) => self.accounts.take(account.to_owned(), self.limits.by_account, now),
            None => Ok(()),
        };
        let too_many = |of| move |wait| TooMany { of, wait };
        let counted = by_address
            .map_err(too_many("address"))
            .and(by_account.map_err(too_many("account")));
        let untold = self.addresses.0.entry(network(address)).or_default();
        untold.untold = untold.untold.saturating_add(1);
        counted.map(|()| std::mem::take(&mut untold.untold))
    }

    /// Notes a step of a login that is about to be taken. Says whether it is one too many.
    pub(crate) fn step(&mut self, address: IpAddr, now: Duration) -> Result<(), TooMany> {
        let taken = self.steps.take(network(address), self.limits.steps, now);
        taken.map_err(|wait| TooMany { of: "steps", wait })
    }
}

/// Whoever has one address of version 6 has a network of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(four) => four.into(),
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// What is remembered of one.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// When all that it has used up is paid back.
    paid: Duration,
    /// Failures that are in no event yet.
    untold: u64,
}

#[derive(Debug)]
struct Buckets<K>(BTreeMap<K, Bucket>);

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Buckets<K> {
    /// Uses up one; says how long to wait when there is none.
    fn take(&mut self, key: K, rate: Rate, now: Duration) -> Result<(), Duration> {
        let interval = rate.interval();
        let paid = self.0.get(&key).map_or(now, |bucket| bucket.paid.max(now));
        let most = now + interval * rate.burst.max(1);
        let then = paid + interval;
        if then > most {
            return Err(then - most);
        }
        if self.0.len() >= MAX_REMEMBERED && !self.0.contains_key(&key) {
            self.forget(now);
        }
        self.0.entry(key).or_default().paid = then;
        Ok(())
    }

    /// Forgets what is paid back, and of the others the half that has used up least.
    fn forget(&mut self, now: Duration) {
        self.0.retain(|_, bucket| bucket.paid > now);
        if self.0.len() >= MAX_REMEMBERED {
            let mut paid: Vec<Duration> = self.0.values().map(|bucket| bucket.paid).collect();
            let middle = paid.len() / 2;
            let (_, middle, _) = paid.select_nth_unstable(middle);
            let middle = *middle;
            let mut room = MAX_REMEMBERED / 2;
            // Many may have used up the same: those of them that have no room go as well.
            self.0.retain(|_, Bucket { paid, .. }| {
                let stays = *paid > middle || *paid == middle && room > 0;
                room = room.saturating_sub(usize::from(stays));
                stays
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn throttle() -> Throttle {
        let rate = |per_minute, burst| Rate { per_minute, burst };
        Throttle::new(LoginLimits {
            by_address: rate(30, 5),
            by_account: rate(6, 3),
            steps: rate(60, 2),
        })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn too_many(of: &'static str, seconds: u32) -> Result<u64, TooMany> {
        let wait = SECOND * seconds;
        Err(TooMany { of, wait })
    }

    #[test]
    fn an_address_may_fail_a_few_times_and_then_slowly() {
        let (mut throttle, here) = (throttle(), address("192.0.2.1"));
        for _ in 0..5 {
            assert_eq!(throttle.failed(here, None, SECOND), Ok(1));
        }
        assert_eq!(throttle.failed(here, None, SECOND), too_many("address", 2));
        assert_eq!(
            throttle.failed(here, None, SECOND),
            too_many("address", 2),
            "more does not make it longer"
        );
        assert_eq!(
            throttle.failed(address("192.0.2.2"), None, SECOND),
            Ok(1),
            "others are not concerned"
        );
        assert_eq!(
            throttle.failed(here, None, SECOND * 3),
            Ok(3),
            "with those nobody was told of"
        );
        assert_eq!(throttle.failed(here, None, SECOND * 3), too_many("address", 2));
        let again: Vec<_> = (0..5).map(|_| throttle.failed(here, None, SECOND * 100)).collect();
        assert_eq!(again, [Ok(2), Ok(1), Ok(1), Ok(1), Ok(1)], "all is paid back, and told");
    }

    #[test]
    fn an_account_is_counted_wherever_it_is_tried_from() {
        let mut throttle = throttle();
        for n in 0..3 {
            assert_eq!(
                throttle.failed(address(&format!("192.0.2.{n}")), Some("admin"), SECOND),
                Ok(1)
            );
        }
        let elsewhere = address("192.0.2.9");
        assert_eq!(
            throttle.failed(elsewhere, Some("admin"), SECOND),
            too_many("account", 10)
        );
        assert_eq!(
            throttle.failed(elsewhere, Some("bob"), SECOND),
            Ok(2),
            "with the one before, which is in no event"
        );
    }

    #[test]
    fn steps_have_a_count_of_their_own() {
        let (mut throttle, here) = (throttle(), address("192.0.2.1"));
        assert_eq!(throttle.step(here, SECOND), Ok(()));
        assert_eq!(throttle.step(here, SECOND), Ok(()));
        assert_eq!(throttle.step(here, SECOND).map(|()| 0), too_many("steps", 1));
        assert_eq!(throttle.failed(here, None, SECOND), Ok(1));
    }

    #[test]
    fn a_network_of_version_6_is_one_address_and_version_4_in_it_is_version_4() {
        assert_eq!(network(address("2001:db8::1")), network(address("2001:db8::ffff:1")));
        assert_ne!(network(address("2001:db8::1")), network(address("2001:db8:0:1::1")));
        assert_eq!(network(address("::ffff:192.0.2.1")), address("192.0.2.1"));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_who_failed_most_is_not_forgotten() {
        let (mut throttle, here) = (throttle(), address("192.0.2.1"));
        for _ in 0..5 {
            assert_eq!(throttle.failed(here, None, SECOND), Ok(1));
        }
        for n in 0..3 * u32::try_from(MAX_REMEMBERED).unwrap() {
            let other = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
            assert_eq!(throttle.failed(other, Some(&format!("key-{n}")), SECOND), Ok(1));
            assert!(throttle.addresses.0.len() <= MAX_REMEMBERED);
        }
        assert!(throttle.accounts.0.len() <= MAX_REMEMBERED);
        assert_eq!(throttle.failed(here, None, SECOND), too_many("address", 2));
    }
}
