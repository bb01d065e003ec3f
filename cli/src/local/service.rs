//! One detached process of the installation: its files, its start and its end.
//!
//! The process itself writes its pid file and holds a lock as long as it lives (`enter`), so no crash of the starter can
//! leave a process that nobody knows, and none can run twice.

use super::installation::Lock;
use super::layout::{Layout, Plan};
use super::process::Identity;
use crate::error::{Error, Kind, Result};
use crate::files;
use hanse_runtime::clock::{Clock, SharedClock};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// A new process writes its pid file at once; a busy machine may take its time.
const ENTER_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);
/// A log that is larger when its process starts is put aside; one old log is kept.
const LOG_MAX: u64 = 32 * 1024 * 1024;
/// For an orderly end.
pub(crate) const GRACE: Duration = Duration::from_secs(15);

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// `hanse server`.
    Server,
    /// `hanse agent`.
    Agent,
    /// `hanse front-door`.
    FrontDoor,
}

impl Role {
    /// Its subcommand.
    pub(crate) const fn command(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
            Self::FrontDoor => "front-door",
        }
    }
}

/// A process of the installation, whether it runs or not.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) role: Role,
    /// Empty for the front door.
    pub(crate) region: String,
    pub(crate) config: PathBuf,
    pub(crate) pid_file: PathBuf,
    pub(crate) log: PathBuf,
}

impl Service {
    /// The server or agent of `region`.
    pub(crate) fn in_region(layout: &Layout, region: &str, role: Role) -> Self {
        let name = role.command();
        Self {
            role,
            region: region.to_owned(),
            config: layout.region(region, &format!("{name}.toml")),
            pid_file: layout.region(region, &format!("run/{name}.pid")),
            log: layout.region(region, &format!("log/{name}.log")),
        }
    }

    /// The front door.
    pub(crate) fn front_door(layout: &Layout) -> Self {
        Self {
            role: Role::FrontDoor,
            region: String::new(),
            config: layout.front_door(),
            pid_file: layout.run("front-door.pid"),
            log: layout.log("front-door.log"),
        }
    }

    /// All of `plan`, in the order in which they are to stop.
    pub(crate) fn all(layout: &Layout, plan: &Plan) -> Vec<Self> {
        let of = |role| {
            plan.regions
                .iter()
                .map(move |region| Self::in_region(layout, region, role))
        };
        of(Role::Agent)
            .chain(of(Role::Server))
            .chain([Self::front_door(layout)])
            .collect()
    }

    /// What people call it.
    pub(crate) fn title(&self) -> String {
        match self.role {
            Role::FrontDoor => "front door".to_owned(),
            role => format!("{} {}", role.command(), self.region),
        }
    }

    /// The process, if it runs.
    pub(crate) fn running(&self) -> Option<Identity> {
        self.known()
            .filter(|identity| identity.is_alive() && !identity.is_ending())
    }

    /// Waits while a killed process still has its ports and its locks.
    pub(crate) async fn settled(&self, clock: &dyn Clock) {
        if let Some(identity) = self.known() {
            identity.ended(clock).await;
        }
    }

    fn known(&self) -> Option<Identity> {
        let text = std::fs::read_to_string(&self.pid_file).ok()?;
        // What is left of a crash or of another program is as good as no file.
        serde_json::from_str(&text).ok()
    }

    /// Starts it, unless it runs. `None` when it did.
    pub(crate) async fn start(&self, lock: &Lock, clock: &SharedClock) -> Result<Option<Started>> {
        self.settled(&**clock).await;
        if self.running().is_some() {
            return Ok(None);
        }
        let child = self.spawn(lock)?;
        let mut started = Started {
            service: self.clone(),
            child,
        };
        let end = clock.mono() + ENTER_LIMIT;
        loop {
            started.check()?;
            let pid = i32::try_from(started.child.id()).unwrap_or(0);
            if self.running().is_some_and(|identity| identity.pid == pid) {
                return Ok(Some(started));
            }
            if clock.mono() >= end {
                return Err(Error::new(Kind::TimedOut, format!("{} does not come up", self.title()))
                    .hint(format!("its log: {}", self.log.display())));
            }
            clock.sleep(POLL).await;
        }
    }

    fn spawn(&self, lock: &Lock) -> Result<Child> {
        for path in [&self.pid_file, &self.log] {
            if let Some(dir) = path.parent() {
                files::create_dir(dir, false)?;
            }
        }
        if std::fs::metadata(&self.log).is_ok_and(|m| m.len() > LOG_MAX) {
            let old = self.log.with_extension("log.1");
            std::fs::rename(&self.log, &old).map_err(|e| Error::io("move", &self.log, &e))?;
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(|e| Error::io("open", &self.log, &e))?;
        let second = log.try_clone().map_err(|e| Error::io("open", &self.log, &e))?;
        let program = std::env::current_exe().map_err(|e| Error::failed(format!("cannot find my own program: {e}")))?;
        let mut command = Command::new(&program);
        command
            .arg(self.role.command())
            .arg("--config")
            .arg(&self.config)
            .arg("--pid-file")
            .arg(&self.pid_file);
        command
            .stdin(lock.hand_on()?)
            .stdout(log)
            .stderr(second)
            .current_dir("/");
        command.spawn().map_err(|e| Error::io("start", &program, &e))
    }

    /// Ends it in order. `false` when it did not run.
    pub(crate) async fn stop(&self, clock: &dyn Clock) -> Result<bool> {
        let Some(identity) = self.running() else {
            return Ok(false);
        };
        let stopped = identity.stop(clock, GRACE).await.map_err(|e| e.within(&self.title()))?;
        files::remove(&self.pid_file)?;
        Ok(stopped)
    }

    /// Kills it. `false` when it did not run.
    pub(crate) async fn kill(&self, clock: &dyn Clock) -> Result<bool> {
        let Some(identity) = self.running() else {
            return Ok(false);
        };
        identity.kill(clock).await.map_err(|e| e.within(&self.title()))
    }
}

/// A process that this one started: its early end can be told with the reason.
#[derive(Debug)]
pub(crate) struct Started {
    service: Service,
    child: Child,
}

impl Started {
    /// The region that it belongs to; empty for the front door.
    pub(crate) fn region(&self) -> &str {
        &self.service.region
    }

    /// Fails when the process has ended, with the end of its log.
    pub(crate) fn check(&mut self) -> Result<()> {
        /// Lines of the log that the message shows.
        const LINES: usize = 4;
        let title = self.service.title();
        let ended = self
            .child
            .try_wait()
            .map_err(|e| Error::failed(format!("cannot watch {title}: {e}")))?;
        let Some(status) = ended else { return Ok(()) };
        let said = files::tail(&self.service.log, LINES);
        let said = if said.is_empty() {
            String::new()
        } else {
            format!("; it said last:\n{said}")
        };
        Err(Error::failed(format!("{title} ended while starting ({status}){said}"))
            .hint(format!("its log: {}", self.service.log.display())))
    }
}

/// What a process of the installation holds while it lives.
#[derive(Debug)]
pub(crate) struct Entered {
    _lock: File,
}

/// Called first by a process of the installation: leaves the terminal's session, makes sure that it is the only one, and
/// says who it is.
pub(crate) fn enter(pid_file: &Path) -> Result<Entered> {
    // Fails only where this process leads a session already.
    let _led = rustix::process::setsid().is_err();
    let path = pid_file.with_extension("lock");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let lock = lock.map_err(|e| Error::io("open", &path, &e))?;
    if lock.try_lock().is_err() {
        return Err(
            Error::new(Kind::Conflict, format!("another process holds {}", path.display()))
                .hint("it runs already: `hanse status` shows it, `hanse down` stops it"),
        );
    }
    let identity = Identity::own().ok_or_else(|| Error::failed("cannot read /proc/self/stat: is /proc mounted?"))?;
    let text =
        serde_json::to_string(&identity).map_err(|e| Error::failed(format!("cannot write the pid file: {e}")))?;
    files::write(pid_file, text.as_bytes(), files::PUBLIC)?;
    // From here on it can be found: let go of the starter's lock.
    let nothing = File::open("/dev/null").map_err(|e| Error::io("open", Path::new("/dev/null"), &e))?;
    rustix::stdio::dup2_stdin(&nothing).map_err(|e| Error::failed(format!("cannot close standard input: {e}")))?;
    Ok(Entered { _lock: lock })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(dir: &Path) -> Service {
        Service {
            role: Role::Server,
            region: "eu".into(),
            config: dir.join("c"),
            pid_file: dir.join("server.pid"),
            log: dir.join("log"),
        }
    }

    #[test]
    fn stale_and_broken_pid_files_mean_that_nothing_runs() {
        let dir = tempfile::tempdir().unwrap();
        let service = service(dir.path());
        assert!(service.running().is_none());
        let own = Identity::own().unwrap();
        let stale = Identity {
            start: own.start + 1,
            ..own.clone()
        };
        for text in [
            String::new(),
            "12".into(),
            "{".into(),
            serde_json::to_string(&stale).unwrap(),
        ] {
            std::fs::write(&service.pid_file, &text).unwrap();
            assert!(service.running().is_none(), "{text}");
        }
        std::fs::write(&service.pid_file, serde_json::to_string(&own).unwrap()).unwrap();
        assert_eq!(service.running(), Some(own));
    }

    #[test]
    fn a_second_process_of_the_same_service_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("x.pid");
        let first = enter(&pid_file).unwrap();
        assert_eq!(enter(&pid_file).unwrap_err().kind(), Kind::Conflict);
        drop(first);
        assert!(enter(&pid_file).is_ok());
    }

    #[test]
    fn agents_stop_before_servers_and_the_front_door_last() {
        let layout = Layout::find(Some(Path::new("/tmp/h"))).unwrap();
        let plan = Plan::new(&["eu".into(), "us".into()], 0).unwrap();
        let titles: Vec<String> = Service::all(&layout, &plan).iter().map(Service::title).collect();
        assert_eq!(titles, ["agent eu", "agent us", "server eu", "server us", "front door"]);
    }
}
