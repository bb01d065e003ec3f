//! Secrets of objects, which enter the log only sealed.
//!
//! A kind names the field of `spec` that is secret ([`Kind::secret_field`]). In the stored object that field is missing and
//! `sealed` holds it, in base64; so does the annotation in which kubectl keeps what was applied last, as it repeats the
//! field. What is sealed is bound to the kind, the namespace, the name and the uid of its object: moved to another one by
//! whoever can write to the disk, it does not open.

use super::backend::Backend;
use super::object;
use crate::kinds::Kind;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hanse_api::status::{Reason, Status};
use hanse_runtime::seal::SealError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

const SEALED: &str = "sealed";
/// Where `kubectl apply` keeps the whole object as it was given.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What is taken out of an object.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hidden {
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_applied: Option<Value>,
}

fn purpose(kind: &dyn Kind, object: &Value) -> Vec<u8> {
    let part = |key| object::meta_text(object, key);
    let plural = kind.names().plural;
    format!("hanse {plural} {}/{} {}", part("namespace"), part("name"), part("uid")).into_bytes()
}

fn failed(kind: &dyn Kind, object: &Value, error: &dyn std::fmt::Display) -> Box<Status> {
    let (what, name) = (kind.names().plural, object::name(object));
    tracing::error!(kind = what, name, %error, "a secret can be neither sealed nor opened");
    let message = format!("the secret part of {what} {name:?} cannot be read or written: {error}");
    Box::new(Status::new(Reason::InternalError, message))
}

/// An object as it is stored.
pub(super) fn encode(backend: &Backend, kind: &dyn Kind, object: &Value) -> Result<Bytes, Box<Status>> {
    let Some(field) = kind.secret_field() else {
        return Ok(object.to_string().into());
    };
    let mut stored = object.clone();
    let hidden = Hidden {
        field: stored["spec"].as_object_mut().and_then(|spec| spec.remove(field)),
        last_applied: stored
            .pointer_mut("/metadata/annotations")
            .and_then(Value::as_object_mut)
            .and_then(|all| all.remove(LAST_APPLIED)),
    };
    let plain = serde_json::to_vec(&hidden).map_err(|error| failed(kind, object, &error))?;
    let plain = Zeroizing::new(plain);
    let sealed = backend
        .sealer
        .seal(backend.rng.as_ref(), &plain, &purpose(kind, object));
    let sealed = sealed.map_err(|error| failed(kind, object, &error))?;
    stored[SEALED] = STANDARD.encode(sealed).into();
    Ok(stored.to_string().into())
}

/// A stored object with its secrets in their places.
pub(super) fn open(backend: &Backend, kind: &dyn Kind, mut object: Value) -> Result<Value, Box<Status>> {
    let Some(field) = kind.secret_field() else {
        return Ok(object);
    };
    let Some(sealed) = object.as_object_mut().and_then(|o| o.remove(SEALED)) else {
        return Err(failed(kind, &object, &"it is not sealed"));
    };
    let sealed = STANDARD.decode(sealed.as_str().unwrap_or_default()).unwrap_or_default();
    let plain = backend.sealer.open(&sealed, &purpose(kind, &object));
    let hidden = plain.and_then(|plain| serde_json::from_slice::<Hidden>(&plain).map_err(|_| SealError::Open));
    let hidden = hidden.map_err(|error| failed(kind, &object, &error))?;
    if let Some(value) = hidden.field {
        object::member_mut(&mut object, "spec").insert(field.to_owned(), value);
    }
    if let Some(value) = hidden.last_applied {
        let meta = object::meta_mut(&mut object);
        let annotations = meta
            .entry("annotations")
            .or_insert_with(|| Value::Object(Default::default()));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(LAST_APPLIED.to_owned(), value);
        }
    }
    Ok(object)
}
