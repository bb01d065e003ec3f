//! Processes of tenants on this machine. They outlive their agent, so `down` and `kill` end them by the agent's records.

use super::layout::Layout;
use crate::error::{Error, Result};
use crate::files;
use hanse_runtime::clock::Clock;
use hanse_runtime::supervisor::chain;
use std::io::ErrorKind;
use std::time::Duration;

/// For kube-apiserver to end its requests. Its store is gone by then, so it cannot end much; its data is safe elsewhere.
pub(crate) const GRACE: Duration = Duration::from_secs(3);

/// Ends all processes of tenants in `region`, with `grace` to end by themselves; gives their number.
pub(crate) async fn stop(layout: &Layout, region: &str, grace: Duration, clock: &dyn Clock) -> Result<usize> {
    let data = layout.region(region, "agent");
    hanse_agent::stop_all(&data, grace, clock)
        .await
        .map_err(|e| fault(region, &e))
}

fn fault(region: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::failed(format!("processes of tenants in {region}: {}", chain(error)))
        .hint("look for them with `ps`, then run the command again")
}

/// Regions that have files, whether or not the plan can be read.
pub(crate) fn regions_on_disk(layout: &Layout) -> Result<Vec<String>> {
    let path = layout.regions();
    let entries = match std::fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", &path, &error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", &path, &e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if hanse_api::name::check_label(&name).is_ok() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Removes what an installation consists of, and its home when nothing else is in it.
pub(crate) fn remove_all(layout: &Layout) -> Result<()> {
    // The plan last: as long as it is there, the removal can be taken up again.
    for dir in ["regions", "log", "pki"] {
        files::remove_dir(&layout.home().join(dir))?;
    }
    files::remove_with_leftovers(&layout.front_door())?;
    files::remove_with_leftovers(&layout.plan())?;
    files::remove_dir(&layout.home().join("run"))?;
    match std::fs::remove_dir(layout.home()) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(Error::io("remove", layout.home(), &error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn only_what_is_ours_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("h");
        let layout = Layout::find(Some(&home)).unwrap();
        for path in [
            "regions/eu/agent",
            "regions/us",
            "regions/Not A Region",
            "pki",
            "run",
            "log",
        ] {
            std::fs::create_dir_all(home.join(path)).unwrap();
        }
        assert_eq!(regions_on_disk(&layout).unwrap(), ["eu", "us"]);
        std::fs::write(home.join("notes.txt"), "mine").unwrap();
        // Of an `up` that was killed while it wrote.
        for path in [layout.front_door(), layout.plan()] {
            let name = path.file_name().unwrap().to_str().unwrap();
            std::fs::write(home.join(format!("{name}.5404.tmp")), "ha").unwrap();
        }
        remove_all(&layout).unwrap();
        assert_eq!(std::fs::read_dir(&home).unwrap().count(), 1);
        std::fs::remove_file(home.join("notes.txt")).unwrap();
        remove_all(&layout).unwrap();
        assert!(!home.exists());
        remove_all(&Layout::find(Some(Path::new("/nowhere/h"))).unwrap()).unwrap();
    }
}
