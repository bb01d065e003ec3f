//! Brings one tenant in line with the intent: looks, plans, acts, waits for a change. One task per tenant.

use super::health::{Health, Probe};
use super::render::{Rendered, TenantPorts, check_tenant, render};
use super::{Host, issue, nodes};
use crate::api_proxy::ApiTarget;
use crate::error::AgentError;
use crate::files;
use crate::paths::TenantDir;
use crate::plan::{Observed, Part, PartState, Step, plan};
use crate::process::{self, Process, ProcessError, Record};
use crate::store_socket::StoreSocket;
use futures::future::OptionFuture;
use hanse_api::intent::{TenantIntent, TenantReport, TenantState};
use hanse_runtime::backoff::Backoff;
use hanse_runtime::pki::sha256_hex;
use hanse_runtime::supervisor::{TaskKind, chain};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long a process may take to end before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(15);
/// Wait before an ended process is started again.
const RESTART_MIN: Duration = Duration::from_millis(250);
const RESTART_MAX: Duration = Duration::from_secs(30);
/// A process that ran this long starts over with short waits.
const STABLE: Duration = Duration::from_secs(60);
/// Ends in a row after which an API server that never got ready counts as failed.
const HOPELESS: u32 = 5;
/// How long a starting tenant keeps others from starting.
const BRING_UP: Duration = Duration::from_secs(60);
/// When a tenant that waits for its turn asks again.
const TURN: Duration = Duration::from_millis(200);
/// Wait after a step that failed.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How often files and certificates are looked at, when nothing else happens.
const CHECK_FILES: Duration = Duration::from_secs(12 * 3600);
/// Longest part of a log that is quoted in a report.
const QUOTE_MAX: usize = 200;
/// Ends of processes that wait to be noticed.
const EVENTS: usize = 16;

struct Ended {
    part: Part,
    mark: String,
    how: String,
}

struct Running {
    record: Record,
    since: Duration,
}

struct Probing {
    key: String,
    health: watch::Receiver<Health>,
    nodes: watch::Sender<nodes::Wanted>,
    _stop: DropGuard,
}

/// Brings one tenant in line.
pub struct Worker {
    host: Arc<Host>,
    tenant: String,
    dir: TenantDir,
    desired: watch::Receiver<Option<TenantIntent>>,
    ended: mpsc::Receiver<Ended>,
    tell_ended: mpsc::Sender<Ended>,
    observed: Observed,
    running: BTreeMap<Part, Running>,
    backoffs: BTreeMap<Part, Backoff>,
    faults: BTreeMap<Part, String>,
    socket: Option<StoreSocket>,
    probing: Option<Probing>,
    turn: Option<(OwnedSemaphorePermit, Duration)>,
    files_at: Duration,
    retry: Backoff,
    fault: Option<(String, bool)>,
    was_ready: bool,
    /// The API server that runs has judged requests before, or was started by an earlier agent.
    api_known: bool,
    restarts: u32,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("tenant", &self.tenant)
            .field("observed", &self.observed)
            .finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker of `tenant`, which follows `desired`; nothing there means that the tenant should go.
    pub fn new(
        host: Arc<Host>,
        tenant: &str,
        desired: watch::Receiver<Option<TenantIntent>>,
    ) -> Result<Self, AgentError> {
        check_tenant(tenant)?;
        let (tell_ended, ended) = mpsc::channel(EVENTS);
        Ok(Self {
            dir: host.facts.layout.tenant(tenant),
            tenant: tenant.to_owned(),
            host,
            desired,
            ended,
            tell_ended,
            observed: Observed::default(),
            running: BTreeMap::new(),
            backoffs: BTreeMap::new(),
            faults: BTreeMap::new(),
            socket: None,
            probing: None,
            turn: None,
            files_at: Duration::ZERO,
            retry: Backoff::new(RETRY_MIN, RETRY_MAX),
            fault: None,
            was_ready: false,
            api_known: false,
            restarts: 0,
        })
    }

    /// Works until the tenant is gone or the agent ends. Processes are left running in the latter case.
    pub async fn run(mut self) {
        let shutdown = self.host.supervisor.shutdown_token();
        let mut adopted = false;
        loop {
            let desired = self.desired.borrow_and_update().clone();
            // Nothing is started before it is certain what runs already.
            if !adopted {
                let outcome = self.adopt();
                adopted = outcome.is_ok();
                if let Err(error) = outcome {
                    self.note(&error);
                }
            }
            let outcome = if adopted {
                self.round(desired.as_ref()).await
            } else {
                Ok(self.later())
            };
            let wake = outcome.unwrap_or_else(|error| {
                self.note(&error);
                self.later()
            });
            if desired.is_none() && adopted && self.observed.removed && self.running.is_empty() {
                self.host.board.remove(&self.tenant);
                return;
            }
            self.report(desired.as_ref());
            if !self.wait(wake, &shutdown).await {
                return;
            }
        }
    }

    /// Plans and acts until there is nothing left to do now. Answers when something is due.
    async fn round(&mut self, desired: Option<&TenantIntent>) -> Result<Option<Duration>, AgentError> {
        loop {
            let rendered = desired.map(|intent| self.render(intent)).transpose()?;
            self.observed.serving = self.health().serving;
            self.api_known |= self.observed.serving;
            self.end_turn();
            if self.host.clock.mono().saturating_sub(self.files_at) > CHECK_FILES {
                // Old certificates are issued anew, files that someone changed are put right.
                self.observed.files = None;
            }
            let plan = plan(
                rendered.as_ref().map(|r| &r.wanted),
                &self.observed,
                self.host.clock.mono(),
            );
            if plan.steps.is_empty() {
                if let (Some(intent), Some(rendered)) = (desired, &rendered) {
                    self.probe(intent, rendered)?;
                }
                self.fault = None;
                self.retry.reset();
                return Ok(plan.wake);
            }
            for step in plan.steps {
                tracing::debug!(tenant = self.tenant, ?step, "next step");
                self.act(step, desired, rendered.as_ref()).await?;
            }
        }
    }

    fn note(&mut self, error: &AgentError) {
        let text = chain(error);
        if self.fault.as_ref().is_none_or(|(known, _)| *known != text) {
            tracing::warn!(tenant = self.tenant, error = text, "a tenant cannot be brought in line");
        }
        self.fault = Some((text, error.retryable()));
    }

    fn later(&mut self) -> Option<Duration> {
        Some(self.host.clock.mono() + self.retry.next(&*self.host.rng))
    }

    fn health(&self) -> Health {
        self.probing
            .as_ref()
            .map(|probing| probing.health.borrow().clone())
            .unwrap_or_default()
    }

    fn ports(&self) -> Result<TenantPorts, AgentError> {
        let get = |usage| self.host.ports.get(&self.tenant, usage);
        Ok(TenantPorts {
            api: get(Part::ApiServer.name())?,
            kubelet: get(Part::Kwok.name())?,
        })
    }

    fn render(&self, intent: &TenantIntent) -> Result<Rendered, AgentError> {
        render(intent, &self.host.facts, self.ports()?)
    }

    fn process_fault(&self) -> impl Fn(ProcessError) -> AgentError + use<> {
        let tenant = self.tenant.clone();
        move |source| AgentError::Process {
            tenant: tenant.clone(),
            source,
        }
    }

    /// Takes over what an earlier agent left running.
    fn adopt(&mut self) -> Result<(), AgentError> {
        let fault = self.process_fault();
        self.observed.removed = !self.dir.root().exists();
        for record in process::load_alive(&self.dir.run()).map_err(&fault)? {
            let Some(part) = Part::by_name(&record.name) else {
                continue;
            };
            if let Some(process) = process::adopt(record).map_err(&fault)? {
                tracing::info!(
                    tenant = self.tenant,
                    part = part.name(),
                    pid = process.record().pid,
                    "adopted"
                );
                self.api_known |= part == Part::ApiServer;
                self.watch(part, process);
            }
        }
        Ok(())
    }

    /// Notes a process as running and waits for its end beside.
    fn watch(&mut self, part: Part, mut process: Process) {
        let record = process.record().clone();
        let mark = record.mark.clone();
        self.observed
            .parts
            .insert(part, PartState::Running(record.spec.clone()));
        self.running.insert(
            part,
            Running {
                record,
                since: self.host.clock.mono(),
            },
        );
        let tell = self.tell_ended.clone();
        let shutdown = self
            .host
            .supervisor
            .shutdown_token()
            .phase(TaskKind::BestEffort.phase());
        let name = format!("{} of {}", part.name(), self.tenant);
        self.host.supervisor.spawn(TaskKind::BestEffort, name, async move {
            let how = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                exit = process.wait() => exit.map_or_else(|error| chain(&error), |exit| exit.to_string()),
            };
            // The worker is gone only when the tenant is.
            let _gone = tell.send(Ended { part, mark, how }).await.is_err();
            Ok(())
        });
    }

    async fn act(
        &mut self,
        step: Step,
        desired: Option<&TenantIntent>,
        rendered: Option<&Rendered>,
    ) -> Result<(), AgentError> {
        match (step, desired, rendered) {
            (Step::WriteFiles, Some(intent), Some(rendered)) => self.write_files(intent, rendered).await,
            (Step::OpenSocket(epoch), _, _) => self.open_socket(epoch),
            (Step::Start(part), _, Some(rendered)) => self.start(part, rendered),
            (Step::Stop(parts), _, _) => {
                self.report(desired);
                self.stop(&parts).await
            }
            (Step::CloseSocket, _, _) => {
                self.socket = None;
                self.observed.socket = None;
                Ok(())
            }
            (Step::Remove, _, _) => self.remove(),
            // Files are written and processes started only for a tenant that is wanted.
            (Step::WriteFiles | Step::Start(_), _, _) => Ok(()),
        }
    }

    async fn write_files(&mut self, intent: &TenantIntent, rendered: &Rendered) -> Result<(), AgentError> {
        let (tenant, dir, files) = (self.tenant.clone(), self.dir.clone(), rendered.files.clone());
        let (pki, address) = (intent.pki.clone().unwrap_or_default(), self.host.facts.address);
        let now = self.host.clock.wall();
        // Many small synced writes: not on a thread that serves others.
        let written = tokio::task::spawn_blocking(move || {
            dir.all().iter().try_for_each(|dir| files::private_dir(dir))?;
            for (path, content) in &files {
                files::write_if_changed(path, content.as_bytes())?;
            }
            issue::ensure(&tenant, &dir, &pki, address, now)
        });
        written.await.unwrap_or_else(|error| {
            Err(AgentError::Malformed {
                what: "files",
                fault: error.to_string(),
            })
        })?;
        self.observed.files = Some(rendered.wanted.files.clone());
        self.files_at = self.host.clock.mono();
        self.observed.removed = false;
        Ok(())
    }

    fn open_socket(&mut self, epoch: u64) -> Result<(), AgentError> {
        match &self.socket {
            Some(socket) => socket.set_epoch(epoch),
            None => {
                let path = self.host.facts.layout.socket(&self.tenant);
                let uplink = self.host.uplink.clone();
                self.socket = Some(StoreSocket::open(
                    path,
                    &self.tenant,
                    epoch,
                    uplink,
                    &self.host.supervisor,
                )?);
            }
        }
        self.observed.socket = Some(epoch);
        Ok(())
    }

    fn start(&mut self, part: Part, rendered: &Rendered) -> Result<(), AgentError> {
        let Some(spec) = rendered.specs.get(&part) else {
            return Ok(());
        };
        if spec.ports.iter().any(|port| !self.host.ports.is_free(*port)) {
            let port = self.host.ports.replace(&self.tenant, part.name())?;
            tracing::warn!(
                tenant = self.tenant,
                part = part.name(),
                port,
                "its port is in use; it gets another"
            );
            return Ok(());
        }
        if part == Part::ApiServer && !self.take_turn() {
            let again = self.host.clock.mono() + TURN;
            self.observed.parts.insert(part, PartState::Backoff(again));
            return Ok(());
        }
        let mark = self.host.rng.uuid();
        match process::spawn(spec, mark, &self.dir.run(), &self.dir.log()) {
            Ok(process) => {
                tracing::info!(
                    tenant = self.tenant,
                    part = part.name(),
                    pid = process.record().pid,
                    "started"
                );
                self.api_known &= part != Part::ApiServer;
                self.watch(part, process);
                Ok(())
            }
            Err(error) => {
                self.back_off(part);
                Err(self.process_fault()(error))
            }
        }
    }

    fn take_turn(&mut self) -> bool {
        if self.turn.is_none() {
            let permit = self.host.bring_up.clone().try_acquire_owned().ok();
            self.turn = permit.map(|permit| (permit, self.host.clock.mono() + BRING_UP));
        }
        self.turn.is_some()
    }

    fn end_turn(&mut self) {
        let up = self.health().ready;
        if self
            .turn
            .as_ref()
            .is_some_and(|(_, until)| up || self.host.clock.mono() > *until)
        {
            self.turn = None;
        }
    }

    fn back_off(&mut self, part: Part) {
        let backoff = self
            .backoffs
            .entry(part)
            .or_insert(Backoff::new(RESTART_MIN, RESTART_MAX));
        let until = self.host.clock.mono() + backoff.next(&*self.host.rng);
        self.observed.parts.insert(part, PartState::Backoff(until));
    }

    async fn stop(&mut self, parts: &[Part]) -> Result<(), AgentError> {
        if parts.contains(&Part::ApiServer) {
            self.host.targets.remove(&self.tenant);
            self.probing = None;
            self.was_ready = false;
        }
        let records = parts
            .iter()
            .filter_map(|part| self.running.get(part))
            .map(|running| running.record.clone());
        let records: Vec<Record> = records.collect();
        let stopped = process::stop_records(&self.dir.run(), records, STOP_GRACE, &*self.host.clock).await;
        stopped.map_err(self.process_fault())?;
        for part in parts {
            tracing::info!(tenant = self.tenant, part = part.name(), "stopped");
            self.running.remove(part);
            self.observed.parts.remove(part);
            self.backoffs.remove(part);
            self.faults.remove(part);
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<(), AgentError> {
        files::remove_dir(self.dir.root())?;
        self.host.ports.release(&self.tenant)?;
        self.observed.files = None;
        self.observed.removed = true;
        Ok(())
    }

    /// Watches the API server and lets requests through to it.
    fn probe(&mut self, intent: &TenantIntent, rendered: &Rendered) -> Result<(), AgentError> {
        let Some(spec) = rendered
            .specs
            .get(&Part::ApiServer)
            .filter(|_| self.running.contains_key(&Part::ApiServer))
        else {
            return Ok(());
        };
        let Some(pki) = &intent.pki else { return Ok(()) };
        let wanted = nodes::Wanted {
            count: intent.simulated_nodes,
            gpus: intent.simulated_gpus,
        };
        let key = sha256_hex(format!("{} {} {}", spec.digest(), pki.admin.cert, pki.admin.key).as_bytes());
        if let Some(probing) = self.probing.as_ref().filter(|probing| probing.key == key) {
            probing
                .nodes
                .send_if_modified(|nodes| std::mem::replace(nodes, wanted.clone()) != wanted);
            return Ok(());
        }
        let port = spec.ports.first().copied().unwrap_or_default();
        let address = SocketAddr::new(self.host.facts.address, port);
        let host = &self.host;
        let target = host.targets.set(ApiTarget::new(
            &self.tenant,
            address,
            pki,
            host.clock.clone(),
            host.supervisor.clone(),
        )?);
        let (nodes, nodes_seen) = watch::channel(wanted);
        let (tell, health) = watch::channel(Health::default());
        let probe = Probe {
            target,
            known: self.api_known,
            pki: pki.clone(),
            clock: host.clock.clone(),
            nodes: nodes_seen,
        };
        let stop = CancellationToken::new();
        let (stopped, shutdown) = (stop.clone(), host.supervisor.shutdown_token());
        host.supervisor
            .spawn(TaskKind::BestEffort, format!("probe of {}", self.tenant), async move {
                tokio::select! {
                    () = stopped.cancelled() => Ok(()),
                    () = shutdown.cancelled() => Ok(()),
                    ended = probe.run(tell) => Ok(ended?),
                }
            });
        self.probing = Some(Probing {
            key,
            health,
            nodes,
            _stop: stop.drop_guard(),
        });
        Ok(())
    }

    /// Waits for a reason to look again; false when the agent ends.
    async fn wait(&mut self, wake: Option<Duration>, shutdown: &hanse_runtime::shutdown::Shutdown) -> bool {
        let now = self.host.clock.mono();
        // A turn to start has to end some time, also when nothing else happens.
        let turn = self.turn.as_ref().map(|(_, until)| *until + TURN);
        let wake = [wake, turn]
            .into_iter()
            .flatten()
            .min()
            .map(|at| self.host.clock.sleep(at.saturating_sub(now)));
        let health = self.probing.as_mut().map(|probing| &mut probing.health);
        let ended = tokio::select! {
            () = shutdown.cancelled() => return false,
            changed = self.desired.changed() => {
                // The executor lives as long as the agent.
                return changed.is_ok();
            }
            ended = self.ended.recv() => ended,
            Some(Ok(())) = OptionFuture::from(health.map(watch::Receiver::changed)) => None,
            Some(()) = OptionFuture::from(wake) => None,
        };
        if let Some(ended) = ended {
            self.has_ended(&ended).await;
        }
        true
    }

    async fn has_ended(&mut self, ended: &Ended) {
        // A process that was stopped on purpose is no longer in the table.
        let Some(running) = self
            .running
            .get(&ended.part)
            .filter(|running| running.record.mark == ended.mark)
        else {
            return;
        };
        let (record, ran) = (
            running.record.clone(),
            self.host.clock.mono().saturating_sub(running.since),
        );
        self.running.remove(&ended.part);
        if ended.part == Part::ApiServer {
            // The next one has a target of its own, which opens when it can judge requests.
            self.host.targets.remove(&self.tenant);
            self.probing = None;
            self.turn = None;
        }
        self.restarts += 1;
        if ran > STABLE
            && let Some(backoff) = self.backoffs.get_mut(&ended.part)
        {
            backoff.reset();
        }
        let last = last_line(&self.dir.log().join(format!("{}.log", ended.part.name())));
        let fault = format!("{} {} after {} s{last}", ended.part.name(), ended.how, ran.as_secs());
        tracing::warn!(
            tenant = self.tenant,
            part = ended.part.name(),
            fault,
            "a process ended and is started again"
        );
        self.faults.insert(ended.part, fault);
        self.back_off(ended.part);
        // Children that it left behind.
        let cleaned = process::stop(&record, Duration::ZERO, &*self.host.clock).await;
        if let Err(error) = cleaned.and_then(|()| record.forget(&self.dir.run())) {
            tracing::warn!(
                tenant = self.tenant,
                error = chain(&error),
                "what a process left behind was not cleaned up"
            );
        }
    }

    fn report(&mut self, desired: Option<&TenantIntent>) {
        let health = self.health();
        if health.ready {
            self.was_ready = true;
            self.faults
                .retain(|part, _| !matches!(self.observed.parts.get(part), Some(PartState::Running(_))));
        }
        let (state, message) = self.state(desired, &health);
        self.host.board.set(TenantReport {
            tenant: self.tenant.clone(),
            epoch: self.observed.socket.unwrap_or_default(),
            state,
            message,
            kubernetes_version: health.version,
            restarts: self.restarts,
        });
    }

    fn state(&self, desired: Option<&TenantIntent>, health: &Health) -> (TenantState, String) {
        if desired.is_none() {
            return (TenantState::Stopping, "its processes are being stopped".into());
        }
        let ended = self.faults.values().next().cloned().unwrap_or_default();
        if let Some((fault, retryable)) = &self.fault {
            let state = match (self.running.contains_key(&Part::ApiServer), retryable) {
                (true, _) if health.ready => TenantState::Ready,
                (true, _) => TenantState::Unhealthy,
                (false, true) => TenantState::Starting,
                (false, false) => TenantState::Failed,
            };
            return (state, fault.clone());
        }
        if self.socket.as_ref().is_some_and(StoreSocket::fenced) {
            return (
                TenantState::Unhealthy,
                "another host has taken this tenant over; its store refuses this one".into(),
            );
        }
        if health.ready {
            return (TenantState::Ready, ended);
        }
        let tries = self.backoffs.get(&Part::ApiServer).map_or(0, Backoff::tries);
        if self.was_ready {
            let message = if ended.is_empty() {
                health.message.clone()
            } else {
                ended
            };
            return (TenantState::Unhealthy, message);
        }
        if tries >= HOPELESS && !self.running.contains_key(&Part::ApiServer) {
            return (TenantState::Failed, ended);
        }
        let waits = self.turn.is_none() && !self.running.contains_key(&Part::ApiServer) && ended.is_empty();
        let message = match (ended.is_empty(), waits, health.message.is_empty()) {
            (false, _, _) => ended,
            (true, true, _) => "waits until other tenants of this host are up".into(),
            (true, false, true) => "its API server is being started".into(),
            (true, false, false) => health.message.clone(),
        };
        (TenantState::Starting, message)
    }
}

/// The last line of a log, to be quoted, if it tells of a failure.
fn last_line(path: &std::path::Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let tail = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let from = file.metadata()?.len().saturating_sub(4096);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(4096).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = tail().unwrap_or_default();
    let fatal = |line: &&str| {
        // Errors of klog begin with `E` or `F` and the date.
        let klog = line.starts_with(['E', 'F']) && line.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        klog || ["Error", "error", "panic", "fatal"]
            .iter()
            .any(|word| line.starts_with(word))
    };
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).filter(fatal);
    line.map(|line| format!(": {}", line.chars().take(QUOTE_MAX).collect::<String>()))
        .unwrap_or_default()
}
