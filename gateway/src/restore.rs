//! `POST /restore?project=P&name=N`: puts one tenant's key space back from a backup file, which is the request's body. `GET` says
//! whether the caller may, and which key space it would be. For administrators only, as a backup is.
//!
//! The file is received and read to its end before anything changes; what is wrong with it is then an ordinary refusal. From
//! there on the answer is a stream of JSON lines: how far it is, and at last what became of it. The work goes on when the
//! caller is gone.

use crate::apiserver::backend::failed;
use crate::apiserver::not_allowed;
use crate::audit::Facts;
use crate::authn::Identity;
use crate::authz::{Asker, forbidden};
use crate::backup::{Sent, as_body, tenant_store};
use crate::body::{Body, Response};
use crate::parts::{PutBack, Said};
use crate::query::Query;
use crate::rights::{OwnedTarget, Right};
use crate::{Inner, answer};
use bytes::Bytes;
use futures::StreamExt as _;
use hanse_api::access::{Principal, Target};
use hanse_api::kinds::VIRTUAL_CLUSTER_INSTANCES;
use hanse_api::name::{check_label, project_namespace};
use hanse_api::status::{Reason, Status};
use hanse_runtime::BoxError;
use hanse_runtime::clock::timeout;
use hanse_runtime::supervisor::{TaskKind, chain};
use hanse_state::backup::{BackupError, Replaced};
use hanse_state::objects::{ObjectError, ObjectKey};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const PATH: &str = "/restore";
/// Lines that wait for the caller; words about the progress are left out beyond that.
const LINES: usize = 16;
/// How long the last line waits for a caller who takes nothing.
const STALL: Duration = Duration::from_secs(60);

/// Answers a request for a restore.
pub(crate) async fn serve(
    inner: Arc<Inner>,
    request: Request<Body>,
    identity: Identity,
    principal: Principal,
    facts: Arc<Facts>,
) -> Result<Response, Box<Status>> {
    let asker = Asker {
        backend: &inner.backend,
        principal: &principal,
    };
    if !asker.is_admin() {
        return Err(forbidden(&principal, "create", &Target::Path(PATH)));
    }
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let query = query.map_err(|fault| Box::new(Status::new(Reason::BadRequest, fault)))?;
    let (project, name) = match (query.text("project"), query.text("name")) {
        (Some(project), Some(name)) if check_label(project).is_ok() && check_label(name).is_ok() => (project, name),
        _ => {
            let message = "project and name must both be given, as names";
            return Err(Box::new(Status::new(Reason::BadRequest, message)));
        }
    };
    let tenant = tenant_store(&inner, project, name).await?;
    match *request.method() {
        Method::GET => return Ok(answer::json(StatusCode::OK, &json!({ "tenant": tenant }))),
        Method::POST => {}
        _ => return Err(not_allowed()),
    }
    let place = inner.place()?;
    let file = request.into_body().into_data_stream().boxed();
    let ready = inner.parts.backups.receive(&tenant, file).await.map_err(unfit)?;
    let work = Work {
        inner: Arc::clone(&inner),
        facts,
        object: ObjectKey::new(&VIRTUAL_CLUSTER_INSTANCES, project_namespace(project), name),
        target: format!("tenant/{project}/{name}"),
    };
    work.record(None).await?;
    tracing::info!(
        user = principal.user,
        project,
        name,
        tenant,
        "a tenant's key space is restored"
    );
    let (lines, mut said) = mpsc::channel(LINES);
    let task = async move {
        work.run(ready, lines).await;
        Ok(())
    };
    inner.parts.supervisor.spawn(TaskKind::Request, "a restore", task);
    let right = Right {
        impersonated: (principal != identity.principal).then(|| principal.clone()),
        identity,
        verbs: vec!["create".to_owned()],
        target: OwnedTarget::Path(PATH),
        partial: false,
    };
    let mut response = answer::with_type(StatusCode::OK, "application/x-ndjson", String::new());
    let stream = futures::stream::poll_fn(move |cx| said.poll_recv(cx)).boxed();
    *response.body_mut() = as_body(inner, Sent { stream, right, place });
    Ok(response)
}

fn unfit(error: BackupError) -> Box<Status> {
    match error {
        BackupError::Store(error) => failed(&ObjectError::Store(error)),
        BackupError::Io(error) => {
            tracing::error!(%error, "a backup that is to be restored could not be kept");
            let message = format!("the file could not be received: {error}");
            Box::new(Status::new(Reason::InternalError, message))
        }
        other => Box::new(Status::new(Reason::BadRequest, chain(&other))),
    }
}

fn line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}

type Lines = mpsc::Sender<Result<Bytes, BoxError>>;

/// A restore that goes on whether or not its caller waits.
struct Work {
    inner: Arc<Inner>,
    facts: Arc<Facts>,
    object: ObjectKey,
    target: String,
}

impl Work {
    /// Brings into the trail that it begins, or how it ended.
    async fn record(&self, code: Option<u16>) -> Result<(), Box<Status>> {
        let now = self.inner.parts.clock.wall();
        let event = self.facts.restored(&self.target, &self.object, code, now);
        self.inner.recorder.record(event).await
    }

    async fn run(self, ready: Box<dyn PutBack>, lines: Lines) {
        let progress = lines.clone();
        let said: Said = Box::new(move |bytes| {
            // A caller who does not keep up needs no old news.
            progress.try_send(Ok(line(&json!({ "bytes": bytes })))).ok();
        });
        let outcome = ready.run(said).await;
        let (code, last) = match &outcome {
            Ok(replaced) => {
                tracing::info!(
                    target = self.target,
                    revision = replaced.revision,
                    "a tenant's key space was restored"
                );
                (200, json!({ "restored": shown(replaced) }))
            }
            Err(error) => {
                tracing::error!(
                    target = self.target,
                    error = chain(error),
                    "a tenant's key space could not be restored"
                );
                (500, json!({ "failed": chain(error) }))
            }
        };
        if let Err(status) = self.record(Some(code)).await {
            tracing::error!(
                target = self.target,
                code,
                error = status.message,
                "the end of a restore is not in the audit trail"
            );
        }
        // Whoever is gone wants to hear nothing.
        let clock = self.inner.parts.clock.as_ref();
        timeout(clock, STALL, lines.send(Ok(line(&last)))).await.ok();
    }
}

fn shown(replaced: &Replaced) -> Value {
    json!({
        "keys": replaced.keys,
        "leases": replaced.leases,
        "bytes": replaced.bytes,
        "backupHash": format!("{:016x}", replaced.backup_hash),
        "hash": format!("{:016x}", replaced.hash),
        "revision": replaced.revision,
    })
}
