//! From somebody at a provider to a user here. Whoever was here before is found by issuer and subject, and by nothing else:
//! names and addresses may be somebody else's tomorrow.

use super::person::{Person, identity_name};
use super::provider::Refusal;
use super::settings::OidcIssuer;
use crate::apiserver::backend::{Backend, failed};
use crate::apiserver::keys::{new_meta, stored_json};
use crate::apiserver::object;
use hanse_api::Timestamp;
use hanse_api::kinds::{IDENTITIES, KindName, OIDC_GRANTS, SPENT_LOGINS, USERS};
use hanse_api::resources::{Identity, IdentitySpec, SpentLogin, SpentLoginSpec, User, UserSpec};
use hanse_api::status::Status;
use hanse_state::objects::{ObjectError, ObjectKey, Op, Page, Stored};
use serde::Deserialize;
use serde_json::Value;

/// Tries of a transaction that somebody else's change came before.
const TRIES: usize = 5;
/// Used logins that may be forgotten, and are, with each new one; and logins at clients. Two of each, so that there are never
/// more than have their time.
const FORGOTTEN: i64 = 2;

/// A user who may log in, as he was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Name.
    pub(crate) user: String,
    /// Uid.
    pub(crate) uid: String,
}

/// What a login changes beside the user: decided anew for each try, since a user may be new.
pub(super) type More<'a> = dyn Fn(&Known) -> Result<Vec<Op>, Box<Status>> + Send + Sync + 'a;

/// What went wrong.
#[derive(Debug)]
pub(super) enum Fault {
    /// For the person.
    Refused(Refusal),
    /// For the person, from the store.
    Status(Box<Status>),
}

impl From<Box<Status>> for Fault {
    fn from(status: Box<Status>) -> Self {
        Self::Status(status)
    }
}

fn refused(text: impl Into<String>) -> Fault {
    Fault::Refused(Refusal::Refused(text.into()))
}

/// Lets `person` in: finds or makes his user, takes over his groups, uses up the login `spent`, and does what `more` says,
/// all in one transaction.
pub(super) async fn admit(
    backend: &Backend,
    settings: &OidcIssuer,
    person: &Person,
    spent: &Spent<'_>,
    more: &More<'_>,
) -> Result<Known, Fault> {
    for _ in 0..TRIES {
        let (known, mut ops) = ops_for(backend, settings, person).await?;
        ops.extend(more(&known)?);
        if commit(backend, ops, spent).await? {
            return Ok(known);
        }
    }
    Err(refused("too much changed at once; log in again"))
}

/// Commits `ops` and uses up `spent` in the same transaction. False when something changed in between.
pub(super) async fn commit(backend: &Backend, ops: Vec<Op>, spent: &Spent<'_>) -> Result<bool, Fault> {
    // Another server may forget the same old logins at this moment: that is no reason to fail, so the second try leaves
    // them alone.
    for forgets in [true, false] {
        let mut all = ops.clone();
        all.push(spent.op(backend)?);
        if forgets {
            all.extend(forgotten(backend, &SPENT_LOGINS).await?);
            all.extend(forgotten(backend, &OIDC_GRANTS).await?);
        }
        match backend.objects.commit(all).await {
            Ok(_) => return Ok(true),
            Err(ObjectError::Failed { .. }) => {
                let used = backend.objects.get(&spent.key()).await.map_err(|e| failed(&e))?;
                if used.is_some() {
                    return Err(refused("this login was used already; begin again"));
                }
            }
            Err(error) => return Err(failed(&error).into()),
        }
    }
    Ok(false)
}

/// A name among things that end: the oldest come first.
pub(super) fn ending_name(expires: Timestamp, id: &str) -> String {
    format!("{:016x}-{id}", expires.as_millis().max(0))
}

/// Something that may be used once.
pub(super) struct Spent<'a> {
    /// Its id.
    pub(super) id: &'a str,
    /// When it ends by itself.
    pub(super) expires: Timestamp,
}

impl Spent<'_> {
    /// The oldest come first in the order of names.
    fn key(&self) -> ObjectKey {
        ObjectKey::new(&SPENT_LOGINS, "", ending_name(self.expires, self.id))
    }

    fn op(&self, backend: &Backend) -> Result<Op, Box<Status>> {
        let key = self.key();
        let object = SpentLogin {
            api_version: SPENT_LOGINS.api_version(),
            kind: SPENT_LOGINS.kind.into(),
            metadata: new_meta(backend, &key.name),
            spec: SpentLoginSpec { expires: self.expires },
            status: (),
        };
        Ok(Op::Create {
            value: stored_json(&object)?,
            key,
        })
    }
}

/// As much as has to be known of an object to forget it.
#[derive(Deserialize)]
struct Ends {
    spec: SpentLoginSpec,
}

/// What ends the memory of things of `kind` that are over: their names begin with the time of their end.
async fn forgotten(backend: &Backend, kind: &KindName) -> Result<Vec<Op>, Box<Status>> {
    let page = Page {
        limit: FORGOTTEN,
        ..Page::default()
    };
    let list = backend.objects.list(kind, None, page).await.map_err(|e| failed(&e))?;
    let now = backend.clock.wall();
    let over =
        |stored: &&Stored| serde_json::from_slice::<Ends>(&stored.value).is_ok_and(|ends| ends.spec.expires < now);
    let delete = |stored: &Stored| Op::Delete {
        key: ObjectKey::new(kind, "", &stored.name),
        expected: stored.revision,
    };
    Ok(list.items.iter().filter(over).map(delete).collect())
}

/// The user of `person`, and what has to change for him to come in.
async fn ops_for(backend: &Backend, settings: &OidcIssuer, person: &Person) -> Result<(Known, Vec<Op>), Fault> {
    let name = identity_name(&person.issuer, &person.subject);
    let bound = get(backend, &IDENTITIES, &name).await?;
    if let Some(bound) = &bound {
        let identity: Identity = serde_json::from_value(Backend::parse(bound)?)
            .map_err(|_| refused("what is stored about you cannot be read; an administrator has to look at it"))?;
        if let Some(user) = get(backend, &USERS, &identity.spec.user).await?
            && let Some(known) = meant(&identity.spec, &user)?
        {
            return Ok((known, vec![with_groups(person, &user)?]));
        }
    }
    if !settings.create_users {
        return Err(refused(format!(
            "nobody here is {} of {}: an administrator has to bind the identity {name} to a user",
            person.subject,
            settings.title()
        )));
    }
    newcomer(backend, settings, person, &name, bound.as_ref()).await
}

/// The user that an identity means, unless it means an earlier one of that name; a fault when he may not come in.
fn meant(identity: &IdentitySpec, stored: &Stored) -> Result<Option<Known>, Fault> {
    let user: User = serde_json::from_slice(&stored.value)
        .map_err(|_| refused("what is stored about you cannot be read; an administrator has to look at it"))?;
    if !identity.user_uid.is_empty() && identity.user_uid != user.metadata.uid {
        return Ok(None);
    }
    if user.spec.disabled || user.metadata.deletion_timestamp.is_some() {
        return Err(refused(format!(
            "the user {:?} is disabled; an administrator can enable him",
            stored.name
        )));
    }
    Ok(Some(Known {
        user: stored.name.clone(),
        uid: user.metadata.uid,
    }))
}

/// The user with the groups that the provider puts him into now. Those of other providers stay.
fn with_groups(person: &Person, stored: &Stored) -> Result<Op, Fault> {
    let key = ObjectKey::new(&USERS, "", &stored.name);
    let mut user: Value = serde_json::from_slice(&stored.value)
        .map_err(|_| refused("what is stored about you cannot be read; an administrator has to look at it"))?;
    let had: UserSpec = serde_json::from_value(user["spec"].clone()).unwrap_or_default();
    let groups = person.sso_groups(&had.sso_groups);
    if groups == had.sso_groups {
        // He must still be what he was when he was let in.
        return Ok(Op::Require {
            key,
            revision: stored.revision,
        });
    }
    object::member_mut(&mut user, "spec").insert("ssoGroups".into(), groups.into());
    let generation = user["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
    object::meta_mut(&mut user).insert("generation".into(), generation.into());
    Ok(Op::Update {
        key,
        value: user.to_string().into(),
        expected: stored.revision,
    })
}

async fn newcomer(
    backend: &Backend,
    settings: &OidcIssuer,
    person: &Person,
    name: &str,
    bound: Option<&Stored>,
) -> Result<(Known, Vec<Op>), Fault> {
    if get(backend, &USERS, &person.user).await?.is_some() {
        return Err(refused(format!(
            "there is a user {:?} already, who is not known to be you: an administrator can bind the identity {name} to him \
             (issuer {:?}, subject {:?}), or give the provider a `username_prefix` in [[oidc]]",
            person.user, person.issuer, person.subject
        )));
    }
    let user = User {
        api_version: USERS.api_version(),
        kind: USERS.kind.into(),
        metadata: new_meta(backend, &person.user),
        spec: UserSpec {
            username: person.user.clone(),
            display_name: person.display_name.clone(),
            email: person.email.clone(),
            sso_groups: person.sso_groups(&[]),
            ..UserSpec::default()
        },
        status: (),
    };
    let known = Known {
        user: person.user.clone(),
        uid: user.metadata.uid.clone(),
    };
    let identity = Identity {
        api_version: IDENTITIES.api_version(),
        kind: IDENTITIES.kind.into(),
        metadata: new_meta(backend, name),
        spec: IdentitySpec {
            issuer: person.issuer.clone(),
            subject: person.subject.clone(),
            user: known.user.clone(),
            user_uid: known.uid.clone(),
        },
        status: (),
    };
    let (key, value) = (ObjectKey::new(&IDENTITIES, "", name), stored_json(&identity)?);
    let bind = match bound {
        None => Op::Create { key, value },
        Some(old) => Op::Update {
            key,
            value,
            expected: old.revision,
        },
    };
    let make = Op::Create {
        key: ObjectKey::new(&USERS, "", &person.user),
        value: stored_json(&user)?,
    };
    tracing::info!(provider = settings.id, user = known.user, "somebody new logs in");
    Ok((known, vec![make, bind]))
}

async fn get(backend: &Backend, kind: &KindName, name: &str) -> Result<Option<Stored>, Box<Status>> {
    let key = ObjectKey::new(kind, "", name);
    backend.objects.get(&key).await.map_err(|e| failed(&e))
}
