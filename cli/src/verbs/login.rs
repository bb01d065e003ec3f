//! `login` and `logout`.

use crate::app::App;
use crate::client::tls::Trust;
use crate::client::{BaseUrl, Http, Management};
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::kubeconfig::entries;
use crate::kubeconfig::store::Store;
use crate::local::installation::Installation;
use crate::logins::{Login, Logins};
use crate::output::secret;
use crate::verbs::sso::{self, Way};
use hanse_api::kinds::PROJECTS;
use serde_json::Value;
use std::io::IsTerminal as _;
use std::path::Path;
use zeroize::Zeroizing;

/// How `login` is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options<'a> {
    /// `-` is standard input.
    pub(crate) access_key_file: Option<&'a Path>,
    pub(crate) ca_file: Option<&'a Path>,
    pub(crate) insecure: bool,
    /// By an identity provider.
    pub(crate) way: Option<Way>,
}

/// `login URL`.
pub(crate) async fn login(app: &App, url: &str, options: Options<'_>) -> Result<()> {
    let base = BaseUrl::parse(url)?;
    let local = app
        .layout()
        .ok()
        .and_then(|layout| Installation::load(&layout).ok().flatten());
    let local = local.filter(|installation| installation.plan.url() == base.to_string());
    let ca = match (options.ca_file, &local) {
        (Some(path), _) => Some(files::read_required(path)?),
        (None, Some(installation)) if !options.insecure => Some(installation.ca()?),
        (None, _) => None,
    };
    let trust = match (&ca, options.insecure) {
        (_, true) => Trust::Anybody,
        (Some(pem), false) => Trust::Pinned(pem.clone()),
        (None, false) => Trust::System,
    };
    // Before anybody types a key: is there a server, and is it the right one?
    let open = Http::new(base.clone(), &trust, None, app.clock.clone())?;
    open.connect().await.map_err(|fault| open.explain(&fault))?;
    let access_key = match way(&options, local.as_ref(), &open).await {
        Some(way) => sso::access_key(app, &open, way).await?,
        None => read_key(options.access_key_file, local.as_ref())?,
    };
    let login = Login {
        server: base.to_string(),
        access_key,
        insecure: options.insecure,
        ca,
    };
    let management = Management::new(app.http(&login)?);
    check(&management).await?;
    let mut logins = Logins::load()?;
    logins.set(login);
    logins.save()?;
    app.output.note(&format!("logged in at {base}"));
    if options.insecure {
        app.output
            .note("warning: the server's certificate is not checked; anybody on the way may read the access key");
    }
    Ok(())
}

/// How to log in by an identity provider, if so: as was said, or in the browser where a person is asked anyway.
async fn way(options: &Options<'_>, local: Option<&Installation>, open: &Http) -> Option<Way> {
    let key = options.access_key_file.is_some() || local.is_some() || !std::io::stdin().is_terminal();
    if options.way.is_some() || key {
        return options.way;
    }
    sso::is_there(open).await.then_some(Way::Browser)
}

/// Fails when the key is not accepted. A key without the right to list projects is a good key all the same.
async fn check(management: &Management) -> Result<()> {
    match management.list::<Value>(&PROJECTS, None).await {
        Err(error) if error.kind() == Kind::Denied && error.to_string().contains("does not accept the access key") => {
            Err(Error::new(Kind::Denied, error.to_string())
                .hint("copy the key again, whole; a revoked or expired one has to be replaced by an administrator"))
        }
        Err(error) if error.kind() != Kind::Denied => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn read_key(file: Option<&Path>, local: Option<&Installation>) -> Result<String> {
    let stdin = || secret::from_stdin("the access key");
    let text = match (file, local) {
        (Some(path), _) if path == Path::new("-") => stdin()?,
        (Some(path), _) => files::read_required(path).map(Zeroizing::new)?,
        (None, Some(installation)) => installation.admin_key().map(Zeroizing::new)?,
        (None, None) if std::io::stdin().is_terminal() => secret::prompt("Access key")?,
        (None, None) => stdin()?,
    };
    let key = text.trim();
    if key.is_empty() {
        return Err(Error::usage("the access key is empty")
            .hint("give it in a file with --access-key-file FILE, or on standard input"));
    }
    Ok(key.to_owned())
}

/// `logout`.
pub(crate) async fn logout(app: &App, kubeconfig: Option<&Path>) -> Result<()> {
    let mut logins = Logins::load()?;
    let server = match &app.server {
        Some(url) => Some(BaseUrl::parse(url)?.to_string()),
        None => logins.current().map(|l| l.server.clone()),
    };
    let Some(server) = server.filter(|s| logins.find(s).is_some()) else {
        app.output.note("you are not logged in");
        return Ok(());
    };
    forget_contexts(app, &server, kubeconfig).await?;
    logins.remove(&server);
    logins.save()?;
    app.output.note(&format!("logged out of {server}"));
    if let Some(next) = logins.current() {
        app.output.note(&format!("the current login is now {}", next.server));
    }
    Ok(())
}

/// Takes the contexts of `server` out of the kubeconfig, and with them the access key.
pub(crate) async fn forget_contexts(app: &App, server: &str, kubeconfig: Option<&Path>) -> Result<()> {
    let user = entries::user_name(server);
    let store = Store::find(kubeconfig, &app.clock)?;
    let changes = store
        .change(|config| entries::forget(config, |context, _| entries::uses(config, context, &user)))
        .await?;
    if !changes.is_empty() {
        app.output.note("its contexts were taken out of the kubeconfig");
    }
    Ok(())
}
