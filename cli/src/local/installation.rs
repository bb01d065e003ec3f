//! The installation as found on disk, and the lock of whoever changes what runs.

use super::layout::{FORMAT, Layout, Plan};
use crate::error::{Error, Kind, Result};
use crate::files;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};

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

/// Held while processes are started or stopped. Ends with this process, however that ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes it, or says who has it.
    pub(crate) fn take(layout: &Layout) -> Result<Self> {
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
        if file.try_lock().is_err() {
            let mut holder = String::new();
            // Who it is only helps the message.
            let _known = file.read_to_string(&mut holder).is_ok();
            let message = format!(
                "another hanse command works on this installation (pid {})",
                holder.trim()
            );
            return Err(Error::new(Kind::Conflict, message).hint("wait until it has ended"));
        }
        let note = format!("{}\n", std::process::id());
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(note.as_bytes()));
        written.map_err(|e| Error::io("write", &path, &e))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_command_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::find(Some(dir.path())).unwrap();
        let first = Lock::take(&layout).unwrap();
        let error = Lock::take(&layout).unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        assert!(Lock::take(&layout).is_ok());
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
