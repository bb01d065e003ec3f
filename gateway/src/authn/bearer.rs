//! Reads credentials from a request. No credentials, empty ones and several at once are all "none": the type has no
//! value for "anonymous", so nothing can slip through.

use http::header::{AUTHORIZATION, HeaderMap};
use std::fmt;

/// What every access key begins with, so that leaked ones can be searched for.
pub const ACCESS_KEY_PREFIX: &str = "hak1";
/// What every enrolment token begins with.
pub const ENROLMENT_TOKEN_PREFIX: &str = "het1";
/// Longest part of a key.
const MAX_PART: usize = 128;
/// Longest ID token.
const MAX_TOKEN: usize = 16 * 1024;

/// An access key as the caller sent it. `Debug` shows the public id only.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Presented {
    /// Public id: the name of the AccessKey object.
    pub(crate) id: String,
    /// The secret.
    pub(crate) secret: String,
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presented")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The access key in the `Authorization` header, if there is exactly one and it has the right form.
pub(crate) fn presented(headers: &HeaderMap) -> Option<Presented> {
    token(headers).and_then(parse)
}

/// The ID token of an identity provider there, in the same way: three parts, the first of which is a JSON object.
pub(crate) fn id_token(headers: &HeaderMap) -> Option<&str> {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let parts = |token: &str| token.split('.').count() == 3 && token.split('.').all(part);
    token(headers).filter(|token| token.len() <= MAX_TOKEN && token.starts_with("eyJ") && parts(token))
}

fn token(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn parse(token: &str) -> Option<Presented> {
    let mut parts = token.split('.');
    let (Some(ACCESS_KEY_PREFIX), Some(id), Some(secret), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let fits = |part: &str| {
        !part.is_empty()
            && part.len() <= MAX_PART
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    let id_is_name = hanse_api::name::check_label(id).is_ok();
    (id_is_name && fits(secret)).then(|| Presented {
        id: id.to_owned(),
        secret: secret.to_owned(),
    })
}

/// An access key in the form in which it is handed to its owner, once.
pub fn access_key(id: &str, secret: &str) -> String {
    format!("{ACCESS_KEY_PREFIX}.{id}.{secret}")
}

/// An enrolment token in the form in which it is handed out, once. It pins the control plane's CA.
pub fn enrolment_token(id: &str, secret: &str, ca_sha256: &str) -> String {
    format!("{ENROLMENT_TOKEN_PREFIX}.{id}.{secret}.{ca_sha256}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(values: &[&str]) -> Option<Presented> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        presented(&headers)
    }

    #[test]
    fn a_key_is_read() {
        let key = access_key("abc-1", "s3cret_-");
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let got = with(&[&format!("{scheme} {key}")]).unwrap();
            assert_eq!((got.id.as_str(), got.secret.as_str()), ("abc-1", "s3cret_-"));
            assert!(!format!("{got:?}").contains("s3cret"));
        }
    }

    #[test]
    fn everything_else_is_no_credentials() {
        let long = format!("Bearer hak1.a.{}", "x".repeat(200));
        for bad in [
            &[][..],
            &[""],
            &["Bearer"],
            &["Bearer "],
            &["Bearer    "],
            &["Basic hak1.a.b"],
            &["hak1.a.b"],
            &["Bearer a.b"],
            &["Bearer hak1..b"],
            &["Bearer hak1.a."],
            &["Bearer hak1.a.b.c"],
            &["Bearer hak2.a.b"],
            &["Bearer hak1.../x.b"],
            &["Bearer hak1.a.b,c"],
            &["Bearer hak1.a.b", "Bearer hak1.a.b"],
            &["Bearer hak1.A.b"],
            &[long.as_str()],
        ] {
            assert_eq!(with(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_id_token_is_no_access_key_and_the_reverse() {
        let found = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.append(AUTHORIZATION, value.parse().unwrap());
            (presented(&headers).is_some(), id_token(&headers).is_some())
        };
        assert_eq!(found("Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"), (false, true));
        assert_eq!(found("Bearer hak1.a.b"), (true, false));
        for bad in [
            "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.",
            "eyJ.eyJ",
            "eyJ.eyJ.a.b",
            "eyJ.e+J.a",
            "xeyJ.a.b",
        ] {
            assert_eq!(found(&format!("Bearer {bad}")), (false, false), "{bad}");
        }
        let long = format!("Bearer eyJ.{}.a", "a".repeat(MAX_TOKEN));
        assert_eq!(found(&long), (false, false));
    }
}
