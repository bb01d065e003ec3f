//! `restore`: a data directory from a backup, or one tenant's key space back into the running system
//! (docs/design/0011-backup.md).
//!
//! A file for the running system is read to its end here before anything is sent, decrypted here, and only the tenant's part
//! of it is sent.

use super::backup::{Tenants, is_sealed, mib, passphrase, show, unfit};
use super::{print_document, tenant};
use crate::app::App;
use crate::backup_args::RestoreArgs;
use crate::client::http::{Call, Upload};
use crate::client::management::refusal;
use crate::error::{Error, Kind, Result};
use crate::output::progress::Step;
use crate::output::table::Table;
use ::http::Method;
use bytes::Bytes;
use hanse_api::name::check_label;
use hanse_runtime::supervisor::chain;
use hanse_server::backup_file::{self, BackupError, KeySpace, Passphrase, Summary};
use hanse_server::restore as offline;
use serde_json::Value;
use std::io;
use std::path::PathBuf;
use tokio::sync::mpsc;

/// Pieces of the file read ahead of the connection.
const AHEAD: usize = 4;
/// Largest line that the server sends.
const MAX_LINE: usize = 64 * 1024;
/// Key spaces that an error shows.
const SHOWN: usize = 8;

/// `restore FILE`.
pub(crate) async fn restore(app: &App, args: &RestoreArgs) -> Result<()> {
    let passphrase = match &args.passphrase.passphrase_file {
        Some(_) => Some(passphrase(&args.passphrase, false)?),
        None if is_sealed(&args.file)? => Some(passphrase(&args.passphrase, false)?),
        None => None,
    };
    if let Some(tenant) = &args.tenant {
        return put_back(app, args, tenant, passphrase).await;
    }
    let Some(config) = &args.config else {
        let summary = offline::verify(&args.file, passphrase.as_ref()).map_err(unfit)?;
        return show(&app.output, args.output.output, &args.file, &summary, &Tenants::new());
    };
    let step = Step::start(app.output, &app.clock, "restore");
    let restored = offline::restore(config, &args.file, passphrase.as_ref()).map_err(unfit)?;
    step.done(&format!("hash {:016x}, as in the backup", restored.summary.hash()));
    if restored.servers.len() > 1 {
        app.output.note(&format!(
            "do the same with the same file on each of {}, then start them",
            restored.servers.join(", ")
        ));
    }
    show(
        &app.output,
        args.output.output,
        &args.file,
        &restored.summary,
        &Tenants::new(),
    )
}

/// Puts the tenant's key space back.
async fn put_back(app: &App, args: &RestoreArgs, name: &str, phrase: Option<Passphrase>) -> Result<()> {
    let project = &args.project.project;
    for name in [project.as_str(), name] {
        check_label(name).map_err(|why| Error::usage(format!("{name:?} is no name: {why}")))?;
    }
    let step = Step::start(app.output, &app.clock, "check");
    let summary = offline::verify(&args.file, phrase.as_ref()).map_err(unfit)?;
    step.done("whole");
    let management = app.management()?;
    tenant::require(&management, project, name).await?;
    let path = format!("/restore?project={project}&name={name}");
    let found: Value = management.fetch(&path).await?;
    let id = tenant::text(&found, "/tenant").to_owned();
    holds(args, &summary, (project, name), &id)?;
    let restored = send(app, args, path, id, phrase).await?;
    if print_document(&app.output, args.output.output, &restored)? {
        return Ok(());
    }
    let mut table = Table::new(&["TENANT", "KEYS", "LEASES", "BYTES", "HASH", "REVISION"]);
    let text = |field: &str| match &restored[field] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut row = vec![format!("{project}/{name}")];
    row.extend(["keys", "leases", "bytes", "hash", "revision"].map(text));
    table.row(row);
    app.output.print(&table.render(app.output.out))
}

/// Whether the file has the tenant's key space, before it is sent.
fn holds(args: &RestoreArgs, summary: &Summary, (project, name): (&str, &str), id: &str) -> Result<()> {
    let known = summary.spaces.iter().find(|space| space.space.tenant() == id);
    let file = args.file.display();
    match known {
        Some(space) if space.dropped => Err(Error::failed(chain(&BackupError::Gone(id.to_owned())))),
        Some(_) => Ok(()),
        None => {
            let message = format!("{file} does not hold the key space of tenant cluster {project}/{name} ({id})");
            let held: Vec<&str> = summary.spaces.iter().map(|space| space.space.tenant()).collect();
            let held: Vec<&str> = held.into_iter().filter(|id| !id.is_empty()).take(SHOWN).collect();
            let hint = match held.is_empty() {
                true => "it holds none of a tenant".to_owned(),
                false => format!(
                    "it holds {}; a cluster that was deleted and made anew has another key space than before",
                    held.join(", ")
                ),
            };
            Err(Error::not_found(message).hint(hint))
        }
    }
}

/// Sends the tenant's part of the file and answers what the server says at last.
async fn send(app: &App, args: &RestoreArgs, path: String, id: String, phrase: Option<Passphrase>) -> Result<Value> {
    let http = app.http(&app.login()?)?;
    let (sender, pieces) = mpsc::channel(AHEAD);
    let reader = Reading {
        file: args.file.clone(),
        phrase,
        sender,
    };
    // A thread of its own: reading, decrypting and waiting for the connection all hold it up.
    let reading = std::thread::Builder::new().name("restore".to_owned());
    let reading = reading
        .spawn(move || reader.run(id))
        .map_err(|error| Error::failed(format!("cannot start a thread: {error}")))?;
    let call = Call {
        method: Method::POST,
        path,
        body: None,
    };
    let mut lines = Lines {
        step: Step::start(app.output, &app.clock, "restore"),
        rest: Vec::new(),
        last: None,
    };
    let mut take = |piece: &[u8]| lines.take(piece);
    let sent = http.upload(&call, Upload::new(pieces), &mut take).await;
    // What is wrong with the file explains why the connection broke.
    if let Ok(Err(error)) = reading.join()
        && !matches!(error, BackupError::Io(_))
    {
        return Err(Error::failed(format!("{}: {}", args.file.display(), chain(&error))));
    }
    if let Some(reply) = sent.map_err(unsure)? {
        return Err(refusal(&http.base().to_string(), &reply));
    }
    lines.end()
}

/// After a connection broke nobody knows how far the server came.
fn unsure(error: Error) -> Error {
    error.hint("if the tenant does not answer, its key space is closed: give the same command again")
}

/// Reads the tenant's part of a file for the connection.
struct Reading {
    file: PathBuf,
    phrase: Option<Passphrase>,
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Reading {
    fn run(self, id: String) -> std::result::Result<(), BackupError> {
        let read = self.read(id);
        if let Err(error) = &read {
            let fault = io::Error::other(chain(error));
            // Whoever is gone needs no error.
            self.sender.blocking_send(Err(fault)).ok();
        }
        read
    }

    fn read(&self, id: String) -> std::result::Result<(), BackupError> {
        let file = std::fs::File::open(&self.file).map_err(BackupError::Io)?;
        let input = backup_file::open(io::BufReader::new(file), self.phrase.as_ref())?;
        backup_file::extract(input, &KeySpace::Tenant(id), &mut |piece| {
            let gone = |_| BackupError::Io(io::Error::other("the connection is gone"));
            self.sender.blocking_send(Ok(piece)).map_err(gone)
        })
    }
}

/// The lines that the server sends.
struct Lines {
    step: Step,
    rest: Vec<u8>,
    last: Option<Value>,
}

impl Lines {
    fn take(&mut self, piece: &[u8]) -> Result<()> {
        self.rest.extend_from_slice(piece);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let value: Value = serde_json::from_slice(&line)
                .map_err(|error| Error::failed(format!("the server's answer cannot be read: {error}")))?;
            match value["bytes"].as_u64() {
                Some(bytes) => self.step.say(&mib(bytes)),
                None => self.last = Some(value),
            }
        }
        match self.rest.len() > MAX_LINE {
            true => Err(Error::failed(
                "the server's answer cannot be read: a line without an end",
            )),
            false => Ok(()),
        }
    }

    fn end(self) -> Result<Value> {
        let Some(mut last) = self.last else {
            let message = "the server broke off before it said what became of the restore";
            return Err(unsure(Error::new(Kind::Unreachable, message)));
        };
        if let Some(why) = last["failed"].as_str() {
            let message = format!("the key space could not be restored: {why}");
            return Err(unsure(Error::failed(message)));
        }
        let restored = last["restored"].take();
        self.step.done(&format!("hash {}", tenant::text(&restored, "/hash")));
        Ok(restored)
    }
}
