//! `backup`: everything that the store holds, into a file (docs/design/0011-backup.md).
//!
//! A passphrase stays on this machine: the file is encrypted here, not by the server.

use super::{print_document, tenant};
use crate::app::App;
use crate::backup_args::{BackupArgs, PassphraseArgs};
use crate::client::http::{Call, Pace};
use crate::client::management::refusal;
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::output::progress::Step;
use crate::output::table::Table;
use crate::output::{Format, Output, secret};
use hanse_api::kinds::VIRTUAL_CLUSTER_INSTANCES;
use hanse_api::name::{check_label, project_of_namespace};
use hanse_runtime::supervisor::chain;
use hanse_server::ServerError;
use hanse_server::backup_file::{BackupError, Passphrase, SealedWriter, SpaceSummary, Summary};
use hanse_server::restore;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Between two words about the progress, in bytes.
const STRIDE: u64 = 1 << 20;

/// `backup FILE`.
pub(crate) async fn backup(app: &App, args: &BackupArgs) -> Result<()> {
    if args.file.exists() {
        return Err(exists(&args.file));
    }
    has_folder(&args.file)?;
    let tenants = tenants(app, args).await?;
    let passphrase = if args.encrypt || args.passphrase.passphrase_file.is_some() {
        Some(passphrase(&args.passphrase, true)?)
    } else {
        None
    };
    let mut part = Part::create(&args.file)?;
    let sink = part.sink(app, passphrase.as_ref())?;
    receive(app, args, sink).await?;
    part.sync()?;
    // What counts is what is on the disk: it is read back before it gets its name.
    let mut step = Step::start(app.output, &app.clock, "check");
    let summary = restore::verify(&part.path, passphrase.as_ref()).map_err(unfit)?;
    step.say(&format!("hash {:016x}", summary.hash()));
    part.keep(&args.file)?;
    step.done("whole, read back from the disk");
    if passphrase.is_none() {
        app.output.note(&format!(
            "{} is not encrypted and holds everything that the store knows: keep it safe, or use --encrypt",
            args.file.display()
        ));
    }
    show(&app.output, args.output.output, &args.file, &summary, &tenants)
}

fn exists(path: &Path) -> Error {
    Error::new(Kind::Conflict, format!("{} exists already", path.display()))
        .hint("name another file, or move that one away")
}

/// Refuses a file whose folder does not exist, before anything is asked of the server or the user.
fn has_folder(file: &Path) -> Result<()> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => return Ok(()),
    };
    if folder.is_dir() {
        return Ok(());
    }
    let why = match folder.exists() {
        true => "is no folder",
        false => "does not exist",
    };
    let message = format!("cannot write {}: {} {why}", file.display(), folder.display());
    Err(Error::usage(message).hint("make the folder first, or name a file in one that exists"))
}

/// Tenant clusters as people know them, by the id of their key space.
pub(super) type Tenants = BTreeMap<String, String>;

/// The names of all tenant clusters, so that the result need not speak of ids; the one that is asked for must be there.
async fn tenants(app: &App, args: &BackupArgs) -> Result<Tenants> {
    let management = app.management()?;
    let found: Vec<Value> = match &args.tenant {
        Some(name) => vec![tenant::require(&management, &args.project.project, name).await?],
        None => management.list(&VIRTUAL_CLUSTER_INSTANCES, None).await?,
    };
    let named = found.iter().map(|vci| {
        let namespace = tenant::text(vci, "/metadata/namespace");
        let project = project_of_namespace(namespace).unwrap_or(namespace);
        let id = tenant::text(vci, "/metadata/uid").to_owned();
        (id, format!("{project}/{}", tenant::name(vci)))
    });
    Ok(named.collect())
}

pub(super) fn unfit(error: ServerError) -> Error {
    let message = chain(&error);
    match &error {
        ServerError::Backup {
            source: BackupError::NeedsPassphrase | BackupError::WrongPassphrase | BackupError::ShortPassphrase,
            ..
        } => {
            Error::new(Kind::Denied, message).hint("give the passphrase with --passphrase-file FILE or on the terminal")
        }
        ServerError::Config(_) | ServerError::Restore(_) => Error::usage(message),
        _ => Error::failed(message),
    }
}

fn call(args: &BackupArgs) -> Result<Call> {
    let Some(tenant) = &args.tenant else {
        return Ok(Call::get("/backup"));
    };
    let project = &args.project.project;
    for name in [project, tenant] {
        check_label(name).map_err(|why| Error::usage(format!("{name:?} is no name: {why}")))?;
    }
    Ok(Call::get(format!("/backup?project={project}&name={tenant}")))
}

/// Takes the backup from the server into `sink`.
async fn receive(app: &App, args: &BackupArgs, mut sink: Sink) -> Result<()> {
    let (call, file) = (call(args)?, args.file.as_path());
    let pace = args.rate.map(|mib| Pace::new(u64::from(mib) << 20, app.clock.mono()));
    let http = app.http(&app.login()?)?;
    let mut step = Step::start(app.output, &app.clock, "backup");
    let (mut bytes, mut said) = (0u64, 0u64);
    let live = app.output.live;
    let received = http
        .download(&call, pace, &mut |piece: &[u8]| {
            bytes += piece.len() as u64;
            if live && bytes - said >= STRIDE {
                said = bytes;
                step.say(&mib(bytes));
            }
            sink.write_all(piece).map_err(|error| Error::io("write", file, &error))
        })
        .await;
    if let Some(reply) = received? {
        return Err(refusal(&http.base().to_string(), &reply));
    }
    sink.finish().map_err(|error| Error::io("write", file, &error))?;
    step.done(&mib(bytes));
    Ok(())
}

pub(super) fn mib(bytes: u64) -> String {
    format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
}

/// A file that has no name of its own before it is whole.
struct Part {
    path: PathBuf,
    kept: bool,
}

/// Where the bytes of a backup go.
enum Sink {
    Plain(BufWriter<File>),
    Sealed(Box<SealedWriter<BufWriter<File>>>),
}

impl Part {
    fn create(file: &Path) -> Result<Self> {
        let mut name = file.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.part", std::process::id()));
        Ok(Self {
            path: file.with_file_name(name),
            kept: false,
        })
    }

    fn sink(&mut self, app: &App, passphrase: Option<&Passphrase>) -> Result<Sink> {
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(files::PRIVATE)
            .open(&self.path)
            .map_err(|error| Error::io("create", &self.path, &error))?;
        let file = BufWriter::new(file);
        match passphrase {
            None => Ok(Sink::Plain(file)),
            Some(passphrase) => SealedWriter::new(file, passphrase, app.rng.as_ref())
                .map(|sealed| Sink::Sealed(Box::new(sealed)))
                .map_err(|error| Error::usage(chain(&error))),
        }
    }

    fn sync(&self) -> Result<()> {
        let synced = File::open(&self.path).and_then(|file| file.sync_all());
        synced.map_err(|error| Error::io("sync", &self.path, &error))
    }

    /// Gives it its name, if nobody has it.
    fn keep(&mut self, file: &Path) -> Result<()> {
        fs::hard_link(&self.path, file).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(file),
            _ => Error::io("create", file, &error),
        })?;
        files::sync_dir(file)?;
        files::remove(&self.path)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            // The fault that led here is the one to tell.
            let _gone = fs::remove_file(&self.path).is_ok();
        }
    }
}

impl Sink {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(file) => file.write_all(bytes),
            Self::Sealed(file) => file.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<()> {
        let mut file = match self {
            Self::Plain(file) => file,
            Self::Sealed(file) => file.finish()?,
        };
        file.flush()
    }
}

/// Whether the file says that it is encrypted.
pub(super) fn is_sealed(path: &Path) -> Result<bool> {
    let mut start = [0; 8];
    let mut file = File::open(path).map_err(|error| Error::io("open", path, &error))?;
    Ok(io::Read::read_exact(&mut file, &mut start).is_ok() && hanse_server::backup_file::is_sealed(start))
}

pub(super) fn passphrase(args: &PassphraseArgs, new: bool) -> Result<Passphrase> {
    let text = match &args.passphrase_file {
        Some(path) if path == Path::new("-") => secret::from_stdin("the passphrase")?,
        Some(path) => secret::from_file("the passphrase", path)?,
        None => {
            let first = secret::prompt("Passphrase")?;
            if new && *secret::prompt("The same again")? != *first {
                return Err(Error::usage("the two passphrases differ"));
            }
            first
        }
    };
    Ok(Passphrase::new(text))
}

pub(super) fn show(output: &Output, format: Format, file: &Path, summary: &Summary, tenants: &Tenants) -> Result<()> {
    if print_document(output, format, &document(file, summary, tenants))? {
        return Ok(());
    }
    let mut table = Table::new(&["TENANT", "KEY SPACE", "KEYS", "LEASES", "BYTES", "HASH"]);
    for space in &summary.spaces {
        table.row(vec![
            tenant_of(space, tenants).unwrap_or_default().to_owned(),
            name(space).to_owned(),
            space.keys.to_string(),
            space.leases.to_string(),
            space.bytes.to_string(),
            format!("{:016x}", space.hash),
        ]);
    }
    output.print(&table.render(output.out))
}

fn name(space: &SpaceSummary) -> &str {
    match space.space.tenant() {
        "" => "registry",
        tenant => tenant,
    }
}

/// Whose key space it is: `project/name`.
fn tenant_of<'a>(space: &SpaceSummary, tenants: &'a Tenants) -> Option<&'a str> {
    tenants.get(space.space.tenant()).map(String::as_str)
}

fn document(file: &Path, summary: &Summary, tenants: &Tenants) -> Value {
    let spaces: Vec<Value> = summary
        .spaces
        .iter()
        .map(|space| {
            json!({
                "keySpace": name(space),
                "tenant": tenant_of(space, tenants),
                "dropped": space.dropped,
                "keys": space.keys,
                "leases": space.leases,
                "bytes": space.bytes,
                "hash": format!("{:016x}", space.hash),
            })
        })
        .collect();
    json!({
        "file": file.display().to_string(),
        "takenAtMillis": summary.head.taken_at_millis,
        "program": summary.head.program,
        "keys": summary.keys(),
        "bytes": summary.bytes(),
        "hash": format!("{:016x}", summary.hash()),
        "spaces": spaces,
    })
}
