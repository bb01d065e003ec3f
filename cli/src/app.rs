//! What every verb gets: clock, randomness, output, and where this user's things are.

use crate::client::{BaseUrl, Http, Management};
use crate::error::{Error, Kind, Result};
use crate::local::layout::Layout;
use crate::logins::{Login, Logins};
use crate::output::Output;
use hanse_runtime::clock::{SharedClock, SystemClock};
use hanse_runtime::rng::{SharedRng, SystemRng};
use std::path::PathBuf;

/// The surroundings of one command.
pub(crate) struct App {
    pub(crate) clock: SharedClock,
    pub(crate) rng: SharedRng,
    pub(crate) output: Output,
    /// `--home`.
    pub(crate) home: Option<PathBuf>,
    /// `--server`.
    pub(crate) server: Option<String>,
}

impl App {
    /// By this process' environment.
    pub(crate) fn new(home: Option<PathBuf>, server: Option<String>) -> Self {
        Self {
            clock: SystemClock::shared(),
            rng: SystemRng::shared(),
            output: Output::detect(),
            home,
            server,
        }
    }

    /// The installation's paths.
    pub(crate) fn layout(&self) -> Result<Layout> {
        Layout::find(self.home.as_deref())
    }

    /// Whom the user is logged in as, by `--server` or the last login.
    pub(crate) fn login(&self) -> Result<Login> {
        let logins = Logins::load()?;
        let wanted = self
            .server
            .as_deref()
            .map(BaseUrl::parse)
            .transpose()?
            .map(|url| url.to_string());
        let hint = "log in with `hanse login URL`; `hanse up` starts an installation on this machine and logs in";
        match wanted {
            Some(server) => logins
                .find(&server)
                .cloned()
                .ok_or_else(|| Error::new(Kind::Denied, format!("you are not logged in at {server}")).hint(hint)),
            None => logins
                .current()
                .cloned()
                .ok_or_else(|| Error::new(Kind::Denied, "you are not logged in").hint(hint)),
        }
    }

    /// A client by `login`.
    pub(crate) fn http(&self, login: &Login) -> Result<Http> {
        Http::new(
            BaseUrl::parse(&login.server)?,
            &login.trust(),
            Some(&login.access_key),
            self.clock.clone(),
        )
    }

    /// The management API by the current login.
    pub(crate) fn management(&self) -> Result<Management> {
        Ok(Management::new(self.http(&self.login()?)?))
    }
}
