//! The steps in the browser: the choice of a provider, the way there, and the way back.

use super::people::{Fault, Known, Spent, admit};
use super::provider::{Provider, Refusal};
use super::sealed::{Ask, Attempt, Grant, Question, Sealed, Then, open, seal};
use super::terminal::{check_challenge, is_plain, read_code};
use super::{Desk, Place, pages};
use crate::answer;
use crate::apiserver::keys::login_key;
use crate::body::Response;
use crate::query::Query;
use ::http::StatusCode;
use ::http::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use hanse_api::status::{Reason, Status};
use openidconnect::url::Url;
use parking_lot::Mutex;
use serde_json::json;

/// Holds the login that was begun. The prefix makes browsers refuse it from anybody but this very host.
const COOKIE_NAME: &str = "__Host-hanse-login";
/// Where the `vcluster` CLI waits for its key.
const VCLUSTER_CLI: &str = "http://localhost:25843/login";
/// Longest text of a provider's error that is shown.
const MAX_TOLD: usize = 300;

fn refused(text: impl Into<String>) -> Fault {
    Fault::Refused(Refusal::Refused(text.into()))
}

pub(super) fn sealing_failed() -> Box<Status> {
    Box::new(Status::new(
        Reason::InternalError,
        "the server could not seal the login",
    ))
}

impl Desk<'_> {
    /// Answers a GET.
    pub(super) async fn get(&self, place: &Place, headers: &HeaderMap, query: &Query) -> Result<Response, Fault> {
        match place {
            Place::Choice => self.choice(query),
            Place::DeviceCode => Ok(pages::device()),
            Place::Done => Ok(pages::done(None)),
            Place::Begin(id) => self.begin(self.provider(id)?, query).await,
            Place::Callback(id) => {
                let provider = self.provider(id)?;
                let mut response = match self.callback(provider, headers, query).await {
                    Ok(response) => response,
                    Err(fault) => super::told(fault, true)?,
                };
                // Whatever came of it, this login is over.
                let over =
                    HeaderValue::from_static("__Host-hanse-login=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Lax");
                response.headers_mut().insert(SET_COOKIE, over);
                Ok(response)
            }
            _ => Ok(self.info()),
        }
    }

    fn provider(&self, id: &str) -> Result<&Provider, Fault> {
        let missing = || {
            Fault::Status(Box::new(Status::new(
                Reason::NotFound,
                format!("there is no identity provider {id:?}"),
            )))
        };
        self.oidc.provider(id).ok_or_else(missing)
    }

    /// How one can log in, for programs.
    fn info(&self) -> Response {
        let methods = |p: &Provider| {
            json!({
                "id": p.settings.id, "displayName": p.settings.title(),
                "loginEndpoint": format!("/auth/{}/login", p.settings.id),
            })
        };
        let sso: Vec<_> = self.oidc.providers.iter().map(methods).collect();
        let value = json!({
            "methods": { "sso": sso, "password": { "enabled": false } },
            "loginUrl": format!("{}/login", self.oidc.external_url),
        });
        answer::json(StatusCode::OK, &value)
    }

    fn choice(&self, query: &Query) -> Result<Response, Fault> {
        let then = then(query).map_err(refused)?;
        let more = to_query(&then);
        let button = |p: &Provider| {
            let href = format!("{}/auth/{}/login{more}", self.oidc.external_url, p.settings.id);
            (p.settings.title().to_owned(), href)
        };
        let buttons: Vec<_> = self.oidc.providers.iter().map(button).collect();
        let device = match &then {
            Then::Device { code } => Some(code.as_str()),
            Then::Nothing | Then::VclusterCli | Then::Code { .. } | Then::Client(_) => None,
        };
        Ok(pages::choice(&buttons, device))
    }

    /// What comes after the login: what a client of ours asked for, or what the address says.
    fn then(&self, query: &Query) -> Result<Then, Fault> {
        let Some(sealed) = query.text("client") else {
            return then(query).map_err(refused);
        };
        let ask: Option<Ask> = open(&self.oidc.sealer, self.backend.clock.wall(), sealed);
        let again = || refused("what you came for took too long; go back to the program, and log in there again");
        ask.map(|ask| Then::Client(Box::new(ask))).ok_or_else(again)
    }

    async fn begin(&self, provider: &Provider, query: &Query) -> Result<Response, Fault> {
        let rng = self.backend.rng.as_ref();
        let attempt = Attempt {
            id: rng.uuid(),
            provider: provider.settings.id.clone(),
            state: rng.token(),
            nonce: rng.token(),
            verifier: rng.token(),
            then: self.then(query)?,
            expires: self.backend.clock.wall().plus(Attempt::LIFE),
        };
        let address = provider.address(&attempt).await.map_err(Fault::Refused)?;
        let sealed = seal(&self.oidc.sealer, rng, &attempt).ok_or_else(sealing_failed)?;
        let life = Attempt::LIFE.as_secs();
        // Lax: the provider leads the browser back here from its own site, by GET.
        let cookie = format!("{COOKIE_NAME}={sealed}; Path=/; Max-Age={life}; Secure; HttpOnly; SameSite=Lax");
        let mut response = pages::redirect(address.as_str());
        let cookie = HeaderValue::from_str(&cookie).map_err(|_| sealing_failed())?;
        response.headers_mut().insert(SET_COOKIE, cookie);
        Ok(response)
    }

    async fn callback(&self, provider: &Provider, headers: &HeaderMap, query: &Query) -> Result<Response, Fault> {
        let attempt = self.attempt(provider, headers, query)?;
        if let Some(error) = query.text("error") {
            let about: String = query
                .text("error_description")
                .unwrap_or(error)
                .chars()
                .take(MAX_TOLD)
                .collect();
            return Err(refused(format!(
                "the identity provider {} did not log you in: {about}",
                provider.settings.title()
            )));
        }
        let code = query
            .text("code")
            .ok_or_else(|| refused("the identity provider sent you back without a code"))?;
        let person = provider.finish(&attempt, code).await.map_err(Fault::Refused)?;
        let spent = Spent {
            id: &attempt.id,
            expires: attempt.expires,
        };
        let key = Mutex::new(None);
        let about = format!("Login by {}", provider.settings.title());
        let more = |known: &Known| {
            if attempt.then != Then::VclusterCli {
                return Ok(Vec::new());
            }
            let (op, made) = login_key(self.backend, &known.user, &about, self.oidc.session)?;
            *key.lock() = Some(made);
            Ok(vec![op])
        };
        let known = admit(self.backend, &provider.settings, &person, &spent, &more).await?;
        tracing::info!(provider = provider.settings.id, user = known.user, "a login");
        let key = key.lock().take();
        self.onward(attempt.then, known, key).await
    }

    /// The login that this browser began, if the answer is one to it.
    fn attempt(&self, provider: &Provider, headers: &HeaderMap, query: &Query) -> Result<Attempt, Fault> {
        let again = "this is no answer to a login that this browser began, or it took too long; begin again";
        let now = self.backend.clock.wall();
        let attempt: Attempt = cookie(headers)
            .and_then(|sealed| open(&self.oidc.sealer, now, sealed))
            .ok_or_else(|| refused(again))?;
        let state = query.text("state").unwrap_or_default();
        if verify_slices_are_equal(state.as_bytes(), attempt.state.as_bytes()).is_err() {
            return Err(refused(again));
        }
        // One provider's code must never be shown to another (RFC 9700, 4.4).
        let other = query.text("iss").is_some_and(|iss| iss != provider.settings.issuer);
        if other || attempt.provider != provider.settings.id {
            return Err(refused(
                "the answer is of another identity provider than the one that was asked; begin again",
            ));
        }
        Ok(attempt)
    }

    async fn onward(&self, then: Then, known: Known, key: Option<String>) -> Result<Response, Fault> {
        let (rng, sealer) = (self.backend.rng.as_ref(), &self.oidc.sealer);
        let now = self.backend.clock.wall();
        match then {
            Then::Client(ask) => self.code_for(*ask, known).await,
            Then::Nothing => Ok(pages::done(Some(&known.user))),
            // Its contract wants the key in the address, which goes to the person's own machine only.
            Then::VclusterCli => {
                let key = key.ok_or_else(sealing_failed)?;
                Ok(pages::redirect(&address(VCLUSTER_CLI, &[("key", &key)])?))
            }
            Then::Code { challenge, port, state } => {
                let grant = Grant {
                    id: rng.uuid(),
                    user: known.user.clone(),
                    uid: known.uid,
                    challenge,
                    expires: now.plus(Grant::LIFE),
                };
                let code = seal(sealer, rng, &grant).ok_or_else(sealing_failed)?;
                let Some(port) = port else {
                    return Ok(pages::paste(&known.user, &code));
                };
                let base = format!("http://127.0.0.1:{port}/callback");
                Ok(pages::redirect(&address(&base, &[("code", &code), ("state", &state)])?))
            }
            Then::Device { code } => {
                let question = Question {
                    id: rng.uuid(),
                    user: known.user.clone(),
                    uid: known.uid,
                    code: code.clone(),
                    expires: now.plus(Question::LIFE),
                };
                let sealed = seal(sealer, rng, &question).ok_or_else(sealing_failed)?;
                Ok(pages::question(&known.user, &code, &sealed))
            }
        }
    }
}

fn address(base: &str, parameters: &[(&str, &str)]) -> Result<String, Fault> {
    let url = Url::parse_with_params(base, parameters).map_err(|_| sealing_failed())?;
    Ok(url.into())
}

/// The value of our cookie. HTTP/2 may send each cookie in a header of its own.
fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(COOKIE).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|v| v.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE_NAME)
        .map(|(_, value)| value)
}

/// What a client wants of a login.
fn then(query: &Query) -> Result<Then, String> {
    if query.flag("cli") {
        return Ok(Then::VclusterCli);
    }
    if let Some(code) = query.text("device") {
        let code = read_code(code).ok_or("this is no code of a device: type it again as the device shows it")?;
        return Ok(Then::Device { code });
    }
    let Some(challenge) = query.text("challenge") else {
        return Ok(Then::Nothing);
    };
    check_challenge(challenge)?;
    let port = match query.text("port").map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port >= 1024 => Some(port),
        Some(_) => return Err("port: must be a number from 1024 to 65535".into()),
    };
    let state = query.text("state").unwrap_or_default();
    if !is_plain(state) {
        return Err("state: must be at most 128 letters, digits, dashes and underscores".into());
    }
    Ok(Then::Code {
        challenge: challenge.to_owned(),
        port,
        state: state.to_owned(),
    })
}

/// The same as a query, with its question mark. Every part was checked to need no escape.
fn to_query(then: &Then) -> String {
    match then {
        // A client's question goes its own way, sealed.
        Then::Nothing | Then::Client(_) => String::new(),
        Then::VclusterCli => "?cli=true".into(),
        Then::Device { code } => format!("?device={code}"),
        Then::Code { challenge, port, state } => {
            let port = port.map(|port| format!("&port={port}")).unwrap_or_default();
            format!("?challenge={challenge}{port}&state={state}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_survives_the_choice() {
        let challenge = "A".repeat(43);
        let code = |port, state: &str| Then::Code {
            challenge: challenge.clone(),
            port,
            state: state.into(),
        };
        let device = Then::Device {
            code: "BCDFG-HJKLM".into(),
        };
        for want in [
            Then::Nothing,
            Then::VclusterCli,
            device,
            code(None, ""),
            code(Some(40_000), "a_-9"),
        ] {
            let query = to_query(&want);
            let query = Query::parse(query.trim_start_matches('?')).unwrap();
            assert_eq!(then(&query).unwrap(), want);
        }
        for bad in ["device=x", "challenge=short", "device=AAAAA-AAAAA"] {
            assert!(then(&Query::parse(bad).unwrap()).is_err(), "{bad}");
        }
        for bad in [
            "port=80",
            "port=x",
            "port=65536",
            "state=a%26b",
            &format!("state={}", "a".repeat(129)),
        ] {
            let query = format!("challenge={challenge}&{bad}");
            assert!(then(&Query::parse(&query).unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=b; x__Host-hanse-login=no"));
        assert_eq!(cookie(&headers), None);
        headers.append(COOKIE, HeaderValue::from_static("c=d; __Host-hanse-login=yes"));
        assert_eq!(cookie(&headers), Some("yes"));
    }
}
