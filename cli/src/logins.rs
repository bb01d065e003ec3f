//! Where this user is logged in: `config.toml` in the user's configuration folder, mode 0600.

use crate::client::tls::Trust;
use crate::error::{Error, Result};
use crate::files;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// Names the file instead.
pub(crate) const VARIABLE: &str = "HANSE_CONFIG";

/// One login.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Login {
    /// `https://host[:port]`.
    pub(crate) server: String,
    /// The access key.
    pub(crate) access_key: String,
    /// No check of the server's certificate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) insecure: bool,
    /// Authority of the server, PEM; the system's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Login {
    /// Whom to trust.
    pub(crate) fn trust(&self) -> Trust {
        match (&self.ca, self.insecure) {
            (_, true) => Trust::Anybody,
            (Some(pem), false) => Trust::Pinned(pem.clone()),
            (None, false) => Trust::System,
        }
    }
}

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Content {
    /// Server of the login that verbs use.
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    /// One per server.
    #[serde(rename = "login", skip_serializing_if = "Vec::is_empty")]
    logins: Vec<Login>,
}

/// All logins of this user.
#[derive(Clone, Debug)]
pub(crate) struct Logins {
    path: PathBuf,
    content: Content,
}

impl Logins {
    /// Reads the file; without one there are no logins.
    pub(crate) fn load() -> Result<Self> {
        let path = path()?;
        let text = files::read(&path)?.unwrap_or_default();
        // The parser's excerpt could show a key, so only its message is told.
        let content = toml::from_str(&text).map_err(|e| {
            Error::failed(format!("{} is damaged: {}", path.display(), e.message()))
                .hint("correct it, or remove it and log in again")
        })?;
        Ok(Self { path, content })
    }

    /// The login that verbs use.
    pub(crate) fn current(&self) -> Option<&Login> {
        self.find(self.content.current.as_deref()?)
    }

    /// The login at `server`.
    pub(crate) fn find(&self, server: &str) -> Option<&Login> {
        self.content.logins.iter().find(|l| l.server == server)
    }

    /// Adds or replaces a login and makes it the one that verbs use.
    pub(crate) fn set(&mut self, login: Login) {
        self.content.current = Some(login.server.clone());
        self.content.logins.retain(|l| l.server != login.server);
        self.content.logins.push(login);
    }

    /// Drops the login at `server`.
    pub(crate) fn remove(&mut self, server: &str) {
        self.content.logins.retain(|l| l.server != server);
        if self.content.current.as_deref() == Some(server) {
            self.content.current = self.content.logins.last().map(|l| l.server.clone());
        }
    }

    /// Writes the file.
    pub(crate) fn save(&self) -> Result<()> {
        let text = toml::to_string(&self.content).map_err(|e| Error::failed(format!("cannot write logins: {e}")))?;
        if let Some(dir) = self.path.parent() {
            files::create_dir(dir, false)?;
        }
        files::write(&self.path, text.as_bytes(), files::PRIVATE)
    }
}

fn path() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = variable(VARIABLE) {
        return Ok(path);
    }
    if let Some(config) = variable("XDG_CONFIG_HOME").filter(|p| p.is_absolute()) {
        return Ok(config.join("hanse/config.toml"));
    }
    let home = variable("HOME")
        .ok_or_else(|| Error::failed("HOME is not set").hint(format!("name a file with {VARIABLE}")))?;
    Ok(home.join(".config/hanse/config.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(server: &str) -> Login {
        Login {
            server: server.into(),
            access_key: "hak1.a.secret".into(),
            insecure: false,
            ca: Some("PEM".into()),
        }
    }

    #[test]
    fn the_last_login_counts_and_leaving_it_goes_back() {
        let mut logins = Logins {
            path: "unused".into(),
            content: Content::default(),
        };
        logins.set(login("https://a"));
        logins.set(login("https://b"));
        logins.set(login("https://b"));
        assert_eq!(logins.content.logins.len(), 2);
        assert_eq!(logins.current().unwrap().server, "https://b");
        logins.remove("https://b");
        assert_eq!(logins.current().unwrap().server, "https://a");
        logins.remove("https://a");
        assert!(logins.current().is_none());
    }

    #[test]
    fn a_login_is_kept_and_never_shown() {
        let mut logins = Logins {
            path: "unused".into(),
            content: Content::default(),
        };
        logins.set(login("https://a"));
        let text = toml::to_string(&logins.content).unwrap();
        assert_eq!(toml::from_str::<Content>(&text).unwrap(), logins.content);
        assert!(!format!("{logins:?}").contains("secret"));
    }
}
