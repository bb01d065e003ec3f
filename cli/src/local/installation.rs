//! The installation as found on disk, and the lock of whoever changes what runs.

use super::layout::{FORMAT, Layout, Plan};
use crate::error::{Error, Kind, Result};
use crate::files;
use hanse_runtime::clock::Clock;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

/// A generated installation.
#[derive(Clone, Debug)]
pub(crate) struct Installation {
    pub(crate) layout: Layout,
    pub(crate) plan: Plan,
}

impl Installation {
    /// Reads it; `None` when nothing was generated yet.
    pub(crate) fn load(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.plan();
        let Some(text) = files::read(&path)? else {
            return Ok(None);
        };
        let broken = |why: &str| {
            Error::failed(format!("{} is damaged: {why}", path.display()))
                .hint("restore it, or remove the installation with `hanse down --delete`")
        };
        let plan: Plan = toml::from_str(&text).map_err(|e| broken(e.message()))?;
        if plan.format != FORMAT {
            return Err(broken(&format!("format {} is not known to this version", plan.format)));
        }
        Plan::new(&plan.regions, plan.address_block).map_err(|e| broken(&e.to_string()))?;
        Ok(Some(Self {
            layout: layout.clone(),
            plan,
        }))
    }

    /// Reads it; fails when there is none.
    pub(crate) fn require(layout: &Layout) -> Result<Self> {
        Self::load(layout)?.ok_or_else(|| {
            Error::not_found(format!("there is no installation in {}", layout.home().display()))
                .hint("`hanse up` makes one; --home DIR names another folder")
        })
    }

    /// The administrator's access key.
    pub(crate) fn admin_key(&self) -> Result<String> {
        Ok(files::read_required(&self.layout.pki("admin.key"))?.trim().to_owned())
    }

    /// Certificate of its authority, PEM.
    pub(crate) fn ca(&self) -> Result<String> {
        files::read_required(&self.layout.pki("ca.pem"))
    }
}

/// How long another command's end is waited for before it is told.
const LOCK_WAIT: Duration = Duration::from_secs(3);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Held while processes are started or stopped. Ends with this process, however that ends, and with the processes that
/// it is about to start: each gets the lock's file as standard input and lets go of it when it has said who it is. So
/// nobody who has the lock can overlook a process, not even one whose starter was killed.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Takes it, or says who has it.
    pub(crate) async fn take(layout: &Layout, clock: &dyn Clock) -> Result<Self> {
        let path = layout.lock();
        if let Some(dir) = path.parent() {
            files::create_dir(dir, false)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path);
        let mut file = file.map_err(|e| Error::io("open", &path, &e))?;
        let end = clock.mono() + LOCK_WAIT;
        while file.try_lock().is_err() {
            if clock.mono() >= end {
                let mut holder = String::new();
                // Who it is only helps the message.
                let _known = file.read_to_string(&mut holder).is_ok();
                let message = format!(
                    "another hanse command works on this installation (pid {})",
                    holder.trim()
                );
                return Err(Error::new(Kind::Conflict, message).hint("wait until it has ended"));
            }
            clock.sleep(LOCK_POLL).await;
        }
        let note = format!("{}\n", std::process::id());
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(note.as_bytes()));
        written.map_err(|e| Error::io("write", &path, &e))?;
        Ok(Self { file })
    }

    /// The lock for a process that is about to be started.
    pub(crate) fn hand_on(&self) -> Result<Stdio> {
        let shared = self.file.try_clone();
        shared
            .map(Stdio::from)
            .map_err(|e| Error::failed(format!("cannot hand the lock on: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::clock::testing::ManualClock;

    #[tokio::test]
    async fn one_command_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::find(Some(dir.path())).unwrap();
        let clock = ManualClock::default();
        let first = Lock::take(&layout, &clock).await.unwrap();
        let handed_on = first.hand_on().unwrap();
        let refused = async || {
            let take = Lock::take(&layout, &clock);
            let advance = async {
                loop {
                    clock.advance(LOCK_WAIT);
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! { r = take => r.unwrap_err().to_string(), () = advance => unreachable!() }
        };
        assert!(refused().await.contains(&std::process::id().to_string()));
        drop(first);
        refused().await;
        drop(handed_on);
        assert!(Lock::take(&layout, &clock).await.is_ok());
    }

    #[test]
    fn a_damaged_plan_is_no_missing_one() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::find(Some(dir.path())).unwrap();
        assert!(Installation::load(&layout).unwrap().is_none());
        assert_eq!(Installation::require(&layout).unwrap_err().kind(), Kind::NotFound);
        for text in ["", "format = 1", "format = 9\nregions = [\"eu\"]\naddress_block = 0\n"] {
            std::fs::write(layout.plan(), text).unwrap();
            assert!(
                Installation::load(&layout)
                    .unwrap_err()
                    .remedy()
                    .unwrap()
                    .contains("--delete"),
                "{text}"
            );
        }
    }
}
