//! What a client is told of a person.

use super::super::Desk;
use super::super::sealed::{Pass, open};
use super::token::grant_of;
use super::{No, fresh};
use crate::apiserver::backend::{Backend, failed};
use crate::body::Response;
use ::http::StatusCode;
use ::http::header::HeaderValue;
use hanse_api::access::GROUP_TEAM_PREFIX;
use hanse_api::kinds::USERS;
use hanse_api::resources::User;
use hanse_api::status::Status;
use hanse_state::objects::ObjectKey;
use serde_json::{Map, Value, json};

/// Everything that a token or the user info may say.
pub(super) const SUPPORTED: [&str; 12] = [
    "iss",
    "sub",
    "aud",
    "exp",
    "iat",
    "nonce",
    "at_hash",
    "auth_time",
    "preferred_username",
    "name",
    "email",
    "groups",
];

/// Who a user is, as far as `scopes` go. The subject is his uid: a later user of his name is somebody else.
fn about(user: &User, teams: &[&str], scopes: &[String]) -> Map<String, Value> {
    let may = |scope: &str| scopes.iter().any(|s| s == scope);
    let (name, spec) = (&user.metadata.name, &user.spec);
    let mut claims = Map::new();
    claims.insert("sub".into(), user.metadata.uid.as_str().into());
    if may("profile") {
        let shown = if spec.display_name.is_empty() {
            name
        } else {
            &spec.display_name
        };
        claims.insert("preferred_username".into(), name.as_str().into());
        claims.insert("name".into(), shown.as_str().into());
    }
    // Whether the address was verified is not known for all: nothing is said about it.
    if may("email") && !spec.email.is_empty() {
        claims.insert("email".into(), spec.email.as_str().into());
    }
    if may("groups") {
        let own = spec
            .own_groups()
            .into_iter()
            .filter(|group| !group.starts_with("system:"));
        let teams = teams.iter().map(|team| format!("{GROUP_TEAM_PREFIX}{team}"));
        let mut groups: Vec<String> = own.chain(teams).collect();
        groups.sort();
        groups.dedup();
        claims.insert("groups".into(), groups.into());
    }
    claims
}

/// Who the user of that name and uid is now, if he may still come in anywhere.
pub(super) async fn told(
    backend: &Backend,
    (name, uid): (&str, &str),
    scopes: &[String],
) -> Result<Option<Map<String, Value>>, Box<Status>> {
    let key = ObjectKey::new(&USERS, "", name);
    let stored = backend.objects.get(&key).await.map_err(|e| failed(&e))?;
    let user: Option<User> = stored.and_then(|stored| serde_json::from_slice(&stored.value).ok());
    let good =
        |user: &User| user.metadata.uid == uid && !user.spec.disabled && user.metadata.deletion_timestamp.is_none();
    let Some(user) = user.filter(good) else {
        return Ok(None);
    };
    let directory = backend.directory.snapshot().await?;
    let groups = user.spec.own_groups();
    let teams = directory.teams_of(name, &groups);
    Ok(Some(about(&user, &teams, scopes)))
}

impl Desk<'_> {
    /// Who the bearer of an access token is (OpenID Connect Core, 5.3).
    pub(super) async fn user_info(&self, header: Option<&HeaderValue>) -> Result<Response, No> {
        let bad = || {
            let why = "the access token is unknown or over, or the login was ended";
            No::Said(StatusCode::UNAUTHORIZED, "invalid_token", why.into())
        };
        let token = header
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(bad)?;
        let now = self.backend.clock.wall();
        let pass: Pass = open(&self.oidc.sealer, now, token).ok_or_else(bad)?;
        let (_, grant) = grant_of(self.backend, &pass.grant).await?.ok_or_else(bad)?;
        let who = (grant.spec.user.as_str(), grant.spec.user_uid.as_str());
        let claims = told(self.backend, who, &grant.spec.scopes).await?.ok_or_else(bad)?;
        Ok(fresh(StatusCode::OK, &json!(claims)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_what_it_asked_for_and_nothing_that_means_something_here() {
        let mut user = User::default();
        user.metadata.name = "ann".into();
        user.metadata.uid = "u1".into();
        user.spec.email = "ann@corp.example".into();
        user.spec.groups = vec!["ops".into(), "system:hanse:admins".into(), "loft:team:fake".into()];
        user.spec.sso_groups = vec!["corp:devs".into(), "ops".into()];
        let told = |scopes: &[&str]| {
            let scopes: Vec<String> = scopes.iter().map(|s| (*s).to_owned()).collect();
            Value::from(about(&user, &["builders"], &scopes))
        };
        assert_eq!(told(&["openid"]), json!({ "sub": "u1" }));
        assert_eq!(
            told(&["openid", "profile", "email", "groups"]),
            json!({
                "sub": "u1", "preferred_username": "ann", "name": "ann", "email": "ann@corp.example",
                "groups": ["corp:devs", "loft:team:builders", "ops"],
            })
        );
    }
}
