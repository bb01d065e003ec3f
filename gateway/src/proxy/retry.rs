//! When a proxied request may be sent again, and what the caller is told when it may not.
//!
//! client-go repeats *any* verb when it sees `Retry-After` on a 429 or 5xx. So that header means here: the request
//! certainly did not reach the API server.

use std::time::Duration;

/// Attempts in all while the request certainly did not arrive.
const MAX_ATTEMPTS: u32 = 3;
/// Time within which attempts may begin.
const MAX_SPENT: Duration = Duration::from_secs(2);

/// How an attempt failed before there was an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The agent never took the request.
    NotSent,
    /// It may have been acted on.
    MaybeSent,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Send it again.
    Again,
    /// 503 with `Retry-After`: nothing happened.
    Unavailable,
    /// 504 without: nobody knows.
    Unknown,
}

/// Decides after a failed attempt. `safe`: the request changes nothing; `intact`: its body was not touched.
pub(crate) fn next(failure: Failure, safe: bool, intact: bool, attempts: u32, spent: Duration) -> Next {
    let within = attempts < MAX_ATTEMPTS && spent < MAX_SPENT;
    match failure {
        Failure::NotSent if within && intact => Next::Again,
        Failure::NotSent => Next::Unavailable,
        Failure::MaybeSent if safe && intact && attempts < 2 => Next::Again,
        Failure::MaybeSent => Next::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        let (soon, late) = (Duration::from_millis(10), Duration::from_secs(3));
        let table = [
            (Failure::NotSent, false, true, 1, soon, Next::Again),
            (Failure::NotSent, false, true, 3, soon, Next::Unavailable),
            (Failure::NotSent, false, true, 1, late, Next::Unavailable),
            (Failure::NotSent, true, false, 1, soon, Next::Unavailable),
            (Failure::MaybeSent, true, true, 1, soon, Next::Again),
            (Failure::MaybeSent, true, true, 2, soon, Next::Unknown),
            (Failure::MaybeSent, true, false, 1, soon, Next::Unknown),
            (Failure::MaybeSent, false, true, 1, soon, Next::Unknown),
        ];
        for (failure, safe, intact, attempts, spent, want) in table {
            assert_eq!(
                next(failure, safe, intact, attempts, spent),
                want,
                "{failure:?} {safe} {intact} {attempts}"
            );
        }
    }
}
