//! Which client somebody is.

use super::No;
use crate::apiserver::backend::{Backend, failed};
use crate::query::{Query, decode};
use ::http::StatusCode;
use ::http::header::{AUTHORIZATION, HeaderMap};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hanse_api::kinds::OIDC_CLIENTS;
use hanse_api::resources::OidcClient;
use hanse_api::status::Status;
use hanse_runtime::pki::sha256_hex;
use hanse_state::objects::ObjectKey;

/// The client of an id, as this server knows it: strangers who ask must not be a load on the leader.
pub(super) async fn client(backend: &Backend, id: &str) -> Result<Option<OidcClient>, Box<Status>> {
    if hanse_api::name::check_subdomain(id).is_err() {
        return Ok(None);
    }
    let key = ObjectKey::new(&OIDC_CLIENTS, "", id);
    let stored = backend.objects.get_local(&key).await.map_err(|e| failed(&e))?;
    let client: Option<OidcClient> = stored.and_then(|stored| serde_json::from_slice(&stored.value).ok());
    Ok(client.filter(|client| client.metadata.deletion_timestamp.is_none()))
}

/// The client that a request comes from, if it shows that it is.
pub(super) async fn authenticated(backend: &Backend, headers: &HeaderMap, form: &Query) -> Result<OidcClient, No> {
    let shown = shown(headers, form)?;
    let unknown = || {
        let why = "the client is unknown, or its secret is wrong";
        No::Said(StatusCode::UNAUTHORIZED, "invalid_client", why.into())
    };
    let client = client(backend, &shown.id).await?.ok_or_else(unknown)?;
    if is_it(&client, shown.secret.as_deref()) {
        Ok(client)
    } else {
        Err(unknown())
    }
}

fn is_it(client: &OidcClient, secret: Option<&str>) -> bool {
    let kept = &client.spec.client_secret_sha256;
    match secret {
        Some(secret) if !kept.is_empty() => {
            let hash = sha256_hex(secret.as_bytes());
            verify_slices_are_equal(hash.as_bytes(), kept.as_bytes()).is_ok()
        }
        Some(_) => false,
        None => client.spec.public && kept.is_empty(),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Shown {
    id: String,
    secret: Option<String>,
}

/// Id and secret, in the header or in the form, but not in both (RFC 6749, 2.3.1).
fn shown(headers: &HeaderMap, form: &Query) -> Result<Shown, No> {
    let bad = |why: &str| No::because("invalid_request", why);
    let (id, secret) = (form.text("client_id"), form.text("client_secret"));
    let Some(header) = headers.get(AUTHORIZATION) else {
        let id = id.ok_or_else(|| bad("there is no client_id"))?.to_owned();
        let secret = secret.map(str::to_owned);
        return Ok(Shown { id, secret });
    };
    let basic = header
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
        .and_then(|(_, pair)| STANDARD.decode(pair.trim()).ok())
        .and_then(|pair| String::from_utf8(pair).ok())
        .and_then(|pair| {
            let (id, secret) = pair.split_once(':')?;
            Some((decode(id, true).ok()?, decode(secret, true).ok()?))
        });
    let (basic_id, basic_secret) = basic.ok_or_else(|| bad("the authorization is not Basic, or cannot be read"))?;
    if secret.is_some() || id.is_some_and(|id| id != basic_id) {
        return Err(bad("the client shows who it is in two ways"));
    }
    Ok(Shown {
        id: basic_id,
        secret: Some(basic_secret).filter(|secret| !secret.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_shows_itself_in_one_way() {
        let read = |header: Option<&str>, form: &str| {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(AUTHORIZATION, header.parse().unwrap());
            }
            shown(&headers, &Query::parse(form).unwrap()).ok()
        };
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        let is = |id: &str, secret: Option<&str>| {
            Some(Shown {
                id: id.into(),
                secret: secret.map(str::to_owned),
            })
        };
        assert_eq!(read(None, "client_id=a&client_secret=b"), is("a", Some("b")));
        assert_eq!(read(None, "client_id=a"), is("a", None));
        assert_eq!(read(Some(&basic("a:b%2Bc")), ""), is("a", Some("b+c")));
        assert_eq!(read(Some(&basic("a:b")), "client_id=a"), is("a", Some("b")));
        assert_eq!(read(Some(&basic("a:")), ""), is("a", None));
        for (header, form) in [
            (None, ""),
            (Some(basic("a:b")), "client_id=c"),
            (Some(basic("a:b")), "client_secret=b"),
            (Some("Bearer x".to_owned()), "client_id=a"),
            (Some("Basic %".to_owned()), ""),
            (Some(basic("a")), ""),
        ] {
            assert_eq!(read(header.as_deref(), form), None, "{header:?} {form}");
        }
    }

    #[test]
    fn a_secret_is_wanted_of_whoever_has_one_and_of_nobody_else() {
        let mut client = OidcClient::default();
        assert!(!is_it(&client, None) && !is_it(&client, Some("")));
        client.spec.client_secret_sha256 = sha256_hex(b"secret");
        assert!(is_it(&client, Some("secret")));
        assert!(!is_it(&client, Some("other")) && !is_it(&client, None));
        client.spec.public = true;
        assert!(!is_it(&client, None), "it still has one");
        client.spec.client_secret_sha256.clear();
        assert!(is_it(&client, None) && !is_it(&client, Some("secret")));
    }
}
