//! The processes that this program can be, and the check of their configurations.

use crate::args::{ConfigCommand, ProcessArgs};
use crate::error::{Error, Result};
use crate::files;
use crate::front_door::{self, config::FrontDoorConfig};
use crate::local::service::enter;
use crate::output::Output;
use crate::verbs::version;
use hanse_agent::{Agent, AgentConfig, Deps};
use hanse_runtime::clock::SystemClock;
use hanse_runtime::config::{Validate, load};
use hanse_runtime::rng::SystemRng;
use hanse_runtime::supervisor::{Supervisor, chain};
use hanse_runtime::telemetry::{self, Format};
use hanse_server::ServerConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// For each phase of an agent's end.
const PHASE_LIMIT: Duration = Duration::from_secs(3);

/// Runs `hanse front-door`.
pub(crate) fn front_door(args: &ProcessArgs) -> Result<()> {
    let _entered = args.pid_file.as_deref().map(enter).transpose()?;
    telemetry::init(Format::Json);
    runtime()?.block_on(front_door::run(&args.config, SystemClock::shared()))
}

/// Runs `hanse server`.
pub(crate) fn server(args: &ProcessArgs) -> Result<()> {
    let _entered = args.pid_file.as_deref().map(enter).transpose()?;
    let outcome = runtime()?.block_on(hanse_server::run(&args.config));
    outcome.map_err(|e| Error::failed(chain(&e)))
}

/// Runs `hanse agent`.
pub(crate) fn agent(args: &ProcessArgs) -> Result<()> {
    let config: AgentConfig = load(&args.config).map_err(|e| Error::usage(e.to_string()))?;
    let _entered = args.pid_file.as_deref().map(enter).transpose()?;
    telemetry::init(config.log_format);
    runtime()?.block_on(async {
        let supervisor = Supervisor::default();
        let deps = Deps {
            clock: SystemClock::shared(),
            rng: SystemRng::shared(),
            supervisor: supervisor.clone(),
            version: version::OWN.to_owned(),
        };
        let outcome = tokio::select! {
            outcome = Agent::run(config, deps) => outcome.map_err(|e| Error::failed(chain(&e))),
            asked = asked_to_end() => asked,
        };
        if let Err(error) = &outcome {
            tracing::error!(%error, "the agent stops");
        }
        supervisor.shut_down(PHASE_LIMIT).await;
        outcome?;
        supervisor.failure().map_or(Ok(()), |why| Err(Error::failed(why)))
    })
}

/// Completes when the process is asked to end: SIGTERM or SIGINT.
pub(crate) async fn asked_to_end() -> Result<()> {
    let fault = |e: std::io::Error| Error::failed(format!("cannot wait for signals: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
    }
    Ok(())
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
