//! Judges one object by what is there now, and does what the verdict says. Each effect is one transaction at the revision that
//! was judged, so that two collectors at once, or one that stops half way, do no harm.

use super::graph::{Id, Known, Seen};
use crate::apiserver::backend::{Backend, failed};
use crate::apiserver::delete::{self, Options, Place};
use crate::apiserver::{object, owners};
use crate::kinds::Kind;
use hanse_api::ownership::{
    FINALIZER_FOREGROUND, FINALIZER_ORPHAN, OwnerReference, OwnerState, Propagation, Situation, Stage, Verdict, judge,
    owners as owners_of, policy_of,
};
use hanse_api::status::{Reason, Status};
use hanse_state::objects::ObjectError;
use serde_json::Value;

/// Tries of one change while others change the object too.
const TRIES: usize = 5;

/// An object to judge.
pub(super) struct Job {
    pub(super) kind: &'static dyn Kind,
    pub(super) id: Id,
    pub(super) known: Known,
    /// Kinds by their place.
    pub(super) kinds: &'static [&'static dyn Kind],
}

impl Job {
    fn place(&self) -> Place<'_> {
        place(self.kind, &self.id)
    }
}

fn place<'a>(kind: &'static dyn Kind, id: &'a Id) -> Place<'a> {
    Place {
        kind,
        namespace: &id.namespace,
        name: &id.name,
    }
}

/// Judges and acts. An error means that it is to be tried again.
pub(super) async fn work(backend: &Backend, job: &Job) -> Result<(), Box<Status>> {
    let place = job.place();
    let (stored, object) = match place.read(backend).await {
        Ok(found) => found,
        Err(status) if status.reason == Reason::NotFound => return Ok(()),
        Err(status) => return Err(status),
    };
    if object::meta_text(&object, "uid") != job.known.uid {
        return Ok(());
    }
    let finalizers = object::finalizers(&object);
    let stage = Stage::of(object::is_terminating(&object), finalizers.iter().copied());
    if stage != job.known.stage {
        // The index will hear of it, and of what came before.
        return Ok(());
    }
    let references = owners_of(&object["metadata"]);
    let mut owners = Vec::with_capacity(references.len());
    if stage == Stage::Lives {
        for reference in &references {
            let state = state(backend, place.namespace, reference).await?;
            owners.push((reference.uid.clone(), state));
        }
    }
    let verdict = judge(&Situation {
        stage,
        policy: policy_of(finalizers),
        owners: &owners,
        has_dependents: job.known.has_dependents,
        is_blocked: job.known.is_blocked,
        in_circle: job.known.in_circle,
    });
    let uid = &job.known.uid;
    match verdict {
        Verdict::Keep => Ok(()),
        Verdict::Forget(gone) => change(backend, place, uid, |o| forget(o, &gone)).await.map(drop),
        Verdict::Release => change(backend, place, uid, |o| finish(o, FINALIZER_FOREGROUND))
            .await
            .map(drop),
        Verdict::Orphan => orphan(backend, job).await,
        Verdict::Delete { policy, unblock } => {
            let revision = if unblock {
                change(backend, place, uid, unblocked).await?
            } else {
                Some(stored.revision)
            };
            match revision {
                Some(revision) => remove(backend, place, uid, revision, policy).await,
                None => Ok(()),
            }
        }
    }
}

/// What became of an owner, as the store has it now.
async fn state(backend: &Backend, namespace: &str, reference: &OwnerReference) -> Result<OwnerState, Box<Status>> {
    let Some(kind) = owners::kind_of(reference) else {
        return Ok(OwnerState::Unknown);
    };
    let namespace = match (kind.names().namespaced, namespace) {
        // What is in no namespace cannot go with something that is in one.
        (true, "") => return Ok(OwnerState::Unknown),
        (true, namespace) => namespace,
        (false, _) => "",
    };
    let Some(key) = kind.key(namespace, &reference.name) else {
        return Ok(OwnerState::Absent);
    };
    let stored = match backend.objects.get(&key).await {
        Ok(Some(stored)) => stored,
        Ok(None) | Err(ObjectError::InvalidKey(_)) => return Ok(OwnerState::Absent),
        Err(error) => return Err(failed(&error)),
    };
    let Ok(seen) = serde_json::from_slice::<Seen>(&stored.value) else {
        return Ok(OwnerState::Unknown);
    };
    Ok(match seen.metadata.stage() {
        _ if seen.metadata.uid != reference.uid => OwnerState::Absent,
        Stage::Waits => OwnerState::Waits,
        Stage::Lives | Stage::Orphans | Stage::Dying => OwnerState::Solid,
    })
}

async fn remove(
    backend: &Backend,
    place: Place<'_>,
    uid: &str,
    revision: i64,
    policy: Propagation,
) -> Result<(), Box<Status>> {
    let options = Options {
        uid: Some(uid.to_owned()),
        resource_version: Some(revision.to_string()),
        policy: Some(policy),
        dry_run: false,
    };
    match delete::remove(backend, place, &options).await {
        Ok(_) => {
            let (kind, namespace, name) = (place.kind.names().kind, place.namespace, place.name);
            tracing::info!(kind, namespace, name, ?policy, "deleted, as its owners are");
            Ok(())
        }
        Err(status) if status.reason == Reason::NotFound => Ok(()),
        Err(status) => Err(status),
    }
}

/// Every dependent forgets the object, and only then it may go.
async fn orphan(backend: &Backend, job: &Job) -> Result<(), Box<Status>> {
    let gone = [job.known.uid.clone()];
    for dependent in &job.known.dependents {
        let Some(kind) = job.kinds.get(dependent.kind) else {
            continue;
        };
        let place = place(*kind, dependent);
        let uid = match place.read(backend).await {
            Ok((_, object)) => object::meta_text(&object, "uid").to_owned(),
            Err(status) if status.reason == Reason::NotFound => continue,
            Err(status) => return Err(status),
        };
        change(backend, place, &uid, |o| forget(o, &gone)).await?;
    }
    change(backend, job.place(), &job.known.uid, |o| finish(o, FINALIZER_ORPHAN)).await?;
    Ok(())
}

/// Writes what `edit` makes of an object; gives its revision then, or none if it is gone. `edit` says whether it changed
/// anything.
async fn change(
    backend: &Backend,
    place: Place<'_>,
    uid: &str,
    edit: impl Fn(&mut Value) -> bool,
) -> Result<Option<i64>, Box<Status>> {
    for _ in 0..TRIES {
        let (stored, mut object) = match place.read(backend).await {
            Ok(found) => found,
            Err(status) if status.reason == Reason::NotFound => return Ok(None),
            Err(status) => return Err(status),
        };
        if object::meta_text(&object, "uid") != uid {
            return Ok(None);
        }
        if !edit(&mut object) {
            return Ok(Some(stored.revision));
        }
        let op = place.op(backend, &stored, &object)?;
        match backend.objects.commit(vec![op]).await {
            Ok(revision) => return Ok(Some(revision)),
            Err(ObjectError::Failed { .. }) => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    Err(crate::apiserver::conflict(place.kind, place.name))
}

/// Keeps the members of a list of `metadata` that `keep` wants; an empty list says the same as none.
fn retain(object: &mut Value, list: &str, keep: impl Fn(&Value) -> bool) -> bool {
    let meta = object::meta_mut(object);
    let Some(items) = meta.get_mut(list).and_then(Value::as_array_mut) else {
        return false;
    };
    let before = items.len();
    items.retain(keep);
    let changed = items.len() != before;
    if items.is_empty() {
        meta.remove(list);
    }
    changed
}

fn forget(object: &mut Value, gone: &[String]) -> bool {
    let is_gone = |reference: &Value| gone.iter().any(|uid| reference["uid"] == uid.as_str());
    retain(object, "ownerReferences", |reference| !is_gone(reference))
}

fn finish(object: &mut Value, finalizer: &str) -> bool {
    object::is_terminating(object) && retain(object, "finalizers", |f| f != finalizer)
}

fn unblocked(object: &mut Value) -> bool {
    let references = object.pointer_mut("/metadata/ownerReferences");
    let references = references.and_then(Value::as_array_mut).into_iter().flatten();
    let mut changed = false;
    for reference in references.filter(|r| r["blockOwnerDeletion"] == true) {
        reference["blockOwnerDeletion"] = false.into();
        changed = true;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_forgotten_leaves_no_empty_list() {
        let reference = |uid: &str| json!({ "uid": uid, "blockOwnerDeletion": true });
        let mut object =
            json!({ "metadata": { "ownerReferences": [reference("a"), reference("b")], "finalizers": ["orphan"] } });
        assert!(forget(&mut object, &["a".into()]));
        assert!(!forget(&mut object, &["a".into()]));
        assert!(unblocked(&mut object) && !unblocked(&mut object));
        assert_eq!(
            object["metadata"]["ownerReferences"],
            json!([{ "uid": "b", "blockOwnerDeletion": false }])
        );
        assert!(forget(&mut object, &["b".into()]));
        assert!(!finish(&mut object, "orphan"), "nobody asked for its deletion");
        object["metadata"]["deletionTimestamp"] = "now".into();
        assert!(finish(&mut object, "orphan"));
        assert_eq!(object, json!({ "metadata": { "deletionTimestamp": "now" } }));
    }
}
