//! Logins by OpenID Connect: Hanse as relying party of several issuers at once, and as provider of others.
//!
//! - [`settings`]: what is said about an issuer. [`provider`], [`http`]: asking it, and checking its tokens.
//! - [`person`]: who somebody is by his claims; [`people`]: which user that is here.
//! - [`sealed`]: what browser and client keep between two steps. Nothing is remembered here, so any server goes on with what
//!   another began; what may be used once is used up in the transaction that it brings about.
//! - [`browser`]: the steps in the browser. [`terminal`]: how a program gets its key. [`pages`]: HTML.
//! - [`issuer`]: Hanse as provider.

mod browser;
mod http;
mod issuer;
mod pages;
mod people;
mod person;
mod provider;
mod sealed;
mod settings;
mod terminal;

pub use settings::OidcIssuer;

pub(crate) use issuer::Step;
pub(crate) use person::{Person, identity_name};
pub(crate) use provider::Refusal;

use crate::apiserver::backend::Backend;
use crate::apiserver::not_allowed;
use crate::body::{self, Body, Response};
use crate::error::GatewayError;
use crate::query::Query;
use ::http::header::RETRY_AFTER;
use ::http::{Method, Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hanse_api::Timestamp;
use hanse_api::status::Status;
use hanse_runtime::clock::SharedClock;
use hanse_runtime::seal::Sealer;
use people::Fault;
use provider::Provider;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of a request of a login.
const MAX_BODY: usize = 16 * 1024;

/// Contents of the files that an [`OidcIssuer`] names.
#[derive(Clone, Default)]
pub struct OidcFiles {
    /// Secret of the client.
    pub client_secret: Option<String>,
    /// Certificates of the provider's authority, PEM.
    pub ca: Option<String>,
}

impl fmt::Debug for OidcFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OidcFiles(..)")
    }
}

/// The identity providers of an installation.
pub struct Oidc {
    external_url: String,
    session: Duration,
    sealer: Sealer,
    providers: Vec<Provider>,
    /// Held while a key for ID tokens is made.
    making: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Oidc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.providers.iter().map(|p| &p.settings.id))
            .finish()
    }
}

impl Oidc {
    /// With a key that all servers share, the address that browsers use, and how long the key of a login holds.
    pub fn new(
        issuers: Vec<(OidcIssuer, OidcFiles)>,
        sealer: Sealer,
        external_url: &str,
        session: Duration,
        clock: &SharedClock,
    ) -> Result<Self, GatewayError> {
        let external_url = external_url.trim_end_matches('/').to_owned();
        let make = |(settings, files): (OidcIssuer, OidcFiles)| {
            let secret = files.client_secret.map(|secret| secret.trim().to_owned());
            Provider::new(settings, secret, files.ca.as_deref(), &external_url, Arc::clone(clock))
        };
        let providers = issuers.into_iter().map(make).collect::<Result<_, _>>()?;
        Ok(Self {
            providers,
            external_url,
            session,
            sealer,
            making: tokio::sync::Mutex::default(),
        })
    }

    /// Who an ID token is about that somebody shows as his credentials, and when it ends.
    pub(crate) async fn bearer(&self, token: &str) -> Result<(Person, Timestamp), Refusal> {
        // Not checked yet: it only says whom to ask.
        let issuer = claimed_issuer(token).unwrap_or_default();
        let takes = |p: &&Provider| p.settings.issuer == issuer && !p.settings.api_audiences.is_empty();
        match self.providers.iter().find(takes) {
            Some(provider) => provider.bearer(token).await,
            None => Err(Refusal::Refused("no provider of this issuer gives credentials".into())),
        }
    }

    fn provider(&self, id: &str) -> Option<&Provider> {
        self.providers.iter().find(|p| p.settings.id == id)
    }
}

fn claimed_issuer(token: &str) -> Option<String> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    claims["iss"].as_str().map(str::to_owned)
}

/// Where a request of a login goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `/login`: a button for each provider.
    Choice,
    /// `/login/device`: where a short code is typed.
    DeviceCode,
    /// `/spaces`: where the `vcluster` CLI leads the browser in the end.
    Done,
    /// `/auth/info`: how one can log in, for programs.
    Info,
    /// `/auth/<provider>/login`: off to the provider.
    Begin(String),
    /// `/auth/<provider>/callback`: back from it.
    Callback(String),
    /// `/auth/exchange`: a key for a code.
    Exchange,
    /// `/auth/device/start`: a device begins.
    DeviceStart,
    /// `/auth/device/poll`: it asks for its key.
    DevicePoll,
    /// `/auth/device/confirm`: the person's yes.
    DeviceConfirm,
    /// `/oidc/...`: for clients of ours.
    Issuer(Step),
}

impl Place {
    /// The place of a raw path.
    pub(crate) fn of(path: &str) -> Option<Self> {
        match path {
            "/login" => return Some(Self::Choice),
            "/login/device" => return Some(Self::DeviceCode),
            "/spaces" => return Some(Self::Done),
            _ => {}
        }
        if let Some(rest) = path.strip_prefix("/oidc/") {
            return Step::of(rest).map(Self::Issuer);
        }
        let (head, tail) = path
            .strip_prefix("/auth/")
            .map(|p| p.split_once('/').unwrap_or((p, "")))?;
        match (head, tail) {
            ("info", "") => Some(Self::Info),
            ("exchange", "") => Some(Self::Exchange),
            ("device", "start") => Some(Self::DeviceStart),
            ("device", "poll") => Some(Self::DevicePoll),
            ("device", "confirm") => Some(Self::DeviceConfirm),
            (id, step) => {
                let id = hanse_api::name::check_label(id).ok().map(|()| id.to_owned())?;
                match step {
                    "login" => Some(Self::Begin(id)),
                    "callback" => Some(Self::Callback(id)),
                    _ => None,
                }
            }
        }
    }

    const fn takes_post(&self) -> bool {
        matches!(
            self,
            Self::Exchange | Self::DeviceStart | Self::DevicePoll | Self::DeviceConfirm
        )
    }

    /// Whether it asks a provider, or writes to the store.
    pub(crate) const fn makes_work(&self) -> bool {
        match self {
            Self::Begin(_) | Self::Callback(_) | Self::Exchange | Self::DeviceStart | Self::DeviceConfirm => true,
            Self::Issuer(step) => step.makes_work(),
            Self::Choice | Self::DeviceCode | Self::Done | Self::Info | Self::DevicePoll => false,
        }
    }

    /// Whether a person reads the answer.
    const fn is_for_people(&self) -> bool {
        match self {
            Self::Info | Self::Exchange | Self::DeviceStart | Self::DevicePoll => false,
            Self::Issuer(step) => matches!(step, Step::Authorize),
            Self::Choice | Self::DeviceCode | Self::Done | Self::Begin(_) | Self::Callback(_) | Self::DeviceConfirm => {
                true
            }
        }
    }
}

/// Answers a request of a login, for a caller that nobody knows yet.
pub(crate) async fn serve(
    backend: &Backend,
    oidc: &Oidc,
    request: Request<Body>,
    place: Place,
) -> Result<Response, Box<Status>> {
    let desk = Desk { oidc, backend };
    if let Place::Issuer(step) = place {
        let (head, body) = request.into_parts();
        let answer = desk.issue(step, &head, body).await;
        return answer.or_else(|fault| told(fault, place.is_for_people()));
    }
    let wanted = if place.takes_post() { Method::POST } else { Method::GET };
    if request.method() != wanted {
        return Err(not_allowed());
    }
    let for_people = place.is_for_people();
    let (head, body) = request.into_parts();
    let query = Query::parse(head.uri.query().unwrap_or_default()).unwrap_or_default();
    let answer = if place.takes_post() {
        let body = body::read(&head.headers, body, MAX_BODY).await?;
        desk.post(&place, &body).await
    } else {
        desk.get(&place, &head.headers, &query).await
    };
    match answer {
        Ok(response) => Ok(response),
        Err(fault) => told(fault, for_people),
    }
}

/// A step that is not taken at all, told in the form that its reader understands.
pub(crate) fn refused(place: &Place, status: Box<Status>) -> Result<Response, Box<Status>> {
    told(Fault::Status(status), place.is_for_people())
}

/// What all steps of logins stand on.
struct Desk<'a> {
    oidc: &'a Oidc,
    backend: &'a Backend,
}

/// A fault, in the form that its reader understands.
fn told(fault: Fault, for_people: bool) -> Result<Response, Box<Status>> {
    use hanse_api::status::Reason;
    let status = match fault {
        Fault::Status(status) => status,
        Fault::Refused(Refusal::Refused(why)) => Box::new(Status::new(Reason::Forbidden, why)),
        Fault::Refused(Refusal::Unreachable(why)) => {
            Box::new(Status::new(Reason::ServiceUnavailable, why).retry_after(5))
        }
    };
    if !for_people {
        return Err(status);
    }
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut page = pages::failure(code, &status.message);
    if let Some(seconds) = status.details.as_ref().and_then(|details| details.retry_after_seconds) {
        page.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    Ok(page)
}
