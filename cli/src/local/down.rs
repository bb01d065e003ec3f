//! `down`: ends everything in an order in which nobody misses what has gone, and with `--delete` removes it.

use super::installation::{Installation, Lock};
use super::layout::Layout;
use super::service::{Role, Service};
use super::tenants;
use crate::app::App;
use crate::error::{Error, Result};
use crate::logins::Logins;
use crate::output::progress::Step;
use crate::verbs::login::forget_contexts;
use futures::future::try_join_all;
use std::path::Path;

/// `down`.
pub(crate) async fn down(app: &App, delete: bool, kubeconfig: Option<&Path>) -> Result<()> {
    let layout = app.layout()?;
    if !layout.home().exists() {
        app.output.note(&format!(
            "nothing to do: there is no installation in {}",
            layout.home().display()
        ));
        return Ok(());
    }
    let lock = Lock::take(&layout, &*app.clock).await?;
    stop_all(app, &layout).await?;
    if !delete {
        app.output.note("stopped; `hanse up` goes on with all data");
        return Ok(());
    }
    // A plan that cannot be read must not keep anybody from removing the rest.
    if let Ok(Some(installation)) = Installation::load(&layout) {
        let server = installation.plan.url();
        let mut logins = Logins::load()?;
        if logins.find(&server).is_some() {
            forget_contexts(app, &server, kubeconfig).await?;
            logins.remove(&server);
            logins.save()?;
        }
    }
    let step = Step::start(app.output, &app.clock, "files");
    tenants::remove_all(&layout)?;
    step.done("removed");
    drop(lock);
    Ok(())
}

/// Ends what runs, by what is on disk.
async fn stop_all(app: &App, layout: &Layout) -> Result<()> {
    let regions = tenants::regions_on_disk(layout)?;
    stop_role(app, layout, &regions, Role::Agent, "agents").await?;
    let step = Step::start(app.output, &app.clock, "tenants");
    let stops = regions
        .iter()
        .map(|region| tenants::stop(layout, region, tenants::GRACE, &*app.clock));
    let count: usize = try_join_all(stops).await?.into_iter().sum();
    step.done(&stopped(count, "process", "processes"));
    // One after the other: each hands leadership over to one that stays, instead of to one that stops as well.
    for region in &regions {
        let server = std::slice::from_ref(region);
        stop_role(app, layout, server, Role::Server, &format!("server of {region}")).await?;
    }
    let step = Step::start(app.output, &app.clock, "front door");
    let was = Service::front_door(layout).stop(&*app.clock).await?;
    step.done(if was { "stopped" } else { "did not run" });
    Ok(())
}

async fn stop_role(app: &App, layout: &Layout, regions: &[String], role: Role, title: &str) -> Result<()> {
    let step = Step::start(app.output, &app.clock, title);
    let services: Vec<Service> = regions
        .iter()
        .map(|region| Service::in_region(layout, region, role))
        .collect();
    let count = try_join_all(services.iter().map(|s| s.stop(&*app.clock))).await?;
    step.done(&stopped(
        count.into_iter().filter(|was| *was).count(),
        "process",
        "processes",
    ));
    Ok(())
}

fn stopped(count: usize, one: &str, many: &str) -> String {
    match count {
        0 => "none ran".to_owned(),
        1 => format!("1 {one} stopped"),
        n => format!("{n} {many} stopped"),
    }
}

/// Fails with the known regions when `region` is none of them.
pub(crate) fn require_region(layout: &Layout, region: &str) -> Result<Installation> {
    let installation = Installation::require(layout)?;
    installation.plan.region(region).map(|_| ())?;
    if layout.region(region, "server.toml").is_file() {
        return Ok(installation);
    }
    Err(Error::failed(format!("the files of region {region} are missing")).hint("`hanse up` writes them again"))
}
