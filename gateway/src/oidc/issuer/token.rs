//! Tokens for a code, once, and for a refresh token, once each; and their end.

use super::super::Desk;
use super::super::browser::sealing_failed;
use super::super::people::{Fault, Known, Spent, commit, ending_name};
use super::super::sealed::{Code, Pass, Renewal, Sealed, open, seal};
use super::super::terminal::still_good;
use super::authorize::renews;
use super::claims::told;
use super::clients::authenticated;
use super::{No, fresh, parameters};
use crate::apiserver::backend::{Backend, failed};
use crate::apiserver::keys::{new_meta, stored_json};
use crate::body::Response;
use crate::query::Query;
use ::http::{HeaderMap, StatusCode};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hanse_api::kinds::OIDC_GRANTS;
use hanse_api::resources::{OidcClient, OidcGrant, OidcGrantSpec};
use hanse_api::status::{Reason, Status};
use hanse_state::objects::{ObjectError, ObjectKey, Op, Stored};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// How long an ID token holds. It cannot be taken back.
const ID_TOKEN: Duration = Duration::from_secs(3600);
/// Tries of a transaction that somebody else's change came before.
const TRIES: usize = 5;
/// What is understood, and may come once.
const PARAMETERS: [&str; 9] = [
    "grant_type",
    "client_id",
    "client_secret",
    "code",
    "redirect_uri",
    "code_verifier",
    "refresh_token",
    "scope",
    "token",
];

/// A login at a client, as it is stored.
pub(super) async fn grant_of(backend: &Backend, name: &str) -> Result<Option<(Stored, OidcGrant)>, Box<Status>> {
    let key = ObjectKey::new(&OIDC_GRANTS, "", name);
    let stored = backend.objects.get(&key).await.map_err(|e| failed(&e))?;
    let now = backend.clock.wall();
    let read = |stored: Stored| {
        let grant: OidcGrant = serde_json::from_slice(&stored.value).ok()?;
        (now < grant.spec.expires).then_some((stored, grant))
    };
    Ok(stored.and_then(read))
}

/// Ends a login at a client: no token of it is good any more.
async fn end(backend: &Backend, name: &str) -> Result<(), Box<Status>> {
    for _ in 0..TRIES {
        let Some((stored, _)) = grant_of(backend, name).await? else {
            return Ok(());
        };
        let op = Op::Delete {
            key: ObjectKey::new(&OIDC_GRANTS, "", name),
            expected: stored.revision,
        };
        match backend.objects.commit(vec![op]).await {
            Ok(_) => return Ok(()),
            Err(ObjectError::Failed { .. }) => {}
            Err(error) => return Err(failed(&error)),
        }
    }
    Err(busy())
}

fn busy() -> Box<Status> {
    Box::new(Status::new(Reason::ServiceUnavailable, "too much changed at once; try again").retry_after(1))
}

/// Whether a code is for whoever shows it: the client that asked, its address of then, and its verifier (RFC 7636, 4.6).
fn fits(code: &Code, client: &str, redirect: &str, verifier: &str) -> bool {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let whole = (43..=128).contains(&verifier.len()) && verifier.bytes().all(unreserved);
    let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
    let proven = verify_slices_are_equal(challenge.as_bytes(), code.ask.challenge.as_bytes()).is_ok();
    whole && proven && code.ask.client == client && code.ask.redirect == redirect
}

/// Whether a login was made at just this client.
fn is_of(grant: &OidcGrantSpec, client: &OidcClient) -> bool {
    grant.client == client.metadata.name && grant.client_uid == client.metadata.uid
}

impl Desk<'_> {
    /// The token endpoint.
    pub(super) async fn token(&self, headers: &HeaderMap, form: &str) -> Result<Response, No> {
        let form = parameters(form, &PARAMETERS).map_err(|why| No::because("invalid_request", why))?;
        let client = authenticated(self.backend, headers, &form).await?;
        match form.text("grant_type") {
            Some("authorization_code") => self.for_code(&client, &form).await,
            Some("refresh_token") => self.for_renewal(&client, &form).await,
            Some(_) => Err(No::because(
                "unsupported_grant_type",
                "there are authorization_code and refresh_token",
            )),
            None => Err(No::because("invalid_request", "there is no grant_type")),
        }
    }

    async fn for_code(&self, client: &OidcClient, form: &Query) -> Result<Response, No> {
        let given = |name| form.text(name).unwrap_or_default();
        let (redirect, verifier) = (given("redirect_uri"), given("code_verifier"));
        let code: Option<Code> = open(&self.oidc.sealer, self.backend.clock.wall(), given("code"));
        let code = code.filter(|code| fits(code, &client.metadata.name, redirect, verifier));
        let code = code.ok_or_else(No::grant)?;
        let life = if renews(&code.ask.scopes) {
            self.oidc.session
        } else {
            Pass::LIFE
        };
        // From the code alone, so that whoever shows it again finds the login that it became.
        let expires = code.expires.plus(life);
        let name = ending_name(expires, &code.id);
        let grant = OidcGrant {
            api_version: OIDC_GRANTS.api_version(),
            kind: OIDC_GRANTS.kind.into(),
            metadata: new_meta(self.backend, &name),
            spec: OidcGrantSpec {
                user: code.user.clone(),
                user_uid: code.uid.clone(),
                client: client.metadata.name.clone(),
                client_uid: client.metadata.uid.clone(),
                scopes: code.ask.scopes.clone(),
                auth_time: code.auth_time,
                turn: 0,
                expires,
            },
            status: (),
        };
        let known = Known {
            user: code.user.clone(),
            uid: code.uid.clone(),
        };
        let spent = Spent {
            id: &code.id,
            expires: code.expires,
        };
        for _ in 0..TRIES {
            let make = Op::Create {
                key: ObjectKey::new(&OIDC_GRANTS, "", &name),
                value: stored_json(&grant)?,
            };
            let ops = vec![still_good(self.backend, &known).await?, make];
            match commit(self.backend, ops, &spent).await {
                Ok(true) => return self.tokens(&name, &grant.spec, Some(&code.ask.nonce)).await,
                Ok(false) => {}
                // Somebody has it who should not: nobody keeps what came of it (RFC 6749, 4.1.2).
                Err(Fault::Refused(_)) => {
                    tracing::warn!(
                        client = client.metadata.name,
                        user = code.user,
                        "a code was shown twice"
                    );
                    end(self.backend, &name).await?;
                    return Err(No::grant());
                }
                Err(fault) => return Err(fault.into()),
            }
        }
        Err(busy().into())
    }

    /// New tokens for a refresh token, which is over then. One that is over was stolen, or its successor was: nobody can say
    /// from whom, so the whole login ends (RFC 9700, 4.14.2).
    async fn for_renewal(&self, client: &OidcClient, form: &Query) -> Result<Response, No> {
        let token = form.text("refresh_token").unwrap_or_default();
        let renewal: Option<Renewal> = open(&self.oidc.sealer, self.backend.clock.wall(), token);
        let renewal = renewal.ok_or_else(No::grant)?;
        for _ in 0..TRIES {
            let found = grant_of(self.backend, &renewal.grant).await?;
            let (stored, mut grant) = found
                .filter(|(_, grant)| is_of(&grant.spec, client))
                .ok_or_else(No::grant)?;
            if grant.spec.turn != renewal.turn {
                let (client, user) = (&grant.spec.client, &grant.spec.user);
                tracing::warn!(client, user, "a refresh token was used twice: the login is ended");
                end(self.backend, &renewal.grant).await?;
                return Err(No::grant());
            }
            let known = Known {
                user: grant.spec.user.clone(),
                uid: grant.spec.user_uid.clone(),
            };
            grant.spec.turn += 1;
            let update = Op::Update {
                key: ObjectKey::new(&OIDC_GRANTS, "", &renewal.grant),
                value: stored_json(&grant)?,
                expected: stored.revision,
            };
            let good = still_good(self.backend, &known).await?;
            match self.backend.objects.commit(vec![good, update]).await {
                Ok(_) => return self.tokens(&renewal.grant, &grant.spec, None).await,
                Err(ObjectError::Failed { .. }) => {}
                Err(error) => return Err(failed(&error).into()),
            }
        }
        Err(busy().into())
    }

    /// The tokens of a login.
    async fn tokens(&self, name: &str, grant: &OidcGrantSpec, nonce: Option<&str>) -> Result<Response, No> {
        let (rng, sealer) = (self.backend.rng.as_ref(), &self.oidc.sealer);
        let now = self.backend.clock.wall();
        let who = (grant.user.as_str(), grant.user_uid.as_str());
        let about = told(self.backend, who, &grant.scopes).await?.ok_or_else(No::grant)?;
        let pass = Pass {
            grant: name.to_owned(),
            expires: now.plus(Pass::LIFE).min(grant.expires),
        };
        let access = seal(sealer, rng, &pass).ok_or_else(sealing_failed)?;
        let mut claims = Map::new();
        claims.insert("iss".into(), self.issuer().into());
        claims.insert("aud".into(), grant.client.as_str().into());
        claims.insert("iat".into(), (now.as_millis() / 1000).into());
        claims.insert("exp".into(), (now.plus(ID_TOKEN).as_millis() / 1000).into());
        let hash = digest(&SHA256, access.as_bytes());
        claims.insert("at_hash".into(), URL_SAFE_NO_PAD.encode(&hash.as_ref()[..16]).into());
        if let Some(nonce) = nonce.filter(|nonce| !nonce.is_empty()) {
            claims.insert("nonce".into(), nonce.into());
        }
        if let Some(at) = grant.auth_time {
            claims.insert("auth_time".into(), (at.as_millis() / 1000).into());
        }
        claims.extend(about);
        let mut value = json!({
            "access_token": access,
            "token_type": "Bearer",
            "expires_in": pass.expires.since(now).as_secs(),
            "id_token": self.signed(&claims).await?,
            "scope": grant.scopes.join(" "),
        });
        if renews(&grant.scopes) {
            let renewal = Renewal {
                grant: name.to_owned(),
                turn: grant.turn,
                expires: grant.expires,
            };
            let token = seal(sealer, rng, &renewal).ok_or_else(sealing_failed)?;
            value["refresh_token"] = Value::from(token);
        }
        Ok(fresh(StatusCode::OK, &value))
    }

    /// Ends the login of a token (RFC 7009). One that is none, or another client's, is answered in the same way.
    pub(super) async fn revoke(&self, headers: &HeaderMap, form: &str) -> Result<Response, No> {
        let form = parameters(form, &PARAMETERS).map_err(|why| No::because("invalid_request", why))?;
        let client = authenticated(self.backend, headers, &form).await?;
        let (now, token) = (self.backend.clock.wall(), form.text("token").unwrap_or_default());
        let renewal: Option<Renewal> = open(&self.oidc.sealer, now, token);
        let pass = || open::<Pass>(&self.oidc.sealer, now, token).map(|pass| pass.grant);
        if let Some(name) = renewal.map(|renewal| renewal.grant).or_else(pass) {
            let found = grant_of(self.backend, &name).await?;
            if found.is_some_and(|(_, grant)| is_of(&grant.spec, &client)) {
                end(self.backend, &name).await?;
            }
        }
        Ok(fresh(StatusCode::OK, &json!({})))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::sealed::Ask;
    use super::*;
    use hanse_api::Timestamp;

    /// RFC 7636, appendix B.
    const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

    #[test]
    fn a_code_is_for_who_asked() {
        let code = |challenge: &str| Code {
            id: "1".into(),
            ask: Ask {
                client: "c".into(),
                redirect: "https://a/cb".into(),
                scopes: Vec::new(),
                state: String::new(),
                nonce: String::new(),
                challenge: challenge.into(),
                fresh: false,
                expires: Timestamp::from_millis(1),
            },
            user: "ann".into(),
            uid: "u".into(),
            auth_time: None,
            expires: Timestamp::from_millis(1),
        };
        assert!(fits(&code(CHALLENGE), "c", "https://a/cb", VERIFIER));
        let long = "a".repeat(129);
        for (client, redirect, verifier) in [
            ("d", "https://a/cb", VERIFIER),
            ("c", "https://a/cb/", VERIFIER),
            ("c", "", VERIFIER),
            ("c", "https://a/cb", ""),
            ("c", "https://a/cb", CHALLENGE),
            ("c", "https://a/cb", &VERIFIER[..42]),
            ("c", "https://a/cb", &long),
        ] {
            assert!(
                !fits(&code(CHALLENGE), client, redirect, verifier),
                "{client} {redirect} {verifier}"
            );
        }
        assert!(!fits(&code(VERIFIER), "c", "https://a/cb", VERIFIER), "plain");
        let weak = URL_SAFE_NO_PAD.encode(digest(&SHA256, b"short"));
        assert!(!fits(&code(&weak), "c", "https://a/cb", "short"));
    }
}
