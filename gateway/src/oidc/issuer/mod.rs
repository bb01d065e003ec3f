//! Hanse as OpenID provider of registered clients: authorization code with PKCE, refresh, user info, revocation.
//!
//! Who somebody is, is asked of the identity providers as for any other login; there is no session of our own in the browser.
//! - [`authorize`]: what a client asks for, and the way back to it. [`token`]: tokens for a code or a refresh token.
//! - [`clients`]: who a client is. [`claims`]: what it is told of a person. [`keys`]: what signs that.
//!
//! Codes and tokens for clients are sealed, as everything that a login hands out; an ID token is signed. What may be used once
//! or can be ended stands on an object.

mod authorize;
mod claims;
mod clients;
pub(super) mod keys;
mod token;

use super::people::Fault;
use super::provider::Refusal;
use super::{Desk, MAX_BODY};
use crate::answer;
use crate::apiserver::not_allowed;
use crate::body::{self, Body, Response};
use crate::query::Query;
use ::http::header::{AUTHORIZATION, CACHE_CONTROL, HeaderValue, WWW_AUTHENTICATE};
use ::http::request::Parts;
use ::http::{Method, StatusCode};
use hanse_api::status::{Reason, Status};
use serde_json::json;

/// What a client may ask to know.
const SCOPES: [&str; 5] = ["openid", "profile", "email", "groups", "offline_access"];
/// The scope with which a login can be renewed.
const OFFLINE: &str = "offline_access";

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// What there is.
    Discovery,
    /// Keys that tokens are checked with.
    Keys,
    /// Where a client leads people.
    Authorize,
    /// Tokens for a code or a refresh token.
    Token,
    /// Who the bearer of an access token is.
    UserInfo,
    /// The end of a login.
    Revoke,
}

impl Step {
    /// The endpoint at what follows `/oidc/`.
    pub(super) fn of(path: &str) -> Option<Self> {
        Some(match path {
            ".well-known/openid-configuration" => Self::Discovery,
            "jwks" => Self::Keys,
            "authorize" => Self::Authorize,
            "token" => Self::Token,
            "userinfo" => Self::UserInfo,
            "revoke" => Self::Revoke,
            _ => return None,
        })
    }

    const fn takes(self, method: &Method) -> bool {
        match self {
            Self::Discovery | Self::Keys => matches!(*method, Method::GET),
            Self::Authorize | Self::UserInfo => matches!(*method, Method::GET | Method::POST),
            Self::Token | Self::Revoke => matches!(*method, Method::POST),
        }
    }

    /// Whether it writes to the store.
    pub(super) const fn makes_work(self) -> bool {
        matches!(self, Self::Token | Self::Revoke)
    }
}

/// Why a client gets nothing.
#[derive(Debug)]
enum No {
    /// In the words of RFC 6749, 5.2: code, error and what about it.
    Said(StatusCode, &'static str, String),
    /// From the store.
    Status(Box<Status>),
}

impl No {
    fn because(error: &'static str, why: impl Into<String>) -> Self {
        Self::Said(StatusCode::BAD_REQUEST, error, why.into())
    }

    /// A code or refresh token that is good for nothing. Which fault it has is nobody's business.
    fn grant() -> Self {
        Self::because(
            "invalid_grant",
            "it is unknown, over, used already, or of another client, address or verifier; log in again",
        )
    }

    fn answer(self) -> Result<Response, Box<Status>> {
        let (code, error, why) = match self {
            Self::Said(code, error, why) => (code, error, why),
            Self::Status(status) => return Err(status),
        };
        let mut response = fresh(code, &json!({ "error": error, "error_description": why }));
        if code == StatusCode::UNAUTHORIZED {
            let scheme = match error {
                "invalid_token" => "Bearer realm=\"hanse\", error=\"invalid_token\"",
                _ => "Basic realm=\"hanse\"",
            };
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        }
        Ok(response)
    }
}

impl From<Box<Status>> for No {
    fn from(status: Box<Status>) -> Self {
        Self::Status(status)
    }
}

impl From<Fault> for No {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Status(status) => Self::Status(status),
            Fault::Refused(Refusal::Refused(why) | Refusal::Unreachable(why)) => Self::because("invalid_grant", why),
        }
    }
}

/// JSON that nobody may keep.
fn fresh(code: StatusCode, value: &serde_json::Value) -> Response {
    let mut response = answer::json(code, value);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("pragma", HeaderValue::from_static("no-cache"));
    response
}

/// The parameters of a request, of which each may come once (RFC 6749, 3.1 and 3.2).
fn parameters(text: &str, known: &[&str]) -> Result<Query, String> {
    let query = Query::parse(text)?;
    let twice = known.iter().find(|name| query.all(name).count() > 1);
    twice.map_or(Ok(query), |name| Err(format!("{name} is there more than once")))
}

impl Desk<'_> {
    /// What tokens name as their issuer.
    fn issuer(&self) -> String {
        format!("{}/oidc", self.oidc.external_url)
    }

    /// Answers a request of a client, or of somebody whom one leads here.
    pub(super) async fn issue(&self, step: Step, head: &Parts, body: Body) -> Result<Response, Fault> {
        if !step.takes(&head.method) {
            return Err(Fault::Status(not_allowed()));
        }
        let body = body::read(&head.headers, body, MAX_BODY).await?;
        let form = String::from_utf8_lossy(&body);
        let answer = match step {
            Step::Authorize => {
                let asked = match head.method {
                    Method::POST => &form,
                    _ => head.uri.query().unwrap_or_default(),
                };
                return self.authorize(asked).await;
            }
            Step::Discovery => return Ok(answer::json(StatusCode::OK, &self.discovery())),
            Step::Keys => return Ok(answer::json(StatusCode::OK, &self.jwks().await?)),
            Step::Token => self.token(&head.headers, &form).await,
            Step::Revoke => self.revoke(&head.headers, &form).await,
            Step::UserInfo => self.user_info(head.headers.get(AUTHORIZATION)).await,
        };
        answer.or_else(No::answer).map_err(Fault::Status)
    }

    /// OpenID Connect Discovery 1.0, 3.
    fn discovery(&self) -> serde_json::Value {
        let issuer = self.issuer();
        json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"),
            "userinfo_endpoint": format!("{issuer}/userinfo"),
            "revocation_endpoint": format!("{issuer}/revoke"),
            "jwks_uri": format!("{issuer}/jwks"),
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "scopes_supported": SCOPES,
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
            "code_challenge_methods_supported": ["S256"],
            "claims_supported": claims::SUPPORTED,
            "authorization_response_iss_parameter_supported": true,
            "request_parameter_supported": false,
            "request_uri_parameter_supported": false,
        })
    }
}

/// A request that is wrong in a way of which only the person can be told.
fn not_understood(why: impl Into<String>) -> Fault {
    Fault::Status(Box::new(Status::new(Reason::BadRequest, why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_twice_means_nothing() {
        let known = ["client_id", "state"];
        assert!(parameters("client_id=a&state=b&other=1&other=2", &known).is_ok());
        assert!(parameters("client_id=a&state=b&client_id=a", &known).is_err());
        assert!(parameters("state=%zz", &known).is_err());
    }
}
