//! The kubeconfig files of the user: found as kubectl finds them, locked as kubectl locks them, replaced in one step.

use super::edit::{self, Changes, Section};
use crate::error::{Error, Kind, Result};
use crate::files;
use hanse_runtime::clock::SharedClock;
use serde_json::Value;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long another writer is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// The files, the first one being where new entries go.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    paths: Vec<PathBuf>,
    clock: SharedClockDebug,
}

/// A clock has no `Debug` of its own.
#[derive(Clone)]
struct SharedClockDebug(SharedClock);

impl std::fmt::Debug for SharedClockDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Store {
    /// `given`, else the files of `$KUBECONFIG`, else `~/.kube/config`.
    pub(crate) fn find(given: Option<&Path>, clock: &SharedClock) -> Result<Self> {
        let clock = SharedClockDebug(clock.clone());
        if let Some(path) = given {
            return Ok(Self {
                paths: vec![path.to_owned()],
                clock,
            });
        }
        let listed = std::env::var_os("KUBECONFIG").unwrap_or_default();
        let mut paths: Vec<PathBuf> = std::env::split_paths(&listed)
            .filter(|p| !p.as_os_str().is_empty())
            .collect();
        if paths.is_empty() {
            let home = std::env::var_os("HOME").filter(|h| !h.is_empty()).ok_or_else(|| {
                Error::failed("neither KUBECONFIG nor HOME is set").hint("name the file with --kubeconfig FILE")
            })?;
            paths.push(PathBuf::from(home).join(".kube/config"));
        }
        Ok(Self { paths, clock })
    }

    /// The file that new entries go to.
    pub(crate) fn main(&self) -> &Path {
        &self.paths[0]
    }

    /// The merged configuration, as kubectl merges it: the first file that has a thing wins.
    pub(crate) fn load(&self) -> Result<Value> {
        let mut merged = serde_json::Map::new();
        for path in &self.paths {
            let Value::Object(config) = Self::read(path)? else {
                continue;
            };
            for section in Section::ALL {
                let Some(Value::Array(items)) = config.get(section.key()) else {
                    continue;
                };
                let list = merged.entry(section.key()).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    let known = |list: &[Value], item: &Value| list.iter().any(|i| i.get("name") == item.get("name"));
                    for item in items {
                        if !known(list, item) {
                            list.push(item.clone());
                        }
                    }
                }
            }
            if let Some(current) = edit::current(&Value::Object(config.clone())) {
                merged.entry("current-context").or_insert_with(|| Value::from(current));
            }
        }
        Ok(Value::Object(merged))
    }

    fn read(path: &Path) -> Result<Value> {
        edit::parse(&files::read(path)?.unwrap_or_default()).map_err(|why| Self::refused(path, &why))
    }

    fn refused(path: &Path, why: &str) -> Error {
        Error::failed(format!("kubeconfig {}: {why}", path.display()))
            .hint("it was left as it is; correct it, or name another file with --kubeconfig FILE")
    }

    /// Makes the changes that `plan` wants, each in the file that owns the entry. All files are locked meanwhile, so
    /// that `plan` sees what is there when it is written.
    pub(crate) async fn change(&self, plan: impl Fn(&Value) -> Changes) -> Result<Changes> {
        let mut locks = Vec::new();
        for path in &self.paths {
            locks.push(self.lock(path).await?);
        }
        let changes = plan(&self.load()?);
        if changes.is_empty() {
            return Ok(changes);
        }
        let mut texts = Vec::new();
        for path in &self.paths {
            let text = files::read(path)?.unwrap_or_default();
            let value = edit::parse(&text).map_err(|why| Self::refused(path, &why))?;
            texts.push((path, text, value));
        }
        let values: Vec<&Value> = texts.iter().map(|(_, _, value)| value).collect();
        let mut writes = Vec::new();
        for ((path, text, _), part) in texts.iter().zip(distribute(&values, &changes)) {
            if !part.is_empty() {
                writes.push((path, edit::apply(text, &part).map_err(|why| Self::refused(path, &why))?));
            }
        }
        for (path, text) in writes {
            // A link is followed, so that it stays a link.
            let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
            files::write(&target, text.as_bytes(), files::PRIVATE)?;
        }
        drop(locks);
        Ok(changes)
    }

    /// The lock of client-go: a file beside the configuration, made exclusively.
    async fn lock(&self, path: &Path) -> Result<Lock> {
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            files::create_dir(dir, false)?;
        }
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".lock");
        let lock = path.with_file_name(name);
        let clock = &self.clock.0;
        let end = clock.mono() + LOCK_WAIT;
        loop {
            match OpenOptions::new().create_new(true).write(true).open(&lock) {
                Ok(_) => return Ok(Lock(lock)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists && clock.mono() < end => {
                    clock.sleep(LOCK_POLL).await;
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let message = format!("kubeconfig {} is locked by {}", path.display(), lock.display());
                    return Err(Error::new(Kind::Conflict, message)
                        .hint("another program writes it, or one crashed: when none runs, remove the lock file"));
                }
                Err(error) => return Err(Error::io("make", &lock, &error)),
            }
        }
    }
}

/// Which changes go to which file: to the one that has the entry, otherwise to the first.
fn distribute(configs: &[&Value], changes: &Changes) -> Vec<Changes> {
    let mut parts = vec![Changes::default(); configs.len()];
    for change in &changes.set {
        let owner = configs
            .iter()
            .position(|c| edit::entry(c, change.0, &change.1).is_some())
            .unwrap_or(0);
        parts[owner].set.push(change.clone());
    }
    for change in &changes.remove {
        for (config, part) in configs.iter().zip(&mut parts) {
            if edit::names(config, change.0).contains(&change.1) {
                part.remove.push(change.clone());
            }
        }
    }
    if let Some(current) = &changes.current {
        let owner = configs.iter().position(|c| edit::current(c).is_some()).unwrap_or(0);
        parts[owner].current = Some(current.clone());
    }
    parts
}

/// Removes the lock file when it goes.
struct Lock(PathBuf);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            eprintln!("warning: cannot remove the lock {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::clock::{SystemClock, testing::ManualClock};
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    fn store(paths: Vec<PathBuf>) -> Store {
        Store {
            paths,
            clock: SharedClockDebug(SystemClock::shared()),
        }
    }

    fn token(name: &str) -> Changes {
        Changes {
            set: vec![(Section::Users, name.into(), json!({"token": "t"}))],
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn a_new_file_is_private_and_the_lock_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/config");
        store(vec![path.clone()]).change(|_| token("u")).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn an_entry_is_replaced_in_the_file_that_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "apiVersion: v1\nkind: Config\n").unwrap();
        std::fs::write(
            &b,
            "kind: Config\napiVersion: v1\nusers:\n- name: u\n  user: {}\ncurrent-context: x\n",
        )
        .unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&b, &link).unwrap();
        let mut changes = token("u");
        changes.current = Some("y".into());
        store(vec![a.clone(), link.clone()])
            .change(|_| changes.clone())
            .await
            .unwrap();
        assert_eq!(std::fs::read_to_string(&a).unwrap(), "apiVersion: v1\nkind: Config\n");
        let text = std::fs::read_to_string(&b).unwrap();
        assert!(
            text.contains("token: t") && text.contains("current-context: \"y\""),
            "{text}"
        );
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[tokio::test]
    async fn a_lock_that_stays_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(dir.path().join("config.lock"), "").unwrap();
        let clock = ManualClock::default();
        let store = Store {
            paths: vec![path],
            clock: SharedClockDebug(Arc::new(clock.clone())),
        };
        let change = store.change(|_| token("u"));
        let advance = async {
            loop {
                clock.advance(LOCK_WAIT);
                tokio::task::yield_now().await;
            }
        };
        let error = tokio::select! { r = change => r.unwrap_err(), () = advance => unreachable!() };
        assert!(error.to_string().contains("config.lock") && error.remedy().unwrap().contains("remove"));
        assert!(
            dir.path().join("config.lock").exists(),
            "another's lock is not taken away"
        );
    }

    #[tokio::test]
    async fn two_writers_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let writers = (0..8).map(|i| {
            let store = store(vec![path.clone()]);
            async move { store.change(|_| token(&format!("u{i}"))).await }
        });
        for outcome in futures::future::join_all(writers).await {
            outcome.unwrap();
        }
        let config = edit::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(edit::names(&config, Section::Users).len(), 8);
    }
}
