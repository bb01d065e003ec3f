//! Delete. An object with finalizers is marked and stays until they are gone.

use super::backend::{Backend, failed};
use super::list::{Scope, collect, read};
use super::options::{ListOptions, resource_version};
use super::{Call, conflict, object};
use crate::answer;
use crate::body::Response;
use crate::proxy::path::RequestInfo;
use hanse_api::status::{Reason, Status};
use hanse_state::objects::{ObjectError, ObjectKey, Op, Stored};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

/// Tries while others change the object or what it depends on.
const TRIES: usize = 10;

/// `DeleteOptions`, as far as they are acted on.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Options {
    preconditions: Option<Preconditions>,
    dry_run: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

/// `DELETE` of one object.
pub(crate) async fn delete(backend: &Backend, call: &Call<'_>, body: &[u8]) -> Result<Response, Box<Status>> {
    let options = options(call, body)?;
    let (current, marked) = remove(backend, call, &options).await?;
    answer(backend, call, &current, marked)
}

/// `DELETE` of a collection: of what the selectors choose, one after the other. The first that cannot go ends it.
pub(crate) async fn collection(backend: &Backend, call: &Call<'_>, body: &[u8]) -> Result<Response, Box<Status>> {
    let options = options(call, body)?;
    let shaper = call.shaper()?;
    let wanted = ListOptions::read(call.query, false)?;
    let scope = Scope {
        namespace: call.namespace_filter(),
        own_only: false,
    };
    let listed = collect(backend, call.kind, scope, &wanted, call.caller()).await?;
    for item in &listed.items {
        let info = RequestInfo {
            namespace: object::meta_text(item, "namespace").to_owned(),
            name: object::name(item).to_owned(),
            ..call.info.clone()
        };
        let one = Call { info: &info, ..*call };
        match remove(backend, &one, &options).await {
            Ok(_) => {}
            Err(status) if status.reason == Reason::NotFound => {}
            Err(status) => return Err(status),
        }
    }
    Ok(answer::json(
        StatusCode::OK,
        &shaper.list(listed.items, &listed.meta, backend.clock.wall()),
    ))
}

/// Deletes the named object, or marks it. Gives it as it was, and as it stays if finalizers hold it.
async fn remove(backend: &Backend, call: &Call<'_>, options: &Options) -> Result<(Value, Option<Value>), Box<Status>> {
    let dry_run = call.dry_run || options.dry_run.is_some();
    for _ in 0..TRIES {
        let (stored, current) = read(backend, call).await?;
        check(call, options, &stored, &current)?;
        if object::is_terminating(&current) && !object::finalizers(&current).is_empty() {
            // Asked for before; it goes when its finalizers are gone.
            return Ok((current.clone(), Some(current)));
        }
        let mut guards = call.kind.admit_delete(backend, &stored, &current).await?;
        let marked = marked(backend, &current);
        let key = ObjectKey::new(call.kind.stored_as(), &stored.namespace, &stored.name);
        let expected = stored.revision;
        if dry_run {
            // What a kind put up to decide is taken down again, and nothing else happens.
            guards.retain(|op| matches!(op, Op::Delete { .. }));
            if !guards.is_empty() {
                backend.objects.commit(guards).await.map_err(|e| failed(&e))?;
            }
            return Ok((current, marked));
        }
        let op = match &marked {
            Some(marked) => Op::Update {
                key,
                value: backend.encode(call.kind, &stored_form(call, marked)?)?,
                expected,
            },
            None => Op::Delete { key, expected },
        };
        let mut ops = vec![op];
        ops.append(&mut guards);
        match backend.objects.commit(ops).await {
            Ok(revision) => {
                let marked = marked.map(|mut marked| {
                    object::meta_mut(&mut marked).insert("resourceVersion".into(), revision.to_string().into());
                    marked
                });
                return Ok((current, marked));
            }
            Err(ObjectError::Failed { .. }) => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    Err(conflict(call.kind, call.name()))
}

fn options(call: &Call<'_>, body: &[u8]) -> Result<Options, Box<Status>> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Options::default());
    }
    let bad = |why: String| Box::new(Status::new(Reason::BadRequest, why));
    let value = super::negotiation::decode(call.headers, body)?;
    let mut options =
        Options::deserialize(value).map_err(|e| bad(format!("the delete options cannot be read: {e}")))?;
    options.dry_run = options.dry_run.filter(|d| !d.is_empty());
    match options.dry_run.iter().flatten().find(|d| *d != "All") {
        Some(other) => Err(bad(format!(
            "invalid dryRun {other:?}: the only supported value is \"All\""
        ))),
        None => Ok(options),
    }
}

fn check(call: &Call<'_>, options: &Options, stored: &Stored, current: &Value) -> Result<(), Box<Status>> {
    let Some(wanted) = &options.preconditions else {
        return Ok(());
    };
    let uid = object::meta_text(current, "uid");
    let wrong = |what: &str, want: &str, have: &str| {
        let mut status = conflict(call.kind, call.name());
        status.message = format!(
            "Operation cannot be fulfilled on {}.{} {:?}: the {what} in the precondition ({want}) does not match the {what} in \
             record ({have}). The object might have been deleted and then recreated",
            call.kind.names().plural,
            call.kind.names().group,
            call.name()
        );
        Err(status)
    };
    match (&wanted.uid, &wanted.resource_version) {
        (Some(want), _) if want != uid => wrong("UID", want, uid),
        (_, Some(want)) if resource_version(want) != Some(stored.revision) => {
            wrong("ResourceVersion", want, &stored.revision.to_string())
        }
        _ => Ok(()),
    }
}

/// The object marked for deletion, if finalizers hold it.
fn marked(backend: &Backend, current: &Value) -> Option<Value> {
    if object::finalizers(current).is_empty() {
        return None;
    }
    let mut marked = current.clone();
    let meta = object::meta_mut(&mut marked);
    meta.insert("deletionTimestamp".into(), backend.clock.wall().to_string().into());
    meta.insert("deletionGracePeriodSeconds".into(), 0.into());
    object::bump_generation(&mut marked);
    Some(marked)
}

fn stored_form(call: &Call<'_>, object: &Value) -> Result<Value, Box<Status>> {
    let mut stored = call.shaper()?.typed(object.clone());
    object::meta_mut(&mut stored).remove("resourceVersion");
    Ok(stored)
}

fn answer(backend: &Backend, call: &Call<'_>, current: &Value, marked: Option<Value>) -> Result<Response, Box<Status>> {
    if let Some(marked) = marked {
        return shown(backend, call, marked);
    }
    let names = call.kind.names();
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": { "name": call.name(), "group": names.group, "kind": names.plural, "uid": object::meta_text(current, "uid") },
    });
    Ok(answer::json(StatusCode::OK, &status))
}

fn shown(backend: &Backend, call: &Call<'_>, object: Value) -> Result<Response, Box<Status>> {
    Ok(answer::json(
        StatusCode::OK,
        &call.shaper()?.one(object, backend.clock.wall()),
    ))
}
