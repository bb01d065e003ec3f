//! The command line.

use crate::access_args::{AuthCommand, KeyCommand, MembersCommand, TeamCommand, UserCommand};
use crate::audit_args::AuditCommand;
use crate::backup_args::{BackupArgs, RestoreArgs};
use crate::error::EXIT_CODES;
use crate::output::Format;
use crate::server_args::ServerArgs;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;
use std::time::Duration;

/// A control plane for fleets of tenant Kubernetes clusters, spread over regions
#[derive(Debug, Parser)]
#[command(name = "hanse", version, disable_help_subcommand = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Folder of the installation on this machine [default: ~/.local/share/hanse]
    #[arg(long, global = true, env = "HANSE_HOME", value_name = "DIR", hide_env_values = true)]
    pub(crate) home: Option<PathBuf>,
    /// Installation to talk to, one that you are logged in at [default: that of the last login]
    #[arg(
        long,
        global = true,
        env = "HANSE_SERVER",
        value_name = "URL",
        hide_env_values = true
    )]
    pub(crate) server: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How results are shown.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputArgs {
    /// How the result is shown
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Format,
}

/// Which project.
#[derive(Clone, Debug, Args)]
pub(crate) struct ProjectArgs {
    /// Project of the tenant cluster
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    pub(crate) project: String,
}

/// Which kubeconfig.
#[derive(Clone, Debug, Args)]
pub(crate) struct KubeconfigArgs {
    /// Kubeconfig file [default: $KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// How long to wait.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct TimeoutArgs {
    /// How long to wait, such as 90s or 5m
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
}

/// Configuration of a process.
#[derive(Clone, Debug, Args)]
pub(crate) struct ProcessArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Detach, and say in this file who the process is
    #[arg(long, value_name = "FILE", hide = true)]
    pub(crate) pid_file: Option<PathBuf>,
}

/// Options of `up`.
#[derive(Clone, Debug, Args)]
pub(crate) struct UpArgs {
    /// Names of the regions of a new installation, separated by commas [default: eu,us,ap]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) regions: Option<Vec<String>>,
    /// Addresses of a new installation: 127.<B>.0.1 and up [default: 0]
    #[arg(long, value_name = "B")]
    pub(crate) address_block: Option<u8>,
    /// Make no first tenant cluster
    #[arg(long)]
    pub(crate) no_tenant: bool,
}

/// Options of `login`.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoginArgs {
    /// Address, such as https://hanse.example.com
    pub(crate) url: String,
    /// File with the access key; - is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) access_key_file: Option<PathBuf>,
    /// File with the certificate of the installation's authority [default: the system's authorities]
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Do not check the server's certificate
    #[arg(long, conflicts_with = "ca_file")]
    pub(crate) insecure: bool,
    #[command(flatten)]
    pub(crate) way: WayArgs,
}

/// Where the person is who logs in by an identity provider.
#[derive(Clone, Copy, Debug, Args)]
#[group(multiple = false, conflicts_with = "access_key_file")]
pub(crate) struct WayArgs {
    /// Log in by an identity provider, in the browser of this machine
    #[arg(long)]
    pub(crate) browser: bool,
    /// The same in any browser, which shows a code to paste here
    #[arg(long)]
    pub(crate) headless: bool,
    /// The same in any browser, where you let this device in by the code that it shows
    #[arg(long)]
    pub(crate) device: bool,
}

/// Options of `create`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name of the tenant cluster
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) project: ProjectArgs,
    /// Region to place it in [default: any]
    #[arg(long, value_name = "NAME", conflicts_with = "cluster")]
    pub(crate) region: Option<String>,
    /// Connected cluster to place it on [default: any]
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// How many simulated nodes it gets [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(crate) simulated_nodes: Option<u32>,
    /// GPUs per simulated node [default: 0]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=64))]
    pub(crate) gpus: Option<u32>,
    #[command(flatten)]
    pub(crate) limits: StoreArgs,
    /// Return at once
    #[arg(long)]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) timeout: TimeoutArgs,
}

/// What a tenant cluster may hold in the store; the server says what makes sense.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct StoreArgs {
    /// Bytes that its objects may take in the store, from 16777216 [default: no limit]
    #[arg(long, value_name = "N")]
    pub(crate) store_bytes: Option<u64>,
    /// Objects that it may have in the store, from 1000 [default: no limit]
    #[arg(long, value_name = "N")]
    pub(crate) store_keys: Option<u64>,
    /// Writes to the store that a server takes from it in a second, from 20 [default: no limit]
    #[arg(long, value_name = "N")]
    pub(crate) store_writes_per_second: Option<u32>,
}

/// Options of `connect`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Name of the tenant cluster
    #[arg(required_unless_present = "management")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) project: ProjectArgs,
    /// A context for the management API instead
    #[arg(long, conflicts_with = "name")]
    pub(crate) management: bool,
    /// Do not make it the current context
    #[arg(long)]
    pub(crate) no_switch: bool,
    /// Print a kubeconfig instead of changing yours
    #[arg(long, conflicts_with_all = ["no_switch", "kubeconfig"])]
    pub(crate) print: bool,
    #[command(flatten)]
    pub(crate) kubeconfig: KubeconfigArgs,
    #[command(flatten)]
    pub(crate) timeout: TimeoutArgs,
}

/// Options of `delete`.
#[derive(Clone, Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Name of the tenant cluster
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) project: ProjectArgs,
    /// Wait until it is gone
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) timeout: TimeoutArgs,
    #[command(flatten)]
    pub(crate) kubeconfig: KubeconfigArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bring up an installation on this machine: three regions, each with a server and an agent, and a first tenant cluster
    Up(UpArgs),
    /// Stop the installation on this machine; `up` goes on with all data
    Down {
        /// Remove all its data as well
        #[arg(long)]
        delete: bool,
        #[command(flatten)]
        kubeconfig: KubeconfigArgs,
    },
    /// Kill -9 everything in a region of this machine's installation
    Kill {
        /// Region
        region: String,
    },
    /// Start a region of this machine's installation again
    Start {
        /// Region
        region: String,
    },
    /// Log in at an installation: by an identity provider, or with an access key from a file, the terminal or standard input
    Login(LoginArgs),
    /// Forget the login, and take its contexts out of the kubeconfig
    Logout {
        #[command(flatten)]
        kubeconfig: KubeconfigArgs,
    },
    /// Create a tenant cluster and wait until its API answers
    Create(CreateArgs),
    /// Add a context for a tenant cluster to the kubeconfig and switch to it
    Connect(ConnectArgs),
    /// Go back to the context that was current before connect
    Disconnect {
        #[command(flatten)]
        kubeconfig: KubeconfigArgs,
    },
    /// List tenant clusters
    #[command(visible_alias = "ls")]
    List {
        /// Only of this project
        #[arg(short, long, value_name = "NAME")]
        project: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show one tenant cluster with its conditions
    Get {
        /// Name of the tenant cluster
        name: String,
        #[command(flatten)]
        project: ProjectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete a tenant cluster with all its data
    Delete(DeleteArgs),
    /// Explain what you or somebody else may do
    Auth {
        #[command(subcommand)]
        command: AuthCommand,
    },
    /// Make, list and revoke access keys
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Make, list, lock and delete users
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Make, list and change teams
    Team {
        #[command(subcommand)]
        command: TeamCommand,
    },
    /// List and change the members of a project
    Members {
        #[command(subcommand)]
        command: MembersCommand,
    },
    /// Show, check and export the trail of who did what; for administrators
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Write everything that the system holds, or one tenant's key space, into a file, while it serves; for administrators
    Backup(BackupArgs),
    /// Fill the empty data directory of a server from a backup, or put one tenant's key space back while the system serves
    Restore(RestoreArgs),
    /// Show regions, servers, agents and tenants
    Status {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show the versions of this program and of the server
    Version {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print the completion script of a shell
    Completion {
        /// Shell
        shell: Shell,
    },
    /// Check the configuration of a server, agent or front door, or show it with all defaults
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Run a server; or list servers, and let them come and go
    Server(ServerArgs),
    /// Run the agent of a connected cluster
    Agent(ProcessArgs),
    /// Run the replicated store alone, in the place of etcd: with etcd's flags and ETCD_* variables
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Store {
        /// etcd's flags; --help lists those that are known
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
        flags: Vec<String>,
    },
    /// Pass connections on to the gateways of this machine
    #[command(hide = true)]
    FrontDoor(ProcessArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Report every fault of a file
    Check {
        /// File
        file: PathBuf,
    },
    /// Print a file with all defaults filled in
    Dump {
        /// File
        file: PathBuf,
    },
}

/// Longest time that can be asked for.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// `90`, `90s`, `5m` or `2h`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "must be a whole number with s, m or h, such as 90s or 5m".to_owned())?;
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        other => return Err(format!("the unit {other:?} is not s, m or h")),
    };
    let span = Duration::from_secs(number.saturating_mul(unit));
    if span > WAIT_MAX {
        Err("must be at most 24h".to_owned())
    } else {
        Ok(span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        for bad in ["", "m", "-1s", "1.5m", "5 m", "5d", "25h", "99999999999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
