//! Keys that are shown once: access keys of the caller, and enrolment tokens of agents. Only hashes are stored.

use super::backend::{Backend, failed};
use super::object;
use super::special::typed;
use crate::authn::{access_key, enrolment_token};
use hanse_api::Timestamp;
use hanse_api::access::Principal;
use hanse_api::kinds::{ACCESS_KEYS, CLUSTERS, ENROLMENT_TOKENS, LOFT_GROUP, USERS};
use hanse_api::meta::ObjectMeta;
use hanse_api::resources::{AccessKey, AccessKeySpec, Cluster, EnrolmentToken, EnrolmentTokenSpec, User};
use hanse_api::status::{Cause, Reason, Status};
use hanse_runtime::pki::sha256_hex;
use hanse_state::objects::{ObjectError, ObjectKey, Op, Page};
use serde_json::{Value, json};
use std::time::Duration;

/// Default and longest life of an enrolment token.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Longest life of an access key that may be asked for.
const KEY_LIFE_MAX: i64 = 10 * 365 * 24 * 3600;
/// Objects read from the store at once.
const SCAN_PAGE: i64 = 500;
/// Most keys of one user that are listed.
const MAX_KEYS: usize = 1000;

fn invalid(kind: &str, name: &str, field: &str, message: String) -> Box<Status> {
    let cause = Cause {
        reason: "FieldValueInvalid".into(),
        message,
        field: field.into(),
    };
    Box::new(Status::invalid(LOFT_GROUP, kind, name, vec![cause]))
}

/// A public id: lower case, so that it can name an object.
fn new_id(backend: &Backend) -> String {
    backend.rng.uuid().replace('-', "").chars().take(12).collect()
}

/// What a caller wants of a new key, checked.
struct WantedKey {
    name: String,
    display_name: String,
    expires: Option<Timestamp>,
}

fn wanted_key(backend: &Backend, principal: &Principal, wanted: &Value) -> Result<WantedKey, Box<Status>> {
    let spec = &wanted["spec"];
    let name = match object::name(wanted) {
        "" => new_id(backend),
        name => name.to_owned(),
    };
    let fault = |field: &str, message: String| Err(invalid("OwnedAccessKey", &name, field, message));
    if let Err(why) = hanse_api::name::check_label(&name) {
        return fault("metadata.name", format!("Invalid value: {name:?}: {why}"));
    }
    let owner = spec["user"]
        .as_str()
        .filter(|u| !u.is_empty())
        .unwrap_or(&principal.user);
    if owner != principal.user {
        return fault(
            "spec.user",
            format!("Invalid value: {owner:?}: a key can be made for oneself only"),
        );
    }
    // A key that can do more than was asked for would be worse than none.
    if spec["scope"].as_object().is_some_and(|s| !s.is_empty()) {
        return fault(
            "spec.scope",
            "Invalid value: scopes of access keys are not supported yet".into(),
        );
    }
    let ttl = spec["ttl"].as_i64().unwrap_or(0);
    if !(0..=KEY_LIFE_MAX).contains(&ttl) {
        return fault(
            "spec.ttl",
            format!("Invalid value: {ttl}: must be from 0 to {KEY_LIFE_MAX} seconds"),
        );
    }
    let expires = (ttl > 0).then(|| backend.clock.wall().plus(Duration::from_secs(ttl.unsigned_abs())));
    let display_name = spec["displayName"].as_str().unwrap_or_default().to_owned();
    Ok(WantedKey {
        name,
        display_name,
        expires,
    })
}

/// Metadata of an object that is made now.
fn new_meta(backend: &Backend, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: name.to_owned(),
        uid: backend.rng.uuid(),
        generation: 1,
        creation_timestamp: Some(backend.clock.wall()),
        ..ObjectMeta::default()
    }
}

/// Makes a key for the caller; the answer is the only place where its secret is ever seen.
pub(super) async fn create_key(backend: &Backend, principal: &Principal, wanted: &Value) -> Result<Value, Box<Status>> {
    let WantedKey {
        name,
        display_name,
        expires,
    } = wanted_key(backend, principal, wanted)?;
    let user: User = typed(backend, &USERS, &principal.user).await?;
    let secret = backend.rng.token();
    let key = AccessKey {
        api_version: ACCESS_KEYS.api_version(),
        kind: ACCESS_KEYS.kind.into(),
        metadata: new_meta(backend, &name),
        spec: AccessKeySpec {
            display_name,
            user: user.metadata.name,
            secret_sha256: sha256_hex(secret.as_bytes()),
            expires,
            disabled: false,
        },
        status: (),
    };
    let op = Op::Create {
        key: ObjectKey::new(&ACCESS_KEYS, "", &name),
        value: stored_json(&key)?,
    };
    commit_new(backend, op, "ownedaccesskeys", &name).await?;
    let mut made = owned_key(&key);
    made["spec"]["key"] = access_key(&name, &secret).into();
    Ok(made)
}

fn owned_key(key: &AccessKey) -> Value {
    json!({
        "kind": "OwnedAccessKey",
        "apiVersion": "management.loft.sh/v1",
        "metadata": key.metadata,
        "spec": {
            "displayName": key.spec.display_name, "user": key.spec.user, "type": "User", "disabled": key.spec.disabled,
            "expires": key.spec.expires,
        },
    })
}

fn stored_json(object: &impl serde::Serialize) -> Result<bytes::Bytes, Box<Status>> {
    serde_json::to_vec(object).map(Into::into).map_err(|e| {
        Box::new(Status::new(
            Reason::InternalError,
            format!("an object cannot be written: {e}"),
        ))
    })
}

async fn commit_new(backend: &Backend, op: Op, plural: &str, name: &str) -> Result<(), Box<Status>> {
    match backend.objects.commit(vec![op]).await {
        Ok(_) => Ok(()),
        Err(ObjectError::Failed { .. }) => Err(Box::new(Status::already_exists(LOFT_GROUP, plural, name))),
        Err(error) => Err(failed(&error)),
    }
}

/// The caller's keys, without anything secret.
pub(super) async fn list_keys(backend: &Backend, principal: &Principal) -> Result<Value, Box<Status>> {
    let mut items = Vec::new();
    let mut page = Page {
        limit: SCAN_PAGE,
        ..Page::default()
    };
    let revision = loop {
        let list = backend
            .objects
            .list(&ACCESS_KEYS, None, page.clone())
            .await
            .map_err(|e| failed(&e))?;
        for stored in &list.items {
            match serde_json::from_value::<AccessKey>(Backend::parse(stored)?) {
                Ok(key) if key.spec.user == principal.user && items.len() < MAX_KEYS => items.push(owned_key(&key)),
                Ok(_) => {}
                Err(error) => tracing::error!(%error, name = stored.name, "a stored access key cannot be read"),
            }
        }
        let Some(last) = list.items.last().filter(|_| list.more) else {
            break list.revision;
        };
        page.after = Some((String::new(), last.name.clone()));
        page.revision = list.revision;
    };
    Ok(json!({
        "kind": "OwnedAccessKeyList", "apiVersion": "management.loft.sh/v1",
        "metadata": { "resourceVersion": revision.to_string() }, "items": items,
    }))
}

/// Ends a key of the caller.
pub(super) async fn delete_key(backend: &Backend, principal: &Principal, name: &str) -> Result<Value, Box<Status>> {
    let missing = || Box::new(Status::not_found(LOFT_GROUP, "ownedaccesskeys", name));
    let key = ObjectKey::new(&ACCESS_KEYS, "", name);
    let stored = backend
        .objects
        .get(&key)
        .await
        .map_err(|e| failed(&e))?
        .ok_or_else(missing)?;
    let owned = serde_json::from_slice::<AccessKey>(&stored.value).is_ok_and(|k| k.spec.user == principal.user);
    if !owned {
        return Err(missing());
    }
    backend
        .objects
        .commit(vec![Op::Delete {
            key,
            expected: stored.revision,
        }])
        .await
        .map_err(|e| failed(&e))?;
    Ok(json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": { "name": name, "group": LOFT_GROUP, "kind": "ownedaccesskeys" },
    }))
}

/// Makes a one-time token with which the agent of `cluster` gets its certificate.
pub(super) async fn enrolment(backend: &Backend, cluster: &str, wanted: &Value) -> Result<Value, Box<Status>> {
    let found: Cluster = typed(backend, &CLUSTERS, cluster).await?;
    if found.metadata.deletion_timestamp.is_some() {
        return Err(Box::new(Status::new(
            Reason::Conflict,
            format!("cluster {cluster:?} is being deleted; no agent can be enrolled"),
        )));
    }
    let life = match wanted["spec"]["ttlSeconds"].as_i64() {
        None | Some(0) => TOKEN_LIFE,
        Some(seconds) if seconds > 0 && seconds.unsigned_abs() <= TOKEN_LIFE_MAX.as_secs() => {
            Duration::from_secs(seconds.unsigned_abs())
        }
        Some(seconds) => {
            let message = format!(
                "Invalid value: {seconds}: must be from 1 to {}",
                TOKEN_LIFE_MAX.as_secs()
            );
            return Err(invalid("EnrolmentToken", cluster, "spec.ttlSeconds", message));
        }
    };
    let (now, id, secret) = (backend.clock.wall(), new_id(backend), backend.rng.token());
    let expires = now.plus(life);
    let token = EnrolmentToken {
        api_version: ENROLMENT_TOKENS.api_version(),
        kind: ENROLMENT_TOKENS.kind.into(),
        metadata: new_meta(backend, &id),
        spec: EnrolmentTokenSpec {
            cluster: cluster.to_owned(),
            secret_sha256: sha256_hex(secret.as_bytes()),
            expires,
            used_by_key_sha256: None,
        },
        status: (),
    };
    let value = stored_json(&token)?;
    commit_new(
        backend,
        Op::Create {
            key: ObjectKey::new(&ENROLMENT_TOKENS, "", &id),
            value,
        },
        "enrolmenttokens",
        &id,
    )
    .await?;
    Ok(json!({
        "kind": "EnrolmentToken",
        "apiVersion": "management.loft.sh/v1",
        "metadata": { "name": cluster },
        "status": { "token": enrolment_token(&id, &secret, &backend.ca_sha256), "expires": expires },
    }))
}
