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
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        parse(token.trim())
    } else {
        None
    }
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
}
