//! The command line of `auth`, `key`, `user`, `team` and `members`.

use crate::args::{OutputArgs, ProjectArgs};
use clap::{Args, Subcommand};
use std::time::Duration;

/// What a question is about.
#[derive(Clone, Debug, Args)]
pub(crate) struct QuestionArgs {
    /// Verb, such as get, create or use
    pub(crate) verb: String,
    /// Kind, or KIND/NAME, such as tenant/demo
    pub(crate) what: String,
    /// Project that it is in, for kinds that are in one
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    pub(crate) project: String,
    /// Part of the object, such as status
    #[arg(long, value_name = "NAME")]
    pub(crate) subresource: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuthCommand {
    /// Say yes or no; no ends with exit code 4
    CanI(QuestionArgs),
    /// Say which rule decides, for yourself or for somebody else
    Why {
        #[command(flatten)]
        question: QuestionArgs,
        /// Somebody else
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// List users and teams who may
    WhoCan(QuestionArgs),
}

/// Options of `key create`.
#[derive(Clone, Debug, Args)]
pub(crate) struct KeyCreateArgs {
    /// Name [default: one that the server makes]
    pub(crate) name: Option<String>,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    pub(crate) display_name: Option<String>,
    /// User that it speaks for [default: yourself]
    #[arg(long, value_name = "NAME", conflicts_with = "team")]
    pub(crate) user: Option<String>,
    /// Team that it speaks for
    #[arg(long, value_name = "NAME")]
    pub(crate) team: Option<String>,
    /// How long it holds, such as 12h or 30d [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = parse_life)]
    pub(crate) ttl: Option<Duration>,
    /// Narrow it to this project; may be given several times
    #[arg(long = "only-project", value_name = "NAME")]
    pub(crate) projects: Vec<String>,
    /// Narrow it to this tenant cluster; may be given several times
    #[arg(long = "only-tenant", value_name = "PROJECT/NAME", value_parser = parse_tenant)]
    pub(crate) tenants: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make an access key; it is printed once and never shown again
    Create(KeyCreateArgs),
    /// List your access keys and those of your teams
    #[command(visible_alias = "ls")]
    List {
        /// Those of everybody
        #[arg(short, long)]
        all: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// End an access key, and with it all that was opened with it
    Revoke {
        /// Name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// List users
    #[command(visible_alias = "ls")]
    List(OutputArgs),
    /// Make a user; `hanse key create --user NAME` lets him in
    Create {
        /// Name
        name: String,
        /// Name for people
        #[arg(long, value_name = "TEXT")]
        display_name: Option<String>,
        /// Address
        #[arg(long, value_name = "ADDRESS")]
        email: Option<String>,
        /// Management role; may be given several times
        #[arg(long = "role", value_name = "NAME")]
        roles: Vec<String>,
    },
    /// Refuse a user and all his keys, at once
    Lock {
        /// Name
        name: String,
    },
    /// Let a user in again
    Unlock {
        /// Name
        name: String,
    },
    /// Delete a user; his keys end
    Delete {
        /// Name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TeamCommand {
    /// List teams
    #[command(visible_alias = "ls")]
    List(OutputArgs),
    /// Make a team
    Create {
        /// Name
        name: String,
        /// Name for people
        #[arg(long, value_name = "TEXT")]
        display_name: Option<String>,
        /// Users who are in it, separated by commas
        #[arg(long, value_delimiter = ',', value_name = "NAMES")]
        users: Vec<String>,
    },
    /// Take a user in
    Add {
        /// Team
        team: String,
        /// User
        user: String,
    },
    /// Take a user out
    Remove {
        /// Team
        team: String,
        /// User
        user: String,
    },
    /// Delete a team; its keys end
    Delete {
        /// Name
        name: String,
    },
}

/// Who a member is.
#[derive(Clone, Debug, Args)]
pub(crate) struct MemberArgs {
    #[command(flatten)]
    pub(crate) project: ProjectArgs,
    /// User; * is everybody
    #[arg(long, value_name = "NAME", conflicts_with = "team", required_unless_present = "team")]
    pub(crate) user: Option<String>,
    /// Team
    #[arg(long, value_name = "NAME")]
    pub(crate) team: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MembersCommand {
    /// List the members of a project
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        project: ProjectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Give a role in a project, instead of the one that there was
    Add {
        #[command(flatten)]
        member: MemberArgs,
        /// admin, user, viewer, or a role that administrators defined
        #[arg(long, default_value = "user", value_name = "NAME")]
        role: String,
    },
    /// Take all roles in a project away
    Remove {
        #[command(flatten)]
        member: MemberArgs,
    },
}

/// Longest life of a key that can be asked for.
const LIFE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// `90s`, `5m`, `12h` or `30d`.
pub(crate) fn parse_life(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "must be a whole number with s, m, h or d, such as 12h or 30d".to_owned())?;
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        other => return Err(format!("the unit {other:?} is not s, m, h or d")),
    };
    let life = Duration::from_secs(number.saturating_mul(unit));
    if life.is_zero() || life > LIFE_MAX {
        return Err("must be from 1s to 3650d".to_owned());
    }
    Ok(life)
}

fn parse_tenant(text: &str) -> Result<(String, String), String> {
    text.split_once('/')
        .filter(|(project, name)| !project.is_empty() && !name.is_empty())
        .map(|(project, name)| (project.to_owned(), name.to_owned()))
        .ok_or_else(|| "must be PROJECT/NAME, such as default/demo".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_and_tenants() {
        assert_eq!(parse_life("30d"), Ok(Duration::from_secs(30 * 24 * 3600)));
        for bad in ["", "d", "30", "0s", "1w", "-1d", "9999999d"] {
            assert!(parse_life(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_tenant("a/b"), Ok(("a".into(), "b".into())));
        for bad in ["", "a", "/b", "a/"] {
            assert!(parse_tenant(bad).is_err(), "{bad}");
        }
    }
}
