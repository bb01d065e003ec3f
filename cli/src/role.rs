//! The processes that this program can be, and the check of their configurations.

use crate::args::{ConfigCommand, ProcessArgs};
use crate::error::{Error, Result};
use crate::files;
use crate::front_door::{self, config::FrontDoorConfig};
use crate::local::service::enter;
use crate::output::Output;
use crate::server_config::ServerConfig;
use hanse_agent::config::AgentConfig;
use hanse_runtime::clock::SystemClock;
use hanse_runtime::config::{Validate, load};
use hanse_runtime::telemetry::{self, Format};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use tokio::runtime::Builder;

/// Runs `hanse front-door`.
pub(crate) fn front_door(args: &ProcessArgs) -> Result<()> {
    let _entered = args.pid_file.as_deref().map(enter).transpose()?;
    telemetry::init(Format::Json);
    runtime()?.block_on(front_door::run(&args.config, SystemClock::shared()))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::failed(format!("cannot start threads: {e}")))
}

/// `config check` and `config dump`.
pub(crate) fn config(command: &ConfigCommand, output: &Output) -> Result<()> {
    let (file, dump) = match command {
        ConfigCommand::Check { file } => (file, false),
        ConfigCommand::Dump { file } => (file, true),
    };
    let text = files::read_required(file)?;
    let (kind, dumped) = match kind(&text) {
        Kind::Server => ("server", taken::<ServerConfig>(file)?),
        Kind::Agent => ("agent", taken::<AgentConfig>(file)?),
        Kind::FrontDoor => ("front door", taken::<FrontDoorConfig>(file)?),
    };
    if dump {
        output.print(&dumped)
    } else {
        output.line(&format!("{}: a good configuration of a {kind}", file.display()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Server,
    Agent,
    FrontDoor,
}

/// What a text configures, by keys that only one of them has; a text that is none is judged as a server's.
fn kind(text: &str) -> Kind {
    let has = |key: &str| {
        text.lines().map(str::trim).any(|line| match key.strip_prefix('[') {
            Some(_) => line.starts_with(key),
            None => line
                .strip_prefix(key)
                .is_some_and(|rest| rest.trim_start().starts_with('=')),
        })
    };
    if has("[[backend]]") || has("listen") && !has("[gateway]") && !has("[raft]") {
        Kind::FrontDoor
    } else if has("cluster") || has("[[server]]") {
        Kind::Agent
    } else {
        Kind::Server
    }
}

fn taken<T: DeserializeOwned + Serialize + Validate>(file: &Path) -> Result<String> {
    let config: T = load(file).map_err(|e| Error::usage(e.to_string()))?;
    toml::to_string(&config).map_err(|e| Error::failed(format!("cannot write the configuration: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_told_apart_by_their_keys() {
        for (text, expected) in [
            ("name = \"a\"\n[gateway]\nlisten = \"x\"\n", Kind::Server),
            ("", Kind::Server),
            ("cluster = \"eu\"\ndata_dir = \"x\"\n", Kind::Agent),
            ("data_dir = \"x\"\n[[server]]\nname = \"a\"\n", Kind::Agent),
            ("listen = \"x\"\n", Kind::FrontDoor),
            ("[[backend]]\n", Kind::FrontDoor),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }
}
