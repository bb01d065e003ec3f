//! Keys that are shown once: access keys of the caller, enrolment tokens of agents, join tokens of servers. Only hashes are stored.

use super::backend::{Backend, failed};
use super::object;
use super::special::typed;
use crate::authn::{access_key, enrolment_token};
use crate::authz::Asker;
use hanse_api::Timestamp;
use hanse_api::access::{GROUP_TEAM_PREFIX, Owner, Principal, SCOPE_ROLES, Scope};
use hanse_api::kinds::{
    ACCESS_KEYS, CLUSTERS, ENROLMENT_TOKENS, JOIN_TOKENS, KindName, LOFT_GROUP, STORAGE_ACCESS_KEYS, TEAMS, USERS,
};
use hanse_api::meta::ObjectMeta;
use hanse_api::name::check_label;
use hanse_api::resources::{
    AccessKey, AccessKeySpec, Cluster, EnrolmentToken, EnrolmentTokenSpec, JoinToken, JoinTokenSpec, Team, User,
};
use hanse_api::status::{Cause, Reason, Status};
use hanse_runtime::pki::sha256_hex;
use hanse_state::objects::{ObjectError, ObjectKey, Op, Page, Stored};
use serde_json::{Value, json};
use std::time::Duration;

/// Default and longest life of an enrolment token.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Longest life of an access key that may be asked for.
pub(super) const KEY_LIFE_MAX: i64 = 10 * 365 * 24 * 3600;
/// Objects read from the store at once.
const SCAN_PAGE: i64 = 500;
/// Most keys of one user that are listed.
const MAX_KEYS: usize = 1000;

pub(super) fn invalid(kind: &str, name: &str, field: &str, message: String) -> Box<Status> {
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

/// For whom a key is wanted, and by which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By its owner, or a member of the team that it is for.
    Owned,
    /// By somebody who administers keys.
    Administered,
}

impl Way {
    const fn names(self) -> (&'static str, &'static KindName) {
        match self {
            Self::Owned => ("OwnedAccessKey", &OWNED),
            Self::Administered => ("AccessKey", &STORAGE_ACCESS_KEYS),
        }
    }
}

const OWNED: KindName = KindName {
    group: LOFT_GROUP,
    version: "v1",
    kind: "OwnedAccessKey",
    plural: "ownedaccesskeys",
    namespaced: false,
};
/// Types of keys that can be asked for.
const TYPES: &[&str] = &["", "User", "Login"];

/// What a caller wants of a new key, checked. The secret comes later.
fn wanted_key(backend: &Backend, principal: &Principal, way: Way, wanted: &Value) -> Result<AccessKey, Box<Status>> {
    let name = match object::name(wanted) {
        "" => new_id(backend),
        name => name.to_owned(),
    };
    let fault = |(field, message): (&str, String)| invalid(way.names().0, &name, field, message);
    if let Err(why) = hanse_api::name::check_label(&name) {
        return Err(fault(("metadata.name", format!("Invalid value: {name:?}: {why}"))));
    }
    let spec = &wanted["spec"];
    let owner = wanted_owner(principal, way, spec).map_err(fault)?;
    let life = wanted_life(spec).map_err(fault)?;
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    if !spec["key"].is_null() && spec["key"] != "" {
        // Only the server knows how random it is.
        return Err(fault((
            "spec.key",
            "Invalid value: the key is made by the server".into(),
        )));
    }
    let kind = text("type");
    if !TYPES.contains(&kind.as_str()) {
        let message = format!("Unsupported value: {kind:?}: supported values: \"User\", \"Login\"");
        return Err(fault(("spec.type", message)));
    }
    // A key that can do more than was asked for would be worse than none.
    if let Some(why) = scope_fault(&spec["scope"]) {
        return Err(fault(("spec.scope", why)));
    }
    Ok(AccessKey {
        api_version: ACCESS_KEYS.api_version(),
        kind: ACCESS_KEYS.kind.into(),
        metadata: new_meta(backend, &name),
        spec: AccessKeySpec {
            display_name: text("displayName"),
            user: owner.user,
            team: owner.team,
            kind: if kind.is_empty() { "User".into() } else { kind },
            scope: serde_json::from_value(spec["scope"].clone()).unwrap_or_default(),
            expires: life.map(|life| backend.clock.wall().plus(life)),
            ..AccessKeySpec::default()
        },
        status: (),
    })
}

/// Whose key it shall be: the caller's, where nobody is named.
fn wanted_owner(principal: &Principal, way: Way, spec: &Value) -> Result<Owner, (&'static str, String)> {
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    let mut owner = Owner {
        user: text("user"),
        team: text("team"),
    };
    if owner == Owner::default() {
        match principal.user.strip_prefix(GROUP_TEAM_PREFIX) {
            Some(own) => own.clone_into(&mut owner.team),
            None => owner.user.clone_from(&principal.user),
        }
    }
    if !owner.user.is_empty() && !owner.team.is_empty() {
        let message = "Invalid value: a key is a user's or a team's, not both";
        return Err(("spec.team", message.into()));
    }
    if way == Way::Owned && !owner.is(principal) {
        let (field, name) = match owner.team.as_str() {
            "" => ("spec.user", owner.user),
            _ => ("spec.team", owner.team),
        };
        let message = format!("Invalid value: {name:?}: a key can be made for oneself or a team of one's own only");
        return Err((field, message));
    }
    Ok(owner)
}

/// How long it shall hold.
fn wanted_life(spec: &Value) -> Result<Option<Duration>, (&'static str, String)> {
    if spec["ttlAfterLastActivity"].as_i64().is_some_and(|n| n != 0) {
        return Err((
            "spec.ttlAfterLastActivity",
            "Invalid value: is not supported yet".into(),
        ));
    }
    let ttl = spec["ttl"].as_i64().unwrap_or(0);
    if !(0..=KEY_LIFE_MAX).contains(&ttl) {
        let message = format!("Invalid value: {ttl}: must be from 0 to {KEY_LIFE_MAX} seconds");
        return Err(("spec.ttl", message));
    }
    Ok((ttl > 0).then(|| Duration::from_secs(ttl.unsigned_abs())))
}

/// What is wrong with a scope: a part that is not understood would narrow nothing.
fn scope_fault(scope: &Value) -> Option<String> {
    let Some(parts) = scope.as_object() else {
        return (!scope.is_null()).then(|| "Invalid value: must be an object".to_owned());
    };
    let known = ["roles", "projects", "virtualClusters", "clusters"];
    let used = |v: &Value| !(v.is_null() || *v == false || v.as_array().is_some_and(Vec::is_empty));
    if let Some((part, _)) = parts.iter().find(|(k, v)| !known.contains(&k.as_str()) && used(v)) {
        return Some(format!(
            "Invalid value: {part:?} is not supported; there are {}",
            known.join(", ")
        ));
    }
    let read: Scope = match serde_json::from_value(scope.clone()) {
        Ok(read) => read,
        Err(error) => return Some(format!("Invalid value: {error}")),
    };
    if !parts.is_empty() && parts.values().any(used) && read.is_everything() {
        return Some("Invalid value: it narrows nothing".into());
    }
    let role = read.roles.iter().find(|r| !SCOPE_ROLES.contains(&r.role.as_str()))?;
    Some(format!(
        "Unsupported value: {:?}: supported roles: {}",
        role.role,
        SCOPE_ROLES.join(", ")
    ))
}

/// Metadata of an object that is made now.
pub(crate) fn new_meta(backend: &Backend, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: name.to_owned(),
        uid: backend.rng.uuid(),
        generation: 1,
        creation_timestamp: Some(backend.clock.wall()),
        ..ObjectMeta::default()
    }
}

/// Makes a key; the answer is the only place where its secret is ever seen.
pub(super) async fn create_key(
    backend: &Backend,
    principal: &Principal,
    way: Way,
    wanted: &Value,
) -> Result<Value, Box<Status>> {
    let mut key = wanted_key(backend, principal, way, wanted)?;
    let AccessKeySpec { user, team, .. } = &key.spec;
    if team.is_empty() {
        typed::<User>(backend, &USERS, user).await?;
    } else {
        typed::<Team>(backend, &TEAMS, team).await?;
    }
    let asker = Asker { backend, principal };
    let owner = Owner {
        user: user.clone(),
        team: team.clone(),
    };
    if way == Way::Administered && !owner.is(principal) {
        // Whoever has somebody's key is that somebody.
        let (kind, name) = if team.is_empty() {
            (&USERS, user)
        } else {
            (&TEAMS, team)
        };
        asker.require("impersonate", kind, None, ("", Some(name))).await?;
    }
    let (name, secret) = (key.metadata.name.clone(), backend.rng.token());
    key.spec.secret_sha256 = sha256_hex(secret.as_bytes());
    let op = Op::Create {
        key: ObjectKey::new(&ACCESS_KEYS, "", &name),
        value: stored_json(&key)?,
    };
    commit_new(backend, op, way.names().1.plural, &name).await?;
    let mut made = shown(&key, way);
    made["spec"]["key"] = access_key(&name, &secret).into();
    Ok(made)
}

/// A key for a user who has just logged in: what makes it, and the key itself.
pub(crate) fn login_key(
    backend: &Backend,
    user: &str,
    about: &str,
    life: Duration,
) -> Result<(Op, String), Box<Status>> {
    let (id, secret) = (new_id(backend), backend.rng.token());
    let key = AccessKey {
        api_version: ACCESS_KEYS.api_version(),
        kind: ACCESS_KEYS.kind.into(),
        metadata: new_meta(backend, &id),
        spec: AccessKeySpec {
            display_name: about.to_owned(),
            user: user.to_owned(),
            kind: "Login".into(),
            secret_sha256: sha256_hex(secret.as_bytes()),
            expires: Some(backend.clock.wall().plus(life)),
            ..AccessKeySpec::default()
        },
        status: (),
    };
    let op = Op::Create {
        key: ObjectKey::new(&ACCESS_KEYS, "", &id),
        value: stored_json(&key)?,
    };
    Ok((op, access_key(&id, &secret)))
}

/// A key without anything secret.
fn shown(key: &AccessKey, way: Way) -> Value {
    let mut spec = serde_json::to_value(&key.spec).unwrap_or_default();
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("secretSha256");
    }
    let (kind, names) = way.names();
    json!({ "kind": kind, "apiVersion": names.api_version(), "metadata": key.metadata, "spec": spec })
}

fn is_his(key: &AccessKey, principal: &Principal) -> bool {
    let owner = Owner {
        user: key.spec.user.clone(),
        team: key.spec.team.clone(),
    };
    owner.is(principal)
}

/// An object as it is stored.
pub(crate) fn stored_json(object: &impl serde::Serialize) -> Result<bytes::Bytes, Box<Status>> {
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

/// The keys of the caller and his teams, without anything secret.
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
                Ok(key) if is_his(&key, principal) && items.len() < MAX_KEYS => items.push(shown(&key, Way::Owned)),
                Ok(_) => {}
                Err(error) => tracing::error!(%error, name = stored.name, "a stored access key cannot be read"),
            }
        }
        let Some(next) = list.next_page(page) else {
            break list.revision;
        };
        page = next;
    };
    Ok(json!({
        "kind": "OwnedAccessKeyList", "apiVersion": "management.loft.sh/v1",
        "metadata": { "resourceVersion": revision.to_string() }, "items": items,
    }))
}

/// A key of the caller or a team of his, as stored; that there are others is not told.
async fn owned(backend: &Backend, principal: &Principal, name: &str) -> Result<(Stored, AccessKey), Box<Status>> {
    let missing = || Box::new(Status::not_found(LOFT_GROUP, "ownedaccesskeys", name));
    let key = ObjectKey::new(&ACCESS_KEYS, "", name);
    let stored = backend
        .objects
        .get(&key)
        .await
        .map_err(|e| failed(&e))?
        .ok_or_else(missing)?;
    let found: AccessKey = serde_json::from_value(Backend::parse(&stored)?).map_err(|_| missing())?;
    if is_his(&found, principal) {
        Ok((stored, found))
    } else {
        Err(missing())
    }
}

/// One key of the caller.
pub(super) async fn get_key(backend: &Backend, principal: &Principal, name: &str) -> Result<Value, Box<Status>> {
    let (_, key) = owned(backend, principal, name).await?;
    Ok(shown(&key, Way::Owned))
}

/// Ends a key of the caller.
pub(super) async fn delete_key(backend: &Backend, principal: &Principal, name: &str) -> Result<Value, Box<Status>> {
    let (stored, _) = owned(backend, principal, name).await?;
    let key = ObjectKey::new(&ACCESS_KEYS, "", name);
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

/// A one-time token that was just made: how it is stored, and what is shown of it, once.
struct OneTime {
    id: String,
    secret_sha256: String,
    expires: Timestamp,
    shown: String,
}

impl OneTime {
    /// Makes one that lives as long as `wanted` says; `kind` and `subject` name it in refusals.
    fn new(backend: &Backend, kind: &str, subject: &str, wanted: &Value) -> Result<Self, Box<Status>> {
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
                return Err(invalid(kind, subject, "spec.ttlSeconds", message));
            }
        };
        let (id, secret) = (new_id(backend), backend.rng.token());
        Ok(Self {
            expires: backend.clock.wall().plus(life),
            secret_sha256: sha256_hex(secret.as_bytes()),
            shown: enrolment_token(&id, &secret, &backend.ca_sha256),
            id,
        })
    }
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
    let made = OneTime::new(backend, "EnrolmentToken", cluster, wanted)?;
    let token = EnrolmentToken {
        api_version: ENROLMENT_TOKENS.api_version(),
        kind: ENROLMENT_TOKENS.kind.into(),
        metadata: new_meta(backend, &made.id),
        spec: EnrolmentTokenSpec {
            cluster: cluster.to_owned(),
            secret_sha256: made.secret_sha256,
            expires: made.expires,
            used_by_key_sha256: None,
        },
        status: (),
    };
    let op = Op::Create {
        key: ObjectKey::new(&ENROLMENT_TOKENS, "", &made.id),
        value: stored_json(&token)?,
    };
    commit_new(backend, op, "enrolmenttokens", &made.id).await?;
    Ok(json!({
        "kind": "EnrolmentToken",
        "apiVersion": "management.loft.sh/v1",
        "metadata": { "name": cluster },
        "status": { "token": made.shown, "expires": made.expires },
    }))
}

/// Makes a one-time token by which a server of `region` joins, which may be the first one there. Whether the caller may was asked.
pub(super) async fn join_token(
    backend: &Backend,
    principal: &Principal,
    region: &str,
    wanted: &Value,
) -> Result<Value, Box<Status>> {
    if let Err(why) = check_label(region) {
        return Err(invalid(
            "JoinToken",
            region,
            "metadata.name",
            format!("Invalid value: {region:?}: {why}"),
        ));
    }
    let made = OneTime::new(backend, "JoinToken", region, wanted)?;
    let token = JoinToken {
        api_version: JOIN_TOKENS.api_version(),
        kind: JOIN_TOKENS.kind.into(),
        metadata: new_meta(backend, &made.id),
        spec: JoinTokenSpec {
            region: region.to_owned(),
            secret_sha256: made.secret_sha256,
            expires: made.expires,
            used: None,
        },
        status: (),
    };
    let op = Op::Create {
        key: ObjectKey::new(&JOIN_TOKENS, "", &made.id),
        value: stored_json(&token)?,
    };
    commit_new(backend, op, "jointokens", &made.id).await?;
    tracing::info!(
        user = principal.user,
        region,
        token = made.id,
        "a token for a new server was made"
    );
    Ok(json!({
        "kind": "JoinToken",
        "apiVersion": JOIN_TOKENS.api_version(),
        "metadata": { "name": region },
        "status": { "token": made.shown, "expires": made.expires },
    }))
}
