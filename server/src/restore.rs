//! A data directory from a backup, while no server runs on it (docs/design/0011-backup.md).
//!
//! The store is built beside its place and moved there when its hash was found equal to the backup's: a restore that fails or
//! is cut short leaves a directory without data.

use crate::config::ServerConfig;
use crate::error::ServerError;
use crate::files::{self, LOCK_FILE};
use crate::node::founders;
use hanse_consensus::restore::begin;
use hanse_runtime::seal::Sealer;
use hanse_state::backup::{self, BackupError, Passphrase, Summary};
use hanse_state::engine::{RocksEngine, RocksOptions, SharedEngine};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

/// Folder in the data directory in which a store is built.
const BUILDING: &str = "restoring";

/// What was restored.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    /// What the backup holds.
    pub summary: Summary,
    /// Names of the servers that the restored system has; the same must be done on each.
    pub servers: Vec<String>,
}

/// Opens a backup for reading.
pub fn open<'a>(path: &Path, passphrase: Option<&Passphrase>) -> Result<Box<dyn Read + 'a>, ServerError> {
    let fault = |source| ServerError::Backup {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(|error| fault(BackupError::Io(error)))?;
    backup::open(BufReader::new(file), passphrase).map_err(fault)
}

/// Whether the backup at `path` is whole, and what it holds.
pub fn verify(path: &Path, passphrase: Option<&Passphrase>) -> Result<Summary, ServerError> {
    backup::verify(open(path, passphrase)?).map_err(|source| ServerError::Backup {
        path: path.to_owned(),
        source,
    })
}

/// Fills the empty data directory of the server with the configuration at `config` from the backup at `path`.
pub fn restore(config: &Path, path: &Path, passphrase: Option<&Passphrase>) -> Result<Restored, ServerError> {
    let config: ServerConfig = hanse_runtime::config::load(config)?;
    let summary = verify(path, passphrase)?;
    check_seal_key(&config, &summary)?;
    refuse_data(&config.data_dir)?;
    let _lock = files::lock_data_dir(&config.data_dir)?;
    files::check_free_space(&config.data_dir)?;
    let building = config.data_dir.join(BUILDING);
    clear(&building)?;
    let built = build(&config, &building, open(path, passphrase)?, path);
    let placed = built.and_then(|restored| {
        place(&building, &config.data_dir)?;
        Ok(restored)
    });
    if placed.is_err() {
        // The first fault is the one to tell.
        clear(&building).ok();
    }
    placed
}

/// Secrets in the registry can only be opened with the key that sealed them.
fn check_seal_key(config: &ServerConfig, summary: &Summary) -> Result<(), ServerError> {
    let path = &config.tls.seal_key;
    files::check_secret("the seal key", path)?;
    let sealer = Sealer::from_key_file(path).map_err(|error| ServerError::part("sealing", error))?;
    let wanted = &summary.head.seal_key_id;
    if wanted.is_empty() || wanted.as_ref() == sealer.id() {
        return Ok(());
    }
    let text = format!(
        "the secrets in the backup were sealed with another key than {}: put the seal key of the lost system there",
        path.display()
    );
    Err(ServerError::Restore(text))
}

fn refuse_data(data_dir: &Path) -> Result<(), ServerError> {
    let entries = match std::fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(dir_fault(data_dir, format!("cannot be read: {error}"))),
    };
    for entry in entries {
        let name = entry
            .map_err(|error| dir_fault(data_dir, format!("cannot be read: {error}")))?
            .file_name();
        if name != LOCK_FILE && name != BUILDING {
            let fault = format!(
                "holds data ({}): a backup is restored into an empty directory only; move it away first",
                name.display()
            );
            return Err(dir_fault(data_dir, fault));
        }
    }
    Ok(())
}

fn dir_fault(path: &Path, fault: String) -> ServerError {
    ServerError::File {
        what: "the data directory",
        path: path.to_owned(),
        fault,
    }
}

fn clear(dir: &Path) -> Result<(), ServerError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(dir_fault(dir, format!("cannot be removed: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn build(config: &ServerConfig, dir: &Path, input: Box<dyn Read>, path: &Path) -> Result<Restored, ServerError> {
    let fault = |error| ServerError::part("the store", error);
    std::fs::create_dir(dir).map_err(|error| dir_fault(dir, format!("cannot be created: {error}")))?;
    let engine = RocksEngine::open(&files::store_dir(dir), &RocksOptions::default()).map_err(fault)?;
    let engine: SharedEngine = Arc::new(engine);
    let filled = backup::fill(&engine, input).map_err(|source| ServerError::Backup {
        path: path.to_owned(),
        source,
    })?;
    let members = founders(config);
    for (group, marker) in filled.markers {
        let batch = begin(group, marker, &members).map_err(|error| ServerError::part("consensus", error))?;
        engine.write(batch, true).map_err(fault)?;
    }
    Ok(Restored {
        summary: filled.summary,
        servers: config.members.iter().map(|m| m.name.clone()).collect(),
    })
}

/// Moves the finished store to its place.
fn place(building: &Path, data_dir: &Path) -> Result<(), ServerError> {
    let moved = || -> io::Result<()> {
        std::fs::rename(files::store_dir(building), files::store_dir(data_dir))?;
        std::fs::remove_dir(building)?;
        File::open(data_dir)?.sync_all()
    };
    moved().map_err(|error| dir_fault(data_dir, format!("cannot take the restored store: {error}")))
}
