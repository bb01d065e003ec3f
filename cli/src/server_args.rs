//! The command line of `server`: the process itself, and the verbs about servers.

use crate::access_args::parse_life;
use crate::args::{OutputArgs, TimeoutArgs};
use clap::{Args, Subcommand};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `server`, which is a process with `--config`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct ServerArgs {
    #[command(subcommand)]
    pub(crate) command: Option<ServerCommand>,
    /// Configuration file
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) config: Option<PathBuf>,
    /// Detach, and say in this file who the process is
    #[arg(long, value_name = "FILE", hide = true)]
    pub(crate) pid_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// List the servers and how they are
    #[command(visible_alias = "ls")]
    List(OutputArgs),
    /// Make tokens by which new servers join
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// On a new machine: get a place among the servers, and write this server's key, certificate and configuration
    Join(JoinArgs),
    /// Let the servers reach one of them at another address; its configuration has to say the same
    Move {
        /// Name or id of the server
        #[arg(value_name = "NAME|ID")]
        which: String,
        /// Where the others reach its Raft port from now on
        #[arg(long, value_name = "HOST:PORT")]
        raft: String,
    },
    /// Take a server out for good; refused when too few would be left
    Remove(RemoveArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token by which one server joins; it is printed once and never shown again
    Create {
        /// Region of the new server, which may be a new one
        #[arg(long, value_name = "NAME")]
        region: String,
        /// How long it holds, such as 30m or 2h [default: 1h]
        #[arg(long, value_name = "TIME", value_parser = parse_life)]
        ttl: Option<Duration>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Options of `server join`.
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// Where a running server takes agents and servers in: HOST or HOST:PORT of its tunnel endpoint (UDP, 8445)
    pub(crate) at: String,
    /// Name of the new server, unique among all
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// File with the token, closed to others (mode 0600); - is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: PathBuf,
    /// Host name or address by which clients, servers and agents reach the new server
    #[arg(long, value_name = "HOST")]
    pub(crate) address: String,
    /// Address to listen on [default: that of --address, or every one of this machine if that is a name]
    #[arg(long, value_name = "IP")]
    pub(crate) listen: Option<IpAddr>,
    /// TCP port for clients
    #[arg(long, value_name = "PORT", default_value_t = 8443)]
    pub(crate) gateway_port: u16,
    /// TCP port for servers
    #[arg(long, value_name = "PORT", default_value_t = 8444)]
    pub(crate) raft_port: u16,
    /// UDP port for agents
    #[arg(long, value_name = "PORT", default_value_t = 8445)]
    pub(crate) tunnel_port: u16,
    /// Folder for configuration, key, certificate and data of the new server
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The system's CA key, which you have brought from a running server (tls.ca_key there)
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_key: PathBuf,
    /// The system's seal key, which you have brought from a running server (tls.seal_key there)
    #[arg(long, value_name = "FILE")]
    pub(crate) seal_key: PathBuf,
    /// Go on as the server, in the foreground
    #[arg(long)]
    pub(crate) start: bool,
}

/// Options of `server remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Name or id of the server
    #[arg(value_name = "NAME|ID")]
    pub(crate) which: String,
    /// Go on trying until it has left
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) timeout: TimeoutArgs,
}
