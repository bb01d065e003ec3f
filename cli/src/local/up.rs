//! `up`: everything that an installation on this machine needs, from whatever state it is in.

use super::checks;
use super::generate::{self, Source};
use super::installation::{Installation, Lock};
use super::layout::{Layout, Plan, Region};
use super::service::{Role, Service, Started};
use super::tenants;
use crate::app::App;
use crate::client::http::Call;
use crate::client::management::path;
use crate::client::tls::Trust;
use crate::client::{BaseUrl, Http, Management, Stage};
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::logins::{Login, Logins};
use crate::output::progress::{Step, seconds};
use crate::verbs::create::{Wanted, submit};
use crate::verbs::tenant;
use hanse_api::kinds::{ANNOTATION_REGION, CLUSTERS, KindName, PROJECTS, SERVERS, VIRTUAL_CLUSTER_INSTANCES};
use hanse_api::name::project_of_namespace;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Regions of a new installation.
const REGIONS: [&str; 3] = ["eu", "us", "ap"];
/// Between two looks.
const POLL: Duration = Duration::from_millis(100);
/// For servers to elect leaders and answer.
const SERVERS_LIMIT: Duration = Duration::from_secs(90);
/// For agents to enrol and connect.
const AGENTS_LIMIT: Duration = Duration::from_secs(90);
/// For servers to say that they reach the agents; more than they themselves wait for those.
const REACHED_LIMIT: Duration = Duration::from_secs(30);
/// For the first tenant's API server.
const TENANT_LIMIT: Duration = Duration::from_secs(180);
/// For each tenant that was there before.
const REVIVAL_LIMIT: Duration = Duration::from_secs(60);
/// For the first administrator to be entered after the first election.
const ADMIN_LIMIT: Duration = Duration::from_secs(20);
/// The first tenant.
const DEMO: &str = "demo";
/// Its project.
const PROJECT: &str = "default";
/// Tenants that are waited for when they are restarted.
const TENANTS_WAITED_MAX: usize = 16;

/// How `up` is wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) regions: Option<Vec<String>>,
    pub(crate) address_block: Option<u8>,
    pub(crate) tenant: bool,
}

/// `up`.
pub(crate) async fn up(app: &App, options: &Options) -> Result<()> {
    let begun = app.clock.mono();
    let layout = app.layout()?;
    let (plan, known) = plan(&layout, options)?;
    let fresh = !layout.home().exists();
    checks::all(&layout, &plan, &*app.clock).await?;
    let prepared = prepare(app, &layout, &plan, known).await;
    if prepared.is_err() && fresh {
        // Nothing was started yet: leave the machine as it was.
        tenants::remove_all(&layout)?;
    }
    let (installation, lock) = prepared?;
    let regions = installation.plan.regions();
    let up = Up::new(app, &installation, &lock)?;
    up.servers(&regions).await?;
    up.agents(&regions).await?;
    log_in(&installation)?;
    let named = up.tenants(options.tenant).await?;
    let took = seconds(app.clock.mono().saturating_sub(begun));
    app.output.line(&farewell(&installation.plan, named.as_deref(), &took))
}

/// The plan that is there, or a new one; the flag says which.
fn plan(layout: &Layout, options: &Options) -> Result<(Plan, bool)> {
    let Some(installation) = Installation::load(layout)? else {
        let regions = options
            .regions
            .clone()
            .unwrap_or_else(|| REGIONS.map(str::to_owned).to_vec());
        return Ok((Plan::new(&regions, options.address_block.unwrap_or(0))?, false));
    };
    let plan = installation.plan;
    let other = |what: &str, is: &str, wanted: &str| {
        Error::usage(format!(
            "the installation in {} has {what} {is}, not {wanted}",
            layout.home().display()
        ))
        .hint("leave the option out, or make another installation with --home DIR and --address-block N")
    };
    match &options.regions {
        Some(wanted) if *wanted != plan.regions => {
            return Err(other("the regions", &plan.regions.join(","), &wanted.join(",")));
        }
        Some(_) | None => {}
    }
    match options.address_block {
        Some(wanted) if wanted != plan.address_block => Err(other(
            "the address block",
            &plan.address_block.to_string(),
            &wanted.to_string(),
        )),
        Some(_) | None => Ok((plan, true)),
    }
}

async fn prepare(app: &App, layout: &Layout, plan: &Plan, known: bool) -> Result<(Installation, Lock)> {
    files::create_dir(layout.home(), true)?;
    let lock = Lock::take(layout, &*app.clock).await?;
    let step = Step::start(app.output, &app.clock, "configuration");
    let installation = match Installation::load(layout)? {
        Some(installation) => {
            generate::complete(&installation)?;
            installation
        }
        None => generate::generate(
            layout,
            plan,
            &Source {
                rng: &*app.rng,
                now: app.clock.wall(),
            },
        )?,
    };
    let what = if known { "found in" } else { "made in" };
    step.done(&format!("{what} {}", layout.home().display()));
    Ok((installation, lock))
}

/// Makes this user's verbs go to the installation.
fn log_in(installation: &Installation) -> Result<()> {
    let mut logins = Logins::load()?;
    logins.set(Login {
        server: installation.plan.url(),
        access_key: installation.admin_key()?,
        insecure: false,
        ca: Some(installation.ca()?),
    });
    logins.save()
}

fn farewell(plan: &Plan, tenant: Option<&str>, took: &str) -> String {
    let mut text = format!(
        "\nHanse runs with {} region{} ({}) at {}; you are logged in. It took {took}.\n\n",
        plan.regions.len(),
        if plan.regions.len() == 1 { "" } else { "s" },
        plan.regions.join(", "),
        plan.url(),
    );
    let mut line = |command: &str, what: &str| text.push_str(&format!("  {command:<34} # {what}\n"));
    match tenant {
        Some(name) => line(&format!("hanse connect {name}"), "kubectl in a tenant cluster"),
        None => line(&format!("hanse create {DEMO}"), "a tenant cluster, then: hanse connect"),
    }
    line("kubectl get nodes", "after connect");
    line("hanse create team-b --region us", "another tenant cluster");
    line("hanse status", "regions, servers, agents, tenants");
    if let [first, _, ..] = &plan.regions[..] {
        line(
            &format!("hanse kill {first}"),
            "kill -9 of a region; hanse start brings it back",
        );
    }
    line("hanse down", "stop all; up goes on, --delete removes");
    text.truncate(text.trim_end().len());
    text
}

/// An installation being brought up.
pub(crate) struct Up<'a> {
    app: &'a App,
    installation: &'a Installation,
    lock: &'a Lock,
    management: Management,
}

impl<'a> Up<'a> {
    /// With the administrator's key, through the front door.
    pub(crate) fn new(app: &'a App, installation: &'a Installation, lock: &'a Lock) -> Result<Self> {
        let key = installation.admin_key()?;
        let base = BaseUrl::parse(&installation.plan.url())?;
        let http = Http::new(base, &Trust::Pinned(installation.ca()?), Some(&key), app.clock.clone())?;
        Ok(Self {
            app,
            installation,
            lock,
            management: Management::new(http),
        })
    }

    fn step(&self, name: &str) -> Step {
        Step::start(self.app.output, &self.app.clock, name)
    }

    /// Starts the servers of `regions` and the front door, and waits until each gateway is ready.
    pub(crate) async fn servers(&self, regions: &[Region]) -> Result<()> {
        let mut step = self.step("servers");
        let layout = &self.installation.layout;
        let services: Vec<Service> = regions
            .iter()
            .map(|region| Service::in_region(layout, &region.name, Role::Server))
            .collect();
        let mut started = start_all(self.app, self.lock, &services).await?;
        let fresh = started.len();
        started.extend(start_all(self.app, self.lock, &[Service::front_door(layout)]).await?);
        let ca = Trust::Pinned(self.installation.ca()?);
        let mut waiting = Vec::new();
        for (region, service) in regions.iter().zip(&services) {
            let http = Http::new(BaseUrl::parse(&region.url())?, &ca, None, self.app.clock.clone())?;
            waiting.push((region.name.clone(), http, service.log.clone()));
        }
        let clock = &self.app.clock;
        let end = clock.mono() + SERVERS_LIMIT;
        loop {
            let mut left = Vec::new();
            let mut why = String::new();
            for (name, http, log) in waiting {
                // Without the agents: those that it waits for may be the next to start.
                if let Err(reason) = ready(&http, "/readyz?exclude=agents").await {
                    why = reason;
                    left.push((name, http, log));
                }
            }
            if left.is_empty() {
                break;
            }
            waiting = left;
            let mut ended = 0;
            for one in &mut started {
                let Err(error) = one.check() else { continue };
                ended += 1;
                let undecided = !one.region().is_empty() && ended < regions.len() && clock.mono() < end;
                match self.has_left(one.region()).await {
                    Some(true) => waiting.retain(|(name, ..)| name != one.region()),
                    // One that was removed may end before the others have elected a leader and can say so.
                    None if undecided => {}
                    Some(false) | None => return Err(error),
                }
            }
            let names: Vec<&str> = waiting.iter().map(|(name, ..)| name.as_str()).collect();
            if clock.mono() >= end {
                let message = format!(
                    "servers not ready after {}: {} ({why})",
                    seconds(SERVERS_LIMIT),
                    names.join(", ")
                );
                let log = waiting
                    .first()
                    .map(|(.., log)| log.display().to_string())
                    .unwrap_or_default();
                return Err(Error::new(Kind::TimedOut, message).hint(format!("the log of the first: {log}")));
            }
            step.say(&format!("waiting for {}", names.join(", ")));
            clock.sleep(POLL).await;
        }
        step.done(&counted(regions.len(), fresh));
        Ok(())
    }

    /// Enters the clusters of `regions`, starts their agents, and waits until they are connected.
    pub(crate) async fn agents(&self, regions: &[Region]) -> Result<()> {
        let mut step = self.step("agents");
        self.admin_works().await?;
        let layout = &self.installation.layout;
        let services: Vec<Service> = regions
            .iter()
            .map(|region| Service::in_region(layout, &region.name, Role::Agent))
            .collect();
        for (region, service) in regions.iter().zip(&services) {
            if service.running().is_none() {
                self.cluster(region).await?;
                self.enrolment(region).await?;
            }
        }
        let mut started = start_all(self.app, self.lock, &services).await?;
        let fresh = started.len();
        let clock = &self.app.clock;
        let end = clock.mono() + AGENTS_LIMIT;
        loop {
            let clusters: Vec<Value> = self.management.list(&CLUSTERS, None).await?;
            let online = |region: &&Region| {
                // What the control plane saw may be from before; an agent that is to enrol is not connected yet.
                let enrolled = agent_cert(layout, &region.name).is_file();
                let own = clusters.iter().find(|c| tenant::name(c) == region.name);
                enrolled && own.and_then(|c| c.pointer("/status/online")).and_then(Value::as_bool) == Some(true)
            };
            let waiting: Vec<&str> = regions.iter().filter(|r| !online(r)).map(|r| r.name.as_str()).collect();
            if waiting.is_empty() {
                break;
            }
            started.iter_mut().try_for_each(Started::check)?;
            if clock.mono() >= end {
                let message = format!(
                    "agents not connected after {}: {}",
                    seconds(AGENTS_LIMIT),
                    waiting.join(", ")
                );
                let log = layout.region(waiting.first().unwrap_or(&""), "log/agent.log");
                return Err(
                    Error::new(Kind::TimedOut, message).hint(format!("the log of the first: {}", log.display()))
                );
            }
            step.say(&format!("waiting for {}", waiting.join(", ")));
            clock.sleep(POLL).await;
        }
        for region in regions {
            // It was good for one enrolment, which is done.
            files::remove(&generate::enrolment_token(layout, &region.name))?;
        }
        self.reached(regions, &mut step).await?;
        step.done(&counted(regions.len(), fresh));
        Ok(())
    }

    /// Waits until the servers of `regions` reach the agents that others hold: whoever is told that a region is back may go
    /// to it at once. A server gives that up by itself after a while, for agents that cannot reach it.
    async fn reached(&self, regions: &[Region], step: &mut Step) -> Result<()> {
        let ca = Trust::Pinned(self.installation.ca()?);
        let clock = &self.app.clock;
        let end = clock.mono() + REACHED_LIMIT;
        for region in regions {
            let http = Http::new(BaseUrl::parse(&region.url())?, &ca, None, clock.clone())?;
            let server = Service::in_region(&self.installation.layout, &region.name, Role::Server);
            while let Err(why) = ready(&http, "/readyz").await {
                if server.running().is_none() && self.has_left(&region.name).await == Some(true) {
                    let text = "has no server of its own any more: it was removed from the system";
                    self.app.output.note(&format!("region {} {text}", region.name));
                    break;
                }
                if clock.mono() >= end {
                    let limit = seconds(REACHED_LIMIT);
                    let message = format!("the server of {} is not ready after {limit}: {why}", region.name);
                    let log = self.installation.layout.region(&region.name, "log/server.log");
                    return Err(Error::new(Kind::TimedOut, message).hint(format!("its log: {}", log.display())));
                }
                step.say(&format!("waiting until {} reaches all of them", region.name));
                clock.sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Whether the system has no server of this region any more, by what the others say; nothing while they say nothing. Such a
    /// server stops by itself.
    async fn has_left(&self, region: &str) -> Option<bool> {
        let servers: Vec<Value> = self.management.list(&SERVERS, None).await.ok()?;
        let mut regions = servers.iter().map(|server| tenant::text(server, "/spec/region"));
        (!servers.is_empty()).then(|| !region.is_empty() && !regions.any(|one| one == region))
    }

    /// Waits until the administrator's key is known: it is entered after the first election.
    async fn admin_works(&self) -> Result<()> {
        let clock = &self.app.clock;
        let end = clock.mono() + ADMIN_LIMIT;
        loop {
            match self.management.list::<Value>(&PROJECTS, None).await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == Kind::Denied && clock.mono() < end => clock.sleep(POLL).await,
                Err(error) => return Err(error),
            }
        }
    }

    async fn ensure(&self, kind: &KindName, name: &str, object: &Value) -> Result<()> {
        if self.management.get::<Value>(kind, None, name).await?.is_some() {
            return Ok(());
        }
        let created = self.management.create::<Value>(kind, None, object).await;
        match created {
            // Made meanwhile, such as by the first try of a repeated request? A conflict may have other reasons too.
            Err(error) if error.kind() == Kind::Conflict => {
                let found: Option<Value> = self.management.get(kind, None, name).await?;
                found.map(|_| ()).ok_or(error)
            }
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }

    async fn cluster(&self, region: &Region) -> Result<()> {
        let object = json!({
            "apiVersion": CLUSTERS.api_version(),
            "kind": CLUSTERS.kind,
            "metadata": { "name": region.name, "annotations": { ANNOTATION_REGION: region.name } },
            "spec": { "networkPeer": true },
        });
        self.ensure(&CLUSTERS, &region.name, &object).await
    }

    /// Fetches a one-time token for an agent that has no certificate yet.
    async fn enrolment(&self, region: &Region) -> Result<()> {
        let layout = &self.installation.layout;
        if agent_cert(layout, &region.name).is_file() {
            return Ok(());
        }
        let path = format!("{}/enrolmenttoken", path(&CLUSTERS, None, Some(&region.name)));
        let reply = self.management.post(path, &json!({})).await?;
        let answer: Value = self.management.parse(&reply)?;
        let token = find_token(&answer).ok_or_else(|| {
            Error::failed(format!(
                "the server gave no enrolment token for cluster {}",
                region.name
            ))
            .hint("compare the versions with `hanse version`")
        })?;
        files::write(
            &generate::enrolment_token(layout, &region.name),
            token.as_bytes(),
            files::PRIVATE,
        )
    }

    /// Makes the first tenant when there is none, else waits until those that there are answer again. Gives one to use.
    pub(crate) async fn tenants(&self, wanted: bool) -> Result<Option<String>> {
        let all: Vec<Value> = self.management.list(&VIRTUAL_CLUSTER_INSTANCES, None).await?;
        if all.is_empty() && wanted {
            self.project().await?;
            let demo = Wanted {
                name: DEMO.to_owned(),
                project: PROJECT.to_owned(),
                ..Wanted::default()
            };
            submit(&self.management, &demo).await?;
            let mut step = self.step(&format!("tenant {DEMO}"));
            tenant::wait_ready(&self.management, PROJECT, DEMO, &mut step, TENANT_LIMIT).await?;
            step.done("its API answers");
            return Ok(Some(DEMO.to_owned()));
        }
        let known = self.revived(&all).await;
        let usable = |name: &&String| *name == DEMO;
        let here: Vec<&String> = known
            .iter()
            .filter(|(p, _)| p == PROJECT)
            .map(|(_, name)| name)
            .collect();
        Ok(here.iter().copied().find(usable).or(here.first().copied()).cloned())
    }

    /// Waits until the tenants that the clusters of `regions` host answer again.
    pub(crate) async fn tenants_of(&self, regions: &[Region]) -> Result<()> {
        let mut all: Vec<Value> = self.management.list(&VIRTUAL_CLUSTER_INSTANCES, None).await?;
        all.retain(|vci| {
            regions
                .iter()
                .any(|r| r.name == tenant::text(vci, "/spec/clusterRef/cluster"))
        });
        self.revived(&all).await;
        Ok(())
    }

    /// Waits for the tenants in `all` that are to run; gives those that answer. One tenant's trouble is told, and is not
    /// the installation's.
    async fn revived(&self, all: &[Value]) -> Vec<(String, String)> {
        let wanted = |vci: &&Value| !matches!(tenant::phase(vci), "Sleeping" | "Terminating" | "Failed");
        let mut well = Vec::new();
        for vci in all.iter().filter(wanted).take(TENANTS_WAITED_MAX) {
            let (project, name) = project_and_name(vci);
            let mut step = self.step(&format!("tenant {name}"));
            match tenant::wait_ready(&self.management, &project, &name, &mut step, REVIVAL_LIMIT).await {
                Ok(()) => {
                    step.done("its API answers");
                    well.push((project, name));
                }
                Err(error) => {
                    drop(step);
                    self.app.output.note(&format!("    {error}"));
                }
            }
        }
        well
    }

    async fn project(&self) -> Result<()> {
        let object = json!({
            "apiVersion": PROJECTS.api_version(),
            "kind": PROJECTS.kind,
            "metadata": { "name": PROJECT },
            "spec": { "displayName": "Default", "allowedClusters": [{ "name": "*" }] },
        });
        self.ensure(&PROJECTS, PROJECT, &object).await
    }
}

/// The certificate that the agent of `region` gets by enrolment.
fn agent_cert(layout: &Layout, region: &str) -> PathBuf {
    hanse_agent::paths::Layout::new(&layout.region(region, "agent")).cert()
}

fn project_and_name(vci: &Value) -> (String, String) {
    let namespace = tenant::text(vci, "/metadata/namespace");
    (
        project_of_namespace(namespace).unwrap_or(namespace).to_owned(),
        tenant::name(vci).to_owned(),
    )
}

/// Starts those that do not run, all at once; gives those that were started.
async fn start_all(app: &App, lock: &Lock, services: &[Service]) -> Result<Vec<Started>> {
    let started = futures::future::try_join_all(services.iter().map(|s| s.start(lock, &app.clock))).await?;
    Ok(started.into_iter().flatten().collect())
}

fn counted(all: usize, fresh: usize) -> String {
    match fresh {
        0 if all == 1 => "runs already".to_owned(),
        0 => format!("all {all} run already"),
        n if n == all => format!("{n} started"),
        n => format!("{n} started, {} ran already", all - n),
    }
}

/// Whether a gateway says at `path` that it is ready, or why not.
async fn ready(http: &Http, path: &str) -> std::result::Result<(), String> {
    /// Of the answer, as much as fits a line.
    const EXCERPT: usize = 120;
    match http.once(&Call::get(path)).await {
        Ok(reply) if reply.status.is_success() => Ok(()),
        Ok(reply) => {
            let text = String::from_utf8_lossy(&reply.body);
            Err(text.trim().chars().filter(|c| !c.is_control()).take(EXCERPT).collect())
        }
        Err(fault) if fault.stage == Stage::Refused => Err("does not listen yet".to_owned()),
        Err(fault) => Err(fault.why),
    }
}

/// The enrolment token wherever it stands in the answer; its form is unmistakable (gateway/src/authn/bearer.rs).
fn find_token(answer: &Value) -> Option<&str> {
    match answer {
        Value::String(text) => text.starts_with("het1.").then_some(text.as_str()),
        Value::Array(items) => items.iter().find_map(find_token),
        Value::Object(map) => map.values().find_map(find_token),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_keeps_its_plan() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::find(Some(dir.path())).unwrap();
        let options = |regions: &[&str], block| Options {
            regions: (!regions.is_empty()).then(|| regions.iter().map(|r| (*r).to_owned()).collect()),
            address_block: block,
            tenant: true,
        };
        let (new, known) = plan(&layout, &options(&[], None)).unwrap();
        assert_eq!(
            (new.regions.join(","), new.address_block, known),
            ("eu,us,ap".to_owned(), 0, false)
        );
        std::fs::write(
            layout.plan(),
            "format = 1\nregions = [\"a\", \"b\"]\naddress_block = 4\n",
        )
        .unwrap();
        assert!(plan(&layout, &options(&[], None)).unwrap().1);
        assert!(plan(&layout, &options(&["a", "b"], Some(4))).unwrap().1);
        let error = plan(&layout, &options(&["a"], None)).unwrap_err();
        assert!(error.to_string().contains("regions a,b, not a"), "{error}");
        assert!(
            plan(&layout, &options(&[], Some(5)))
                .unwrap_err()
                .remedy()
                .unwrap()
                .contains("--home")
        );
    }

    #[test]
    fn tokens_are_found_wherever_they_stand() {
        assert_eq!(
            find_token(&json!({"status": {"token": "het1.a.b.c"}})),
            Some("het1.a.b.c")
        );
        assert_eq!(
            find_token(&json!({"kind": "EnrolmentToken", "x": [1, null, "y"]})),
            None
        );
    }

    #[test]
    fn the_last_words_name_the_next_steps() {
        let plan = Plan::new(&["eu".into(), "us".into()], 0).unwrap();
        let text = farewell(&plan, Some("demo"), "12.3 s");
        for part in [
            "2 regions (eu, us)",
            "hanse connect demo",
            "hanse status",
            "hanse down",
            "12.3 s",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(farewell(&plan, None, "").contains("hanse create demo"));
        assert_eq!(counted(3, 0), "all 3 run already");
        assert_eq!(counted(3, 1), "1 started, 2 ran already");
    }
}
