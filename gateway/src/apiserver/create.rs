//! Create.

use super::apply::{self, Apply, Managed};
use super::backend::{Backend, failed};
use super::delete::Place;
use super::options::cause;
use super::{Call, drop_nulls, fields, object, owners};
use crate::answer;
use crate::body::Response;
use crate::kinds::api_version;
use hanse_api::status::{Reason, Status};
use hanse_runtime::rng::Rng;
use hanse_state::objects::{ObjectError, ObjectKey, Op};
use http::StatusCode;
use serde_json::Value;

/// Tries for a free generated name, and for preconditions that changed between check and commit.
const TRIES: usize = 8;
/// Random characters behind a `generateName`; without vowels and look-alikes, as in Kubernetes.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const NAME_RANDOM: usize = 5;
/// Longest part of `generateName` that is used.
const NAME_PREFIX: usize = 58;

/// `POST` of a collection.
pub(crate) async fn create(backend: &Backend, call: &Call<'_>, body: &[u8]) -> Result<Response, Box<Status>> {
    let shaper = call.shaper()?;
    let (mut object, mut warnings) = fields::read(call, body)?;
    drop_nulls(&mut object);
    warnings.extend(object::deduplicate_owners(&mut object));
    check_type(call, &object)?;
    let made = insert(backend, call, object, None).await?;
    let response = answer::json(StatusCode::CREATED, &shaper.one(made, backend.clock.wall()));
    Ok(fields::warn(response, &warnings))
}

/// Makes the object that an apply names, which there was none of. Nothing when there is one meanwhile.
pub(crate) async fn create_applied(
    backend: &Backend,
    call: &Call<'_>,
    apply: &Apply,
) -> Result<Option<Value>, Box<Status>> {
    match insert(backend, call, apply.config.clone(), Some(apply)).await {
        Ok(made) => Ok(Some(made)),
        Err(status) if status.reason == Reason::AlreadyExists => Ok(None),
        Err(status) => Err(status),
    }
}

async fn insert(
    backend: &Backend,
    call: &Call<'_>,
    mut object: Value,
    apply: Option<&Apply>,
) -> Result<Value, Box<Status>> {
    check_meta(call, &mut object)?;
    let generated = object::name(&object).is_empty();
    let mut tries = 0;
    let created = loop {
        tries += 1;
        let mut attempt = object.clone();
        if generated {
            generate_name(backend.rng.as_ref(), call, &mut attempt)?;
        }
        match commit(backend, call, attempt, apply).await? {
            Committed::Done(created) => break created,
            Committed::Taken(name) if !generated || tries >= TRIES => return Err(taken(backend, call, &name).await),
            Committed::Changed if tries >= TRIES => {
                return Err(Box::new(Status::new(
                    Reason::Conflict,
                    "objects that this one depends on keep changing; try again",
                )));
            }
            Committed::Taken(_) | Committed::Changed => {}
        }
    };
    let mut items = [created];
    call.kind.decorate(backend, call.caller(), &mut items).await;
    let [created] = items;
    Ok(created)
}

/// Says that there is an object of that name, and whether it is about to go.
async fn taken(backend: &Backend, call: &Call<'_>, name: &str) -> Box<Status> {
    let names = call.kind.names();
    let mut status = Status::already_exists(names.group, names.plural, name);
    let place = Place {
        kind: call.kind,
        namespace: call.namespace(),
        name,
    };
    if place
        .read(backend)
        .await
        .is_ok_and(|(_, object)| object::is_terminating(&object))
    {
        status.message = format!("object is being deleted: {}", status.message);
    }
    Box::new(status)
}

/// Refuses a body of another type than that of the URL.
pub(crate) fn check_type(call: &Call<'_>, object: &Value) -> Result<(), Box<Status>> {
    check_version(call, object)?;
    check_kind(call, object)
}

/// Refuses a body of another group or version than that of the URL.
pub(crate) fn check_version(call: &Call<'_>, object: &Value) -> Result<(), Box<Status>> {
    let names = call.kind.names();
    let version = api_version(names);
    let have = object["apiVersion"].as_str().unwrap_or_default();
    if !have.is_empty() && have != version {
        let message =
            format!("the API version in the data ({have}) does not match the expected API version ({version})");
        return Err(Box::new(Status::new(Reason::BadRequest, message)));
    }
    Ok(())
}

/// Refuses a body of another kind than that of the URL: a fault of the object, after those of its place.
pub(crate) fn check_kind(call: &Call<'_>, object: &Value) -> Result<(), Box<Status>> {
    let names = call.kind.names();
    let have = object["kind"].as_str().unwrap_or_default();
    if !have.is_empty() && have != names.kind {
        let message = format!("Invalid value: {have:?}: must be {}", names.kind);
        let faults = vec![cause("FieldValueInvalid", "kind", message)];
        return Err(Box::new(Status::invalid(
            names.group,
            have,
            object::name(object),
            faults,
        )));
    }
    Ok(())
}

/// Refuses `metadata` that contradicts the URL, and fills in what the URL says.
fn check_meta(call: &Call<'_>, object: &mut Value) -> Result<(), Box<Status>> {
    let bad = |message: String| Err(Box::new(Status::new(Reason::BadRequest, message)));
    if !object::meta_text(object, "resourceVersion").is_empty() {
        return bad("resourceVersion should not be set on objects to be created".into());
    }
    let namespace = object::meta_text(object, "namespace").to_owned();
    check_namespace(call, &namespace)?;
    if object::name(object).is_empty() && object::meta_text(object, "generateName").is_empty() {
        return Err(invalid(
            call,
            "",
            "metadata.name",
            "FieldValueRequired",
            "Required value: name or generateName is required",
        ));
    }
    let meta = object::meta_mut(object);
    if call.kind.names().namespaced {
        meta.insert("namespace".into(), call.namespace().into());
    } else {
        meta.remove("namespace");
    }
    Ok(())
}

/// Refuses a namespace in the body that is not that of the URL.
pub(crate) fn check_namespace(call: &Call<'_>, namespace: &str) -> Result<(), Box<Status>> {
    let want = if call.kind.names().namespaced {
        call.namespace()
    } else {
        ""
    };
    if namespace.is_empty() || namespace == want {
        return Ok(());
    }
    let message = format!(
        "the namespace of the provided object does not match the namespace sent on the request ({namespace:?}, {want:?})"
    );
    Err(Box::new(Status::new(Reason::BadRequest, message)))
}

fn invalid(call: &Call<'_>, name: &str, field: &str, reason: &str, message: &str) -> Box<Status> {
    let names = call.kind.names();
    let faults = vec![cause(reason, field, message)];
    Box::new(Status::invalid(names.group, names.kind, name, faults))
}

fn generate_name(rng: &dyn Rng, call: &Call<'_>, object: &mut Value) -> Result<(), Box<Status>> {
    let prefix = object::meta_text(object, "generateName").to_owned();
    if !prefix.is_ascii() {
        return Err(invalid(
            call,
            "",
            "metadata.generateName",
            "FieldValueInvalid",
            "Invalid value: must be ASCII",
        ));
    }
    let mut bytes = [0; NAME_RANDOM];
    rng.fill(&mut bytes);
    let random = bytes
        .iter()
        .map(|b| char::from(NAME_ALPHABET[usize::from(*b) % NAME_ALPHABET.len()]));
    let name: String = prefix.chars().take(NAME_PREFIX).chain(random).collect();
    object::meta_mut(object).insert("name".into(), name.into());
    Ok(())
}

enum Committed {
    Done(Value),
    /// An object of that name exists.
    Taken(String),
    /// A precondition no longer holds.
    Changed,
}

async fn commit(
    backend: &Backend,
    call: &Call<'_>,
    mut object: Value,
    apply: Option<&Apply>,
) -> Result<Committed, Box<Status>> {
    let names = call.kind.names();
    object::stamp_new(&mut object, backend.rng.uuid(), backend.clock.wall());
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), api_version(names).into());
        map.insert("kind".into(), names.kind.into());
        map.remove("status");
    }
    object::member_mut(&mut object, "spec");
    call.kind.prepare(&mut object, call.principal);
    let mut faults = object::meta_faults(&object);
    faults.extend(call.kind.validate(&object));
    let name = object::name(&object).to_owned();
    if !faults.is_empty() {
        return Err(Box::new(Status::invalid(names.group, names.kind, &name, faults)));
    }
    let now = backend.clock.wall();
    match apply {
        Some(apply) => apply::enter(None, &mut object, &apply::made(call, apply, now)),
        None => apply::track(call, Managed::default(), None, &mut object, now)?,
    }
    owners::admit(call.asker(backend), names, None, &object).await?;
    call.kind.admit_change(call.asker(backend), None, &object).await?;
    let guards = call.kind.admit_create(backend, &object).await?;
    let key = ObjectKey::new(names, call.namespace(), &name);
    if call.dry_run {
        let taken = backend.objects.get(&key).await.map_err(|e| failed(&e))?.is_some();
        return Ok(if taken {
            Committed::Taken(name)
        } else {
            Committed::Done(object)
        });
    }
    let mut ops = vec![Op::Create {
        key,
        value: backend.encode(call.kind, &object)?,
    }];
    ops.extend(guards);
    match backend.objects.commit(ops).await {
        Ok(revision) => {
            object::meta_mut(&mut object).insert("resourceVersion".into(), revision.to_string().into());
            Ok(Committed::Done(object))
        }
        Err(ObjectError::Failed { index: 0, .. }) => Ok(Committed::Taken(name)),
        Err(ObjectError::Failed { .. }) => Ok(Committed::Changed),
        Err(error) => Err(failed(&error)),
    }
}
