//! Who asks. Access keys are looked up in this server's own applied state for every request, so a key that is revoked or
//! disabled stops working as soon as the change is applied here; requests that go on for long are told of changes
//! ([`revocation`]).

mod bearer;
pub(crate) mod impersonate;
pub(crate) mod revocation;

pub use bearer::{ACCESS_KEY_PREFIX, ENROLMENT_TOKEN_PREFIX, access_key, enrolment_token};

use crate::apiserver::backend::failed;
use crate::directory::{Directory, Snapshot};
use crate::oidc::{Oidc, Person, Refusal, identity_name};
use bearer::Presented;
use hanse_api::Timestamp;
use hanse_api::access::{GROUP_ADMINS, GROUP_AUTHENTICATED, GROUP_TEAM_PREFIX, GROUP_USER_PREFIX, Principal};
use hanse_api::kinds::{ACCESS_KEYS, IDENTITIES, KindName, USERS};
use hanse_api::resources::user::MANAGEMENT_ADMIN;
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

/// What a caller showed, to look at it again later.
#[derive(Clone, Debug)]
enum Shown {
    /// An access key: the hash in it, to notice when it was replaced.
    Key(String),
    /// An ID token about this person. It cannot be replaced, and ends by itself.
    Token(Box<Person>),
}

/// A caller whose credentials hold.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// Who he is.
    pub(crate) principal: Principal,
    /// Name of the AccessKey object; empty for an ID token.
    pub(crate) key: String,
    /// Its type, such as `Login`.
    pub(crate) kind: String,
    /// What was shown.
    shown: Shown,
    /// When the key or token expires.
    pub(crate) expires: Option<Timestamp>,
}

/// Checks access keys.
#[derive(Clone)]
pub(crate) struct Authenticator {
    objects: Objects,
    clock: SharedClock,
    remote: Arc<Semaphore>,
    directory: Directory,
    oidc: Option<Arc<Oidc>>,
}

impl Authenticator {
    pub(crate) fn new(objects: Objects, clock: SharedClock, directory: Directory, oidc: Option<Arc<Oidc>>) -> Self {
        Self {
            objects,
            clock,
            directory,
            oidc,
            remote: Arc::new(Semaphore::new(REMOTE_LOOKUPS)),
        }
    }

    /// What a failure is counted by, if the request shows anything that could hold: the id of its access key, or nothing more.
    pub(crate) fn shown(headers: &HeaderMap) -> Option<Option<String>> {
        match bearer::presented(headers) {
            Some(presented) => Some(Some(presented.id)),
            None => bearer::id_token(headers).map(|_| None),
        }
    }

    /// The caller behind a request, or 401. The reason goes to the log only.
    pub(crate) async fn authenticate(&self, headers: &HeaderMap) -> Result<Identity, Box<Status>> {
        let Some(presented) = bearer::presented(headers) else {
            return self.authenticate_token(headers).await;
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
        let hash = match &identity.shown {
            Shown::Key(hash) => hash,
            Shown::Token(person) => return self.by_token(person, identity.expires).await,
        };
        let key: Option<AccessKey> = self.object(&ACCESS_KEYS, &identity.key).await?;
        match key {
            Some(key) if key.spec.secret_sha256 == *hash => self.identity(&identity.key, key).await,
            Some(_) | None => Err(unauthorized("the access key is gone")),
        }
    }

    /// The caller by an ID token of a provider that is trusted with that.
    async fn authenticate_token(&self, headers: &HeaderMap) -> Result<Identity, Box<Status>> {
        let (Some(token), Some(oidc)) = (bearer::id_token(headers), &self.oidc) else {
            return Err(unauthorized("no usable credentials"));
        };
        match oidc.bearer(token).await {
            Ok((person, expires)) => self.by_token(&person, Some(expires)).await,
            Err(Refusal::Refused(why)) => Err(unauthorized(&why)),
            // The caller may be who he says: that it cannot be known now is another thing than a no.
            Err(Refusal::Unreachable(why)) => {
                Err(Box::new(Status::new(Reason::ServiceUnavailable, why).retry_after(5)))
            }
        }
    }

    /// Who a person of a provider is here. Nobody becomes a user by a request: he has logged in before, or an administrator
    /// bound him.
    async fn by_token(&self, person: &Person, expires: Option<Timestamp>) -> Result<Identity, Box<Status>> {
        if expires.is_none_or(|end| end <= self.clock.wall()) {
            return Err(unauthorized("the token is over"));
        }
        let name = identity_name(&person.issuer, &person.subject);
        let bound: Option<hanse_api::resources::Identity> = self.object(&IDENTITIES, &name).await?;
        let bound = bound.ok_or_else(|| unauthorized("nobody here is this person of the provider"))?;
        let mut user = self.user_object(&bound.spec.user).await?;
        if !bound.spec.user_uid.is_empty() && bound.spec.user_uid != user.metadata.uid {
            return Err(unauthorized("the person was an earlier user of this name"));
        }
        user.spec.sso_groups = person.sso_groups(&user.spec.sso_groups);
        Ok(Identity {
            principal: effective(&*self.directory.snapshot().await?, user),
            key: String::new(),
            kind: String::new(),
            shown: Shown::Token(Box::new(person.clone())),
            expires,
        })
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
            shown: Shown::Key(key.spec.secret_sha256),
            expires: key.spec.expires,
        })
    }

    async fn user(&self, name: String) -> Result<Principal, Box<Status>> {
        let user = self.user_object(&name).await?;
        Ok(effective(&*self.directory.snapshot().await?, user))
    }

    /// A user who may come in.
    async fn user_object(&self, name: &str) -> Result<User, Box<Status>> {
        // Kubernetes' own identities are no users of ours, whatever somebody stored.
        if hanse_api::name::check_subdomain(name).is_err() {
            return Err(unauthorized("the user's name is no name"));
        }
        let user: User = self
            .object(&USERS, name)
            .await?
            .ok_or_else(|| unauthorized("unknown user"))?;
        if user.spec.disabled || user.metadata.deletion_timestamp.is_some() {
            return Err(unauthorized("the user is disabled"));
        }
        Ok(user)
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
    let mut groups = user.spec.own_groups();
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
