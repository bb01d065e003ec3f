//! Update and patch, of objects and of their status.

use super::apply::{self, Apply, Managed};
use super::backend::{Backend, failed};
use super::create::{check_kind, check_namespace, check_type, check_version, create_applied};
use super::list::read;
use super::negotiation::content_type;
use super::options::{cause, resource_version};
use super::patch::Patch;
use super::{Call, conflict, drop_nulls, fields, no_such, object, owners, target};
use crate::body::Response;
use crate::{answer, authz};
use hanse_api::Timestamp;
use hanse_api::status::{Reason, Status};
use hanse_state::objects::{ObjectError, ObjectKey, Op, Stored};
use http::StatusCode;
use serde_json::Value;

/// Tries of a change that insists on no revision, while others change the object too.
const TRIES: usize = 10;

/// `PUT` of one object or its status.
pub(crate) async fn update(backend: &Backend, call: &Call<'_>, body: &[u8]) -> Result<Response, Box<Status>> {
    let (mut wanted, warnings) = fields::read(call, body)?;
    drop_nulls(&mut wanted);
    check_version(call, &wanted)?;
    check_name(call, &wanted)?;
    change(backend, call, Wanted::Whole(wanted), warnings).await
}

/// `PATCH` of one object or its status.
pub(crate) async fn patch(backend: &Backend, call: &Call<'_>, body: &[u8]) -> Result<Response, Box<Status>> {
    let media = content_type(call.headers);
    if media == apply::MEDIA {
        let (applied, warnings) = apply::read(call, body)?;
        return change(backend, call, Wanted::Applied(applied), warnings).await;
    }
    let patch = Patch::read(&media, body)?;
    let faults = match &patch {
        Patch::Merge(_) => fields::duplicates(body),
        Patch::Json(_) => Vec::new(),
    };
    change(backend, call, Wanted::Patched(patch), faults).await
}

/// What a caller wants an object to become.
enum Wanted {
    Whole(Value),
    Patched(Patch),
    Applied(Apply),
}

impl Wanted {
    /// Whether it holds for one revision only.
    fn insists(&self) -> bool {
        match self {
            Self::Whole(_) => true,
            Self::Patched(patch) => patch.resource_version().is_some(),
            Self::Applied(apply) => !object::meta_text(&apply.config, "resourceVersion").is_empty(),
        }
    }

    /// What `current` becomes, and who manages what of it when that is not left to a comparison.
    fn applied(
        &self,
        call: &Call<'_>,
        current: &Value,
        now: Timestamp,
    ) -> Result<(Value, Option<Managed>), Box<Status>> {
        match self {
            Self::Whole(object) => Ok((object.clone(), None)),
            Self::Applied(apply) => {
                let (mut new, managed) = apply::applied(call, apply, current, now)?;
                if !self.insists() {
                    object::meta_mut(&mut new).remove("resourceVersion");
                }
                drop_nulls(&mut new);
                Ok((new, Some(managed)))
            }
            Self::Patched(patch) => {
                let mut patched = patch.apply(current)?;
                if !self.insists() {
                    // Whatever revision the patch was made up against is that of this try.
                    object::meta_mut(&mut patched).remove("resourceVersion");
                }
                drop_nulls(&mut patched);
                check_type(call, &patched)?;
                Ok((patched, None))
            }
        }
    }
}

/// Reads, changes and writes back. Without a revision to insist on it starts over when somebody else was faster.
async fn change(
    backend: &Backend,
    call: &Call<'_>,
    wanted: Wanted,
    mut warnings: Vec<String>,
) -> Result<Response, Box<Status>> {
    let shaper = call.shaper()?;
    for _ in 0..TRIES {
        let now = backend.clock.wall();
        let (stored, current) = match (read(backend, call).await, &wanted) {
            (Ok(found), _) => found,
            (Err(status), Wanted::Applied(apply)) if status.reason == Reason::NotFound && !call.status() => {
                let made = applied_new(backend, call, apply).await?;
                let Some(made) = made else { continue };
                let response = answer::json(StatusCode::CREATED, &shaper.one(made, now));
                return Ok(fields::warn(response, &warnings));
            }
            (Err(status), _) => return Err(status),
        };
        let typed = shaper.typed(current.clone());
        let (mut new, managed) = wanted.applied(call, &typed, now)?;
        let twice = object::deduplicate_owners(&mut new);
        if matches!(wanted, Wanted::Patched(_)) {
            warnings = fields::patched(call, &typed, &new, warnings)?;
        }
        check(call, &wanted, &stored, &current, &new)?;
        check_kind(call, &new)?;
        let base = apply::base(&typed, &new);
        let mut merged = merged(call, &current, new)?;
        let old = stored_form(call, &current)?;
        if !call.status() {
            owners::admit(call.asker(backend), call.kind.names(), Some(&old), &merged).await?;
            call.kind.admit_change(call.asker(backend), Some(&old), &merged).await?;
        }
        match managed {
            Some(managed) => apply::enter(Some(&old), &mut merged, &managed),
            None => apply::track(call, base, Some(&old), &mut merged, now)?,
        }
        let Some(written) = write(backend, call, &stored, &current, merged).await? else {
            if wanted.insists() {
                return Err(conflict(call.kind, call.name()));
            }
            continue;
        };
        let mut items = [written];
        call.kind.decorate(backend, call.caller(), &mut items).await;
        let [written] = items;
        let response = answer::json(StatusCode::OK, &shaper.one(written, backend.clock.wall()));
        warnings.extend(twice);
        return Ok(fields::warn(response, &warnings));
    }
    Err(conflict(call.kind, call.name()))
}

/// Makes what an apply names. Nothing when somebody else was faster.
async fn applied_new(backend: &Backend, call: &Call<'_>, apply: &Apply) -> Result<Option<Value>, Box<Status>> {
    authz::authorize(backend, call.principal, &["create"], &target(call.info)).await?;
    if !call.kind.verbs().contains(&"create") {
        return Err(no_such(call.kind, call.name()));
    }
    check_name(call, &apply.config)?;
    create_applied(backend, call, apply).await
}

/// The stored form carries its type; the revision is not stored.
fn stored_form(call: &Call<'_>, current: &Value) -> Result<Value, Box<Status>> {
    let mut old = call.shaper()?.typed(current.clone());
    object::meta_mut(&mut old).remove("resourceVersion");
    Ok(old)
}

/// Refuses an object of another name than that of the URL.
fn check_name(call: &Call<'_>, object: &Value) -> Result<(), Box<Status>> {
    let name = object::name(object);
    if name == call.name() {
        return Ok(());
    }
    let message = format!(
        "the name of the object ({name}) does not match the name on the URL ({})",
        call.name()
    );
    Err(Box::new(Status::new(Reason::BadRequest, message)))
}

/// What the caller says about identity and revision must be so. A whole object says which revision it was made from, as every
/// custom resource of Kubernetes must: one that does not would undo whatever others changed meanwhile.
fn check(call: &Call<'_>, wanted: &Wanted, stored: &Stored, current: &Value, new: &Value) -> Result<(), Box<Status>> {
    check_name(call, new)?;
    check_namespace(call, object::meta_text(new, "namespace"))?;
    let names = call.kind.names();
    let invalid = |of: &str, field: &str, message: String| {
        let faults = vec![cause("FieldValueInvalid", field, format!("Invalid value: {message}"))];
        Err(Box::new(Status::invalid(names.group, of, call.name(), faults)))
    };
    let is_whole = matches!(wanted, Wanted::Whole(_));
    let uid = object::meta_text(new, "uid");
    if !uid.is_empty() && uid != object::meta_text(current, "uid") {
        if is_whole {
            return Err(conflict(call.kind, call.name()));
        }
        return invalid(names.kind, "metadata.uid", format!("{uid:?}: field is immutable"));
    }
    let version = &new["metadata"]["resourceVersion"];
    let text = match version {
        Value::Null => "",
        Value::String(text) => text.as_str(),
        _ => "not a string",
    };
    match resource_version(text) {
        Some(revision) if revision == stored.revision => Ok(()),
        Some(0) | None if is_whole && matches!(text, "" | "0") => {
            // Where all other faults name the kind, Kubernetes names the resource.
            invalid(
                names.plural,
                "metadata.resourceVersion",
                "0: must be specified for an update".into(),
            )
        }
        Some(0) => Ok(()),
        None if text.is_empty() => Ok(()),
        Some(_) => Err(conflict(call.kind, call.name())),
        None => invalid(
            names.kind,
            "metadata.resourceVersion",
            format!("{text:?}: must be a decimal number in a string"),
        ),
    }
}

/// The object to store, if no rule forbids it.
fn merged(call: &Call<'_>, current: &Value, mut new: Value) -> Result<Value, Box<Status>> {
    let names = call.kind.names();
    let old = stored_form(call, current)?;
    let merged = if call.status() {
        object::merge_status(&old, &new)
    } else {
        call.kind.prepare_update(&old, &mut new);
        object::merge_update(&old, new)
    };
    let mut faults = object::meta_faults(&merged);
    faults.extend(object::finalizer_faults(&old, &merged));
    faults.extend(call.kind.validate_update(&old, &merged));
    if faults.is_empty() {
        Ok(merged)
    } else {
        Err(Box::new(Status::invalid(names.group, names.kind, call.name(), faults)))
    }
}

/// Writes; `None` when the object changed meanwhile. A dying object without finalizers goes.
async fn write(
    backend: &Backend,
    call: &Call<'_>,
    stored: &Stored,
    current: &Value,
    mut merged: Value,
) -> Result<Option<Value>, Box<Status>> {
    let old = stored_form(call, current)?;
    let goes = object::is_terminating(&merged) && object::finalizers(&merged).is_empty();
    let mut revision = stored.revision;
    if !call.dry_run && (goes || merged != old) {
        let key = ObjectKey::new(call.kind.stored_as(), &stored.namespace, &stored.name);
        let expected = stored.revision;
        let op = if goes {
            Op::Delete { key, expected }
        } else {
            Op::Update {
                key,
                value: backend.encode(call.kind, &merged)?,
                expected,
            }
        };
        match backend.objects.commit(vec![op]).await {
            Ok(now) => revision = now,
            Err(ObjectError::Failed { .. }) => return Ok(None),
            Err(error) => return Err(failed(&error)),
        }
    }
    object::meta_mut(&mut merged).insert("resourceVersion".into(), revision.to_string().into());
    Ok(Some(merged))
}
