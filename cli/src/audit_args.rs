//! The command line of `audit`.

use crate::access_args::parse_life;
use crate::args::OutputArgs;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Which events.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct EventsArgs {
    /// Only those of so long ago at most, such as 30m, 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = parse_life)]
    pub(crate) since: Option<Duration>,
    /// Only of this user, also where somebody else ran as him
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Only with this verb, such as create or delete
    #[arg(long, value_name = "VERB")]
    pub(crate) verb: Option<String>,
    /// Only about this kind, such as projects or pods/exec
    #[arg(long, value_name = "PLURAL")]
    pub(crate) resource: Option<String>,
    /// Only denials
    #[arg(long)]
    pub(crate) denied: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// List who did what, the newest last
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        events: EventsArgs,
        /// Only so many of the newest
        #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print events as they happen, until it is interrupted
    Follow {
        #[command(flatten)]
        events: EventsArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Check that no event was changed or taken out; a trail that does not hold ends with exit code 1
    Verify {
        /// Check what `audit export` wrote instead
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// What an earlier `verify` said: the trail must go on from there, so that not even a whole new one goes unnoticed
        #[arg(long, value_name = "NUMBER:HASH", value_parser = parse_place)]
        known: Option<(u64, String)>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Write all events as JSON lines in the shape of audit.k8s.io/v1, with their hashes
    Export {
        /// File, which must not exist [default: standard output]
        file: Option<PathBuf>,
    },
}

fn parse_place(text: &str) -> Result<(u64, String), String> {
    let parts = text.split_once(':').and_then(|(number, hash)| {
        let hex = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        Some((number.parse().ok()?, hash.to_ascii_lowercase())).filter(|_| hex)
    });
    parts.ok_or_else(|| "must be what `hanse audit verify` printed, such as 1234:9f86...".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let hash = "ab".repeat(32);
        assert_eq!(parse_place(&format!("17:{hash}")), Ok((17, hash.clone())));
        for bad in [
            String::new(),
            "17".into(),
            "17:ab".into(),
            format!("x:{hash}"),
            format!("1:{}", "zz".repeat(32)),
        ] {
            assert!(parse_place(&bad).is_err(), "{bad}");
        }
    }
}
