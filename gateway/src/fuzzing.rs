//! How long the fuzzers of this crate try.

use proptest::test_runner::Config;

/// `usual` cases, or as many as `HANSE_FUZZ_CASES` says.
pub(crate) fn cases(usual: u32) -> Config {
    let wanted = std::env::var("HANSE_FUZZ_CASES").ok();
    Config::with_cases(wanted.map_or(usual, |n| n.parse().unwrap()))
}
