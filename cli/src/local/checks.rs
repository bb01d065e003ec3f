//! What must hold before anything is written: space, programs, free ports.

use super::layout::{Layout, Plan, Region};
use super::ports::{self, Protocol};
use super::service::{Role, Service};
use super::tools::{self, Tools};
use crate::error::{Error, Result};
use hanse_runtime::clock::Clock;
use std::path::Path;

/// Free space that a start asks for: logs, write-ahead logs and tables of three servers, certificates, tenants' logs.
pub(crate) const SPACE_MB: u64 = 512;

/// Fails unless the file system of `path` has room.
pub(crate) fn space(path: &Path) -> Result<()> {
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there).map_err(|e| Error::io("look at", there, &e.into()))?;
    enough(path, stat.f_bavail.saturating_mul(stat.f_frsize) / 1024 / 1024)
}

fn enough(path: &Path, free_mb: u64) -> Result<()> {
    if free_mb >= SPACE_MB {
        return Ok(());
    }
    let message = format!(
        "{} has {free_mb} MB left, at least {SPACE_MB} MB are needed",
        path.display()
    );
    Err(Error::failed(message).hint("free some space there, or choose another folder with --home DIR"))
}

/// Fails unless every address of a process that is to start is free.
pub(crate) async fn free_ports(layout: &Layout, plan: &Plan, regions: &[Region], clock: &dyn Clock) -> Result<()> {
    for region in regions {
        let server = Service::in_region(layout, &region.name, Role::Server);
        server.settled(clock).await;
        if server.running().is_none() {
            let name = &region.name;
            ports::check(region.gateway(), Protocol::Tcp, &format!("the gateway of {name}"))?;
            ports::check(region.raft(), Protocol::Tcp, &format!("the Raft service of {name}"))?;
            ports::check(region.tunnel(), Protocol::Udp, &format!("the tunnel of {name}"))?;
        }
    }
    let front_door = Service::front_door(layout);
    front_door.settled(clock).await;
    if front_door.running().is_none() {
        ports::check(plan.front_door(), Protocol::Tcp, "the front door")?;
    }
    Ok(())
}

/// All of it.
pub(crate) async fn all(layout: &Layout, plan: &Plan, clock: &dyn Clock) -> Result<Tools> {
    layout.fits(plan)?;
    let tools = tools::find()?;
    space(layout.home())?;
    free_ports(layout, plan, &plan.regions(), clock).await?;
    Ok(tools)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_figures_and_a_remedy() {
        let error = enough(Path::new("/x"), 3).unwrap_err();
        assert!(error.to_string().contains("3 MB left") && error.to_string().contains(&SPACE_MB.to_string()));
        assert!(error.remedy().unwrap().contains("--home"));
        assert!(enough(Path::new("/x"), SPACE_MB).is_ok());
    }

    #[test]
    fn a_home_that_is_not_there_yet_is_judged_by_its_file_system() {
        assert!(space(Path::new("/proc/none/such")).is_err(), "proc has no space at all");
    }
}
