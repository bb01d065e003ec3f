//! What a client asks for, and how the person comes back to it.

use super::super::browser::sealing_failed;
use super::super::people::{Fault, Known};
use super::super::sealed::{Ask, Code, Sealed, seal};
use super::super::terminal::check_challenge;
use super::super::{Desk, pages};
use super::clients::client;
use super::{OFFLINE, SCOPES, not_understood, parameters};
use crate::body::Response;
use crate::query::Query;
use hanse_api::Timestamp;
use hanse_api::resources::OidcClientSpec;
use openidconnect::url::Url;

/// Longest `state` and `nonce`: they go through the person's browser in a cookie.
const MAX_STATE: usize = 1024;
const MAX_NONCE: usize = 256;
/// Longest sealed question, so that it fits into a cookie with what the login itself puts there.
const MAX_ASK: usize = 2600;
/// What is understood, or refused, and may come once.
const PARAMETERS: [&str; 15] = [
    "client_id",
    "redirect_uri",
    "response_type",
    "response_mode",
    "scope",
    "state",
    "nonce",
    "prompt",
    "max_age",
    "code_challenge",
    "code_challenge_method",
    "request",
    "request_uri",
    "registration",
    "claims",
];

/// What the client is told instead of a code: the error, and what about it.
type Unfit = (&'static str, &'static str);

/// What a client asks for. That it is this client's address is known.
fn ask(query: &Query, client: &str, redirect: &str, expires: Timestamp) -> Result<Ask, Unfit> {
    let given = |name| query.text(name);
    for (name, error) in [
        ("request", "request_not_supported"),
        ("request_uri", "request_uri_not_supported"),
        ("registration", "registration_not_supported"),
    ] {
        if given(name).is_some() {
            return Err((error, "send each parameter by itself"));
        }
    }
    if given("response_type") != Some("code") {
        return Err(("unsupported_response_type", "only the code flow is offered"));
    }
    if given("response_mode").is_some_and(|mode| mode != "query") {
        return Err(("invalid_request", "response_mode: only query is offered"));
    }
    let wanted: Vec<&str> = given("scope").unwrap_or_default().split(' ').collect();
    if !wanted.contains(&"openid") {
        return Err(("invalid_scope", "scope: must have openid"));
    }
    if given("code_challenge_method") != Some("S256") {
        return Err(("invalid_request", "code_challenge_method: PKCE with S256 is required"));
    }
    let challenge = given("code_challenge").unwrap_or_default();
    if check_challenge(challenge).is_err() {
        return Err(("invalid_request", "code_challenge: must be a SHA-256 in base64url"));
    }
    let prompts: Vec<&str> = given("prompt").unwrap_or_default().split(' ').collect();
    if prompts.contains(&"none") {
        return Err((
            "login_required",
            "there are no sessions here: each login asks the identity provider",
        ));
    }
    let plain = |text: &str, most: usize| text.len() <= most && text.bytes().all(|b| (0x20..0x7f).contains(&b));
    let (state, nonce) = (given("state").unwrap_or_default(), given("nonce").unwrap_or_default());
    if !plain(state, MAX_STATE) || !plain(nonce, MAX_NONCE) {
        return Err((
            "invalid_request",
            "state, nonce: must be visible ASCII, of at most 1024 and 256 characters",
        ));
    }
    // What is not known is passed over (OpenID Connect Core, 3.1.2.1).
    let scopes = SCOPES.iter().filter(|scope| wanted.contains(scope));
    Ok(Ask {
        client: client.to_owned(),
        redirect: redirect.to_owned(),
        scopes: scopes.map(|scope| (*scope).to_owned()).collect(),
        state: state.to_owned(),
        nonce: nonce.to_owned(),
        challenge: challenge.to_owned(),
        // Whoever wants a login of some age is given a new one.
        fresh: prompts.contains(&"login") || given("max_age").is_some(),
        expires,
    })
}

/// The address that a client may have people led back to, if the one that it names is.
fn redirect_of<'a>(spec: &OidcClientSpec, query: &'a Query) -> Option<&'a str> {
    let wanted = query.text("redirect_uri")?;
    spec.redirect_uris.iter().any(|known| known == wanted).then_some(wanted)
}

impl Desk<'_> {
    /// A client leads somebody here. Until it is known to be that client's address, nobody is led anywhere.
    pub(super) async fn authorize(&self, text: &str) -> Result<Response, Fault> {
        let query = parameters(text, &PARAMETERS).map_err(not_understood)?;
        let id = query.text("client_id").unwrap_or_default();
        let unknown = || {
            not_understood(format!(
                "{id:?} is no registered client: an administrator has to make it"
            ))
        };
        let client = client(self.backend, id).await?.ok_or_else(unknown)?;
        let redirect = redirect_of(&client.spec, &query).ok_or_else(|| {
            not_understood(format!(
                "the client {id:?} wants you to be led to an address that is not among its redirectURIs, letter by letter"
            ))
        })?;
        let (rng, now) = (self.backend.rng.as_ref(), self.backend.clock.wall());
        let state = query.text("state").unwrap_or_default();
        let ask = match ask(&query, id, redirect, now.plus(Ask::LIFE)) {
            Ok(ask) => ask,
            Err((error, why)) => {
                let said = [("error", error), ("error_description", why)];
                return self.lead_back(redirect, &said, state);
            }
        };
        let sealed = seal(&self.oidc.sealer, rng, &ask).ok_or_else(sealing_failed)?;
        if sealed.len() > MAX_ASK {
            let said = [
                ("error", "invalid_request"),
                ("error_description", "state: is too long"),
            ];
            return self.lead_back(redirect, &said, "");
        }
        let way = |id: &str| format!("{}/auth/{id}/login?client={sealed}", self.oidc.external_url);
        Ok(match self.oidc.providers.as_slice() {
            [only] => pages::redirect(&way(&only.settings.id)),
            several => {
                let button = |s: &super::super::OidcIssuer| (s.title().to_owned(), way(&s.id));
                let buttons: Vec<_> = several.iter().map(|p| button(&p.settings)).collect();
                pages::choice(&buttons, None)
            }
        })
    }

    /// Leads a person who has logged in back to the client, with a code.
    pub(in super::super) async fn code_for(&self, ask: Ask, known: Known) -> Result<Response, Fault> {
        let client = client(self.backend, &ask.client).await?;
        // What was asked some minutes ago may have been forbidden since.
        let still = client.is_some_and(|client| client.spec.redirect_uris.contains(&ask.redirect));
        if !still {
            return Err(not_understood(format!(
                "the client {:?} is gone, or has another address now",
                ask.client
            )));
        }
        let (rng, now) = (self.backend.rng.as_ref(), self.backend.clock.wall());
        let (redirect, state) = (ask.redirect.clone(), ask.state.clone());
        let code = Code {
            id: rng.uuid(),
            auth_time: ask.fresh.then_some(now),
            ask,
            user: known.user,
            uid: known.uid,
            expires: now.plus(Code::LIFE),
        };
        let sealed = seal(&self.oidc.sealer, rng, &code).ok_or_else(sealing_failed)?;
        self.lead_back(&redirect, &[("code", &sealed)], &state)
    }

    /// To the client's own address, with what it is told; who says so goes along (RFC 9207).
    fn lead_back(&self, redirect: &str, said: &[(&str, &str)], state: &str) -> Result<Response, Fault> {
        let mut url = Url::parse(redirect).map_err(|_| sealing_failed())?;
        {
            let mut pairs = url.query_pairs_mut();
            pairs.extend_pairs(said);
            if !state.is_empty() {
                pairs.append_pair("state", state);
            }
            pairs.append_pair("iss", &self.issuer());
        }
        Ok(pages::redirect(url.as_str()))
    }
}

/// Whether a login that this was asked with can be renewed.
pub(super) fn renews(scopes: &[String]) -> bool {
    scopes.iter().any(|scope| scope == OFFLINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "response_type=code&scope=openid%20groups%20other&state=s&nonce=n&code_challenge_method=S256\
                        &code_challenge=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn asked(text: &str) -> Result<Ask, Unfit> {
        ask(
            &Query::parse(text).unwrap(),
            "c",
            "https://a/cb",
            Timestamp::from_millis(1),
        )
    }

    #[test]
    fn only_the_code_flow_with_pkce_is_understood() {
        let good = asked(GOOD).unwrap();
        assert_eq!(
            (good.state.as_str(), good.nonce.as_str(), good.fresh),
            ("s", "n", false)
        );
        assert_eq!(good.scopes, ["openid", "groups"]);
        for more in ["&prompt=login", "&max_age=0", "&prompt=consent%20login"] {
            assert!(asked(&format!("{GOOD}{more}")).unwrap().fresh, "{more}");
        }
        let long = format!("state={}", "s".repeat(MAX_STATE + 1));
        for (from, to, error) in [
            ("response_type=code", "response_type=token", "unsupported_response_type"),
            (
                "response_type=code",
                "response_type=code%20id_token",
                "unsupported_response_type",
            ),
            ("response_type=code&", "", "unsupported_response_type"),
            ("scope=openid%20groups", "scope=groups", "invalid_scope"),
            ("=S256", "=plain", "invalid_request"),
            ("&code_challenge_method=S256", "", "invalid_request"),
            ("code_challenge=A", "code_challenge=", "invalid_request"),
            ("code_challenge=A", "x=", "invalid_request"),
            ("state=s", &long, "invalid_request"),
            ("state=s", "state=%0d%0a", "invalid_request"),
            ("state=s", "response_mode=fragment", "invalid_request"),
            ("state=s", "prompt=none", "login_required"),
            ("state=s", "request=x", "request_not_supported"),
            ("state=s", "request_uri=x", "request_uri_not_supported"),
        ] {
            assert_eq!(asked(&GOOD.replacen(from, to, 1)).unwrap_err().0, error, "{from} {to}");
        }
    }

    #[test]
    fn addresses_are_compared_letter_by_letter() {
        let spec = OidcClientSpec {
            redirect_uris: vec!["https://a/cb".into(), "http://127.0.0.1:8000/".into()],
            ..OidcClientSpec::default()
        };
        let good = |uri: &str| redirect_of(&spec, &Query::parse(&format!("redirect_uri={uri}")).unwrap()).is_some();
        assert!(good("https://a/cb") && good("https%3A%2F%2Fa%2Fcb") && good("http://127.0.0.1:8000/"));
        for bad in [
            "",
            "https://a/cb/",
            "https://a/cb?x",
            "https://A/cb",
            "https://a/cb%23",
            "https://a.evil/cb",
            "https://a:443/cb",
            "http://127.0.0.1:8001/",
            "http://127.0.0.1:8000",
            "https://a/x/../cb",
        ] {
            assert!(!good(bad), "{bad}");
        }
    }
}
