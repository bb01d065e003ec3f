//! What Hanse keeps as an OpenID provider: `management.loft.sh/v1` OIDCClient, logins at such clients, and signing keys.

use super::invalid;
use crate::meta::Object;
use crate::status::Cause;
use crate::time::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A program that people log in to by Hanse.
pub type OidcClient = Object<OidcClientSpec, ()>;

/// Shortest secret of a client. Only a hash is kept, which is safe for what nobody guesses.
pub const SECRET_MIN: usize = 32;
/// Longest secret of a client.
pub const SECRET_MAX: usize = 256;
/// Most addresses of one client.
pub const REDIRECTS_MAX: usize = 32;
/// Longest address.
pub const REDIRECT_MAX: usize = 512;

/// What is known of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OidcClientSpec {
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its `client_id`: always the name of the object, so that no two have the same.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_id: String,
    /// Its secret, random, of at least 32 characters. Taken and never shown; a hash is stored.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_secret: String,
    /// The hash.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(skip)]
    pub client_secret_sha256: String,
    /// Whether it can keep no secret and has none, such as a program on people's own machines.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub public: bool,
    /// Addresses that people may be led back to, compared letter by letter: https, or http on the machine itself.
    #[serde(rename = "redirectURIs")]
    pub redirect_uris: Vec<String>,
}

/// Faults of a client but those of its addresses.
pub fn validate_client(client: &OidcClient) -> Vec<Cause> {
    let (spec, mut faults) = (&client.spec, Vec::new());
    if spec.client_id != client.metadata.name {
        let text = format!(
            "Invalid value: {:?}: must be the name of the object, {:?}, or left out",
            spec.client_id, client.metadata.name
        );
        faults.push(invalid("spec.clientId", text));
    }
    // A secret that could be taken was made a hash before.
    if !spec.client_secret.is_empty() {
        let text = format!(
            "Invalid value: must be {SECRET_MIN} to {SECRET_MAX} visible ASCII characters, made at random; \
             a public client has none"
        );
        faults.push(invalid("spec.clientSecret", text));
    } else if spec.client_secret_sha256.is_empty() && !spec.public {
        let text = "Required value: a random text, or `public: true` for a program that can keep none";
        faults.push(invalid("spec.clientSecret", text));
    }
    if spec.redirect_uris.is_empty() || spec.redirect_uris.len() > REDIRECTS_MAX {
        let text = format!("Invalid value: there must be 1 to {REDIRECTS_MAX} addresses");
        faults.push(invalid("spec.redirectURIs", text));
    }
    faults
}

/// Whether a text can be a client's secret.
pub fn is_client_secret(text: &str) -> bool {
    (SECRET_MIN..=SECRET_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Somebody's login at a client: what its tokens stand on. When it goes, none of them is good any more. The name begins with
/// the time at which it ends, so that the oldest come first.
pub type OidcGrant = Object<OidcGrantSpec, ()>;

/// Who logged in where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OidcGrantSpec {
    /// Name of the user.
    pub user: String,
    /// Uid of the user.
    pub user_uid: String,
    /// Name of the client.
    pub client: String,
    /// Uid of the client: another of the same name has no part in it.
    pub client_uid: String,
    /// What the client was allowed to know.
    pub scopes: Vec<String>,
    /// When the person logged in, if he was made to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_time: Option<Timestamp>,
    /// How often it was renewed: an earlier refresh token was stolen.
    pub turn: u64,
    /// When it ends.
    pub expires: Timestamp,
}

/// A key that signs tokens. One for each period of time, by whose number it is named.
pub type OidcKey = Object<OidcKeySpec, ()>;

/// Both halves of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OidcKeySpec {
    /// Its id in tokens: a hash of the public half.
    pub kid: String,
    /// Modulus, in base64url.
    pub n: String,
    /// Exponent, in base64url.
    pub e: String,
    /// The private half, sealed. Never shown.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(skip)]
    pub sealed: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_named() {
        let mut client = OidcClient::default();
        client.metadata.name = "grafana".into();
        let fields = |client: &OidcClient| {
            let faults = validate_client(client);
            faults.into_iter().map(|c| c.field).collect::<Vec<_>>()
        };
        assert_eq!(
            fields(&client),
            ["spec.clientId", "spec.clientSecret", "spec.redirectURIs"]
        );
        client.spec.client_id = "grafana".into();
        client.spec.public = true;
        client.spec.redirect_uris = vec!["https://grafana.example.com/cb".into()];
        assert!(fields(&client).is_empty());
        client.spec.client_secret = "short".into();
        assert_eq!(fields(&client), ["spec.clientSecret"], "it was not made a hash");
        assert!(is_client_secret(&"a".repeat(32)));
        for bad in ["a".repeat(31), "a".repeat(257), format!("{} b", "a".repeat(40))] {
            assert!(!is_client_secret(&bad));
        }
    }
}
