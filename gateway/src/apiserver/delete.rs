//! Delete. An object with finalizers is marked and stays until they are gone; what becomes of its dependents is said by one of
//! them ([`hanse_api::ownership`]).

use super::backend::{Backend, failed};
use super::list::{Scope, collect};
use super::options::{ListOptions, cause, dry_run_fault, resource_version};
use super::{Call, conflict, no_such, object};
use crate::answer;
use crate::body::Response;
use crate::kinds::{Kind, api_version};
use crate::proxy::path::RequestInfo;
use hanse_api::ownership::{Propagation, finalizers_for};
use hanse_api::status::{Cause, Reason, Status};
use hanse_state::objects::{ObjectError, ObjectKey, Op, Stored};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

/// Tries while others change the object or what it depends on.
const TRIES: usize = 10;

/// How an object is to be deleted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Uid that it must have.
    pub(crate) uid: Option<String>,
    /// Revision that it must have, as it was given.
    pub(crate) resource_version: Option<String>,
    /// What becomes of its dependents; none: as its finalizers say.
    pub(crate) policy: Option<Propagation>,
    pub(crate) dry_run: bool,
}

/// One object, whoever wants it gone.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) kind: &'static dyn Kind,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

impl<'a> Place<'a> {
    fn of(call: &'a Call<'a>) -> Self {
        Self {
            kind: call.kind,
            namespace: call.namespace(),
            name: call.name(),
        }
    }

    /// The object as stored and as clients see it; 404 when it is not there.
    pub(crate) async fn read(&self, backend: &Backend) -> Result<(Stored, Value), Box<Status>> {
        let missing = || no_such(self.kind, self.name);
        let key = self.kind.key(self.namespace, self.name).ok_or_else(missing)?;
        let stored = backend.objects.get(&key).await.map_err(|e| failed(&e))?;
        let stored = stored.ok_or_else(missing)?;
        let value = backend.present(self.kind, Backend::parse(&stored)?)?;
        Ok((stored, value))
    }

    /// What is written for an object that stands at `stored`: a new content, or its end if nothing holds it any more.
    pub(crate) fn op(&self, backend: &Backend, stored: &Stored, object: &Value) -> Result<Op, Box<Status>> {
        let key = ObjectKey::new(self.kind.stored_as(), &stored.namespace, &stored.name);
        let expected = stored.revision;
        if object::is_terminating(object) && object::finalizers(object).is_empty() {
            return Ok(Op::Delete { key, expected });
        }
        let mut form = object.clone();
        form["apiVersion"] = api_version(self.kind.names()).into();
        form["kind"] = self.kind.names().kind.into();
        object::meta_mut(&mut form).remove("resourceVersion");
        let value = backend.encode(self.kind, &form)?;
        Ok(Op::Update { key, value, expected })
    }
}

/// `DELETE` of one object.
pub(crate) async fn delete(backend: &Backend, call: &Call<'_>, body: &[u8]) -> Result<Response, Box<Status>> {
    let options = options(call, body)?;
    let (current, marked) = remove(backend, Place::of(call), &options).await?;
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
        match remove(backend, Place::of(&one), &options).await {
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

/// Deletes an object, or marks it. Gives it as it was, and as it stays if finalizers hold it.
pub(crate) async fn remove(
    backend: &Backend,
    place: Place<'_>,
    options: &Options,
) -> Result<(Value, Option<Value>), Box<Status>> {
    for _ in 0..TRIES {
        let (stored, current) = place.read(backend).await?;
        check(place, options, &stored, &current)?;
        let marked = marked(backend, &current, options.policy);
        if marked.as_ref() == Some(&current) {
            // Asked for before; it goes when its finalizers are gone.
            return Ok((current, marked));
        }
        let mut guards = place.kind.admit_delete(backend, &stored, &current).await?;
        if options.dry_run {
            // Guards that were put up are taken down again, and nothing else happens.
            guards.retain(|op| matches!(op, Op::Delete { .. }));
            if !guards.is_empty() {
                backend.objects.commit(guards).await.map_err(|e| failed(&e))?;
            }
            return Ok((current, marked));
        }
        if place.kind.delete_whole(backend, &current).await? {
            return Ok((current, None));
        }
        let op = match &marked {
            Some(marked) => place.op(backend, &stored, marked)?,
            None => Op::Delete {
                key: ObjectKey::new(place.kind.stored_as(), &stored.namespace, &stored.name),
                expected: stored.revision,
            },
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
    Err(conflict(place.kind, place.name))
}

/// `DeleteOptions`, as far as they are acted on.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Sent {
    preconditions: Option<Preconditions>,
    dry_run: Option<Vec<String>>,
    propagation_policy: Option<String>,
    orphan_dependents: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

/// From the body or, where there is none, from the query.
fn options(call: &Call<'_>, body: &[u8]) -> Result<Options, Box<Status>> {
    let bad = |why: String| Box::new(Status::new(Reason::BadRequest, why));
    let sent = if body.iter().all(u8::is_ascii_whitespace) {
        Sent {
            propagation_policy: call.query.text("propagationPolicy").map(str::to_owned),
            orphan_dependents: call.query.flag_if_given("orphanDependents"),
            ..Sent::default()
        }
    } else {
        let value = super::negotiation::decode(call.headers, body)?;
        Sent::deserialize(value).map_err(|e| bad(format!("the delete options cannot be read: {e}")))?
    };
    let dry_runs = sent.dry_run.unwrap_or_default();
    let dry_runs: Vec<&str> = dry_runs.iter().map(String::as_str).collect();
    let Preconditions { uid, resource_version } = sent.preconditions.unwrap_or_default();
    let policy = policy(sent.propagation_policy.as_deref(), sent.orphan_dependents);
    match (policy, dry_run_fault(&dry_runs)) {
        (Ok(policy), None) => Ok(Options {
            uid,
            resource_version,
            policy,
            dry_run: call.dry_run || !dry_runs.is_empty(),
        }),
        (policy, dry_run) => {
            let faults = policy.err().into_iter().chain(dry_run).collect();
            Err(Box::new(Status::invalid("meta.k8s.io", "DeleteOptions", "", faults)))
        }
    }
}

/// The policy, by its name or by the older flag.
fn policy(named: Option<&str>, orphan: Option<bool>) -> Result<Option<Propagation>, Cause> {
    let fault = |reason: &str, message: String| Err(cause(reason, "propagationPolicy", message));
    match (named, orphan) {
        (Some(named), Some(_)) => fault(
            "FieldValueInvalid",
            format!("Invalid value: {named:?}: orphanDependents and deletionPropagation cannot be both set"),
        ),
        (Some(named), None) => match Propagation::parse(named) {
            Some(policy) => Ok(Some(policy)),
            None => fault(
                "FieldValueNotSupported",
                format!(
                    "Unsupported value: {named:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
                ),
            ),
        },
        (None, Some(true)) => Ok(Some(Propagation::Orphan)),
        (None, Some(false)) => Ok(Some(Propagation::Background)),
        (None, None) => Ok(None),
    }
}

fn check(place: Place<'_>, options: &Options, stored: &Stored, current: &Value) -> Result<(), Box<Status>> {
    let uid = object::meta_text(current, "uid");
    // Kubernetes names the kind here, and the resource in every other conflict.
    let names = place.kind.names();
    let wrong = |what: &str, want: &str, have: &str, perhaps: &str| {
        let mut status = Status::conflict(names.group, names.kind, place.name);
        status.message = format!(
            "Operation cannot be fulfilled on {}.{} {:?}: the {what} in the precondition ({want}) does not match the {what} in \
             record ({have}). The object might have been {perhaps}",
            names.kind, names.group, place.name
        );
        Err(Box::new(status))
    };
    match (&options.uid, &options.resource_version) {
        (Some(want), _) if want != uid => wrong("UID", want, uid, "deleted and then recreated"),
        (_, Some(want)) if resource_version(want) != Some(stored.revision) => {
            wrong("ResourceVersion", want, &stored.revision.to_string(), "modified")
        }
        _ => Ok(()),
    }
}

/// The object marked for deletion, if finalizers hold it. One that is marked already may get another policy.
fn marked(backend: &Backend, current: &Value, policy: Option<Propagation>) -> Option<Value> {
    let had = object::finalizers(current);
    let finalizers = finalizers_for(&had, policy);
    if finalizers.is_empty() {
        return None;
    }
    let mut marked = current.clone();
    if finalizers != had {
        object::meta_mut(&mut marked).insert("finalizers".into(), finalizers.into());
    }
    if !object::is_terminating(&marked) {
        let meta = object::meta_mut(&mut marked);
        meta.insert("deletionTimestamp".into(), backend.clock.wall().to_string().into());
        meta.insert("deletionGracePeriodSeconds".into(), 0.into());
        object::bump_generation(&mut marked);
    }
    Some(marked)
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
