//! `kill REGION` and `start REGION`: a region's death and return, for demonstrations and drills.

use super::down::require_region;
use super::installation::Lock;
use super::ports::{self, Protocol};
use super::service::{Role, Service};
use super::{tenants, up};
use crate::app::App;
use crate::error::Result;
use crate::output::progress::Step;
use std::time::Duration;

/// `kill REGION`: SIGKILL to everything in it, tenants' processes included.
pub(crate) async fn kill(app: &App, region: &str) -> Result<()> {
    let layout = app.layout()?;
    require_region(&layout, region)?;
    let _lock = Lock::take(&layout, &*app.clock).await?;
    let step = Step::start(app.output, &app.clock, &format!("kill -9 of region {region}"));
    let (server, agent) = (
        Service::in_region(&layout, region, Role::Server),
        Service::in_region(&layout, region, Role::Agent),
    );
    let (server, agent) = futures::try_join!(server.kill(&*app.clock), agent.kill(&*app.clock))?;
    let processes = tenants::stop(&layout, region, Duration::ZERO, &*app.clock).await?;
    let yes = |was: bool, what: &str| {
        if was {
            format!("{what} killed")
        } else {
            format!("{what} did not run")
        }
    };
    step.done(&format!(
        "{}, {}, {processes} processes of tenants killed",
        yes(server, "server"),
        yes(agent, "agent")
    ));
    app.output.note(&format!(
        "`hanse status` shows how the others go on; `hanse start {region}` brings it back"
    ));
    Ok(())
}

/// `start REGION`.
pub(crate) async fn start(app: &App, region: &str) -> Result<()> {
    let layout = app.layout()?;
    let installation = require_region(&layout, region)?;
    let lock = Lock::take(&layout, &*app.clock).await?;
    let place = installation.plan.region(region)?;
    let server = Service::in_region(&layout, region, Role::Server);
    server.settled(&*app.clock).await;
    if server.running().is_none() {
        ports::check(place.gateway(), Protocol::Tcp, &format!("the gateway of {region}"))?;
        ports::check(place.raft(), Protocol::Tcp, &format!("the Raft service of {region}"))?;
        ports::check(place.tunnel(), Protocol::Udp, &format!("the tunnel of {region}"))?;
    }
    let up = up::Up::new(app, &installation, &lock)?;
    up.servers(std::slice::from_ref(&place)).await?;
    up.agents(std::slice::from_ref(&place)).await?;
    up.tenants_of(std::slice::from_ref(&place)).await
}
