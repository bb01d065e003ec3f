//! Who asks. Access keys are looked up in this server's own applied state for every request, so a key that is revoked or
//! disabled stops working as soon as the change is applied here; requests that go on for long are told of changes
//! ([`revocation`]).

mod bearer;
pub(crate) mod impersonate;
pub(crate) mod revocation;

pub use bearer::{ACCESS_KEY_PREFIX, ENROLMENT_TOKEN_PREFIX, access_key, enrolment_token};

use crate::apiserver::backend::failed;
use crate::directory::{Directory, Snapshot};
use bearer::Presented;
use hanse_api::Timestamp;
use hanse_api::access::{GROUP_ADMINS, GROUP_AUTHENTICATED, GROUP_TEAM_PREFIX, GROUP_USER_PREFIX, Principal};
use hanse_api::kinds::{ACCESS_KEYS, KindName, USERS};
use hanse_api::resources::user::{MANAGEMENT_ADMIN, is_given_group};
use hanse_api::resources::{AccessKey, RoleName, User};
use hanse_api::status::{Reason, Status};
use hanse_runtime::clock::{SharedClock, timeout};
use hanse_runtime::pki::sha256_hex;
use hanse_state::objects::{ObjectKey, Objects};
use http::HeaderMap;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Lookups at the leader at once. Only keys that this server does not know need one, such as those made a moment ago
/// elsewhere; guessing at ids must not become a load on the leader.
const REMOTE_LOOKUPS: usize = 4;
/// Time for one of them.
const REMOTE_LOOKUP: Duration = Duration::from_secs(2);

/// A caller whose credentials hold.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Who he is.
    pub(crate) principal: Principal,
    /// Name of the AccessKey object.
    pub(crate) key: String,
    /// Its type, such as `Login`.
    pub(crate) kind: String,
    /// Hash in it, to notice when it was replaced.
    secret_sha256: String,
    /// When the key expires.
    pub(crate) expires: Option<Timestamp>,
}

/// Checks access keys.
#[derive(Clone)]
pub(crate) struct Authenticator {
    objects: Objects,
    clock: SharedClock,
    remote: Arc<Semaphore>,
    directory: Directory,
}

impl Authenticator {
    pub(crate) fn new(objects: Objects, clock: SharedClock, directory: Directory) -> Self {
        Self {
            objects,
            clock,
            directory,
            remote: Arc::new(Semaphore::new(REMOTE_LOOKUPS)),
        }
    }

    /// The caller behind a request, or 401. The reason goes to the log only.
    pub(crate) async fn authenticate(&self, headers: &HeaderMap) -> Result<Identity, Box<Status>> {
        let Some(presented) = bearer::presented(headers) else {
            return Err(unauthorized("no usable credentials"));
        };
        let key: AccessKey = self
            .object(&ACCESS_KEYS, &presented.id)
            .await?
            .ok_or_else(|| unauthorized("unknown access key"))?;
        if !holds(&presented, &key) {
            return Err(unauthorized("wrong secret"));
        }
        self.identity(&presented.id, key).await
    }

    /// The same caller now, if his key and user are still good.
    pub(crate) async fn again(&self, identity: &Identity) -> Result<Identity, Box<Status>> {
        let key: Option<AccessKey> = self.object(&ACCESS_KEYS, &identity.key).await?;
        match key {
            Some(key) if key.spec.secret_sha256 == identity.secret_sha256 => self.identity(&identity.key, key).await,
            Some(_) | None => Err(unauthorized("the access key is gone")),
        }
    }

    async fn identity(&self, id: &str, key: AccessKey) -> Result<Identity, Box<Status>> {
        let now = self.clock.wall();
        let gone = key.spec.disabled || key.metadata.deletion_timestamp.is_some();
        if gone || key.spec.expires.is_some_and(|end| end <= now) {
            return Err(unauthorized("the access key is disabled or expired"));
        }
        let mut principal = if key.spec.team.is_empty() {
            self.user(key.spec.user).await?
        } else {
            self.team(&key.spec.team).await?
        };
        principal.scope = key.spec.scope;
        Ok(Identity {
            principal,
            key: id.to_owned(),
            kind: key.spec.kind,
            secret_sha256: key.spec.secret_sha256,
            expires: key.spec.expires,
        })
    }

    async fn user(&self, name: String) -> Result<Principal, Box<Status>> {
        // Kubernetes' own identities are no users of ours, whatever somebody stored.
        if hanse_api::name::check_subdomain(&name).is_err() {
            return Err(unauthorized("the user's name is no name"));
        }
        let user: User = self
            .object(&USERS, &name)
            .await?
            .ok_or_else(|| unauthorized("unknown user"))?;
        if user.spec.disabled || user.metadata.deletion_timestamp.is_some() {
            return Err(unauthorized("the user is disabled"));
        }
        Ok(effective(&*self.directory.snapshot().await?, user))
    }

    /// Whoever has a key of a team is the team, and none of its members.
    async fn team(&self, name: &str) -> Result<Principal, Box<Status>> {
        let directory = self.directory.snapshot().await?;
        let team = directory.team(name).ok_or_else(|| unauthorized("unknown team"))?;
        let group = format!("{GROUP_TEAM_PREFIX}{name}");
        let mut groups = vec![group.clone(), GROUP_AUTHENTICATED.to_owned()];
        if team.cluster_roles.iter().any(|r| r.name == MANAGEMENT_ADMIN) {
            groups.push(GROUP_ADMINS.to_owned());
        }
        Ok(Principal {
            user: group,
            groups,
            ..Principal::default()
        })
    }

    async fn object<T: DeserializeOwned>(&self, kind: &KindName, name: &str) -> Result<Option<T>, Box<Status>> {
        let key = ObjectKey::new(kind, "", name);
        let mut found = self.objects.get_local(&key).await.map_err(|e| failed(&e))?;
        if found.is_none() {
            found = self.remote(&key).await?;
        }
        let Some(stored) = found else { return Ok(None) };
        serde_json::from_slice(&stored.value).map(Some).map_err(|error| {
            tracing::error!(%error, kind = kind.kind, name, "a stored object cannot be read");
            Box::new(Status::new(
                Reason::InternalError,
                format!("the stored {} {name:?} cannot be read", kind.kind),
            ))
        })
    }

    async fn remote(&self, key: &ObjectKey) -> Result<Option<hanse_state::objects::Stored>, Box<Status>> {
        let Ok(_permit) = self.remote.try_acquire() else {
            return Ok(None);
        };
        match timeout(self.clock.as_ref(), REMOTE_LOOKUP, self.objects.get(key)).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => {
                tracing::debug!(%error, "an unknown key could not be looked up at the leader");
                Ok(None)
            }
            Err(elapsed) => {
                tracing::debug!(%elapsed, "an unknown key could not be looked up at the leader");
                Ok(None)
            }
        }
    }
}

/// A user with all that he is: his groups, his teams, and what they make of him.
pub(crate) fn effective(directory: &Snapshot, user: User) -> Principal {
    let name = user.metadata.name;
    let mut groups: Vec<String> = user.spec.groups.into_iter().filter(|g| !is_given_group(g)).collect();
    let teams = directory.teams_of(&name, &groups);
    let of_teams = teams
        .iter()
        .filter_map(|t| directory.team(t))
        .flat_map(|t| &t.cluster_roles);
    let everything = |role: &RoleName| role.name == MANAGEMENT_ADMIN;
    let admin = user.spec.cluster_roles.iter().chain(of_teams).any(everything);
    groups.extend(teams.iter().map(|team| format!("{GROUP_TEAM_PREFIX}{team}")));
    groups.extend([GROUP_AUTHENTICATED.to_owned(), format!("{GROUP_USER_PREFIX}{name}")]);
    if admin && !groups.iter().any(|g| g == GROUP_ADMINS) {
        groups.push(GROUP_ADMINS.to_owned());
    }
    Principal {
        user: name,
        uid: user.metadata.uid,
        groups,
        ..Principal::default()
    }
}

fn holds(presented: &Presented, key: &AccessKey) -> bool {
    let hash = sha256_hex(presented.secret.as_bytes());
    !key.spec.secret_sha256.is_empty()
        && aws_lc_rs::constant_time::verify_slices_are_equal(hash.as_bytes(), key.spec.secret_sha256.as_bytes()).is_ok()
}

fn unauthorized(why: &str) -> Box<Status> {
    tracing::debug!(why, "a caller was not let in");
    Box::new(Status::new(Reason::Unauthorized, "Unauthorized"))
}
